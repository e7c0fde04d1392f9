"""LLVM values with operators, so that a formula of :mod:`fastbp.scalars` reads the same on the CPU and on the GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from llvmlite import ir

I32 = ir.IntType(32)


class Emitter(Protocol):
    """What a :class:`Value` needs of the emitter that made it."""

    builder: Any

    def unwrap(self, x: Any) -> Any:
        """The LLVM value of a Value, or of a Python number."""

    def negative(self, x: Any) -> Any:
        """-x, of LLVM values."""


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
