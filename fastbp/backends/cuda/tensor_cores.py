"""Products on tensor cores, C = epilogue(A B, Y): float32 in memory, tf32 or bf16 in the products, float32 sums.

A block computes tiles of ``bm`` rows by ``bn`` columns, a warp a part of them in fragments of 16 × 8; K is walked in
steps of 32. Shared memory holds two stages of A's and B's tiles: while one is multiplied, the other is filled.

* tf32: tiles are float32 that cp.async brings from global memory without passing registers; numbers are rounded as
  fragments are read.
* bf16: tiles are words of two bf16; numbers pass registers, where they are rounded. A's are on their way while the first
  half of a step is multiplied and B's during the second half: both at once would need more registers than there are for
  two blocks on a multiprocessor.

Either matrix may lie along K ("tall" tiles, 32 numbers a line) or across it ("wide" ones); a tile has the layout that its
matrix has, and transposing is left to how fragments are read. Lines of a tile are set apart so that neither writing nor
reading meets a bank of shared memory twice: ldmatrix reads eight lines of 16 bytes, so the distance is an odd multiple of
16 bytes (36 words; for bf16 20 and 68 or 36); single words are read at 4 lines × 8 columns, so that distance is 8 more than
a multiple of 32 words (wide tf32 tiles, finished sums).

Outside of the matrices, and beyond a piece of K, both tiles hold zeros: an infinity never meets what is not there. An
element is one sequence of additions over its piece of K, whatever the tile, so its bits do not depend on where in a matrix
it lies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import cuda, float32, uint32

from fastbp.backends.cuda.device import (
    copied,
    copy1,
    copy4,
    device,
    ldmatrix,
    ldmatrix_trans,
    mma_bf16,
    mma_tf32,
    pack_bf16,
    shared,
    store2,
    sync,
    thread,
    to_tf32,
)
from fastbp.backends.cuda.gemm import I32, ceil_div, finish_tile, quad, whole_quads
from fastbp.backends.cuda.operands import operand, word
from fastbp.backends.cuda.table import COL, PIECE, PIECES, ROW, A, B, K, M, N

BK = 32  # of K in a step
STRIP = 8  # words behind a row of finished sums
GROUP = 16  # rows of tiles that are walked together, column by column: blocks at work share what they read


@dataclass(frozen=True)
class TensorTile:
    """Sizes of a block's tile, its warps down and across, and whether products are of bf16."""

    bm: int
    bn: int
    warps_m: int
    warps_n: int
    bf16: bool

    @property
    def threads(self) -> int:
        return 32 * self.warps_m * self.warps_n

    @property
    def tall(self) -> int:
        """Words from line to line of a tile that lies along K."""
        return 20 if self.bf16 else 36

    def wide(self, size: int) -> int:
        """Words from line to line of a tile that lies across K."""
        return size // 2 + 4 if self.bf16 else size + 8

    @property
    def shared_bytes(self) -> int:
        """What the two stages of A and B need; a strip of finished sums needs less."""
        return 4 * 2 * (self.bm + self.bn) * self.tall


LARGE_TF32 = TensorTile(128, 128, 2, 4, False)
LARGE_BF16 = TensorTile(128, 128, 2, 4, True)
SMALL_TF32 = TensorTile(64, 64, 2, 2, False)  # for products with few tiles, and for one block that does everything
SMALL_BF16 = TensorTile(64, 64, 2, 2, True)


