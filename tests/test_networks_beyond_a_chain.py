"""Networks of layers: gradients against central differences, training to the last bit, several inputs and outputs,
skip connections, dropout, penalties, files.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pickle
import re

import numpy as np
import pytest

import fastbp
from fastbp import MLP, Network, graph, layers, nodes, optim
from fastbp.checks import STEP, relative_error
from fastbp.errors import DataError, DivergedError
from fastbp.training import RowOrder

BACKENDS = ("cpu", "numpy")
RNG = np.random.default_rng(0)
N = 23
X = RNG.normal(size=(N, 4))
Z = RNG.normal(size=(N, 2))
IDS = RNG.integers(0, 5, N)
T = RNG.random((N, 3))
LABELS = RNG.integers(0, 3, N)
WEIGHT = RNG.uniform(0.1, 2.0, N)


def residual(**options):
    x = layers.Input(4)
    h = layers.Dense(6, "tanh")(x)
    h = layers.Dense(6, "tanh")(h) + h
    return Network(x, layers.Dense(3, bias=False)(layers.concat([h, x])), **options)


def shared(**options):
    """One Dense twice, and once more on what it gave."""
    a, b = layers.Input(4), layers.Input(4)
    tower, again = layers.Dense(4, "silu"), layers.Dense(3, "softplus")
    left, right = tower(tower(a)), tower(b)
    return Network([a, b], again(left * right) - again(left), loss="huber", **options)


def embedded(**options):
    i, x = layers.Input(dtype="int"), layers.Input(2)
    rows = layers.Embedding(5, 3)(i)
    y = layers.Dense(3, "softmax")(layers.concat([rows, layers.Dense(3, "gelu")(x)]))
    return Network({"id": i, "x": x}, y, loss="cross_entropy", **options)


def two_headed(**options):
    x, z = layers.Input(4, name="x"), layers.Input(2, name="z")
    h = layers.Dense(5, "sigmoid")(x, z)
    outputs = {
        "price": layers.Dense(3)(h / 2.0),
        "yes": layers.Dense(1, "sigmoid")(1.0 - h),
        "kind": layers.Activation("softmax")(layers.Dense(3)(h)),
    }
    losses = {"price": "mae", "yes": "bce", "kind": "cross_entropy"}
    return Network([x, z], outputs, loss=losses, loss_weights={"price": 0.5, "yes": 2, "kind": 1.0}, **options)


def penalised(**options):
    x = layers.Input(4)
    dense = layers.Dense(5, "tanh", l1=0.01, l2=0.02)
    y = layers.Dense(3, l2=0.3)(dense(x), x) + layers.apply("square", layers.Dense(3, l1=0.1)(dense(x)))
    return Network(x, y, loss="half_sse", **options)


def functions(**options):
    x = layers.Input(4)
    h = layers.apply(lambda node: node - node.mean(axis=1), layers.Dense(5)(x))
    return Network(x, -layers.Dense(3)(layers.apply(lambda a, b: a.tanh() * b, h, 1.0 - h)), **options)


def skipping(**options):
    skip = [(0, 2), (1, 3), (0, 3)]
    return MLP([4, 5, 6, 3], activation="tanh", skip=skip, loss="mse", **options)


def skipping_only(**options):
    return MLP(
        [4, 5, 5, 3], activation=["tanh", "gelu"], skip=[(0, 3)], bias=False, l1=0.01, l2=0.05, loss="bce", **options
    )


NETS = {
    "residual": (residual, X, T),
    "shared": (shared, [X, X[::-1]], T),
    "embedded": (embedded, {"id": IDS, "x": Z}, LABELS),
    "two headed": (two_headed, [X, Z], {"price": T, "yes": IDS < 2, "kind": LABELS}),
    "penalised": (penalised, X, T),
    "functions": (functions, X, T),
    "skipping": (skipping, X, T),
    "skipping only": (skipping_only, X, T),
}
SAVABLE = [name for name in NETS if name != "functions"]


@pytest.fixture(params=NETS)
def case(request):
    return NETS[request.param]


def rows_of(data, rows):
    """Rows of X or T in any of its forms."""
    if isinstance(data, dict):
        return {name: rows_of(value, rows) for name, value in data.items()}
    return [rows_of(value, rows) for value in data] if isinstance(data, (list, tuple)) else data[rows]


def many(data, count):
    return rows_of(data, np.arange(count) % N)


def numeric_gradient(net, *batch):
    result = np.empty(net.theta.shape)
    for k, start in enumerate(net.theta.copy()):
        both = []
        for shift in (STEP, -STEP):
            net.theta[k] = start + shift
            both.append(float(net.loss(*batch)))
        net.theta[k] = start
        result[k] = (both[0] - both[1]) / (2 * STEP)
    return result


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
def test_gradients_are_central_differences(case, weight, reduction, backend):
    make, x, t = case
    net = make(dtype="float64", backend=backend, seed=1, reduction=reduction)
    net.theta += RNG.normal(size=net.theta.shape) * 0.1
    loss, gradient = net.loss_and_grad(x, t, weight)
    assert relative_error(gradient, numeric_gradient(net, x, t, weight), floor=1e-3) < 1e-7
    np.testing.assert_allclose(loss, net.loss(x, t, weight), rtol=1e-14)


@pytest.mark.parametrize("rows", [N, 3000], ids=["few rows", "depth first"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_backends_agree(case, dtype, rows):
    make, x, t = case
    x, t, weight = (many(data, rows) for data in (x, t, WEIGHT))
    nets = [make(dtype=dtype, backend=b, seed=1) for b in BACKENDS]
    limit = 2e-5 if dtype == "float32" else 1e-11
    for call in (
        lambda net: net.loss_and_grad(x, t, weight)[1],
        lambda net: net.loss(x, t),
        lambda net: net.score(x, t),
    ):
        one, other = (call(net) for net in nets)
        assert relative_error(one, other) < limit
    for call in (lambda net: net.forward(x), lambda net: net.logits(x), lambda net: net.deltas(x, t)):
        one, other = (call(net) for net in nets)
        for a, b in zip(*(f.values() if isinstance(f, dict) else f for f in (one, other)), strict=True):
            assert relative_error(a, b) < limit


def test_deltas_are_what_gradients_of_weights_are_made_of(backend):
    net = shared(dtype="float64", backend=backend, seed=0)
    x, y = X, X[::-1]
    d = net.deltas([x, y], T)
    assert [delta.shape for delta in d] == [(N, 4), (N, 4), (N, 4), (N, 3), (N, 3)]
    g = net.views(net.loss_and_grad([x, y], T)[1])
    first = fastbp.dense(x, net.views()["dense0.W"], net.views()["dense0.b"], "silu")
    np.testing.assert_allclose(g["dense0.W"], x.T @ d[0] + first.T @ d[1] + y.T @ d[2], rtol=1e-11, atol=1e-15)
    np.testing.assert_allclose(g["dense0.b"], sum(d[:3]).sum(axis=0), rtol=1e-11, atol=1e-15)


def test_a_residual_network_by_hand(backend, dtype):
    net = residual(dtype=dtype, backend=backend, seed=3)
    p = {name: value.astype(float) for name, value in net.views().items()}
    h = np.tanh(X @ p["dense0.W"] + p["dense0.b"])
    h = np.tanh(h @ p["dense1.W"] + p["dense1.b"]) + h
    np.testing.assert_allclose(net(X), np.hstack([h, X]) @ p["dense2.W"], rtol=2e-5, atol=1e-6)
    assert list(p) == ["dense0.W", "dense0.b", "dense1.W", "dense1.b", "dense2.W"]
    assert net.theta.size == 4 * 6 + 6 + 6 * 6 + 6 + 10 * 3


def test_several_inputs_and_outputs_by_hand(backend):
    net = two_headed(dtype="float64", backend=backend, seed=3)
    p = net.views()
    h = 1 / (1 + np.exp(-(X @ p["dense0.W"] + Z @ p["dense0.W1"] + p["dense0.b"])))
    price = h / 2 @ p["dense1.W"] + p["dense1.b"]
    yes = 1 / (1 + np.exp(-((1 - h) @ p["dense2.W"] + p["dense2.b"])))
    powers = np.exp(h @ p["dense3.W"] + p["dense3.b"])
    kind = powers / powers.sum(axis=1, keepdims=True)
    found = net.forward((X, Z))
    assert list(found) == ["price", "yes", "kind"]
    for got, expected in zip(found.values(), (price, yes, kind), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12)
    answer = (IDS < 2)[:, None]
    by_row = [
        0.5 * abs(price - T).mean(axis=1),
        -2 * np.log(np.where(answer, yes, 1 - yes)).mean(axis=1),
        -np.log(kind[np.arange(N), LABELS]),
    ]
    t = [T, IDS < 2, LABELS]  # in order, or by name
    np.testing.assert_allclose(net.loss({"x": X, "z": Z}, t), sum(by_row).mean(), rtol=1e-12)
    weighted = (sum(by_row) * WEIGHT).sum() / WEIGHT.sum()
    np.testing.assert_allclose(net.loss([X, Z], t, WEIGHT), weighted, rtol=1e-12)
    guess = net.predict([X, Z])
    np.testing.assert_array_equal(guess["price"], found["price"])
    np.testing.assert_array_equal(guess["yes"], found["yes"] >= 0.5)
    np.testing.assert_array_equal(guess["kind"], kind.argmax(axis=1))
    r2 = 1 - ((T - price) ** 2).sum(axis=0) / ((T - T.mean(axis=0)) ** 2).sum(axis=0)
    scores = [r2.mean(), ((yes >= 0.5) == answer).mean(), (kind.argmax(axis=1) == LABELS).mean()]
    np.testing.assert_allclose(net.score([X, Z], t), np.mean(scores), rtol=1e-12)
    np.testing.assert_allclose(net.logits([X, Z])["kind"], np.log(powers), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("make", [penalised, shared], ids=["penalties", "shared weights"])
def test_sums_over_rows_stay_sums(make):
    """What is added to a dW is added after it, not in its product: a chunk of rows can go through on its own."""
    program = make().program("gradient", ("X", "T") if make is penalised else ("X[0]", "X[1]", "T"))
    assert all(i.code == "" for i in program.instructions if i.op == "matmul" and i.ta)


def test_penalties_by_hand(backend):
    net = penalised(dtype="float64", backend=backend, seed=0)
    p = net.views()
    plain = ((net(X) - T) ** 2).sum() / 2 / N
    first, second, third = p["dense0.W"], [p["dense1.W"], p["dense1.W1"]], p["dense2.W"]
    penalty = 0.01 * abs(first).sum() + 0.02 * (first**2).sum()  # once, though the layer is called twice
    penalty += 0.3 * sum((w**2).sum() for w in second) + 0.1 * abs(third).sum()
    np.testing.assert_allclose(net.loss(X, T), plain + penalty, rtol=1e-13)
    before = net.loss(X, T)
    assert net.fit(X, T, epochs=1, batch_size=N).loss[0] == pytest.approx(before, rel=1e-12)


# ---- skip connections ------------------------------------------------------------------------------------------------


def test_skip_connections_by_hand(backend):
    net = skipping(dtype="float64", backend=backend, seed=0)
    (w1, w2, w3), (b1, b2, b3), s = net.weights, net.biases, net.skip_weights
    a1 = np.tanh(X @ w1 + b1)
    a2 = np.tanh(a1 @ w2 + X @ s[0, 2] + b2)
    np.testing.assert_allclose(net(X), a2 @ w3 + X @ s[0, 3] + a1 @ s[1, 3] + b3, rtol=1e-12, atol=1e-14)


def test_theta_has_skip_weights_after_their_layers_weights():
    net = skipping(dtype="float64", seed=0)
    net.theta = np.arange(net.theta.size)
    sizes = [4 * 5, 5, 5 * 6, 4 * 6, 6, 6 * 3, 4 * 3, 5 * 3, 3]
    parts = np.split(net.theta, np.cumsum(sizes)[:-1])
    (w1, w2, w3), (b1, b2, b3), s = net.weights, net.biases, net.skip_weights
    assert list(s) == [(0, 2), (0, 3), (1, 3)]
    assert net.skip == ((0, 2), (0, 3), (1, 3))
    views = (w1, b1, w2, s[0, 2], b2, w3, s[0, 3], s[1, 3], b3)
    for part, view in zip(parts, views, strict=True):
        np.testing.assert_array_equal(part, view.ravel())
        assert np.shares_memory(view, net.theta)


def test_layers_without_bias():
    net = MLP([4, 5, 3], bias=False, seed=0)
    assert net.theta.size == 4 * 5 + 5 * 3
    assert net.biases == []
    assert not net.forward(np.zeros((2, 4))).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_closed_form_of_a_net_without_bias(backend):
    """One hidden layer of sigmoids: y = σ(x V) w; dC/dw = Σ e σ, dC/dV = xᵀ (e wᵀ ⊙ σ (1 - σ))."""
    net = MLP([4, 6, 1], activation="sigmoid", bias=False, loss="half_sse", dtype="float64", backend=backend, seed=0)
    v, w = net.weights
    s = 1 / (1 + np.exp(-X @ v))
    e = (s @ w - T[:, :1]) / N
    g = np.concatenate([(X.T @ (e @ w.T * s * (1 - s))).ravel(), (s.T @ e).ravel()])
    np.testing.assert_allclose(net.loss_and_grad(X, T[:, :1])[1], g, rtol=1e-12, atol=1e-16)


def test_skip_connections_start_like_the_layers_side_by_side():
    net = MLP([300, 100, 200], activation="tanh", skip=[(0, 2)], seed=0)
    for w in (net.weights[1], net.skip_weights[0, 2]):
        assert w.var() == pytest.approx(2 / (100 + 300 + 200), rel=0.05)
    wide = layers.Input(3)
    same = [
        Network(wide, layers.Dense(2)(wide, layers.Dense(4)(wide)), seed=1),
        Network(wide, layers.Dense(2)(layers.concat([wide, layers.Dense(4)(wide)])), seed=1),
    ]
    np.testing.assert_array_equal(same[0].theta, same[1].theta)
    x = RNG.normal(size=(5, 3))
    np.testing.assert_allclose(same[0](x), same[1](x), rtol=1e-5, atol=1e-6)


def test_a_net_with_skip_connections_learns_what_it_cannot_without():
    """One hidden unit solves the exclusive or if the inputs also reach the output."""
    x, t = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), np.array([[0], [1], [1], [0]])
    with_skip = MLP([2, 1, 1], activation="tanh", loss="bce", skip=[(0, 2)], dtype="float64", seed=0)
    without = MLP([2, 1, 1], activation="tanh", loss="bce", dtype="float64", seed=0)
    for net in (with_skip, without):
        net.fit(x, t, epochs=2000, batch_size=4, optimizer=optim.Adam(0.05))
    assert with_skip.loss(x, t) < 0.01
    assert without.loss(x, t) > 0.3


# ---- the same Programs as a chain's ----------------------------------------------------------------------------------


def anonymous(program):
    """A Program without the names of its nodes, which count up."""
    return [dataclasses.replace(b, name=re.sub(r"\d+", "", b.name)) for b in program.buffers], program.instructions


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("activation", ["sigmoid", "gelu"])
def test_a_network_of_dense_layers_is_the_mlp(activation, loss):
    mlp = MLP([4, 6, 5, 3], activation=activation, loss=loss, seed=2)
    x = layers.Input(4)
    a = layers.Dense(5, activation)(layers.Dense(6, activation)(x))
    net = Network(x, layers.Dense(3, "softmax" if loss == "cross_entropy" else "identity")(a), loss=loss, seed=2)
    np.testing.assert_array_equal(net.theta, mlp.theta)
    for what in ("forward", "logits", "loss", "deltas", "gradient"):
        assert anonymous(net.program(what)) == anonymous(mlp.program(what))
        assert anonymous(net.program(what, ("X", "labels"))) == anonymous(mlp.program(what, ("X", "labels")))
    for rule in (optim.SGD(), optim.Adam(clip_norm=1.0)):
        for gathered in (True, False):
            steps = [one.training_step(("X", "T", "weight"), rule, gathered).program for one in (net, mlp)]
            assert anonymous(steps[0]) == anonymous(steps[1])
    texts = [re.sub(r"(?<=[a-z_])\d+", "", one.program("gradient").explain(10)) for one in (net, mlp)]
    assert texts[0] == texts[1]
    for one in (net, mlp):
        one.fit(X, T if loss == "mse" else LABELS, epochs=3, batch_size=5)
    np.testing.assert_array_equal(net.theta, mlp.theta)


def test_what_says_nothing_changes_nothing():
    plain = MLP([4, 6, 3], seed=0)
    same = MLP([4, 6, 3], bias=True, skip=(), dropout=0.0, l1=0.0, l2=0.0, seed=0)
    assert plain.config() == same.config()
    known = {"layers", "activation", "output", "loss", "reduction", "init", "dtype", "precision", "seed"}
    assert set(plain.config()) == known  # as in files of before
    steps = [one.training_step(("X", "T"), optim.Adam(), True).program for one in (plain, same)]
    assert anonymous(steps[0]) == anonymous(steps[1])


# ---- fit -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_fit_is_the_hand_written_loop_to_the_last_bit(case, backend, shuffle, weight):
    make, x, t = case
    net, other = make(backend=backend, seed=1), make(backend=backend, seed=1)
    rule = optim.Adam(0.01)
    history = net.fit(x, t, epochs=3, batch_size=5, optimizer=rule, shuffle=shuffle, sample_weight=weight)
    assert history.epochs == 3
    state, order = rule.init(other.theta), RowOrder(N, other.seed, "epoch").epochs(0, 3)
    for epoch in range(3):
        for start in range(0, N, 5):
            rows = order[epoch][start : start + 5] if shuffle else np.arange(start, min(N, start + 5))
            batch = rows_of(x, rows), rows_of(t, rows), None if weight is None else weight[rows]
            rule.update(other.theta, other.loss_and_grad(*batch)[1], state, backend=backend)
    np.testing.assert_array_equal(net.theta, other.theta)


def test_many_rows_train_alike_on_both_backends(case):
    """Depth first, where the network lets it, with rows gathered."""
    make, x, t = case
    x, t, weight = (many(data, 3000) for data in (x, t, WEIGHT))
    nets = [make(dtype="float64", backend=b, seed=1) for b in BACKENDS]
    for net in nets:
        net.fit(x, t, epochs=2, batch_size=1400, optimizer="momentum", sample_weight=weight)
    assert relative_error(nets[0].theta, nets[1].theta) < 1e-11


@pytest.mark.parametrize("sampling", ["epoch", "replacement"])
def test_two_fits_are_one(case, sampling, backend):
    make, x, t = case
    net, other = make(backend=backend, seed=1), make(backend=backend, seed=1)
    for epochs in (2, 3):
        net.fit(x, t, epochs=epochs, batch_size=4, sampling=sampling, sample_weight=WEIGHT)
    other.fit(x, t, epochs=5, batch_size=4, sampling=sampling, sample_weight=WEIGHT)
    np.testing.assert_array_equal(net.theta, other.theta)
    np.testing.assert_allclose(net.history.loss, other.history.loss, rtol=1e-12)


def test_validation(case, backend):
    make, x, t = case
    held, kept = np.arange(17, N), np.arange(17)
    nets = [make(backend=backend, seed=1) for _ in range(2)]
    nets[0].fit(x, t, epochs=3, batch_size=4, validation=0.25, sample_weight=WEIGHT)
    part = rows_of(x, held), rows_of(t, held), WEIGHT[held]
    nets[1].fit(rows_of(x, kept), rows_of(t, kept), epochs=3, batch_size=4, validation=part, sample_weight=WEIGHT[kept])
    np.testing.assert_array_equal(nets[0].theta, nets[1].theta)
    for net in nets:
        assert net.history.validation_loss == nets[0].history.validation_loss
        assert net.history.validation_loss[-1] == float(net.loss(*part))
        assert net.history.validation_score[-1] == net.score(*part)


def test_tol_keeps_the_best(case):
    make, x, t = case
    net = make(seed=1)
    losses = []
    net.fit(x, t, epochs=50, tol=10.0, patience=2, callbacks=[lambda net, h: losses.append(net.loss(x, t))])
    assert net.history.stopped == "patience"
    assert net.history.best_epoch == 0
    assert net.loss(x, t) == losses[0]


def test_divergence_keeps_the_last_good_epoch(case, backend):
    make, x, t = case
    net = make(backend=backend, seed=1)
    start = net.theta.copy()
    with pytest.raises(DivergedError, match="not finite"):
        net.fit(x, t, epochs=20, batch_size=4, optimizer=optim.SGD(1e300))
    assert np.isfinite(net.theta).all()
    assert net.history.epochs or np.array_equal(net.theta, start)


def test_a_network_that_ignores_an_input(backend):
    x, z = layers.Input(4), layers.Input(2)
    y = layers.Dense(3)(layers.apply(lambda a, b: a * 2.0, x, z))
    net = Network([x, z], y, backend=backend, seed=0)
    net.fit([X, Z], T, epochs=2, batch_size=4)
    np.testing.assert_array_equal(net.forward([X, Z]), net.forward([X, np.zeros((N, 2))]))


def test_no_rows(case, backend):
    make, x, _ = case
    found = make(backend=backend).forward(rows_of(x, slice(0, 0)))
    for a in found.values() if isinstance(found, dict) else [found]:
        assert a.shape[0] == 0


def test_it_learns(backend):
    """Numbers and kinds together: two inputs, two outputs."""
    rng = np.random.default_rng(0)
    x, i = rng.uniform(-1, 1, (500, 2)), rng.integers(0, 3, 500)
    a, b = layers.Input(2), layers.Input(dtype="int")
    h = layers.Dense(16, "tanh")(layers.concat([a, layers.Embedding(3, 2)(b)]))
    h = layers.Dense(16, "tanh")(h) + h
    net = Network(
        [a, b],
        [layers.Dense(1)(h), layers.Dense(2, "softmax")(h)],
        loss=["mse", "cross_entropy"],
        backend=backend,
        seed=0,
    )
    amount = (i - 1) * x[:, 0] + x[:, 1]
    net.fit([x, i], [amount, (amount > 0).astype(int)], epochs=60, batch_size=20, optimizer=optim.Adam(0.01))
    assert net.score([x, i], [amount, (amount > 0).astype(int)]) > 0.97


# ---- dropout ---------------------------------------------------------------------------------------------------------


def dropping(**options):
    x = layers.Input(4)
    h = layers.Dropout(0.3)(layers.Dense(8, "tanh")(x))
    return Network(x, layers.Dense(3)(layers.Dropout(0.5)(layers.Dense(8)(h)) + h), dtype="float64", **options)


def dropping_mlp(**options):
    return MLP([4, 8, 8, 3], activation="tanh", dropout=0.4, skip=[(1, 3)], dtype="float64", **options)


DROPPING = [dropping, dropping_mlp]


@pytest.mark.parametrize("make", DROPPING)
def test_nothing_is_dropped_outside_training(make, backend):
    net = make(backend=backend, seed=0)
    for what in ("forward", "logits", "loss", "deltas", "gradient"):
        assert "dropout" not in net.program(what).inputs
    assert "dropout" in net.training_step(("X", "T"), optim.SGD(), True).program.inputs
    loss, gradient = net.loss_and_grad(X, T)
    assert relative_error(gradient, numeric_gradient(net, X, T), floor=1e-3) < 1e-7
    assert loss == net.loss(X, T)
    net.fit(X, T, epochs=1, validation=(X, T))
    assert net.history.validation_loss == [float(net.loss(X, T))]


@pytest.mark.parametrize("make", DROPPING)
def test_steps_drop(make, backend):
    net, other = make(backend=backend, seed=0), make(backend=backend, seed=0)
    net.fit(X, T, epochs=1, batch_size=N, shuffle=False, optimizer="sgd")
    optim.SGD().update(other.theta, other.loss_and_grad(X, T)[1], optim.SGD().init(other.theta), backend=backend)
    assert not np.array_equal(net.theta, other.theta)


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_step_with_dropout_by_hand(shuffle, backend):
    """The masks are the dropouts' of the graph, numbered in order; the rows are those of the batch."""
    net = dropping(backend=backend, seed=3)
    net.fit(X, T, epochs=1, batch_size=10, shuffle=shuffle, optimizer=optim.SGD(0.0625))
    other = dropping(backend=backend, seed=3)
    p = other.views()
    order = RowOrder(N, 3, "epoch").epochs(0, 1)[0] if shuffle else np.arange(N)
    one, key = graph.input("one", 8), graph.input("key", 2, rows=1, dtype="double")
    masks = graph.compile([nodes.dropout(one, rate, key, k) for k, rate in enumerate((0.3, 0.5))], backend=backend)
    for step, start in enumerate(range(0, N, 10)):
        rows = order[start : start + 10]
        first, second = masks(one=np.ones((len(rows), 8)), key=np.array([[3.0, step]]))
        a = np.tanh(X[rows] @ p["dense0.W"] + p["dense0.b"])
        h = a * first
        out = (h @ p["dense1.W"] + p["dense1.b"]) * second + h
        d = 2 * (out @ p["dense2.W"] + p["dense2.b"] - T[rows]) / T[rows].size
        d_out = d @ p["dense2.W"].T
        d_in = d_out * second
        d_a = (d_in @ p["dense1.W"].T + d_out) * first * (1 - a * a)
        steps = {"dense0": (X[rows], d_a), "dense1": (h, d_in), "dense2": (out, d)}
        for name, (before, delta) in steps.items():
            p[f"{name}.W"] -= 0.0625 * before.T @ delta
            p[f"{name}.b"] -= 0.0625 * delta.sum(axis=0)
    np.testing.assert_allclose(net.theta, other.theta, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("make", DROPPING)
def test_masks_go_on_with_the_steps(make, shuffle, backend, tmp_path):
    net, other = make(backend=backend, seed=0), make(backend=backend, seed=0)
    net.fit(X, T, epochs=2, batch_size=4, shuffle=shuffle)
    net.save(tmp_path / "net.npz")
    net = fastbp.load(tmp_path / "net.npz", backend=backend)
    net.fit(X, T, epochs=3, batch_size=4, shuffle=shuffle)
    other.fit(X, T, epochs=5, batch_size=4, shuffle=shuffle)
    np.testing.assert_array_equal(net.theta, other.theta)


def test_masks_are_drawn_from_seed_and_step(monkeypatch):
    net = dropping(backend="numpy", seed=7)
    step = net.training_step(("X", "T"), optim.Adam(), False)
    seen = []
    real = type(step).run_steps
    monkeypatch.setattr(type(step), "run_steps", lambda self, v, s: (seen.append(v["dropout"]), real(self, v, s))[1])
    net.fit(X, T, epochs=2, batch_size=6, shuffle=False)
    net.fit(X, T, epochs=1, batch_size=6, shuffle=False, seed=2**32 + 11)
    table = np.concatenate(seen)
    assert table.dtype == np.float64
    np.testing.assert_array_equal(table[:, 0], [7] * 8 + [11] * 4)
    np.testing.assert_array_equal(table[:, 1], np.arange(12))


def test_another_seed_drops_other_elements(backend):
    nets = [dropping(backend=backend, seed=0) for _ in range(2)]
    for seed, net in enumerate(nets):
        net.fit(X, T, epochs=1, shuffle=False, seed=seed)
    assert not np.array_equal(nets[0].theta, nets[1].theta)


def test_no_rate_no_dropout():
    x = layers.Input(4)
    nets = [Network(x, layers.Dense(3)(a), seed=0) for a in (x, layers.Dropout(0.0)(x))]
    steps = [net.training_step(("X", "T"), optim.SGD(), True).program for net in nets]
    assert anonymous(steps[0]) == anonymous(steps[1])


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_rate_and_scale(rate, backend):
    """Of an identity with one weight: dC/dW of a sum loss is the kept fraction over 1 - rate."""
    x = layers.Input(1)
    y = layers.Dense(1, bias=False, init="zeros")(layers.Dropout(rate)(layers.Dense(1000, bias=False)(x)))
    net = Network(x, y, loss="sse", backend=backend, seed=0)
    net.views()["dense0.W"][...] = 1.0
    net.fit(np.ones((200, 1)), np.full((200, 1), -0.5), epochs=1, batch_size=200, optimizer=optim.SGD(1.0))
    w = -net.views()["dense1.W"][:, 0] / 200  # of every unit, the mean over rows of what is left of a one
    assert w.mean() == pytest.approx(1.0, abs=0.01)
    kept = w * (1 - rate) * 200
    np.testing.assert_allclose(kept, kept.round(), atol=1e-2)
    assert kept.std() == pytest.approx((200 * rate * (1 - rate)) ** 0.5, rel=0.15)


@pytest.mark.parametrize("make", DROPPING)
def test_many_rows_are_dropped_alike_on_both_backends(make):
    """Depth first, a chunk of rows has the masks of its rows."""
    nets = [make(backend=b, seed=0) for b in BACKENDS]
    for net in nets:
        net.fit(many(X, 3000), many(T, 3000), epochs=2, batch_size=1400)
    assert relative_error(nets[0].theta, nets[1].theta) < 1e-11


def test_masks_do_not_depend_on_threads(two_threads):
    nets = []
    for threads in (1, 2):
        fastbp.set_num_threads(threads)
        nets.append(MLP([4, 64, 64, 3], dropout=0.5, seed=0))
        nets[-1].fit(many(X, 4000), many(T, 4000), epochs=2, batch_size=2000)
    np.testing.assert_array_equal(nets[0].theta, nets[1].theta)


def test_dropout_in_float32_is_the_same_on_both_backends():
    nets = [MLP([4, 8, 8, 3], activation="tanh", dropout=0.4, backend=b, seed=0) for b in BACKENDS]
    for net in nets:
        net.fit(X, T, epochs=3, batch_size=5)
    assert relative_error(nets[0].theta, nets[1].theta) < 1e-4


# ---- keeping ---------------------------------------------------------------------------------------------------------

COPIES = {
    "file": lambda net, path: (net.save(path / "net.npz"), fastbp.load(path / "net.npz", backend=net.backend))[1],
    "pickle": lambda net, path: pickle.loads(pickle.dumps(net)),
    "deepcopy": lambda net, path: copy.deepcopy(net),
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("name", SAVABLE)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_copy_trains_on_to_the_same_bits(backend, name, way, tmp_path):
    make, x, t = NETS[name]
    net = make(backend=backend, seed=4)
    net.fit(x, t, epochs=2, batch_size=5, optimizer="adam", sample_weight=WEIGHT)
    other = COPIES[way](net, tmp_path)
    assert type(other) is type(net)
    assert repr(other) == repr(net)
    assert other.config() == net.config()
    assert json.loads(json.dumps(net.config())) == net.config()
    assert list(other.views()) == list(net.views())
    for one in (net, other):
        one.fit(x, t, epochs=2, batch_size=5, sample_weight=WEIGHT)
    np.testing.assert_array_equal(net.theta, other.theta)
    assert not np.shares_memory(net.theta, other.theta)
    assert net.history.loss == other.history.loss
    forms = [json.dumps(one.forward(x), default=np.ndarray.tolist) for one in (net, other)]
    assert forms[0] == forms[1]


def test_there_is_no_pickle_inside(tmp_path):
    two_headed(seed=0).save(tmp_path / "net.npz")
    with np.load(tmp_path / "net.npz", allow_pickle=False) as content:
        assert {"theta", "settings"} == set(content.files)
        settings = json.loads(str(content["settings"]))
    assert settings["kind"] == "Network"
    assert [layer["class"] for layer in settings["config"]["layers"]].count("Dense") == 4


def test_the_file_of_an_mlp_is_what_it_was(tmp_path):
    MLP([4, 5, 3], seed=0).save(tmp_path / "net.npz")
    with np.load(tmp_path / "net.npz") as content:
        settings = json.loads(str(content["settings"]))
    assert set(settings) == {"format", "config", "training"}


def test_functions_cannot_be_saved(tmp_path):
    net = functions(seed=0)
    with pytest.raises(fastbp.InputError, match=r"apply\(.*cannot be saved, for a file cannot hold a function"):
        net.save(tmp_path / "net.npz")
    assert os.listdir(tmp_path) == []
    assert copy.deepcopy(net).loss(X, T) == net.loss(X, T)


def rewritten(net, path, change):
    net.save(path)
    with np.load(path) as content:
        found = {name: content[name] for name in content.files}
    settings = json.loads(str(found.pop("settings")))
    change(settings["config"])
    np.savez(path, settings=np.array(json.dumps(settings)), **found)


CHANGES = {
    "unknown layer": lambda c: c["layers"][1].update({"class": "Sparse"}),
    "no class": lambda c: c["layers"][1].pop("class"),
    "units": lambda c: c["layers"][1].update(units=7),
    "unknown setting": lambda c: c["layers"][1].update(colour="red"),
    "forward reference": lambda c: c["calls"].__setitem__(1, [1, 3]),
    "negative reference": lambda c: c["calls"].__setitem__(1, [1, -1]),
    "no layer": lambda c: c["calls"].__setitem__(1, [99, 0]),
    "no calls": lambda c: c.pop("calls"),
    "output": lambda c: c.update(outputs=99),
    "input": lambda c: c.update(inputs=1),
    "loss": lambda c: c.update(loss="mes"),
    "more": lambda c: c.update(more=1),
    "sign": lambda c: next(x for x in c["layers"] if x["class"] == "Arithmetic").update(sign="attrgetter"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_damaged_files_are_refused(change, tmp_path):
    rewritten(residual(seed=0), tmp_path / "net.npz", CHANGES[change])
    with pytest.raises(DataError, match=r"net\.npz is not a network saved by fastbp, or it is damaged"):
        fastbp.load(tmp_path / "net.npz")


def test_deep_networks_can_be_copied():
    """What a network keeps is flat: no chain of objects for pickle to climb down."""
    net = MLP([2, *[3] * 1500, 1], seed=0)
    assert pickle.loads(pickle.dumps(net)).config() == net.config()
    assert len(copy.deepcopy(net).weights) == 1501


def test_the_command_line_says_that_it_predicts_with_an_mlp(tmp_path):
    pytest.importorskip("click")
    from fastbp import cli

    residual(seed=0).save(tmp_path / "net.npz")
    with pytest.raises(DataError, match="holds a Network; predict takes an MLP"):
        cli.Model.load(tmp_path / "net.npz")
