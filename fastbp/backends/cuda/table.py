"""The words of the table that GPU kernels read: one row of int64 an instruction, and behind them what chains do.

A product is C = epilogue(A B, Y), element (m, k) of A at a + m ROW + k COL, in elements; B and Y likewise, with 0 for
a stride along which a matrix is broadcast. Where it is cut along K, each of PIECES writes M × N sums of its own, one
after the other, and a COMBINE that follows adds them in order and applies the epilogue.
"""

from __future__ import annotations

# operations that a block does for itself (see blocks.py); a kernel of its own does not look
PRODUCT, COMBINE, CHAIN, SOFTMAX, MOVE, ONEHOT, GATHER, SCATTER, UPDATE = range(9)
# words of a row; M, N, K are sizes; the work is done in PIECES of PIECE; CODE and THEN are formulas, NONE for none
OP, CODE, THEN, M, N, K, PIECES, PIECE, HEAD, HOW = range(10)
NONE = -1
# HOW of a product: BOTH if OUT gets code(A B, Y) and OUT2 then(OUT); else OUT gets then(code(A B, Y)). Of a COMBINE,
# MAXIMA if it takes the largest instead of the sum.
BOTH, MAXIMA = 1, 2
OPERANDS = 10
# words of an operand: number of the slot that holds its address, offset in bytes, strides in elements
SLOT, OFFSET, ROW, COL = range(4)
OUT, A, B, Y, OUT2, EXTRA = range(6)
WIDTH = OPERANDS + 4 * 6

# CODE of SOFTMAX
PROBABILITIES, LOGARITHMS, LOGARITHMS_GRAD, LOG_SUM_EXP = range(4)

# A chain's table begins HEAD words after the row that it belongs to: these words, then ACTIONS of ACTION_WIDTH words,
# then RESULTS of RESULT_WIDTH. A piece is PIECE_ROWS by PIECE_COLS, with COLUMN_PIECES of them side by side; LANES
# threads lie along a row.
ACTIONS, RESULTS, LANES, PIECE_ROWS, PIECE_COLS, COLUMN_PIECES, CHAIN_HEAD = range(7)
# An action: what to do, registers of the result and the operands, of a number that the first one is multiplied by, or
# NONE; the matrix that is read or written; the bits of a mask, whose matrix is the key. Codes from 0 on are formulas.
WHAT, TO, FIRST, SECOND, THIRD, SCALE, PLACE, BITS = 0, 1, 2, 3, 4, 5, 6, 10
ACTION_WIDTH = 11
LOAD, STORE, ADD, LARGEST, MASK = -1, -2, -3, -4, -5
# A result: register it adds up in, whether it is a maximum, over what; where it goes, a piece's ROW after the one
# before; slot (or NONE) and offset of the number that it is multiplied by
REGISTER, IS_MAXIMUM, AXIS, TARGET, FACTOR, FACTOR_OFFSET = 0, 1, 2, 3, 7, 8
RESULT_WIDTH = 9
OVER_ROWS, OVER_COLUMNS, OVER_ALL = range(3)

# What moves from step to step: address of the steps, int64 (rows, position, step); how many steps have been done; how
# many slots move; then for each its number, address at the beginning, and bytes a position and a step.
STEPS, DONE, MOVING, MOVING_HEAD = range(4)
NUMBER, BEGINNING, A_POSITION, A_STEP = range(4)
MOVING_WIDTH = 4

# What blocks of their own read (see blocks.py): how many SLOTS a block has; where an index of scripts begins, in words
# from here; the slot that has the address of the block's steps; where a block's addresses begin in its shared memory,
# in bytes; how many outer slots each block has for itself. Then come the slots: the outer one that a slot begins at, or
# NONE for shared memory; bytes on; bytes a position and a step. A script is a number of rows, and where each begins.
# Steps begin with a pair of numbers: from the first to the one behind the last.
SLOTS, SCRIPTS, STEPS_SLOT, ADDRESSES, APART, BLOCK_HEAD = range(6)
FROM, BYTES, BY_POSITION, BY_STEP, SLOT_WIDTH = range(5)
STEP_SCRIPT, STEP_POSITION, STEP_NUMBER, STEP_WIDTH = range(4)
