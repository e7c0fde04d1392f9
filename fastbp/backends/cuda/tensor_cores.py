"""Products on tensor cores, C = epilogue(A B, Y): float32 in memory, tf32 or bf16 in the products, float32 sums.

A block computes tiles of ``bm`` rows by ``bn`` columns, a warp a part of them in fragments of 16 × 8; K is walked in
steps of 32. Shared memory holds two stages of A's and B's tiles: while one is multiplied, the other is filled.

* tf32: tiles are float32 that cp.async brings from global memory without passing registers; numbers are rounded as
  fragments are read.
* bf16: tiles are words of two bf16; numbers pass registers, where they are rounded. A's are on their way while the
  first half of a step is multiplied and B's during the second half: both at once would need more registers than there
  are for two blocks on a multiprocessor.

Either matrix may lie along K ("tall" tiles, 32 numbers a line) or across it ("wide" ones); a tile has the layout that
its matrix has, and transposing is left to how fragments are read. Lines of a tile are set apart so that neither writing
nor reading meets a bank of shared memory twice: ldmatrix reads eight lines of 16 bytes, so the distance is an odd
multiple of 16 bytes (36 words; for bf16 20 and 68 or 36); single words are read at 4 lines × 8 columns, so that
distance is 8 more than a multiple of 32 words (wide tf32 tiles, finished sums).

Outside of the matrices, and beyond a piece of K, both tiles hold zeros: an infinity never meets what is not there. An
element is one sequence of additions over its piece of K, whatever the tile, so its bits do not depend on where in a
matrix it lies.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import cuda, float32, uint32

from fastbp.backends.cuda.device import (
    copied,
    copy1,
    copy4,
    device,
    ldmatrix,
    ldmatrix_trans,
    load4,
    mma_bf16,
    mma_tf32,
    pack_bf16,
    shared,
    shifted,
    store2,
    sync,
    thread,
    to_tf32,
    walked,
)
from fastbp.backends.cuda.gemm import finish_tile, quotient, remainder, whole_quads
from fastbp.backends.cuda.operands import operand, word
from fastbp.backends.cuda.table import COL, PIECE, PIECES, ROW, A, B, K, M, N
from fastbp.backends.cuda.tiles import STRIP, TensorTile

I32 = np.int32
BK = 32  # of K in a step
GROUP = 16  # rows of tiles that are walked together, column by column: blocks at work share what they read


@device
def _spread(line):
    """The line of a tall bf16 tile that a quarter of a warp writes: 20 words apart, lines r and r + 4 share no bank."""
    return I32((line & -8) | ((line & 1) << 2) | ((line >> 1) & 3))


@device
def _copy_tile(words, to, apart, p, aligned, columns, lines, on, down, copies, space):
    """Begin to copy this thread's part of a tile: four numbers from p on, and of the lines ``down`` on, …

    Args:
        columns, lines: of the matrix, from p on.
        on: elements from a line to the one ``down`` on.

    Returns:
        Where the walk ended.
    """
    if aligned and columns >= 4:
        for c in range(copies):
            copy4(words, to + c * down * apart, p, 0, c * down < lines, space)
            p = walked(p, on, space)
    else:
        for c in range(copies):
            for e in range(4):
                copy1(words, to + c * down * apart + e, p, e, c * down < lines and e < columns, space)
            p = walked(p, on, space)
    return p


@device
def _fetch_tile(numbers, p, aligned, columns, lines, on, down, copies, zero, space):
    """The same into registers."""
    if aligned and columns >= 4:
        for c in range(copies):
            v0, v1, v2, v3 = zero, zero, zero, zero
            if c * down < lines:
                v0, v1, v2, v3 = load4(p, 0)
            numbers[c, 0], numbers[c, 1], numbers[c, 2], numbers[c, 3] = v0, v1, v2, v3
            p = walked(p, on, space)
    else:
        for c in range(copies):
            for e in range(4):
                numbers[c, e] = p[e] if c * down < lines and e < columns else zero
            p = walked(p, on, space)
    return p


@device
def _put_tile(words, to, apart, numbers, down, copies):
    """And from registers to shared memory, as bf16."""
    for c in range(copies):
        pairs = pack_bf16(numbers[c, 0], numbers[c, 1]), pack_bf16(numbers[c, 2], numbers[c, 3])
        store2(words, to + c * down * apart, pairs)


@device
def _fragment_a(words, place, apart, tall, bf16):
    """A's fragment of 16 rows: (row g, column t), (g + 8, t), (g, t + 4), (g + 8, t + 4), columns counted in words."""
    if bf16:
        if tall:
            return ldmatrix(words, place)
        return ldmatrix_trans(words, place)
    if tall:  # one by one: over a choice of two tuples CUDA 13.0's NVVM optimises for minutes
        x0, x1, x2, x3 = ldmatrix(words, place)
    else:
        below = place + 4 * apart
        x0, x1, x2, x3 = words[place], words[place + 8], words[below], words[below + 8]
    return to_tf32(x0), to_tf32(x1), to_tf32(x2), to_tf32(x3)


