"""Checks and conversions of the arrays that users hand in, each done once, at the public call."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastbp.errors import InputError

Array = npt.NDArray[Any]


def matrix(name: str, value: Any, cols: int | None, dtype: Any) -> Array:
    """A C-contiguous (n, cols) array of the dtype, copied only if it is not one already.

    Booleans, integers and floats of any width are taken and converted; a 1-D array counts as one column where one
    column is needed.

    Raises:
        InputError: anything else, with the argument's name, what came and what is needed.
    """
    needed = f"a 2-D array of numbers of shape (n, {'d' if cols is None else cols})"
    module = type(value).__module__.partition(".")[0]
    if module == "cupy":
        raise InputError(
            f"{name} is a CuPy array, but this network computes on the host: pass {name}.get(), or {needed}"
        )
    array = asarray(name, value, needed)
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name} must be {needed}; got dtype {array.dtype}")
    if array.ndim == 1 and cols == 1:
        array = array[:, None]
    if array.ndim != 2 or (cols is not None and array.shape[1] != cols):
        raise InputError(f"{name} must be {needed}; got shape {array.shape}")
    with np.errstate(over="ignore"):  # what the dtype cannot hold becomes infinite, and is refused where that matters
        return np.ascontiguousarray(array, dtype)


def asarray(name: str, value: Any, needed: str) -> Array:
    """Any array-like as an array; ragged lists and masked arrays are refused."""
    if isinstance(value, np.ma.MaskedArray):
        raise InputError(f"{name} must be {needed}; got a masked array: fill or drop what is masked")
    try:
        return np.asarray(value)
    except ValueError as error:
        raise InputError(f"{name} must be {needed}; got rows of different lengths ({error})") from None


def same_rows(name: str, array: Array, rows: int, other: str) -> None:
    """Refuse an array that has not as many rows as another."""
    if len(array) != rows:
        raise InputError(f"{name} has {len(array)} rows, but {other} has {rows}")


def finite(name: str, array: Array) -> None:
    """Refuse NaN and infinities, naming the first."""
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = array.size and not np.isfinite(array.sum())  # one pass without a copy; it may overflow itself
    if suspicious:
        bad = np.argwhere(~np.isfinite(array))
        if len(bad):
            row, col = bad[0]
            raise InputError(
                f"{name} must be finite; row {row}, column {col} is {array[row, col]} ({len(bad)} such values)"
            )


def labels(name: str, value: Array, classes: int, what: str = "labels") -> Array:
    """Integer class labels as a contiguous (n, 1) int64 array, checked to lie in 0 … classes - 1."""
    if value.size:
        low, high = int(value.min()), int(value.max())
        if low < 0 or high >= classes:
            worst = low if low < 0 else high
            row = int(np.argmax(value.reshape(-1) == worst))
            raise InputError(f"{name}: {what} must be 0 … {classes - 1}; row {row} is {worst}")
    return np.ascontiguousarray(value.reshape(-1, 1), np.int64)


def weights(name: str, value: Any, rows: int, dtype: Any) -> Array:
    """Sample weights as an (n, 1) column: finite, none negative, not all zero."""
    column = matrix(name, value, 1, dtype)
    same_rows(name, column, rows, "X")
    finite(name, column)
    if (column < 0).any():
        row = int(np.argmax(column[:, 0] < 0))
        raise InputError(f"{name} must not be negative; row {row} is {column[row, 0]}")
    if rows and not column.any():
        raise InputError(f"{name} must not be all zero")
    return column


def count(name: str, value: Any, least: int = 1) -> int:
    """A whole number not below ``least``."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or value < least:
        raise InputError(f"{name} must be an integer of at least {least}, got {value!r}")
    return int(value)


def positive(name: str, value: Any, *, zero: bool = False) -> float:
    """A finite number above 0, or not below it."""
    ok = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not ok or not np.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise InputError(f"{name} must be a finite number {'of at least' if zero else 'above'} 0, got {value!r}")
    return float(value)


def fraction(name: str, value: Any) -> float:
    """A number in [0, 1)."""
    ok = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not ok or not 0.0 <= value < 1.0:
        raise InputError(f"{name} must lie in [0, 1), got {value!r}")
    return float(value)
