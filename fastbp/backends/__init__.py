"""The machines, and the switch between them."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import numpy as np

from fastbp.backends import gpu
from fastbp.errors import DeviceMemoryError, UnavailableError, unknown
from fastbp.program import Program

ON_HOST = ("cpu", "numpy")  # they compute on NumPy arrays
ON_DEVICE = ("cuda", "cupy")  # and these on CuPy's
BACKENDS = (*ON_HOST, *ON_DEVICE)
DTYPES = ("float32", "float64")
PRECISIONS = ("highest", "tf32", "bf16")
_default = "cpu"


class Machine(NamedTuple):
    """What a Program runs on: a backend, and the number of its GPU (0 for the host)."""

    backend: str
    device: int = 0


class Executable(Protocol):
    """A Program on one machine."""

    program: Program

    def run(self, values: Mapping[str, Any], n: int) -> dict[str, Any]:
        """Run once for n rows; outputs by name."""

    def run_steps(self, values: Mapping[str, Any], steps: Any) -> dict[str, Any]:
        """Run once a row (rows, position, step) of ``steps``; outputs of fixed shape by name, one entry a step."""


def available_backends() -> list[str]:
    """Names of the backends that this machine can run, the default first.

    ``cpu`` runs compiled kernels, ``numpy`` plain array code (the reference), both on NumPy arrays; ``cuda`` runs
    compiled kernels on a GPU, ``cupy`` the plain array code, both on CuPy arrays. ``fastbp info`` says what is missing.
    """
    here = [name for name in BACKENDS if name in ON_HOST or gpu.missing(name) is None]
    return sorted(here, key=lambda name: name != _default)


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
    """The backend of that name, or the default for None.

    Raises:
        UnavailableError: this machine cannot run it.
    """
    if backend is None:
        return _default
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    why = gpu.missing(backend) if backend in ON_DEVICE else None
    if why is not None:
        can = "; backend='cupy' can" if backend == "cuda" and gpu.missing("cupy") is None else ""
        raise UnavailableError(f"backend={backend!r} cannot run here: {why}{can}")
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

    ``precision`` is leave, not an order: "tf32" and "bf16" allow products with rounded factors, of which numpy and cupy
    make no use, and cpu none of "tf32".
    """
    if backend == "cpu":
        from fastbp.backends.cpu.executable import CpuExecutable

        return CpuExecutable(program, dtype, precision)
    if backend == "cuda":
        from fastbp.backends.cuda.executable import CudaExecutable

        return OnDevice(CudaExecutable(program, dtype, precision))
    from fastbp.backends.array import ArrayExecutable

    if backend == "numpy":
        return ArrayExecutable(program, np, dtype)
    return OnDevice(ArrayExecutable(program, gpu.cupy(), dtype))


class Counted(Executable, Protocol):
    """One that knows what memory it takes."""

    def bytes_for(self, n: int) -> int:
        """Bytes that n rows take beside what comes in."""


class OnDevice:
    """An Executable whose lack of device memory is told in rows of a batch."""

    def __init__(self, inside: Counted) -> None:
        self.program = inside.program
        self.inside = inside

    def run(self, values: Mapping[str, Any], n: int) -> dict[str, Any]:
        try:
            return self.inside.run(values, n)
        except MemoryError as error:  # CuPy's is one
            raise self._described(error, n) from error

    def run_steps(self, values: Mapping[str, Any], steps: Any) -> dict[str, Any]:
        try:
            return self.inside.run_steps(values, steps)
        except MemoryError as error:
            raise self._described(error, int(steps[:, 0].max())) from error

    def suits_many(self, n: int) -> bool:
        """Whether :meth:`run_many` is for steps of at most n rows."""
        suits = getattr(self.inside, "suits_blocks", None)
        return suits is not None and bool(suits(n))

    def run_many(self, values: Sequence[Mapping[str, Any]], steps: Sequence[Any]) -> list[dict[str, Any]]:
        """:meth:`run_steps` for several sets of values in one launch; see :meth:`suits_many`."""
        many: Any = self.inside
        try:
            found: list[dict[str, Any]] = many.run_many(values, steps)
        except MemoryError as error:
            raise self._described(error, max(int(s[:, 0].max()) for s in steps)) from error
        return found

    def _described(self, error: MemoryError, n: int) -> MemoryError:
        if isinstance(error, DeviceMemoryError):
            return error
        traceback.clear_frames(error.__traceback__)  # they hold what was made before memory ended
        return gpu.out_of_memory(self.inside.bytes_for, n)
