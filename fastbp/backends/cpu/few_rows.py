"""Products with few rows of A, or few columns, where B or A is read once: as fast as it is read.

Register tiles would walk down B a panel at a time, a new page of memory for every row of it. Here whole rows of B
follow each other, as memory likes it, and a transposed B needs no copy. All but dot products has the bits of tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from llvmlite import ir
from numba import int64, types
from numba.core import cgutils
from numba.extending import intrinsic

from fastbp import scalars
from fastbp.backends.cpu import simd
from fastbp.backends.cpu.compiling import kernel
from fastbp.backends.cpu.few_columns import dots_of_row, sums_of_columns, update_by_outer
from fastbp.backends.cpu.gemm import OUTER_ELEMENTS, apply_binary, apply_update, epilogue
from fastbp.backends.cpu.one_row import row_by_panels, update_by_panels
from fastbp.backends.cpu.simd import itemsize_of, lanes_of, load_at, pointer, store_at
from fastbp.backends.cpu.vectors import I64, Vector, VectorEmitter, sums_of_lanes, transposed
from fastbp.backends.cpu.words import (
    BIAS,
    BINARY_CODES,
    BY_PANELS,
    MOST_OUTER,
    MOST_SUMMANDS,
    MOST_SUMMED,
    MOST_UPDATED,
    ONES,
    PACK_T,
    SGD,
    UPDATE_CODES,
)
from fastbp.backends.llvm import switch

LONG_ROW = 8  # vectors, from which on rows are stored aligned: sums of rows, and theta less one product
TURNED = (2, 2, 1, 1, 1, 1)  # vectors of columns that are done at once, for one row of A, two, …
_ADD, _SGD = BINARY_CODES["add"], UPDATE_CODES["sgd"]


def _over_row(m: VectorEmitter, n: Any, place: Any, compute: Callable[[Any, Any], Vector]) -> None:
    """compute(i, mask) for all vectors of n contiguous elements, stored from ``place`` on, which it may read.

    The last vector ends with the last element and overlaps the one before it, so it is computed before anything is
    stored: masked stores take some 20 cycles each on AMD's cores with AVX2. A row shorter than a vector is masked.
    """
    builder, lanes = m.builder, I64(m.lanes)
    whole = builder.mul(builder.sdiv(n, lanes), lanes)
    ragged, wide = builder.icmp_signed("<", whole, n), builder.icmp_signed(">=", n, lanes)
    overlapping, last = builder.and_(ragged, wide), builder.sub(n, lanes)
    early = cgutils.alloca_once(builder, m.type)
    with builder.if_then(overlapping):
        m.store(compute(last, None), early)
    with cgutils.for_range_slice(builder, I64(0), whole, lanes) as (i, _):
        m.store(compute(i, None), builder.gep(place, [i]))
    with builder.if_then(overlapping):
        m.store(m.load(early), builder.gep(place, [last]))
    with builder.if_then(builder.and_(ragged, builder.not_(wide))):
        mask = m.mask(n)
        m.store(compute(I64(0), mask), place, mask)


def _over_long_rows(
    m: VectorEmitter,
    n: Any,
    places: Sequence[Any],
    compute: Callable[[Any, Any], list[Vector]],
) -> None:
    """:func:`_over_row` for rows of n >= LONG_ROW vectors, all at once, compute(i, mask) giving a vector of each.

    Two vectors a turn, from where those of the first row lie at a multiple of their size; so the first vector may
    overlap others too.
    """
    builder, lanes, two = m.builder, I64(m.lanes), I64(2 * m.lanes)
    gap = builder.and_(builder.neg(builder.ptrtoint(places[0], I64)), I64(m.lanes * m.itemsize - 1))
    start, last = builder.sdiv(gap, I64(m.itemsize)), builder.sub(n, lanes)

    def store(i: Any, values: list[Vector]) -> None:
        for value, place in zip(values, places, strict=True):
            m.store(value, builder.gep(place, [i]))

    first_values, last_values = compute(I64(0), None), compute(last, None)
    end = builder.add(start, builder.mul(builder.sdiv(builder.sub(n, start), two), two))
    with cgutils.for_range_slice(builder, start, end, two) as (i, _):
        here = [i, builder.add(i, lanes)]
        for j, values in zip(here, [compute(j, None) for j in here], strict=True):
            store(j, values)
    with builder.if_then(builder.icmp_signed("<=", end, last)):
        store(end, compute(end, None))
    store(I64(0), first_values)
    store(last, last_values)


def _is_long(m: VectorEmitter, n: Any) -> Any:
    return m.builder.icmp_signed(">=", n, I64(LONG_ROW * m.lanes))


def _factors(
    m: VectorEmitter, row: Any, of_a: Any, at: Any, number: int, a: Any, a_row: Any, a_col: Any, last: Any
) -> list[Vector]:
    """``number`` elements of a row of A from ``at`` on, each in all lanes; last[0] beyond its ``of_a`` rows."""
    builder = m.builder
    own = builder.icmp_signed("<", row, of_a)
    step = builder.select(own, a_col, I64(0))
    start = builder.select(own, builder.gep(a, [builder.mul(row, a_row)]), last)
    columns = [builder.gep(start, [builder.mul(builder.add(at, I64(c)), step)]) for c in range(number)]
    return [m.splat(builder.load(column)) for column in columns]


@intrinsic
def _sums_of_rows(
    typingctx: Any,
    rows: Any,
    of_a: Any,
    n: Any,
    k: Any,
    a: Any,
    a_row: Any,
    a_col: Any,
    last: Any,
    b: Any,
    b_row: Any,
    out: Any,
    out_row: Any,
) -> Any:
    """out (rows, n) = A B, a chain of fused multiply-adds for each element, with 4 rows of B in one pass over a row.

    A has ``of_a`` rows; beyond them all its elements are ``last[0]``. Two rows of ``out`` at once use each vector of B
    twice.
    """
    i64 = types.int64
    signature = types.void(i64, i64, i64, i64, a, i64, i64, last, b, i64, out, i64)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        rows, of_a, n, k, a, a_row, a_col, last, b, b_row, out, out_row = arguments
        m = VectorEmitter(builder, str(sig.args[4].dtype))
        is_long = _is_long(m, n)

        def some(first: Any, together: int, at: Any, number: int, fresh: bool) -> None:
            """``together`` rows of ``out``, the first one given, over ``number`` rows of B from ``at`` on."""
            lines = [builder.gep(b, [builder.mul(builder.add(at, I64(c)), b_row)]) for c in range(number)]
            indices = [builder.add(first, I64(r)) for r in range(together)]
            factors = [_factors(m, index, of_a, at, number, a, a_row, a_col, last) for index in indices]
            places = [builder.gep(out, [builder.mul(index, out_row)]) for index in indices]

            def compute(i: Any, mask: Any) -> list[Vector]:
                zero = Vector(m, m.constant(0.0))
                totals = [zero if fresh else m.load(builder.gep(place, [i]), mask) for place in places]
                for c, line in enumerate(lines):
                    x = m.load(builder.gep(line, [i]), mask)
                    totals = [m.fma(own[c], x, total) for own, total in zip(factors, totals, strict=True)]
                return totals

            if together > 1:
                _over_long_rows(m, n, places, compute)
                return
            with builder.if_else(is_long) as (long, short):
                with long:
                    _over_long_rows(m, n, places, compute)
                with short:
                    _over_row(m, n, places[0], lambda i, mask: compute(i, mask)[0])

        def all_rows(at: Any, number: int, fresh: bool = False) -> None:
            alone = I64(0)
            if number == MOST_OUTER and not fresh:
                alone = builder.select(is_long, builder.and_(rows, I64(-2)), I64(0))
                with cgutils.for_range_slice(builder, I64(0), alone, I64(2)) as (r, _):
                    some(r, 2, at, number, fresh)
            with cgutils.for_range_slice(builder, alone, rows, I64(1)) as (r, _):
                some(r, 1, at, number, fresh)

        four = I64(MOST_OUTER)
        head = builder.select(builder.icmp_signed("<", k, four), k, four)
        numbers = range(1, MOST_OUTER + 1)
        switch(builder, builder.sub(head, I64(1)), [partial(all_rows, I64(0), q, fresh=True) for q in numbers])
        end = builder.and_(k, I64(-MOST_OUTER))
        with builder.if_then(builder.icmp_signed(">", k, four)):
            with cgutils.for_range_slice(builder, four, end, four) as (at, _):
                all_rows(at, MOST_OUTER)
            rest = [partial(all_rows, end, q) for q in range(1, MOST_OUTER)]
            switch(builder, builder.sub(k, end), [lambda: None, *rest])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def _turned(
    typingctx: Any, m: Any, n: Any, k: Any, block: Any, a: Any, a_row: Any, b: Any, b_row: Any, out: Any, out_row: Any
) -> Any:
    """out (m, n) = A Bᵀ with B (n, k), for m <= len(TURNED): squares of B transposed in registers.

    The order of the sums is that of gemm.py: a chain of fused multiply-adds for every block of K. The last columns
    overlap those before them if they are fewer than a vector has lanes.
    """
    i64 = types.int64
    signature = types.void(i64, i64, i64, i64, a, i64, b, i64, out, i64)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        m_rows, n, k, block, a, a_row, b, b_row, out, out_row = arguments
        m = VectorEmitter(builder, str(sig.args[4].dtype))
        lanes = I64(m.lanes)
        narrow = builder.icmp_signed("<", n, lanes)
        kept = builder.bitcast(cgutils.alloca_once(builder, ir.ArrayType(m.type, m.lanes)), m.element.as_pointer())
        to_row = [builder.mul(_least(builder, I64(r), builder.sub(n, I64(1))), b_row) for r in range(m.lanes)]

        def columns(rows: int, places: list[Any]) -> None:
            """Rows of A with as many columns as a vector has lanes from each of ``places`` on."""
            lines = [builder.gep(b, [builder.mul(j, b_row)]) for j in places]
            tile = [(i, g) for g in range(len(places)) for i in range(rows)]
            sums = {place: cgutils.alloca_once(builder, m.type) for place in tile}
            totals = {place: cgutils.alloca_once(builder, m.type) for place in tile}
            for total in totals.values():
                builder.store(m.constant(0.0), total)

            def add(i: int, g: int, place: Any, column: Vector) -> None:
                old = Vector(m, builder.load(sums[i, g]))
                builder.store(m.fma(m.splat(builder.load(place)), column, old).value, sums[i, g])

            def steps(at: Any, rest: Any = None) -> None:
                """As many steps of K as a vector has lanes, or ``rest`` of them."""
                for g, line in enumerate(lines):
                    # opaque: else pointers for each row step from square to square, and squares wait for each other
                    square = simd.opaque(builder, builder.gep(line, [at]))
                    places = [builder.gep(a, [builder.add(builder.mul(I64(i), a_row), at)]) for i in range(rows)]
                    here = [simd.opaque(builder, place) for place in places]
                    mask = None if rest is None else m.mask(rest)
                    columns = transposed(m, [m.load(builder.gep(square, [row]), mask) for row in to_row])
                    if rest is None:
                        for c, column in enumerate(columns):
                            for i in range(rows):
                                add(i, g, builder.gep(here[i], [I64(c)]), column)
                        continue
                    for c, column in enumerate(columns):
                        m.store(column, builder.gep(kept, [I64(c * m.lanes)]))
                    with cgutils.for_range(builder, rest) as loop:
                        column = m.load(builder.gep(kept, [builder.mul(loop.index, lanes)]))
                        for i in range(rows):
                            add(i, g, builder.gep(here[i], [loop.index]), column)

            with cgutils.for_range_slice(builder, I64(0), k, block) as (start, _):
                length = _least(builder, block, builder.sub(k, start))
                for place in sums.values():
                    builder.store(m.constant(0.0), place)
                whole = builder.mul(builder.sdiv(length, lanes), lanes)
                with cgutils.for_range_slice(builder, I64(0), whole, lanes) as (q, _):
                    steps(builder.add(start, q))
                rest = builder.sub(length, whole)
                with builder.if_then(builder.icmp_signed(">", rest, I64(0))):
                    steps(builder.add(start, whole), rest)
                is_first = builder.icmp_signed("==", start, I64(0))
                for place, total in totals.items():
                    new = Vector(m, builder.load(sums[place]))
                    added = Vector(m, builder.load(total)) + new
                    builder.store(builder.select(is_first, new.value, added.value), total)
            for (i, g), total in totals.items():
                place = builder.gep(out, [builder.add(builder.mul(I64(i), out_row), places[g])])
                with builder.if_else(narrow) as (masked, full):
                    with masked:
                        m.store(m.load(total), place, m.mask(n))
                    with full:
                        m.store(m.load(total), place)

        def case(rows: int, together: int) -> None:
            stride = I64(together * m.lanes)
            wide = builder.mul(builder.sdiv(n, stride), stride) if together > 1 else I64(0)
            if together > 1:
                with cgutils.for_range_slice(builder, I64(0), wide, stride) as (j, _):
                    columns(rows, [builder.add(j, I64(g * m.lanes)) for g in range(together)])
            with cgutils.for_range_slice(builder, wide, n, lanes) as (j, _):
                columns(rows, [builder.select(narrow, I64(0), _least(builder, j, builder.sub(n, lanes)))])

        cases = [partial(case, rows, together) for rows, together in enumerate(TURNED, 1)]
        switch(builder, builder.sub(m_rows, I64(1)), cases)
        return context.get_dummy_value()

    return signature, codegen


def _least(builder: Any, x: Any, y: Any) -> Any:
    return builder.select(builder.icmp_signed("<", x, y), x, y)


@intrinsic
def _dots(typingctx: Any, count: Any, n: Any, x: Any, y: Any, y_row: Any, out: Any) -> Any:
    """The dot products of a contiguous row with ``count`` others, at most a vector's lanes, into contiguous ``out``.

    A vector of sums for each, which are then added pairwise: in an order that n alone decides.
    """
    signature = types.void(types.int64, types.int64, x, y, types.int64, out)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        count, n, x, y, y_row, out = arguments
        m = VectorEmitter(builder, str(sig.args[2].dtype))
        last = builder.sub(count, I64(1))  # again for those that are not there
        lines = [builder.gep(y, [builder.mul(_least(builder, I64(r), last), y_row)]) for r in range(m.lanes)]
        totals = [cgutils.alloca_once(builder, m.type) for _ in lines]
        for total in totals:
            builder.store(m.constant(0.0), total)

        def body(i: Any, mask: Any) -> None:
            factor = m.load(builder.gep(x, [i]), mask)
            for line, total in zip(lines, totals, strict=True):
                old = Vector(m, builder.load(total))
                builder.store(m.fma(factor, m.load(builder.gep(line, [i]), mask), old).value, total)

        simd.vector_loop(m, n, body)
        sums = sums_of_lanes(m, [Vector(m, builder.load(total)) for total in totals])
        with builder.if_else(builder.icmp_signed("==", count, I64(m.lanes))) as (all_rows, some):
            with all_rows:
                m.store(sums, out)
            with some:
                m.store(sums, out, m.mask(count))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def _update_rows(
    typingctx: Any,
    rows: Any,
    of_a: Any,
    n: Any,
    count: Any,
    a: Any,
    a_row: Any,
    a_col: Any,
    last: Any,
    b: Any,
    b_row: Any,
    theta: Any,
    theta_row: Any,
    rate: Any,
) -> Any:
    """theta (rows, n) -= rate A B, with ``count`` <= MOST_SUMMANDS columns of A and rows of B.

    A has ``of_a`` rows; beyond them all its elements are ``last[0]``. The first products are taken as they are, see
    one_row.update_by_panels.
    """
    i64 = types.int64
    signature = types.void(i64, i64, i64, i64, a, i64, i64, last, b, i64, theta, i64, rate)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        rows, of_a, n, count, a, a_row, a_col, last, b, b_row, theta, theta_row, rate = arguments
        m = VectorEmitter(builder, str(sig.args[4].dtype))
        h = (m.splat(rate),)
        rule = scalars.UPDATES["sgd"].formula

        def some(first: Any, together: int, number: int, long: bool) -> None:
            """``together`` rows of theta, the first one given, less a sum of ``number`` rows of B."""
            indices = [builder.add(first, I64(r)) for r in range(together)]
            factors = [_factors(m, index, of_a, I64(0), number, a, a_row, a_col, last) for index in indices]
            places = [builder.gep(theta, [builder.mul(index, theta_row)]) for index in indices]
            lines = [builder.gep(b, [builder.mul(I64(c), b_row)]) for c in range(number)]

            def compute(i: Any, mask: Any) -> list[Vector]:
                x = m.load(builder.gep(lines[0], [i]), mask)
                totals = [own[0] * x for own in factors]
                for c, line in enumerate(lines[1:], 1):
                    x = m.load(builder.gep(line, [i]), mask)
                    totals = [m.fma(own[c], x, total) for own, total in zip(factors, totals, strict=True)]
                old = [m.load(builder.gep(place, [i]), mask) for place in places]
                return [rule(m, h, x, total)[0] for x, total in zip(old, totals, strict=True)]

            if long:
                _over_long_rows(m, n, places, compute)
            else:
                _over_row(m, n, places[0], lambda i, mask: compute(i, mask)[0])

        def all_rows(number: int) -> None:
            def each(start: Any, stop: Any, together: int, long: bool) -> None:
                with cgutils.for_range_slice(builder, start, stop, I64(together)) as (r, _):
                    some(r, together, number, long)

            begin = I64(0)
            if number <= MOST_OUTER:
                together = 1 if number == 1 else 2
                begin = builder.select(_is_long(m, n), builder.and_(rows, I64(-together)), I64(0))
                each(I64(0), begin, together, long=True)
            each(begin, rows, 1, long=False)

        cases = [partial(all_rows, number) for number in range(1, MOST_SUMMANDS + 1)]
        switch(builder, builder.sub(count, I64(1)), cases)
        return context.get_dummy_value()

    return signature, codegen


@kernel
def _update_by_panels(rows, n, a, a_row, b, theta, theta_row, rate):  # there once, for its two callers
    update_by_panels(rows, n, a, a_row, b, theta, theta_row, rate)


@kernel
def update_by_rows(rows, m, n, k, how, a, a_row, a_col, last, b, b_row, theta, theta_row, rate, one):
    """theta (rows, n) -= rate A B with k <= MOST_SUMMANDS: a row of theta after the other, in the order of memory.

    A has m rows; beyond them all its elements are what lies at ``last``.
    """
    zero, done = int64(0), int64(0)
    if k == 1 and 1 < n <= MOST_UPDATED and a_row == 1 and theta_row == n:
        update_by_outer(m, n, pointer(a, zero, one), pointer(b, zero, one), pointer(theta, zero, one), rate)
        done = m
    elif how & BY_PANELS:
        of_b = pointer(b, zero, one)
        _update_by_panels(m, n, pointer(a, zero, one), a_row, of_b, pointer(theta, zero, one), theta_row, rate)
        if rows > m:
            below, of_a = pointer(theta, m * theta_row, one), pointer(last, zero, one)
            _update_by_panels(rows - m, n, of_a, zero, of_b, below, theta_row, rate)
        done = rows
    _update_rows(
        rows - done, m - done, n, k, pointer(a, done * a_row, one), a_row, a_col, pointer(last, zero, one),
        pointer(b, zero, one), b_row, pointer(theta, done * theta_row, one), theta_row, rate,
    )  # fmt: skip


@kernel
def sums_of_rows(rows, of_a, n, k, a, a_row, a_col, last, b, b_row, out, out_row):
    _sums_of_rows(rows, of_a, n, k, a, a_row, a_col, last, b, b_row, out, out_row)


@kernel
def product_by_rows(
    m, n, k, block, how, accumulate, a, a_row, a_col, one_at, b, b_row, out, out_row, code, y, y_row, y_step,
    then, out2, out2_row, hyper, scratch, one,
):  # fmt: skip
    """:func:`fastbp.backends.cpu.gemm.product`, to the same bits. ``scratch`` has room for C twice.

    With ONES, A has another row, of what lies at ``one_at``. With ``accumulate`` C is added to what is there.
    """
    at, zero = int64(0), int64(0)
    bias = pointer(y, 0, one)
    to, to_row = out, out_row
    rows = m + 1 if how & ONES else m
    if how & SGD:
        to, to_row = scratch + rows * n * itemsize_of(one), n
    for i in range(rows if k == 0 and not accumulate else 0):
        for c in range(n):
            simd.store_at(pointer(to, i * to_row, one), c, load_at(bias, c) if how & BIAS else one - one)
    if how & BY_PANELS:
        row_by_panels(
            n, k, block, pointer(a, zero, one), a_col, pointer(b, zero, one), b_row, bias, how & BIAS,
            pointer(to, zero, one),
        )  # fmt: skip
        at = k
    while at < k:
        length = min(block, k - at)
        sums, sums_row = (scratch, n) if at or accumulate else (to, to_row)
        sums_of_rows(
            rows, m, n, length, pointer(a, at * a_col, one), a_row, a_col, pointer(one_at, zero, one),
            pointer(b, at * b_row, one), b_row, pointer(sums, zero, one), sums_row,
        )  # fmt: skip
        for i in range(rows):
            line = pointer(to, i * to_row, one)
            if at or accumulate:
                apply_binary(int64(_ADD), n, line, line, int64(1), pointer(scratch, i * n, one), int64(1), one)
            if how & BIAS and at + length == k:
                apply_binary(int64(_ADD), n, line, line, int64(1), bias, int64(1), one)
        at += block
    for i in range(rows if how & SGD else 0):
        theta = pointer(out, i * out_row, one)
        apply_update(int64(_SGD), n, theta, pointer(to, i * to_row, one), theta, theta, pointer(hyper, int64(0), 1.0))
    if code >= 0 or then >= 0:
        epilogue(m, n, out, out_row, code, y, y_row, y_step, then, out2, out2_row, one)


@kernel
def product_of_few_summands(
    m, n, k, how, a, a_row, a_col, b, b_row, out, out_row, code, y, y_row, y_step, then, out2, out2_row, one
):  # fmt: skip
    """epilogue(A B, Y) with k in one block: a row or two of C after the other, a few of them before their epilogue."""
    item, rows, step = itemsize_of(one), max(int64(2), OUTER_ELEMENTS // n), int64(1)
    for i in range(0, m, rows):
        rows = min(rows, m - i)
        of_a, of_b, line = pointer(a, i * a_row, one), pointer(b, int64(0), one), pointer(out, i * out_row, one)
        sums_of_rows(rows, rows, n, k, of_a, a_row, a_col, of_a, of_b, b_row, line, out_row)
        for r in range(i, i + rows if how & BIAS else i):
            line = pointer(out, r * out_row, one)
            apply_binary(int64(_ADD), n, line, line, step, pointer(y, int64(0), one), step, one)
        if code >= 0 or then >= 0:
            epilogue(
                rows, n, out + i * out_row * item, out_row, code, y + i * y_row * item, y_row, y_step,
                then, out2 + i * out2_row * item, out2_row, one,
            )  # fmt: skip


@kernel
def product_turned(
    m, n, k, block, a, a_row, b, b_row, out, out_row, code, y, y_row, y_step, then, out2, out2_row, one,
):  # fmt: skip
    """epilogue(A Bᵀ, Y) with B (N, K): :func:`fastbp.backends.cpu.gemm.product`, to the same bits."""
    if m == 1 and 1 < k <= MOST_SUMMED and b_row == k:
        sums_of_columns(n, k, pointer(a, int64(0), one), pointer(b, int64(0), one), pointer(out, int64(0), one))
    else:
        parts = (m + len(TURNED) - 1) // len(TURNED)
        for part in range(parts):
            i = m * part // parts
            rows = m * (part + 1) // parts - i
            _turned(
                rows, n, k, block, pointer(a, i * a_row, one), a_row, pointer(b, int64(0), one), b_row,
                pointer(out, i * out_row, one), out_row,
            )  # fmt: skip
    if code >= 0 or then >= 0:
        epilogue(m, n, out, out_row, code, y, y_row, y_step, then, out2, out2_row, one)


@kernel
def product_by_dots(n, k, a, b, b_row, out, code, y, y_step, then, out2, one):
    """epilogue(A Bᵀ, Y) with one row of A, and B (N, K): a few of its rows after the others.

    In an order of its own: nothing but products with few columns is made so, whether they have few rows or many.
    """
    for j in range(0, n, lanes_of(one)):
        count = min(lanes_of(one), n - j)
        _dots(count, k, pointer(a, int64(0), one), pointer(b, j * b_row, one), b_row, pointer(out, j, one))
    if code >= 0 or then >= 0:
        epilogue(int64(1), n, out, n, code, y, n, y_step, then, out2, n, one)


@kernel
def narrow_product_by_dots(
    m, n, k, how, a, a_row, b, b_row, out, out_row, code, y, y_row, y_step, then, out2, out2_row, scratch, one
):  # fmt: skip
    """epilogue(A B, Y) where B has few columns, with Bᵀ (N, K) if ``how`` has PACK_T: a vector of rows of A at a time.

    A tile would leave most of each vector empty. ``scratch`` has room for B and a vector.
    """
    lanes = lanes_of(one)
    sums, bias = pointer(scratch, int64(0), one), pointer(y, 0, one)
    if m < lanes and n <= MOST_SUMMED and not how & PACK_T and b_row == n:
        for i in range(m):
            to = pointer(out, i * out_row, one)
            dots_of_row(n, k, pointer(a, i * a_row, one), pointer(b, int64(0), one), sums)
            for j in range(n):
                store_at(to, j, load_at(sums, j) + (load_at(bias, j) if how & BIAS else one - one))
    else:
        if not how & PACK_T:
            turned = scratch + lanes * itemsize_of(one)
            for q in range(0, k, lanes):
                here, to = pointer(b, q * b_row, one), pointer(turned, q, one)
                simd.transpose_tile(min(lanes, k - q), n, to, k, here, b_row)
            b, b_row = turned, k
        for i in range(0, m, lanes):
            count = min(lanes, m - i)
            for j in range(n):
                _dots(count, k, pointer(b, j * b_row, one), pointer(a, i * a_row, one), a_row, sums)
                to, added = pointer(out, i * out_row + j, one), load_at(bias, j) if how & BIAS else one - one
                for r in range(count):
                    store_at(to, r * out_row, load_at(sums, r) + added)
    if code >= 0 or then >= 0:
        epilogue(m, n, out, out_row, code, y, y_row, y_step, then, out2, out2_row, one)
