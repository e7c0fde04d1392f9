"""Products in plain multiply-adds, C = epilogue(A B, Y): tiles in shared memory, sums in registers.

A block computes tiles of ``bm`` rows by ``bn`` columns, a thread ``tm`` by ``tn`` of their elements, by fours, so that
shared memory is read 16 bytes at a time. The next ``bk`` columns of A and rows of B come from global memory, into
registers, while these are multiplied. An element is one chain of fused multiply-adds over its piece of K, whatever the
tile, so its bits do not depend on where in a matrix it lies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda

from fastbp.backends.cuda.device import (
    address_of,
    apply4,
    at,
    device,
    itemsize,
    load4,
    pack_bf16,
    shared,
    shifted,
    store2,
    store4,
    sync,
    thread,
    threads,
)
from fastbp.backends.cuda.operands import operand, word
from fastbp.backends.cuda.table import (
    BOTH,
    CODE,
    COL,
    EXTRA,
    HOW,
    MAXIMA,
    NONE,
    OUT,
    OUT2,
    PIECE,
    PIECES,
    ROW,
    THEN,
    A,
    B,
    K,
    M,
    N,
    Y,
)
from fastbp.backends.cuda.tiles import PAD, Tile

I32 = np.int32
GLOBAL = np.int32(0)  # what pointers point into: see ptx.at


@device
def ceil_div(x, y):
    return (x + y - I32(1)) // y


@device
def quotient(x, y):
    """x // y of numbers that are not negative, in 32 bits: Numba divides int32 in 64, by a call."""
    return I32(np.uint32(x) // np.uint32(y))


@device
def remainder(x, y):
    return I32(np.uint32(x) % np.uint32(y))


@device
def larger(x, y):
    """The larger value; NaN if either is NaN."""
    return x if x != x or x > y else y


@device
def divided(e, size):
    """e // size and e % size of int64 that are not negative, in 32 bits where that is enough: in 64 it is a call."""
    if (e | size) >> 32 == 0:
        quotient = np.uint32(e) // np.uint32(size)
        return np.int64(quotient), e - quotient * size
    return e // size, e % size


@device
def quad(p, aligned, i, count, j, lines, stride, zero):
    """Elements i … i + 3 of line j, with zeros where the matrix has ended: count elements a line, ``lines`` lines."""
    if j >= lines or i >= count:
        return zero, zero, zero, zero
    first = np.int64(j) * stride + i
    if aligned and i + I32(4) <= count:
        return load4(p, first)
    second = p[first + 1] if i + I32(1) < count else zero
    third = p[first + 2] if i + I32(2) < count else zero
    fourth = p[first + 3] if i + I32(3) < count else zero
    return p[first], second, third, fourth


@device
def whole_quads(p, stride, one):
    """Whether every line begins on a multiple of 16 bytes."""
    return (address_of(p) | (stride * itemsize(one))) & 15 == 0


@device
def four(p, place, apart, count, wide, zero):
    """``count`` elements of p from ``place`` on, ``apart`` apart, zeros after them; in one load if ``wide``."""
    if wide and count == 4:
        return load4(p, place)
    second = p[place + apart] if count > 1 else zero
    third = p[place + 2 * apart] if count > 2 else zero
    fourth = p[place + 3 * apart] if count > 3 else zero
    return p[place], second, third, fourth


@device
def put_four(p, place, v0, v1, v2, v3, count, wide):
    """Write ``count`` of four values from ``place`` on."""
    if wide and count == 4:
        store4(p, place, (v0, v1, v2, v3))
    else:
        p[place] = v0
        if count > 1:
            p[place + 1] = v1
        if count > 2:
            p[place + 2] = v2
        if count > 3:
            p[place + 3] = v3


@device
def finish(code, then, how, x0, x1, x2, x3, y0, y1, y2, y3, out, out2, place, count, wide):
    """``count`` elements of the result from their finished sums: code(x, y), then; overwrites OUT, and OUT2 if BOTH.

    ``place`` is that of the first one in either. Returns them, and what is behind them.
    """
    for turn in range(2):  # so that the formulas are there once: they are most of the kernel
        formula = then if turn else code
        if turn and how == BOTH:
            put_four(out, place, x0, x1, x2, x3, count, wide)
        if formula != NONE:
            x0, x1, x2, x3 = apply4(formula, (x0, x1, x2, x3), (y0, y1, y2, y3), (y0, y1, y2, y3))
    if how == BOTH:
        put_four(out2, place, x0, x1, x2, x3, count, wide)
    else:
        put_four(out, place, x0, x1, x2, x3, count, wide)
    return x0, x1, x2, x3


@device
def finish_tile(d, addresses, tile, stride, m0, n0, rows, cols, piece, one, space):
    """Take rows × cols finished sums from shared memory, ``stride`` apart, to where C's element (m0, n0) lies.

    Of one piece of several: into the M × N sums of that piece, as they are. Overwrites. ``stride`` and ``n0`` are
    multiples of four. All threads call it; it has no barrier.
    """
    out = operand(d, addresses, OUT, one, space)
    y, out2 = operand(d, addresses, Y, one, space), operand(d, addresses, OUT2, one, space)
    m, n, whole = d[M], d[N], d[PIECES] == 1
    code, then, how = I32(d[CODE]), I32(d[THEN]), I32(d[HOW])
    y_row, y_col = word(d, Y, ROW), word(d, Y, COL)
    if not whole:
        code, then, how = I32(NONE), I32(NONE), I32(0)
        out = shifted(out, np.int64(piece) * m * n)
    zero = one - one
    wide = whole_quads(out, n, one) and (how != BOTH or whole_quads(out2, n, one))
    wide_y = y_col == 1 and whole_quads(y, y_row, one)
    quads = (cols + I32(3)) >> I32(2)
    e = I32(thread())
    while e < rows * quads:
        r, c = quotient(e, quads), I32(4) * remainder(e, quads)
        count = min(I32(4), cols - c)
        x0, x1, x2, x3 = load4(tile, r * stride + c)
        i, j = np.int64(m0 + r), np.int64(n0 + c)
        y0, y1, y2, y3 = zero, zero, zero, zero
        if code != NONE:
            y0, y1, y2, y3 = four(y, i * y_row + j * y_col, y_col, count, wide_y, zero)
        finish(code, then, how, x0, x1, x2, x3, y0, y1, y2, y3, out, out2, i * n + j, count, wide)
        e = I32(e + I32(threads()))


@device
def _nothing(copy, place, x0, x1, x2, x3, count):
    """For results that are not kept rounded."""


@device
def put_rounded(copy, place, x0, x1, x2, x3, count):
    """Write ``count`` of four float32 as bf16, to nearest even, from number ``place`` of ``copy`` on, words of two."""
    if count == 4 and place & 3 == 0:
        store2(copy, place >> 1, (np.int32(pack_bf16(x0, x1)), np.int32(pack_bf16(x2, x3))))
        return
    numbers = at(address_of(copy), np.uint16(1), GLOBAL)
    low, high = pack_bf16(x0, x1), pack_bf16(x2, x3)
    numbers[place] = np.uint16(low & 0xFFFF)
    if count > 1:
        numbers[place + 1] = np.uint16(low >> 16)
    if count > 2:
        numbers[place + 2] = np.uint16(high & 0xFFFF)
    if count > 3:
        numbers[place + 3] = np.uint16(high >> 16)


def _combine_and(keep: Callable[..., None]) -> Callable[..., None]:
    """The device function that also keeps the results in another way."""

    @device
    def combine(d, addresses, block, blocks, one, space):
        """OUT = epilogue(Σ of the PIECES sums of A, Y), M × N, or their largest if MAXIMA; in order. Overwrites.

        EXTRA is where results are kept rounded.
        """
        sums, y = operand(d, addresses, A, one, space), operand(d, addresses, Y, one, space)
        out, out2 = operand(d, addresses, OUT, one, space), operand(d, addresses, OUT2, one, space)
        copy = operand(d, addresses, EXTRA, np.int32(1), space)
        m, n, size, pieces = d[M], d[N], d[M] * d[N], d[PIECES]
        code, then, how = I32(d[CODE]), I32(d[THEN]), I32(d[HOW])
        y_row, y_col = word(d, Y, ROW), word(d, Y, COL)
        if code == NONE or (y_row == n and (y_col == 1 or n == 1)):  # one long row: there are fewer ends of rows
            m, n, y_row, y_col = np.int64(1), size, np.int64(0), np.int64(1)
        elif y_row == 0 and y_col == 0:
            m, n = np.int64(1), size
        zero = one - one
        line = np.int64(4) if m == 1 else n  # of one line there is no next one whose beginning counts
        wide = whole_quads(out, line, one) and (how != BOTH or whole_quads(out2, line, one))
        wide_sums = whole_quads(sums, line, one) and (pieces == 1 or whole_quads(sums, size, one))
        wide_y = y_col == 1 and whole_quads(y, y_row, one)
        quads = (n + 3) >> 2
        e, apart = np.int64(block) * threads() + thread(), np.int64(blocks) * threads()
        while e < m * quads:
            i, q = divided(e, quads)
            j = 4 * q
            count, place = I32(min(np.int64(4), n - j)), i * n + j
            x0, x1, x2, x3 = four(sums, place, np.int64(1), count, wide_sums, zero)
            piece, unit = np.int64(1), np.int64(1)
            while how != MAXIMA and piece + 3 < pieces:  # four at a time are on their way
                first = piece * size + place
                a0, a1, a2, a3 = four(sums, first, unit, count, wide_sums, zero)
                b0, b1, b2, b3 = four(sums, first + size, unit, count, wide_sums, zero)
                c0, c1, c2, c3 = four(sums, first + 2 * size, unit, count, wide_sums, zero)
                d0, d1, d2, d3 = four(sums, first + 3 * size, unit, count, wide_sums, zero)
                x0, x1 = x0 + a0 + b0 + c0 + d0, x1 + a1 + b1 + c1 + d1
                x2, x3 = x2 + a2 + b2 + c2 + d2, x3 + a3 + b3 + c3 + d3
                piece += 4
            for further in range(piece, pieces):
                z0, z1, z2, z3 = four(sums, further * size + place, unit, count, wide_sums, zero)
                if how == MAXIMA:
                    x0, x1, x2, x3 = larger(x0, z0), larger(x1, z1), larger(x2, z2), larger(x3, z3)
                else:
                    x0, x1, x2, x3 = x0 + z0, x1 + z1, x2 + z2, x3 + z3
            y0, y1, y2, y3 = zero, zero, zero, zero
            if code != NONE:
                y0, y1, y2, y3 = four(y, i * y_row + j * y_col, y_col, count, wide_y, zero)
            x0, x1, x2, x3 = finish(code, then, how, x0, x1, x2, x3, y0, y1, y2, y3, out, out2, place, count, wide)
            keep(copy, place, x0, x1, x2, x3, count)
            e += apart

    return combine


combine, combine_rounded = _combine_and(_nothing), _combine_and(put_rounded)


def product_of(tile: Tile, dtype: Any) -> Callable[..., None]:
    """The device function for one size of tile."""
    bm, bn, bk, tm, tn = (I32(x) for x in (tile.bm, tile.bn, tile.bk, tile.tm, tile.tn))
    across = I32(tile.bn // tile.tn)  # threads along a row of the tile
    count = I32(tile.threads)
    groups_m, groups_n = I32(tile.tm // 4), I32(tile.tn // 4)
    apart_m, apart_n = bm // groups_m, bn // groups_n
    lda, ldb = bm + I32(PAD), bn + I32(PAD)
    stage = bk * (lda + ldb)
    shape_acc = tile.tm, tile.tn
    shape_a, shape_b = ((size * tile.bk // 4 // tile.threads, 4) for size in (tile.bm, tile.bn))

    def staging(size: int) -> tuple[Callable[..., None], Callable[..., None]]:
        """What brings ``size`` rows of A, or columns of B, by ``bk`` of K into registers, and from there to a tile."""
        of_size, of_k = I32(size // 4), bk // I32(4)  # groups of four along a line
        quads, apart = I32(size) * of_k // count, I32(size + PAD)

        @device
        def fetch(numbers, p, aligned, crosswise, first, end, k0, k1, line, zero):
            """If ``crosswise``, the matrix's lines run across K."""
            for q in range(quads):
                e = I32(thread()) + q * count
                i, j, lengthwise, lines = k0 + e % of_k * I32(4), first + e // of_k, k1, end
                if crosswise:
                    i, j, lengthwise, lines = first + e % of_size * I32(4), k0 + e // of_size, end, k1
                # one call, not one a branch: over a choice of two tuples CUDA 13.0's NVVM optimises for minutes
                v0, v1, v2, v3 = quad(p, aligned, i, lengthwise, j, lines, line, zero)
                numbers[q, 0], numbers[q, 1], numbers[q, 2], numbers[q, 3] = v0, v1, v2, v3

        @device
        def put(memory, to, numbers, crosswise):
            """A tile's lines run across K: what lies along K is transposed."""
            for q in range(quads):
                e = I32(thread()) + q * count
                if crosswise:
                    four = numbers[q, 0], numbers[q, 1], numbers[q, 2], numbers[q, 3]
                    store4(memory, to + e // of_size * apart + e % of_size * I32(4), four)
                else:
                    first = to + e % of_k * I32(4) * apart + e // of_k
                    for i in range(4):
                        memory[first + i * apart] = numbers[q, i]

        return fetch, put

    (fetch_a, put_a), (fetch_b, put_b) = staging(tile.bm), staging(tile.bn)

    @device
    def multiply(acc, memory, row_a, row_b):
        """A thread's sums, and the products of one of K."""
        for g in range(groups_m):
            x = load4(memory, row_a + g * apart_m)
            for h in range(groups_n):
                y = load4(memory, row_b + h * apart_n)
                for i in range(4):
                    for j in range(4):
                        acc[4 * g + i, 4 * h + j] += x[i] * y[j]

    def strip_of(g: int) -> Callable[..., None]:
        """Write group ``g`` of a thread's rows to shared memory; a known number, or sums would lie in local memory."""

        @device
        def strip(acc, memory, first):
            for i in range(4):
                for h in range(groups_n):
                    values = (
                        acc[4 * g + i, 4 * h],
                        acc[4 * g + i, 4 * h + 1],
                        acc[4 * g + i, 4 * h + 2],
                        acc[4 * g + i, 4 * h + 3],
                    )
                    store4(memory, first + i * ldb + h * apart_n, values)

        return strip

    upper, lower = strip_of(0), strip_of(int(groups_m) - 1)

    @device
    def product(d, addresses, block, blocks, one, space):
        """C = epilogue(A B, Y), (M, N) = (M, K)(K, N), or the sums of each piece of K. Overwrites.

        Has barriers: all ``tile.threads`` threads of a block call it together; others wait at the barriers.
        """
        zero = one - one
        memory = shared(one)
        a, b = operand(d, addresses, A, one, space), operand(d, addresses, B, one, space)
        m, n, k = I32(d[M]), I32(d[N]), I32(d[K])
        a_row, a_col = word(d, A, ROW), word(d, A, COL)
        b_row, b_col = word(d, B, ROW), word(d, B, COL)
        a_down, b_across = a_row == 1 and a_col != 1, b_col == 1  # whether the tile is read along M, along N
        a_line, b_line = a_col if a_down else a_row, b_row if b_across else b_col
        a_aligned, b_aligned = whole_quads(a, a_line, one), whole_quads(b, b_line, one)
        tiles_m, tiles_n = ceil_div(m, bm), ceil_div(n, bn)
        me = I32(thread())
        tx, ty = me % across, me // across
        acc = cuda.local.array(shape_acc, dtype)
        next_a, next_b = cuda.local.array(shape_a, dtype), cuda.local.array(shape_b, dtype)
        number, tiles = I32(block), tiles_m * tiles_n * I32(d[PIECES])
        while number < tiles:
            piece, place = quotient(number, tiles_m * tiles_n), remainder(number, tiles_m * tiles_n)
            m0, n0 = remainder(place, tiles_m) * bm, quotient(place, tiles_m) * bn
            k0 = piece * I32(d[PIECE])
            k1 = min(k, k0 + I32(d[PIECE]))
            for i in range(tm):
                for j in range(tn):
                    acc[i, j] = zero
            steps = ceil_div(k1 - k0, bk)
            for step in range(I32(-1), steps):
                # ---- the tile after this one, from memory into registers
                if step + I32(1) < steps and me < count:
                    kk = k0 + (step + I32(1)) * bk
                    fetch_a(next_a, a, a_aligned, a_down, m0, m, kk, k1, a_line, zero)
                    fetch_b(next_b, b, b_aligned, b_across, n0, n, kk, k1, b_line, zero)
                # ---- this tile's products
                if step >= 0 and me < count:
                    first = step % I32(2) * stage
                    row_a, row_b = first + ty * I32(4), first + bk * lda + tx * I32(4)
                    fours = (min(bk, k1 - k0 - step * bk) + 3) >> 2
                    for _ in range(fours):  # by fours, so that numbers are on their way while others are multiplied
                        multiply(acc, memory, row_a, row_b)
                        multiply(acc, memory, row_a + lda, row_b + ldb)
                        multiply(acc, memory, row_a + I32(2) * lda, row_b + I32(2) * ldb)
                        multiply(acc, memory, row_a + I32(3) * lda, row_b + I32(3) * ldb)
                        row_a, row_b = row_a + I32(4) * lda, row_b + I32(4) * ldb
                # ---- and the next one from registers into the other half of shared memory
                if step + I32(1) < steps and me < count:
                    first = (step + I32(1)) % I32(2) * stage
                    put_a(memory, first, next_a, a_down)
                    put_b(memory, first + bk * lda, next_b, b_across)
                sync()
            # ---- finished sums, a strip of rows at a time, through shared memory to where they belong
            for g in range(groups_m):
                if me < count:
                    if g == 0:
                        upper(acc, memory, ty * I32(4) * ldb + tx * I32(4))
                    else:
                        lower(acc, memory, ty * I32(4) * ldb + tx * I32(4))
                sync()
                top = m0 + g * apart_m
                if top < m:
                    rows, cols = min(apart_m, m - top), min(bn, n - n0)
                    finish_tile(d, addresses, memory, ldb, top, n0, rows, cols, piece, one, space)
                sync()
            number = I32(number + I32(blocks))

    return product
