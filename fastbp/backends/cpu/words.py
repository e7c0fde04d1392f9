"""What the words of the machine's tables mean: binding.py writes them, the kernels read them."""

from __future__ import annotations

from fastbp import scalars
from fastbp.backends.threads import MAX_THREADS

UNARY_CODES = {name: code for code, name in enumerate(scalars.UNARY)}
BINARY_CODES = {name: code for code, name in enumerate(scalars.BINARY)}
TERNARY_CODES = {name: code for code, name in enumerate(scalars.TERNARY)}
UPDATE_CODES = {name: code for code, name in enumerate(scalars.UPDATES)}

# ---- a table -------------------------------------------------------------------------------------------------------

# operations
PRODUCT, MAP_UNARY, MAP_BINARY, SOFTMAX, ONEHOT, TRANSPOSE, GATHER, SCATTER, UPDATE = range(9)
PRODUCT_UPDATE = 9  # a gradient's product and the update of what it is the gradient of
CHUNKS = 10
CHAIN = 11  # see chain.py
PANELS = 12  # copy a matrix into panels
CROSS_ENTROPY = 13  # and its gradient, see cross_entropy.py
# words of a row; M, N, K are sizes, a piece is M_BLOCK rows by N_BLOCK columns
OP, CODE, THEN, M, N, K, M_BLOCK, N_BLOCK, PIECES, SHARED = range(10)
# of a product (see gemm.py); PANEL also of a transposition and a copy into panels
BLOCK, LONGEST, STRIP, HOW, PANEL = range(10, 15)
SUMS = 15  # 1 where the output is a sum over the rows of a chunk, which adds to those of the chunks before
NUMBER = 16  # of the instruction, for the clock
OPERANDS = 17
# words of an operand; offset in bytes, strides in elements
SLOT, OFFSET, ROW_STRIDE, COL_STRIDE = range(4)
OUT, A, B, Y, OUT2, EXTRA = range(6)
WIDTH = OPERANDS + 4 * 6
# words of CHUNKS in place of M_BLOCK …: rows of a piece, of a chunk; addresses and lengths of the tables for a whole
# chunk and for the rest; address of the bytes by which each slot moves a row and a piece; number of slots
HEAD = CODE  # of a chain: the address of its table
CHUNK, TABLE, COUNT, REST_TABLE, REST_COUNT, MOVES, SLOTS = N_BLOCK, CODE, THEN, K, BLOCK, LONGEST, STRIP
# the first slots: memory of each thread's own and its bytes a thread; where the clock adds up, or
# 0; the number of rows before the chunk; the temps; the sums over the pieces of CHUNKS
PRIVATE, PRIVATE_BYTES, CLOCK, FIRST_ROW, WORKSPACE, PARTIALS = range(6)
# the words of a call, which come before the addresses of the slots: which thread calls; where the tables are; the
# steps and how many there are; the slots that move and how many; the team's control block
THREAD, TABLES, STEPS, STEP_COUNT, MOVING, MOVING_COUNT, CONTROL = range(7)
CALL = 8

# ---- the team's control block --------------------------------------------------------------------------------------

# Those that different threads write lie in cache lines of their own: pieces that are done; the row of the table and the
# addresses of the slots; how many threads may claim, and whether a run is going on.
DONE, CURRENT_ROW, CURRENT_BASES, OPEN, RUNS = 0, 16, 17, 32, 33
RANGES = 48  # a line a thread: its word, and the number of pieces that it has done
CONTROL_LINE = 16
CONTROL_WORDS = RANGES + CONTROL_LINE * MAX_THREADS
FIELD = 20  # bits of the piece number and of the number of pieces
MASK = (1 << FIELD) - 1
MAX_PIECES = MASK - MAX_THREADS  # each thread may claim once too often

# ---- a product -----------------------------------------------------------------------------------------------------

# how a tile ends, and how the product is done: bits of HOW
ADD = 1  # what C held is added: it is the sum over earlier blocks of K
BIAS = 2  # a row is added to every row of C
SGD = 4  # C is the gradient of theta, and theta - rate C is all that is stored
PACK_A, PACK_B = 8, 16  # copy the part of A or B that is used next to memory that is contiguous
BY_STRIP = 32  # the epilogue comes after a strip of rows, not after each tile
PACK_T = 64  # B is given as its transpose, row by row, and packed panel by panel
ONES = 128  # A has one more row, of ones: the sums of B's columns, which are the gradient of a bias
PAIRS = 256  # A and B are rounded to bfloat16, see bf16.py
FEW_ROWS = 512  # done by few_rows.py: by rows of B, or without a copy of it if it is given transposed
SMALL = 1024  # one strip, one stretch of K, one panel of columns, only a transposed B packed
DOTS = 2048  # dot products of one row of A with rows of B, which is given transposed
SUMMANDS = 4096  # few columns of A and rows of B, and SGD: done a row of theta after the other
FEW_COLUMNS = 8192  # done by few_rows.py: dot products of rows of A with few columns of B
OUTER = 16384  # rows of C are sums of few rows of B: done by few_rows.py
BY_PANELS = 32768  # one row, panel after panel: done by one_row.py
TOTAL = 65536  # B has one more column, of ones: the sum of A's only row, which is the gradient of a bias
# limits of those that few_rows.py does
MOST_ROWS = 4
MOST_SUMMANDS = 10  # rows of B whose factors are in registers
MOST_OUTER = 4  # rows of B in one pass over a row of C
MOST_UPDATED = 16  # columns of theta less an outer product
MOST_SUMMED = 4  # columns that are multiplied and summed

# ---- rows ----------------------------------------------------------------------------------------------------------

# What is done to a row z of a softmax, by code: probabilities exp(d)/s with d = z - max(z), s = Σ exp(d); their
# logarithms d - log s; what those hand back of y, z - exp(y) Σz; and one number a row, max(z) + log s.
PROBABILITIES, LOGARITHMS, LOGARITHMS_GRAD, LOG_SUM_EXP = range(4)
# what a cross entropy does, bits of a code: T as labels; the gradient too
BY_LABELS, WITH_GRADIENT = 1, 2
SUM, MAX = range(2)  # what a row is reduced to


def chunk_header(slots: int) -> int:
    """Bytes at the start of private memory for the addresses of ``slots`` slots, whole cache lines."""
    return (8 * slots + 63) // 64 * 64
