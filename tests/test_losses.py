"""Losses: their values and scaling against plain formulas, their gradients against differences and PyTorch."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastbp
from fastbp import losses
from fastbp.errors import InputError

BACKENDS = ("cpu", "numpy")
DTYPES = ("float32", "float64")
NAMES = ("half_sse", "mse", "sse", "mae", "huber", "bce", "cross_entropy")
VALUE_RTOL = {"float32": 3e-6, "float64": 1e-13}
GRADIENT_RTOL = {"float32": 2e-5, "float64": 1e-11}
ROWS, UNITS = 7, 3


# ---- plain formulas, in float64, on the pre-activations of the output layer ----------------------------------------


def plain_rows(name, z, t):
    """The loss of every row, means over units taken where the definition has one."""
    if name == "half_sse":
        return ((z - t) ** 2).sum(axis=1) / 2
    if name == "sse":
        return ((z - t) ** 2).sum(axis=1)
    if name == "mse":
        return ((z - t) ** 2).mean(axis=1)
    if name == "mae":
        return np.abs(z - t).mean(axis=1)
    if name == "huber":
        small = np.abs(z - t) <= 1
        return np.where(small, (z - t) ** 2 / 2, np.abs(z - t) - 0.5).mean(axis=1)
    if name == "bce":
        a = 1 / (1 + np.exp(-z))
        return -(t * np.log(a) + (1 - t) * np.log(1 - a)).mean(axis=1)
    powers = np.exp(z)
    return -(t * np.log(powers / powers.sum(axis=1, keepdims=True))).sum(axis=1)


def plain_loss(name, z, t, weight=None, reduction="mean"):
    rows = plain_rows(name, z, t)
    weight = np.ones(len(rows)) if weight is None else weight
    total = (rows * weight).sum()
    return total if name == "sse" or reduction == "sum" else total / weight.sum()


def targets(name, rng, rows=ROWS, units=UNITS):
    """Targets on both sides of Huber's kink, away from it and from that of the absolute error."""
    if name == "cross_entropy":
        return np.eye(units)[rng.integers(0, units, rows)]
    if name == "bce":
        return rng.random((rows, units))
    return rng.choice([-3.0, -0.4, 0.3, 2.5], (rows, units)) + rng.uniform(-0.05, 0.05, (rows, units))


def hidden_net(name, dtype="float64", backend="cpu", **more):
    """A small net with one hidden layer and random biases."""
    net = fastbp.MLP([4, 5, UNITS], activation="tanh", loss=name, dtype=dtype, backend=backend, seed=3, **more)
    net.theta = np.random.default_rng(5).normal(0.0, 0.5, net.theta.shape)
    return net


def logits_by_hand(net, x):
    first, second = (np.float64(w) for w in net.weights)
    b, c = (np.float64(v) for v in net.biases)
    return np.tanh(np.float64(np.asarray(x, net.dtype)) @ first + b) @ second + c


def differences(net, x, t, weight=None, h=1e-6):
    """Central differences of the loss in every parameter."""
    start = net.theta.copy()
    found = np.empty_like(start)
    for k in range(len(start)):
        values = []
        for sign in (1, -1):
            net.theta[:] = start
            net.theta[k] += sign * h
            values.append(net.loss(x, t, weight))
        found[k] = (values[0] - values[1]) / (2 * h)
    net.theta[:] = start
    return found


def passing_net(units, loss, dtype, backend="cpu", **more):
    """A net without a hidden layer whose logits are its inputs."""
    net = fastbp.MLP([units, units], loss=loss, dtype=dtype, backend=backend, init="zeros", seed=0, **more)
    net.weights[0][...] = np.eye(units)
    return net


@pytest.fixture
def rng():
    return np.random.default_rng(11)


