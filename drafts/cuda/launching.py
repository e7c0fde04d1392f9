"""Launching kernels on CuPy's streams, and capturing launches as CUDA graphs.

All that needs a driver is here and in ``executable.py``; in Numba's simulator kernels run at once, on the host.
"""

from __future__ import annotations  # noqa: I001

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import cupy
import numpy as np
from numba import cuda

from fastbp.backends.cuda.device import SIMULATED
from fastbp.backends.cuda.kernels import KERNELS

CAN_CAPTURE = not SIMULATED
DEFAULT_SHARED = 48 << 10  # bytes of dynamic shared memory that a launch may ask for without leave
_ONE = {"float32": np.float32(1.0), "float64": np.float64(1.0)}


@cache
def compiled(name: str, dtype: str) -> Any:
    """The kernel, ready to be launched, with leave for as much shared memory as it may ask for."""
    kernel = KERNELS[dtype][name]
    dispatcher = cuda.jit(kernel.function)
    if not SIMULATED and kernel.shared > DEFAULT_SHARED:
        _allow_shared(dispatcher, dtype, kernel.shared)
    return dispatcher


def _allow_shared(dispatcher: Any, dtype: str, size: int) -> None:
    from cuda.bindings.driver import CUfunction_attribute  # noqa: I001
    from numba.cuda import types
    from numba.cuda.cudadrv.driver import driver

    dispatcher.compile((types.int64, types.int64, getattr(types, dtype)))
    (overload,) = dispatcher.overloads.values()
    function = overload._codelibrary.get_cufunc()
    attribute = CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    driver.cuKernelSetAttribute(attribute, size, function.handle, function.device.id)


@cache
def _numba_stream(address: int) -> Any:
    return cuda.external_stream(address) if address else cuda.default_stream()


def launch(name: str, dtype: str, blocks: int, threads: int, shared: int, words: int, slots: int) -> None:
    """Launch a kernel on CuPy's current stream; ``words`` and ``slots`` are addresses."""
    stream = 0 if SIMULATED else _numba_stream(cupy.cuda.get_current_stream().ptr)
    compiled(name, dtype)[blocks, threads, stream, shared](words, slots, _ONE[dtype])


@cache
def _stream() -> Any:
    return cupy.cuda.Stream(non_blocking=True)


@contextmanager
def own_stream() -> Iterator[Any]:
    """Work inside goes to a stream that can be captured, after what the current stream has, and before what it gets."""
    if SIMULATED:
        yield None
        return
    outside, inside = cupy.cuda.get_current_stream(), _stream()
    inside.wait_event(outside.record())
    with inside:
        yield inside
    outside.wait_event(inside.record())


def captured(stream: Any, work: Callable[[], None]) -> Any:
    """The launches of ``work`` as a graph that a stream can launch; they are not done now."""
    stream.begin_capture()
    try:
        work()
    finally:
        graph = stream.end_capture()
    graph.upload(stream)
    return graph
