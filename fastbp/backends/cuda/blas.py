"""Products by cuBLAS on CuPy's current stream, C = A B, row by row.

cuBLAS is called through ctypes: CuPy refuses its own calls while a graph is captured. Its sums have the same bits in
every run on a card with a version of cuBLAS, but other ones with others.
"""

from __future__ import annotations

import ctypes
import threading
from functools import cache
from typing import Any

import numpy as np

from fastbp.backends.cuda.device import SIMULATED
from fastbp.errors import FastbpError

WORKSPACE = 32 << 20  # bytes: what cuBLAS asks for on Hopper, and more than on others; its choices depend on it
# dtype and precision -> cuBLAS' numbers of the operands' type, of the result's, and of what it computes in
_FLOAT32, _FLOAT64, _BFLOAT16 = 0, 1, 14
_TYPES = {
    ("float32", "highest"): (_FLOAT32, _FLOAT32, 68),
    ("float32", "tf32"): (_FLOAT32, _FLOAT32, 77),
    ("float32", "bf16"): (_BFLOAT16, _FLOAT32, 68),
    ("float64", "highest"): (_FLOAT64, _FLOAT64, 70),
}
_DEFAULT_ALGORITHM = -1
_NO_MEMORY = (1, 3)  # not initialised, allocation failed: what cublasCreate says where memory is short
_lock = threading.Lock()  # a handle has one stream at a time
_said: dict[int, tuple[int, int]] = {}  # device -> stream and workspace that its handle knows


@cache
def available() -> bool:
    """Whether cuBLAS is installed; the simulator has a twin."""
    return SIMULATED or _library() is not None


@cache
def _library() -> Any:
    """The library, None if it is not there."""
    pointer: Any = ctypes.c_void_p
    number: Any = ctypes.c_int
    sizes, matrix = [number] * 5, [pointer, number, number]
    try:
        from cuda import pathfinder

        path = pathfinder.load_nvidia_dynamic_lib("cublas").abs_path
        library: Any = ctypes.CDLL(path) if path else None
        library.cublasCreate_v2.argtypes = [pointer]
        library.cublasSetStream_v2.argtypes = [pointer, pointer]
        library.cublasSetWorkspace_v2.argtypes = [pointer, pointer, ctypes.c_size_t]
        library.cublasGemmEx.argtypes = [pointer, *sizes, pointer, *matrix, *matrix, pointer, *matrix, number, number]
    except Exception:  # whatever is wrong with it, products can be done without
        return None
    return library


@cache
def _handle(device: int) -> ctypes.c_void_p:
    """The handle of a device, made at its first product; it takes memory that CuPy's pool may keep for nobody."""
    import cupy

    handle = ctypes.c_void_p()
    status = _library().cublasCreate_v2(ctypes.byref(handle))
    if status in _NO_MEMORY:
        cupy.get_default_memory_pool().free_all_blocks()
        status = _library().cublasCreate_v2(ctypes.byref(handle))
    if status in _NO_MEMORY:
        raise MemoryError("cuBLAS found no memory for itself")
    _check(status, "cublasCreate")
    return handle


def _check(status: int, what: str) -> None:
    if status:
        raise FastbpError(f"{what} failed with cuBLAS status {status}")


@cache
def _scalar(value: float, dtype: str) -> Any:
    """A number that cuBLAS reads."""
    return (ctypes.c_double if dtype == "float64" else ctypes.c_float)(value)


def product(
    dtype: str,
    precision: str,
    shape: tuple[int, int, int],
    a: tuple[int, bool],
    b: tuple[int, bool],
    c: int,
    workspace: int,
) -> None:
    """C (m, n) = A (m, k) B (k, n); overwrites.

    Args:
        shape: m, n, k; none of them 0.
        a, b: address, and whether it lies transposed there; of bf16 if that is the precision.
        c: address of the result.
        workspace: of WORKSPACE bytes.

    Raises:
        FastbpError: cuBLAS refused.
    """
    if SIMULATED:
        _twin(dtype, precision, shape, a, b, c)
        return
    import cupy

    m, n, k = shape
    operands, result, compute = _TYPES[dtype, precision]
    device, stream = cupy.cuda.runtime.getDevice(), cupy.cuda.get_current_stream().ptr
    with _lock:
        library, handle = _library(), _handle(device)
        if _said.get(device) != (stream, workspace):
            _check(library.cublasSetStream_v2(handle, stream), "cublasSetStream")
            _check(library.cublasSetWorkspace_v2(handle, workspace, WORKSPACE), "cublasSetWorkspace")
            _said[device] = stream, workspace
        # by columns, as cuBLAS sees memory, the transposed product: C' = B' A'
        status = library.cublasGemmEx(
            *(handle, int(b[1]), int(a[1]), n, m, k),
            ctypes.byref(_scalar(1.0, dtype)),
            *(b[0], operands, k if b[1] else n),
            *(a[0], operands, m if a[1] else k),
            ctypes.byref(_scalar(0.0, dtype)),
            *(c, result, n, compute, _DEFAULT_ALGORITHM),
        )
    _check(status, "cublasGemmEx")


def _twin(
    dtype: str, precision: str, shape: tuple[int, int, int], a: tuple[int, bool], b: tuple[int, bool], c: int
) -> None:
    """The same in the simulator, whose addresses are the host's."""
    m, n, k = shape

    def matrix(address: int, rows: int, cols: int, kind: Any) -> np.ndarray:
        memory = (ctypes.c_char * (rows * cols * np.dtype(kind).itemsize)).from_address(address)
        return np.frombuffer(memory, kind).reshape(rows, cols)

    def operand(address: int, transposed: bool, rows: int, cols: int) -> np.ndarray:
        stored = (cols, rows) if transposed else (rows, cols)
        if precision == "bf16":
            found = (matrix(address, *stored, np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            found = matrix(address, *stored, dtype)
        return found.T if transposed else found

    matrix(c, m, n, dtype)[...] = operand(*a, m, k) @ operand(*b, k, n)
