"""Whether this machine can run the GPU backends, what they lack otherwise, and what the GPU is.

Nothing of the GPU's packages is imported before somebody asks.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from fastbp.errors import DeviceMemoryError

PACKAGES = {"cupy": ("cupy",), "cuda": ("cupy", "numba-cuda")}  # what each backend needs
LEAST_CAPABILITY = 80  # of the cuda backend's kernels: asynchronous copies and bf16 came with it
INSTALL = "pip install 'fastbp[gpu]' for CUDA 13, 'fastbp[gpu12]' for CUDA 12"


@cache
def missing(backend: str = "cuda") -> str | None:
    """What "cupy" or "cuda" lacks on this machine, with how to get it; None if it can run. Found out once."""
    packages = [name for name in PACKAGES[backend] if not installed(name)]
    driver = driver_version()
    lacking = [f"{' and '.join(packages)} not installed ({INSTALL})"] if packages else []
    if "cupy" not in packages:
        with_cupy = _without_gpu()
        lacking += [with_cupy] if with_cupy else []
    elif driver is None:
        lacking.append(_NO_DRIVER)
    if not lacking and backend == "cuda":
        lacking = [why for why in (_without_numba(), _too_old()) if why]
    return "; ".join(lacking) or None


_NO_DRIVER = "no NVIDIA driver: there is no GPU, or its driver is not installed (nvidia.com/drivers)"


def cupy() -> Any:
    """The module, imported at the first call."""
    return importlib.import_module("cupy")


def installed(package: str) -> bool:
    """Whether a package of PACKAGES is there, without importing it."""
    if package == "numba-cuda":  # it takes the place of numba.cuda, which is always there
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return False
        return True
    return package in sys.modules or importlib.util.find_spec(package) is not None


def driver_version() -> int | None:
    """The newest CUDA that the driver can run, 13000 for 13.0; None without a driver."""
    version = ctypes.c_int()
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return None
    return version.value or None


def in_words(version: int) -> str:
    """13020 as "13.2"."""
    return f"{version // 1000}.{version % 1000 // 10}"


def _without_gpu() -> str | None:
    """What CuPy says is missing."""
    try:
        runtime = cupy().cuda.runtime
    except Exception as error:  # a broken installation raises all kinds
        return f"cupy cannot be imported: {error}"
    driver, needed = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    if not driver:
        return _NO_DRIVER
    if driver // 1000 < needed // 1000:
        return (
            f"the NVIDIA driver is too old: it is for CUDA {in_words(driver)}, but cupy is built for CUDA "
            f"{in_words(needed)}: update the driver, or install 'fastbp[gpu12]' and uninstall cupy-cuda13x"
        )
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        return f"no NVIDIA GPU can be used: {error}"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    hint = "" if hidden is None else f" (CUDA_VISIBLE_DEVICES={hidden!r})"
    return None if count else f"no NVIDIA GPU is visible{hint}"


def _without_numba() -> str | None:
    """Whether numba.cuda is numba-cuda's, as its kernels need."""
    try:
        cuda: Any = importlib.import_module("numba.cuda")
    except Exception as error:
        return f"numba.cuda cannot be imported: {error}"
    if getattr(cuda, "implementation", "") != "NVIDIA":
        return "numba-cuda is installed but not in use: install it where numba is (pip install without --target)"
    if not hasattr(np, "row_stack"):  # which its compiler names, and it says so only when the first kernel is compiled
        version = importlib.metadata.version("numba-cuda")
        return f"numba-cuda {version} cannot compile with NumPy {np.__version__}: pip install 'numpy<2.5'"
    return None


def _too_old() -> str | None:
    found = cupy().cuda.Device().compute_capability
    if int(found) >= LEAST_CAPABILITY:
        return None
    return (
        f"the GPU has compute capability {found[:-1]}.{found[-1]}, and the kernels need "
        f"{LEAST_CAPABILITY // 10}.{LEAST_CAPABILITY % 10}"
    )


def describe() -> dict[str, str]:
    """What ``fastbp info`` prints: of the GPU, or of what is missing for each backend."""
    why = {backend: missing(backend) for backend in PACKAGES}
    driver = driver_version()
    found = {"driver": "missing" if driver is None else f"for CUDA {in_words(driver)}"}
    if why["cupy"] is None:
        module = cupy()
        device = module.cuda.Device()
        properties = module.cuda.runtime.getDeviceProperties(device.id)
        free, total = device.mem_info
        capability = device.compute_capability
        found = {
            "device": f"{properties['name'].decode()} (number {device.id})",
            "compute capability": f"{capability[:-1]}.{capability[-1]}",
            "memory": f"{total / 2**30:.1f} GiB, {free / 2**30:.1f} free",
            "driver": f"for CUDA {in_words(module.cuda.runtime.driverGetVersion())}",
            "cupy built for": f"CUDA {in_words(module.cuda.runtime.runtimeGetVersion())}",
        }
    found |= {f"backend {backend}": f"cannot run: {text}" if text else "runs" for backend, text in why.items()}
    if why["cuda"] is None:
        blas = importlib.import_module("fastbp.backends.cuda.blas")
        found["cuBLAS"] = "found" if blas.available() else f"not found, so large products take longer: {INSTALL}"
    return found


# ---- memory ----------------------------------------------------------------------------------------------------------


def free_bytes() -> int:
    """Device memory that can still be had: what is free, and what CuPy's pool keeps unused."""
    module = cupy()
    return int(module.cuda.Device().mem_info[0]) + int(module.get_default_memory_pool().free_bytes())


def largest(fits: Callable[[int], bool], below: int) -> int:
    """The largest number below ``below`` that fits, where what does not fit is above what does; 0 if none does."""
    low, high = 0, below
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def out_of_memory(bytes_for: Callable[[int], int], n: int) -> DeviceMemoryError:
    """The error for n rows that did not fit; ``bytes_for`` rows are needed beside what comes in."""
    needed, free = bytes_for(n), free_bytes()
    rows = largest(lambda k: bytes_for(k) <= free, n)
    what = f"batches of {rows} rows would fit" if rows else "no batch would fit: the network itself is too large"
    return DeviceMemoryError(
        f"the device has too little memory: {n} rows need {needed:,} bytes beside the data and the parameters, and "
        f"{free:,} are free; {what}"
    )
