"""The kernels that the machine calls, as it calls them: compiled apart from it (see compiling.py)."""

from __future__ import annotations

from typing import Any

from fastbp.backends.cpu import few_rows, gemm
from fastbp.backends.cpu.compiling import NUMBER, POINTER, POINTER64, Apart, called

_APART: list[Apart] = []


def _apart(dispatcher: Any, **kinds: str) -> Any:
    _APART.append(apart := Apart(dispatcher, kinds))
    return called(apart)


def kernels(dtype: str) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """All of them, by symbol, with the types of their arguments."""
    return {apart.symbol: (apart.dispatcher, apart.types(dtype)) for apart in _APART}


apply_unary = _apart(gemm.apply_unary, out=POINTER, x=POINTER)
apply_binary = _apart(gemm.apply_binary, out=POINTER, x=POINTER, y=POINTER, scale=NUMBER)
apply_ternary = _apart(gemm.apply_ternary, out=POINTER, x=POINTER, y=POINTER, z=POINTER)
apply_update = _apart(gemm.apply_update, theta=POINTER, g=POINTER, first=POINTER, second=POINTER, hyper=POINTER64)
copy_panel = _apart(gemm.copy_panel, out=POINTER, x=POINTER)
copy_panel_transposed = _apart(gemm.copy_panel_transposed)
epilogue = _apart(gemm.epilogue)
product = _apart(gemm.product, rate=NUMBER)
product_of_pairs = _apart(gemm.product_of_pairs, rate=NUMBER)
product_update = _apart(gemm.product_update, theta=POINTER, first=POINTER, second=POINTER, hyper=POINTER64)
row_of_ones = _apart(gemm.row_of_ones, rate=NUMBER)
strip_of_tiles = _apart(gemm.strip_of_tiles, a=POINTER, b=POINTER, c=POINTER, out=POINTER, bias=POINTER, rate=NUMBER)
narrow_product_by_dots = _apart(few_rows.narrow_product_by_dots)
product_by_dots = _apart(few_rows.product_by_dots)
product_by_rows = _apart(few_rows.product_by_rows)
product_of_few_summands = _apart(few_rows.product_of_few_summands)
product_turned = _apart(few_rows.product_turned)
update_by_rows = _apart(few_rows.update_by_rows, rate=NUMBER)
