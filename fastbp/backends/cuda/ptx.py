"""What GPU kernels are written in, where there is a GPU: pointers, 128-bit accesses, formulas, tensor cores.

Each function here is a Numba intrinsic with a twin in ``twins.py`` that does the same in Numba's simulator; kernels
import either from ``device.py``. Pointers are ``CPointer(float32)`` and the like: ``p[i]`` reads and writes, ``i``
counts elements. ``one`` is the number 1 of the dtype that is meant; it decides the type alone.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cuda
from numba.cuda import cgutils, types
from numba.cuda.extending import intrinsic

from fastbp import polynomials, scalars
from fastbp.backends.cuda.codes import FORMULAS, SHORT
from fastbp.backends.llvm import LARGEST_ANGLE, Emitter, Value, repeated, switch

I1, I32, I64, F32, F64 = ir.IntType(1), ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.DoubleType()
GLOBAL, SHARED, CONSTANT = 1, 3, 4  # address spaces

# ---- pointers ------------------------------------------------------------------------------------------------------


@intrinsic
def at(typingctx: Any, address: Any, one: Any, space: Any) -> Any:
    """A pointer to an address in global memory; if ``space`` is a boolean, to one that may be in shared memory, too.

    What is known to be global is read with shorter instructions.
    """
    signature = types.CPointer(one)(types.int64, one, space)
    known = not isinstance(space, types.Boolean)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        element = context.get_data_type(sig.args[1])
        if not known:
            return builder.inttoptr(arguments[0], element.as_pointer())
        return builder.addrspacecast(
            builder.inttoptr(arguments[0], ir.PointerType(element, GLOBAL)), element.as_pointer()
        )

    return signature, codegen


@intrinsic
def shared(typingctx: Any, one: Any) -> Any:
    """A pointer to the block's dynamic shared memory, whose size the launch says; 16-byte aligned."""
    signature = types.CPointer(one)(one)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        element = context.get_data_type(sig.args[0])
        memory = builder.module.globals.get("fastbp_shared")
        if memory is None:
            memory = ir.GlobalVariable(builder.module, ir.ArrayType(ir.IntType(8), 0), "fastbp_shared", SHARED)
            memory.linkage = "external"
            memory.align = 16
        return builder.bitcast(builder.addrspacecast(memory, ir.PointerType(memory.value_type)), element.as_pointer())

    return signature, codegen


@intrinsic
def address_of(typingctx: Any, pointer: Any) -> Any:
    """The address that a pointer holds, int64."""
    signature = types.int64(pointer)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return builder.ptrtoint(arguments[0], I64)

    return signature, codegen


@intrinsic
def shifted(typingctx: Any, pointer: Any, count: Any) -> Any:
    """The pointer ``count`` elements on."""
    signature = pointer(pointer, types.int64)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return builder.gep(arguments[0], [arguments[1]])

    return signature, codegen


def _quads(context: Any, builder: Any, dtype: Any, pointer: Any, index: Any) -> tuple[Any, Any, int]:
    """Pointer to the first vector of 16 bytes, its type, and how many make four elements."""
    element = context.get_data_type(dtype)
    width = 16 // (dtype.bitwidth // 8)
    vector = ir.VectorType(element, width)
    return builder.bitcast(builder.gep(pointer, [index]), vector.as_pointer()), vector, 4 // width


@intrinsic
def load4(typingctx: Any, pointer: Any, index: Any) -> Any:
    """Elements index … index + 3, which begin on a multiple of 16 bytes, in 128-bit loads."""
    signature = types.UniTuple(pointer.dtype, 4)(pointer, types.int64)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        place, vector, count = _quads(context, builder, sig.args[0].dtype, *arguments)
        found = []
        for k in range(count):
            value = builder.load(builder.gep(place, [I32(k)]), align=16)
            found += [builder.extract_element(value, I32(e)) for e in range(vector.count)]
        return context.make_tuple(builder, sig.return_type, found)

    return signature, codegen


