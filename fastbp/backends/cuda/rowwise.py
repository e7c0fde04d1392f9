"""Softmax and its kin, a row a warp; and whatever moves rows and columns without computing."""

from __future__ import annotations

import numpy as np

from fastbp.backends.cuda.codes import CODES
from fastbp.backends.cuda.device import apply, device, lowest, number, shuffle_xor, thread, threads
from fastbp.backends.cuda.gemm import I32, divided, larger
from fastbp.backends.cuda.operands import element, operand
from fastbp.backends.cuda.table import (
    CODE,
    HEAD,
    LOG_SUM_EXP,
    LOGARITHMS,
    LOGARITHMS_GRAD,
    OUT,
    PROBABILITIES,
    A,
    B,
    K,
    M,
    N,
)

WARP = I32(32)
EXP, LOG = CODES["exp"], CODES["log"]


@device
def _exp(x):
    return apply(EXP, x, x, x)


@device
def _over_warp(value, is_maximum):
    """The sum or maximum of what the lanes of a warp have, the same in all."""
    apart = WARP >> I32(1)
    while apart > 0:
        other = shuffle_xor(value, apart)
        value = larger(value, other) if is_maximum else value + other
        apart = apart >> I32(1)
    return value


@device
def softmax(d, addresses, block, blocks, one, space):
    """A row at a time, m its largest element: OUT = e^(A - m)/Σ; A - m - log Σ; A - e^B Σ A; log Σ e^(A - m) + m.

    (M, N) each, the last (M, 1). Overwrites. All threads of a block, whole warps, call it together.
    """
    x, y, out = (
        operand(d, addresses, A, one, space),
        operand(d, addresses, B, one, space),
        operand(d, addresses, OUT, one, space),
    )
    code, rows, cols = d[CODE], I32(d[M]), I32(d[N])
    lane, warp, warps = I32(thread()) % WARP, I32(thread()) // WARP, I32(threads()) // WARP
    zero = one - one
    infinity = number(np.inf, one)
    for r in range(I32(block) * warps + warp, rows, I32(blocks) * warps):
        first = np.int64(r) * cols
        if code == LOGARITHMS_GRAD:
            total = zero
            for c in range(lane, cols, WARP):
                total += x[first + c]
            total = _over_warp(total, False)
            for c in range(lane, cols, WARP):
                out[first + c] = x[first + c] - _exp(y[first + c]) * total
            continue
        top = -infinity
        for c in range(lane, cols, WARP):
            top = larger(top, x[first + c])
        top = _over_warp(top, True)
        if code == LOG_SUM_EXP and (top == infinity or top == -infinity):
            top = zero  # so that infinities are not taken from themselves
        total = zero
        for c in range(lane, cols, WARP):
            total += _exp(_below(x[first + c], top, code, one))
        total = _over_warp(total, False)
        if code == LOG_SUM_EXP:
            if lane == 0:
                out[r] = apply(LOG, total, total, total) + top
        elif code == PROBABILITIES:
            for c in range(lane, cols, WARP):
                out[first + c] = _exp(x[first + c] - top) / total
        else:
            shift = apply(LOG, total, total, total)
            for c in range(lane, cols, WARP):
                out[first + c] = _below(x[first + c], top, code, one) - shift


@device
def _below(x, top, code, one):
    """X - top; of logarithms at least the smallest number, never -inf."""
    return larger(x - top, lowest(one)) if code == LOGARITHMS else x - top


@device
def move(d, addresses, block, blocks, one, space):
    """OUT (M, N) = columns of A: column j is A's column j - HEAD if there are K columns from there on, else 0.

    Strides of both are free, so it transposes, too. Overwrites.
    """
    x, out = operand(d, addresses, A, one, space), operand(d, addresses, OUT, one, space)
    cols, start, width = d[N], d[HEAD], d[K]
    e, size, apart = np.int64(block) * threads() + thread(), d[M] * cols, np.int64(blocks) * threads()
    while e < size:
        i, j = divided(e, cols)
        value = one - one
        if start <= j and j < start + width:
            value = x[element(d, A, i, j - start)]
        out[element(d, OUT, i, j)] = value
        e += apart


@device
def onehot(d, addresses, block, blocks, one, space):
    """OUT (M, N): row i has 1 in column A_i, 0 elsewhere; NaN if A_i, int64, is no column. Overwrites."""
    labels, out = operand(d, addresses, A, np.int64(1), space), operand(d, addresses, OUT, one, space)
    cols = d[N]
    e, size, apart = np.int64(block) * threads() + thread(), d[M] * cols, np.int64(blocks) * threads()
    while e < size:
        i, j = divided(e, cols)
        label = labels[i]
        value = one if label == j else one - one
        out[e] = value if label >= 0 and label < cols else number(np.nan, one)
        e += apart


@device
def gather(d, addresses, block, blocks, one, space):
    """OUT (M, N) words of 4 bytes: row i is row B_i of A; B are int64. Overwrites."""
    words = np.int32(1)
    x, out = operand(d, addresses, A, words, space), operand(d, addresses, OUT, words, space)
    order = operand(d, addresses, B, np.int64(1), space)
    cols = d[N]
    e, size, apart = np.int64(block) * threads() + thread(), d[M] * cols, np.int64(blocks) * threads()
    while e < size:
        i, j = divided(e, cols)
        out[e] = x[order[i] * cols + j]
        e += apart


@device
def scatter(d, addresses, block, blocks, one, space):
    """OUT (M, N): row r is the sum of the rows k < K of A with B_k = r, in order; B are int64. Overwrites.

    A warp looks for the rows of one r: 32 row numbers at a time would need ballots; each lane reads them all instead,
    from the cache, and adds its own columns.
    """
    x, out = operand(d, addresses, A, one, space), operand(d, addresses, OUT, one, space)
    index = operand(d, addresses, B, np.int64(1), space)
    cols, count = d[N], d[K]
    e, size, apart = np.int64(block) * threads() + thread(), d[M] * cols, np.int64(blocks) * threads()
    while e < size:
        r, c = divided(e, cols)
        total = one - one
        for k in range(count):
            if index[k] == r:
                total += x[k * cols + c]
        out[e] = total
        e += apart
