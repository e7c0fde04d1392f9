"""bfloat16 pairs: float32 numbers rounded to 8 bits of mantissa, two along K in 32 bits, as ``vdpbf16ps`` wants them.

The instruction multiplies 16 pairs with 16 pairs and adds both products to 16 float32 sums, twice the work of a fused
multiply-add. It takes subnormal numbers for 0. What is packed here lies in memory that is typed float32.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastbp.backends.cpu import simd
from fastbp.backends.cpu.compiling import kernel
from fastbp.backends.cpu.simd import pointer, transpose_tile
from fastbp.backends.cpu.target import HAS_BF16
from fastbp.backends.cpu.vectors import I32, I64, Vector, VectorEmitter

LANES = 16  # pairs a vector


def works_for(pointer_type: Any) -> bool:
    """Whether code can be made for it. Kernels are compiled for every dtype and CPU; for the others they do nothing."""
    return HAS_BF16 and pointer_type.dtype == types.float32


class _BFloat(ir.types.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite has no name for."""

    intrinsic_name = "bf16"

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


_HALVES = ir.VectorType(_BFloat(), 2 * LANES)
_SHORTS = ir.VectorType(ir.IntType(16), 2 * LANES)


def dot_pairs(m: VectorEmitter, x: Vector, y: Vector, total: Vector) -> Vector:
    """Total + x₀ y₀ + x₁ y₁ in every lane, for pairs x and y."""
    b = m.builder
    signature = ir.FunctionType(m.type, [m.type, _HALVES, _HALVES])
    function = cgutils.get_or_insert_function(b.module, signature, "llvm.x86.avx512bf16.dpbf16ps.512")
    pairs = [b.bitcast(v.value, _HALVES) for v in (x, y)]
    return Vector(m, b.call(function, [total.value, *pairs]))


def _rounded(m: VectorEmitter, low: Vector, high: Vector) -> Any:
    """32 bfloat16 numbers, those of ``low`` first, to the nearest, ties to even; NaN stays NaN."""
    b = m.builder
    function = cgutils.get_or_insert_function(
        b.module, ir.FunctionType(_HALVES, [m.type, m.type]), "llvm.x86.avx512bf16.cvtne2ps2bf16.512"
    )
    return b.call(function, [high.value, low.value])


@intrinsic
def _pairs_across(typingctx: Any, n: Any, out: Any, x: Any) -> Any:
    """out_i = pair (x_2i, x_2i+1) for n contiguous numbers, 0 after the last."""
    signature = types.void(types.int64, out, x)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        if not works_for(sig.args[1]):
            return context.get_dummy_value()
        n, out, x = arguments
        m = VectorEmitter(builder, "float32")
        with cgutils.for_range_slice(builder, I64(0), n, I64(2 * LANES)) as (i, _):
            left = builder.sub(n, i)
            here = builder.gep(x, [i])
            low = m.load(here, m.mask(left))
            high = m.load(builder.gep(here, [I64(LANES)]), m.mask(builder.sub(left, I64(LANES))))
            pairs = builder.bitcast(_rounded(m, low, high), m.type)
            count = builder.ashr(builder.add(left, I64(1)), I64(1))
            m.store(Vector(m, pairs), builder.gep(out, [builder.ashr(i, I64(1))]), m.mask(count))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def _pairs_down(typingctx: Any, rows: Any, vectors: Any, cols: Any, out: Any, x: Any, x_row: Any) -> Any:
    """out (ceil(rows / 2), cols) with rows of ``vectors`` vectors: pair (x_2p,j, x_2p+1,j), 0 after the last row."""
    signature = types.void(types.int64, types.int64, types.int64, out, x, types.int64)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        if not works_for(sig.args[3]):
            return context.get_dummy_value()
        rows, vectors, cols, out, x, x_row = arguments
        m = VectorEmitter(builder, "float32")
        order = [half for lane in range(LANES) for half in (lane, lane + LANES)]
        interleaved = ir.Constant(ir.VectorType(I32, 2 * LANES), order)
        nothing = ir.Constant(m.mask_type, [0] * m.lanes)
        with cgutils.for_range_slice(builder, I64(0), rows, I64(2)) as (k, _):
            here = builder.gep(x, [builder.mul(k, x_row)])
            there = builder.gep(out, [builder.mul(builder.ashr(k, I64(1)), builder.mul(vectors, I64(LANES)))])
            second = builder.icmp_signed("<", builder.add(k, I64(1)), rows)
            with cgutils.for_range(builder, vectors) as loop:
                at = builder.mul(loop.index, I64(LANES))
                mask = m.mask(builder.sub(cols, at))
                low = m.load(builder.gep(here, [at]), mask)
                high = m.load(builder.gep(here, [builder.add(x_row, at)]), builder.select(second, mask, nothing))
                halves = builder.bitcast(_rounded(m, low, high), _SHORTS)
                pairs = builder.shuffle_vector(halves, ir.Constant(_SHORTS, ir.Undefined), interleaved)
                m.store(Vector(m, builder.bitcast(pairs, m.type)), builder.gep(there, [at]))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def _stack_block(typingctx: Any, like: Any) -> Any:
    """Room for LANES x LANES pairs on the stack of the calling function."""

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        room = cgutils.alloca_once(builder, ir.ArrayType(ir.VectorType(ir.FloatType(), LANES), LANES))
        return builder.bitcast(room, context.get_value_type(sig.return_type))

    return types.CPointer(like)(like), codegen


@kernel
def pairs_across(n, out, x):
    _pairs_across(n, out, x)


@kernel
def pairs_down(rows, vectors, cols, out, x, x_row):
    _pairs_down(rows, vectors, cols, out, x, x_row)


@kernel
def pairs_transposed(rows, vectors, cols, out, x, x_row, one):
    """Like :func:`pairs_down` for the transpose of x (cols, rows); out and x are addresses."""
    width = vectors * LANES
    block = _stack_block(one)
    for j in range(0, cols, LANES):
        for i in range(0, rows, 2 * LANES):
            count = min(2 * LANES, rows - i)
            for r in range(min(LANES, cols - j)):
                source = pointer(x, (j + r) * x_row + i, one)
                pairs_across(count, _row_of(block, r), source)
            to = pointer(out, i // 2 * width + j, one)
            transpose_tile(min(LANES, cols - j), (count + 1) // 2, to, width, block, LANES)


@kernel
def _row_of(block, r):
    return simd.shifted(block, r * LANES)
