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

import functools
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import int64, types
from numba.core import cgutils
from numba.extending import intrinsic

from fastbp import scalars
from fastbp.backends.cpu import bf16, simd, target
from fastbp.backends.cpu.compiling import kernel
from fastbp.backends.cpu.simd import (
    itemsize_of,
    lanes_of,
    load_at,
    map_binary,
    map_ternary,
    map_unary,
    pointer,
    shifted,
    transpose_tile,
    update_vectors,
)
from fastbp.backends.cpu.target import HEIGHTS, NARROW, TILE_ROWS, TILE_VECTORS, TOGETHER
from fastbp.backends.cpu.vectors import I64, Vector, VectorEmitter
from fastbp.backends.cpu.words import ADD, BIAS, BY_STRIP, PACK_A, PACK_B, PACK_T, SGD

# Columns of A that are packed for all rows before the next ones: with narrow groups three of them read parts of a
# line, which stays in the first level meanwhile, if it has 8 ways: of columns a multiple of 4 KB apart it holds 8.
FIRST_LEVEL = 32768  # bytes
FEWEST_TOGETHER, MOST_TOGETHER = (8, 32) if NARROW else (1 << 30, 1 << 30)
UNROLLED = 4  # steps of K
GROUPS_TOGETHER = 8  # of A, if they have TILE_ROWS columns: three cache lines of each row in float32
OUTER_ELEMENTS = 2048  # of a product with K = 1, which are made before their epilogue


Multiply = Callable[[VectorEmitter, Vector, Vector, Vector], Vector]


@intrinsic
def _strip(
    typingctx: Any,
    m: Any,
    vectors: Any,
    cols: Any,
    k: Any,
    block: Any,
    begun: Any,
    ending: Any,
    a: Any,
    a_tile: Any,
    a_row: Any,
    a_col: Any,
    b: Any,
    b_row: Any,
    c: Any,
    c_row: Any,
    out: Any,
    out_row: Any,
    bias: Any,
    rate: Any,
) -> Any:
    """A strip (m, cols) of A B, tile after tile, each of them block after block: S = A B [+ C if begun] [+ bias]; then

    out = S, or out -= rate S, according to the bits of ``ending``. C and out may be the same; if they are not, C is a
    tile, where the sums of a tile stand until its last block (c_row then counts from there for every tile).

    The last vector ends with the last column, so it may overlap the one before it: those columns are computed twice,
    to the same bits, which costs less than masks (784-30-10 on 10 rows: see docs/design.md). A tile narrower than one
    vector is masked. The loops over tiles and blocks are in here because a call a tile took 784 x 32 x 10 7.5 µs
    instead of 5.0.
    """
    return _strip_signature(a, b, c, out, bias, rate), _emit_strips(lambda m, x, y, total: m.fma(x, y, total))


@intrinsic
def _strip_of_pairs(
    typingctx: Any,
    m: Any,
    vectors: Any,
    cols: Any,
    k: Any,
    block: Any,
    begun: Any,
    ending: Any,
    a: Any,
    a_tile: Any,
    a_row: Any,
    a_col: Any,
    b: Any,
    b_row: Any,
    c: Any,
    c_row: Any,
    out: Any,
    out_row: Any,
    bias: Any,
    rate: Any,
) -> Any:
    """:func:`_strip` where A and B hold bfloat16 pairs and k counts them."""
    return _strip_signature(a, b, c, out, bias, rate), _emit_strips(bf16.dot_pairs if bf16.works_for(a) else None)


def _strip_signature(a: Any, b: Any, c: Any, out: Any, bias: Any, rate: Any) -> Any:
    i64 = types.int64
    return types.void(i64, i64, i64, i64, i64, i64, i64, a, i64, i64, i64, b, i64, c, i64, out, i64, bias, rate)


def _emit_strips(multiply: Multiply | None) -> Callable[..., Any]:
    """The code of a strip, by the number of its vectors; none without a multiplication."""

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        if multiply is None:
            return context.get_dummy_value()
        m, vectors, cols, *rest = arguments
        emitter = VectorEmitter(builder, str(sig.args[7].dtype))
        lanes = I64(emitter.lanes)
        end = builder.append_basic_block("strip.end")
        masked = builder.zext(builder.icmp_signed("<", cols, lanes), I64)
        switch = builder.switch(builder.add(builder.mul(vectors, I64(2)), masked), end)
        for v, with_mask in [(v, False) for v in range(1, TILE_VECTORS + 1)] + [(1, True)]:
            block = builder.append_basic_block(f"strip{v}")
            switch.add_case(I64(2 * v + with_mask), block)
            builder.position_at_end(block)
            mask = emitter.mask(cols) if with_mask else None
            last = I64(0) if with_mask else builder.sub(cols, lanes)
            columns = [I64(j * emitter.lanes) for j in range(v - 1)] + [last]
            _emit_strip(emitter, multiply, m, cols, columns, mask, *rest)
            builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return codegen


