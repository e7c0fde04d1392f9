"""LLVM values with operators, so that a formula of :mod:`fastbp.scalars` reads the same on the CPU and on the GPU.

And what the emitters of both share: constants, comparisons, sine and cosine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from llvmlite import ir

from fastbp import polynomials, scalars

LARGEST_ANGLE = {"float32": 1e5, "float64": 1e9}  # that pi/2 in three parts reduces: |y| stays below 0.8


class Value:
    """An LLVM value, a scalar or a vector; numbers on the other side become constants."""

    __slots__ = ("m", "value")

    def __init__(self, m: Emitter, value: Any) -> None:
        self.m = m
        self.value = value

    def _operate(self, operation: Callable[..., Any], x: Any, y: Any) -> Value:
        return Value(self.m, operation(self.m.unwrap(x), self.m.unwrap(y)))

    def __add__(self, other: Any) -> Value:
        return self._operate(self.m.builder.fadd, self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Value:
        return self._operate(self.m.builder.fsub, self, other)

    def __rsub__(self, other: Any) -> Value:
        return self._operate(self.m.builder.fsub, other, self)

    def __mul__(self, other: Any) -> Value:
        return self._operate(self.m.builder.fmul, self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Value:
        return self._operate(self.m.builder.fdiv, self, other)

    def __rtruediv__(self, other: Any) -> Value:
        return self._operate(self.m.builder.fdiv, other, self)

    def __neg__(self) -> Value:
        return Value(self.m, self.m.negative(self.value))

    def compare(self, sign: str, other: Any) -> Value:
        """An ordered comparison: false where either side is NaN."""
        return Value(self.m, self.m.builder.fcmp_ordered(sign, self.value, self.m.unwrap(other)))

    def __lt__(self, other: Any) -> Value:
        return self.compare("<", other)

    def __le__(self, other: Any) -> Value:
        return self.compare("<=", other)

    def __gt__(self, other: Any) -> Value:
        return self.compare(">", other)

    def __ge__(self, other: Any) -> Value:
        return self.compare(">=", other)


class Emitter:
    """What the emitters of scalars and of vectors share of :class:`fastbp.scalars.Emitter`.

    Attributes:
        lanes: elements of a vector; 0 for scalars.
        type: LLVM type of a value.
        int_type: LLVM type of integers of its size.
        has_fma: whether fma rounds once.
    """

    has_fma = True

    def __init__(self, builder: Any, dtype: str, lanes: int = 0) -> None:
        single = dtype == "float32"
        self.builder = builder
        self.dtype = dtype
        self.lanes = lanes
        self.numpy = np.float32 if single else np.float64
        self.itemsize = 4 if single else 8
        self.mantissa = 23 if single else 52
        self.element = ir.FloatType() if single else ir.DoubleType()
        integer = ir.IntType(8 * self.itemsize)
        self.type = ir.VectorType(self.element, lanes) if lanes else self.element
        self.int_type = ir.VectorType(integer, lanes) if lanes else integer

    # -- LLVM helpers

    def unwrap(self, x: Any) -> Any:
        """The LLVM value of a Value, or of a Python number."""
        return x.value if isinstance(x, Value) else self.constant(x)

    def negative(self, x: Any) -> Any:
        """-x, of LLVM values."""
        return self.builder.fneg(x)

    def constant(self, x: float) -> Any:
        return self._everywhere(self.type, float(self.numpy(x)))

    def integers(self, k: int) -> Any:
        return self._everywhere(self.int_type, k)

    def _everywhere(self, kind: Any, k: Any) -> Any:
        return ir.Constant(kind, [k] * self.lanes if self.lanes else k)

    def _number(self, x: float) -> Value:
        return Value(self, self.constant(x))

    def _bits(self, x: Value) -> Any:
        return self.builder.bitcast(x.value, self.int_type)

    def _from_bits(self, bits: Any) -> Value:
        return Value(self, self.builder.bitcast(bits, self.type))

    def _magic(self) -> Value:
        """Adding it to a number leaves the nearest integer in the low bits."""
        return self._number(1.5 * 2.0**self.mantissa)

    # -- operations

    def abs(self, x: Value) -> Value:
        raise NotImplementedError

    def fma(self, x: Any, y: Any, z: Any) -> Value:
        raise NotImplementedError

    def where(self, condition: Value, x: Any, y: Any) -> Value:
        return Value(self, self.builder.select(condition.value, self.unwrap(x), self.unwrap(y)))

    def maximum(self, x: Any, y: Any) -> Value:
        x = Value(self, self.unwrap(x))
        return self.where(self._is_nan(x), x, self.where(x > y, x, y))

    def minimum(self, x: Any, y: Any) -> Value:
        x = Value(self, self.unwrap(x))
        return self.where(self._is_nan(x), x, self.where(x < y, x, y))

    def _is_nan(self, x: Value) -> Value:
        return Value(self, self.builder.fcmp_unordered("uno", x.value, x.value))

    # -- numbers of twice the digits

    def _product(self, x: Value, y: Value) -> tuple[Value, Value]:
        """X y as the sum of two numbers, exact but for overflow and underflow (Dekker 1971, where there is no fma)."""
        high = x * y
        if self.has_fma:
            return high, self.fma(x, y, -high)
        (a, b), (c, d) = self._halves(x), self._halves(y)
        return high, ((a * c - high) + a * d + b * c) + b * d

    def _halves(self, x: Value) -> tuple[Value, Value]:
        """X as the sum of two numbers of half its digits (Veltkamp 1968)."""
        c = x * (2.0 ** ((self.mantissa + 2) // 2) + 1.0)
        high = c - (c - x)
        return high, x - high

    @staticmethod
    def _sum(x: Any, y: Value) -> tuple[Value, Value]:
        """X + y as the sum of two numbers, exact if |x| >= |y| or x = 0 (Dekker 1971)."""
        high = y + x
        return high, y - (high - x)

    # -- sine and cosine

    def _angle(self, size: Value) -> tuple[Any, Value, Value]:
        """N, of which the last two bits count, y and dy with size = n pi/2 + y + dy, for size <= LARGEST_ANGLE.

        From Cody and Waite; pi/2 has three parts. size - n one is exact: a multiple of both last places, and small. y
        is NaN if size is NaN or infinite.
        """
        count = self.fma(size, 2.0 / np.pi, self._magic())
        n = count - self._magic()
        one, two, three = (self._number(part) for part in polynomials.HALF_PI[self.dtype])
        if self.has_fma:
            r = self.fma(n, -one, size)
        else:
            high, low = self._product(n, one)
            r = (size - high) - low
        w, dw = self._product(n, two)
        y = r - w
        dy = ((r - y) - w) - self.fma(n, three, dw)
        return self._bits(count), y, dy

    def _of_angle(self, name: str, x: Value, quadrant: Any, y: Value, dy: Value) -> Value:
        """Sine or cosine of x, whose size is what _angle has taken apart."""
        b = self.builder
        z = y * y
        sine = y + self.fma(y * z, scalars.polynomial(self, z, polynomials.SIN[self.dtype]), dy)
        fourth = self.fma(z * z, scalars.polynomial(self, z, polynomials.COS[self.dtype]), -(y * dy))
        cosine = 1.0 - (z * 0.5 - fourth)
        if name == "cos":  # cos x = sin(x + pi/2)
            quadrant = b.add(quadrant, self.integers(1))
        odd = b.icmp_signed("!=", b.and_(quadrant, self.integers(1)), self.integers(0))
        sign = b.shl(b.and_(quadrant, self.integers(2)), self.integers(8 * self.itemsize - 2))
        if name == "sin":
            sign = b.xor(sign, b.xor(self._bits(x), self._bits(self.abs(x))))
        return self._from_bits(b.xor(self._bits(self.where(Value(self, odd), cosine, sine)), sign))


def switch(builder: Any, code: Any, cases: Sequence[Callable[[], None]]) -> None:
    """Run the case of that number; nothing for a number that is none of theirs."""
    end = builder.append_basic_block("end")
    chosen = builder.switch(code, end)
    for number, case in enumerate(cases):
        block = builder.append_basic_block(f"case{number}")
        chosen.add_case(ir.Constant(code.type, number), block)
        builder.position_at_end(block)
        case()
        builder.branch(end)
    builder.position_at_end(end)


def declared(module: Any, signature: Any, name: str) -> Any:
    """The function of that name in a module, of those outside if it was not there."""
    found = module.globals.get(name)
    return ir.Function(module, signature, name) if found is None else found


@contextmanager
def repeated(builder: Any, count: int) -> Iterator[Any]:
    """What is built inside is done ``count`` times, at least once; the compiler is told not to unroll that loop.

    The number of the turn is yielded, of 32 bits.
    """
    module, kind = builder.module, ir.IntType(32)
    before, body, end = builder.block, builder.append_basic_block("body"), builder.append_basic_block("end")
    builder.branch(body)
    builder.position_at_end(body)
    turn = builder.phi(kind)
    turn.add_incoming(kind(0), before)
    yield turn
    after = builder.add(turn, kind(1))
    turn.add_incoming(after, builder.block)
    back = builder.cbranch(builder.icmp_signed("<", after, kind(count)), body, end)
    asked = module.add_metadata(["llvm.loop.unroll.disable"])
    itself = module.add_metadata([kind(len(module.metadata)), asked])  # a number of its own
    itself.operands = (itself, asked)
    back.set_metadata("llvm.loop", itself)
    builder.position_at_end(end)