# ---- values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_value_is_the_plain_formula(name, backend, dtype, reduction, weighted, rng):
    net = hidden_net(name, dtype, backend, reduction=reduction)
    x, t = rng.normal(size=(ROWS, 4)), targets(name, rng)
    weight = rng.uniform(0.1, 3.0, ROWS) if weighted else None
    value = net.loss(x, t, weight)
    assert value.dtype == dtype
    assert np.shape(value) == ()
    expected = plain_loss(name, logits_by_hand(net, x), t, weight, reduction)
    np.testing.assert_allclose(value, expected, rtol=VALUE_RTOL[dtype])
    again, gradient = net.loss_and_grad(x, t, weight)
    assert again == value
    assert gradient.dtype == dtype
    assert gradient.shape == net.theta.shape


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # logits [[0, 2], [1, -1], [0.5, 0]], targets below; every number worked out by hand
        ("half_sse", (0.5 * (0 + 4) + 0.5 * (0.25 + 4) + 0.5 * (0 + 9)) / 3),
        ("mse", (0 + 4 + 0.25 + 4 + 0 + 9) / 6),
        ("sse", 0 + 4 + 0.25 + 4 + 0 + 9),
        ("mae", (0 + 2 + 0.5 + 2 + 0 + 3) / 6),
        ("huber", (0 + 1.5 + 0.125 + 1.5 + 0 + 2.5) / 6),
    ],
)
def test_value_worked_out_by_hand(name, expected):
    net = passing_net(2, name, "float64")
    x = np.array([[0.0, 2.0], [1.0, -1.0], [0.5, 0.0]])
    t = np.array([[0.0, 0.0], [0.5, 1.0], [0.5, -3.0]])
    assert net.loss(x, t) == pytest.approx(expected, rel=1e-15)


def test_cross_entropies_worked_out_by_hand():
    even = np.zeros((3, 4))
    assert passing_net(4, "cross_entropy", "float64").loss(even, [0, 3, 1]) == pytest.approx(math.log(4), rel=1e-15)
    assert passing_net(4, "bce", "float64").loss(even, np.eye(4)[:3]) == pytest.approx(math.log(2), rel=1e-15)
    one = passing_net(1, "bce", "float64")
    assert one.loss([[2.0]], [[0.25]]) == pytest.approx(
        0.25 * math.log1p(math.exp(-2)) + 0.75 * math.log1p(math.exp(2))
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_is_over_rows_and_the_sum_is_not(name, rng):
    """Doubling the data leaves a mean as it is and doubles a sum; the gradients go with them."""
    x, t = rng.normal(size=(ROWS, 4)), targets(name, rng)
    twice = np.concatenate([x, x]), np.concatenate([t, t])
    for reduction in ("mean", "sum"):
        net = hidden_net(name, reduction=reduction)
        factor = 2.0 if name == "sse" or reduction == "sum" else 1.0
        for one, two in zip(net.loss_and_grad(x, t), net.loss_and_grad(*twice), strict=True):
            np.testing.assert_allclose(two, factor * one, rtol=1e-12, atol=1e-15)
    mean, total = (hidden_net(name, reduction=r) for r in ("mean", "sum"))
    assert total.loss(x, t) == pytest.approx((1 if name == "sse" else ROWS) * mean.loss(x, t), rel=1e-13)
    assert mean.averages == (name != "sse")
    assert not total.averages


# ---- sample weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_whole_weights_repeat_rows(name, backend, rng):
    net = hidden_net(name, backend=backend)
    x, t = rng.normal(size=(4, 4)), targets(name, rng, 4)
    repeats = np.array([2, 0, 1, 3])
    found = net.loss_and_grad(x, t, repeats)
    expected = net.loss_and_grad(np.repeat(x, repeats, axis=0), np.repeat(t, repeats, axis=0))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "sse"])
