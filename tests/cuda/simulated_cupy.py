"""As much of CuPy as the CUDA machine asks for, on host memory that Numba's simulator may reach."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastbp.backends.cuda.simulator import memory


class ndarray(np.ndarray):  # noqa: N801  CuPy's name
    """A NumPy array with CuPy's ways to its address and back to the host."""

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self.ctypes.data)

    def set(self, host: np.ndarray) -> None:
        self[...] = host

    def get(self) -> np.ndarray:
        return np.array(self)


def _new(host: np.ndarray) -> Any:
    """The same numbers in memory of their own, which kernels reach for as long as it lives."""
    size = host.nbytes
    whole = np.full(size + 512, 0xFF, np.uint8)  # what nobody has written is NaN
    start = -whole.ctypes.data % 256  # as CuPy aligns
    place = whole[start : start + size].view(host.dtype).reshape(host.shape)
    place[...] = host
    memory.register(place)
    weakref.finalize(whole, memory.forget, place.ctypes.data)
    return place.view(ndarray)


def asarray(x: Any, dtype: Any = None) -> Any:
    return x if isinstance(x, ndarray) and dtype in (None, x.dtype) else _new(np.ascontiguousarray(x, dtype))


def empty(shape: Any, dtype: Any) -> Any:
    kind = np.dtype(dtype)
    return _new(np.full(shape, np.nan if kind.kind == "f" else 0xFF if kind == np.uint8 else -1, kind))


def zeros(shape: Any, dtype: Any) -> Any:
    return _new(np.zeros(shape, dtype))
