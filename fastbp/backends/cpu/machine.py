"""The CPU machine: an interpreter for bound Programs, compiled once a dtype for all networks.

A bound Program is a table of int64 words, one row an instruction: what to do, the sizes, and for every operand the
slot that holds its address, an offset and two strides. Steps of training (gather, forward, loss, backward, update) run
inside :func:`enter` with no Python between them; running a Program once is a single step.

Arguments of kernels are int64(0), not 0: Numba would compile a kernel once more for the literal.

An instruction is done in pieces, which a team of threads may share. A piece of CHUNKS is a number of rows that goes
through a whole table of its own, a chunk of rows after the other: depth first, so that a chunk's activations are still
in the cache when its backward pass reads them (see schedule.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import int64

from fastbp.backends.cpu import words
from fastbp.backends.cpu.chain import run_chain
from fastbp.backends.cpu.chain_words import ADD
from fastbp.backends.cpu.claims import (
    SPINS_BEFORE_YIELD,
    YIELDS_BEFORE_PARK,
    YIELDS_BETWEEN_RUNS,
    atomic_add,
    atomic_load,
    claim,
    finish,
    publish,
    spin,
)
from fastbp.backends.cpu.compiling import kernel
from fastbp.backends.cpu.gemm import panel_of, stack_tile, vectors_for
from fastbp.backends.cpu.kernels import (
    apply_binary,
    apply_unary,
    apply_update,
    copy_panel,
    copy_panel_transposed,
    epilogue,
    narrow_product_by_dots,
    product,
    product_by_dots,
    product_by_rows,
    product_of_few_summands,
    product_of_pairs,
    product_turned,
    product_update,
    row_of_ones,
    strip_of_tiles,
    update_by_rows,
)
from fastbp.backends.cpu.simd import (
    copy_and_prefetch,
    cross_entropy_in_order,
    cross_entropy_lanes,
    cross_entropy_row,
    float_at,
    get_int,
    itemsize_of,
    lanes_of,
    load_at,
    nanoseconds,
    pointer,
    set_int,
    shifted,
    softmax_lanes,
    softmax_row,
    softmax_row_in_order,
    stack_vectors,
    store_at,
    transpose_tile,
)
from fastbp.backends.cpu.target import NARROW
from fastbp.backends.cpu.vectors import STACK_VECTORS
from fastbp.backends.cpu.words import (
    BIAS,
    BLOCK,
    BY_LABELS,
    CALL,
    CHAIN,
    CHUNK,
    CHUNKS,
    CLOCK,
    CODE,
    COL_STRIDE,
    CONTROL,
    COUNT,
    CROSS_ENTROPY,
    CURRENT_BASES,
    CURRENT_ROW,
    DONE,
    DOTS,
    EXTRA,
    FEW_COLUMNS,
    FEW_ROWS,
    FIRST_ROW,
    GATHER,
    HOW,
    LOG_SUM_EXP,
    LOGARITHMS_GRAD,
    LONGEST,
    M_BLOCK,
    MAP_BINARY,
    MAP_UNARY,
    MOVES,
    MOVING,
    MOVING_COUNT,
    N_BLOCK,
    NUMBER,
    OFFSET,
    ONEHOT,
    ONES,
    OP,
    OPEN,
    OPERANDS,
    OUT,
    OUT2,
    OUTER,
    PACK_T,
    PAIRS,
    PANEL,
    PANELS,
    PIECES,
    PRIVATE,
    PRIVATE_BYTES,
    PRODUCT,
    PRODUCT_UPDATE,
    REST_COUNT,
    REST_TABLE,
    ROW_STRIDE,
    RUNS,
    SCATTER,
    SGD,
    SHARED,
    SLOT,
    SLOTS,
    SMALL,
    SOFTMAX,
    STEP_COUNT,
    STEPS,
    STRIP,
    SUMMANDS,
    SUMS,
    TABLE,
    TABLES,
    THEN,
    THREAD,
    TOTAL,
    TRANSPOSE,
    UPDATE,
    WIDTH,
    WITH_GRADIENT,
    A,
    B,
    K,
    M,
    N,
    Y,
)

FEWEST_IN_LANES = 3  # rows of a softmax or a cross entropy that are worth a vector with a row in each lane

_chunk_header = kernel(words.chunk_header)


@kernel
def _operand(row, which, word):
    return get_int(row, OPERANDS + 4 * which + word)


@kernel
def _address(row, bases, which):
    return get_int(bases, _operand(row, which, SLOT)) + _operand(row, which, OFFSET)


@kernel
def _element(row, bases, which, i, j, one):
    """Pointer to element (i, j) of an operand."""
    index = i * _operand(row, which, ROW_STRIDE) + j * _operand(row, which, COL_STRIDE)
    return pointer(_address(row, bases, which), index, one)


@kernel
def _private(bases, thread):
    """Address of memory that no other thread uses."""
    return get_int(bases, PRIVATE) + thread * get_int(bases, PRIVATE_BYTES)


@kernel
def _rate(row, bases, one):
    """The learning rate of a fused update by SGD, else any number."""
    return float_at(_address(row, bases, EXTRA), one) if get_int(row, HOW) & SGD else one


@kernel
def _small_product(row, bases, accumulate, thread, one):
    """:func:`product` where its loops have one turn each: without them 2-4-1 takes 0.5 µs a step instead of 0.8."""
    m, n, k, how = get_int(row, M), get_int(row, N), get_int(row, K), get_int(row, HOW)
    vectors = vectors_for(n, lanes_of(one))
    b, b_row = _address(row, bases, B), _operand(row, B, ROW_STRIDE)
    if how & PACK_T:
        packed = _private(bases, thread)
        copy_panel_transposed(k, vectors, n, packed, b, b_row, one)
        b, b_row = packed, vectors * lanes_of(one)
    out, out_row = _address(row, bases, OUT), _operand(row, OUT, ROW_STRIDE)
    to = pointer(out, 0, one)
    sums, sums_row = to, out_row
    if how & SGD:
        sums, sums_row = stack_tile(one), n
    a_row, y = _operand(row, A, ROW_STRIDE), _address(row, bases, Y)
    strip_of_tiles(
        m, vectors, n, k, get_int(row, BLOCK), accumulate and get_int(row, SUMS), how & (BIAS | SGD),
        pointer(_address(row, bases, A), 0, one), a_row, a_row, _operand(row, A, COL_STRIDE), pointer(b, 0, one), b_row,
        sums, sums_row, to, out_row, pointer(y, 0, one), _rate(row, bases, one),
    )  # fmt: skip
    code, then = get_int(row, CODE), get_int(row, THEN)
    if code >= 0 or then >= 0:
        y_row, y_step = _operand(row, Y, ROW_STRIDE), _operand(row, Y, COL_STRIDE)
        out2, out2_row = _address(row, bases, OUT2), _operand(row, OUT2, ROW_STRIDE)
        epilogue(m, n, out, out_row, code, y, y_row, y_step, then, out2, out2_row, one)


@kernel
def _product_piece(row, bases, i, j, m, n, accumulate, thread, one):
    item = itemsize_of(one)
    k, block, longest, how = get_int(row, K), get_int(row, BLOCK), get_int(row, LONGEST), get_int(row, HOW)
    code, then = get_int(row, CODE), get_int(row, THEN)
    a_row, a_col = _operand(row, A, ROW_STRIDE), _operand(row, A, COL_STRIDE)
    b_row, b_panel = _operand(row, B, ROW_STRIDE), get_int(row, PANEL)
    y_row, y_step = _operand(row, Y, ROW_STRIDE), _operand(row, Y, COL_STRIDE)
    out_row, out2_row = _operand(row, OUT, ROW_STRIDE), _operand(row, OUT2, ROW_STRIDE)
    a = _address(row, bases, A) + i * a_row * item
    b = _address(row, bases, B) + (j * b_row if how & PACK_T else j // panel_of(one) * b_panel) * item
    y = _address(row, bases, Y) + (i * y_row + j * y_step) * item
    out = _address(row, bases, OUT) + (i * out_row + j) * item
    out2 = _address(row, bases, OUT2) + (i * out2_row + j) * item
    rate, scratch = _rate(row, bases, one), _private(bases, thread)
    if how & PAIRS:
        product_of_pairs(
            m, n, k, block, longest, how, a, a_row, a_col, b, b_row, out, out_row,
            code, y, y_row, y_step, then, out2, out2_row, rate, scratch, one,
        )  # fmt: skip
    else:
        product(
            m, n, k, block, longest, get_int(row, STRIP), how, accumulate and get_int(row, SUMS),
            a, a_row, a_col, b, b_row, b_panel, out, out_row,
            code, y, y_row, y_step, then, out2, out2_row, rate, scratch, one,
        )  # fmt: skip


@kernel
def _few_rows(row, bases, j, n, accumulate, thread, one):
    """All rows of a product with few of them, columns j …."""
    item = itemsize_of(one)
    m, k, how = get_int(row, M), get_int(row, K), get_int(row, HOW)
    a, a_row = _address(row, bases, A), _operand(row, A, ROW_STRIDE)
    b, b_row = _address(row, bases, B), _operand(row, B, ROW_STRIDE)
    y, y_row, y_step = _address(row, bases, Y), _operand(row, Y, ROW_STRIDE), _operand(row, Y, COL_STRIDE)
    out, out_row = _address(row, bases, OUT) + j * item, _operand(row, OUT, ROW_STRIDE)
    out2, out2_row = _address(row, bases, OUT2) + j * item, _operand(row, OUT2, ROW_STRIDE)
    code, then = get_int(row, CODE), get_int(row, THEN)
    y += j * y_step * item
    if how & DOTS:
        product_by_dots(n, k, a, b + j * b_row * item, b_row, out, code, y, y_step, then, out2, one)
    elif how & PACK_T:
        product_turned(
            m, n, k, get_int(row, BLOCK), a, a_row, b + j * b_row * item, b_row, out, out_row, code, y, y_row, y_step,
            then, out2, out2_row, one,
        )  # fmt: skip
    else:
        product_by_rows(
            m, n, k, get_int(row, BLOCK), how, accumulate and get_int(row, SUMS),
            a, a_row, _operand(row, A, COL_STRIDE), y, b + j * item, b_row, out, out_row,
            code, y, y_row, y_step, then, out2, out2_row, _address(row, bases, EXTRA), _private(bases, thread), one,
        )  # fmt: skip


@kernel
def _few_columns(row, bases, i, m, thread, one):
    """Rows i … of a product with few columns."""
    item = itemsize_of(one)
    a_row, y_row = _operand(row, A, ROW_STRIDE), _operand(row, Y, ROW_STRIDE)
    out_row, out2_row = _operand(row, OUT, ROW_STRIDE), _operand(row, OUT2, ROW_STRIDE)
    narrow_product_by_dots(
        m, get_int(row, N), get_int(row, K), get_int(row, HOW), _address(row, bases, A) + i * a_row * item, a_row,
        _address(row, bases, B), _operand(row, B, ROW_STRIDE), _address(row, bases, OUT) + i * out_row * item, out_row,
        get_int(row, CODE), _address(row, bases, Y) + i * y_row * item, y_row, _operand(row, Y, COL_STRIDE),
        get_int(row, THEN), _address(row, bases, OUT2) + i * out2_row * item, out2_row, _private(bases, thread), one,
    )  # fmt: skip


@kernel
def _outer(row, bases, i, m, one):
    """Rows i … of a product with few rows of B."""
    item = itemsize_of(one)
    a_row, y_row = _operand(row, A, ROW_STRIDE), _operand(row, Y, ROW_STRIDE)
    out_row, out2_row = _operand(row, OUT, ROW_STRIDE), _operand(row, OUT2, ROW_STRIDE)
    product_of_few_summands(
        m, get_int(row, N), get_int(row, K), get_int(row, HOW), _address(row, bases, A) + i * a_row * item, a_row,
        _operand(row, A, COL_STRIDE), _address(row, bases, B), _operand(row, B, ROW_STRIDE),
        _address(row, bases, OUT) + i * out_row * item, out_row, get_int(row, CODE),
        _address(row, bases, Y) + i * y_row * item, y_row, _operand(row, Y, COL_STRIDE),
        get_int(row, THEN), _address(row, bases, OUT2) + i * out2_row * item, out2_row, one,
    )  # fmt: skip


@kernel
def _few_summands(row, bases, i, m, n, one):
    """Rows i … of theta, with an update by SGD whose gradient is a product of few columns and rows."""
    item = itemsize_of(one)
    a_row, theta_row = _operand(row, A, ROW_STRIDE), _operand(row, OUT, ROW_STRIDE)
    rows = m + 1 if get_int(row, HOW) & ONES and i + m == get_int(row, M) else m
    update_by_rows(
        rows, m, n, get_int(row, K), get_int(row, HOW), _address(row, bases, A) + i * a_row * item, a_row,
        _operand(row, A, COL_STRIDE),
        _address(row, bases, Y), _address(row, bases, B), _operand(row, B, ROW_STRIDE),
        _address(row, bases, OUT) + i * theta_row * item, theta_row, _rate(row, bases, one), one,
    )  # fmt: skip


@kernel
def _row_of_ones(row, bases, j, n, accumulate, one):
    """The row after the last one of a product with ONES."""
    item = itemsize_of(one)
    b_panel = get_int(row, PANEL)
    row_of_ones(
        n,
        get_int(row, K),
        get_int(row, BLOCK),
        get_int(row, HOW),
        accumulate and get_int(row, SUMS),
        _address(row, bases, Y),
        _address(row, bases, B) + j // panel_of(one) * b_panel * item,
        _operand(row, B, ROW_STRIDE),
        b_panel,
        _address(row, bases, OUT) + (get_int(row, M) * _operand(row, OUT, ROW_STRIDE) + j) * item,
        _rate(row, bases, one),
        one,
    )


@kernel
def _total(row, bases, accumulate, one):
    """The element behind the only row of a product with TOTAL."""
    zero = int64(0)
    row_of_ones(
        int64(1), get_int(row, K), get_int(row, BLOCK), get_int(row, HOW), accumulate and get_int(row, SUMS),
        _address(row, bases, Y), _address(row, bases, A), _operand(row, A, COL_STRIDE), zero,
        _address(row, bases, OUT) + get_int(row, N) * itemsize_of(one), _rate(row, bases, one), one,
    )  # fmt: skip


@kernel
def _product_update_piece(row, bases, rule, i, m, n, one):
    item = itemsize_of(one)
    a_row = _operand(row, A, ROW_STRIDE)
    product_update(
        rule,
        m,
        n,
        get_int(row, K),
        get_int(row, BLOCK),
        _address(row, bases, A) + i * a_row * item,
        a_row,
        _operand(row, A, COL_STRIDE),
        _address(row, bases, B),
        _operand(row, B, ROW_STRIDE),
        _element(row, bases, OUT, i, 0, one),
        _element(row, bases, Y, i, 0, one),
        _element(row, bases, OUT2, i, 0, one),
        pointer(_address(row, bases, EXTRA), 0, 1.0),
        one,
    )


@kernel
def _scale(row, bases, one):
    """The number in EXTRA, 1 if there is none."""
    return load_at(pointer(_address(row, bases, EXTRA), 0, one), 0)


@kernel
def _softmax(row, bases, i, m, one):
    """Rows of a softmax, of its logarithm, or of what that hands back.

    Narrow rows are transposed, so that each lane has a row: 206 rows of 3 took 6.5 µs a row at a time.
    """
    lanes = lanes_of(one)
    code, n = get_int(row, CODE), get_int(row, N)
    if n > STACK_VECTORS:
        for r in range(i, i + m):
            out, z = _element(row, bases, OUT, r, 0, one), _element(row, bases, A, r, 0, one)
            softmax_row(code, n, out, z, _element(row, bases, B, r, 0, one))
        return
    if m < FEWEST_IN_LANES:
        for r in range(i, i + m):
            out, z = _element(row, bases, OUT, r, 0, one), _element(row, bases, A, r, 0, one)
            softmax_row_in_order(code, n, out, z, _element(row, bases, B, r, 0, one))
        return
    z, y = stack_vectors(one), stack_vectors(one)
    for r in range(i, i + m, lanes):
        rows = min(lanes, i + m - r)
        _into_lanes(rows, n, z, _element(row, bases, A, r, 0, one), one)
        if code == LOGARITHMS_GRAD:
            _into_lanes(rows, n, y, _element(row, bases, B, r, 0, one), one)
        softmax_lanes(code, n, z, y)
        _out_of_lanes(rows, int64(1) if code == LOG_SUM_EXP else n, _element(row, bases, OUT, r, 0, one), z, one)


@kernel
def _into_lanes(rows, n, out, x, one):
    """At most a vector of rows (rows, n) as n vectors, row r in lane r. The last tile ends with the row."""
    lanes = lanes_of(one)
    for c in range(0, n, lanes):
        first = max(int64(0), min(c, n - lanes))
        transpose_tile(rows, min(n, lanes), shifted(out, first * lanes), lanes, shifted(x, first), n)


@kernel
def _out_of_lanes(rows, n, out, x, one):
    """What :func:`_into_lanes` did, back."""
    lanes = lanes_of(one)
    for c in range(0, n, lanes):
        first = max(int64(0), min(c, n - lanes))
        transpose_tile(min(n, lanes), rows, shifted(out, first), n, shifted(x, first * lanes), lanes)


@kernel
def _cross_entropy(row, bases, i, m, one):
    """Rows of a cross entropy, and of its gradient; narrow ones with a row in each lane."""
    lanes = lanes_of(one)
    code, n = get_int(row, CODE), get_int(row, N)
    scale = load_at(pointer(_address(row, bases, EXTRA), int64(0), one), 0) if code & WITH_GRADIENT else one
    labels = _address(row, bases, B)
    if n > STACK_VECTORS:
        label = int64(-1)
        for r in range(i, i + m):
            if code & BY_LABELS:
                label = get_int(labels, r)
            out, z = _element(row, bases, OUT2, r, 0, one), _element(row, bases, A, r, 0, one)
            sums = _element(row, bases, OUT, r, 0, one)
            t = z if code & BY_LABELS else _element(row, bases, B, r, 0, one)
            store_at(sums, 0, cross_entropy_row(code, n, out, z, t, label, scale))
        return
    d, z, t = stack_vectors(one), stack_vectors(one), stack_vectors(one)
    if m < FEWEST_IN_LANES:
        for r in range(i, i + m):
            t = _element(row, bases, B, r, 0, one)
            if code & BY_LABELS:
                t = z
                for k in range(n):
                    store_at(t, k, one - one)
                label = get_int(labels, r)
                if 0 <= label < n:
                    store_at(t, label, one)
            of_z, out = _element(row, bases, A, r, 0, one), _element(row, bases, OUT2, r, 0, one)
            loss = cross_entropy_in_order(code & WITH_GRADIENT, n, out, of_z, t, scale)
            store_at(_element(row, bases, OUT, r, 0, one), 0, loss)
        return
    for r in range(i, i + m, lanes):
        rows = min(lanes, i + m - r)
        _into_lanes(rows, n, z, _element(row, bases, A, r, 0, one), one)
        if code & BY_LABELS:
            for k in range(n * lanes):
                store_at(t, k, one - one)
            for k in range(rows):
                label = get_int(labels, r + k)
                if 0 <= label < n:
                    store_at(t, label * lanes + k, one)
        else:
            _into_lanes(rows, n, t, _element(row, bases, B, r, 0, one), one)
        cross_entropy_lanes(code & WITH_GRADIENT, n, d, z, t, scale)
        transpose_tile(int64(1), rows, _element(row, bases, OUT, r, 0, one), int64(1), z, lanes)
        if code & WITH_GRADIENT:
            _out_of_lanes(rows, n, _element(row, bases, OUT2, r, 0, one), d, one)


@kernel
def _onehot(row, bases, i, m, one):
    zero = one - one
    classes = get_int(row, N)
    for r in range(i, i + m):
        out = _element(row, bases, OUT, r, 0, one)
        for c in range(classes):
            store_at(out, c, zero)
        label = get_int(_address(row, bases, A), r)
        if 0 <= label < classes:
            store_at(out, label, one)


@kernel
def _gather(row, bases, i, m):
    """Copy rows by words of 4 bytes: float32, float64 and int64 alike.

    The rows of the next batch, K row numbers on, are asked for meanwhile (a batch of row numbers follows the order, see
    training.py): 784-30-10 on shuffled MNIST took 16.0 µs a step instead of 16.9.
    """
    words = get_int(row, N)
    data, out, order = _address(row, bases, A), _address(row, bases, OUT), _address(row, bases, B)
    batch = get_int(row, K)
    for r in range(i, i + m):
        source = data + get_int(order, r) * words * 4
        copy_and_prefetch(words, out + r * words * 4, source, data + get_int(order, r + batch) * words * 4)


@kernel
def _scatter(row, bases, i, m, one):
    """Rows i … i + m of a sum of rows: out_r = Σ x_k over the rows k with index_k = r, in order."""
    cols, count = get_int(row, N), get_int(row, K)
    step = int64(1)
    for r in range(i, i + m):
        out = _element(row, bases, OUT, r, 0, one)
        for c in range(cols):
            store_at(out, c, one - one)
    index = _address(row, bases, B)
    for k in range(count):
        r = get_int(index, k)
        if i <= r < i + m:
            out = _element(row, bases, OUT, r, 0, one)
            apply_binary(int64(ADD), cols, out, out, step, _element(row, bases, A, k, 0, one), step, one)


@kernel
def _run_block(row, bases, piece, accumulate, thread, one):
    """One piece of any instruction but CHUNKS: M_BLOCK x N_BLOCK of its output."""
    op = get_int(row, OP)
    code = get_int(row, CODE)
    if op == PRODUCT and get_int(row, HOW) & SMALL:
        _small_product(row, bases, accumulate, thread, one)
        if get_int(row, HOW) & ONES:
            _row_of_ones(row, bases, int64(0), get_int(row, N), accumulate, one)
        if get_int(row, HOW) & TOTAL:
            _total(row, bases, accumulate, one)
        return
    i, j, m, n = int64(0), int64(0), get_int(row, M), get_int(row, N)
    if get_int(row, PIECES) > 1:
        m_block, n_block = get_int(row, M_BLOCK), get_int(row, N_BLOCK)
        if NARROW:  # pieces go across first: their rows of A stay in the third-level cache, if no nearer
            across = max(1, (n + n_block - 1) // n_block)
            i, j = piece // across * m_block, piece % across * n_block
        else:
            down = max(1, (m + m_block - 1) // m_block)
            i, j = piece % down * m_block, piece // down * n_block
        m, n = min(m_block, m - i), min(n_block, n - j)
    if op == CHAIN:
        own = _private(bases, thread)
        adds, first = accumulate and get_int(row, SUMS), get_int(bases, FIRST_ROW)
        run_chain(code, bases, own, piece, i, j, m, n, adds, first, one)
    elif op == PRODUCT:
        if get_int(row, HOW) & SUMMANDS:
            _few_summands(row, bases, i, m, n, one)
        elif get_int(row, HOW) & FEW_ROWS:
            _few_rows(row, bases, j, n, accumulate, thread, one)
        elif get_int(row, HOW) & OUTER:
            _outer(row, bases, i, m, one)
        elif get_int(row, HOW) & FEW_COLUMNS:
            _few_columns(row, bases, i, m, thread, one)
        else:
            _product_piece(row, bases, i, j, m, n, accumulate, thread, one)
        if get_int(row, HOW) & (ONES | FEW_ROWS | SUMMANDS) == ONES and i + m == get_int(row, M):
            _row_of_ones(row, bases, j, n, accumulate, one)
        if get_int(row, HOW) & TOTAL and j + n == get_int(row, N):
            _total(row, bases, accumulate, one)
    elif op == MAP_BINARY:
        x_step, y_step = _operand(row, A, COL_STRIDE), _operand(row, B, COL_STRIDE)
        for r in range(i, i + m):
            out = _element(row, bases, OUT, r, j, one)
            x, y = _element(row, bases, A, r, j, one), _element(row, bases, B, r, j, one)
            apply_binary(code, n, out, x, x_step, y, y_step, _scale(row, bases, one))
    elif op == MAP_UNARY:
        for r in range(i, i + m):
            out, x = _element(row, bases, OUT, r, j, one), _element(row, bases, A, r, j, one)
            apply_unary(code, n, out, x, _operand(row, A, COL_STRIDE))
    elif op == UPDATE:
        theta, g = _element(row, bases, OUT, 0, j, one), _element(row, bases, A, 0, j, one)
        first, second = _element(row, bases, B, 0, j, one), _element(row, bases, Y, 0, j, one)
        apply_update(code, n, theta, g, first, second, pointer(_address(row, bases, EXTRA), 0, 1.0))
    elif op == PRODUCT_UPDATE:
        _product_update_piece(row, bases, code, i, m, n, one)
    elif op == GATHER:
        _gather(row, bases, i, m)
    elif op == SOFTMAX:
        _softmax(row, bases, i, m, one)
    elif op == CROSS_ENTROPY:
        _cross_entropy(row, bases, i, m, one)
    elif op == SCATTER:
        _scatter(row, bases, i, m, one)
    elif op == ONEHOT:
        _onehot(row, bases, i, m, one)
    elif op == TRANSPOSE:
        _transpose(row, bases, i, j, m, n, one)
    elif op == PANELS:
        _into_panels(row, bases, i, j, m, n, one)


@kernel
def _into_panels(row, bases, i, j, m, n, one):
    """Rows i … and columns j … of a matrix, to where a product finds a panel's rows one behind the other."""
    panel, wide = panel_of(one), get_int(row, PANEL)
    out_row, x_row = _operand(row, OUT, ROW_STRIDE), _operand(row, A, ROW_STRIDE)
    for c in range(j, j + n, panel):
        out = pointer(_address(row, bases, OUT), c // panel * wide + i * out_row, one)
        cols = min(panel, j + n - c)
        copy_panel(m, vectors_for(cols, lanes_of(one)), cols, out, out_row, _element(row, bases, A, i, c, one), x_row)


@kernel
def _transpose(row, bases, i, j, m, n, one):
    """Rows i … of the source and its columns j … become columns i … and rows j … of the output, in panels."""
    lanes = lanes_of(one)
    panel, wide = panel_of(one), get_int(row, PANEL)
    out_row, x_row = _operand(row, OUT, ROW_STRIDE), _operand(row, A, ROW_STRIDE)
    for r in range(i, i + m, lanes):
        for c in range(j, j + n, lanes):
            out = pointer(_address(row, bases, OUT), r // panel * wide + c * out_row + r % panel, one)
            x = pointer(_address(row, bases, A), r * x_row + c, one)
            transpose_tile(min(lanes, i + m - r), min(lanes, j + n - c), out, out_row, x, x_row)


@kernel
def _began(clock):
    return nanoseconds() if clock != 0 else 0


@kernel
def _ended(clock, row, began):
    """Add the time since ``began`` to the instruction's, if a clock is wanted."""
    if clock != 0:
        atomic_add(clock, get_int(row, NUMBER), nanoseconds() - began)


@kernel
def _run_chunks(row, bases, piece, thread, one):
    """A piece of the rows through a table of instructions, a chunk after the other, by this thread alone.

    The tables see addresses of their own: rows of the batch begin at the chunk's first, temps lie in the thread's
    private memory, sums in the slot of the piece.
    """
    first = piece * get_int(row, M_BLOCK)
    end = min(first + get_int(row, M_BLOCK), get_int(row, M))
    chunk, moves, slots = get_int(row, CHUNK), get_int(row, MOVES), get_int(row, SLOTS)
    own = _private(bases, thread)
    clock = get_int(bases, CLOCK)
    for at in range(first, end, chunk):
        for k in range(slots):
            moved = at * get_int(moves, 2 * k) + piece * get_int(moves, 2 * k + 1)
            set_int(own, k, get_int(bases, k) + moved)
        set_int(own, PRIVATE, own + _chunk_header(slots))
        set_int(own, PRIVATE_BYTES, 0)
        set_int(own, FIRST_ROW, at)
        table, count = get_int(row, TABLE), get_int(row, COUNT)
        if end - at < chunk:
            table, count = get_int(row, REST_TABLE), get_int(row, REST_COUNT)
        for q in range(count):
            line = table + q * WIDTH * 8
            began = _began(clock)
            for part in range(get_int(line, PIECES)):
                _run_block(line, own, part, int64(at > first), int64(0), one)
            _ended(clock, line, began)


@kernel
def run_piece(row, bases, piece, thread, one):
    """Do one piece of the instruction at ``row``."""
    if get_int(row, OP) == CHUNKS:
        _run_chunks(row, bases, piece, thread, one)
    else:
        _run_block(row, bases, piece, int64(0), thread, one)


@kernel
def _run_table(table, count, bases, control, one):
    clock = get_int(bases, CLOCK)
    caller = int64(0)
    for q in range(count):
        row = table + q * WIDTH * 8
        pieces = get_int(row, PIECES)
        began = _began(clock)
        if control == 0 or get_int(row, SHARED) == 0:
            for piece in range(pieces):
                run_piece(row, bases, piece, caller, one)
        else:
            publish(control, row, bases, pieces)
            piece = claim(control, caller)
            while piece >= 0:
                run_piece(row, bases, piece, caller, one)
                finish(control, caller)
                piece = claim(control, caller)
            waited = 0
            while atomic_load(control, DONE) < pieces:
                waited = spin(waited)
        _ended(clock, row, began)


@kernel
def _help(control, thread, one):
    """Work for whoever has the team, until there has been nothing to do for a while: a shorter one between runs."""
    waited = 0
    while thread < atomic_load(control, OPEN):
        piece = claim(control, thread)
        if piece < 0:
            waited = spin(waited)
            patience = YIELDS_BEFORE_PARK if atomic_load(control, RUNS) else YIELDS_BETWEEN_RUNS
            if waited >= SPINS_BEFORE_YIELD * patience:
                break
        else:
            run_piece(get_int(control, CURRENT_ROW), get_int(control, CURRENT_BASES), piece, thread, one)
            finish(control, thread)
            waited = 0


def make_enter(dtype: str) -> Any:
    """The function that a call of the machine enters, for one dtype."""
    one = np.dtype(dtype).type(1)

    def enter(call):
        """Run the steps of a call, or help whoever does if its THREAD > 0. All words are int64, addresses included.

        TABLES: (address, rows) of each bound table. STEPS: (table, position, step) of each step. MOVING: (slot,
        address, bytes a position, bytes a step) of the slots whose addresses differ from step to step.
        """
        thread, control = get_int(call, THREAD), get_int(call, CONTROL)
        if thread > 0:
            _help(control, thread, one)
            return
        tables, steps, moving, bases = (
            get_int(call, TABLES),
            get_int(call, STEPS),
            get_int(call, MOVING),
            call + 8 * CALL,
        )
        for s in range(get_int(call, STEP_COUNT)):
            table, position, step = get_int(steps, 3 * s), get_int(steps, 3 * s + 1), get_int(steps, 3 * s + 2)
            for k in range(get_int(call, MOVING_COUNT)):
                moved = position * get_int(moving, 4 * k + 2) + step * get_int(moving, 4 * k + 3)
                set_int(bases, get_int(moving, 4 * k), get_int(moving, 4 * k + 1) + moved)
            _run_table(get_int(tables, 2 * table), get_int(tables, 2 * table + 1), bases, control, one)

    return enter
