"""Compiled entries: kept on disk as the object code that LLVM made, loaded by LLVM's linker alone.

Numba's own cache would do, but importing Numba and its registries takes a second of every process; this takes 10 ms.
A file is used if it was made of the same sources, by the same Numba, for the same CPU. Cold starts hold a file lock, so
that one process compiles and the others wait for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
from llvmlite import binding

from fastbp.backends.cpu import side_process
from fastbp.backends.cpu.target import target
from fastbp.errors import FastbpError
from fastbp.files import replacing

PACKAGE = Path(__file__).parents[2]
COMPILED_SOURCES = (
    "scalars.py",
    "polynomials.py",
    "backends/llvm.py",
    *(
        f"backends/cpu/{name}.py"
        for name in (
            "target", "words", "chain_words", "compiling", "vectors", "simd", "bf16", "gemm", "few_columns",
            "one_row", "few_rows", "kernels", "chain", "claims", "machine",
        )
    ),
)  # fmt: skip
MESSAGE_AFTER = 1.5  # seconds
ENTRY = "fastbp_entry"  # name of the function in the object code
SIZE = 8  # bytes of a part's length

_engines: list[Any] = []  # LLVM's, which own the code


def entry(
    name: str, make: Callable[[], Callable[..., None]], *sources: str, kernels: str | None = None
) -> Callable[[int], None]:
    """The compiled function of one address, which runs without the GIL.

    A cache that cannot be written is reported and survived: the function then lives as long as the process.

    Args:
        name: what a user who has to wait for it is told.
        make: imports the kernels, and returns the function to compile, of one int64 and without a result.
        sources: files of the package that it depends on, besides COMPILED_SOURCES.
        kernels: the dtype of the kernels that it calls (kernels.py), if it does.
    """
    code = kept(name, *sources)
    if code is None:
        folder = cache_folder()
        with locked(str(folder)) if folder else contextlib.nullcontext():
            code = kept(name, *sources)  # by a process that was quicker
            if code is None:
                code = _compiled(name, make, kernels)
                keep(name, code, *sources)
    return _loaded(code)


def source_stamp(*sources: str) -> bytes:
    """A hash of every source that ends up in compiled code, and of what compiles them."""
    digest = hashlib.sha256(repr((_version_of_numba(), llvmlite.__version__, target())).encode())
    for name in (*COMPILED_SOURCES, *sources):
        digest.update((PACKAGE / name).read_bytes())
    return digest.digest()


def _version_of_numba() -> str:
    """As its files say: Numba is not imported for it."""
    spec = importlib.util.find_spec("numba")
    if spec is None or spec.origin is None:
        raise FastbpError("the cpu backend needs Numba: pip install numba, or take backend='numpy'")
    return (Path(spec.origin).parent / "_version.py").read_text()


# ---- on disk -------------------------------------------------------------------------------------------------------


@cache
def cache_folder() -> Path | None:
    """NUMBA_CACHE_DIR; else beside the sources, else in the user's cache folder, if they can be written."""
    asked = os.environ.get("NUMBA_CACHE_DIR")
    folders = [Path(asked)] if asked else [Path(__file__).parent / "__pycache__", _users_folder() / "fastbp"]
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK | os.X_OK):
                return folder
    return None


def _users_folder() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _file(folder: Path, name: str) -> Path:
    """One for every target, and for every copy of the package that shares the folder."""
    identity = hashlib.sha256(repr((str(PACKAGE), target())).encode()).hexdigest()[:16]
    return folder / f"fastbp-{name.replace(' ', '-')}-{identity}.o"


def kept(name: str, *sources: str) -> list[bytes] | None:
    """The object code of an entry, part by part, if it is there, was made of the same sources and is whole."""
    folder = cache_folder()
    if folder is None:
        return None
    try:
        found = _file(folder, name).read_bytes()
    except OSError:
        return None
    code, parts = side_process.opened(found, source_stamp(*sources)), []
    if code is None:
        return None
    while code:
        size = int.from_bytes(code[:SIZE], "little")
        parts.append(code[SIZE : SIZE + size])
        code = code[SIZE + size :]
    return parts


def keep(name: str, parts: list[bytes], *sources: str) -> None:
    """Write the object code of an entry for the processes to come; say so if that is not possible."""
    code = b"".join(len(part).to_bytes(SIZE, "little") + part for part in parts)
    folder, reason = cache_folder(), "there is no folder that it may write to"
    if folder is not None:
        try:
            with replacing(_file(folder, name)) as file:
                file.write(side_process.sealed(code, source_stamp(*sources)))
            return
        except OSError as error:
            reason = str(error)
    warnings.warn(
        f"fastbp cannot keep its compiled kernels ({reason}); they are compiled anew by every process. "
        "Set NUMBA_CACHE_DIR to a writable folder.",
        stacklevel=2,
    )


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


# ---- compiling and loading -----------------------------------------------------------------------------------------


def _compiled(name: str, make: Callable[[], Callable[..., None]], kernels: str | None) -> list[bytes]:
    from fastbp.backends.cpu.compiling import entry_library, object_code

    with _announced(name), side_process.compiling(kernels, source_stamp()) as kernel_code:
        return [object_code(entry_library(make(), ENTRY)), *kernel_code()]


@contextlib.contextmanager
def _announced(name: str) -> Iterator[None]:
    """Say on stderr what takes so long, if it takes long."""
    text = f"fastbp: compiling the {name} for this machine; they are kept for the next time.\n"
    timer = threading.Timer(MESSAGE_AFTER, lambda: sys.stderr.write(text))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _loaded(parts: list[bytes]) -> Callable[[int], None]:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_triple(binding.get_process_triple()).create_target_machine()
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    for part in parts:
        engine.add_object_file(binding.ObjectFileRef.from_data(part))
    engine.finalize_object()
    _engines.append(engine)
    # void *, for ctypes converts an integer to it in a third of the time that int64 takes
    function: Callable[[int], None] = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(engine.get_function_address(ENTRY))
    return function
