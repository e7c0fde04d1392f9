"""One epoch of 784-30-10 on digits, batches of 10 rows in order: ``MLP.fit`` against the same loop in NumPy.

The digits are MNIST's if the folder of its files is named by FASTBP_MNIST or lies in ../shared/data/mnist beside the
repository, else random ones of that shape: the time is the same.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastbp import MLP, data, optim

BATCH = 10
RATE = 0.5
SYNTHETIC_ROWS = 10_000


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Inputs (n, 784) and one-hot targets (n, 10), float32."""
    folder = os.environ.get("FASTBP_MNIST") or Path(__file__).parents[2] / "shared" / "data" / "mnist"
    if "FASTBP_MNIST" in os.environ or Path(folder).is_dir():
        found = data.load(folder)
        X, labels = found.X, found.T
    else:
        rng = np.random.default_rng(0)
        X, labels = rng.random((SYNTHETIC_ROWS, 784), np.float32), rng.integers(0, 10, SYNTHETIC_ROWS)
    return X, np.eye(10, dtype=np.float32)[labels]


def new_net() -> MLP:
    return MLP([784, 30, 10], activation="sigmoid", output="sigmoid", loss="half_sse", seed=0)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-z))


def numpy_epoch(weights: list[np.ndarray], biases: list[np.ndarray], X: np.ndarray, T: np.ndarray) -> None:
    """What a NumPy user writes: the four equations of backpropagation on one batch after the other."""
    (w1, w2), (b1, b2) = weights, biases
    for start in range(0, len(X), BATCH):
        x, t = X[start : start + BATCH], T[start : start + BATCH]
        a1 = sigmoid(x @ w1 + b1)
        a2 = sigmoid(a1 @ w2 + b2)
        d2 = (a2 - t) * a2 * (1.0 - a2) / len(x)
        d1 = d2 @ w2.T * a1 * (1.0 - a1)
        w2 -= RATE * (a1.T @ d2)
        b2 -= RATE * d2.sum(axis=0)
        w1 -= RATE * (x.T @ d1)
        b1 -= RATE * d1.sum(axis=0)


def epochs(digits: tuple[np.ndarray, np.ndarray]) -> dict[str, Callable[[], Any]]:
    """One epoch more of either, from the same parameters; checked to give the same before it is timed."""
    X, T = digits
    net, copy = new_net(), new_net()
    weights, biases = copy.weights, copy.biases

    def fit() -> Any:
        return net.fit(X, T, epochs=1, batch_size=BATCH, optimizer=optim.SGD(RATE), shuffle=False)

    def loop() -> None:
        numpy_epoch(weights, biases, X, T)

    before = net.theta.copy()
    fit()
    loop()
    moved = np.abs(net.theta - before).max()
    assert np.abs(net.theta - copy.theta).max() <= 1e-3 * moved
    return {"fastbp": fit, "numpy": loop}


@pytest.mark.parametrize("who", ["fastbp", "numpy"])
def test_epoch(benchmark: Any, digits: tuple[np.ndarray, np.ndarray], who: str) -> None:
    benchmark.group = "one epoch of 784-30-10"
    benchmark(epochs(digits)[who])


def test_ratio(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], digits: tuple[np.ndarray, np.ndarray]
) -> None:
    runs = epochs(digits)
    seconds: dict[str, list[float]] = {who: [] for who in runs}
    for _ in range(1 if request.config.getoption("benchmark_disable") else 9):
        for who, run in runs.items():  # in turns, so that a disturbance meets both
            began = time.perf_counter()
            run()
            seconds[who].append(time.perf_counter() - began)
    fastbp, numpy = (statistics.median(seconds[who]) for who in ("fastbp", "numpy"))
    with capsys.disabled():
        rows = len(digits[0])
        print(f"\none epoch of {rows:,} rows: fastbp {fastbp:.4f} s, NumPy {numpy:.4f} s, {numpy / fastbp:.1f} times")