@intrinsic
def store4(typingctx: Any, pointer: Any, index: Any, values: Any) -> Any:
    """Write four values (a tuple) to index … index + 3, which begin on a multiple of 16 bytes."""
    signature = types.void(pointer, types.int64, values)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        pointer, index, values = arguments
        place, vector, count = _quads(context, builder, sig.args[0].dtype, pointer, index)
        for k in range(count):
            value = ir.Constant(vector, ir.Undefined)
            for e in range(vector.count):
                value = builder.insert_element(value, builder.extract_value(values, k * vector.count + e), I32(e))
            builder.store(value, builder.gep(place, [I32(k)]), align=16)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def number(typingctx: Any, value: Any, one: Any) -> Any:
    """A float64 as a number of ``one``'s dtype."""
    signature = one(types.float64, one)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return builder.fptrunc(arguments[0], F32) if sig.args[1].bitwidth == 32 else arguments[0]

    return signature, codegen


@intrinsic
def lowest(typingctx: Any, one: Any) -> Any:
    """The smallest finite number of the dtype."""
    signature = one(one)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        single = sig.args[0].bitwidth == 32
        return ir.Constant(F32 if single else F64, float(np.finfo(np.float32 if single else np.float64).min))

    return signature, codegen


@intrinsic
def itemsize(typingctx: Any, one: Any) -> Any:
    """Bytes of a number of the dtype, int64."""
    signature = types.int64(one)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return I64(sig.args[0].bitwidth // 8)

    return signature, codegen


@cuda.jit(device=True)
def thread() -> Any:
    """Number of the thread in its block, int32."""
    return np.int32(cuda.threadIdx.x)


@cuda.jit(device=True)
def threads() -> Any:
    """Threads of a block, int32."""
    return np.int32(cuda.blockDim.x)


@cuda.jit(device=True)
def sync() -> None:
    """Wait until all threads of the block are here; what they wrote before is seen after."""
    cuda.syncthreads()


device = cuda.jit(device=True)


# ---- warps ---------------------------------------------------------------------------------------------------------


@intrinsic
def shuffle_xor(typingctx: Any, value: Any, mask: Any) -> Any:
    """What the lane ``lane ^ mask`` of the warp has for ``value``; all 32 lanes call it together."""
    signature = value(value, types.int32)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        value, mask = arguments
        asm = ir.InlineAsm(
            ir.FunctionType(I32, [I32, I32]), "shfl.sync.bfly.b32 $0, $1, $2, 31, -1;", "=r,r,r", side_effect=True
        )
        if sig.args[0].bitwidth == 32:
            return builder.bitcast(builder.call(asm, [builder.bitcast(value, I32), mask]), F32)
        bits = builder.bitcast(value, I64)
        low, high = builder.trunc(bits, I32), builder.trunc(builder.lshr(bits, I64(32)), I32)
        low, high = (builder.zext(builder.call(asm, [half, mask]), I64) for half in (low, high))
        return builder.bitcast(builder.or_(builder.shl(high, I64(32)), low), F64)

    return signature, codegen


# ---- formulas ------------------------------------------------------------------------------------------------------


class _ScalarEmitter(Emitter):
    """The operations of :class:`fastbp.scalars.Emitter` on scalars; functions are CUDA's libdevice's.

    Sine and cosine are not: libdevice's keep the digits of 2/pi that a large number needs in local memory.
    """

    def negative(self, x: Any) -> Any:
        return self.builder.fsub(ir.Constant(self.type, -0.0), x)  # NVVM's LLVM has no fneg yet

    def call(self, name: str, *arguments: Any) -> Value:
        """libdevice's function of that name."""
        return self._call(f"__nv_{name}{'f' if self.dtype == 'float32' else ''}", *arguments)

    def _call(self, name: str, *arguments: Any) -> Value:
        values = [self.unwrap(x) for x in arguments]
        function = self.builder.module.globals.get(name)
        if function is None:
            function = ir.Function(self.builder.module, ir.FunctionType(self.type, [self.type] * len(values)), name)
        return Value(self, self.builder.call(function, values))

    def __getattr__(self, name: str) -> Callable[..., Value]:  # exp, expm1, log, log1p, tanh, sqrt
        return lambda *arguments: self.call(name, *arguments)

    def abs(self, x: Value) -> Value:
        return self.call("fabs", x)

    def fma(self, x: Any, y: Any, z: Any) -> Value:
        return self.call("fma", x, y, z)

    def power(self, x: Value, y: Value) -> Value:
        return self.call("pow", x, y)

    def _product(self, x: Value, y: Value) -> tuple[Value, Value]:
        """See Emitter. A plain product would not be rounded where ptxas joins it with the sum that it goes into."""
        high = self._call("__nv_fmul_rn" if self.dtype == "float32" else "__nv_dmul_rn", x, y)
        return high, self.fma(x, y, -high)

    def sin(self, x: Value) -> Value:
        return self._circular("sin", x)

    def cos(self, x: Value) -> Value:
        return self._circular("cos", x)

    def _circular(self, name: str, x: Value) -> Value:
        """Sine or cosine. An infinite x is not taken for a large one: _angle makes NaN of it."""
        b = self.builder
        size = self.abs(x)
        near = self._angle(size)
        large = b.and_((size > LARGEST_ANGLE[self.dtype]).value, (size < float("inf")).value)
        before = b.block
        with b.if_then(large, likely=False):
            far = self._large_angle(size)
            last = b.block

        def either(one: Any, other: Any) -> Any:
            result = b.phi(one.type)
            result.add_incoming(one, before)
            result.add_incoming(other, last)
            return result

        quadrant = either(near[0], far[0])
        y, dy = (Value(self, either(one.value, other.value)) for one, other in zip(near[1:], far[1:], strict=True))
        return self._of_angle(name, x, quadrant, y, dy)

    def _large_angle(self, size: Value) -> tuple[Any, Value, Value]:
        """What _angle gives, for any finite size >= 1 (Payne and Hanek 1983), with integers in registers.

        With words as long as a number, w bits, size is m 2^(e + 1 - w), m one word. Of 2/pi 2^-(w + 1) those bits count
        that come after the first e: the product of m and what the others stand for is a multiple of 4. The next three
        words give size 2/pi modulo 4 in two words, 2w - 2 bits of them after the point and wrong by two units of the
        last one at most. No float64 is nearer to a multiple of pi/2 than 2^-62 in this measure, no float32 than 2^-30:
        that leaves more than a number's digits.
        """
        b, digits, w = self.builder, self.mantissa + 1, 8 * self.itemsize
        word, two_words = self.int_type, ir.IntType(2 * w)
        bits = self._bits(size)
        e = b.sub(b.lshr(bits, word(digits - 1)), word((1 << w - digits - 1) - 1))
        m = b.shl(b.or_(bits, word(1 << digits - 1)), word(w - digits))  # the exponent is shifted out, or under the 1
        shift = b.and_(e, word(w - 1))
        first, second, third = (
            b.zext(b.or_(b.shl(high, shift), b.lshr(b.lshr(low, word(1)), b.sub(word(w - 1), shift))), two_words)
            for high, low in pairwise(self._two_over_pi(b.lshr(e, word(w.bit_length() - 1))))
        )
        m, one_word = b.zext(m, two_words), two_words(w)
        product = b.add(b.shl(b.mul(m, first), one_word), b.add(b.mul(m, second), b.lshr(b.mul(m, third), one_word)))

        half, point = two_words(1 << 2 * w - 3), two_words(2 * w - 2)
        n = b.trunc(b.lshr(b.add(product, half), point), word)  # the nearest integer
        rest = b.shl(product, two_words(2))  # size 2/pi - n in units of 2^-2w
        sign = b.ashr(rest, two_words(2 * w - 1))
        rest = b.xor(rest, sign)  # its absolute value, but for a unit
        upper = b.and_(b.trunc(b.lshr(rest, one_word), word), word(-1 << w - 1 - digits))  # as many bits as digits
        lower = b.and_(b.trunc(b.lshr(rest, two_words(w - digits)), word), word((1 << w - 1) - 1))  # the next w - 1
        head, tail = (Value(self, b.sitofp(k, self.type)) for k in (upper, lower))
        f, df = self._sum(head * 2.0**-w, tail * 2.0 ** -(w + digits))
        one, two, _ = (self._number(part) for part in polynomials.HALF_PI[self.dtype])
        y, dy = self._product(f, one)
        dy = self.fma(f, two, self.fma(df, one, dy))
        negative = Value(self, b.trunc(sign, I1))
        return n, self.where(negative, -y, y), self.where(negative, -dy, dy)

    def _two_over_pi(self, index: Any) -> list[Any]:
        """Four words of 2/pi 2^-(w + 1) from that index on, from constant memory."""
        b = self.builder
        name = f"fastbp_two_over_pi_{self.dtype}"
        table = b.module.globals.get(name)
        if table is None:
            words = list(polynomials.TWO_OVER_PI)
            if self.dtype == "float32":
                words = [half for word in words for half in divmod(word, 1 << 32)][1:8]
            kind = ir.ArrayType(self.int_type, len(words))
            table = ir.GlobalVariable(b.module, kind, name, CONSTANT)
            table.linkage, table.global_constant, table.initializer = "internal", True, ir.Constant(kind, words)
        return [b.load(b.gep(table, [I64(0), b.add(index, self.int_type(k))])) for k in range(4)]


@intrinsic
def apply(typingctx: Any, code: Any, x: Any, y: Any, z: Any) -> Any:
    """codes.FORMULAS[code](x), (x, y) or (x, y, z)."""
    signature = x(types.int64, x, x, x)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        code, *values = arguments
        m = _ScalarEmitter(builder, str(sig.args[1]))
        result = cgutils.alloca_once(builder, m.type)

        def case(formula: Callable[..., Value], count: int) -> Callable[[], None]:
            return lambda: builder.store(m.unwrap(formula(m, *(Value(m, v) for v in values[:count]))), result)

        switch(builder, code, [case(f, count) for f, count in FORMULAS.values()])
        return builder.load(result)

    return signature, codegen


@intrinsic
def apply4(typingctx: Any, code: Any, xs: Any, ys: Any, zs: Any) -> Any:
    """What ``apply`` gives for four x, y and z each (tuples).

    Formulas of codes.SHORT are there four times over, others once, in a loop.
    """
    signature = types.UniTuple(xs.dtype, 4)(types.int64, xs, ys, zs)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        code, *tuples = arguments
        m = _ScalarEmitter(builder, str(sig.args[1].dtype))
        values = [[builder.extract_value(t, k) for k in range(4)] for t in tuples]
        results = [cgutils.alloca_once(builder, m.type) for _ in range(4)]
        turning = [[cgutils.alloca_once(builder, m.type) for _ in range(4)] for _ in tuples]

        def one(formula: Callable[..., Value], operands: list[Any]) -> Any:
            return m.unwrap(formula(m, *(Value(m, v) for v in operands)))

        def at_once(formula: Callable[..., Value], count: int) -> None:
            for k, result in enumerate(results):
                builder.store(one(formula, [values[i][k] for i in range(count)]), result)

        def in_turn(formula: Callable[..., Value], count: int) -> None:
            """The first of four, which then take a step around; the result takes its place at the end."""
            for i in range(count):
                for value, place in zip(values[i], turning[i], strict=True):
                    builder.store(value, place)
            with repeated(builder, 4):
                found = one(formula, [builder.load(turning[i][0]) for i in range(count)])
                for i in range(count):
                    first, *others = (builder.load(place) for place in turning[i])
                    for value, place in zip([*others, found if i == 0 else first], turning[i], strict=True):
                        builder.store(value, place)
            for result, place in zip(results, turning[0], strict=True):
                builder.store(builder.load(place), result)

        def case(name: str) -> Callable[[], None]:
            return lambda: (at_once if name in SHORT else in_turn)(*FORMULAS[name])

        switch(builder, code, [case(name) for name in FORMULAS])
        return context.make_tuple(builder, sig.return_type, [builder.load(result) for result in results])

    return signature, codegen


@intrinsic
def update(typingctx: Any, code: Any, theta: Any, g: Any, first: Any, second: Any, hyper: Any) -> Any:
    """(theta, first, second) after UPDATES[code]; hyper points to the rule's float64 numbers."""
    signature = types.UniTuple(theta, 3)(types.int64, theta, theta, theta, theta, types.CPointer(types.float64))

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        code, theta, g, first, second, hyper = arguments
        m = _ScalarEmitter(builder, str(sig.args[1]))
        results = [cgutils.alloca_once(builder, m.type) for _ in range(3)]
        for place, value in zip(results, (theta, first, second), strict=True):
            builder.store(value, place)

        def scalar(k: int) -> Value:
            value = builder.load(builder.gep(hyper, [I32(k)]))
            return Value(m, builder.fptrunc(value, F32) if m.dtype == "float32" else value)

        def case(rule: scalars.UpdateRule) -> Callable[[], None]:
            def run() -> None:
                h = tuple(scalar(k) for k in range(len(rule.hyper)))
                states = [Value(m, s) for s in (first, second)[: len(rule.states)]]
                found = rule.formula(m, h, Value(m, theta), Value(m, g), *states)
                for place, value in zip(results, found, strict=False):
                    builder.store(value.value, place)

            return run

        switch(builder, code, [case(rule) for rule in scalars.UPDATES.values()])
        return context.make_tuple(builder, sig.return_type, [builder.load(place) for place in results])

    return signature, codegen


class _Integers:
    """Unsigned integers of 32 bits, see scalars.philox."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def multiply(self, x: Any, constant: int) -> tuple[Any, Any]:
        b = self.builder
        product = b.mul(b.zext(x, I64), I64(constant))
        return b.trunc(b.lshr(product, I64(32)), I32), b.trunc(product, I32)

    def add(self, x: Any, constant: int) -> Any:
        return self.builder.add(x, I32(constant))

    def xor(self, x: Any, y: Any) -> Any:
        return self.builder.xor(x, y)


@intrinsic
def dropout(typingctx: Any, bits: Any, element: Any, key: Any, one: Any) -> Any:
    """One element of a dropout mask: 0 or 1/(1 - rate); key points to seed and step, float64. See program.Step.bits."""
    signature = one(types.int64, types.int64, types.CPointer(types.float64), one)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        bits, element, key, _ = arguments
        b, m = builder, _ScalarEmitter(builder, str(sig.args[3]))
        seed, step = (b.trunc(b.fptosi(b.load(b.gep(key, [I32(k)])), I64), I32) for k in range(2))
        threshold, number = b.trunc(bits, I32), b.trunc(b.lshr(bits, I64(32)), I32)
        keys = b.xor(seed, b.mul(number, I32(scalars.DROPOUT_KEY)))
        drawn = scalars.philox(_Integers(b), b.trunc(element, I32), step, keys)
        rate = b.fmul(b.uitofp(threshold, F64), ir.Constant(F64, 2.0**-32))
        scale = b.fdiv(ir.Constant(F64, 1.0), b.fsub(ir.Constant(F64, 1.0), rate))
        kept = b.fptrunc(scale, F32) if m.dtype == "float32" else scale
        return b.select(b.icmp_unsigned(">=", drawn, threshold), kept, ir.Constant(m.type, 0.0))

    return signature, codegen


# ---- tensor cores --------------------------------------------------------------------------------------------------
# A word is 32 bits: two bf16, the one with the smaller index in the low half, or one tf32. Lane 4g + t of a warp holds
# the parts of a product's operands that PTX's tables "matrix fragments" say; see twins.py for them as arithmetic.


def _pure(result: Any, arguments: list[Any], instruction: str, constraints: str) -> ir.InlineAsm:
    return ir.InlineAsm(ir.FunctionType(result, arguments), instruction, constraints)


def _unpack(builder: Any, values: Any, count: int) -> list[Any]:
    return [builder.extract_value(values, k) for k in range(count)]


def _mma(builder: Any, shape: str, kind: str, arguments: Any) -> list[Any]:
    """C + A B of a warp. Volatile, because a warp's lanes must stay together: LLVM must not move it into a branch."""
    asm = ir.InlineAsm(
        ir.FunctionType(ir.LiteralStructType([F32] * 4), [I32] * 6 + [F32] * 4),
        f"mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 "
        "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};",
        ",".join(["=f"] * 4 + ["r"] * 6 + ["f"] * 4),
        side_effect=True,
    )
    a, b, c = arguments
    operands = _unpack(builder, a, 4) + _unpack(builder, b, 2) + _unpack(builder, c, 4)
    return _unpack(builder, builder.call(asm, operands), 4)


_MMA = types.UniTuple(types.float32, 4)(
    types.UniTuple(types.uint32, 4), types.UniTuple(types.uint32, 2), types.UniTuple(types.float32, 4)
)


@intrinsic
def mma_bf16(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """C + A B of a warp in float32: A (16, 16), B (16, 8) in bf16, 4 and 2 words a lane; C (16, 8), 4 numbers."""

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return context.make_tuple(builder, sig.return_type, _mma(builder, "m16n8k16", "bf16", arguments))

    return _MMA, codegen


@intrinsic
def mma_tf32(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """C + A B of a warp in float32: A (16, 8), B (8, 8) in tf32, 4 and 2 words a lane, C (16, 8), 4 numbers a lane."""

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return context.make_tuple(builder, sig.return_type, _mma(builder, "m16n8k8", "tf32", arguments))

    return _MMA, codegen


def _shared_address(builder: Any, pointer: Any, index: Any) -> Any:
    """The 32-bit address within shared memory of p[index]."""
    place = builder.gep(pointer, [index])
    return builder.ptrtoint(builder.addrspacecast(place, ir.PointerType(place.type.pointee, SHARED)), I32)


def _ldmatrix(context: Any, builder: Any, sig: Any, arguments: Any, how: str) -> Any:
    asm = ir.InlineAsm(
        ir.FunctionType(ir.LiteralStructType([I32] * 4), [I32]),
        f"ldmatrix.sync.aligned.m8n8.x4{how}.shared.b16 {{$0, $1, $2, $3}}, [$4];",
        "=r,=r,=r,=r,r,~{memory}",
        side_effect=True,
    )
    found = builder.call(asm, [_shared_address(builder, *arguments)])
    return context.make_tuple(builder, sig.return_type, _unpack(builder, found, 4))


@intrinsic
def ldmatrix(typingctx: Any, words: Any, index: Any) -> Any:
    """Four matrices of 8 rows of 4 words, whose rows begin at the indices of lanes 0 … 7, 8 … 15, …

    Lane l gets word l % 4 of row l // 4 of each. Indices are multiples of 4, in shared memory.
    """

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return _ldmatrix(context, builder, sig, arguments, "")

    return types.UniTuple(types.uint32, 4)(words, types.int64), codegen


@intrinsic
def ldmatrix_trans(typingctx: Any, words: Any, index: Any) -> Any:
    """As ldmatrix for matrices of 8 × 8 halves of words that are transposed on the way.

    Lane l gets column l // 4 of rows 2 (l % 4) and one more, the first one in the low half.
    """

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return _ldmatrix(context, builder, sig, arguments, ".trans")

    return types.UniTuple(types.uint32, 4)(words, types.int64), codegen


def _copy(builder: Any, size: int, space: Any, arguments: Any) -> None:
    """Copy size // 4 numbers to shared memory, or zeros if they are not there: by cp.async where it may be."""
    target, index, source, first, there, _ = arguments
    to, place = builder.gep(target, [index]), builder.gep(source, [first])

    def ahead() -> None:
        cache = "cg" if size == 16 else "ca"
        asm = ir.InlineAsm(
            ir.FunctionType(ir.VoidType(), [I32, I64, I32]),
            f"{{ .reg .pred p; setp.eq.s32 p, $2, 0; cp.async.{cache}.shared.global [$0], [$1], {size}, p; }}",
            "r,l,r,~{memory}",
            side_effect=True,
        )
        known = builder.addrspacecast(place, ir.PointerType(F32, GLOBAL))
        address = _shared_address(builder, target, index)
        builder.call(asm, [address, builder.ptrtoint(known, I64), builder.zext(there, I32)])

    if not isinstance(space, types.Boolean):
        return ahead()
    bytes_of = ir.IntType(8).as_pointer()
    test = builder.module.globals.get("llvm.nvvm.isspacep.shared")
    if test is None:
        test = ir.Function(builder.module, ir.FunctionType(I1, [bytes_of]), "llvm.nvvm.isspacep.shared")
    with builder.if_else(builder.call(test, [builder.bitcast(place, bytes_of)])) as (within, outside):
        with outside:
            ahead()
        with within:
            begin = builder.block
            kind = I32 if size == 4 else ir.VectorType(I32, 4)
            with builder.if_then(there):
                found, end = builder.load(builder.bitcast(place, kind.as_pointer()), align=size), builder.block
            value = builder.phi(kind)
            value.add_incoming(ir.Constant(kind, 0 if size == 4 else [0] * 4), begin)
            value.add_incoming(found, end)
            builder.store(value, builder.bitcast(to, kind.as_pointer()), align=size)
    return None


@intrinsic
def copy4(typingctx: Any, target: Any, index: Any, source: Any, first: Any, there: Any, space: Any) -> Any:
    """Begin to copy float32 source[first … first + 3] to target[index …] in shared memory, or zeros if not ``there``.

    Both begin on multiples of 16 bytes. It is done after ``copied()``; until then neither may be touched. If ``space``
    is a boolean, source may be in shared memory.
    """

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        _copy(builder, 16, sig.args[5], arguments)
        return context.get_dummy_value()

    return types.void(target, types.int64, source, types.int64, types.boolean, space), codegen


@intrinsic
def copy1(typingctx: Any, target: Any, index: Any, source: Any, first: Any, there: Any, space: Any) -> Any:
    """As copy4 for one float32, anywhere."""

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        _copy(builder, 4, sig.args[5], arguments)
        return context.get_dummy_value()

    return types.void(target, types.int64, source, types.int64, types.boolean, space), codegen


@intrinsic
def copied(typingctx: Any) -> Any:
    """Wait for the copies that this thread has begun; others see them after a barrier."""

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        wait = ir.FunctionType(ir.VoidType(), [])
        builder.call(ir.InlineAsm(wait, "cp.async.wait_all;", "~{memory}", side_effect=True), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def to_tf32(typingctx: Any, word: Any) -> Any:
    """The bits of a float32 rounded to tf32, ties away from zero; NaN stays NaN."""

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        asm = _pure(I32, [F32], "cvt.rna.tf32.f32 $0, $1;", "=r,f")
        return builder.call(asm, [builder.bitcast(arguments[0], F32)])

    return types.uint32(types.uint32), codegen


@intrinsic
def pack_bf16(typingctx: Any, low: Any, high: Any) -> Any:
    """Two float32 rounded to bf16, to nearest even, in one word; NaN stays NaN."""

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        low, high = arguments
        return builder.call(_pure(I32, [F32, F32], "cvt.rn.bf16x2.f32 $0, $1, $2;", "=r,f,f"), [high, low])

    return types.uint32(types.float32, types.float32), codegen


@intrinsic
def store2(typingctx: Any, pointer: Any, index: Any, values: Any) -> Any:
    """Write two values of 4 bytes (a tuple) to index and index + 1, which begin on a multiple of 8 bytes."""

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        pointer, index, values = arguments
        vector = ir.VectorType(context.get_data_type(sig.args[0].dtype), 2)
        value = ir.Constant(vector, ir.Undefined)
        for e in range(2):
            value = builder.insert_element(value, builder.extract_value(values, e), I32(e))
        builder.store(value, builder.bitcast(builder.gep(pointer, [index]), vector.as_pointer()), align=8)
        return context.get_dummy_value()

    return types.void(pointer, types.int64, values), codegen


@intrinsic
def walked(typingctx: Any, pointer: Any, count: Any, space: Any) -> Any:
    """The pointer ``count`` elements on, as ``shifted``, for several steps after each other; ``space`` as for ``at``.

    The compiler does not see the sum: it would keep every multiple of ``count`` in registers for a whole loop.
    """
    signature = pointer(pointer, types.int64, space)
    known = not isinstance(space, types.Boolean)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        pointer, count, _ = arguments
        asm = ir.InlineAsm(ir.FunctionType(I64, [I64, I64]), "add.s64 $0, $1, $2;", "=l,l,l")
        size = I64(sig.args[0].dtype.bitwidth // 8)
        if not known:
            return builder.inttoptr(
                builder.call(asm, [builder.ptrtoint(pointer, I64), builder.mul(count, size)]), pointer.type
            )
        place = ir.PointerType(pointer.type.pointee, GLOBAL)
        address = builder.ptrtoint(builder.addrspacecast(pointer, place), I64)
        address = builder.call(asm, [address, builder.mul(count, size)])
        return builder.addrspacecast(builder.inttoptr(address, place), pointer.type)

    return signature, codegen
