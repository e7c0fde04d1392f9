"""Matrix products on the CPU: micro-kernel, blocking, epilogue.

    C (M, N) = epilogue(A (M, K) B (K, N), Y)

A element (i, k) lies at a + i a_row + k a_col, so Aᵀ is a pair of strides; rows of B and C are contiguous.

The order of every sum is fixed by K alone: chains of fused multiply-adds over blocks of about K_BLOCK, added in
order. So an element of C has the same bits whatever tile computed it, in a batch of any size, on any thread. One chain
over all of K would do as well, but its rounding error grows faster; blocks of 256 cost next to nothing (a step of
1024x4: 249 ms against 245 with 512 and 257 with 128).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

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
K_BLOCK = 256


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
    add: Any,
) -> Any:
    """C tile (rows, cols) = A B, or += if add, in ``vectors`` vectors a row.

    The last vector ends with the last column, so it may overlap the one before it: those columns are computed twice,
    to the same bits, which costs less than masks (784-30-10 on 10 rows: see docs/design.md). A tile narrower than one
    vector is masked.
    """
    i64 = types.int64
    signature = types.void(i64, i64, i64, i64, a, i64, i64, b, i64, c, i64, i64)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        rows, vectors, cols, k, a, a_row, a_col, b, b_row, c, c_row, add = arguments
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
            _emit_tile(m, r, starts, mask, k, a, a_row, a_col, b, b_row, c, c_row, add)
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


def _emit_tile(
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
    c: Any,
    c_row: Any,
    add: Any,
) -> None:
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

    def store(adding: bool) -> None:
        for i in range(rows):
            places = [builder.gep(c, [builder.add(builder.mul(I64(i), c_row), column)]) for column in columns]
            totals = [simd.Vector(m, total) for total in sums[i]]
            if adding:  # all of a row is read before any of it is written: the last two vectors may overlap
                totals = [m.load(place, mask) + total for place, total in zip(places, totals, strict=True)]
            for place, total in zip(places, totals, strict=True):
                m.store(total, place, mask)

    _if_else(builder, add, lambda: store(True), lambda: store(False))


def _if_else(builder: Any, flag: Any, then: Callable[[], None], otherwise: Callable[[], None]) -> None:
    with builder.if_else(builder.icmp_signed("!=", flag, I64(0))) as (yes, no):
        with yes:
            then()
        with no:
            otherwise()


@kernel
def _vectors_for(left, lanes):
    """Vectors of the next panel of columns, of ``left`` that remain."""
    return min((left + lanes - 1) // lanes, TILE_VECTORS)


@kernel
def _block_of(k):
    """The length of the blocks of K: about K_BLOCK, and all alike, for a short last one would cost as much to add."""
    blocks = max(1, (k + K_BLOCK // 2) // K_BLOCK)
    return max(1, (k + blocks - 1) // blocks)


@kernel
def _rows_for(left):
    """Rows of the next tile, of ``left`` that remain."""
    rows = TILE_ROWS
    while rows > left:
        rows //= 2
    return rows


@kernel
def tile(rows, vectors, cols, k, a, a_row, a_col, b, b_row, c, c_row, add):
    _tile(rows, vectors, cols, k, a, a_row, a_col, b, b_row, c, c_row, add)


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
    """C = BINARY[code](C, Y), then out2 = UNARY[then](C), on a tile that is still in the first-level cache.

    A code of -1 leaves that part out. Y is broadcast by its strides: y_row 0 for a bias, y_step 0 for a column.
    """
    for i in range(rows):
        line = pointer(c, i * c_row, one)
        if code >= 0:
            apply_binary(code, cols, line, line, 1, pointer(y, i * y_row, one), y_step)
        if then >= 0:
            apply_unary(then, cols, pointer(out2, i * out2_row, one), line, 1)


@kernel
def product(m, n, k, a, a_row, a_col, b, b_row, c, c_row, code, y, y_row, y_step, then, out2, out2_row, one):
    """C = epilogue(A B, Y), overwriting C: columns in panels, rows in tiles, the epilogue on the last block of K.

    Addresses are int64; ``one`` is a number of the dtype.
    """
    lanes = lanes_of(one)
    item = itemsize_of(one)
    block = _block_of(k)
    start = 0
    while start == 0 or start < k:  # once for K = 0 too, which writes zeros
        length = min(k - start, block)
        last = start + length >= k
        j = 0
        while j < n:
            vectors = _vectors_for(n - j, lanes)
            cols = min(n - j, vectors * lanes)
            i = 0
            while i < m:
                rows = _rows_for(m - i)
                here = pointer(c, i * c_row + j, one)
                of_a = pointer(a, i * a_row + start * a_col, one)
                of_b = pointer(b, start * b_row + j, one)
                tile(rows, vectors, cols, length, of_a, a_row, a_col, of_b, b_row, here, c_row, start)
                if last and (code >= 0 or then >= 0):
                    epilogue(
                        rows,
                        cols,
                        c + (i * c_row + j) * item,
                        c_row,
                        code,
                        y + (i * y_row + j * y_step) * item,
                        y_row,
                        y_step,
                        then,
                        out2 + (i * out2_row + j) * item,
                        out2_row,
                        one,
                    )
                i += rows
            j += cols
        start += block


@kernel
def product_update(rule, m, n, k, a, a_row, a_col, b, b_row, theta, first, second, hyper, one):
    """theta, first, second = UPDATES[rule] with the gradient A B, a tile at a time; for N up to one panel, K one block.

    The gradient is never stored: its tile goes from the registers to the stack and into the update. theta and the
    states are pointers to contiguous (M, N); A and B are addresses. With more than one panel a tile's rows would lie
    apart, and an update call for each costs more than it saves (784-30-10, batch 10: 18.2 µs a step instead of 14.8).
    """
    lanes = lanes_of(one)
    gradient = _stack_tile(one)
    vectors = _vectors_for(n, lanes)
    i = 0
    while i < m:
        rows = _rows_for(m - i)
        of_a, of_b = pointer(a, i * a_row, one), pointer(b, 0, one)
        at = i * n
        tile(rows, vectors, n, k, of_a, a_row, a_col, of_b, b_row, gradient, n, 0)
        apply_update(rule, rows * n, shifted(theta, at), gradient, shifted(first, at), shifted(second, at), hyper)
        i += rows