def test_a_weighted_mean_depends_on_proportions_alone(name, rng):
    net = hidden_net(name)
    x, t, weight = rng.normal(size=(ROWS, 4)), targets(name, rng), rng.uniform(0.5, 2.0, ROWS)
    for scale in (1e-12, 1e12):
        np.testing.assert_allclose(net.loss(x, t, weight * scale), net.loss(x, t, weight), rtol=1e-12)
    np.testing.assert_allclose(net.loss(x, t, np.full(ROWS, 0.3)), net.loss(x, t), rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_of_weight_zero_counts_nothing(name, rng):
    net = hidden_net(name)
    x, t = rng.normal(size=(ROWS, 4)), targets(name, rng)
    weight = np.ones(ROWS)
    weight[2] = 0
    keep = np.arange(ROWS) != 2
    np.testing.assert_allclose(net.loss(x, t, weight), net.loss(x[keep], t[keep]), rtol=1e-13)
    moved = x.copy()
    moved[2] += 100.0
    assert net.loss(moved, t, weight) == net.loss(x, t, weight)
    assert (net.deltas(x, t, weight)[0][2] == 0).all()


def test_weights_come_as_a_vector_or_a_column(rng):
    net = hidden_net("mse")
    x, t = rng.normal(size=(ROWS, 4)), targets("mse", rng)
    weight = rng.integers(1, 9, ROWS)
    assert net.loss(x, t, weight) == net.loss(x, t, weight[:, None]) == net.loss(x, t, weight.tolist())


# ---- gradients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_that_of_finite_differences(name, backend, reduction, weighted, rng):
    net = hidden_net(name, backend=backend, reduction=reduction)
    x, t = rng.normal(size=(ROWS, 4)), targets(name, rng)
    weight = rng.uniform(0.1, 3.0, ROWS) if weighted else None
    gradient = net.loss_and_grad(x, t, weight)[1]
    expected = differences(net, x, t, weight)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-7 * np.abs(expected).max())


@pytest.mark.parametrize("output", ["sigmoid", "tanh", "relu", "leaky_relu", "gelu", "silu", "softplus", "softmax"])
@pytest.mark.parametrize("name", ["half_sse", "huber"])
def test_gradient_through_other_outputs(name, output, rng):
    net = hidden_net(name, output=output)
    x, t = rng.normal(size=(ROWS, 4)), targets(name, rng)
    expected = differences(net, x, t)
    np.testing.assert_allclose(net.loss_and_grad(x, t)[1], expected, rtol=1e-6, atol=1e-7 * np.abs(expected).max())


def test_absolute_error_has_slope_zero_at_its_kink():
    net = passing_net(2, "mae", "float64")
    loss, gradient = net.loss_and_grad([[1.0, 2.0]], [[1.0, 3.0]])
    assert loss == 0.5
    np.testing.assert_array_equal(net.split(gradient)[1][0], [0.0, -0.5])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_deltas_are_dc_dz(name, backend, dtype, rng):
    """The closed forms of dC/dZ, and dW = Aᵀ dZ, db = sum of dZ over the rows of every layer (S14)."""
    net = hidden_net(name, dtype, backend)
    x, t = rng.normal(size=(ROWS, 4)).astype(dtype), targets(name, rng)
    z = logits_by_hand(net, x)
    d = z - t
    expected = {
        "half_sse": d / ROWS,
        "mse": 2 * d / (ROWS * UNITS),
        "sse": 2 * d,
        "mae": np.sign(d) / (ROWS * UNITS),
        "huber": np.clip(d, -1, 1) / (ROWS * UNITS),
        "bce": (1 / (1 + np.exp(-z)) - t) / (ROWS * UNITS),
        "cross_entropy": (np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) - t) / ROWS,
    }[name]
    first, last = net.deltas(x, t)
    assert first.shape == (ROWS, 5)
    rtol, size = GRADIENT_RTOL[dtype], np.abs(expected).max()
    np.testing.assert_allclose(last, expected, rtol=rtol, atol=rtol * size)
    a = np.tanh(np.float64(x) @ net.weights[0] + net.biases[0])
    np.testing.assert_allclose(first, (expected @ net.weights[1].T) * (1 - a * a), rtol=10 * rtol, atol=rtol * size)
    weights, biases = net.split(net.loss_and_grad(x, t)[1])
    for of_weights, of_bias, below, dz in zip(weights, biases, (x, a), (first, last), strict=True):
        tolerance = {"rtol": 10 * rtol, "atol": 10 * rtol * size}
        np.testing.assert_allclose(of_weights, np.float64(below).T @ np.float64(dz), **tolerance)
        np.testing.assert_allclose(of_bias, np.float64(dz).sum(axis=0), **tolerance)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_are_pytorchs(name, dtype, backend, weighted, rng):
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    rows_of = {
        "half_sse": lambda z, t: f.mse_loss(z, t, reduction="none").sum(1) / 2,
        "mse": lambda z, t: f.mse_loss(z, t, reduction="none").mean(1),
        "sse": lambda z, t: f.mse_loss(z, t, reduction="none").sum(1),
        "mae": lambda z, t: f.l1_loss(z, t, reduction="none").mean(1),
        "huber": lambda z, t: f.huber_loss(z, t, reduction="none", delta=1.0).mean(1),
        "bce": lambda z, t: f.binary_cross_entropy_with_logits(z, t, reduction="none").mean(1),
        "cross_entropy": lambda z, t: f.cross_entropy(z, t, reduction="none"),
    }
    net = hidden_net(name, dtype, backend)
    x, t = rng.normal(size=(ROWS, 4)).astype(dtype), targets(name, rng).astype(dtype)
    weight = rng.uniform(0.1, 3.0, ROWS).astype(dtype) if weighted else np.ones(ROWS, dtype)
    theta = torch.tensor(net.theta.astype(np.float64), requires_grad=True)
    w, b = theta[:20].reshape(4, 5), theta[20:25]
    v, c = theta[25:40].reshape(5, 3), theta[40:43]
    z = torch.tanh(torch.tensor(x).double() @ w + b) @ v + c
    rows = rows_of[name](z, torch.tensor(t).double()) * torch.tensor(weight).double()
    expected = rows.sum() if name == "sse" else rows.sum() / float(np.float64(weight).sum())
    expected.backward()
    loss, gradient = net.loss_and_grad(x, t, weight if weighted else None)
    np.testing.assert_allclose(loss, expected.item(), rtol=VALUE_RTOL[dtype])
    reference = theta.grad.numpy()
    rtol = GRADIENT_RTOL[dtype]
    np.testing.assert_allclose(gradient, reference, rtol=rtol, atol=rtol * np.abs(reference).max())


