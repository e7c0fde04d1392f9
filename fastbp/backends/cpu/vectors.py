"""Vectors for the CPU: the formulas of :mod:`fastbp.scalars` as LLVM vectors of the target's width.

Without Numba, so that straight.py can make code where Numba has not been imported; simd.py makes loops of them for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from llvmlite import ir

from fastbp import polynomials, scalars
from fastbp.backends.cpu.target import HAS_FMA, HAS_SCALEF, VECTOR_BYTES
from fastbp.backends.llvm import LARGEST_ANGLE, Emitter, Value, declared, repeated

I1, I32, I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
Vector = Value  # the LLVM values of this module are vectors

SUMS = 4  # vectors that a fold works on in turn, so that it does not wait for one sum after the other
STACK_VECTORS = 32  # elements of a row of a softmax at most, for rows to be done in lanes


class Magnitude(Vector):
    """|x|."""

    def __neg__(self) -> Vector:
        return Descent(self.m, super().__neg__().value)


class Descent(Vector):
    """What is never above 0, as -|x| is, or a logarithm of a probability."""


class VectorEmitter(Emitter):
    """The operations of :class:`fastbp.scalars.Emitter` on vectors of the target's width.

    Attributes:
        mask_type: LLVM type of a vector of truth values.
        bias: of exponents.
        suffix: of the names of LLVM's functions.
    """

    has_fma = HAS_FMA

    def __init__(self, builder: Any, dtype: str) -> None:
        super().__init__(builder, dtype, VECTOR_BYTES // (4 if dtype == "float32" else 8))
        self.bias = 127 if dtype == "float32" else 1023
        self.mask_type = ir.VectorType(I1, self.lanes)
        self.suffix = f".v{self.lanes}f{8 * self.itemsize}"

    # -- LLVM helpers

    def call(self, name: str, *arguments: Any) -> Vector:
        values = [self.unwrap(x) for x in arguments]
        signature = ir.FunctionType(self.type, [self.type] * len(values))
        function = declared(self.builder.module, signature, f"llvm.{name}{self.suffix}")
        return Vector(self, self.builder.call(function, values))

    def splat(self, scalar: Any) -> Vector:
        undefined = ir.Constant(self.type, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, I32(0))
        zeros = ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes)
        return Vector(self, self.builder.shuffle_vector(first, undefined, zeros))

    def mask(self, count: Any) -> Any:
        """Lanes 0 … count - 1, for an int64 count of any size."""
        b = self.builder
        lanes = I64(self.lanes)
        small = b.trunc(b.select(b.icmp_signed("<", count, lanes), count, lanes), I32)
        vector = ir.VectorType(I32, self.lanes)
        undefined = ir.Constant(vector, ir.Undefined)
        zeros = ir.Constant(vector, [0] * self.lanes)
        counts = b.shuffle_vector(b.insert_element(undefined, small, I32(0)), undefined, zeros)
        return b.icmp_signed("<", ir.Constant(vector, list(range(self.lanes))), counts)

    def load(self, pointer: Any, mask: Any = None) -> Vector:
        b = self.builder
        place = b.bitcast(pointer, self.type.as_pointer())
        if mask is None:
            value = b.load(place)
            value.align = self.itemsize
            return Vector(self, value)
        signature = ir.FunctionType(self.type, [place.type, I32, self.mask_type, self.type])
        function = declared(b.module, signature, f"llvm.masked.load{self.suffix}.p0")
        return Vector(self, b.call(function, [place, I32(self.itemsize), mask, self.constant(0.0)]))

    def store(self, x: Any, pointer: Any, mask: Any = None) -> None:
        b = self.builder
        place = b.bitcast(pointer, self.type.as_pointer())
        if mask is None:
            b.store(self.unwrap(x), place).align = self.itemsize
            return
        signature = ir.FunctionType(ir.VoidType(), [self.type, place.type, I32, self.mask_type])
        function = declared(b.module, signature, f"llvm.masked.store{self.suffix}.p0")
        b.call(function, [self.unwrap(x), place, I32(self.itemsize), mask])

    def reduce(self, x: Vector, combine: Callable[[Vector, Vector], Vector]) -> Any:
        """The lanes combined pairwise, halves first: an order that depends on the lane count alone."""
        width = self.lanes
        while width > 1:
            width //= 2
            other = list(range(width, 2 * width)) + [0] * (self.lanes - width)
            shuffle = ir.Constant(ir.VectorType(I32, self.lanes), other)
            swapped = self.builder.shuffle_vector(x.value, x.value, shuffle)
            x = combine(x, Vector(self, swapped))
        return self.builder.extract_element(x.value, I32(0))

    def outlined(self, name: str, formula: Callable[..., Vector], *arguments: Vector) -> Vector:
        """formula(m, *arguments) in a function of its own: full vectors and the ragged end share one copy.

        So the machine compiles hardly longer for a long formula; the call costs it a few per cent.
        """
        module = self.builder.module
        name = f"fastbp.{name}{self.suffix}"
        function = module.globals.get(name)
        if function is None:
            function = ir.Function(module, ir.FunctionType(self.type, [self.type] * len(arguments)), name)
            function.linkage = "linkonce_odr"  # every module that needs it has one; they are the same
            function.attributes.add("noinline")
            m = VectorEmitter(ir.IRBuilder(function.append_basic_block("entry")), self.dtype)
            m.builder.ret(formula(m, *(Vector(m, x) for x in function.args)).value)
        return Vector(self, self.builder.call(function, [x.value for x in arguments]))

    # -- the Emitter's operations

    def abs(self, x: Vector) -> Vector:
        return Magnitude(self, self.call("fabs", x).value)

    def sqrt(self, x: Vector) -> Vector:
        return self.call("sqrt", x)

    def fma(self, x: Any, y: Any, z: Any) -> Vector:
        if HAS_FMA:
            return self.call("fma", x, y, z)
        total: Vector = Vector(self, self.unwrap(x)) * y + z
        return total

    def _scaled(self, x: Vector, count: Vector, *, up: bool = True) -> Vector:
        """X 2^n for n as :meth:`_reduced` counts it, rounded once where the result is subnormal.

        Without ``up``, n is at most 0 and x about 1: a loop of sigmoids takes 30 instructions then (AVX2), else 36.
        """
        b = self.builder
        if HAS_SCALEF:
            suffix = "ps" if self.dtype == "float32" else "pd"
            everywhere = ir.IntType(self.lanes)
            signature = ir.FunctionType(self.type, [self.type] * 3 + [everywhere, I32])
            name = f"llvm.x86.avx512.mask.scalef.{suffix}.512"
            function = declared(b.module, signature, name)
            rounding = I32(4)  # as the environment says
            n = count - self._magic()
            return Vector(self, b.call(function, [x.value, n.value, x.value, everywhere(-1), rounding]))
        whole = self._whole(count)
        if not up:
            lift = self.mantissa + 2  # so much above, no power of two and no product with it is subnormal
            return x * self._power_of_two(b.add(whole, self.integers(lift))) * 2.0**-lift
        half = b.ashr(whole, self.integers(1))  # in two steps: 2^n may be subnormal
        return x * self._power_of_two(half) * self._power_of_two(b.sub(whole, half))

    def _whole(self, count: Vector) -> Any:
        """N as an integer vector."""
        return self.builder.sub(self._bits(count), self._bits(self._magic()))

    def _power_of_two(self, n: Any) -> Vector:
        """2^n of an integer vector with n in the range of normal numbers."""
        b = self.builder
        return self._from_bits(b.shl(b.add(n, self.integers(self.bias)), self.integers(self.mantissa)))

    def _reduced(self, x: Vector, rest: Vector | None = None) -> tuple[Vector, Vector]:
        """1.5 2^mantissa + n and e^r - 1 with x + rest = n ln 2 + r, |r| <= ln(2)/2 (Cody and Waite's two-part ln 2).

        n comes from taking 1.5 2^mantissa away again, and as an integer from the bits. A conversion to integer would be
        undefined for NaN; this way NaN stays in r.
        """
        count = self.fma(x, 1.4426950408889634, self._magic())
        n = count - self._magic()
        high, low = _LN2_PARTS[self.dtype]
        r = self.fma(n, -low, self.fma(n, -high, x))
        if rest is not None:
            r = r + rest
        p = scalars.polynomial(self, r, polynomials.EXPM1[self.dtype])
        return count, self.fma(r * r, p, r)

    def exp(self, x: Vector) -> Vector:
        low, high = _EXP_SPAN[self.dtype]
        up = not isinstance(x, Descent)
        inside = self.where(x < low, low, x)
        count, e = self._reduced(self.where(x > high, high, inside) if up else inside)
        return self._scaled(e + 1.0, count, up=up)

    def expm1(self, x: Vector) -> Vector:
        """e^x - 1, infinite from the last whole power of e on: the formulas need it for x <= 0."""
        low, high = _EXPM1_SPAN[self.dtype]
        inside = self.where(x > high, high, self.where(x < low, low, x))
        return self.where(x > high, float("inf"), self._expm1(inside))

    def _expm1(self, x: Vector) -> Vector:
        """E^x - 1 in _EXPM1_SPAN, where a power of two is a normal number."""
        count, e = self._reduced(x)
        power = self._scaled(self._number(1.0), count) if HAS_SCALEF else self._power_of_two(self._whole(count))
        return self.fma(e, power, power - 1.0)

    def tanh(self, x: Vector) -> Vector:
        """-t/(2 + t) with t = e^-2|x| - 1, and the sign of x."""
        lowest = _EXPM1_SPAN[self.dtype][0]
        y = self.abs(x) * -2.0
        t = self._expm1(self.where(y < lowest, lowest, y))
        return self.call("copysign", -t / (t + 2.0), x)

    def _split(self, x: Vector) -> tuple[Vector, Vector]:
        """K and f with x = 2^k (1 + f), 1 + f in [sqrt(1/2), sqrt(2)), for 0 < x < inf: fdlibm's reduction."""
        b = self.builder
        lift = 2.0 ** (self.mantissa + 1)
        subnormal = x < float(np.finfo(self.numpy).tiny)
        normal = self.where(subnormal, x * lift, x)
        bits = self._bits(normal)
        root = self._bits(self._number(np.sqrt(0.5)))
        k = b.ashr(b.sub(bits, root), self.integers(self.mantissa))
        f = self._from_bits(b.sub(bits, b.shl(k, self.integers(self.mantissa)))) - 1.0
        lifted = b.select(subnormal.value, self.integers(self.mantissa + 1), self.integers(0))
        return Vector(self, b.sitofp(b.sub(k, lifted), self.type)), f

    def log(self, x: Vector) -> Vector:
        """k ln 2 + log(1 + f)."""
        exponent, f = self._split(x)
        s = f / (f + 2.0)
        z = s * s
        r = z * scalars.polynomial(self, z, polynomials.LOG[self.dtype])
        half = f * f * 0.5
        high, low = _LN2_PARTS[self.dtype]
        result = self.fma(exponent, high, f - (half - self.fma(s, half + r, exponent * low)))
        positive = self.where(x < float("inf"), result, x)
        return self.where(x > 0.0, positive, self.where(x >= 0.0, -float("inf"), float("nan")))

    def log1p(self, x: Vector) -> Vector:
        """log(w) + (x - (w - 1))/w with w = 1 + x: the second term is what rounding took from w."""
        w = x + 1.0
        corrected = self.log(w) + (x - (w - 1.0)) / w
        return self.where(w < float("inf"), corrected, w)

    def power(self, x: Vector, y: Vector) -> Vector:
        return self.outlined("power", VectorEmitter._power, x, y)

    def _power(self, x: Vector, y: Vector) -> Vector:
        """e^(y log|x|), the exponent as the sum of two numbers; x < 0 and special values as C17's F.10.4.4 has them.

        y is limited to where every power but those of 1 is 0 or infinite, so that infinite ones need no care.
        """
        size = self.abs(x)
        bound = 2.0 ** (2 * self.mantissa - 6)
        limited = self.where(y > bound, bound, self.where(y < -bound, -bound, y))
        high, low = self._log_parts(size)
        e, rest = self._product(limited, high)
        rest = self.fma(limited, low, rest)
        lowest, highest = _EXP_SPAN[self.dtype]
        inside = self.where(e > highest, 0.0, self.where(e < lowest, 0.0, rest))
        count, p = self._reduced(self.where(e > highest, highest, self.where(e < lowest, lowest, e)), inside)
        value = self._scaled(p + 1.0, count)

        whole, half = self.call("floor", y).compare("==", y), y * 0.5
        signed = self.where(whole, self.where(self.call("floor", half).compare("==", half), 1.0, x), 1.0)  # x: y odd
        value = self.where(x < 0.0, self.where(whole, value, float("nan")), value)
        falling = self.where(size < 1.0, float("inf"), self.where(size > 1.0, 0.0, size))  # 1/size, for 0 and infinity
        edge = self.where(y > 0.0, size, self.where(y < 0.0, falling, y))  # the power of 0, infinity and NaN
        value = self.where(size > 0.0, self.where(size < float("inf"), value, edge), edge)
        value = self.call("copysign", value, signed)
        one = self.builder.or_(x.compare("==", 1.0).value, y.compare("==", 0.0).value)
        return self.where(Vector(self, one), 1.0, value)

    def _log_parts(self, x: Vector) -> tuple[Vector, Vector]:
        """Log x as the sum of two numbers, for 0 < x < inf: k ln 2 + s (2 + z (2/3 + z R(z))), see LOG_REST.

        What is large in it is a sum of two numbers: s = f/(2 + f), z = s^2, 2/3 + z R and everything made of them.
        """
        exponent, f = self._split(x)
        t, dt = self._sum(2.0, f)
        inverse = 1.0 / t
        s = f * inverse
        high, low = self._product(s, t)
        ds = ((f - high) - low - s * dt) * inverse  # what is left of f after s (t + dt)
        z, dz = self._product(s, s)
        dz = self.fma(s * 2.0, ds, dz)
        two_thirds, digits = polynomials.TWO_THIRDS[self.dtype]
        c, dc = self._sum(two_thirds, z * scalars.polynomial(self, z, polynomials.LOG_REST[self.dtype]))
        q, dq = self._product(z, c)
        dq = self.fma(z, dc + digits, self.fma(dz, c, dq))
        u, du = self._sum(2.0, q)
        h, dh = self._product(s, u)
        dh = self.fma(s, du + dq, self.fma(ds, u, dh))
        ln2, ln2_rest = _LN2_PARTS[self.dtype]
        total, rest = self._sum(exponent * ln2, h)  # k ln2 is exact, and 0 or larger than h
        return self._sum(total, rest + self.fma(exponent, ln2_rest, dh))

    def sin(self, x: Vector) -> Vector:
        return self.outlined("sin", lambda m, x: m._circular("sin", x), x)

    def cos(self, x: Vector) -> Vector:
        return self.outlined("cos", lambda m, x: m._circular("cos", x), x)

    def _circular(self, name: str, x: Vector) -> Vector:
        """Sine or cosine: beyond LARGEST_ANGLE from the C library's function for float64, a lane at a time."""
        b = self.builder
        limit = LARGEST_ANGLE[self.dtype]
        size = self.abs(x)
        value = self._of_angle(name, x, *self._angle(size))

        lanes = ir.IntType(self.lanes)
        before = b.block
        with b.if_then(b.icmp_unsigned("!=", b.bitcast((size > limit).value, lanes), lanes(0)), likely=False):
            exact = self.outlined(f"{name}.library", lambda m, x, value: m._by_library(name, limit, x, value), x, value)
            last = b.block
        result = b.phi(self.type)
        result.add_incoming(value.value, before)
        result.add_incoming(exact.value, last)
        return Vector(self, result)

    def _by_library(self, name: str, limit: float, x: Vector, value: Vector) -> Vector:
        """The C library's function of the lanes beyond the limit, the given value of the others."""
        b = self.builder
        double = ir.DoubleType()
        function = declared(b.module, ir.FunctionType(double, [double]), name)
        of, to = b.alloca(self.type), b.alloca(self.type)
        b.store(x.value, of)
        b.store(value.value, to)
        with repeated(b, self.lanes) as lane:
            here = b.load(b.gep(b.bitcast(of, self.element.as_pointer()), [lane]))
            beyond = [b.fcmp_ordered(">", here, self.element(limit)), b.fcmp_ordered("<", here, self.element(-limit))]
            with b.if_then(b.or_(*beyond)):
                if self.dtype == "float32":
                    result = b.fptrunc(b.call(function, [b.fpext(here, double)]), self.element)
                else:
                    result = b.call(function, [here])
                b.store(result, b.gep(b.bitcast(to, self.element.as_pointer()), [lane]))
        return Vector(self, b.load(to))


_LN2_PARTS = {
    "float32": (0.693359375, -2.12194440054690583e-4),  # Cody and Waite's split: the first has 9 bits
    "float64": (6.93147180369123816490e-01, 1.90821492927058770002e-10),  # fdlibm's split: the first has 32 bits
}
_EXP_SPAN = {"float32": (-105.0, 90.0), "float64": (-746.0, 711.0)}  # beyond: 0 and infinity
_EXPM1_SPAN = {"float32": (-80.0, 88.0), "float64": (-700.0, 709.0)}  # -1 from long before the first


def add(x: Vector, y: Vector) -> Vector:
    """X + y, to fold and to combine with."""
    return x + y


def higher(total: Vector, z: Vector) -> Vector:
    """The larger one; of NaN and a number the number, in one instruction: its exponential will be NaN anyway."""
    return total.m.where(z > total, z, total)


def below(m: VectorEmitter, z: Vector, top: Vector) -> Vector:
    """e^(z - top) with z <= top."""
    return m.exp(Descent(m, (z - top).value))


def logarithm(m: VectorEmitter, z: Vector, top: Vector, shift: Vector) -> Vector:
    """Z - top - shift, but finite for z = -inf, which would make 0 · log 0 of a cross entropy NaN."""
    lowest = m.constant(float(np.finfo(m.numpy).min))
    d = z - top
    return m.where(d > Vector(m, lowest), d, Vector(m, lowest)) - shift  # NaN, if there is any, is in shift


def reductions(m: VectorEmitter) -> list[tuple[float, Callable[[Vector, Vector], Vector]]]:
    """What a row is reduced to, by code: where each begins, and how it goes on."""
    return [(0.0, add), (-float("inf"), m.maximum)]


def softmaxes(
    m: VectorEmitter,
    over_row: Callable[[float, Callable[[Vector, Vector], Vector]], Vector],
    write: Callable[[Callable[[Vector, Callable[[], Vector]], Vector]], None],
    write_one: Callable[[Vector], None],
) -> list[Callable[[], None]]:
    """What is done to a row, by code, given what it means to fold over it and to write one.

    ``over_row(start, step)`` folds step(total, z) over the row, the result in every lane that belongs to it;
    ``write(formula)`` stores formula(z, y) for every element, y being a function that loads it; ``write_one`` stores a
    number a row.
    """

    def probabilities() -> None:
        top = over_row(-float("inf"), higher)
        r = 1.0 / over_row(0.0, lambda total, z: total + below(m, z, top))
        write(lambda z, y: below(m, z, top) * r)

    def logarithms() -> None:
        top = over_row(-float("inf"), higher)
        shift = m.log(over_row(0.0, lambda total, z: total + below(m, z, top)))
        write(lambda z, y: logarithm(m, z, top, shift))

    def handed_back() -> None:
        total = over_row(0.0, add)
        write(lambda z, y: z - m.exp(Descent(m, y().value)) * total)

    def log_sum_exp() -> None:
        top = over_row(-float("inf"), higher)
        size = m.abs(top)
        shift = m.where(size < float("inf"), top, m.where(size > 0.0, 0.0, top))  # inf - inf would be NaN
        write_one(m.log(over_row(0.0, lambda total, z: total + m.exp(z - shift))) + shift)

    return [probabilities, logarithms, handed_back, log_sum_exp]


def _halves(m: VectorEmitter, block: int) -> tuple[Any, Any]:
    """Shuffles of two vectors a, b: of every two blocks of so many lanes the first of a, that of b; the second ones.

    Within 16 bytes blocks of one lane are interleaved, a0 b0 a1 b1 and a2 b2 a3 b3, for which there are instructions.
    """
    count, few = m.lanes, 16 // m.itemsize
    if block == 1 and few == 4:
        low = [first + k for first in range(0, count, 4) for k in (0, count, 1, count + 1)]
        high = [k + 2 for k in low]
    else:
        low = [j if not j & block else count + j - block for j in range(count)]
        high = [j + block for j in low]
    kind = ir.VectorType(I32, count)
    return ir.Constant(kind, low), ir.Constant(kind, high)


def _of_pairs(m: VectorEmitter, rows: list[Vector], block: int, distance: int) -> Iterator[tuple[int, Vector, Vector]]:
    """Rows i and i + distance, shuffled as :func:`_halves` says, with i."""
    low, high = _halves(m, block)
    for i in range(len(rows)):
        if not i & distance:
            pair = rows[i].value, rows[i + distance].value
            first, second = (Vector(m, m.builder.shuffle_vector(*pair, order)) for order in (low, high))
            yield i, first, second


def transposed(m: VectorEmitter, rows: list[Vector]) -> list[Vector]:
    """The columns of as many vectors as one has lanes.

    Eklundh's exchange: element blocks of 1, 2, 4, … change places between pairs of rows. Blocks of one lane are
    interleaved, so that what four rows have in 16 bytes comes out with its middle columns exchanged.
    """
    columns, block = list(rows), 1
    while block < m.lanes:
        for i, low, high in _of_pairs(m, columns, block, block):
            columns[i], columns[i + block] = low, high
        if block == 2 and m.itemsize == 4:
            for i in range(0, m.lanes, 4):
                columns[i + 1], columns[i + 2] = columns[i + 2], columns[i + 1]
        block *= 2
    return columns


def sums_of_lanes(m: VectorEmitter, rows: list[Vector]) -> Vector:
    """The sums of the lanes of as many vectors as one has lanes, a vector: pairs of lanes, pairs of those, …"""
    block = 1
    while block < m.lanes:
        rows = [low + high for _, low, high in _of_pairs(m, rows, block, 1)]
        block *= 2
    return rows[0]
