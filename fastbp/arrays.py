"""The two kinds of arrays, NumPy's and CuPy's; checks and conversions of those that users hand in.

Each is done once, at the public call.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastbp import backends
from fastbp.backends import Machine, gpu
from fastbp.backends.cpu.caches import LINE
from fastbp.errors import DeviceMemoryError, InputError

Array = npt.NDArray[Any]  # or CuPy's, which has the same methods
_BLOCK = 65_536  # elements that stay in a cache between two looks at them

# ---- kinds -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """One kind of arrays, and what computes on them.

    Attributes:
        name: whose arrays they are.
        backends: what computes on them, first what does if nobody says otherwise.
        module: gives the namespace.
        to_host: an array of this kind as a NumPy array; of CuPy's a copy, which waits for the device.
        how: to make one of the other kind, of an array called {0}.
    """

    name: str
    backends: tuple[str, ...]
    module: Callable[[], Any]
    to_host: Callable[[Any], Array]
    how: str

    @property
    def xp(self) -> Any:
        """The namespace."""
        return self.module()

    def device(self) -> int:
        """Number of the GPU that is computed on now; 0 on the host."""
        return 0 if self is HOST else int(self.xp.cuda.Device().id)

    def moved(self, array: Array) -> Array:
        """An array of NumPy's as one of this kind: itself, or a copy on the GPU."""
        if self is HOST:
            return array
        try:
            moved: Array = self.xp.asarray(array)
        except MemoryError as error:
            raise DeviceMemoryError(
                f"the device has too little memory: an array of shape {array.shape} needs {array.nbytes:,} bytes, and "
                f"{gpu.free_bytes():,} are free"
            ) from error
        return moved

    def check(self, name: str, value: Any) -> None:
        """Refuse an array of the other kind, or of another GPU than the current."""
        kind = kind_of(value)
        if kind is not None and kind is not self:
            where, backend = ("host", "cpu") if self is DEVICE else ("GPU", "cuda")
            raise InputError(
                f"{name} is a {kind.name} array, but {self.name} arrays are needed here: pass {self.how.format(name)}, "
                f"or compute on the {where} (backend={backend!r})"
            )
        if kind is DEVICE and value.device.id != self.device():
            raise InputError(
                f"{name} is on device {value.device.id}, but the current device is {self.device()}: call this inside "
                f"'with cupy.cuda.Device({value.device.id}):', or move {name}"
            )


HOST = Kind("NumPy", backends.ON_HOST, lambda: np, np.asarray, "{0}.get()")
DEVICE = Kind("CuPy", backends.ON_DEVICE, gpu.cupy, lambda array: array.get(), "cupy.asarray({0})")


_ON_HOST = {name: Machine(name) for name in backends.ON_HOST}


def kind_of(value: Any) -> Kind | None:
    """The kind of an array; None of what is none, as lists and numbers, which go with either."""
    if isinstance(value, np.ndarray):
        return HOST
    cupy = sys.modules.get("cupy")  # nobody has an array of what was not imported
    if cupy is not None and isinstance(value, getattr(cupy, "ndarray", ())):
        return DEVICE
    return HOST if hasattr(value, "__array__") and not isinstance(value, np.generic) else None


def is_array(value: Any) -> bool:
    """Whether it is an array of NumPy's or CuPy's, and no other thing that could become one."""
    return isinstance(value, np.ndarray) or kind_of(value) is DEVICE


def kind_for(backend: str) -> Kind:
    """What a backend computes on."""
    return HOST if backend in HOST.backends else DEVICE


def to_host(value: Any) -> Any:
    """A NumPy array of an array of either kind; what is none as it is."""
    kind = kind_of(value)
    return value if kind is None else kind.to_host(value)


def on_whole_lines(array: Array) -> Array:
    """A NumPy array that begins at a cache line: itself, or a contiguous copy; one on a GPU as it is.

    Parameters and what belongs to them are read and written all the time. NumPy's large arrays begin 16 bytes behind
    the beginning of a page, where half of all vectors of 32 bytes lie in two lines: a step of 300-128 on one row took
    10.3 µs instead of 7.3.
    """
    if not isinstance(array, np.ndarray) or array.ctypes.data % LINE == 0:
        return array
    memory = np.empty(array.nbytes + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def switch(named: Mapping[Any, Any] | Iterable[tuple[Any, Any]], backend: str | None) -> tuple[Kind, Machine]:
    """The kind of the arrays among some arguments, and what computes on them.

    Args:
        named: name -> argument.
        backend: what was asked for; None goes by the arrays.

    Raises:
        InputError: arrays of both kinds, of another GPU, or of another kind than the backend's.
    """
    default = backends.resolve(backend)
    if "cupy" not in sys.modules:  # nobody has arrays of it
        return HOST, _ON_HOST[default]
    found = _one_of_each(named)
    for kind, (name, value) in found.items():
        if backend is not None:
            kind_for(backend).check(name, value)
        if default not in kind.backends:
            default = backends.resolve(kind.backends[0])
    kind = kind_for(default)
    return kind, Machine(default, kind.device())


def common_kind(named: Mapping[Any, Any] | Iterable[tuple[Any, Any]]) -> Kind | None:
    """The kind of the arrays among some arguments, None if there is no array.

    Raises:
        InputError: there are arrays of both kinds, or of another GPU than the current.
    """
    return next(iter(_one_of_each(named)), None)


def _one_of_each(named: Mapping[Any, Any] | Iterable[tuple[Any, Any]]) -> dict[Kind, tuple[str, Any]]:
    """The kind of the arrays among some arguments, with the first of them; refused if there are two."""
    found: dict[Kind, tuple[str, Any]] = {}
    for name, value in dict(named).items():
        kind = kind_of(value)
        if kind is not None:
            found.setdefault(kind, (name, value))
            if kind is DEVICE:
                kind.check(name, value)
    if len(found) > 1:
        host, device = found[HOST][0], found[DEVICE][0]
        raise InputError(
            f"{host} is a NumPy array, but {device} is a CuPy array: pass {DEVICE.how.format(host)} to compute on the "
            f"GPU, or {HOST.how.format(device)} to compute on the host"
        )
    return found


# ---- arrays ----------------------------------------------------------------------------------------------------------


def matrix(name: str, value: Any, cols: int | None, dtype: Any, kind: Kind = HOST) -> Array:
    """A C-contiguous (n, cols) array of the kind and dtype, copied only if it is not one already.

    Booleans, integers and floats of any width are taken and converted; a 1-D array counts as one column where one
    column is needed.

    Raises:
        InputError: anything else, with the argument's name, what came and what is needed.
    """
    needed = f"a 2-D array of numbers of shape (n, {'d' if cols is None else cols})"
    array = asarray(name, value, needed, kind)
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name} must be {needed}; got dtype {array.dtype}")
    if array.ndim == 1 and cols == 1:
        array = array[:, None]
    if array.ndim != 2 or (cols is not None and array.shape[1] != cols):
        raise InputError(f"{name} must be {needed}; got shape {array.shape}")
    return contiguous(array, dtype)


