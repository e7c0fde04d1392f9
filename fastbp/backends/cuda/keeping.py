"""Compiled kernels kept on disk: compiling those of a network takes a minute, loading them no time.

Numba's own cache tells functions apart by what they close over, and kernels close over functions, which look different
in every process. Here a kernel goes by its name and a hash of all sources.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from numba import cuda
from numba.cuda.dispatcher import CUDACache

from fastbp.backends.cpu.loading import locked

SOURCES = ("scalars.py", "polynomials.py", "backends/llvm.py", "backends/cuda/*.py")


@cache
def source_stamp() -> str:
    """A hash of every source that ends up in kernels."""
    package = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for pattern in SOURCES:
        for path in sorted(package.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()


class _Kept(CUDACache):  # type: ignore[misc]
    """Numba's cache with another key; processes take turns, since Numba numbers files without looking again."""

    def __init__(self, function: Callable[..., None], name: str) -> None:
        super().__init__(function)
        self._key = name, source_stamp(), version("numba-cuda")
        self._impl.locator.ensure_cache_path()

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        return sig, codegen.magic_tuple(), self._key

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled kernel, None if it is not there, or damaged."""
        with contextlib.suppress(Exception), locked(self.cache_path):  # whatever it is: the kernel is compiled then
            return super().load_overload(sig, target_context)
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled kernel, if there is room."""
        with contextlib.suppress(Exception), locked(self.cache_path):
            super().save_overload(sig, data)


def kept(function: Callable[..., None], name: str, optimised_once: bool) -> Any:
    """The kernel, ready to be compiled or loaded; where nothing can be written it lives as long as the process.

    Args:
        optimised_once: not once more by the linker, as Numba has it otherwise.
    """
    dispatcher = cuda.jit(function, lto=False) if optimised_once else cuda.jit(function)
    with contextlib.suppress(OSError, RuntimeError):  # of no folder that can be written
        dispatcher._cache = _Kept(function, name)
    return dispatcher