def _emit_strip(
    m: VectorEmitter, multiply: Multiply, height: Any, cols: Any, columns: list[Any], mask: Any, *rest: Any
) -> None:
    """Tiles of TILE_ROWS rows as long as there are so many, then lower ones.

    Where there are tiles of every height the last two are of about the same: a tile with few accumulators waits for
    each of its multiply-adds. 10 rows are done as 5 and 5.
    """
    builder = m.builder
    layouts = _layouts(m, columns, mask, *rest)
    done = cgutils.alloca_once(builder, I64)
    builder.store(I64(0), done)
    even = HEIGHTS[1] == TILE_ROWS - 1
    for rows in HEIGHTS:
        head = builder.append_basic_block(f"rows{rows}")
        body = builder.append_basic_block(f"rows{rows}.body")
        after = builder.append_basic_block(f"rows{rows}.end")
        builder.branch(head)
        builder.position_at_end(head)
        i = builder.load(done)
        left = builder.sub(height, i)
        fits = builder.icmp_signed(">=", left, I64(2 * rows - 1 if even else rows))
        builder.cbranch(builder.or_(fits, builder.icmp_signed("==", left, I64(rows))), body, after)
        builder.position_at_end(body)
        found = layouts if rows == TILE_ROWS else []
        _emit_tile(m, multiply, i, rows, height, cols, columns, mask, found, *rest)
        builder.store(builder.add(i, I64(rows)), done)
        simd.keep_rolled(builder.branch(head))
        builder.position_at_end(after)


def _emit_tile(
    m: VectorEmitter,
    multiply: Multiply,
    i: Any,
    rows: int,
    height: Any,
    cols: Any,
    columns: list[Any],
    mask: Any,
    layouts: list[Layout],
    k: Any,
    block: Any,
    begun: Any,
    ending: Any,
    a: Any,
    a_tile: Any,
    a_row: Any,
    a_col: Any,
    b: Any,
    b_row: Any,
    c: Any,
    c_row: Any,
    out: Any,
    out_row: Any,
    bias: Any,
    rate: Any,
) -> None:
    """Tile i … of the strip: block after block of K, once for K = 0 too, which writes zeros."""
    builder = m.builder
    zero = I64(0)
    in_place = builder.icmp_signed("==", builder.ptrtoint(c, I64), builder.ptrtoint(out, I64))
    of_a = builder.gep(a, [builder.mul(i, a_tile)])
    of_out = builder.gep(out, [builder.mul(i, out_row)])
    of_c = builder.select(in_place, of_out, c)
    entry = builder.block
    body = builder.append_basic_block("block")
    done = builder.append_basic_block("block.end")
    builder.branch(body)
    builder.position_at_end(body)
    at = builder.phi(I64)
    at.add_incoming(zero, entry)
    left = builder.sub(k, at)
    final = builder.icmp_signed("<=", left, block)
    length = builder.select(final, left, block)
    line, column = builder.gep(b, [builder.mul(at, b_row)]), builder.gep(of_a, [builder.mul(at, a_col)])
    of_b = (line, b_row)
    sums = _emit_sums(m, multiply, rows, columns, mask, layouts, (of_out, out_row), length, column, a_row, a_col, *of_b)
    adds = builder.or_(builder.icmp_signed(">", at, zero), builder.icmp_signed("!=", begun, zero))
    bits = builder.or_(builder.select(adds, I64(ADD), zero), builder.select(final, ending, zero))
    to, to_row = builder.select(final, of_out, of_c), builder.select(final, out_row, c_row)
    left = builder.sub(height, builder.add(i, I64(rows - 1)))  # rows of the strip from the tile's last one on
    spill = builder.and_(
        builder.icmp_signed("==", to_row, cols), builder.icmp_signed(">=", builder.mul(left, cols), I64(m.lanes))
    )
    _emit_ending(m, sums, columns, mask, spill, of_c, c_row, bits, to, to_row, bias, rate)
    at.add_incoming(builder.add(at, block), builder.block)
    builder.cbranch(final, done, body)
    builder.position_at_end(done)


