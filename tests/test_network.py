"""MLP: layout of the parameters, forward, logits, deltas, gradient, settings, switch of backends."""

from __future__ import annotations

import numpy as np
import pytest

import fastbp
from fastbp import MLP, backends
from fastbp.errors import InputError

RNG = np.random.default_rng(0)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def test_theta_is_w0_b0_w1_b1():
    net = MLP([3, 4, 2], dtype="float64", seed=0)
    assert net.theta.shape == (3 * 4 + 4 + 4 * 2 + 2,)
    assert [w.shape for w in net.weights] == [(3, 4), (4, 2)]
    assert [b.shape for b in net.biases] == [(4,), (2,)]
    net.theta = np.arange(26)
    np.testing.assert_array_equal(net.weights[0], np.arange(12).reshape(3, 4))
    np.testing.assert_array_equal(net.biases[0], np.arange(12, 16))
    np.testing.assert_array_equal(net.weights[1], np.arange(16, 24).reshape(4, 2))
    np.testing.assert_array_equal(net.biases[1], [24, 25])
    net.weights[1][2, 1] = -1  # a view: writing changes the network
    assert net.theta[16 + 5] == -1


def test_forward_and_gradient_by_hand(backend, dtype):
    """The equations of the lecture notes, written out: two layers of sigmoids, half the squared error."""
    net = MLP([3, 4, 2], activation="sigmoid", output="sigmoid", loss="half_sse", dtype=dtype, backend=backend, seed=0)
    X, T = RNG.normal(size=(5, 3)), RNG.random((5, 2))
    (w0, w1), (b0, b1) = [[p.astype(float) for p in kind] for kind in (net.weights, net.biases)]
    a0 = sigmoid(X @ w0 + b0)
    a1 = sigmoid(a0 @ w1 + b1)
    d1 = (a1 - T) / 5 * a1 * (1 - a1)
    d0 = d1 @ w1.T * a0 * (1 - a0)
    loss, gradient = net.loss_and_grad(X, T)
    limit = {"rtol": 2e-5, "atol": 1e-7} if dtype == "float32" else {"rtol": 1e-12, "atol": 1e-15}
    np.testing.assert_allclose(net.forward(X), a1, **limit)
    np.testing.assert_allclose(net(X), a1, **limit)
    np.testing.assert_allclose(net.logits(X), a0 @ w1 + b1, **limit)
    np.testing.assert_allclose(loss, ((a1 - T) ** 2).sum() / 2 / 5, **limit)
    np.testing.assert_allclose(net.loss(X, T), loss, rtol=1e-6)
    (g0, g1), (h0, h1) = net.split(gradient)
    for got, expected in ((g0, X.T @ d0), (h0, d0.sum(0)), (g1, a0.T @ d1), (h1, d1.sum(0))):
        np.testing.assert_allclose(got, expected, **limit)
    for got, expected in zip(net.deltas(X, T), (d0, d1), strict=True):
        np.testing.assert_allclose(got, expected, **limit)
    assert loss.dtype == gradient.dtype == net.forward(X).dtype == dtype


@pytest.mark.parametrize("activation", ["relu", "gelu", "softplus"])
def test_deltas_are_what_the_weights_gradient_is_made_of(activation, backend):
    net = MLP([3, 4, 5, 2], activation=activation, loss="cross_entropy", dtype="float64", backend=backend, seed=0)
    X, T = RNG.normal(size=(6, 3)), RNG.integers(0, 2, 6)
    d = net.deltas(X, T)
    weights, biases = net.split(net.loss_and_grad(X, T)[1])
    np.testing.assert_allclose(d[-1], (net.forward(X) - np.eye(2)[T]) / 6, atol=1e-15)  # dC/dz = y - t
    np.testing.assert_allclose(weights[0], X.T @ d[0], rtol=1e-12, atol=1e-15)
    for delta, b in zip(d, biases, strict=True):
        np.testing.assert_allclose(delta.sum(axis=0), b, rtol=1e-12, atol=1e-15)


def test_probabilities():
    X = RNG.normal(size=(7, 3)) * 100
    p = MLP([3, 4], loss="cross_entropy", seed=0).forward(X)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-6)
    assert ((p >= 0) & (p <= 1)).all()
    net = MLP([3, 4], loss="bce", seed=0)
    np.testing.assert_allclose(net.forward(X), sigmoid(net.logits(X).astype(float)), rtol=1e-5, atol=1e-37)


def test_defaults_follow_the_loss():
    assert MLP([3, 4, 2]).activations == ("relu", "identity")
    assert MLP([3, 4, 2], loss="bce").activations[-1] == "sigmoid"
    assert MLP([3, 4, 2], loss="cross_entropy").activations[-1] == "softmax"
    assert MLP([3, 4, 5, 2], activation=["tanh", "gelu"]).activations == ("tanh", "gelu", "identity")
    assert MLP([3, 2]).activations == ("identity",)


