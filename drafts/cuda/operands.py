"""Operands of an instruction, as kernels reach them."""

from __future__ import annotations

from fastbp.backends.cuda.device import at, device
from fastbp.backends.cuda.table import COL, OFFSET, OPERANDS, ROW, SLOT


@device
def word(d, which, name):
    """A word of operand ``which``."""
    return d[OPERANDS + 4 * which + name]


@device
def operand(d, addresses, which, one, space):
    """A pointer to the first element of operand ``which``."""
    return at(addresses[word(d, which, SLOT)] + word(d, which, OFFSET), one, space)


@device
def element(d, which, i, j):
    """The position of element (i, j) behind the first one."""
    return i * word(d, which, ROW) + j * word(d, which, COL)
