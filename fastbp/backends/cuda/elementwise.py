"""Chains: elementwise work over one matrix, and its sums and maxima, in one pass over memory, interpreted.

Nothing is compiled for a chain. Its values live in registers of shared memory, four elements a thread, and what is done
with them stands in a table (see table.py), which is read once for four elements of every thread.

The matrix is cut into pieces of rows and columns; LANES threads lie along a row, four columns each, the others below.
Sums over rows or over all elements are kept apart by piece and added in order by a COMBINE; sums over columns need
pieces that have whole rows, and at most 32 lanes. What a thread adds, and in which order, depends on the table and the
number of threads, never on the number of blocks.
"""

from __future__ import annotations

import numpy as np

from fastbp.backends.cuda.device import (
    address_of,
    apply4,
    at,
    device,
    dropout,
    load4,
    number,
    shared,
    shifted,
    shuffle_xor,
    store4,
    sync,
    thread,
    threads,
    update,
)
from fastbp.backends.cuda.gemm import I32, four, larger, put_four, put_rounded, quad, quotient, remainder, whole_quads
from fastbp.backends.cuda.operands import operand
from fastbp.backends.cuda.table import (
    ACTION_WIDTH,
    ACTIONS,
    ADD,
    AXIS,
    BITS,
    CHAIN_HEAD,
    CODE,
    COL,
    COLUMN_PIECES,
    EXTRA,
    FACTOR,
    FACTOR_OFFSET,
    FIRST,
    HEAD,
    IS_MAXIMUM,
    LANES,
    LARGEST,
    LOAD,
    MASK,
    NONE,
    OFFSET,
    OUT,
    OVER_ALL,
    OVER_COLUMNS,
    OVER_ROWS,
    PIECE,
    PIECE_COLS,
    PIECE_ROWS,
    PIECES,
    PLACE,
    REGISTER,
    RESULT_WIDTH,
    RESULTS,
    ROW,
    SCALE,
    SECOND,
    SLOT,
    STORE,
    TARGET,
    THIRD,
    TO,
    WHAT,
    A,
    B,
    K,
    M,
    N,
    Y,
)


@device
def _matrix(words, addresses, one, space):
    return at(addresses[words[SLOT]] + words[OFFSET], one, space)


@device
def _load(p, words, registers, to, r, c, rows, cols, one):
    """Four columns of row r into a register; zeros outside."""
    zero, wide = one - one, I32(threads())
    row, col = words[ROW], words[COL]
    first, place = r * row + c * col, to * 4 * wide + thread()
    if r < rows and c + 4 <= cols and col == 1 and whole_quads(p, row, one):
        v0, v1, v2, v3 = load4(p, first)
    else:
        inside = r < rows
        v0 = p[first] if inside and c < cols else zero
        v1 = p[first + col] if inside and c + 1 < cols else zero
        v2 = p[first + 2 * col] if inside and c + 2 < cols else zero
        v3 = p[first + 3 * col] if inside and c + 3 < cols else zero
    registers[place] = v0
    registers[place + wide] = v1
    registers[place + 2 * wide] = v2
    registers[place + 3 * wide] = v3


@device
def _store(p, words, registers, source, r, c, rows, cols, one):
    """A register to four columns of row r; nothing outside."""
    wide = I32(threads())
    row, col = words[ROW], words[COL]
    first, place = r * row + c * col, source * 4 * wide + thread()
    if r < rows and c + 4 <= cols and col == 1 and whole_quads(p, row, one):
        values = (
            registers[place],
            registers[place + wide],
            registers[place + 2 * wide],
            registers[place + 3 * wide],
        )
        store4(p, first, values)
    elif r < rows:
        for e in range(min(I32(4), cols - c)):
            p[first + e * col] = registers[place + e * wide]