@intrinsic
def stack_tile(typingctx: Any, like: Any) -> Any:
    """Room for a tile on the stack of the calling function."""

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        m = VectorEmitter(builder, str(sig.args[0]))
        room = cgutils.alloca_once(builder, ir.ArrayType(m.type, TILE_ROWS * TILE_VECTORS))
        return builder.bitcast(room, context.get_value_type(sig.return_type))

    return types.CPointer(like)(like), codegen


Sums = list[list[Vector]]
# whether operands are laid out so; the place of element (i, at) of A, by builder, A, and its first columns' places
Layout = tuple[Any, Callable[[Any, Any, list[Any], int, Any], Any]]


def _layouts(m: VectorEmitter, columns: list[Any], mask: Any, *rest: Any) -> list[Layout]:
    """Layouts of operands for which whole tiles have unrolled loops: B in packed panels, A by rows or packed too.

    With 16 registers: distances are known there, and a step of an unrolled loop takes 21 instructions; the loop for
    any distances takes 24. The product 512 x 128 x 128 took 0.97 of its time then, and 0.9 where the core was shared
    with another thread.
    """
    if not NARROW or mask is not None or len(columns) != TILE_VECTORS:
        return []
    builder = m.builder
    _, _, _, _, _, _, a_row, a_col, _, b_row, *_ = rest  # k, block, begun, ending, a, …, as :func:`_emit_tile` has them

    def are(*distances: tuple[Any, int]) -> Any:
        found = [builder.icmp_signed("==", distance, I64(known)) for distance, known in distances]
        return functools.reduce(builder.and_, found)

    panel = TILE_VECTORS * m.lanes
    packed = are((b_row, panel), (columns[-1], panel - m.lanes))
    by_rows = builder.and_(packed, are((a_col, 1)))
    in_groups = builder.and_(packed, are((a_row, 1), (a_col, TILE_ROWS)))
    return [
        (by_rows, lambda builder, a, starts, i, at: builder.gep(starts[i], [at])),
        (
            in_groups,
            lambda builder, a, starts, i, at: builder.gep(a, [builder.add(builder.mul(at, I64(TILE_ROWS)), I64(i))]),
        ),
    ]


def _emit_sums(
    m: VectorEmitter,
    multiply: Multiply,
    rows: int,
    columns: list[Any],
    mask: Any,
    layouts: list[Layout],
    coming: tuple[Any, Any],
    k: Any,
    a: Any,
    a_row: Any,
    a_col: Any,
    b: Any,
    b_row: Any,
) -> Sums:
    """The micro-kernel: accumulators in registers over the whole of k, a row of B and one broadcast of A at a time.

    ``columns`` says where the vectors of a row begin; ``mask`` is for the only vector of a narrow tile. LLVM is not
    told how far apart the rows of A lie: it would let one pointer step from row to row, and six additions that wait for
    each other take as long as the twelve multiply-adds of a tile.

    ``layouts`` have loops of their own, and ask for the tile's lines of C, ``coming`` and so many elements from row to
    row: 784 x 512 x 256 with SGD took 0.9 of its time then.
    """
    builder, vectors = m.builder, len(columns)
    starts = [simd.opaque(builder, builder.gep(a, [builder.mul(I64(i), a_row)])) for i in range(rows)]
    zeros = [[Vector(m, m.constant(0.0)) for _ in columns] for _ in range(rows)]
    done = builder.append_basic_block("k.done")
    found: list[tuple[Any, Sums]] = []  # sums, and the block that they come from

    def added(sums: Sums, of_b: list[Any], of_a: list[Any]) -> Sums:
        """What stands there in a row of B and a column of A, multiplied and added."""
        row_of_b = [m.load(place, mask) for place in of_b]
        splats = (m.splat(builder.load(place)) for place in of_a)
        return [
            [multiply(m, x, y, s) for y, s in zip(row_of_b, row, strict=True)]
            for x, row in zip(splats, sums, strict=True)
        ]

    def in_layout(place_of_a: Callable[..., Any], steps: int) -> Callable[[Any, Sums], Sums]:
        def turn(index: Any, sums: Sums) -> Sums:
            line = builder.gep(b, [builder.mul(index, I64(vectors * m.lanes))])
            for step in range(steps):
                of_b = [builder.gep(line, [I64((step * vectors + j) * m.lanes)]) for j in range(vectors)]
                at = builder.add(index, I64(step))
                sums = added(sums, of_b, [place_of_a(builder, a, starts, i, at) for i in range(rows)])
            return sums

        return turn

    for fits, place_of_a in layouts:
        known, other = builder.append_basic_block("k.known"), builder.append_basic_block("k.other")
        builder.cbranch(builder.and_(fits, builder.icmp_signed(">=", k, I64(UNROLLED))), known, other)
        builder.position_at_end(known)
        row = simd.opaque(builder, coming[0])  # else addresses are worked out ahead, for other layouts too
        for _ in range(rows):
            for column in (I64(0), I64(vectors * m.lanes - 1)):
                simd.prefetch(builder, builder.gep(row, [column]), level=1, to_write=True)
            row = builder.gep(row, [coming[1]])
        index, sums = _emit_turns(m, I64(0), k, UNROLLED, zeros, in_layout(place_of_a, UNROLLED))
        index = simd.opaque(builder, index)  # else the first loop carries on what the second will need
        _, sums = _emit_turns(m, index, k, 1, sums, in_layout(place_of_a, 1))
        found.append((builder.block, sums))
        builder.branch(done)
        builder.position_at_end(other)

    def turn(index: Any, sums: Sums) -> Sums:
        line, across = builder.gep(b, [builder.mul(index, b_row)]), builder.mul(index, a_col)
        return added(sums, [builder.gep(line, [c]) for c in columns], [builder.gep(s, [across]) for s in starts])

    _, sums = _emit_turns(m, I64(0), k, 1, zeros, turn)
    found.append((builder.block, sums))
    builder.branch(done)
    builder.position_at_end(done)
    return _emit_phis(m, found)


