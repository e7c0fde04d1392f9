"""Blocks of their own in Numba's simulator: depth first, whole steps, several networks at once."""

from __future__ import annotations

import fake_cupy
import numpy as np
import pytest

import fastbp
from fastbp import MLP, backends, checks, graph, optim
from fastbp.backends.cuda import blocks, executable, simulator
from fastbp.backends.cuda.executable import CudaExecutable
from fastbp.backends.division import divide
from fastbp.plan import plan
from test_machine import compare, on_device, typed


@pytest.fixture(autouse=True, params=["backward"])
def order(request, monkeypatch):
    """Who goes first between barriers: not the first, so that what depends on it shows."""
    monkeypatch.setattr(simulator, "order", request.param)


@pytest.fixture
def low(monkeypatch):
    """Chunks of 8 rows, pieces of 16: few enough to simulate."""
    monkeypatch.setattr(blocks, "CHUNK", 8)
    monkeypatch.setattr(blocks, "FEWEST_ROWS", 1)
    monkeypatch.setattr(blocks, "MOST_PIECES", 3)


def gradient_of(net, batch):
    """The Program of loss, outputs and all gradients, and of one batch's values."""
    raise NotImplementedError


NETS = {
    "sigmoid": dict(activation="sigmoid", loss="half_sse"),
    "gelu": dict(activation="gelu", loss="mse"),
    "labels": dict(activation="relu", loss="cross_entropy"),
    "bce": dict(activation="tanh", loss="bce"),
}


@pytest.mark.parametrize("n", [1, 8, 21, 40])
@pytest.mark.parametrize("name", NETS)
def test_training_goes_depth_first(name, n, low):
    """Loss and parameters after steps, shuffled rows and weights, as on the array machine; a short last chunk."""
    layers = (3, 5, 4, 2)
    X, T = checks.batch_of(n + 3, layers, NETS[name]["loss"], 1)
    weight = np.random.default_rng(1).uniform(0.5, 2, n + 3)
    net = MLP(layers, backend="numpy", dtype="float64", seed=0, **NETS[name])
    data = net.check_batch(X, T, weight)
    optimizer = optim.Momentum(0.1)
    run = net.training_step(sorted(data), optimizer, True)
    order = np.random.default_rng(0).permutation(n + 3)[:, None]
    found = []
    for machine in (run, CudaExecutable(run.program, "float64")):
        state = optimizer.init(net.theta)
        values = {**data, "theta": net.theta.copy()[None], "order": order, "hyper": optimizer.hyper(np.zeros(1))}
        values |= {f"state{k}": v.copy() for k, v in enumerate(state.vectors)}
        values = {name: v[:1] if name == "hyper" else v for name, v in values.items()}
        if machine is not run:
            kernels = [one.kernel for one in machine.bound(n).bound.launches]
            assert kernels.count("blocks") == 1
            values = on_device(values)
        loss = machine.run({**values, "order": values["order"][:n]}, n)["loss"]
        both = (loss, values["theta"]) if machine is run else (loss.get(), values["theta"].get())
        found.append([both[0].ravel(), both[1].ravel()])
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-12)
    np.testing.assert_allclose(found[1][1], found[0][1], rtol=1e-10, atol=1e-13)