def test_softmax_with_another_loss():
    """The softmax's own derivative, not the shortcut of the cross entropy."""
    net = MLP([3, 4], output="softmax", loss="mse", dtype="float64", seed=0)
    X, T = RNG.normal(size=(5, 3)), RNG.random((5, 4))
    a = net.forward(X)
    g = 2 * (a - T) / 20
    expected = a * (g - (g * a).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(net.deltas(X, T)[0], expected, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize(
    ("init", "variance"),
    [("glorot", 2 / (300 + 200)), ("he", 2 / 300), ("lecun", 1 / 300), ("normal", 1.0), ("zeros", 0.0)],
)
def test_initialisation(init, variance):
    net = MLP([300, 200], init=init, seed=0)
    w, b = net.weights[0], net.biases[0]
    assert abs(w.mean()) <= 4 * (variance / w.size) ** 0.5
    assert abs(w.var() - variance) <= 0.05 * variance
    assert (b.std() > 0.8) if init == "normal" else not b.any()
    np.testing.assert_array_equal(MLP([300, 200], init=init, seed=0).theta, net.theta)
    if init != "zeros":
        assert not np.array_equal(MLP([300, 200], init=init, seed=1).theta, net.theta)


def test_the_default_initialisation_follows_the_activation():
    net = MLP([300, 200, 200, 200], activation=["relu", "tanh"], seed=0)
    for w, variance in zip(net.weights, (2 / 300, 2 / 400, 2 / 400), strict=True):
        assert abs(w.var() - variance) <= 0.05 * variance


def test_no_rows():
    for backend in backends.ON_HOST:
        assert MLP([3, 4, 2], backend=backend).forward(np.empty((0, 3))).shape == (0, 2)
        assert MLP([3, 4, 2], loss="cross_entropy", backend=backend).forward(np.empty((0, 3))).shape == (0, 2)


def test_one_number_of_rows_after_another():
    """Tables are kept for a few numbers of rows; what falls out is made anew."""
    net = MLP([3, 4, 2], activation="tanh", dtype="float64", seed=0)
    X = RNG.normal(size=(50, 3))
    whole = net.forward(X)
    for n in [*range(1, 50), 3, 2, 1]:
        np.testing.assert_array_equal(net.forward(X[:n]), whole[:n])


def test_the_switch():
    assert fastbp.available_backends()[0] == "cpu"
    with fastbp.use_backend("numpy"):
        assert fastbp.available_backends()[0] == "numpy"
        assert MLP([3, 2]).backend == "numpy"
        with fastbp.use_backend("cpu"):
            assert MLP([3, 2]).backend == "cpu"
        assert MLP([3, 2]).backend == "numpy"
        assert MLP([3, 2], backend="cpu").backend == "cpu"
    assert MLP([3, 2]).backend == "cpu"
    try:
        fastbp.use_backend("numpy")
        assert MLP([3, 2]).backend == "numpy"
    finally:
        fastbp.use_backend("cpu")
    with pytest.raises(InputError, match=r"backend='nunpy' is unknown; did you mean 'numpy'\?"):
        fastbp.use_backend("nunpy")
    assert backends.resolve(None) == "cpu"


def test_backends_agree():
    X, T = RNG.normal(size=(40, 9)), RNG.integers(0, 3, 40)
    gradients = [
        MLP([9, 8, 3], activation="gelu", loss="cross_entropy", dtype="float64", backend=b, seed=0).loss_and_grad(X, T)[
            1
        ]
        for b in backends.ON_HOST
    ]
    for g in gradients[1:]:
        np.testing.assert_allclose(g, gradients[0], rtol=1e-10, atol=1e-15)


def test_predict_and_score():
    X = RNG.normal(size=(30, 3))
    labels = RNG.integers(0, 4, 30)
    net = MLP([3, 4], loss="cross_entropy", seed=0)
    chosen = net.forward(X).argmax(axis=1)
    np.testing.assert_array_equal(net.predict(X), chosen)
    assert net.score(X, labels) == (chosen == labels).mean()
    assert net.score(X, np.eye(4)[labels]) == (chosen == labels).mean()
    weight = RNG.random(30)
    np.testing.assert_allclose(
        net.score(X, labels, weight), (weight * (chosen == labels)).sum() / weight.sum(), rtol=1e-6
    )
    net = MLP([3, 1], loss="bce", seed=0)
    yes = RNG.integers(0, 2, 30)
    np.testing.assert_array_equal(net.predict(X), net.forward(X) >= 0.5)
    assert net.score(X, yes) == ((net.forward(X)[:, 0] >= 0.5) == yes).mean()
    net = MLP([3, 2], seed=0)
    T = RNG.normal(size=(30, 2))
    residual = ((T - net.forward(X)) ** 2).sum(axis=0)
    expected = (1 - residual / ((T - T.mean(axis=0)) ** 2).sum(axis=0)).mean()
    np.testing.assert_allclose(net.score(X, T), expected, rtol=1e-6)
    assert net.score(X, net.forward(X)) == 1.0


def test_threads_setting(two_threads):
    fastbp.set_num_threads(3)
    assert fastbp.get_num_threads() == 3
    for wrong in (0, -1, 257, 2.0, True, "2", None):
        with pytest.raises(InputError, match=r"threads must be an integer from 1 to 256"):
            fastbp.set_num_threads(wrong)
    assert fastbp.get_num_threads() == 3


def test_repr_says_what_it_is():
    text = repr(MLP([3, 4, 2], activation="tanh", loss="mae", seed=7))
    assert "[3, 4, 2]" in text
    assert "tanh" in text
    assert "mae" in text
    assert "seed=7" in text