def _emit_turns(
    m: VectorEmitter, start: Any, k: Any, steps: int, sums: Sums, turn: Callable[[Any, Sums], Sums]
) -> tuple[Any, Sums]:
    """A loop from ``start`` on, as long as that many steps remain of k; where it stops, and the sums there."""
    builder = m.builder
    entry = builder.block
    head, body, end = (builder.append_basic_block(f"k.{name}") for name in ("head", "body", "end"))
    builder.branch(head)
    builder.position_at_end(head)
    index = builder.phi(I64)
    index.add_incoming(start, entry)
    begun = _emit_phis(m, [(entry, sums)])
    following = builder.add(index, I64(steps))
    builder.cbranch(builder.icmp_signed("<=", following, k), body, end)
    builder.position_at_end(body)
    for row, new in zip(begun, turn(index, begun), strict=True):
        for s, x in zip(row, new, strict=True):
            s.value.add_incoming(x.value, body)
    index.add_incoming(following, body)
    simd.keep_rolled(builder.branch(head))
    builder.position_at_end(end)
    return index, begun


def _emit_phis(m: VectorEmitter, found: list[tuple[Any, Sums]]) -> Sums:
    """The sums of the block that control came from."""
    merged = [[Vector(m, m.builder.phi(m.type)) for _ in row] for row in found[0][1]]
    for block, sums in found:
        for row, new in zip(merged, sums, strict=True):
            for s, x in zip(row, new, strict=True):
                s.value.add_incoming(x.value, block)
    return merged


def _emit_ending(
    m: VectorEmitter,
    sums: Sums,
    columns: list[Any],
    mask: Any,
    spill: Any,
    c: Any,
    c_row: Any,
    ending: Any,
    out: Any,
    out_row: Any,
    bias: Any,
    rate: Any,
) -> None:
    """S = sums [+ C] [+ bias], then out = S or out -= rate S, by the bits of ``ending``.

    All of a row is read before any of it is written: the last two vectors may overlap. A narrow row may ``spill`` over
    into the next ones, if these are the strip's: what they hold is read before and written again, since a masked store
    takes some 20 cycles on AMD's cores with AVX2.
    """
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

    sums = _emit_if(m, has(SGD), sums, descended)

    def stored(mask: Any) -> None:
        for i, row in enumerate(sums):
            for place, s in zip(places(out, out_row, i), row, strict=True):
                m.store(s, place, mask)

    if mask is None or target.VECTOR_BYTES == 64:
        stored(mask)
        return
    with builder.if_else(spill) as (whole, masked):
        with whole:
            ends = [places(out, out_row, i)[0] for i in range(len(sums))]
            found = [m.load(place) for place in ends]
            for place, (s,), old in zip(ends, sums, found, strict=True):
                m.store(Vector(m, builder.select(mask, s.value, old.value)), place)
        with masked:
            stored(mask)