def contiguous(array: Array, dtype: Any) -> Array:
    """The same array, C-contiguous and of the dtype."""
    with np.errstate(over="ignore"):  # what the dtype cannot hold becomes infinite, and is refused where that matters
        found: Array = xp_of(array).ascontiguousarray(array, dtype)
    return found


def asarray(name: str, value: Any, needed: str, kind: Kind = HOST) -> Array:
    """Any array-like as an array of the kind; ragged lists, masked arrays and arrays of the other kind are refused."""
    if kind is HOST and type(value) is np.ndarray:
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise InputError(f"{name} must be {needed}; got a masked array: fill or drop what is masked")
    kind.check(name, value)
    if kind is DEVICE and kind_of(value) is DEVICE:
        array: Array = value
        return array
    if hasattr(value, "__cuda_array_interface__"):
        raise InputError(f"{name} is a {type(value).__name__} on a GPU: pass cupy.asarray of it")
    try:
        return kind.moved(np.asarray(value))
    except ValueError as error:
        raise InputError(f"{name} must be {needed}; got rows of different lengths ({error})") from None


def xp_of(array: Array) -> Any:
    """The namespace of an array."""
    if type(array) is np.ndarray:
        return np
    return DEVICE.xp if kind_of(array) is DEVICE else np


def in_place(array: Array) -> bool:
    """Whether kernels can write into it."""
    writeable: bool = array.flags.c_contiguous and getattr(array.flags, "writeable", True)  # CuPy's have no such flag
    return writeable


def same_rows(name: str, array: Array, rows: int, other: str) -> None:
    """Refuse an array that has not as many rows as another."""
    if len(array) != rows:
        raise InputError(f"{name} has {len(array)} rows, but {other} has {rows}")


def finite(name: str, array: Array) -> None:
    """Refuse NaN and infinities, naming the first."""
    xp = xp_of(array)
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = array.size and not xp.isfinite(array.sum())  # one pass without a copy; it may overflow itself
    if suspicious:
        bad = to_host(xp.argwhere(~xp.isfinite(array)))
        if len(bad):
            row, col = bad[0].tolist()
            raise InputError(
                f"{name} must be finite; row {row}, column {col} is {array[row, col]} ({len(bad)} such values)"
            )


def in_unit_interval(name: str, array: Array, what: str) -> None:
    """Refuse numbers outside [0, 1], NaN too. On the host a block after the other, read from memory once."""
    rows = _BLOCK // max(1, array.shape[1]) if isinstance(array, np.ndarray) else len(array)
    for first in range(0, len(array) if array.size else 0, max(1, rows)):
        block = array[first : first + rows]
        if not (block.min() >= 0.0 and block.max() <= 1.0):
            finite(name, array)
            raise InputError(f"{name}: {what} must lie in [0, 1], got {array.min()} … {array.max()}")


def labels(name: str, value: Array, classes: int, what: str = "labels") -> Array:
    """Integer class labels as a contiguous (n, 1) int64 array, checked to lie in 0 … classes - 1."""
    if value.size:
        low, high = int(value.min()), int(value.max())
        if low < 0 or high >= classes:
            worst = low if low < 0 else high
            row = int((value.reshape(-1) == worst).argmax())
            raise InputError(f"{name}: {what} must be 0 … {classes - 1}; row {row} is {worst}")
    return column(value)


def column(value: Array) -> Array:
    """Integers as a contiguous (n, 1) int64 array."""
    return contiguous(value.reshape(-1, 1), np.int64)


def weight_column(name: str, value: Any, rows: int, dtype: Any, kind: Kind = HOST) -> Array:
    """Sample weights as an (n, 1) column of the kind, whatever their values."""
    column = matrix(name, value, 1, dtype, kind)
    same_rows(name, column, rows, "X")
    return column


def weights(name: str, value: Any, rows: int, dtype: Any, kind: Kind = HOST) -> Array:
    """Sample weights as an (n, 1) column of the kind: finite, none negative, not all zero."""
    column = weight_column(name, value, rows, dtype, kind)
    finite(name, column)
    if (column < 0).any():
        row = int((column[:, 0] < 0).argmax())
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
