"""Matrix products on the CPU: micro-kernel, packing, blocking, epilogue.

    C (M, N) = epilogue(A (M, K) B (K, N), Y)

A element (i, k) lies at a + i a_row + k a_col, so Aᵀ is a pair of strides. B is contiguous along its rows; it comes in
panels of :func:`panel_of` columns, element (k, j) at b + (j / panel) b_panel + k b_row + j % panel, so that a plain
matrix has b_panel = panel and one that was packed before has b_row = panel and b_panel = K panel. Rows of C are
contiguous.

The order of every sum is fixed by K and N alone: chains of fused multiply-adds over blocks of K (``block``, chosen in
binding.py), added in order. So an element of C has the same bits whatever tile computed it, in a batch of any size, on
any thread, and whatever was packed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastbp import scalars
from fastbp.backends.cpu import simd
from fastbp.backends.cpu.compiling import kernel
from fastbp.backends.cpu.simd import (
    I64,
    itemsize_of,
    lanes_of,
    map_binary,
    map_unary,
    pointer,
    shifted,
    update_vectors,
)

# Register tile: ROWS x VECTORS accumulators. 24 of 32 registers, or 12 of 16, leave room for a row of B and the
# broadcast of A, and give more than one FMA a load. For two vectors a row, tiles of 10 and 12 rows were no faster.
TILE_ROWS = 8 if simd.VECTOR_REGISTERS == 32 else 4
TILE_VECTORS = 3

# How a tile ends, and how a product is done: bits of one word.
ADD = 1  # what C held is added: it is the sum over earlier blocks of K
BIAS = 2  # a row is added to every row of C
SGD = 4  # C is the gradient of theta, and theta - rate C is all that is stored
PACK_A, PACK_B = 8, 16  # copy the part of A or B that is used next to memory that is contiguous
BY_STRIP = 32  # the epilogue comes after a strip of rows, not after each tile


def _variants() -> list[tuple[int, int, bool]]:
    """(rows, vectors, masked) of every tile; fewer rows for the ragged edge, a mask for fewer columns than a vector."""
    rows = [r for r in (8, 4, 2, 1) if r <= TILE_ROWS]
    return [(r, v, False) for r in rows for v in range(1, TILE_VECTORS + 1)] + [(r, 1, True) for r in rows]


@intrinsic
def _tile(
    typingctx: Any,
    rows: Any,
    vectors: Any,
    cols: Any,
    k: Any,
    a: Any,
    a_row: Any,
    a_col: Any,
    b: Any,
    b_row: Any,
    c: Any,
    c_row: Any,
    ending: Any,
    out: Any,
    out_row: Any,
    bias: Any,
    rate: Any,
) -> Any:
    """A tile (rows, cols) of A B in ``vectors`` vectors a row, with an ending: S = A B [+ C] [+ bias]; then

    out = S, or out -= rate S for SGD. C and out may be the same.

    The last vector ends with the last column, so it may overlap the one before it: those columns are computed twice,
    to the same bits, which costs less than masks (784-30-10 on 10 rows: see docs/design.md). A tile narrower than one
    vector is masked.
    """
    i64 = types.int64
    signature = types.void(i64, i64, i64, i64, a, i64, i64, b, i64, c, i64, i64, out, i64, bias, rate)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        rows, vectors, cols, k, a, a_row, a_col, b, b_row, c, c_row, ending, out, out_row, bias, rate = arguments
        m = simd.VectorEmitter(builder, str(sig.args[4].dtype))
        end = builder.append_basic_block("tile.end")
        masked = builder.zext(builder.icmp_signed("<", cols, I64(m.lanes)), I64)
        last = builder.sub(cols, I64(m.lanes))
        key = builder.add(builder.mul(rows, I64(8)), builder.add(builder.mul(vectors, I64(2)), masked))
        switch = builder.switch(key, end)
        for r, v, with_mask in _variants():
            block = builder.append_basic_block(f"tile{r}x{v}")
            switch.add_case(I64(8 * r + 2 * v + with_mask), block)
            builder.position_at_end(block)
            mask = m.mask(cols) if with_mask else None
            starts = [I64(j * m.lanes) for j in range(v - 1)] + [I64(0) if with_mask else last]
            sums = _emit_sums(m, r, starts, mask, k, a, a_row, a_col, b, b_row)
            _emit_ending(m, sums, starts, mask, c, c_row, ending, out, out_row, bias, rate)
            builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def _stack_tile(typingctx: Any, like: Any) -> Any:
    """Room for a tile on the stack of the calling function."""

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        m = simd.VectorEmitter(builder, str(sig.args[0]))
        room = cgutils.alloca_once(builder, ir.ArrayType(m.type, TILE_ROWS * TILE_VECTORS))
        return builder.bitcast(room, context.get_value_type(sig.return_type))

    return types.CPointer(like)(like), codegen


Sums = list[list[simd.Vector]]


def _emit_sums(
    m: simd.VectorEmitter,
    rows: int,
    columns: list[Any],
    mask: Any,
    k: Any,
    a: Any,
    a_row: Any,
    a_col: Any,
    b: Any,
    b_row: Any,
) -> Sums:
    """The micro-kernel: accumulators in registers over the whole of k, a row of B and one broadcast of A at a time.

    ``columns`` says where the vectors of a row begin; ``mask`` is for the only vector of a narrow tile.
    """
    builder, vectors = m.builder, len(columns)
    starts = [builder.gep(a, [builder.mul(I64(i), a_row)]) for i in range(rows)]
    entry = builder.block
    head = builder.append_basic_block("k.head")
    body = builder.append_basic_block("k.body")
    done = builder.append_basic_block("k.done")
    builder.branch(head)
    builder.position_at_end(head)
    index = builder.phi(I64)
    index.add_incoming(I64(0), entry)
    sums = [[builder.phi(m.type) for _ in range(vectors)] for _ in range(rows)]
    for row in sums:
        for s in row:
            s.add_incoming(m.constant(0.0), entry)
    builder.cbranch(builder.icmp_signed("<", index, k), body, done)

    builder.position_at_end(body)
    line = builder.gep(b, [builder.mul(index, b_row)])
    of_b = [m.load(builder.gep(line, [column]), mask) for column in columns]
    across = builder.mul(index, a_col)
    for i in range(rows):
        of_a = m.splat(builder.load(builder.gep(starts[i], [across])))
        for j in range(vectors):
            new = m.fma(of_a, of_b[j], simd.Vector(m, sums[i][j]))
            sums[i][j].add_incoming(new.value, body)
    index.add_incoming(builder.add(index, I64(1)), body)
    simd.keep_rolled(builder.branch(head))
    builder.position_at_end(done)
    return [[simd.Vector(m, s) for s in row] for row in sums]


def _emit_ending(
    m: simd.VectorEmitter,
    sums: Sums,
    columns: list[Any],
    mask: Any,
    c: Any,
    c_row: Any,
    ending: Any,
    out: Any,
    out_row: Any,
    bias: Any,
    rate: Any,
) -> None:
    """See :func:`_tile`. All of a row is read before any of it is written: the last two vectors may overlap."""
    builder = m.builder

    def has(bit: int) -> Any:
        return builder.icmp_signed("!=", builder.and_(ending, I64(bit)), I64(0))

    def places(base: Any, row: Any, i: int) -> list[Any]:
        return [builder.gep(base, [builder.add(builder.mul(I64(i), row), column)]) for column in columns]

    def added() -> Sums:
        return [
            [m.load(place, mask) + s for place, s in zip(places(c, c_row, i), row, strict=True)]
            for i, row in enumerate(sums)
        ]

    sums = _emit_if(m, has(ADD), sums, added)

    def biased() -> Sums:
        line = [m.load(builder.gep(bias, [column]), mask) for column in columns]
        return [[s + x for s, x in zip(row, line, strict=True)] for row in sums]

    sums = _emit_if(m, has(BIAS), sums, biased)

    def descended() -> Sums:
        h = (m.splat(rate),)
        rule = scalars.UPDATES["sgd"].formula
        return [
            [rule(m, h, m.load(place, mask), s)[0] for place, s in zip(places(out, out_row, i), row, strict=True)]
            for i, row in enumerate(sums)
        ]

    for i, row in enumerate(_emit_if(m, has(SGD), sums, descended)):
        for place, s in zip(places(out, out_row, i), row, strict=True):
            m.store(s, place, mask)


def _emit_if(m: simd.VectorEmitter, condition: Any, values: Sums, change: Callable[[], Sums]) -> Sums:
    """change() where the condition holds, else the values as they are."""
    builder = m.builder
    before = builder.block
    with builder.if_then(condition):
        changed = change()
        after = builder.block
    merged = []
    for old_row, new_row in zip(values, changed, strict=True):
        row = []
        for old, new in zip(old_row, new_row, strict=True):
            phi = builder.phi(m.type)
            phi.add_incoming(old.value, before)
            phi.add_incoming(new.value, after)
            row.append(simd.Vector(m, phi))
        merged.append(row)
    return merged


@intrinsic
def _copy_panel(typingctx: Any, rows: Any, vectors: Any, cols: Any, out: Any, x: Any, x_row: Any) -> Any:
    """out (rows, cols) with rows of ``vectors`` vectors = x (rows, cols), cols at most a panel."""
    signature = types.void(types.int64, types.int64, types.int64, out, x, types.int64)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        rows, vectors, cols, out, x, x_row = arguments
        m = simd.VectorEmitter(builder, str(sig.args[3].dtype))
        last = builder.mul(builder.sub(vectors, I64(1)), I64(m.lanes))
        mask = m.mask(builder.sub(cols, last))
        end = builder.append_basic_block("copy.end")
        switch = builder.switch(vectors, end)
        for v in range(1, TILE_VECTORS + 1):
            block = builder.append_basic_block(f"copy{v}")
            switch.add_case(I64(v), block)
            builder.position_at_end(block)
            with cgutils.for_range(builder, rows) as loop:
                here = builder.gep(x, [builder.mul(loop.index, x_row)])
                there = builder.gep(out, [builder.mul(loop.index, I64(v * m.lanes))])
                for j in range(v):
                    place = builder.gep(here, [I64(j * m.lanes)])
                    value = m.load(place, mask if j == v - 1 else None)
                    m.store(value, builder.gep(there, [I64(j * m.lanes)]))
            builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return signature, codegen


@kernel
def panel_of(one):
    """Columns of a panel."""
    return TILE_VECTORS * lanes_of(one)


@kernel
def _vectors_for(left, lanes):
    """Vectors of the next panel of columns, of ``left`` that remain."""
    return min((left + lanes - 1) // lanes, TILE_VECTORS)


@kernel
def _rows_for(left):
    """Rows of the next tile, of ``left`` that remain."""
    rows = TILE_ROWS
    while rows > left:
        rows //= 2
    return rows


@kernel
def tile(rows, vectors, cols, k, a, a_row, a_col, b, b_row, c, c_row, ending, out, out_row, bias, rate):
    _tile(rows, vectors, cols, k, a, a_row, a_col, b, b_row, c, c_row, ending, out, out_row, bias, rate)


@kernel
def copy_panel(rows, vectors, cols, out, x, x_row):
    _copy_panel(rows, vectors, cols, out, x, x_row)


# A row at a time: with the loop over rows inside the intrinsics 2-4-1 took 0.64 µs a step instead of 0.71, but the
# machine took 20 s to compile instead of 14.
@kernel
def apply_unary(code, n, out, x, x_step):
    map_unary(code, n, out, x, x_step)


@kernel
def apply_binary(code, n, out, x, x_step, y, y_step):
    map_binary(code, n, out, x, x_step, y, y_step)


@kernel
def apply_update(rule, n, theta, g, first, second, hyper):
    update_vectors(rule, n, theta, g, first, second, hyper)


@kernel
def epilogue(rows, cols, c, c_row, code, y, y_row, y_step, then, out2, out2_row, one):
    """C = BINARY[code](C, Y), then out2 = UNARY[then](C), on a part of C that is still in the first-level cache.

    A code of -1 leaves that part out. Y is broadcast by its strides. Where rows follow each other without a gap in all
    of them they are one long row: 10 rows of 30 sigmoids in one call take 0.4 ns each, a call a row 0.9 ns.
    """
    gapless = c_row == cols and (code < 0 or (y_row == cols and y_step == 1)) and (then < 0 or out2_row == cols)
    if gapless:
        cols *= rows
        rows = 1
    for i in range(rows):
        line = pointer(c, i * c_row, one)
        if code >= 0:
            apply_binary(code, cols, line, line, 1, pointer(y, i * y_row, one), y_step)
        if then >= 0:
            apply_unary(then, cols, pointer(out2, i * out2_row, one), line, 1)


@kernel
def product(
    m, n, k, block, longest, strip, how, accumulate, a, a_row, a_col, b, b_row, b_panel, out, out_row,
    code, y, y_row, y_step, then, out2, out2_row, rate, scratch, one,
):  # fmt: skip
    """out = epilogue(A B, Y), overwriting, or adding to what is there if ``accumulate``; or theta -= rate A B for SGD.

    Loops, from outside: strips of rows; stretches of ``longest`` of K (a multiple of ``block``); panels of columns;
    tiles; blocks of K. So a panel of B stays in the second-level cache for all tiles of a strip, and the sums of a tile
    in the first-level cache from block to block: with the blocks outside the tiles, reading and writing C again cost
    1024 x 1024 x 1024 4 to 6 % more time.

    Addresses are int64; ``one`` is a number of the dtype. ``scratch`` has room for a panel of B, then for a strip of A
    (K x rows, in panels), where they are packed. With SGD, K is one stretch: the sums of a tile stand on the stack.
    With BIAS, y is the bias and there is no code.
    """
    lanes = lanes_of(one)
    item = itemsize_of(one)
    panel = panel_of(one)
    bias = pointer(y, 0, one)
    top = 0
    while top < m:
        bottom = min(m, top + strip)
        start = 0
        while start == 0 or start < k:  # once for K = 0 too, which writes zeros
            length = min(k - start, longest)
            last = start + length >= k
            packed_a = scratch + longest * panel * item
            if how & PACK_A:
                i = top
                while i < bottom:
                    width = _vectors_for(bottom - i, lanes)
                    cols = min(bottom - i, width * lanes)
                    to = pointer(packed_a, (i - top) * length, one)
                    copy_panel(length, width, cols, to, pointer(a, i * a_row + start * a_col, one), a_col)
                    i += cols
            j = 0
            while j < n:
                vectors = _vectors_for(n - j, lanes)
                cols = min(n - j, vectors * lanes)
                of_b, step_b = b + (j // panel * b_panel + start * b_row) * item, b_row
                if how & PACK_B:
                    copy_panel(length, vectors, cols, pointer(scratch, 0, one), pointer(of_b, 0, one), b_row)
                    of_b, step_b = scratch, vectors * lanes
                i = top
                while i < bottom:
                    rows = _rows_for(bottom - i)
                    of_a, row_a, col_a = a + (i * a_row + start * a_col) * item, a_row, a_col
                    if how & PACK_A:
                        group = (i - top) // panel * panel
                        col_a = _vectors_for(bottom - top - group, lanes) * lanes
                        of_a, row_a = packed_a + (group * length + i - top - group) * item, 1
                    _tile_over_blocks(
                        rows, vectors, cols, start, length, last, block, how, accumulate, of_a, row_a, col_a,
                        of_b, step_b, pointer(out, i * out_row + j, one), out_row, shifted(bias, j), rate, one,
                    )  # fmt: skip
                    if last and (code >= 0 or then >= 0) and not how & BY_STRIP:
                        epilogue(
                            rows, cols, out + (i * out_row + j) * item, out_row, code,
                            y + (i * y_row + j * y_step) * item, y_row, y_step,
                            then, out2 + (i * out2_row + j) * item, out2_row, one,
                        )  # fmt: skip
                    i += rows
                j += cols
            start += longest
        if (code >= 0 or then >= 0) and how & BY_STRIP:
            epilogue(
                bottom - top, n, out + top * out_row * item, out_row, code, y + top * y_row * item, y_row, y_step,
                then, out2 + top * out2_row * item, out2_row, one,
            )  # fmt: skip
        top += strip


@kernel
def _tile_over_blocks(
    rows, vectors, cols, start, length, last, block, how, accumulate, a, a_row, a_col, b, b_row, out, out_row, bias,
    rate, one,
):  # fmt: skip
    """One tile over a stretch of K, a block after the other; the bias and the update come with the last one."""
    sums, sums_row = out, out_row
    if how & SGD:
        sums, sums_row = _stack_tile(one), panel_of(one)
    at = 0
    while at == 0 or at < length:
        here = min(block, length - at)
        ending = ADD if start + at > 0 or accumulate else 0
        to, to_row = sums, sums_row
        if last and at + here >= length:
            ending |= how & (BIAS | SGD)
            to, to_row = out, out_row
        of_a, of_b = pointer(a, at * a_col, one), pointer(b, at * b_row, one)
        tile(rows, vectors, cols, here, of_a, a_row, a_col, of_b, b_row, sums, sums_row, ending, to, to_row, bias, rate)
        at += block


@kernel
def product_update(rule, m, n, k, block, a, a_row, a_col, b, b_row, theta, first, second, hyper, one):
    """theta, first, second = UPDATES[rule] with the gradient A B, a tile at a time; for N up to one panel.

    The gradient is never stored: its tile goes from the registers to the stack and into the update. theta and the
    states are pointers to contiguous (M, N); A and B are addresses. With more than one panel a tile's rows would lie
    apart, and an update call for each costs more than it saves (784-30-10, batch 10: 18.2 µs a step instead of 14.8).
    """
    lanes = lanes_of(one)
    item = itemsize_of(one)
    gradient = _stack_tile(one)
    vectors = _vectors_for(n, lanes)
    i = 0
    while i < m:
        rows = _rows_for(m - i)
        _tile_over_blocks(
            rows, vectors, n, 0, k, 1, block, 0, 0, a + i * a_row * item, a_row, a_col, b, b_row,
            gradient, n, gradient, one, one,
        )  # fmt: skip
        at = i * n
        apply_update(rule, rows * n, shifted(theta, at), gradient, shifted(first, at), shifted(second, at), hyper)
        i += rows