@device
def _act(action, addresses, registers, r, c, rows, cols, width, one, space):
    """One action on four columns of row r; ``width`` columns are a row of the mask."""
    what, to, wide = action[WHAT], I32(action[TO]), I32(threads())
    mine = I32(thread())
    words = shifted(action, PLACE)
    if what == LOAD:
        _load(_matrix(words, addresses, one, space), words, registers, to, r, c, rows, cols, one)
    elif what == STORE:
        _store(_matrix(words, addresses, one, space), words, registers, I32(action[FIRST]), r, c, rows, cols, one)
    elif what in (ADD, LARGEST):
        source = I32(action[FIRST])
        if r < rows:
            for e in range(min(I32(4), cols - c)):
                x, place = registers[(source * 4 + e) * wide + mine], (to * 4 + e) * wide + mine
                registers[place] = registers[place] + x if what == ADD else larger(registers[place], x)
    elif what == MASK:
        key = _matrix(words, addresses, np.float64(1.0), space)
        first = r * np.int64(width) + c
        for e in range(I32(4)):
            registers[(to * 4 + e) * wide + mine] = dropout(action[BITS], first + e, key, one)
    else:
        xs, ys = _four(registers, I32(action[FIRST]), wide, mine), _four(registers, I32(action[SECOND]), wide, mine)
        zs = _four(registers, I32(action[THIRD]), wide, mine)
        scale = I32(action[SCALE])
        x0, x1, x2, x3 = xs
        if scale >= 0:
            s0, s1, s2, s3 = _four(registers, scale, wide, mine)
            x0, x1, x2, x3 = x0 * s0, x1 * s1, x2 * s2, x3 * s3
        x0, x1, x2, x3 = apply4(what, (x0, x1, x2, x3), ys, zs)
        place = to * 4 * wide + mine
        registers[place] = x0
        registers[place + wide] = x1
        registers[place + 2 * wide] = x2
        registers[place + 3 * wide] = x3


@device
def _four(registers, which, wide, mine):
    """A thread's four elements of a register."""
    place = which * I32(4) * wide + mine
    return registers[place], registers[place + wide], registers[place + 2 * wide], registers[place + 3 * wide]


@device
def _clear(result, registers, one):
    value = number(-np.inf, one) if result[IS_MAXIMUM] else one - one
    place, wide = I32(result[REGISTER]) * 4 * I32(threads()) + I32(thread()), I32(threads())
    for e in range(I32(4)):
        registers[place + e * wide] = value


@device
def _joined(result, x, y):
    return larger(x, y) if result[IS_MAXIMUM] else x + y


@device
def _of_thread(result, registers, mine):
    """What a thread has, its four columns joined."""
    wide = I32(threads())
    place = I32(result[REGISTER]) * 4 * wide + mine
    left = _joined(result, registers[place], registers[place + wide])
    right = _joined(result, registers[place + 2 * wide], registers[place + 3 * wide])
    return _joined(result, left, right)


@device
def _write(result, addresses, i, j, value, one, space):
    """A finished reduction, times its factor, to row i, column j of where it goes."""
    target = shifted(result, TARGET)
    if result[FACTOR] != NONE:
        value = value * at(addresses[result[FACTOR]] + result[FACTOR_OFFSET], one, space)[0]
    _matrix(target, addresses, one, space)[i * target[ROW] + j * target[COL]] = value


