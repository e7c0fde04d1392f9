"""precision="bf16": products of numbers rounded to bfloat16, sums in float32; float32 where it does not apply."""

from __future__ import annotations

import numpy as np
import pytest

import fastbp
from fastbp import MLP, backends, data, graph, optim
from fastbp.backends.cpu.target import HAS_BF16
from fastbp.plan import plan

needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason="the CPU, or the target, has no avx512_bf16")
RNG = np.random.default_rng(0)
SHAPES = [(1, 300, 301), (8, 256, 257), (37, 301, 300), (129, 1031, 97), (300, 520, 513), (64, 65, 1100)]


def rounded(x):
    """To bfloat16, to nearest, ties to even, as float64."""
    bits = x.astype(np.float32).view(np.uint32)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


def run(nodes, values, n, precision="bf16"):
    return backends.executable(plan(nodes), "cpu", "float32", precision).run(values, n)


@needs_bf16
@pytest.mark.parametrize("size", SHAPES, ids=str)
def test_products_are_those_of_rounded_factors(size):
    """X W, dZ Wᵀ and Xᵀ dZ: exact products of rounded factors, summed in float32; each where it applies."""
    n, k, m = size
    x, w, g = graph.input("x", cols=k), graph.param("w", (k, m)), graph.input("g", cols=m)
    y = x @ w
    dx, dw = graph.gradients((y * g).sum(), [x, w])
    X, W, G = (RNG.normal(size=s).astype(np.float32) for s in ((n, k), (k, m), (n, m)))
    found = run({"y": y, "dx": dx, "dw": dw}, {"x": X, "w": W, "g": G}, n)
    pairs = {"y": (X, W), "dx": (G, W.T)} | ({"dw": (X.T, G)} if n >= 32 else {})
    for name, (a, b) in pairs.items():
        expected, size_of = rounded(a) @ rounded(b), np.abs(rounded(a)) @ np.abs(rounded(b))
        assert (np.abs(found[name] - expected) <= 2e-6 * size_of).all(), name
    exact = X.astype(np.float64) @ W
    assert np.abs(found["y"] - exact).max() > 1e-4  # it was done in bfloat16


@needs_bf16
@pytest.mark.parametrize("activation", ["sigmoid", "gelu", "relu", "identity"])
def test_gradient_is_within_its_rounding(activation):
    X, T = RNG.normal(size=(200, 300)), RNG.normal(size=(200, 50))
    nets = [MLP([300, 401, 300, 50], activation=activation, seed=0, precision=p) for p in ("bf16", "highest")]
    (loss, gradient), (exact_loss, exact) = (net.loss_and_grad(X, T) for net in nets)
    assert loss == pytest.approx(exact_loss, rel=1e-2)
    assert loss != exact_loss
    error = np.linalg.norm(gradient - exact) / np.linalg.norm(exact)
    assert error <= (0.05 if activation == "relu" else 0.01)  # a unit at relu's kink is on or off


@pytest.mark.parametrize("layers", [[64, 64, 10], [255, 256, 3]])
def test_small_networks_and_float64_stay_as_they_are(layers):
    X, T = RNG.normal(size=(3000, layers[0])), RNG.normal(size=(3000, layers[-1]))
    for dtype in ("float32", "float64"):
        first, second = (
            MLP(layers, seed=0, dtype=dtype, precision=p).loss_and_grad(X, T)[1] for p in ("bf16", "highest")
        )
        np.testing.assert_array_equal(first, second)


@needs_bf16
def test_the_same_bits_for_any_threads_and_batch(two_threads):
    net = MLP([700, 401, 333], activation="tanh", seed=0, precision="bf16")
    X, T = RNG.normal(size=(600, 700)), RNG.normal(size=(600, 333))
    fastbp.set_num_threads(1)
    whole, gradient = net.forward(X), net.loss_and_grad(X, T)[1]
    for threads in (2, 3):
        fastbp.set_num_threads(threads)
        np.testing.assert_array_equal(net.forward(X), whole)
        np.testing.assert_array_equal(net.loss_and_grad(X, T)[1], gradient)
    for start, end in ((0, 1), (3, 10), (100, 400), (599, 600)):
        np.testing.assert_array_equal(net.forward(X[start:end]), whole[start:end])


@needs_bf16
def test_fit_is_the_loop_over_gradients():
    X, T = RNG.normal(size=(256, 300)), RNG.normal(size=(256, 301))
    fitted, looped = (MLP([300, 301, 301], seed=0, precision="bf16") for _ in range(2))
    fitted.fit(X, T, epochs=2, batch_size=64, optimizer=optim.SGD(0.1), shuffle=False)
    sgd, state = optim.SGD(0.1), None
    for _ in range(2):
        for start in range(0, 256, 64):
            gradient = looped.loss_and_grad(X[start : start + 64], T[start : start + 64])[1]
            state = state or sgd.init(looped.theta)
            sgd.update(looped.theta, gradient, state)
    np.testing.assert_array_equal(fitted.theta, looped.theta)


@needs_bf16
def test_training_ends_where_float32_ends():
    """Loss curves on digits within the noise of the seed."""
    pytest.importorskip("sklearn")
    train, test = data.digits().split_every(5)
    ends = {}
    for precision in ("highest", "bf16"):
        for seed in range(3):
            net = MLP([64, 300, 300, 10], loss="cross_entropy", seed=seed, precision=precision)
            history = net.fit(train.X / 16, train.T, epochs=8, batch_size=64)
            accuracy = (net.forward(test.X / 16).argmax(axis=1) == test.T).mean()
            ends.setdefault(precision, []).append((history.loss[0], history.loss[3], history.loss[-1], accuracy))
    exact, short = np.array(ends["highest"]), np.array(ends["bf16"])
    assert not np.array_equal(exact[:, :3], short[:, :3])
    spread = np.ptp(exact, axis=0) + 0.02 * exact.mean(axis=0)
    assert (np.abs(short.mean(axis=0) - exact.mean(axis=0)) <= spread).all()


@needs_bf16
def test_nan_in_nan_out():
    X = RNG.normal(size=(40, 300))
    X[7, 3] = np.nan
    found = MLP([300, 300, 4], activation="identity", seed=0, precision="bf16").forward(X)
    np.testing.assert_array_equal(np.isnan(found).all(axis=1), np.arange(40) == 7)
    np.testing.assert_array_equal(np.isnan(found).any(axis=1), np.arange(40) == 7)


def test_it_is_kept_and_checked(tmp_path):
    net = MLP([3, 4, 2], precision="bf16", seed=0)
    net.save(tmp_path / "net.npz")
    assert fastbp.load(tmp_path / "net.npz").precision == "bf16"
    with pytest.raises(fastbp.errors.InputError, match=r"precision.*bf61.*bf16"):
        MLP([3, 4], precision="bf61")