@device
def _divided(x, y):
    """x // y of numbers that are not negative, in 32 bits: Numba divides int32 in 64, by a call."""
    return I32(np.uint32(x) // np.uint32(y))


@device
def _remainder(x, y):
    return I32(np.uint32(x) % np.uint32(y))


@device
def _spread(line):
    """The line of a tall bf16 tile that a quarter of a warp writes: 20 words apart, lines r and r + 4 share no bank."""
    return I32((line & -8) | ((line & 1) << 2) | ((line >> 1) & 3))


@device
def _copy_tile(words, begin, apart, p, aligned, i, count, j, lines, stride, down, copies, space):
    """Begin to copy this thread's part of a tile: elements i … i + 3 of lines j, j + down, … See gemm.quad."""
    left = I32(max(min(count - i, 4), 0))
    for c in range(copies):
        line = I32(j + c * down)
        first = np.int64(line) * np.int64(stride) + i
        found = left if line < lines else I32(0)
        place = begin + c * down * apart
        if aligned:
            copy4(words, place, p, first, found, space)
        else:
            for e in range(4):
                copy1(words, place + e, p, first + e, I32(1) if e < found else I32(0), space)


@device
def _fetch_tile(numbers, p, aligned, i, count, j, lines, stride, down, copies, zero):
    """This thread's part of a tile into registers."""
    for c in range(copies):
        found = quad(p, aligned, i, count, I32(j + c * down), lines, np.int64(stride), zero)
        numbers[c, 0], numbers[c, 1], numbers[c, 2], numbers[c, 3] = found


@device
def _put_tile(words, begin, apart, numbers, down, copies):
    """This thread's part of a tile from registers to shared memory, as bf16."""
    for c in range(copies):
        pairs = pack_bf16(numbers[c, 0], numbers[c, 1]), pack_bf16(numbers[c, 2], numbers[c, 3])
        store2(words, begin + c * down * apart, pairs)


@device
def _fragment_a(words, place, apart, tall, bf16):
    """A's fragment of 16 rows: (row g, column t), (g + 8, t), (g, t + 4), (g + 8, t + 4), columns counted in words."""
    if tall:
        found = ldmatrix(words, place)
    elif bf16:
        found = ldmatrix_trans(words, place)
    else:
        below = place + 4 * apart
        found = words[place], words[place + 8], words[below], words[below + 8]
    if bf16:
        return found
    return to_tf32(found[0]), to_tf32(found[1]), to_tf32(found[2]), to_tf32(found[3])


@device
def _fragments_b(words, place, apart, tall, bf16):
    """B's fragments of 8 columns, two of them: (row t, column g), (t + 4, g), rows counted in words."""
    if tall:
        found = ldmatrix(words, place)
    elif bf16:
        found = ldmatrix_trans(words, place)
    else:
        below = place + 4 * apart
        found = words[place], words[below], words[place + 8], words[below + 8]
    if bf16:
        return found
    return to_tf32(found[0]), to_tf32(found[1]), to_tf32(found[2]), to_tf32(found[3])


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
    shape_a, shape_b = (int(copies_a), 4), (int(copies_b), 4)

    @device
    def multiply(sums, words, place_a, place_b, a_tall, b_tall, k):
        """Add the products of instruction k of a step, ``deep`` of K."""
        apart_a, apart_b = tall if a_tall else wide_a, tall if b_tall else wide_b
        first_a, first_b = place_a + k * (8 if a_tall else deep * wide_a), place_b + k * (8 if b_tall else deep * wide_b)
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
    def add_up(sums, words, a, b, m, n, m0, n0, k0, k1, a_line, b_line, a_tall, b_tall, one, space):
        """sums += A B over k0 ≤ k < k1, this warp's part of the tile at (m0, n0). Has barriers."""
        zero = one - one
        me = I32(thread())
        busy = me < count
        lane, warp = I32(me & 31), I32(me >> 5)
        m1, n1 = I32(_divided(warp, warps_n) * rows_of_warp), I32(_remainder(warp, warps_n) * cols_of_warp)
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
        line_a, line_b = _divided(me, across_a), _divided(me, across_b)
        if bf16:
            line_a, line_b = _spread(line_a) if a_tall else line_a, _spread(line_b) if b_tall else line_b
        column_a, column_b = I32(_remainder(me, across_a) * 4), I32(_remainder(me, across_b) * 4)
        down_a, down_b = count // across_a, count // across_b
        apart_a, apart_b = tall if a_tall else wide_a, tall if b_tall else wide_b
        to_a = I32(line_a * apart_a + (column_a >> 1 if bf16 else column_a))
        to_b = I32(begin_b + line_b * apart_b + (column_b >> 1 if bf16 else column_b))
        a_aligned = whole_quads(a, np.int64(a_line), one) and (not a_tall or k0 & 3 == 0)
        b_aligned = whole_quads(b, np.int64(b_line), one) and (not b_tall or k0 & 3 == 0)
        a_count, a_lines = k1 if a_tall else m, m if a_tall else k1
        b_count, b_lines = k1 if b_tall else n, n if b_tall else k1
        if bf16:
            next_a, next_b = cuda.local.array(shape_a, float32), cuda.local.array(shape_b, float32)
        steps = _divided(max(k1 - k0, 0) + bk - 1, bk)
        for step in range(I32(-1), steps):
            k = I32(k0 + (step + 1) * bk)
            more, multiplies = busy and k < k1, busy and step >= 0
            this = I32((step & 1) * stage)
            other = I32(stage - this)
            a_i, a_j = I32((k if a_tall else m0) + column_a), I32((m0 if a_tall else k) + line_a)
            b_i, b_j = I32((k if b_tall else n0) + column_b), I32((n0 if b_tall else k) + line_b)
            if bf16:
                if more:
                    _fetch_tile(next_a, a, a_aligned, a_i, a_count, a_j, a_lines, a_line, down_a, copies_a, zero)
                if multiplies:
                    multiply(sums, words, this + place_a, this + place_b, a_tall, b_tall, 0)
                if more:
                    _put_tile(words, other + to_a, apart_a, next_a, down_a, copies_a)
                    _fetch_tile(next_b, b, b_aligned, b_i, b_count, b_j, b_lines, b_line, down_b, copies_b, zero)
                if multiplies:
                    multiply(sums, words, this + place_a, this + place_b, a_tall, b_tall, 1)
                if more:
                    _put_tile(words, other + to_b, apart_b, next_b, down_b, copies_b)
                sync()
            else:
                copied()
                sync()
                if more:
                    to = other + to_a
                    _copy_tile(
                        words, to, apart_a, a, a_aligned, a_i, a_count, a_j, a_lines, a_line, down_a, copies_a, space
                    )
                    to = other + to_b
                    _copy_tile(
                        words, to, apart_b, b, b_aligned, b_i, b_count, b_j, b_lines, b_line, down_b, copies_b, space
                    )
                if multiplies:
                    multiply(sums, words, this + place_a, this + place_b, a_tall, b_tall, 0)
                    multiply(sums, words, this + place_a, this + place_b, a_tall, b_tall, 1)
                    multiply(sums, words, this + place_a, this + place_b, a_tall, b_tall, 2)
                    multiply(sums, words, this + place_a, this + place_b, a_tall, b_tall, 3)
        if not bf16:
            sync()

    @device
    def product(d, addresses, block, blocks, one, space):
        """C = epilogue(A B, Y), (M, N) = (M, K)(K, N), or the sums of each piece of K. Overwrites. Float32 only.

        Has barriers: all ``tile.threads`` threads of a block call it together; others wait at the barriers.
        """
        zero = one - one
        memory, words = shared(one), shared(uint32(1))
        a, b = operand(d, addresses, A, one, space), operand(d, addresses, B, one, space)
        m, n, last = I32(d[M]), I32(d[N]), I32(d[K])
        a_row, a_col = I32(word(d, A, ROW)), I32(word(d, A, COL))
        b_row, b_col = I32(word(d, B, ROW)), I32(word(d, B, COL))
        tiles_m, tiles_n = _divided(m + bm - 1, bm), _divided(n + bn - 1, bn)
        tiles = I32(tiles_m * tiles_n)
        me = I32(thread())
        lane, warp = I32(me & 31), I32(me >> 5)
        # where this lane's sums of a fragment go in a strip of finished ones
        to = I32((lane >> 2) * strip + _remainder(warp, warps_n) * cols_of_warp + (lane & 3) * 2)
        sums = cuda.local.array(sums_shape, float32)
        for number in range(I32(block), I32(tiles * d[PIECES]), I32(blocks)):
            piece, place = _divided(number, tiles), _remainder(number, tiles)
            top, within = I32(_divided(place, group * tiles_n) * group), _remainder(place, group * tiles_n)
            high = I32(min(group, tiles_m - top))
            m0, n0 = I32((top + _remainder(within, high)) * bm), I32(_divided(within, high) * bn)
            k0 = I32(piece * d[PIECE])
            k1 = I32(min(last, k0 + d[PIECE]))
            for i in range(fragments_m):
                for j in range(fragments_n):
                    for e in range(4):
                        sums[i, j, e] = zero
            if a_col == 1:
                if b_col == 1:
                    add_up(sums, words, a, b, m, n, m0, n0, k0, k1, a_row, b_row, True, False, one, space)
                else:
                    add_up(sums, words, a, b, m, n, m0, n0, k0, k1, a_row, b_col, True, True, one, space)
            elif b_col == 1:
                add_up(sums, words, a, b, m, n, m0, n0, k0, k1, a_col, b_row, False, False, one, space)
            else:
                add_up(sums, words, a, b, m, n, m0, n0, k0, k1, a_col, b_col, False, True, one, space)
            # ---- finished sums, the rows of one line of warps at a time, through shared memory to where they belong
            for s in range(warps_m):
                if _divided(warp, warps_n) == s:
                    for i in range(fragments_m):
                        for j in range(fragments_n):
                            first = to + 16 * i * strip + 8 * j
                            store2(memory, first, (sums[i, j, 0], sums[i, j, 1]))
                            store2(memory, first + 8 * strip, (sums[i, j, 2], sums[i, j, 3]))
                sync()
                row = I32(m0 + s * rows_of_warp)
                if row < m:
                    rows, cols = I32(min(rows_of_warp, m - row)), I32(min(bn, n - n0))
                    finish_tile(d, addresses, memory, strip, row, n0, rows, cols, piece, one, space)
                sync()

    return product
