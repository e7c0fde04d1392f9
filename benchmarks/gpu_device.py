"""Where GPU benchmarks run: a card with its events; or the host with its clock, to try them without a card."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np

PRECISIONS = ("highest", "tf32", "bf16")
AHEAD = 2e-3  # seconds for which flushing keeps a card busy: enough to queue the launches of one call of Python's
PACKAGES = ("numpy", "numba", "llvmlite", "numba-cuda", "cupy-cuda13x", "cupy-cuda12x", "cuda-bindings", "cuda-core")
PEERS = ("torch", "triton", "jax")


@dataclass(frozen=True)
class Place:
    """Who computes what: backends of fastbp's kernels and of its array code, PyTorch's device, JAX's platform."""

    backend: str
    arrays: str
    torch: str
    jax: str


ON_CARD = Place("cuda", "cupy", "cuda", "cuda")
ON_HOST = Place("cpu", "numpy", "cpu", "cpu")


class Device(Protocol):
    """What times and waits."""

    place: Place

    def wait(self) -> None:
        """Until all that was asked for is done."""

    def timed(self, run: Callable[[], object]) -> float:
        """Seconds of one call, on the device."""

    def flush(self) -> None:
        """Put something else into the caches; a card is busy with it for about AHEAD, and nobody waits."""

    def free_bytes(self) -> int:
        """Memory that can be had."""

    def release(self) -> None:
        """Give memory back that nobody uses."""


class Host:
    """The host and its clock."""

    place = ON_HOST

    def __init__(self, place: Place = ON_HOST) -> None:
        self.place = place
        self._other = np.zeros(1 << 20, np.uint8)

    def wait(self) -> None:
        """Nothing to wait for."""

    def timed(self, run: Callable[[], object]) -> float:
        """Seconds of one call."""
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    def flush(self) -> None:
        """A little, for form's sake."""
        self._other += 1

    def free_bytes(self) -> int:
        """Enough for anything that is tried on the host."""
        return 1 << 32

    def release(self) -> None:
        """Python does."""


class Card:
    """The current GPU, its events on CuPy's current stream, which is PyTorch's too: the null stream."""

    place = ON_CARD

    def __init__(self) -> None:
        self.cupy: Any = importlib.import_module("cupy")
        properties = self.cupy.cuda.runtime.getDeviceProperties(self.cupy.cuda.Device().id)
        self._other = self.cupy.zeros(max(4 * properties["l2CacheSize"], 64 << 20), np.uint8)
        self._fills = max(1, math.ceil(AHEAD / _best(self, self._fill)))

    def wait(self) -> None:
        """Until the whole card is idle."""
        self.cupy.cuda.Device().synchronize()

    def timed(self, run: Callable[[], object]) -> float:
        """Seconds between two events around one call.

        A card that idles waits for the first launch, and for each that the host is late with: that is counted, too.
        Behind a flush, launches are there when the card comes to the first event, and what is counted is its work.
        """
        begin, end = self.cupy.cuda.Event(), self.cupy.cuda.Event()
        begin.record()
        run()
        end.record()
        end.synchronize()
        return float(self.cupy.cuda.get_elapsed_time(begin, end)) / 1e3

    def flush(self) -> None:
        """Write four times as many bytes as the second-level cache has, over and over for about AHEAD."""
        for _ in range(self._fills):
            self._fill()

    def _fill(self) -> None:
        self._other.fill(1)

    def free_bytes(self) -> int:
        """What is free, and what CuPy keeps unused."""
        free = self.cupy.cuda.Device().mem_info[0] + self.cupy.get_default_memory_pool().free_bytes()
        return int(free)

    def release(self) -> None:
        """CuPy's pool and PyTorch's."""
        self.wait()
        self.cupy.get_default_memory_pool().free_all_blocks()
        torch = sys.modules.get("torch")  # nothing to give back where nobody has imported it
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class Sample:
    """What repeats gave: the median in µs, the interquartile range by it, and how many there were."""

    us: float
    spread: float
    repeats: int


def sample(seconds: list[float]) -> Sample:
    """The median of some seconds."""
    first, median, third = statistics.quantiles(seconds, n=4, method="inclusive")
    return Sample(1e6 * median, (third - first) / median if median else 0.0, len(seconds))


