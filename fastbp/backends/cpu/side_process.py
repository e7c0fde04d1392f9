"""Kernels compiled by another process, while this one compiles the machine that calls them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from fastbp.backends.threads import get_num_threads

HASH = hashlib.sha256().digest_size
PATIENCE = 120  # seconds that the other process may take longer than this one


@contextlib.contextmanager
def compiling(dtype: str | None, stamp: bytes) -> Iterator[Callable[[], list[bytes]]]:
    """What it yields hands out the object code of the kernels of a dtype (kernels.py), or nothing if that is None.

    Another process compiles them if there is a core for it, else they are compiled when they are asked for. So they are
    if anything goes wrong with that process, or if it has found other sources than those of this ``stamp``: it is there
    for speed alone.
    """
    if dtype is None:
        yield list
        return
    process = _started(dtype)
    if process is None:
        yield lambda: [code_of(dtype)]
        return
    with process:
        try:
            yield lambda: [_answer(process, stamp) or code_of(dtype)]
        finally:
            process.kill()


def code_of(dtype: str) -> bytes:
    """The object code of the kernels of a dtype, compiled here."""
    from fastbp.backends.cpu.compiling import library, object_code
    from fastbp.backends.cpu.kernels import kernels

    return object_code(library(kernels(dtype)))


def send(dtype: str, stamp: bytes) -> None:
    """What the other process does: the sealed code goes to its standard output."""
    sys.stdout.buffer.write(sealed(code_of(dtype), stamp))


def sealed(code: bytes, stamp: bytes) -> bytes:
    """Code with a stamp of what it was made of, and a hash of itself."""
    return stamp + hashlib.sha256(code).digest() + code


def opened(found: bytes, stamp: bytes) -> bytes | None:
    """Sealed code, if it is whole and has that stamp."""
    code = found[len(stamp) + HASH :]
    return code if code and found == sealed(code, stamp) else None


def _started(dtype: str) -> subprocess.Popen[bytes] | None:
    if get_num_threads() < 2 or not _is_python(sys.executable):
        return None
    code = f"from fastbp.backends.cpu import loading, side_process as s; s.send({dtype!r}, loading.source_stamp())"
    try:
        folders = [folder or os.getcwd() for folder in sys.path if isinstance(folder, str)]
        return subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), *folders])},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except (OSError, ValueError, RuntimeError):
        return None


def _is_python(executable: str | None) -> bool:
    """Whether it runs code that it is given: where Python is a part of another program, that would start once more."""
    name = Path(executable or "").name
    return bool(re.fullmatch(r"pythonw?[\d.]*(\.exe)?", name, re.IGNORECASE)) and not getattr(sys, "frozen", False)


def _answer(process: subprocess.Popen[bytes], stamp: bytes) -> bytes | None:
    try:
        return opened(process.communicate(timeout=PATIENCE)[0], stamp)
    except subprocess.TimeoutExpired:
        return None
