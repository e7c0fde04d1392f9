"""What the five lecture notes that fastbp started from describe, a test a row: each named after its row.

The notes contain slips; where one matters, the test says what is right and that the slip is not.
"""

from __future__ import annotations

import gzip
import importlib
import itertools
import math
import struct
from pathlib import Path

import numpy as np
import pytest

import fastbp
from fastbp import MLP, graph, measure, optim, pictures
from fastbp.losses import LOSSES

ROOT = Path(__file__).parents[1]
MNIST = ROOT.parent / "shared" / "data" / "mnist"


def data(rows: int, *widths: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.random((rows, width)) for width in widths]


def differences(net: fastbp.Network, X: np.ndarray, T: np.ndarray, h: float = 1e-6) -> np.ndarray:
    """The gradient by central differences, in float64."""
    gradient = np.empty_like(net.theta)
    for k, value in enumerate(net.theta.copy()):
        net.theta[k] = value + h
        above = net.loss(X, T)
        net.theta[k] = value - h
        gradient[k] = (above - net.loss(X, T)) / (2 * h)
        net.theta[k] = value
    return gradient


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def deep(**more) -> MLP:
    settings = {"activation": "sigmoid", "output": "sigmoid", "loss": "half_sse", "dtype": "float64", "seed": 1} | more
    return MLP([4, 6, 5, 3, 2], **settings)


def example(monkeypatch, name: str):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module(name)


def test_s01_layered_backpropagation(backend):
    """g = dJ/da; g ⊙ σ′(z); dW = aᵀ g; db = g; g Wᵀ passed down; every parameter replaced only then."""
    net = deep(backend=backend)
    X, T = data(7, 4, 2)
    _, gradient = net.loss_and_grad(X, T)
    np.testing.assert_allclose(gradient, differences(net, X, T), rtol=1e-6, atol=1e-9)

    def step(theta: np.ndarray, rate: float, simultaneous: bool) -> np.ndarray:
        """As in the notes, here with a sign of J′ that descends; or with W replaced before g is passed down."""
        weights, biases = ([part.copy() for part in parts] for parts in net.split(theta.copy()))
        a = [X]
        for W, b in zip(weights, biases, strict=True):
            a.append(sigmoid(a[-1] @ W + b))
        new, g = [], (a[-1] - T) / len(X)
        for k in reversed(range(len(weights))):
            g = g * a[k + 1] * (1 - a[k + 1])
            updated = weights[k] - rate * a[k].T @ g, biases[k] - rate * g.sum(axis=0)
            new = [*updated, *new]
            g = g @ (weights[k] if simultaneous else updated[0]).T
        return np.concatenate([part.ravel() for part in new])

    rate, theta = 4.0, net.theta.copy()
    net.fit(X, T, epochs=1, batch_size=7, shuffle=False, optimizer=optim.SGD(rate))
    np.testing.assert_allclose(net.theta, step(theta, rate, simultaneous=True), rtol=1e-10, atol=1e-14)
    assert np.abs(net.theta - step(theta, rate, simultaneous=False)).max() > 1e-4  # this test can fail


