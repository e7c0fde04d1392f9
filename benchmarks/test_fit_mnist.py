"""30 epochs of 784-30-10 on digits, batches of 10 shuffled rows: ``MLP.fit`` against the same loop in NumPy.

The digits are the training part of MNIST's files if their folder is named by FASTBP_MNIST or lies in
../shared/data/mnist beside the repository, else random ones of that shape: the time is the same.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastbp import MLP, data, optim
from fastbp.training import RowOrder

EPOCHS, BATCH, RATE = 30, 10, 3.0
SYNTHETIC_ROWS = 8_000


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Inputs (n, 784) and one-hot targets (n, 10), float32."""
    folder = os.environ.get("FASTBP_MNIST") or Path(__file__).parents[2] / "shared" / "data" / "mnist"
    if "FASTBP_MNIST" in os.environ or Path(folder).is_dir():
        found, _ = data.load(folder).split_every(5)
        X, labels = found.X, found.T
    else:
        rng = np.random.default_rng(0)
        X, labels = rng.random((SYNTHETIC_ROWS, 784), np.float32), rng.integers(0, 10, SYNTHETIC_ROWS)
    return X, np.eye(10, dtype=np.float32)[labels]


def new_net() -> MLP:
    return MLP([784, 30, 10], activation="sigmoid", output="sigmoid", loss="half_sse", init="normal", seed=0)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-z))


def numpy_fit(net: MLP, X: np.ndarray, T: np.ndarray, epochs: int) -> None:
    """What a NumPy user writes: the four equations of backpropagation on one batch after the other."""
    (w1, w2), (b1, b2) = net.weights, net.biases
    orders = RowOrder(len(X), net.seed, "epoch")
    for epoch in range(epochs):
        order = orders.epochs(epoch, epoch + 1)[0]
        for start in range(0, len(X), BATCH):
            rows = order[start : start + BATCH]
            x, t = X[rows], T[rows]
            a1 = sigmoid(x @ w1 + b1)
            a2 = sigmoid(a1 @ w2 + b2)
            d2 = (a2 - t) * a2 * (1.0 - a2) / len(x)
            d1 = d2 @ w2.T * a1 * (1.0 - a1)
            w2 -= RATE * (a1.T @ d2)
            b2 -= RATE * d2.sum(axis=0)
            w1 -= RATE * (x.T @ d1)
            b1 -= RATE * d1.sum(axis=0)


def fastbp_fit(net: MLP, X: np.ndarray, T: np.ndarray, epochs: int) -> None:
    net.fit(X, T, epochs=epochs, batch_size=BATCH, optimizer=optim.SGD(RATE))


FITS = {"fastbp": fastbp_fit, "numpy": numpy_fit}


@pytest.fixture(scope="module", autouse=True)
def same_results(digits: tuple[np.ndarray, np.ndarray]) -> None:
    """Checked before anything is timed: after 100 steps both have the same parameters."""
    X, T = (array[: 100 * BATCH] for array in digits)
    nets = {who: new_net() for who in FITS}
    start = nets["numpy"].theta.copy()
    for who, fit in FITS.items():
        fit(nets[who], X, T, 1)
    moved = np.abs(nets["numpy"].theta - start).max()
    assert np.abs(nets["fastbp"].theta - nets["numpy"].theta).max() <= 1e-3 * moved


@pytest.mark.parametrize("who", FITS)
def test_fit(benchmark: Any, digits: tuple[np.ndarray, np.ndarray], who: str) -> None:
    benchmark.group = f"{EPOCHS} epochs of 784-30-10"
    benchmark.pedantic(FITS[who], setup=lambda: ((new_net(), *digits, EPOCHS), {}), rounds=5)


def test_ratio(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], digits: tuple[np.ndarray, np.ndarray]
) -> None:
    brief = request.config.getoption("benchmark_disable")
    epochs = 1 if brief else EPOCHS
    seconds: dict[str, list[float]] = {who: [] for who in FITS}
    for _ in range(1 if brief else 7):
        for who, fit in FITS.items():  # in turns, so that a disturbance meets both
            net = new_net()
            began = time.perf_counter()
            fit(net, *digits, epochs)
            seconds[who].append(time.perf_counter() - began)
    fastbp, numpy = (statistics.median(seconds[who]) for who in ("fastbp", "numpy"))
    with capsys.disabled():
        rows = f"{epochs} epochs of {len(digits[0]):,} rows"
        print(f"\n{rows}: fastbp {fastbp:.3f} s, NumPy {numpy:.3f} s, {numpy / fastbp:.2f} times")
