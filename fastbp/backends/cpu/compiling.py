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
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler

from fastbp.errors import FastbpError


class _Part(JITCodeLibrary):  # type: ignore[misc]
    """Code that only other compiled code calls: handed on as it is, to be optimised as a part of its last caller.

    Numba optimises a function with all that it calls, and turns it into machine code, once for every level of calls:
    the machine took twice as long to compile, to run no faster.
    """

    class codegen:  # noqa: N801  Numba's name
        """Asked, when a function has been compiled, to note what its Python errors need: kernels raise none."""

        @staticmethod
        def set_env(name: str, env: Any) -> None:
            """Without machine code there is no place to note it."""

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """There is none."""
        return 0


class _PartCompiler(Compiler):  # type: ignore[misc]
    def define_pipelines(self) -> list[Any]:
        """Numba's usual steps, into a library of that kind."""
        self.state.library = _Part(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
        return list(super().define_pipelines())


# Inner kernels are called from compiled code alone: without the wrappers that Python and C would need they compile
# faster. Integer division follows NumPy, so that no division can raise.
kernel = njit(
    nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True, pipeline_class=_PartCompiler
)

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
