"""Chains on the CPU: many elementwise operations in one pass over memory, without compiling anything for them.

A chain is interpreted a block of elements at a time. A block is small enough that all its values stay in the
first-level cache, and long enough that what an operation costs to start (about 5 ns) does not count. Values that
nobody else reads live in registers: blocks of memory of the thread's own.

The chain's table of int64 words begins with a header; the places follow, then the operations: the prologue (once a
piece), the body (once a block) and the epilogue. A place is where an operand of an operation lies; operations name
places by number. At the start of a thread's private memory there are two words a place: its address for this block,
and whether it goes on from element to element (1) or is one number for all (0).

Blocks have HEIGHT rows and WIDTH columns. If there are several rows, a block spans all columns, so that blocks are
contiguous; a row that is broadcast is then tiled once into a register, and a column spread for every block. Sums over
all elements are kept as ``4 lanes`` running sums, so that their order depends on the number of elements alone; sums
over rows are kept as a whole block, whose rows are added up last.
"""

from __future__ import annotations

from numba import int64

from fastbp.backends.cpu.chain_words import (
    A_COLUMN,
    A_PIECE,
    A_ROW,
    ADD,
    BINARY,
    BODY,
    CLEAR,
    CLEAR_MAX,
    CODE,
    COLUMNS,
    COPY,
    END_ALL,
    END_COLUMNS,
    EPILOGUE,
    HEADER,
    HEIGHT,
    KIND,
    MASK,
    MAXIMUM,
    OFFSET,
    OPERATION,
    OUT,
    OWN,
    PLACE,
    PLACES,
    PROLOGUE,
    REDUCE_ALL,
    REDUCE_ROWS,
    REDUCE_WHOLE,
    ROW,
    RUNNING,
    SCALE,
    SLOT,
    SPREAD,
    SQUARED_ERROR,
    STEP,
    STILL,
    TERNARY,
    TILE,
    UNARY,
    WIDTH,
    C,
    X,
    Y,
    Z,
)
from fastbp.backends.cpu.compiling import kernel
from fastbp.backends.cpu.kernels import apply_binary, apply_ternary, apply_unary
from fastbp.backends.cpu.simd import (
    dropout_mask,
    get_int,
    lanes_of,
    load_at,
    lowest_of,
    pointer,
    reduce_into,
    reduce_row,
    set_int,
    shifted,
    squared_error,
    store_at,
)
from fastbp.backends.cpu.words import MAX


@kernel
def _place(private, k, one):
    return pointer(get_int(private, 2 * k), int64(0), one)


@kernel
def _point(places, k, bases, private, r, c, j, piece):
    """Work out the address of place k for the block at row r, column c, in a piece from column j on."""
    place = places + k * 8 * PLACE
    slot = get_int(place, SLOT)
    base = private if slot == OWN else get_int(bases, slot)
    if slot == OWN:
        c -= j
    base += get_int(place, OFFSET) + r * get_int(place, A_ROW) + c * get_int(place, A_COLUMN)
    set_int(private, 2 * k, base + piece * get_int(place, A_PIECE))
    set_int(private, 2 * k + 1, get_int(place, STEP))


@kernel
def _number(private, operation, word, one):
    """The number that an operation multiplies by: C, or SCALE."""
    k = get_int(operation, word)
    return load_at(_place(private, k, one), 0) if k >= 0 else one


@kernel
def _end_columns(private, operation, rows, cols, accumulate, one):
    """Add up the rows of a block of running sums, or take their maximum."""
    code, step = int64(MAXIMUM if get_int(operation, CODE) == MAX else ADD), int64(1)
    out, running = _place(private, get_int(operation, OUT), one), _place(private, get_int(operation, X), one)
    for r in range(1, rows):
        apply_binary(code, cols, running, running, step, shifted(running, r * cols), step, one)
    if not accumulate:
        for k in range(cols):
            store_at(out, k, one - one)
    apply_binary(int64(ADD), cols, out, running, step, out, step, _number(private, operation, C, one))


