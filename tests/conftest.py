"""What all tests share: the matrix that runs here, printed with what is skipped and why."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import fastbp
from fastbp import checks
from fastbp.backends import DTYPES, ON_DEVICE, ON_HOST, gpu
from fastbp.losses import LOSSES
from fastbp.scalars import ACTIVATIONS

REASONS = {
    "torch": "PyTorch is not installed: its autograd and optimisers are not compared",
    "array_api_strict": "array-api-strict is not installed: the array machine runs on NumPy alone",
}


def pytest_report_header() -> list[str]:
    available = fastbp.available_backends()
    lines = [
        f"matrix: backends {', '.join(available)} x dtypes {', '.join(DTYPES)} x {len(checks.SHAPES)} shapes x "
        f"{len(ACTIVATIONS)} activations x {len(LOSSES)} losses; {fastbp.get_num_threads()} threads"
    ]
    lines += [f"skipped: backend {name} on a GPU: {gpu.missing(name)}" for name in ON_DEVICE if name not in available]
    lines += [f"skipped: {why}" for package, why in REASONS.items() if importlib.util.find_spec(package) is None]
    return lines


def pytest_collection_finish() -> None:
    """The collector need not look through thousands of collected tests again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=ON_HOST)
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend that computes on NumPy arrays; for CuPy's see test_switch.py."""
    name: str = request.param
    return name


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def two_threads():
    """Two threads for the test, whatever the machine has; then as before."""
    before = fastbp.get_num_threads()
    fastbp.set_num_threads(2)
    yield
    fastbp.set_num_threads(before)


@pytest.fixture
def fake_cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """CuPy without a GPU, see fake_cupy.py: backend "cupy" runs on it, and "cuda" where Numba's simulator is on."""
    fake = importlib.import_module("fake_cupy")
    for name, module in fake._modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    fake._reset()
    gpu.missing.cache_clear()
    yield fake
    gpu.missing.cache_clear()


@pytest.fixture
def cupy(fake_cupy: Any) -> Iterator[Any]:
    """The fake, with array code on it as the default backend."""
    with fastbp.use_backend("cupy"):
        yield fake_cupy
