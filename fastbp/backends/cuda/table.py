"""The words of the table that GPU kernels read: one row of int64 an instruction.

A product is C = epilogue(A B, Y), element (m, k) of A at a + m ROW + k COL, in elements; of B and Y likewise, with 0 for
a stride along which a matrix is broadcast. Where it is cut along K, each of PIECES writes M × N sums of its own, one
after the other, and a COMBINE that follows adds them in order and applies the epilogue.
"""

from __future__ import annotations

# operations
(
    PRODUCT,
    PRODUCT_TF32,
    PRODUCT_BF16,
    COMBINE,
    CHAIN,
    SUM,
    SOFTMAX,
    MOVE,
    ONEHOT,
    GATHER,
    SCATTER,
    UPDATE,
) = range(12)
# words of a row; M, N, K are sizes; the work is done in PIECES of PIECE; CODE and THEN are formulas, NONE for none
OP, CODE, THEN, M, N, K, PIECES, PIECE, HEAD, HOW = range(10)
NONE = -1
OPERANDS = 10
# words of an operand: number of the slot that holds its address, offset in bytes, strides in elements
SLOT, OFFSET, ROW, COL = range(4)
OUT, A, B, Y, OUT2, EXTRA = range(6)
WIDTH = OPERANDS + 4 * 6
