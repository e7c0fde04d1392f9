"""The machines, and the switch between them."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol

from fastbp.errors import unknown
from fastbp.program import Program

BACKENDS = ("cpu", "numpy")
DTYPES = ("float32", "float64")
PRECISIONS = ("highest", "bf16")
_default = "cpu"


class Executable(Protocol):
    """A Program on one machine."""

    program: Program

    def run(self, values: Mapping[str, Any], n: int) -> dict[str, Any]:
        """Run once for n rows; outputs by name."""

    def run_steps(self, values: Mapping[str, Any], steps: Any) -> dict[str, Any]:
        """Run once a row (rows, position, step) of ``steps``; outputs of fixed shape by name, one entry a step."""


def available_backends() -> list[str]:
    """Names of the backends that this machine can run, the default first.

    ``cpu`` runs compiled kernels, ``numpy`` plain array code (the reference).
    """
    return sorted(BACKENDS, key=lambda name: name != _default)


class use_backend:  # noqa: N801  used like a function
    """Make ``name`` the backend of networks and functions that are not told another one.

    Takes effect at once; as a context manager it ends with the block::

        fastbp.use_backend("numpy")
        with fastbp.use_backend("cpu"): ...
    """

    def __init__(self, name: str) -> None:
        global _default
        self._before = _default
        _default = resolve(name)

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _default
        _default = self._before


def resolve(backend: str | None) -> str:
    """The backend of that name, or the default for None."""
    if backend is None:
        return _default
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    return backend


def resolve_dtype(dtype: Any) -> str:
    """The dtype's name, "float32" or "float64", from a name, a NumPy dtype or a scalar type."""
    name = getattr(dtype, "__name__", None) or getattr(dtype, "name", None) or dtype
    if name not in DTYPES:
        raise unknown("dtype", name, DTYPES)
    return str(name)


def resolve_precision(precision: Any) -> str:
    """The precision itself, if it is one."""
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    return str(precision)


def executable(program: Program, backend: str, dtype: str, precision: str = "highest") -> Executable:
    """The Program, ready to run on a machine; the machine's code is imported here, when it is needed.

    ``precision`` is leave, not an order: "bf16" allows products in bfloat16, of which numpy makes no use.
    """
    if backend == "cpu":
        from fastbp.backends.cpu.executable import CpuExecutable

        return CpuExecutable(program, dtype, precision)
    import numpy as np

    from fastbp.backends.array import ArrayExecutable

    return ArrayExecutable(program, np, dtype)
