"""Gradients of networks: against central differences, PyTorch, and the float64 reference over the table of shapes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fastbp import MLP, checks
from fastbp.losses import LOSSES
from fastbp.scalars import ACTIVATIONS


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradient_against_central_differences(activation, loss, backend):
    assert checks.gradient_error(activation, loss, backend) <= checks.GRADIENT_LIMIT


CASES = [(*shape, loss) for shape in checks.SHAPES for loss in LOSSES if checks.fits(shape[1], loss)]


def every(step):
    """Of all cases with all activations one in so many, so that all of each meet most of the other."""
    both = ((k + 2 * j, case, activation) for k, case in enumerate(CASES) for j, activation in enumerate(ACTIVATIONS))
    return [(case, activation) for number, case, activation in both if number % step == 0]


@pytest.mark.parametrize(("case", "activation"), every(5), ids=str)
def test_float32_is_as_exact_as_array_code(case, activation):
    n, layers, loss = case
    own, array = checks.float32_errors(n, layers, activation, loss, "cpu")
    assert own <= max(2 * array, checks.FLOAT32_FLOOR)


# 16 draws each take long, and what large numbers do wrong depends on activation and loss more than on the shape
@pytest.mark.parametrize(("case", "activation"), every(9), ids=str)
def test_large_inputs(case, activation):
    """Inputs of 10⁴: saturated units, logits of ±10⁵, nothing overflows.

    Errors have heavy tails here: one unit near its transition among saturated ones is nearly all of a draw's, whichever
    code computes it, so that the worst of few draws compares luck (1031-7-1, gelu: with 16 draws 4 times array code's
    error, with 64 the same; 13-1031-3, identity: 16 draws 3.5, 64 draws 2.8, 256 draws 1.8). Where 16 draws are too far
    apart, 256 decide.
    """
    n, layers, loss = case
    for draws in (16, 256):
        own, array = checks.float32_errors(n, layers, activation, loss, "cpu", scale=1e4, draws=draws)
        if own <= max(2 * array, checks.FLOAT32_FLOOR):
            break
    assert own <= max(2 * array, checks.FLOAT32_FLOOR)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_in_nan_out(activation, loss, backend, dtype):
    X, T = checks.batch_of(5, (3, 4, 2), loss, 0)
    X[2, 1] = np.nan
    net = MLP([3, 4, 2], activation=activation, loss=loss, backend=backend, dtype=dtype, seed=0)
    np.testing.assert_array_equal(np.isnan(net.forward(X)).all(axis=1), np.arange(5) == 2)
    value, gradient = net.loss_and_grad(X, T)
    assert np.isnan(value)
    assert np.isnan(net.split(gradient)[1][-1]).all()


@pytest.mark.parametrize("loss", sorted(set(LOSSES) - {"half_sse", "sse"}))
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradient_against_pytorch(activation, loss, backend):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    acts = {"identity": lambda z: z, "leaky_relu": lambda z: functional.leaky_relu(z, 0.01)}
    act = acts.get(activation) or getattr(torch, activation, None) or getattr(functional, activation)
    losses = {
        "mse": functional.mse_loss,
        "mae": functional.l1_loss,
        "huber": functional.huber_loss,
        "bce": functional.binary_cross_entropy_with_logits,
        "cross_entropy": functional.cross_entropy,
    }
    n, layers = 17, (5, 11, 4, 3)
    X, T = checks.batch_of(n, layers, loss, 1)
    net = MLP(layers, activation=activation, loss=loss, dtype="float64", backend=backend, seed=5)
    theta = torch.tensor(net.theta, requires_grad=True)
    a, at = torch.tensor(X), 0
    for k, (rows, cols) in enumerate(itertools.pairwise(layers)):
        w = theta[at : at + rows * cols].reshape(rows, cols)
        b = theta[at + rows * cols : at + rows * cols + cols]
        at += rows * cols + cols
        a = a @ w + b
        a = act(a) if k < len(layers) - 2 else a
    expected = losses[loss](a, torch.tensor(T))
    expected.backward()
    value, gradient = net.loss_and_grad(X, T)
    assert abs(value - expected.item()) <= 1e-13 * abs(value)
    assert checks.relative_error(gradient, theta.grad.numpy()) <= 1e-12


@pytest.mark.parametrize("layers", [(3, 4, 3), (64, 4, 3), (2, 4, 2), (8, 16, 10), (1, 7, 5)], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_training_with_labels_is_training_with_rows_of_one(layers, weighted, backend, dtype):
    """To the last bit: labels have 8 bytes and floats 4, in one workspace."""
    rng = np.random.default_rng(0)
    for n, batch in ((10, 10), (130, 64), (23, 5)):
        X, labels = rng.normal(size=(n, layers[0])), rng.integers(0, layers[-1], n)
        thetas = []
        for target in (labels, np.eye(layers[-1])[labels]):
            net = MLP(layers, loss="cross_entropy", dtype=dtype, backend=backend, seed=0)
            weight = np.linspace(0.1, 2, n) if weighted else None
            history = net.fit(X, target, epochs=3, batch_size=batch, optimizer="sgd", sample_weight=weight)
            thetas.append(np.append(net.theta, history.loss))
        np.testing.assert_array_equal(thetas[0], thetas[1])
