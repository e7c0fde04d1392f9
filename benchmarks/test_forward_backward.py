"""One call of one forward pass, gradient or training step, Python's share included: what a user's own loop sees.

``measure.run`` (and ``fastbp bench``) has the times inside compiled code, beside theory and floors. Compile time is in
test_compile.py.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from fastbp.backends import ON_HOST
from fastbp.measure import NETWORKS, prepare

LARGE_ON_NUMPY = ("784-512-512-10", "1024x4", "64x5")


def cases() -> list[Any]:
    return [
        pytest.param(
            network, backend, marks=[pytest.mark.large] if backend == "numpy" and network in LARGE_ON_NUMPY else []
        )
        for network in NETWORKS
        for backend in ON_HOST
    ]


@cache
def reference_gradient(network: str) -> np.ndarray:
    """The gradient in float64, by plain NumPy."""
    case = prepare(NETWORKS[network], "numpy", "float64")
    return case.net.loss_and_grad(case.X, case.T)[1]


@pytest.mark.parametrize("what", ["forward", "gradient", "step"])
@pytest.mark.parametrize(("network", "backend"), cases())
def test_one(benchmark: Any, network: str, backend: str, what: str) -> None:
    case = prepare(NETWORKS[network], backend)
    expected = reference_gradient(network)
    found = case.net.loss_and_grad(case.X, case.T)[1]
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()  # nothing wrong is worth timing
    case.runs[what](1)  # binds, and touches memory
    benchmark.group = f"{network}|{what}"
    benchmark(case.runs[what], 1)