FORMULAS = {  # of outputs a and targets t, (n, k)
    "half_sse": lambda a, t: ((a - t) ** 2).sum() / 2 / len(a),
    "mse": lambda a, t: ((a - t) ** 2).mean(),
    "sse": lambda a, t: ((a - t) ** 2).sum(),
    "mae": lambda a, t: np.abs(a - t).mean(),
    "huber": lambda a, t: np.where(np.abs(a - t) <= 1, (a - t) ** 2 / 2, np.abs(a - t) - 0.5).mean(),
    "bce": lambda a, t: -(t * np.log(a) + (1 - t) * np.log(1 - a)).mean(),
    "cross_entropy": lambda a, t: -(t * np.log(a)).sum() / len(a),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_s02_losses(backend, name):
    """Each by name, with the scaling that its row in ``fastbp.losses`` states, gradient-checked."""
    assert set(FORMULAS) == set(LOSSES)
    assert f"\n{name} " in fastbp.losses.__doc__
    net = MLP([3, 5, 4], activation="tanh", loss=name, dtype="float64", backend=backend, seed=2)
    X, T = data(6, 3, 4)
    T = 3 * T if name == "huber" else T / T.sum(axis=1, keepdims=True)  # both sides of Huber's 1
    a = net.forward(X)
    assert net.loss(X, T) == pytest.approx(FORMULAS[name](a, T), rel=1e-12)
    np.testing.assert_allclose(net.loss_and_grad(X, T)[1], differences(net, X, T), rtol=1e-6, atol=1e-9)
    if name in ("bce", "cross_entropy"):  # dC/dz = a - t: no further σ′, whatever the notes say
        scale = len(X) * (4 if name == "bce" else 1)
        np.testing.assert_allclose(net.deltas(X, T)[-1], (a - T) / scale, rtol=1e-10)
    far = MLP([1, 2], loss="cross_entropy", init="zeros", seed=0)
    far.weights[0][...] = [[-200.0, 200.0]]  # where e⁻ᶻ/(1 + e⁻ᶻ)² is NaN in float32
    assert np.isfinite(far.loss_and_grad([[1.0]], [[1.0, 0.0]])[1]).all()


def test_s03_any_graph(backend):
    """A DAG whose nodes have several consumers: what they hand back is summed; and gradients have gradients."""
    x, y = graph.param("x", (1, 1)), graph.param("y", (1, 1))
    shared = x * y.sin()
    z = shared * shared.exp() + shared + x  # four consumers of shared, two of x
    dx, dy = graph.gradients(z, [x, y])
    second = [*graph.gradients(dx, [x, y]), *graph.gradients(dy, [x, y])]
    found = graph.compile([z, dx, dy, *second], backend=backend)(x=[[0.7]], y=[[0.4]])

    s, dsx, dsy = 0.7 * math.sin(0.4), math.sin(0.4), 0.7 * math.cos(0.4)
    first = math.exp(s) * (1 + s) + 1  # dz/dshared
    curved = math.exp(s) * (2 + s)
    expected = [s * math.exp(s) + s + 0.7, first * dsx + 1, first * dsy]
    mixed = curved * dsx * dsy + first * math.cos(0.4)
    expected += [curved * dsx**2, mixed, mixed, curved * dsy**2 - first * s]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_s04_graphs_are_drawn(tmp_path):
    """Figure 1 of the notes, x = y z, a = x z, with values forward and gradients on the edges backward."""
    pytest.importorskip("matplotlib")
    trace = fastbp.trace(lambda y, z: (y * z) * z, 2.0, 3.0)
    pictures.computational_graph(trace, tmp_path / "graph.svg")
    text = (tmp_path / "graph.svg").read_text(encoding="utf-8")
    assert text.lstrip().startswith("<?xml")
    by_number = {step.number: step for step in trace.steps}
    handed = [(by_number[e.source].symbol, e.contribution) for step in trace.steps for e in step.edges]
    assert sorted(handed) == [("v2", 3.0), ("y", 9.0), ("z", 6.0), ("z", 6.0)]
    assert trace.gradients == (9.0, 12.0)


def test_s05_batch_modes():
    """Full batch, mini-batches and single random pairs by one loop; an epoch meets every row exactly once.

    A linear unit with one input for each row: the weights that moved tell how often a row was met.
    """
    n = 10
    X, T = np.eye(n), np.ones((n, 1))

    def steps(**mode) -> np.ndarray:
        net = MLP([n, 1], loss="sse", bias=False, init="zeros", dtype="float64", seed=3)
        net.fit(X, T, epochs=1, optimizer=optim.SGD(0.25), **mode)  # each meeting halves 1 - w
        return np.log2(1 / (1 - net.theta))

    for mode in ({"batch_size": n}, {"batch_size": 3}, {"batch_size": 1}, {"batch_size": 4, "shuffle": False}):
        np.testing.assert_array_equal(steps(**mode), np.ones(n))
    drawn = steps(batch_size=1, sampling="replacement")
    assert drawn.sum() == n
    assert (drawn != 1).any()

    X, T = data(12, 4, 2)  # a mini-batch's gradient is the mean of its rows' gradients
    net = deep()
    each = [net.loss_and_grad(X[k : k + 1], T[k : k + 1])[1] for k in range(12)]
    np.testing.assert_allclose(net.loss_and_grad(X[:5], T[:5])[1], np.mean(each[:5], axis=0), rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(net.loss_and_grad(X, T)[1], np.mean(each, axis=0), rtol=1e-10, atol=1e-15)


def updates(name: str, theta: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    """The published formulas, in plain NumPy, with ε = 0.1 throughout."""
    a, b = np.zeros_like(theta), np.zeros_like(theta)
    if name == "ftrl":
        a = -theta / 0.1  # so that the first step starts from theta; β = 1
    for t, g in enumerate(gradients, 1):
        match name:
            case "sgd":
                theta = theta - 0.1 * g
            case "momentum":
                a = 0.9 * a + g
                theta = theta - 0.1 * a
            case "nesterov":
                a = 0.9 * a + g
                theta = theta - 0.1 * (g + 0.9 * a)
            case "adagrad":
                a = a + g**2
                theta = theta - 0.1 * g / (np.sqrt(a) + 1e-10)
            case "rmsprop":
                a = 0.9 * a + 0.1 * g**2
                theta = theta - 0.1 * g / (np.sqrt(a) + 1e-8)
            case "adam" | "adamw":
                theta = theta * (1 - 0.1 * 0.01) if name == "adamw" else theta
                a, b = 0.9 * a + 0.1 * g, 0.999 * b + 0.001 * g**2
                theta = theta - 0.1 * (a / (1 - 0.9**t)) / (np.sqrt(b / (1 - 0.999**t)) + 1e-8)
            case "ftrl":
                sigma = (np.sqrt(b + g**2) - np.sqrt(b)) / 0.1
                a, b = a + g - sigma * theta, b + g**2
                theta = -a / ((1 + np.sqrt(b)) / 0.1)
    return theta


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_s06_optimisers(backend, name):
    rng = np.random.default_rng(6)
    start, gradients = rng.normal(size=9), [rng.normal(size=9) for _ in range(25)]
    optimizer, theta = optim.OPTIMIZERS[name](0.1), start.copy()
    state = optimizer.init(theta)
    for g in gradients:
        optimizer.update(theta, g, state, backend=backend)
    np.testing.assert_allclose(theta, updates(name, start, gradients), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in optim.OPTIMIZERS if name != "ftrl"])
def test_s06_optimisers_beside_pytorch(name):
    torch = pytest.importorskip("torch")
    made = {
        "sgd": lambda p: torch.optim.SGD(p, 0.1),
        "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
        "nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
        "adagrad": lambda p: torch.optim.Adagrad(p, 0.1),
        "rmsprop": lambda p: torch.optim.RMSprop(p, 0.1, alpha=0.9),
        "adam": lambda p: torch.optim.Adam(p, 0.1),
        "adamw": lambda p: torch.optim.AdamW(p, 0.1),
    }
    rng = np.random.default_rng(7)
    theta = rng.normal(size=9)
    theirs = torch.tensor(theta.copy(), requires_grad=True)
    ours, step = optim.OPTIMIZERS[name](0.1), made[name]([theirs])
    state = ours.init(theta)
    for _ in range(25):
        g = rng.normal(size=9)
        theirs.grad = torch.tensor(g)
        step.step()
        ours.update(theta, g, state)
    np.testing.assert_allclose(theta, theirs.detach().numpy(), rtol=1e-9, atol=1e-12)


def test_s07_learning_rates(tmp_path):
    """Too small, right, too large, on one surface: the picture, and the numbers that it shows."""
    pytest.importorskip("matplotlib")
    w = graph.param("w", (1, 2))
    loss = (w * w * graph.input("curvature", 2, rows=1)).sum()
    values = {"curvature": [[0.5, 5.0]]}
    rates = (0.01, 0.15, 0.21)  # 2/λ = 0.2
    pictures.descent(loss, tmp_path / "d.png", start=(-4.0, 1.5), learning_rates=rates, steps=25, values=values)
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")
    function = pictures.two_parameters(loss, values)
    small, right, large = (pictures.descend(function, (-4.0, 1.5), rate, 25) for rate in rates)
    assert right.losses[-1] < 0.1 * small.losses[-1]
    assert small.losses[-1] < small.losses[0]
    assert large.diverges
    assert not right.diverges


def test_s08_the_cost_of_the_gradient():
    """The measured backward/forward beside the ratio of the operations; nothing is claimed of the times here."""
    names = ["784-30-10", "2-4-1"]
    report = measure.run(names, quick=True)
    assert {(row.network, row.backend) for row in report.rows} == {
        (name, backend) for name in names for backend in fastbp.backends.ON_HOST
    }
    for row in report.rows:
        assert row.forward_us > 0
        assert math.isfinite(row.ratio)
        products = [a * b for a, b in itertools.pairwise(row.layers)]
        assert row.ratio_products == pytest.approx(2 - products[0] / sum(products))
        assert row.ratio_operations > 0
    assert report.rows[0].ratio_products == pytest.approx(1.0126, abs=1e-4)
    three = measure.theoretical_ratios(measure.NETWORKS["784-512-512-10"])[0]
    assert three == pytest.approx(1.40, abs=0.01)


def test_s09_connections_skip_layers(backend, monkeypatch):
    net = deep(skip=[(0, 2), (0, 4), (1, 4)], backend=backend)
    X, T = data(6, 4, 2)
    np.testing.assert_allclose(net.loss_and_grad(X, T)[1], differences(net, X, T), rtol=1e-6, atol=1e-9)
    symmetry = example(monkeypatch, "symmetry_1986")
    net = symmetry.learn(seed=1, sweeps=1425)
    X, T = symmetry.patterns()
    assert symmetry.right(net, X, T) == 64
    W = net.weights[0]
    np.testing.assert_allclose(W, -W[::-1], rtol=0.01)  # mirrored, of opposite sign
    for unit in np.sort(np.abs(W[:3]), axis=0).T:
        np.testing.assert_allclose(unit / unit[0], [1, 2, 4], rtol=0.02)


def test_s10_the_naive_gradient(monkeypatch):
    """Equal to backpropagation up to what differences can be; P + 1 forward passes, whatever P."""
    passes = example(monkeypatch, "naive_gradient").passes
    X, T = data(6, 5, 1)
    for layers in ([5, 3, 1], [5, 8, 1], [5, 8, 4, 1]):
        net = MLP(layers, activation="tanh", loss="half_sse", dtype="float64", seed=0)
        _, gradient = net.loss_and_grad(X, T)
        naive, count = passes(net, X, T)
        assert count == net.theta.size + 1
        np.testing.assert_allclose(naive, gradient, atol=1e-7)
        np.testing.assert_array_equal(naive, measure.naive_gradient(net, X, T))
    row = measure.run(measure.GROWING[:1], ["cpu"], quick=True).rows[0]
    assert row.naive_us > 0
    assert row.naive_ratio > 0


def test_s11_the_loss_surface(tmp_path):
    pytest.importorskip("matplotlib")
    net = deep(loss="mse")
    X, T = data(30, 4, 2)
    net.fit(X, T, epochs=100)
    first, _ = pictures.filter_normalised_directions(net, seed=0)
    for d, w in zip(net.split(first)[0], net.weights, strict=True):
        np.testing.assert_allclose(np.linalg.norm(d, axis=0), np.linalg.norm(w, axis=0))
    at, losses = pictures.surface_values(net, X, T, points=9)
    assert losses[4, 4] == net.loss(X, T)
    assert at[4] == 0
    pictures.loss_surface(net, X, T, tmp_path / "s.png", points=9)
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


def test_s12_the_closed_form(monkeypatch):
    """Of a net without biases: corrected, it is backpropagation's to rounding; with the slip it is not."""
    closed = example(monkeypatch, "closed_form")
    settings = {"activation": "sigmoid", "output": "sigmoid", "loss": "sse", "bias": False, "dtype": "float64"}
    net = MLP([6, 5, 3], **settings, seed=4)
    assert net.theta.size == 6 * 5 + 5 * 3
    x, y = (part[0] for part in data(1, 6, 3))
    W1, W2 = (w.T for w in net.weights)
    backprop = [w.T for w in net.split(net.loss_and_grad(x[None], y[None])[1])[0]]
    for ours, theirs in zip(closed.closed_form(W1, W2, x, y), backprop, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-15)
    assert np.abs(closed.with_ones(W1, W2, x, y) - backprop[0]).max() > 1e-3

    X, T = data(40, 6, 3)  # random pairs until the loss does not improve
    history = net.fit(
        X, T, epochs=5000, batch_size=1, sampling="replacement", optimizer=optim.SGD(0.1), tol=0.05, patience=5
    )
    assert history.stopped == "patience"
    best = history.loss[history.best_epoch]
    assert len(history.loss[history.best_epoch + 1 :]) == 5
    assert min(history.loss[history.best_epoch + 1 :]) >= best - 0.05
    assert best < history.loss[0] - 0.05


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + struct.pack(f">B{array.ndim}I", array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def test_s13_mnist_format(tmp_path):
    """IDX files, one of them gzipped: two kinds of small pictures, told apart on held-out ones."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    images = rng.integers(0, 80, (200, 4, 4))
    images[labels == 1, :, :2] += 100
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(images))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    found = fastbp.data.load(tmp_path)
    np.testing.assert_allclose(found.X, images.reshape(200, 16) / 255, rtol=1e-6)
    np.testing.assert_array_equal(found.T, labels)
    train, test = found.split_every(4)
    net = MLP([16, 8, 2], loss="cross_entropy", seed=0)
    net.fit(train.X, train.T, epochs=30, optimizer=optim.Adam(0.02))
    assert net.score(test.X, test.T) > 0.95


def test_s13_mnist():
    if not MNIST.is_dir():
        pytest.skip("the IDX files of MNIST are not beside the checkout, in shared/data/mnist")
    train, test = fastbp.data.load(MNIST).split_every(5)
    net = MLP([784, 64, 10], activation="relu", loss="cross_entropy", seed=0)
    net.fit(train.X, train.T, epochs=5, optimizer=optim.Adam(0.002))
    assert net.score(test.X, test.T) > 0.9


def test_s14_deltas_of_every_layer(backend):
    """∂z/∂w is the layer's input; dC/dz backwards through the layers; ∂C/∂w = Σₙ aⁿ δⁿ; sums and means over rows."""
    X, T = data(9, 4, 2)
    mean, total = deep(loss="bce", backend=backend), deep(loss="bce", reduction="sum", backend=backend)
    for net, scale in ((mean, 1 / (9 * 2)), (total, 1 / 2)):
        a = [X]
        for W, b in zip(net.weights, net.biases, strict=True):
            a.append(sigmoid(a[-1] @ W + b))
        expected = [(a[-1] - T) * scale]
        for k in range(3, 0, -1):
            expected.insert(0, a[k] * (1 - a[k]) * (expected[0] @ net.weights[k].T))
        deltas = net.deltas(X, T)
        assert [d.shape for d in deltas] == [(9, 6), (9, 5), (9, 3), (9, 2)]
        dW, db = net.split(net.loss_and_grad(X, T)[1])
        for k, delta in enumerate(deltas):
            np.testing.assert_allclose(delta, expected[k], rtol=1e-9, atol=1e-15)
            np.testing.assert_allclose(dW[k], a[k].T @ delta, rtol=1e-9, atol=1e-15)
            np.testing.assert_allclose(db[k], delta.sum(axis=0), rtol=1e-9, atol=1e-15)
    assert total.loss(X, T) == pytest.approx(9 * mean.loss(X, T))


def test_s15_chained_functions(backend):
    """grad(y, x) = grad(y, x3) · grad(x3, x2) · grad(x2, x1) · grad(x1, x), of a plain Python function."""

    def fghj(x):
        x1 = x * x
        x2 = np.tanh(x1)
        x3 = fastbp.exp(x2)
        return np.log(x3 + 1.0)

    trace = fastbp.trace(fghj, 0.7, backend=backend)
    assert trace.value == pytest.approx(fghj(0.7))
    edges = {(step.number, e.source): e.contribution / step.gradient for step in trace.steps for e in step.edges}
    x2, x3 = math.tanh(0.49), math.exp(math.tanh(0.49))
    assert edges[2, 1] == pytest.approx(1 - x2**2)
    assert edges[3, 2] == pytest.approx(x3)
    product = 1 / (x3 + 1) * x3 * (1 - x2**2) * 2 * 0.7
    assert trace.gradients[0] == pytest.approx(product)
    assert fastbp.grad(fghj, backend=backend)(0.7) == pytest.approx(product)


def test_every_row_has_its_test():
    tested = {name[5:8] for name in globals() if name.startswith("test_s")}
    assert tested == {f"s{k:02}" for k in range(1, 16)}
