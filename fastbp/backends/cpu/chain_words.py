"""What the words of a chain's table mean: chain_table.py writes them, chain.py reads them."""

from __future__ import annotations

from fastbp.backends.cpu.words import BINARY_CODES, UNARY_CODES

# words of the header
PLACES, STILL, PROLOGUE, BODY, EPILOGUE, HEIGHT, WIDTH, COLUMNS = range(8)
ROW = 8  # elements of a row before rows became one
HEADER = 9
# words of a place: slot (OWN for private memory), offset; bytes a row, a column, a piece; 1 or 0
SLOT, OFFSET, A_ROW, A_COLUMN, A_PIECE, STEP = range(6)
PLACE = 6
OWN = -1
# words of an operation; OUT, X, Y, Z, C and SCALE are places
KIND, CODE, OUT, X, Y, Z, C, SCALE = range(8)
OPERATION = 8
UNARY, BINARY, TERNARY = 1, 2, 3
SPREAD = 4  # a number a row, spread over the columns of a block
TILE = 5  # a row, once for every row of a block
CLEAR, CLEAR_MAX = 6, 7  # running sums, or maxima: CODE elements
REDUCE_ALL = 8  # the block joins the running sums in OUT
REDUCE_ROWS = 9  # every row of the block becomes a number
END_ALL, END_COLUMNS = 10, 11  # what is reduced goes out, times the number C
MASK = 12  # CODE has the bits of program.Step
REDUCE_WHOLE = 13  # the only block of all becomes a number, times the number C: what REDUCE_ALL and END_ALL would give
# OUT = (X - Y) C, and its squares without C join the running sums in Z; with CODE 1 the block is the only one of all,
# and Z becomes what REDUCE_WHOLE would make of the squares, times the number SCALE
SQUARED_ERROR = 14

COPY, ADD, MAXIMUM = UNARY_CODES["copy"], BINARY_CODES["add"], BINARY_CODES["maximum"]
RUNNING = 4  # vectors of running sums
