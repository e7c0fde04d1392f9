"""Compiling kernels and keeping them on disk.

Numba's cache looks at the file of the function that it caches, so everything that is compiled into one entry would go
stale unnoticed: a hash of all kernel sources is closed over by the entry, which makes it part of the cache's key.
Cold starts hold a file lock, because concurrent ones have crashed (numba issues 4807 and 10128).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from numba import config, njit

from fastbp.errors import FastbpError

# Inner kernels are called from compiled code alone: without the wrappers that Python and C would need they compile
# faster. Integer division follows NumPy, so that no division can raise.
kernel = njit(nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)

# Numba optimises, and turns into machine code, every kernel with all that it calls, once for every level of calls: what
# only hands arguments on is merged into its caller (cold compilation of float32: 22 s without).
merged = njit(nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True, inline="always")

COMPILED_SOURCES = (
    "scalars.py",
    "polynomials.py",
    "backends/llvm.py",
    *(
        f"backends/cpu/{name}.py"
        for name in ("compiling", "simd", "bf16", "gemm", "chain", "few_rows", "team", "machine")
    ),
)
MESSAGE_AFTER = 1.5  # seconds; a warm start takes a tenth of it


def source_stamp() -> str:
    """A hash of every source that ends up in compiled code."""
    package = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for name in COMPILED_SOURCES:
        digest.update((package / name).read_bytes())
    return digest.hexdigest()


def compile_entry(function: Callable[..., Any], signature: tuple[Any, ...], name: str) -> Any:
    """The compiled function for one signature, from the disk cache if it is there.

    An unwritable cache folder is reported once and survived: the kernels are then compiled for this process only.
    """
    if config.DISABLE_JIT:
        raise FastbpError("the cpu backend needs Numba's compiler: unset NUMBA_DISABLE_JIT, or take backend='numpy'")
    options = {"nogil": True, "error_model": "numpy"}
    dispatcher = None
    with _announced(name):
        try:
            dispatcher = njit(cache=True, **options)(function)
            with locked(dispatcher.stats.cache_path):
                dispatcher.compile(signature)
        except (OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "cannot cache" not in str(error):
                raise
            warnings.warn(
                f"fastbp cannot keep its compiled kernels ({error}); they are compiled anew by every process. "
                "Set NUMBA_CACHE_DIR to a writable folder.",
                stacklevel=2,
            )
            if dispatcher is None or not dispatcher.signatures:  # else they were compiled, and could not be written
                dispatcher = njit(**options)(function)
                dispatcher.compile(signature)
    dispatcher.disable_compile()
    return dispatcher


@contextlib.contextmanager
def _announced(name: str) -> Iterator[None]:
    """Say on stderr what takes so long, if it takes long."""
    text = f"fastbp: compiling the {name} kernels for this machine; they are kept for the next time.\n"
    timer = threading.Timer(MESSAGE_AFTER, lambda: sys.stderr.write(text))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def locked(cache_path: str) -> Iterator[None]:
    """Hold an exclusive lock for this cache folder, across processes; where there is no fcntl, none is held."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    key = hashlib.sha256(str(cache_path).encode()).hexdigest()[:16]
    # beside the cache, or in the temporary folder where the cache's own cannot be written
    folder = cache_path if os.access(cache_path, os.W_OK) else tempfile.gettempdir()
    with open(os.path.join(folder, f"fastbp-{key}.lock"), "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file lets go of the lock
