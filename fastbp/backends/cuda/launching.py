"""Launching kernels on CuPy's streams, and capturing launches as CUDA graphs.

All that needs a driver is here and in ``executable.py``; in Numba's simulator kernels run at once, on the host.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import cupy
import numpy as np
from numba import cuda

from fastbp.backends.cuda.blocks import SHARED
from fastbp.backends.cuda.device import SIMULATED
from fastbp.backends.cuda.kernels import KERNELS

CAN_CAPTURE = not SIMULATED
DEFAULT_SHARED = 48 << 10  # bytes of dynamic shared memory that a launch may ask for without leave
_ONE = {"float32": np.float32(1.0), "float64": np.float64(1.0)}


@cache
def compiled(name: str, dtype: str) -> Any:
    """The kernel, ready to be launched."""
    kernel = KERNELS[dtype][name]
    if SIMULATED:
        return cuda.jit(kernel.function)
    from fastbp.backends.cuda.keeping import kept

    return kept(kernel.function, f"{dtype} {name}", kernel.optimised_once)


@lru_cache(1024)
def _configured(name: str, dtype: str, device: int, blocks: int, threads: int, stream: int, shared: int) -> Any:
    """The kernel with all that a launch on a device needs; few blocks are meant, so Numba's warning is not shown."""
    if KERNELS[dtype][name].shared > DEFAULT_SHARED:
        _allow_shared(name, dtype, device)
    with warnings.catch_warnings(action="ignore"):
        return compiled(name, dtype)[blocks, threads, _numba_stream(stream), shared]


def most_shared() -> int:
    """Bytes of shared memory that a block may have on the current device."""
    return SHARED if SIMULATED else max(SHARED, cupy.cuda.Device().attributes["MaxSharedMemoryPerBlockOptin"])


@cache
def _allow_shared(name: str, dtype: str, device: int) -> None:
    """Give the kernel leave, on a device, for as much shared memory as there is for a block."""
    from cuda.bindings.driver import CUfunction_attribute
    from numba.cuda import types
    from numba.cuda.cudadrv.driver import driver

    dispatcher = compiled(name, dtype)
    dispatcher.compile((types.int64, types.int64, getattr(types, dtype)))
    (overload,) = dispatcher.overloads.values()
    function = overload._codelibrary.get_cufunc()
    attribute = CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    driver.cuKernelSetAttribute(attribute, most_shared(), function.handle, device)


def _numba_stream(address: int) -> Any:
    return cuda.external_stream(address) if address else 0


def launch(name: str, dtype: str, blocks: int, threads: int, shared: int, words: int, slots: int) -> None:
    """Launch a kernel on CuPy's current stream; ``words`` and ``slots`` are addresses."""
    if SIMULATED:
        compiled(name, dtype)[blocks, threads, 0, shared](words, slots, _ONE[dtype])
        return
    device, stream = cupy.cuda.runtime.getDevice(), cupy.cuda.get_current_stream().ptr
    _configured(name, dtype, device, blocks, threads, stream, shared)(words, slots, _ONE[dtype])


def current_stream() -> Any:
    """CuPy's current stream; None in the simulator, where kernels run at once."""
    return None if SIMULATED else cupy.cuda.get_current_stream()


def new_stream() -> Any:
    """A stream that can be captured, of the current device."""
    return None if SIMULATED else cupy.cuda.Stream(non_blocking=True)


def captured(stream: Any, work: Callable[[], None]) -> Any:
    """The launches of ``work`` as a graph that a stream can launch; they are not done now.

    Whatever else the stream is asked for meanwhile would become a part of the graph: nobody else may know it.
    """
    stream.begin_capture()
    try:
        work()
    finally:
        graph = stream.end_capture()
    graph.upload(stream)
    return graph