@device
def chain(d, addresses, block, blocks, one, space):
    """values = actions over (M, N), the results' sums and maxima; all as its table says. Overwrites.

    If K is not 0, the table's PIECE words are first copied to shared memory, K bytes behind its beginning: one wait for
    all of them, not one an action. Has barriers: all threads of a block, a power of two and at least LANES, call it
    together.
    """
    head, registers = shifted(d, d[HEAD]), shared(one)
    if d[K] != 0:
        copied, words, place = at(address_of(registers) + d[K], np.int64(1), True), d[PIECE], np.int64(thread())
        while place < words:
            copied[place] = head[place]
            place += threads()
        sync()
        head = copied
    rows_in_all, width = I32(d[M]), I32(d[N])
    count, lanes = I32(head[ACTIONS]), I32(head[LANES])
    mine = I32(thread())
    tx, ty, below = remainder(mine, lanes), quotient(mine, lanes), quotient(threads(), lanes)
    first_result = shifted(head, CHAIN_HEAD + count * ACTION_WIDTH)
    across = I32(head[COLUMN_PIECES])
    piece, pieces = I32(block), I32(d[PIECES])
    while piece < pieces:
        strip = quotient(piece, across)  # of rows
        r0, c0 = strip * I32(head[PIECE_ROWS]), remainder(piece, across) * I32(head[PIECE_COLS])
        rows, cols = min(rows_in_all, r0 + I32(head[PIECE_ROWS])), min(width, c0 + I32(head[PIECE_COLS]))
        for k in range(head[RESULTS]):
            _clear(shifted(first_result, k * RESULT_WIDTH), registers, one)
        top = r0
        while top < rows:
            r = top + ty
            left = c0
            while left < cols:
                c = left + I32(4) * tx
                for k in range(count):
                    action = shifted(head, CHAIN_HEAD + k * ACTION_WIDTH)
                    _act(action, addresses, registers, r, c, rows, cols, width, one, space)
                left = I32(left + I32(4) * lanes)
            for k in range(head[RESULTS]):
                result = shifted(first_result, k * RESULT_WIDTH)
                if result[AXIS] == OVER_COLUMNS:
                    total = _of_thread(result, registers, mine)
                    apart = lanes >> I32(1)
                    while apart > 0:
                        total = _joined(result, total, shuffle_xor(total, apart))
                        apart = apart >> I32(1)
                    if tx == 0 and r < rows:
                        _write(result, addresses, r, 0, total, one, space)
                    _clear(result, registers, one)
            top = I32(top + below)
        for k in range(head[RESULTS]):
            result = shifted(first_result, k * RESULT_WIDTH)
            if result[AXIS] == OVER_ROWS:
                _down(result, addresses, registers, strip, c0 + I32(4) * tx, cols, lanes, one, space)
            elif result[AXIS] == OVER_ALL:
                _all(result, addresses, registers, piece, one, space)
        sync()
        piece = I32(piece + I32(blocks))


@device
def _down(result, addresses, registers, piece, c, cols, lanes, one, space):
    """Join what the threads below each other have, from the top, and write it."""
    wide, mine = I32(threads()), I32(thread())
    first = I32(result[REGISTER]) * 4 * wide + mine
    sync()
    if mine < lanes:
        for e in range(min(I32(4), cols - c)):
            place = first + e * wide
            total = registers[place]
            y = lanes
            while y < wide:
                total = _joined(result, total, registers[place + y])
                y = I32(y + lanes)
            _write(result, addresses, piece, c + e, total, one, space)


@device
def _all(result, addresses, registers, piece, one, space):
    """Join what all threads have, halves first, and write it."""
    wide, mine = I32(threads()), I32(thread())
    place = I32(result[REGISTER]) * 4 * wide + mine
    registers[place] = _of_thread(result, registers, mine)
    sync()
    half = wide >> I32(1)
    while half > 0:
        if mine < half:
            registers[place] = _joined(result, registers[place], registers[place + half])
        sync()
        half = half >> I32(1)
    if mine == 0:
        _write(result, addresses, piece, 0, registers[place], one, space)


@device
def update_all(d, addresses, block, blocks, one, space):
    """(theta, *states) = UPDATES[code](hyper, theta, g, *states), N elements in place.

    OUT is theta, A the gradient, B and Y the states, EXTRA hyper.
    """
    theta, g = operand(d, addresses, OUT, one, space), operand(d, addresses, A, one, space)
    first, second = operand(d, addresses, B, one, space), operand(d, addresses, Y, one, space)
    hyper = operand(d, addresses, EXTRA, np.float64(1.0), space)
    code = d[CODE]
    states = d[M]  # how many there are; others are neither read nor written
    size, zero = d[N], one - one
    wide = whole_quads(theta, np.int64(4), one) and whole_quads(g, np.int64(4), one)
    wide = wide and whole_quads(first, np.int64(4), one) and whole_quads(second, np.int64(4), one)
    q, quads, apart = np.int64(block) * threads() + thread(), (size + 3) >> 2, np.int64(blocks) * threads()
    unit = np.int64(1)
    while q < quads:
        i = 4 * q
        count = I32(min(np.int64(4), size - i))
        t0, t1, t2, t3 = four(theta, i, unit, count, wide, zero)
        g0, g1, g2, g3 = four(g, i, unit, count, wide, zero)
        s0, s1, s2, s3, u0, u1, u2, u3 = zero, zero, zero, zero, zero, zero, zero, zero
        if states > 0:
            s0, s1, s2, s3 = four(first, i, unit, count, wide, zero)
        if states > 1:
            u0, u1, u2, u3 = four(second, i, unit, count, wide, zero)
        for _ in range(4):  # so that the rules are there once
            t, s, u = update(code, t0, g0, s0, u0, hyper)
            t0, t1, t2, t3 = t1, t2, t3, t
            g0, g1, g2, g3 = g1, g2, g3, g0
            s0, s1, s2, s3 = s1, s2, s3, s
            u0, u1, u2, u3 = u1, u2, u3, u
        put_four(theta, i, t0, t1, t2, t3, count, wide)
        if states > 0:
            put_four(first, i, s0, s1, s2, s3, count, wide)
        if states > 1:
            put_four(second, i, u0, u1, u2, u3, count, wide)
        q += apart


