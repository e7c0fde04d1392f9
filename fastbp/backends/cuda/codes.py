"""Numbers of the formulas and update rules that kernels choose from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastbp import scalars

# name -> formula and its number of operands; a code is a position in this table
FORMULAS: dict[str, tuple[Callable[..., Any], int]] = {
    name: (formula, count)
    for count, table in enumerate((scalars.UNARY, scalars.BINARY, scalars.TERNARY), 1)
    for name, formula in table.items()
}
CODES = {name: code for code, name in enumerate(FORMULAS)}
# Formulas that take few instructions: kernels have them four times over, for four elements at once.
_SHORT = {
    *("copy", "neg", "square", "abs", "sign", "step", "sigmoid", "tanh", "relu", "leaky_relu"),
    *("sigmoid_grad", "tanh_grad", "relu_grad", "leaky_relu_grad", "add", "sub", "mul", "maximum", "minimum"),
    *("greater", "greater_equal", "equal", "where", "fma"),
}
SHORT = {name for name in FORMULAS if name.removeprefix("add_").removeprefix("mul_") in _SHORT}
UPDATE_CODES = {name: code for code, name in enumerate(scalars.UPDATES)}
