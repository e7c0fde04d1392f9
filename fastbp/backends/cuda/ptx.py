"""What GPU kernels are written in, where there is a GPU: pointers, 128-bit accesses, formulas, tensor cores.

Each function here is a Numba intrinsic with a twin in ``twins.py`` that does the same in Numba's simulator; kernels
import either from ``device.py``. Pointers are ``CPointer(float32)`` and the like: ``p[i]`` reads and writes, ``i``
counts elements. ``one`` is the number 1 of the dtype that is meant; it decides the type alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.cuda import types
from numba.cuda.extending import intrinsic

from fastbp import scalars
from fastbp.backends.cuda.codes import FORMULAS
from fastbp.backends.llvm import Value, switch

I1, I32, I64, F32, F64 = ir.IntType(1), ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.DoubleType()
GLOBAL, SHARED = 1, 3  # address spaces

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


class ScalarEmitter:
    """The operations of :class:`fastbp.scalars.Emitter` on scalars; functions are CUDA's libdevice's."""

    def __init__(self, builder: Any, dtype: str) -> None:
        self.builder = builder
        self.dtype = dtype
        self.type = F32 if dtype == "float32" else F64
        self.suffix = "f" if dtype == "float32" else ""

    def unwrap(self, x: Any) -> Any:
        return x.value if isinstance(x, Value) else ir.Constant(self.type, float(x))

    def call(self, name: str, *arguments: Any) -> Value:
        """libdevice's function of that name."""
        values = [self.unwrap(x) for x in arguments]
        name = f"__nv_{name}{self.suffix}"
        function = self.builder.module.globals.get(name)
        if function is None:
            function = ir.Function(self.builder.module, ir.FunctionType(self.type, [self.type] * len(values)), name)
        return Value(self, self.builder.call(function, values))

    def __getattr__(self, name: str) -> Callable[..., Value]:  # exp, expm1, log, log1p, tanh, sin, cos, sqrt
        return lambda *arguments: self.call(name, *arguments)

    def abs(self, x: Value) -> Value:
        return self.call("fabs", x)

    def power(self, x: Value, y: Value) -> Value:
        return self.call("pow", x, y)

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


@intrinsic
def apply(typingctx: Any, code: Any, x: Any, y: Any, z: Any) -> Any:
    """codes.FORMULAS[code](x), (x, y) or (x, y, z)."""
    signature = x(types.int64, x, x, x)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        code, *values = arguments
        m = ScalarEmitter(builder, str(sig.args[1]))
        result = builder.alloca(m.type)
        builder.store(values[0], result)

        def case(formula: Callable[..., Value], count: int) -> Callable[[], None]:
            return lambda: builder.store(m.unwrap(formula(m, *(Value(m, v) for v in values[:count]))), result)

        switch(builder, code, [case(f, count) for f, count in FORMULAS.values()])
        return builder.load(result)

    return signature, codegen


@intrinsic
def update(typingctx: Any, code: Any, theta: Any, g: Any, first: Any, second: Any, hyper: Any) -> Any:
    """(theta, first, second) after UPDATES[code]; hyper points to the rule's float64 numbers."""
    signature = types.UniTuple(theta, 3)(types.int64, theta, theta, theta, theta, types.CPointer(types.float64))

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        code, theta, g, first, second, hyper = arguments
        m = ScalarEmitter(builder, str(sig.args[1]))
        results = [builder.alloca(m.type) for _ in range(3)]
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
        b, m = builder, ScalarEmitter(builder, str(sig.args[3]))
        seed, step = (b.trunc(b.fptosi(b.load(b.gep(key, [I32(k)])), I64), I32) for k in range(2))
        threshold, number = b.trunc(bits, I32), b.trunc(b.lshr(bits, I64(32)), I32)
        keys = b.xor(seed, b.mul(number, I32(scalars.DROPOUT_KEY)))
        drawn = scalars.philox(_Integers(b), b.trunc(element, I32), step, keys)
        rate = b.fmul(b.uitofp(threshold, F64), ir.Constant(F64, 2.0**-32))
        scale = b.fdiv(ir.Constant(F64, 1.0), b.fsub(ir.Constant(F64, 1.0), rate))
        kept = b.fptrunc(scale, F32) if m.dtype == "float32" else scale
        return b.select(b.icmp_unsigned(">=", drawn, threshold), kept, ir.Constant(m.type, 0.0))

    return signature, codegen
