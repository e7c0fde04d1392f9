"""A row times a matrix, and a matrix less an outer product, where the cache holds the matrix: at the cache's speed.

A panel is as many columns as a few vectors hold. The sums of a panel's columns, or the row's part that belongs to them,
stay in registers while the panel is walked down, so each element of the matrix is all that is read for it. All results
have the bits of the ways for many rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastbp import scalars
from fastbp.backends.cpu.vectors import I64, Vector, VectorEmitter
from fastbp.backends.llvm import switch

MOST_VECTORS = 8  # of a panel; the sums of 8 keep both of a core's units for fused multiply-adds busy


def _over_panels(m: VectorEmitter, n: Any, panel: Callable[[Any, list[Any]], None]) -> None:
    """panel(first column, where its vectors begin from there) for panels of n columns.

    n is a vector's lanes or more. The last vector of the last panel ends with the last column, so it may overlap the
    one before it: what both hold is computed before it is stored.
    """
    builder, lanes, one = m.builder, I64(m.lanes), I64(1)
    vectors = builder.sdiv(builder.add(n, I64(m.lanes - 1)), lanes)
    panels = builder.sdiv(builder.add(vectors, I64(MOST_VECTORS - 1)), I64(MOST_VECTORS))
    with cgutils.for_range(builder, panels) as loop:
        first = builder.sdiv(builder.mul(vectors, loop.index), panels)
        width = builder.sub(builder.sdiv(builder.mul(vectors, builder.add(loop.index, one)), panels), first)
        start = builder.mul(first, lanes)
        after, end = builder.mul(builder.sub(width, one), lanes), builder.sub(builder.sub(n, start), lanes)
        last = builder.select(builder.icmp_signed("<", after, end), after, end)

        def case(count: int) -> None:
            panel(start, [*(I64(v * m.lanes) for v in range(count - 1)), last])

        switch(builder, builder.sub(width, one), [partial(case, count) for count in range(1, MOST_VECTORS + 1)])


@intrinsic
def row_by_panels(
    typingctx: Any,
    n: Any,
    k: Any,
    block: Any,
    a: Any,
    a_col: Any,
    b: Any,
    b_row: Any,
    bias: Any,
    with_bias: Any,
    out: Any,
) -> Any:
    """out (n) = a B + bias with B (k, n), k > 0: a chain of fused multiply-adds for each ``block`` of K.

    n is a vector's lanes or more; the bias is read if ``with_bias`` is not 0.
    """
    i64 = types.int64
    signature = types.void(i64, i64, i64, a, i64, b, i64, bias, i64, out)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        n, k, block, a, a_col, b, b_row, bias, with_bias, out = arguments
        m = VectorEmitter(builder, str(sig.args[3].dtype))
        biased = builder.icmp_signed("!=", with_bias, I64(0))

        def panel(start: Any, offsets: list[Any]) -> None:
            here, zero = builder.gep(b, [start]), m.constant(0.0)
            sums, totals = ([cgutils.alloca_once(builder, m.type) for _ in offsets] for _ in range(2))
            for total in totals:
                builder.store(zero, total)
            with cgutils.for_range_slice(builder, I64(0), k, block) as (at, _):
                left = builder.sub(k, at)
                end = builder.add(at, builder.select(builder.icmp_signed("<", block, left), block, left))
                for place in sums:
                    builder.store(zero, place)
                with cgutils.for_range_slice(builder, at, end, I64(1)) as (q, _):
                    factor = m.splat(builder.load(builder.gep(a, [builder.mul(q, a_col)])))
                    line = builder.gep(here, [builder.mul(q, b_row)])
                    for place, offset in zip(sums, offsets, strict=True):
                        x = m.load(builder.gep(line, [offset]))
                        builder.store(m.fma(factor, x, Vector(m, builder.load(place))).value, place)
                is_first = builder.icmp_signed("==", at, I64(0))
                for total, place in zip(totals, sums, strict=True):
                    new = Vector(m, builder.load(place))
                    added = Vector(m, builder.load(total)) + new
                    builder.store(builder.select(is_first, new.value, added.value), total)
            with builder.if_then(biased):
                for total, offset in zip(totals, offsets, strict=True):
                    added = Vector(m, builder.load(total)) + m.load(builder.gep(bias, [builder.add(start, offset)]))
                    builder.store(added.value, total)
            for total, offset in zip(totals, offsets, strict=True):
                m.store(Vector(m, builder.load(total)), builder.gep(out, [builder.add(start, offset)]))

        _over_panels(m, n, panel)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def update_by_panels(
    typingctx: Any, rows: Any, n: Any, a: Any, a_row: Any, b: Any, theta: Any, theta_row: Any, rate: Any
) -> Any:
    """theta (rows, n) -= rate a bᵀ with contiguous b; n is a vector's lanes or more.

    A product is taken as it is, not added to 0 as tiles do: with that 300 x 128 was updated 0.7 times as fast. Only
    where theta is -0 and the product is 0 may the sign of the zero be another.
    """
    i64 = types.int64
    signature = types.void(i64, i64, a, i64, b, theta, i64, rate)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        rows, n, a, a_row, b, theta, theta_row, rate = arguments
        m = VectorEmitter(builder, str(sig.args[2].dtype))
        h = (m.splat(rate),)
        rule = scalars.UPDATES["sgd"].formula

        def panel(start: Any, offsets: list[Any]) -> None:
            across = [m.load(builder.gep(b, [builder.add(start, offset)])) for offset in offsets]
            with cgutils.for_range(builder, rows) as loop:
                down = m.splat(builder.load(builder.gep(a, [builder.mul(loop.index, a_row)])))
                line = builder.gep(theta, [builder.add(builder.mul(loop.index, theta_row), start)])
                half = max(0, min(len(offsets) // 2, len(offsets) - 2))  # which the last vector does not overlap
                for some in (slice(half), slice(half, None)):
                    places = [builder.gep(line, [offset]) for offset in offsets[some]]
                    totals = [down * own for own in across[some]]
                    new = [rule(m, h, m.load(place), total)[0] for place, total in zip(places, totals, strict=True)]
                    for place, value in zip(places, new, strict=True):
                        m.store(value, place)

        _over_panels(m, n, panel)
        return context.get_dummy_value()

    return signature, codegen