def _emit_if(m: VectorEmitter, condition: Any, values: Sums, change: Callable[[], Sums]) -> Sums:
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
            row.append(Vector(m, phi))
        merged.append(row)
    return merged


@intrinsic
def _copy_panel(typingctx: Any, rows: Any, vectors: Any, cols: Any, out: Any, pitch: Any, x: Any, x_row: Any) -> Any:
    """out (rows, cols) with rows ``pitch`` elements apart = x (rows, cols), cols at most a panel.

    Whole vectors are written, row after row, so the last one may go beyond its row.
    """
    signature = types.void(types.int64, types.int64, types.int64, out, types.int64, x, types.int64)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        rows, vectors, cols, out, pitch, x, x_row = arguments
        m = VectorEmitter(builder, str(sig.args[3].dtype))
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
                there = builder.gep(out, [builder.mul(loop.index, pitch)])
                for j in range(v):
                    place = builder.gep(here, [I64(j * m.lanes)])
                    value = m.load(place, mask if j == v - 1 else None)
                    m.store(value, builder.gep(there, [I64(j * m.lanes)]))
            builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def _copy_panels(typingctx: Any, rows: Any, out: Any, x: Any, x_row: Any) -> Any:
    """TOGETHER whole panels of x, each ``rows`` rows without a gap, one after the other in out."""
    signature = types.void(types.int64, out, x, types.int64)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        rows, out, x, x_row = arguments
        m = VectorEmitter(builder, str(sig.args[1].dtype))
        panel = TILE_VECTORS * m.lanes
        starts = [builder.gep(out, [builder.mul(rows, I64(q * panel))]) for q in range(TOGETHER)]
        with cgutils.for_range(builder, rows) as loop:
            here = builder.gep(x, [builder.mul(loop.index, x_row)])
            for q, start in enumerate(starts):
                there = builder.gep(start, [builder.mul(loop.index, I64(panel))])
                for j in range(TILE_VECTORS):
                    value = m.load(builder.gep(here, [I64(q * panel + j * m.lanes)]))
                    m.store(value, builder.gep(there, [I64(j * m.lanes)]))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def _copy_groups(typingctx: Any, rows: Any, out: Any, apart: Any, x: Any, x_row: Any) -> Any:
    """GROUPS_TOGETHER groups of TILE_ROWS columns of x, each ``rows`` rows without a gap, ``apart`` elements apart.

    Whole vectors are read and written: what they have beyond a group's row is written over by its next one, and after
    the last one there is room. So x has that many columns more.
    """
    signature = types.void(types.int64, out, types.int64, x, types.int64)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        rows, out, apart, x, x_row = arguments
        m = VectorEmitter(builder, str(sig.args[1].dtype))
        starts = [builder.gep(out, [builder.mul(apart, I64(g))]) for g in range(GROUPS_TOGETHER)]
        with cgutils.for_range(builder, rows) as loop:
            here = builder.gep(x, [builder.mul(loop.index, x_row)])
            at = builder.mul(loop.index, I64(TILE_ROWS))
            for g, start in enumerate(starts):
                for j in range(0, TILE_ROWS, m.lanes):
                    value = m.load(builder.gep(here, [I64(g * TILE_ROWS + j)]))
                    m.store(value, builder.gep(start, [builder.add(at, I64(j))]))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def _outer_row(typingctx: Any, n: Any, x: Any, y: Any, out: Any) -> Any:
    """out_j = 0 + x y_j for j < n: a row of a product with K = 1, to the bits of :func:`_strip`."""
    signature = types.void(types.int64, x, y, out)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        n, x, y, out = arguments
        m = VectorEmitter(builder, str(sig.args[1]))
        factor, zero = m.splat(x), Vector(m, m.constant(0.0))

        def body(j: Any, mask: Any) -> None:
            m.store(m.fma(factor, m.load(builder.gep(y, [j]), mask), zero), builder.gep(out, [j]), mask)

        simd.vector_loop(m, n, body)
        return context.get_dummy_value()

    return signature, codegen


@kernel
def panel_of(one):
    """Columns of a panel."""
    return TILE_VECTORS * lanes_of(one)


group_of, room_for_group = kernel(target.group_of), kernel(target.room_for_group)