def cold(
    device: Device, runs: dict[str, Callable[[], object]], budget: float, fewest: int = 5, most: int = 30
) -> dict[str, Sample]:
    """Every run in turns, with caches that hold something else, after two that do not count.

    On a card, what its work takes: launches are queued while it flushes, whether a graph replays them or Python makes
    them. Only a run that waits for the card itself pays for the launches behind its wait.
    """
    for run in runs.values():
        for _ in range(2):
            run()
    found: dict[str, list[float]] = {name: [] for name in runs}
    began = time.perf_counter()
    for repeat in range(most):
        if repeat >= fewest and time.perf_counter() - began > budget:
            break
        for name, run in runs.items():
            device.flush()
            found[name].append(device.timed(run))
    return {name: sample(seconds) for name, seconds in found.items()}


# ---- limits ----------------------------------------------------------------------------------------------------------


def peaks(device: Device, size: int = 8192, copied: int = 1 << 30) -> dict[str, float]:
    """What the device can do at most, measured: operations a second by precision, "bandwidth" in bytes a second.

    Products of size³ by cuBLAS, of random numbers: PyTorch's where it is installed; CuPy's otherwise, which knows
    float32, and float16 in place of bf16. A copy counts the bytes read and those written.
    """
    found = {}
    for name, run in _products(device, size).items():
        found[name] = 2.0 * size**3 / _best(device, run)
    source = _module(device).ones(copied // 4, np.float32)
    target = _module(device).empty_like(source)
    found["bandwidth"] = 2.0 * source.nbytes / _best(device, lambda: target.__setitem__(slice(None), source))
    return found


def _module(device: Device) -> Any:
    return importlib.import_module(device.place.arrays)


def _best(device: Device, run: Callable[[], object], repeats: int = 10) -> float:
    for _ in range(3):
        run()
    device.wait()
    return min(device.timed(run) for _ in range(repeats))


def _products(device: Device, size: int) -> dict[str, Callable[[], object]]:
    if importlib.util.find_spec("torch"):
        torch = importlib.import_module("torch")
        if device.place.torch == "cpu" or torch.cuda.is_available():
            return {p: _torch_product(torch, device.place.torch, p, size) for p in PRECISIONS}
    xp = _module(device)
    rng = np.random.default_rng(0)
    a, b = (xp.asarray(rng.standard_normal((size, size), np.float32)) for _ in range(2))
    halves = a.astype(np.float16), b.astype(np.float16)
    return {"highest": lambda: a @ b} | ({} if xp is np else {"bf16": lambda: halves[0] @ halves[1]})


def _torch_product(torch: Any, device: str, precision: str, size: int) -> Callable[[], object]:
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    out = torch.empty(size, size, device=device, dtype=kind)

    def run() -> None:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        torch.matmul(a, b, out=out)

    return run


# ---- what it is ------------------------------------------------------------------------------------------------------


def versions(names: tuple[str, ...] = (*PACKAGES, *PEERS)) -> dict[str, str]:
    """Of the packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """The card as CuPy and the driver describe it, and all versions; of a host without one what there is."""
    import fastbp
    from fastbp.backends import gpu

    driver = gpu.driver_version()
    found: dict[str, Any] = {
        "card": "none",
        "driver": "none" if driver is None else f"for CUDA {gpu.in_words(driver)}",
        "python": platform.python_version(),
        "versions": {"fastbp": fastbp.__version__, **versions()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if gpu.missing("cupy") is None:
        cupy = gpu.cupy()
        properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
        found |= {
            "card": properties["name"].decode(),
            "count": cupy.cuda.runtime.getDeviceCount(),
            "capability": cupy.cuda.Device().compute_capability,
            "multiprocessors": properties["multiProcessorCount"],
            "memory": properties["totalGlobalMem"],
            "l2": properties["l2CacheSize"],
            "shared": properties["sharedMemPerBlockOptin"],
            "driver": f"{_driver_name()} for CUDA {gpu.in_words(cupy.cuda.runtime.driverGetVersion())}".strip(),
        }
    return found


def _driver_name() -> str:
    """As nvidia-smi says it; it only reads."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else ""