@kernel
def _once(private, operation, height, columns, accumulate, one):
    """An operation of the prologue or the epilogue of a piece with so many columns."""
    kind, code = get_int(operation, KIND), get_int(operation, CODE)
    out = _place(private, get_int(operation, OUT), one)
    if kind in (CLEAR, CLEAR_MAX):
        start = lowest_of(one) if kind == CLEAR_MAX else one - one
        for k in range(code):
            store_at(out, k, start)
    elif kind == TILE:
        x = _place(private, get_int(operation, X), one)
        for r in range(height):
            apply_unary(int64(COPY), columns, shifted(out, r * columns), x, int64(1))
    elif kind == END_ALL:
        total = reduce_row(code, RUNNING * lanes_of(one), _place(private, get_int(operation, X), one))
        total *= _number(private, operation, C, one)
        store_at(out, 0, total + load_at(out, 0) if accumulate else total)
    elif kind == END_COLUMNS:
        _end_columns(private, operation, height, columns, accumulate, one)


@kernel
def run_chain(head, bases, private, piece, i, j, m, n, accumulate, first_row, one):
    """Rows i … i + m and columns j … j + n of a chain; row 0 is row ``first_row`` of the batch.

    Sums go out over what ``out`` held, or are added to it if ``accumulate``; in a piece's own place if it has one.
    """
    count, still = get_int(head, PLACES), get_int(head, STILL)
    height, width, columns = get_int(head, HEIGHT), get_int(head, WIDTH), get_int(head, COLUMNS)
    places = head + 8 * HEADER
    operations = places + count * 8 * PLACE
    for k in range(still):
        _point(places, k, bases, private, int64(0), j, j, piece)
    for _ in range(get_int(head, PROLOGUE)):
        _once(private, operations, height, n, accumulate, one)
        operations += 8 * OPERATION
    body, before = get_int(head, BODY), first_row * get_int(head, ROW)
    for r in range(i, i + m, height):
        rows = min(height, i + m - r)
        for c in range(j, j + max(n, 1), width):  # rows of nothing are reduced, too
            cols = min(width, j + n - c)
            for k in range(still, count):
                _point(places, k, bases, private, r, c, j, piece)
            for q in range(body):
                _operate(private, operations + q * 8 * OPERATION, rows, cols, before + r * columns + c, accumulate, one)
    operations += body * 8 * OPERATION
    for _ in range(get_int(head, EPILOGUE)):
        _once(private, operations, height, n, accumulate, one)
        operations += 8 * OPERATION


@kernel
def _operate(private, operation, rows, cols, element, accumulate, one):
    """One operation on a block that begins with that element of the batch."""
    kind, code = get_int(operation, KIND), get_int(operation, CODE)
    x_place = get_int(operation, X)
    out, x = _place(private, get_int(operation, OUT), one), _place(private, x_place, one)
    x_step = get_int(private, 2 * x_place + 1)
    n = rows * cols
    if kind == UNARY:
        apply_unary(code, n, out, x, x_step)
    elif kind == BINARY:
        k = get_int(operation, Y)
        y = _place(private, k, one)
        apply_binary(code, n, out, x, x_step, y, get_int(private, 2 * k + 1), _number(private, operation, C, one))
    elif kind == TERNARY:
        k, p = get_int(operation, Y), get_int(operation, Z)
        y, z = _place(private, k, one), _place(private, p, one)
        apply_ternary(
            code, n, out, x, x_step, y, get_int(private, 2 * k + 1), z, get_int(private, 2 * p + 1)
        )  # fmt: skip
    elif kind == SQUARED_ERROR:
        y, to = _place(private, get_int(operation, Y), one), _place(private, get_int(operation, Z), one)
        running = pointer(int64(0), int64(0), one) if code else to
        total = squared_error(n, out, x, y, _number(private, operation, C, one), running)
        if code:
            total *= _number(private, operation, SCALE, one)
            store_at(to, 0, total + load_at(to, 0) if accumulate else total)
    elif kind == MASK:
        dropout_mask(code, n, out, pointer(get_int(private, 2 * x_place), int64(0), 1.0), element)
    elif kind == REDUCE_WHOLE:
        total = reduce_row(code, n, x) * _number(private, operation, C, one)
        store_at(out, 0, total + load_at(out, 0) if accumulate else total)
    elif kind == REDUCE_ALL:
        reduce_into(code, n, out, x)
    elif kind == REDUCE_ROWS:
        for r in range(rows):
            store_at(out, r, reduce_row(code, cols, shifted(x, r * cols)) * _number(private, operation, C, one))
    elif kind == SPREAD:
        for r in range(rows):
            apply_unary(int64(COPY), cols, shifted(out, r * cols), shifted(x, r), int64(0))
