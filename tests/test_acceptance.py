"""What users are promised: real digits are learned, with the accuracy that a plain NumPy loop gets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fastbp
from fastbp import MLP, data, optim

MNIST = Path(__file__).parents[2] / "shared" / "data" / "mnist"
needs_mnist = pytest.mark.skipif(not MNIST.is_dir(), reason="the MNIST files are not beside the checkout")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scikit_learns_digits(seed):
    pytest.importorskip("sklearn")
    train, test = data.digits().split_every(5)
    net = MLP([64, 64, 10], loss="cross_entropy", seed=seed)
    net.fit(train.X, train.T, epochs=60, optimizer=optim.Adam(0.003))
    assert net.score(test.X, test.T) >= 0.96


@needs_mnist
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mnist_as_in_nielsens_book(seed):
    train, test = data.load(MNIST).split_every(5)
    net = MLP([784, 30, 10], activation="sigmoid", output="sigmoid", loss="half_sse", init="normal", seed=seed)
    history = net.fit(train.X, np.eye(10)[train.T], epochs=30, batch_size=10, optimizer=optim.SGD(3.0))
    assert net.score(test.X, test.T) >= 0.915
    assert history.rows == [8000] * 30


@needs_mnist
def test_mnist_with_the_defaults():
    train, test = data.load(MNIST).split_every(5)
    net = MLP([784, 100, 10], loss="cross_entropy", seed=0)
    net.fit(train.X, train.T)
    assert net.score(test.X, test.T) >= 0.95


def test_xor(backend):
    """The smallest network there is to learn: 2-4-1, four rows."""
    X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    T = np.array([0, 1, 1, 0])
    net = MLP([2, 4, 1], activation="tanh", loss="bce", backend=backend, seed=0)
    net.fit(X, T, epochs=500, batch_size=4, optimizer=optim.Adam(0.05))
    np.testing.assert_array_equal(net.predict(X)[:, 0], T)


def test_the_readmes_examples():
    """As the README has them, run from its text, one after the other."""
    pytest.importorskip("sklearn")
    text = (Path(__file__).parents[1] / "README.md").read_text()
    names: dict[str, object] = {}
    for part in text.split("```python\n")[1:]:
        exec(compile(part.split("```")[0], "README.md", "exec"), names)
    assert isinstance(names["net"], fastbp.MLP)
    assert names["net"].score(names["test"].X, names["test"].T) >= 0.96
    assert np.shape(names["gradient"]) == (3, 1)