# ---- labels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["cross_entropy", "half_sse"])
@pytest.mark.parametrize("kind", [np.int64, np.int8, np.uint8, np.uint64, ">i4"])
def test_labels_are_one_hot_rows(name, kind, backend, rng):
    net = hidden_net(name, backend=backend)
    x, labels = rng.normal(size=(ROWS, 4)), rng.integers(0, UNITS, ROWS).astype(kind)
    onehot = np.zeros((ROWS, UNITS))
    onehot[np.arange(ROWS), labels.astype(int)] = 1
    expected = net.loss_and_grad(x, onehot)
    for given_labels in (labels, labels[:, None], labels.tolist(), np.repeat(labels, 2)[::2]):
        loss, gradient = net.loss_and_grad(x, given_labels)
        assert loss == expected[0]
        np.testing.assert_array_equal(gradient, expected[1])


def test_soft_targets_of_cross_entropy(rng):
    net = hidden_net("cross_entropy")
    x, t = rng.normal(size=(ROWS, 4)), rng.dirichlet(np.ones(UNITS), ROWS)
    np.testing.assert_allclose(net.loss(x, t), plain_loss("cross_entropy", logits_by_hand(net, x), t), rtol=1e-13)


# ---- stability -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bce_at_extreme_logits(dtype, backend):
    net = passing_net(1, "bce", dtype, backend)
    z = np.array([1e4, -1e4, 1e4, -1e4, 100.0, -100.0, 100.0, -100.0, 0.0, 0.0])[:, None]
    t = np.array([1, 0, 0, 1, 1, 0, 0, 1, 0.5, 1])[:, None]
    exact = [0, 0, 1e4, 1e4, math.exp(-100), math.exp(-100), 100, 100, math.log(2), math.log(2)]
    for k in range(len(z)):
        loss, gradient = net.loss_and_grad(z[k : k + 1], t[k : k + 1])
        assert loss == pytest.approx(exact[k], rel=1e-5 if dtype == "float32" else 1e-13, abs=0)
        assert np.isfinite(gradient).all()
    slope = np.array([0, 0, 1, -1, 0, 0, 1, -1, 0, -0.5])[:, None] / len(z)
    np.testing.assert_allclose(net.deltas(z, t)[0], slope, atol=1e-7)
    a = net.forward(z)
    assert ((a >= 0) & (a <= 1)).all()
    np.testing.assert_array_equal(net.predict(z)[:, 0], [1, 0, 1, 0, 1, 0, 1, 0, 1, 1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_at_extreme_logits(dtype, backend):
    net = passing_net(3, "cross_entropy", dtype, backend)
    z = np.array([[1e4, -1e4, 0.0]] * 3 + [[1e4, 1e4, 1e4]] + [[-1e4, -1e4, 1e4]])
    labels = np.array([0, 1, 2, 1, 2])
    exact = [0.0, 2e4, 1e4, math.log(3), 0.0]
    for k, label in enumerate(labels):
        assert net.loss(z[k : k + 1], labels[k : k + 1]) == pytest.approx(exact[k], rel=1e-6, abs=0)
        onehot = np.eye(3)[[label]]
        assert net.loss(z[k : k + 1], onehot) == pytest.approx(exact[k], rel=1e-6, abs=0)
    p = np.array([[1, 0, 0]] * 3 + [[1 / 3] * 3] + [[0, 0, 1]])
    np.testing.assert_allclose(net.forward(z), p, rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(net.deltas(z, labels)[0], (p - np.eye(3)[labels]) / 5, rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(net.predict(z), [0, 0, 0, 0, 2])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["bce", "cross_entropy"])
def test_the_largest_finite_logits(name, backend):
    """The losses are said to be finite and exact for any finite logit; here they are 0."""
    net = passing_net(3, name, "float32", backend)
    z = np.array([[3e38, -3e38, -3e38]])
    assert net.loss(z, [[1.0, 0.0, 0.0]]) == 0.0
    np.testing.assert_array_equal(net.deltas(z, [[1.0, 0.0, 0.0]])[0], [[0.0, 0.0, 0.0]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["bce", "cross_entropy"])
@settings(max_examples=40, deadline=None)
@given(
    z=st.lists(st.floats(-1e4, 1e4, width=32), min_size=3, max_size=3),
    t=st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3),
)
def test_finite_logits_give_the_exact_value(name, dtype, z, t):
    logits, target = np.array([z]), np.array([t])
    found = passing_net(3, name, dtype).loss(logits, target)
    if name == "bce":  # -t log s(z) - (1 - t) log(1 - s(z)), each logarithm in one step
        terms = np.array([target * np.logaddexp(0, -logits), (1 - target) * np.logaddexp(0, logits)])
        exact = terms.sum() / 3
    else:
        terms = target * (np.logaddexp.reduce(logits, axis=1, keepdims=True) - logits)
        exact = terms.sum()
    size = np.abs(logits).max() + 1  # what rounding z - max z and z - z t costs
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(found, exact, rtol=8 * eps, atol=4 * eps * size)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_nan_goes_in_and_nan_comes_out(name, backend, rng):
    net = hidden_net(name, backend=backend)
    x, t = rng.normal(size=(ROWS, 4)), targets(name, rng)
    x[3, 1] = np.nan
    a = net.forward(x)
    assert np.isnan(a[3]).all()
    assert np.isfinite(np.delete(a, 3, axis=0)).all()
    assert np.isnan(net.loss(x, t))


# ---- outputs that follow the loss ----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_output_follows_the_loss(name, backend, rng):
    net = hidden_net(name, backend=backend)
    x = rng.normal(size=(ROWS, 4))
    z = logits_by_hand(net, x)
    np.testing.assert_allclose(net.logits(x), z, rtol=1e-12, atol=1e-14)
    if name == "bce":
        expected = 1 / (1 + np.exp(-z))
    elif name == "cross_entropy":
        expected = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    else:
        expected = z
    np.testing.assert_allclose(net.forward(x), expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(net(x), net.forward(x))
    if name == "cross_entropy":
        np.testing.assert_array_equal(net.predict(x), z.argmax(axis=1))
    elif name == "bce":
        np.testing.assert_array_equal(net.predict(x), z >= 0)


@pytest.mark.parametrize(("name", "output"), [("bce", "identity"), ("bce", "softmax"), ("cross_entropy", "sigmoid")])
def test_losses_on_logits_refuse_other_outputs(name, output):
    with pytest.raises(InputError, match=re.escape(f"output={output!r} does not go with loss={name!r}")):
        fastbp.MLP([2, 2], loss=name, output=output)


def test_the_table_of_names():
    assert tuple(losses.LOSSES) == NAMES
    for name in NAMES:
        assert name in losses.__doc__, "every loss states its scaling in the module's table"