@device
def _fragments_b(words, place, apart, tall, bf16):
    """B's fragments of 8 columns, two of them: (row t, column g), (t + 4, g), rows counted in words."""
    if bf16:
        if tall:
            return ldmatrix(words, place)
        return ldmatrix_trans(words, place)
    if tall:  # see above
        x0, x1, x2, x3 = ldmatrix(words, place)
    else:
        below = place + 4 * apart
        x0, x1, x2, x3 = words[place], words[below], words[place + 8], words[below + 8]
    return to_tf32(x0), to_tf32(x1), to_tf32(x2), to_tf32(x3)


def product_on_tensor_cores(tile: TensorTile) -> Callable[..., None]:
    """The device function for one size of tile and one kind of number."""
    bf16 = tile.bf16
    bm, bn, warps_m, warps_n, count = (I32(x) for x in (tile.bm, tile.bn, tile.warps_m, tile.warps_n, tile.threads))
    bk, group = I32(BK), I32(GROUP)
    rows_of_warp, cols_of_warp = bm // warps_m, bn // warps_n
    fragments_m, fragments_n, pairs_n = rows_of_warp // I32(16), cols_of_warp // I32(8), cols_of_warp // I32(16)
    tall, wide_a, wide_b = I32(tile.tall), I32(tile.wide(tile.bm)), I32(tile.wide(tile.bn))
    part = I32(2 if bf16 else 1)  # numbers in a word
    deep = I32(8) * part  # of K in one instruction
    begin_b, stage = bm * tall, (bm + bn) * tall
    strip = bn + I32(STRIP)
    # quads in a line, and how often all threads bring one
    quads_tall, quads_a, quads_b = bk // I32(4), bm // I32(4), bn // I32(4)
    copies_a, copies_b = bm * quads_tall // count, bn * quads_tall // count
    sums_shape, columns_shape = (int(fragments_m), int(fragments_n), 4), (int(fragments_n), 2)
    numbers_shape = (int(max(copies_a, copies_b)), 4)

    @device
    def multiply(sums, words, place_a, place_b, a_tall, b_tall, k):
        """Add the products of instruction k of a step, ``deep`` of K."""
        apart_a, apart_b = tall if a_tall else wide_a, tall if b_tall else wide_b
        first_a, first_b = (
            place_a + k * (8 if a_tall else deep * wide_a),
            place_b + k * (8 if b_tall else deep * wide_b),
        )
        down, across = 16 * tall if a_tall else 16 // part, 16 * tall if b_tall else 16 // part
        columns = cuda.local.array(columns_shape, uint32)
        for j in range(pairs_n):
            pair = _fragments_b(words, first_b + j * across, apart_b, b_tall, bf16)
            columns[2 * j, 0], columns[2 * j, 1], columns[2 * j + 1, 0], columns[2 * j + 1, 1] = pair
        for i in range(fragments_m):
            rows = _fragment_a(words, first_a + i * down, apart_a, a_tall, bf16)
            for j in range(fragments_n):
                before = sums[i, j, 0], sums[i, j, 1], sums[i, j, 2], sums[i, j, 3]
                if bf16:
                    after = mma_bf16(rows, (columns[j, 0], columns[j, 1]), before)
                else:
                    after = mma_tf32(rows, (columns[j, 0], columns[j, 1]), before)
                sums[i, j, 0], sums[i, j, 1], sums[i, j, 2], sums[i, j, 3] = after

    @device
    def place_of(d, number):
        """The piece, and where the tile lies in C. GROUP rows of tiles after each other, each column by column."""
        tiles_m, tiles_n = quotient(I32(d[M]) + bm - 1, bm), quotient(I32(d[N]) + bn - 1, bn)
        piece, tile = quotient(number, tiles_m * tiles_n), remainder(number, tiles_m * tiles_n)
        top, within = quotient(tile, group * tiles_n) * group, remainder(tile, group * tiles_n)
        high = min(group, tiles_m - top)
        return piece, I32((top + remainder(within, high)) * bm), I32(quotient(within, high) * bn)

    @device
    def add_up(sums, d, addresses, number, a_tall, b_tall, one, space):
        """sums += A B, this warp's part of a tile over a piece of K. Has barriers."""
        zero = one - one
        words = shared(np.uint32(1))
        piece, m0, n0 = place_of(d, number)
        k0 = piece * d[PIECE]
        left, here = (
            I32(min(d[K] - k0, d[PIECE])),
            I32(0),
        )  # of K: not asked for yet, and in the stage that is multiplied
        me = I32(thread())
        busy = me < count
        lane, warp = I32(me & 31), I32(me >> 5)
        m1, n1 = I32(quotient(warp, warps_n) * rows_of_warp), I32(remainder(warp, warps_n) * cols_of_warp)
        # ---- where this thread begins to read fragments: lines 0 … 15 and then 4 words on, or the other way round
        along, aside = I32(lane & 15), I32(lane >> 4 << 2)
        crossed, beside = I32((lane & 7) | (lane >> 4 << 3)), I32((lane & 8) >> 1)
        if a_tall:
            place_a = I32((m1 + along) * tall + aside)
        elif bf16:
            place_a = I32(crossed * wide_a + (m1 >> 1) + beside)
        else:
            place_a = I32((lane & 3) * wide_a + m1 + (lane >> 2))
        if b_tall:
            place_b = I32(begin_b + (n1 + crossed) * tall + beside)
        elif bf16:
            place_b = I32(begin_b + along * wide_b + (n1 >> 1) + aside)
        else:
            place_b = I32(begin_b + (lane & 3) * wide_b + n1 + (lane >> 2))
        # ---- which numbers of a tile this thread brings, and where to
        across_a, across_b = quads_tall if a_tall else quads_a, quads_tall if b_tall else quads_b
        down_a, down_b = count // across_a, count // across_b
        apart_a, apart_b = tall if a_tall else wide_a, tall if b_tall else wide_b
        line_a, line_b = quotient(me, across_a), quotient(me, across_b)
        if bf16:
            line_a, line_b = _spread(line_a) if a_tall else line_a, _spread(line_b) if b_tall else line_b
        column_a, column_b = I32(remainder(me, across_a) * 4), I32(remainder(me, across_b) * 4)
        to_a = I32(line_a * apart_a + (column_a >> 1 if bf16 else column_a))
        to_b = I32(begin_b + line_b * apart_b + (column_b >> 1 if bf16 else column_b))
        # ---- from where, and how much of the matrix there is from there on, along K and along the other side
        stride_a, stride_b = word(d, A, ROW if a_tall else COL), word(d, B, COL if b_tall else ROW)
        a = shifted(operand(d, addresses, A, one, space), m0 * stride_a + k0 if a_tall else k0 * stride_a + m0)
        b = shifted(operand(d, addresses, B, one, space), n0 * stride_b + k0 if b_tall else k0 * stride_b + n0)
        a_aligned, b_aligned = whole_quads(a, stride_a, one), whole_quads(b, stride_b, one)
        a, b = shifted(a, line_a * stride_a + column_a), shifted(b, line_b * stride_b + column_b)
        on_a, on_b = down_a * stride_a, down_b * stride_b
        side_a = I32(d[M] - m0 - (line_a if a_tall else column_a))
        side_b = I32(d[N] - n0 - (line_b if b_tall else column_b))
        this = I32(0)
        while True:
            more, other = busy and left > 0, I32(stage - this)
            deep_a, deep_b = I32(left - (column_a if a_tall else line_a)), I32(left - (column_b if b_tall else line_b))
            columns_a, lines_a = deep_a if a_tall else side_a, side_a if a_tall else deep_a
            columns_b, lines_b = deep_b if b_tall else side_b, side_b if b_tall else deep_b
            if bf16:
                # fetched in any case, zeros if there are no more: else numbers would be kept from turn to turn
                numbers = cuda.local.array(numbers_shape, float32)
                after_a = _fetch_tile(
                    numbers, a, a_aligned, columns_a, lines_a if more else 0, on_a, down_a, copies_a, zero, space
                )
                if busy and here > 0:
                    multiply(sums, words, this + place_a, this + place_b, a_tall, b_tall, 0)
                if more:
                    _put_tile(words, other + to_a, apart_a, numbers, down_a, copies_a)
                after_b = _fetch_tile(
                    numbers, b, b_aligned, columns_b, lines_b if more else 0, on_b, down_b, copies_b, zero, space
                )
                if busy and here > deep:
                    multiply(sums, words, this + place_a, this + place_b, a_tall, b_tall, 1)
                if more:
                    _put_tile(words, other + to_b, apart_b, numbers, down_b, copies_b)
                sync()
            else:
                copied()
                sync()
                after_a, after_b = a, b
                if more:
                    to = other + to_a
                    after_a = _copy_tile(
                        words, to, apart_a, a, a_aligned, columns_a, lines_a, on_a, down_a, copies_a, space
                    )
                    to = other + to_b
                    after_b = _copy_tile(
                        words, to, apart_b, b, b_aligned, columns_b, lines_b, on_b, down_b, copies_b, space
                    )
                if busy:
                    for k in range(quotient(here + deep - 1, deep)):
                        multiply(sums, words, this + place_a, this + place_b, a_tall, b_tall, k)
            if left <= 0:
                break
            this, here, left = other, I32(min(left, bk)), I32(left - bk)
            # the lines of a wide tile end where the next one begins
            a, b = shifted(a, bk) if a_tall else after_a, shifted(b, bk) if b_tall else after_b
        if not bf16:
            sync()

    @device
    def product(d, addresses, block, blocks, one, space):
        """C = epilogue(A B, Y), (M, N) = (M, K)(K, N), or the sums of each piece of K. Overwrites. Float32 only.

        Has barriers: all ``tile.threads`` threads of a block call it together; others wait at the barriers.
        """
        zero = one - one
        memory = shared(one)
        sums = cuda.local.array(sums_shape, float32)
        number = I32(block)
        while number < quotient(I32(d[M]) + bm - 1, bm) * quotient(I32(d[N]) + bn - 1, bn) * d[PIECES]:
            for i in range(fragments_m):
                for j in range(fragments_n):
                    for e in range(4):
                        sums[i, j, e] = zero
            if word(d, A, COL) == 1:
                if word(d, B, COL) == 1:
                    add_up(sums, d, addresses, number, True, False, one, space)
                else:
                    add_up(sums, d, addresses, number, True, True, one, space)
            elif word(d, B, COL) == 1:
                add_up(sums, d, addresses, number, False, False, one, space)
            else:
                add_up(sums, d, addresses, number, False, True, one, space)
            # ---- finished sums, the rows of one line of warps at a time, through shared memory to where they belong
            piece, m0, n0 = place_of(d, number)  # once more, to have the registers for sums in between
            lane, warp = I32(thread() & 31), I32(thread() >> 5)
            to = I32((lane >> 2) * strip + remainder(warp, warps_n) * cols_of_warp + (lane & 3) * 2)
            height = I32(min(bm, d[M] - m0))
            for s in range(quotient(height + rows_of_warp - 1, rows_of_warp)):
                if quotient(warp, warps_n) == s:
                    for i in range(fragments_m):
                        for j in range(fragments_n):
                            first = to + 16 * i * strip + 8 * j
                            store2(memory, first, (sums[i, j, 0], sums[i, j, 1]))
                            store2(memory, first + 8 * strip, (sums[i, j, 2], sums[i, j, 3]))
                sync()
                row = I32(s * rows_of_warp)
                rows, cols = I32(min(rows_of_warp, height - row)), I32(min(bn, d[N] - n0))
                finish_tile(d, addresses, memory, strip, I32(m0 + row), n0, rows, cols, piece, one, space)
                sync()
            number = I32(number + blocks)

    return product
