"""A matrix with few columns, without gaps, taken as one long row, and one row beside it: full vectors, read once.

A vector's lanes hold the elements of several rows. What belongs to them, a number for each row or for each column, is
shuffled into the lanes where it is needed, in an order that the number of columns alone decides: as many vectors of the
matrix as it has columns are as many rows as a vector has lanes. All results have the bits of the ways for many rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastbp import scalars
from fastbp.backends.cpu import simd
from fastbp.backends.cpu.vectors import I32, I64, Vector, VectorEmitter, sums_of_lanes
from fastbp.backends.cpu.words import MOST_SUMMED, MOST_UPDATED
from fastbp.backends.llvm import switch


def _chosen(m: VectorEmitter, vectors: Sequence[Vector], elements: Sequence[int]) -> Vector:
    """The vector whose lanes are those elements of all vectors' lanes in a row."""
    kind = ir.VectorType(I32, m.lanes)
    found = None
    for v, vector in enumerate(vectors):
        here = [e - v * m.lanes if e // m.lanes == v else None for e in elements]
        if found is None:
            order = [lane or 0 for lane in here]
        else:
            order = [lane if own is None else own + m.lanes for lane, own in enumerate(here)]
        pair = (vector if found is None else found).value, vector.value
        found = Vector(m, m.builder.shuffle_vector(*pair, ir.Constant(kind, order)))
    assert found is not None
    return found


def _rows_of(m: VectorEmitter, n: int, v: int) -> list[int]:
    """The rows, of those that begin together, of vector v's lanes in a matrix of n columns."""
    return [(v * m.lanes + lane) // n for lane in range(m.lanes)]


def _columns_of(m: VectorEmitter, n: int, v: int) -> list[int]:
    return [(v * m.lanes + lane) % n for lane in range(m.lanes)]


def _masks(m: VectorEmitter, n: int, rows: Any) -> list[Any]:
    """Masks of the n vectors of so many rows, fewer than a vector has lanes."""
    count = m.builder.mul(rows, I64(n))
    return [m.mask(m.builder.sub(count, I64(v * m.lanes))) for v in range(n)]


def _over_rows(m: VectorEmitter, n: int, rows: Any, body: Callable[[Any, Any, list[Any]], None]) -> None:
    """body(i, mask of rows, masks of the n vectors) for rows i = 0, lanes, …; masks are None but at a ragged end."""

    def one(i: Any, mask: Any) -> None:
        body(i, mask, [None] * n if mask is None else _masks(m, n, m.builder.sub(rows, i)))

    simd.vector_loop(m, rows, one)


@intrinsic
def update_by_outer(typingctx: Any, rows: Any, n: Any, a: Any, b: Any, theta: Any, rate: Any) -> Any:
    """theta (rows, n) -= rate a bᵀ with contiguous a and b, 1 < n <= MOST_UPDATED; see one_row.update_by_panels."""
    signature = types.void(types.int64, types.int64, a, b, theta, rate)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        rows, n, a, b, theta, rate = arguments
        m = VectorEmitter(builder, str(sig.args[2].dtype))
        h = (m.splat(rate),)
        rule = scalars.UPDATES["sgd"].formula

        def case(count: int) -> None:
            starts = range(0, count, m.lanes)
            masks = [None if start + m.lanes <= count else m.mask(I64(count - start)) for start in starts]
            factors = [m.load(builder.gep(b, [I64(start)]), mask) for start, mask in zip(starts, masks, strict=True)]
            across = [_chosen(m, factors, _columns_of(m, count, v)) for v in range(count)]

            def body(i: Any, mask: Any, ends: list[Any]) -> None:
                down = m.load(builder.gep(a, [i]), mask)
                own = builder.gep(theta, [builder.mul(i, I64(count))])
                for v, end in enumerate(ends):
                    here = builder.gep(own, [I64(v * m.lanes)])
                    total = _chosen(m, [down], _rows_of(m, count, v)) * across[v]
                    m.store(rule(m, h, m.load(here, end), total)[0], here, end)

            _over_rows(m, count, rows, body)

        switch(builder, builder.sub(n, I64(2)), [partial(case, count) for count in range(2, MOST_UPDATED + 1)])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def dots_of_row(typingctx: Any, n: Any, k: Any, a: Any, b: Any, out: Any) -> Any:
    """a B with contiguous a (k) and B (k, n), 1 < n <= MOST_SUMMED, into contiguous ``out``.

    Its bits are those of few_rows._dots: a vector of sums for each column, then pairwise.
    """
    signature = types.void(types.int64, types.int64, a, b, out)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        n, k, a, b, out = arguments
        m = VectorEmitter(builder, str(sig.args[2].dtype))

        def case(count: int) -> None:
            totals = [cgutils.alloca_once(builder, m.type) for _ in range(count)]
            for total in totals:
                builder.store(m.constant(0.0), total)

            def body(i: Any, mask: Any, ends: list[Any]) -> None:
                down = m.load(builder.gep(a, [i]), mask)
                line = builder.gep(b, [builder.mul(i, I64(count))])
                for v, (total, end) in enumerate(zip(totals, ends, strict=True)):
                    old = Vector(m, builder.load(total))
                    here = m.load(builder.gep(line, [I64(v * m.lanes)]), end)
                    builder.store(m.fma(_chosen(m, [down], _rows_of(m, count, v)), here, old).value, total)

            _over_rows(m, count, k, body)
            made = [Vector(m, builder.load(total)) for total in totals]
            columns = [_chosen(m, made, [row * count + j for row in range(m.lanes)]) for j in range(count)]
            m.store(sums_of_lanes(m, [columns[min(j, count - 1)] for j in range(m.lanes)]), out, m.mask(n))

        switch(builder, builder.sub(n, I64(2)), [partial(case, count) for count in range(2, MOST_SUMMED + 1)])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def sums_of_columns(typingctx: Any, n: Any, k: Any, a: Any, b: Any, out: Any) -> Any:
    """a Bᵀ with contiguous a (k) and B (n, k), 1 < k <= MOST_SUMMED, into contiguous ``out``: k multiply-adds each."""
    signature = types.void(types.int64, types.int64, a, b, out)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        n, k, a, b, out = arguments
        m = VectorEmitter(builder, str(sig.args[2].dtype))

        def case(count: int) -> None:
            factors = [m.splat(builder.load(builder.gep(a, [I64(j)]))) for j in range(count)]

            def body(i: Any, mask: Any, ends: list[Any]) -> None:
                line = builder.gep(b, [builder.mul(i, I64(count))])
                lines = [m.load(builder.gep(line, [I64(v * m.lanes)]), end) for v, end in enumerate(ends)]
                total = Vector(m, m.constant(0.0))
                for j, factor in enumerate(factors):
                    total = m.fma(factor, _chosen(m, lines, [row * count + j for row in range(m.lanes)]), total)
                m.store(total, builder.gep(out, [i]), mask)

            _over_rows(m, count, n, body)

        switch(builder, builder.sub(k, I64(2)), [partial(case, count) for count in range(2, MOST_SUMMED + 1)])
        return context.get_dummy_value()

    return signature, codegen
