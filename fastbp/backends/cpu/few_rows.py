"""Products with few rows of A, where B is read once and nothing of it can be used again: as fast as it is read.

Register tiles would walk down B a panel at a time, a new page of memory for every row of it. Here whole rows of B
follow each other, as memory likes it. Products row by row have the bits that tiles would give; dot products, which
only deltas and products with one column are made of, add up in an order of their own.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from numba import int64, types
from numba.core import cgutils
from numba.extending import intrinsic

from fastbp import scalars
from fastbp.backends.cpu import simd
from fastbp.backends.cpu.compiling import kernel
from fastbp.backends.cpu.gemm import BIAS, apply_binary, epilogue
from fastbp.backends.cpu.simd import BINARY_CODES, I64, pointer
from fastbp.backends.llvm import switch

MOST_ROWS = 4
_TOGETHER = 4  # rows of B in one pass over a row of C
_ADD = BINARY_CODES["add"]


@intrinsic
def _add_rows(typingctx: Any, count: Any, n: Any, fresh: Any, a: Any, a_col: Any, b: Any, b_row: Any, out: Any) -> Any:
    """out (1, n) goes on with a chain of fused multiply-adds over ``count`` <= 4 rows of B; from 0 if ``fresh``."""
    i64 = types.int64
    signature = types.void(i64, i64, i64, a, i64, b, i64, out)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        count, n, fresh, a, a_col, b, b_row, out = arguments
        m = simd.VectorEmitter(builder, str(sig.args[3].dtype))
        starts_at_0 = builder.icmp_signed("!=", fresh, I64(0))

        def rows(number: int) -> None:
            factors = [m.splat(builder.load(builder.gep(a, [builder.mul(I64(c), a_col)]))) for c in range(number)]
            lines = [builder.gep(b, [builder.mul(I64(c), b_row)]) for c in range(number)]

            def body(i: Any, mask: Any) -> None:
                place = builder.gep(out, [i])
                before = m.load(place, mask).value
                total = simd.Vector(m, builder.select(starts_at_0, m.constant(0.0), before))
                for factor, line in zip(factors, lines, strict=True):
                    total = m.fma(factor, m.load(builder.gep(line, [i]), mask), total)
                m.store(total, place, mask)

            simd.vector_loop(m, n, body)

        switch(builder, builder.sub(count, I64(1)), [partial(rows, k) for k in range(1, _TOGETHER + 1)])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def _dot(typingctx: Any, n: Any, x: Any, y: Any) -> Any:
    """The dot product of two contiguous rows, in an order that n alone decides."""
    signature = x.dtype(types.int64, x, y)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        n, x, y = arguments
        m = simd.VectorEmitter(builder, str(sig.return_type))

        def step(total: simd.Vector, i: Any, mask: Any) -> simd.Vector:
            return m.fma(m.load(builder.gep(x, [i]), mask), m.load(builder.gep(y, [i]), mask), total)

        return m.reduce(simd.fold(m, n, 0.0, step, simd.add), simd.add)

    return signature, codegen


@intrinsic
def _update_rows(
    typingctx: Any,
    count: Any,
    m: Any,
    n: Any,
    a: Any,
    a_row: Any,
    a_col: Any,
    b: Any,
    b_row: Any,
    theta: Any,
    theta_row: Any,
    rate: Any,
) -> Any:
    """theta (m, n) -= rate A B, with ``count`` <= 4 columns of A and rows of B."""
    i64 = types.int64
    signature = types.void(i64, i64, i64, a, i64, i64, b, i64, theta, i64, rate)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        count, m_rows, n, a, a_row, a_col, b, b_row, theta, theta_row, rate = arguments
        m = simd.VectorEmitter(builder, str(sig.args[3].dtype))
        h = (m.splat(rate),)
        rule = scalars.UPDATES["sgd"].formula

        def rows(number: int) -> None:
            lines = [builder.gep(b, [builder.mul(I64(c), b_row)]) for c in range(number)]
            with cgutils.for_range(builder, m_rows) as loop:
                here = builder.gep(a, [builder.mul(loop.index, a_row)])
                own = builder.gep(theta, [builder.mul(loop.index, theta_row)])
                columns = [builder.gep(here, [builder.mul(I64(c), a_col)]) for c in range(number)]
                factors = [m.splat(builder.load(column)) for column in columns]

                def body(i: Any, mask: Any) -> None:
                    total = simd.Vector(m, m.constant(0.0))
                    for factor, line in zip(factors, lines, strict=True):
                        total = m.fma(factor, m.load(builder.gep(line, [i]), mask), total)
                    place = builder.gep(own, [i])
                    (new,) = rule(m, h, m.load(place, mask), total)
                    m.store(new, place, mask)

                simd.vector_loop(m, n, body)

        switch(builder, builder.sub(count, I64(1)), [partial(rows, k) for k in range(1, MOST_ROWS + 1)])
        return context.get_dummy_value()

    return signature, codegen


@kernel
def update_by_rows(m, n, k, a, a_row, a_col, b, b_row, theta, theta_row, rate, one):
    """theta (m, n) -= rate A B with k <= MOST_ROWS: a row of theta after the other, in the order of memory."""
    start, line = pointer(a, int64(0), one), pointer(theta, int64(0), one)
    _update_rows(k, m, n, start, a_row, a_col, pointer(b, int64(0), one), b_row, line, theta_row, rate)


@kernel
def add_rows(count, n, fresh, a, a_col, b, b_row, out):
    _add_rows(count, n, fresh, a, a_col, b, b_row, out)


@kernel
def product_by_rows(
    m, n, k, block, how, a, a_row, a_col, b, b_row, out, out_row, code, y, y_row, y_step,
    then, out2, out2_row, scratch, one,
):  # fmt: skip
    """:func:`fastbp.backends.cpu.gemm.product`, to the same bits. ``scratch`` has room for a row of C."""
    sums = pointer(scratch, 0, one)
    for i in range(m):
        line = pointer(out, i * out_row, one)
        if k == 0:
            for c in range(n):
                simd.store_at(line, c, one - one)
        at = 0
        while at < k:
            length = min(block, k - at)
            to = sums if at else line
            q = 0
            while q < length:
                here = pointer(a, i * a_row + (at + q) * a_col, one)
                add_rows(
                    min(length - q, _TOGETHER), n, int64(q == 0), here, a_col, pointer(b, (at + q) * b_row, one),
                    b_row, to,
                )  # fmt: skip
                q += _TOGETHER
            if at:
                apply_binary(int64(_ADD), n, line, line, int64(1), sums, int64(1), one)
            at += block
        if how & BIAS:
            apply_binary(int64(_ADD), n, line, line, int64(1), pointer(y, 0, one), int64(1), one)
    if code >= 0 or then >= 0:
        epilogue(m, n, out, out_row, code, y, y_row, y_step, then, out2, out2_row, one)


@kernel
def product_by_dots(
    m, n, k, a, a_row, b, b_row, out, out_row, code, y, y_row, y_step, then, out2, out2_row, one,
):  # fmt: skip
    """epilogue(A Bᵀ, Y) with B (N, K): its rows one after the other, all dot products with it at once."""
    for j in range(n):
        line = pointer(b, j * b_row, one)
        for i in range(m):
            simd.store_at(pointer(out, i * out_row, one), j, _dot(k, pointer(a, i * a_row, one), line))
    if code >= 0 or then >= 0:
        epilogue(m, n, out, out_row, code, y, y_row, y_step, then, out2, out2_row, one)