@device
def rounded(d, addresses, block, blocks, one, space):
    """OUT, of bf16, = A, of float32: (M, N) numbers, to nearest even. Overwrites, up to the next multiple of four."""
    x, out = operand(d, addresses, A, one, space), operand(d, addresses, OUT, np.int32(1), space)
    size, zero, aligned = d[M] * d[N], one - one, whole_quads(x, np.int64(4), one)
    q, quads, apart = np.int64(block) * threads() + thread(), (size + 3) >> 2, np.int64(blocks) * threads()
    while q < quads:
        v0, v1, v2, v3 = quad(x, aligned, 4 * q, size, I32(0), I32(1), np.int64(0), zero)
        put_rounded(out, 4 * q, v0, v1, v2, v3, 4)
        q += apart


@device
def down(d, addresses, block, blocks, one, space):
    """OUT (PIECES, N): row p is the sum of the PIECE rows of A (M, N) from p PIECE on. Overwrites.

    HEAD threads lie along a row, a power of two, four columns each, and K such strips make a row; the other threads
    are below each other, and what they have is joined by halves. Has barriers: all threads of a block, a power of two,
    call it together.
    """
    x, out = operand(d, addresses, A, one, space), operand(d, addresses, OUT, one, space)
    memory = shared(one)
    rows, cols, lanes = d[M], d[N], I32(d[HEAD])
    zero = one - one
    wide, wide_out = whole_quads(x, cols, one), whole_quads(out, cols, one)
    mine, across = I32(thread()), I32(d[K])
    tx, ty, below = remainder(mine, lanes), quotient(mine, lanes), quotient(threads(), lanes)
    number, strips = I32(block), I32(d[PIECES]) * across
    while number < strips:
        piece, strip = quotient(number, across), remainder(number, across)
        c = np.int64(I32(4) * (strip * lanes + tx))
        count = I32(min(np.int64(4), cols - c))
        r, end = piece * d[PIECE] + ty, min(rows, (piece + 1) * d[PIECE])
        s0, s1, s2, s3 = zero, zero, zero, zero
        if count > 0:
            apart = below * cols
            while r + 3 * below < end:  # four rows at a time are on their way
                place = r * cols + c
                a0, a1, a2, a3 = four(x, place, np.int64(1), count, wide, zero)
                b0, b1, b2, b3 = four(x, place + apart, np.int64(1), count, wide, zero)
                c0, c1, c2, c3 = four(x, place + 2 * apart, np.int64(1), count, wide, zero)
                d0, d1, d2, d3 = four(x, place + 3 * apart, np.int64(1), count, wide, zero)
                s0, s1 = s0 + a0 + b0 + c0 + d0, s1 + a1 + b1 + c1 + d1
                s2, s3 = s2 + a2 + b2 + c2 + d2, s3 + a3 + b3 + c3 + d3
                r += 4 * below
            while r < end:
                a0, a1, a2, a3 = four(x, r * cols + c, np.int64(1), count, wide, zero)
                s0, s1, s2, s3 = s0 + a0, s1 + a1, s2 + a2, s3 + a3
                r += below
        store4(memory, 4 * mine, (s0, s1, s2, s3))
        half = below >> I32(1)
        while half > 0:
            sync()
            if ty < half:
                a0, a1, a2, a3 = load4(memory, 4 * (mine + half * lanes))
                s0, s1, s2, s3 = s0 + a0, s1 + a1, s2 + a2, s3 + a3
                store4(memory, 4 * mine, (s0, s1, s2, s3))
            half = half >> I32(1)
        if ty == 0 and count > 0:
            put_four(out, piece * cols + c, s0, s1, s2, s3, count, wide_out)
        sync()
        number = I32(number + I32(blocks))