@kernel
def vectors_for(left, lanes):
    """Vectors of the next panel of columns, of ``left`` that remain."""
    return min((left + lanes - 1) // lanes, TILE_VECTORS)


@kernel
def strip_of_tiles(
    m, vectors, cols, k, block, begun, ending, a, a_tile, a_row, a_col, b, b_row, c, c_row, out, out_row, bias, rate
):  # fmt: skip
    _strip(
        m, vectors, cols, k, block, begun, ending, a, a_tile, a_row, a_col, b, b_row, c, c_row, out, out_row, bias, rate
    )  # fmt: skip


@kernel
def strip_of_pairs(
    m, vectors, cols, k, block, begun, ending, a, a_tile, a_row, a_col, b, b_row, c, c_row, out, out_row, bias, rate
):  # fmt: skip
    _strip_of_pairs(
        m, vectors, cols, k, block, begun, ending, a, a_tile, a_row, a_col, b, b_row, c, c_row, out, out_row, bias, rate
    )  # fmt: skip


@kernel
def copy_panel(rows, vectors, cols, out, pitch, x, x_row):
    _copy_panel(rows, vectors, cols, out, pitch, x, x_row)


@kernel
def copy_panels(rows, out, x, x_row):
    _copy_panels(rows, out, x, x_row)


@kernel
def copy_groups(rows, out, apart, x, x_row):
    _copy_groups(rows, out, apart, x, x_row)


@kernel
def copy_panel_transposed(rows, vectors, cols, out, x, x_row, one):
    """out (rows, cols) with rows of ``vectors`` vectors = xᵀ, x (cols, rows); out and x are addresses."""
    lanes = lanes_of(one)
    width = vectors * lanes
    for j in range(0, cols, lanes):
        for i in range(0, rows, lanes):
            to, source = pointer(out, i * width + j, one), pointer(x, j * x_row + i, one)
            transpose_tile(min(lanes, cols - j), min(lanes, rows - i), to, width, source, x_row)


# A row at a time: with the loop over rows inside the intrinsics 2-4-1 took 0.64 µs a step instead of 0.71, but the
# machine took 20 s to compile instead of 14.
@kernel
def apply_unary(code, n, out, x, x_step):
    map_unary(code, n, out, x, x_step)


@kernel
def apply_binary(code, n, out, x, x_step, y, y_step, scale):
    map_binary(code, n, out, x, x_step, y, y_step, scale)


@kernel
def apply_ternary(code, n, out, x, x_step, y, y_step, z, z_step):
    map_ternary(code, n, out, x, x_step, y, y_step, z, z_step)


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
            apply_binary(code, cols, line, line, int64(1), pointer(y, i * y_row, one), y_step, one)
        if then >= 0:
            apply_unary(then, cols, pointer(out2, i * out2_row, one), line, int64(1))


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

    Addresses are int64; ``one`` is a number of the dtype. ``scratch`` has room for TOGETHER panels of B, then for a
    strip of A (K x rows, in groups), where they are packed. With SGD, K is one stretch: the sums of a tile stand on the
    stack. With BIAS, y is the bias and there is no code.
    """
    lanes = lanes_of(one)
    item = itemsize_of(one)
    panel = panel_of(one)
    bias = pointer(y, 0, one)
    gradient = stack_tile(one)
    has_epilogue = code >= 0 or then >= 0
    if k == 1 and n > panel and b_panel == panel and not (accumulate or how & (BIAS | SGD | PACK_A)):
        rows = max(int64(1), OUTER_ELEMENTS // n)
        for i in range(0, m, rows):
            rows = min(rows, m - i)
            for r in range(i, i + rows):
                _outer_row(
                    n, load_at(pointer(a, r * a_row, one), 0), pointer(b, 0, one), pointer(out, r * out_row, one)
                )
            if has_epilogue:
                epilogue(
                    rows, n, out + i * out_row * item, out_row, code, y + i * y_row * item, y_row, y_step,
                    then, out2 + i * out2_row * item, out2_row, one,
                )  # fmt: skip
        return
    if how & PACK_T and how & BY_STRIP:  # all of B at once, for it stays in the second-level cache
        for j in range(0, n, panel):
            to = scratch + j * k * item
            copy_panel_transposed(k, int64(TILE_VECTORS), min(n - j, panel), to, b + j * b_row * item, b_row, one)
        b, b_row, b_panel, how = scratch, panel, k * panel, how - PACK_T
    # rows that go into one call: what is packed together, or a tile, if its epilogue shall find it in the cache
    group = group_of(panel)
    in_tiles = group == TILE_ROWS
    step = TILE_ROWS if has_epilogue and not how & BY_STRIP else strip
    if how & PACK_A and not in_tiles:
        step = group
    top = 0
    while top < m:
        bottom = min(m, top + strip)
        start = 0
        while start == 0 or start < k:  # once for K = 0 too, which writes zeros
            length = min(k - start, longest)
            last = start + length >= k
            packed_a, room = scratch + longest * TOGETHER * panel * item, room_for_group(length, group, lanes)
            if how & PACK_A:
                begun = top  # columns before it are packed
                while in_tiles and bottom - begun >= GROUPS_TOGETHER * group + lanes:
                    to = packed_a + (begun - top) // group * room * item
                    source = pointer(a, begun * a_row + start * a_col, one)
                    copy_groups(length, pointer(to, 0, one), room, source, a_col)
                    begun += GROUPS_TOGETHER * group
                stride = a_col * item
                together = max(FEWEST_TOGETHER, min(MOST_TOGETHER, FIRST_LEVEL // max(1, stride & -stride)))
                for q in range(0, length, together):  # in the order of memory, but for a few rows at a time
                    deep = min(together, length - q)
                    to, i = packed_a + ((begun - top) // group * room + q * group) * item, begun
                    while i < bottom:
                        cols = min(bottom - i, group)
                        source = pointer(a, i * a_row + (start + q) * a_col, one)
                        copy_panel(deep, vectors_for(cols, lanes), cols, pointer(to, 0, one), group, source, a_col)
                        to += room * item
                        i += cols
            j = first = ready = int64(0)  # panels from column ``first`` on, and before ``ready``, are packed
            while j < n:
                vectors = vectors_for(n - j, lanes)
                cols = min(n - j, vectors * lanes)
                of_b, step_b = b + (j // panel * b_panel + start * b_row) * item, b_row
                if how & PACK_T:
                    copy_panel_transposed(length, vectors, cols, scratch, b + (j * b_row + start) * item, b_row, one)
                    of_b, step_b = scratch, vectors * lanes
                if how & PACK_B:
                    step_b = vectors * lanes
                    if j >= ready:
                        first = j
                        if n - j >= TOGETHER * panel:
                            ready = j + TOGETHER * panel
                            copy_panels(length, pointer(scratch, 0, one), pointer(of_b, 0, one), b_row)
                        else:
                            ready = j + cols
                            copy_panel(
                                length, vectors, cols, pointer(scratch, 0, one), step_b, pointer(of_b, 0, one), b_row
                            )  # fmt: skip
                    of_b = scratch + (j - first) * length * item
                ending = how & (BIAS | SGD) if last else 0
                i = top
                while i < bottom:
                    rows = min(bottom - i, step)
                    of_a, tile_a, row_a, col_a = a + (i * a_row + start * a_col) * item, a_row, a_row, a_col
                    if how & PACK_A:
                        of_a = packed_a + (i - top) // group * room * item
                        tile_a, row_a, col_a = room // group if in_tiles else int64(1), int64(1), group
                        if rows > group:
                            rows -= rows % group
                    to = pointer(out, i * out_row + j, one)
                    sums, sums_row = to, out_row
                    if how & SGD:
                        sums, sums_row = gradient, panel
                    strip_of_tiles(
                        rows, vectors, cols, length, block, start + accumulate, ending,
                        pointer(of_a, 0, one), tile_a, row_a, col_a, pointer(of_b, 0, one), step_b,
                        sums, sums_row, to, out_row, shifted(bias, j), rate,
                    )  # fmt: skip
                    if last and has_epilogue and not how & BY_STRIP:
                        epilogue(
                            rows, cols, out + (i * out_row + j) * item, out_row, code,
                            y + (i * y_row + j * y_step) * item, y_row, y_step,
                            then, out2 + (i * out2_row + j) * item, out2_row, one,
                        )  # fmt: skip
                    i += rows
                j += cols
            start += longest
        if has_epilogue and how & BY_STRIP:
            epilogue(
                bottom - top, n, out + top * out_row * item, out_row, code, y + top * y_row * item, y_row, y_step,
                then, out2 + top * out2_row * item, out2_row, one,
            )  # fmt: skip
        top += strip


@kernel
def product_of_pairs(
    m, n, k, block, longest, how, a, a_row, a_col, b, b_row, out, out_row,
    code, y, y_row, y_step, then, out2, out2_row, rate, scratch, one,
):  # fmt: skip
    """:func:`product` in bfloat16, float32 only: all rows are one strip, A and B are always packed.

    ``longest`` is even. ``scratch`` has room for a panel of B and for all of A, as pairs along K: A row by row, or Aᵀ
    in panels of rows.
    """
    panel = panel_of(one)
    bias = pointer(y, 0, one)
    gradient = stack_tile(one)
    has_epilogue = code >= 0 or then >= 0
    packed_a = scratch + longest // 2 * panel * 4
    start = int64(0)
    while start < k:
        length = min(k - start, longest)
        pairs = (length + 1) // 2
        last = start + length >= k
        if a_row == 1:
            for i in range(0, m, panel):
                width = vectors_for(m - i, bf16.LANES)
                source = pointer(a, i + start * a_col, one)
                bf16.pairs_down(length, width, min(m - i, panel), pointer(packed_a, i * pairs, one), source, a_col)
        else:
            for i in range(m):
                bf16.pairs_across(length, pointer(packed_a, i * pairs, one), pointer(a, i * a_row + start, one))
        for j in range(0, n, panel):
            vectors, cols = vectors_for(n - j, bf16.LANES), min(n - j, panel)
            if how & PACK_T:
                bf16.pairs_transposed(length, vectors, cols, scratch, b + (j * b_row + start) * 4, b_row, one)
            else:
                of_b = pointer(b, start * b_row + j, one)
                bf16.pairs_down(length, vectors, cols, pointer(scratch, 0, one), of_b, b_row)
            ending = how & (BIAS | SGD) if last else 0
            step = TILE_ROWS if has_epilogue else panel
            for i in range(0, m, step):
                rows = min(m - i, step)
                of_a, row_a, col_a = packed_a + i * pairs * 4, pairs, 1
                if a_row == 1:
                    group = i // panel * panel
                    of_a, row_a = packed_a + (group * pairs + i - group) * 4, 1
                    col_a = vectors_for(m - group, bf16.LANES) * bf16.LANES
                to = pointer(out, i * out_row + j, one)
                sums, sums_row = to, out_row
                if how & SGD:
                    sums, sums_row = gradient, panel
                strip_of_pairs(
                    rows, vectors, cols, pairs, block, start, ending, pointer(of_a, 0, one), row_a, row_a, col_a,
                    pointer(scratch, 0, one), vectors * bf16.LANES, sums, sums_row, to, out_row, shifted(bias, j), rate,
                )  # fmt: skip
                if last and has_epilogue:
                    epilogue(
                        rows, cols, out + (i * out_row + j) * 4, out_row, code,
                        y + (i * y_row + j * y_step) * 4, y_row, y_step,
                        then, out2 + (i * out2_row + j) * 4, out2_row, one,
                    )  # fmt: skip
        start += longest


@kernel
def row_of_ones(n, k, block, how, accumulate, one_at, b, b_row, b_panel, out, rate, one):
    """out (1, N) = a row of ones times B, like a row of :func:`product`; ``one_at`` is the address of a one."""
    lanes = lanes_of(one)
    panel = panel_of(one)
    gradient = stack_tile(one)
    for j in range(0, n, panel):
        to = pointer(out, j, one)
        sums = gradient if how & SGD else to
        cols = min(n - j, panel)
        strip_of_tiles(
            int64(1), vectors_for(cols, lanes), cols, k, block, accumulate, how & SGD,
            pointer(one_at, 0, one), int64(0), int64(0), int64(0),
            pointer(b, j // panel * b_panel, one), b_row, sums, panel, to, panel, to, rate,
        )  # fmt: skip


@kernel
def product_update(rule, m, n, k, block, a, a_row, a_col, b, b_row, theta, first, second, hyper, one):
    """theta, first, second = UPDATES[rule] with the gradient A B, a tile at a time; for N up to one panel.

    The gradient is never stored: its tile goes from the registers to the stack and into the update. theta and the
    states are pointers to contiguous (M, N); A and B are addresses. With more than one panel a tile's rows would lie
    apart, and an update call for each costs more than it saves (784-30-10, batch 10: 18.2 µs a step instead of 14.8).
    """
    lanes = lanes_of(one)
    gradient = stack_tile(one)
    vectors = vectors_for(n, lanes)
    i = 0
    while i < m:
        rows = min(TILE_ROWS, m - i)
        strip_of_tiles(
            rows, vectors, n, k, block, int64(0), int64(0), pointer(a, i * a_row, one), a_row, a_row, a_col,
            pointer(b, 0, one), b_row,
            gradient, n, gradient, n, gradient, one,
        )  # fmt: skip
        at = i * n
        apply_update(rule, rows * n, shifted(theta, at), gradient, shifted(first, at), shifted(second, at), hyper)
        i += rows
