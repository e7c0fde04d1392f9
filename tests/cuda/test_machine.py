"""The CUDA machine in Numba's simulator, against array code: every operation, products, chains, whole training runs."""

from __future__ import annotations

import fake_cupy
import numpy as np
import pytest
from cuda_cases import CASES, LIMITS, judge, typed

import fastbp
from fastbp import MLP, backends, checks, graph, optim, scalars
from fastbp.backends.cuda import blocks, simulator
from fastbp.backends.cuda.executable import CudaExecutable
from fastbp.losses import LOSSES
from fastbp.plan import plan

FLOAT32_ONLY = ("product", "layer", "chain", "sums")  # float64 takes the simulator as long again


@pytest.fixture(autouse=True, params=["backward"])
def order(request, monkeypatch):
    """Who goes first between barriers: not the first, so that what depends on it shows."""
    monkeypatch.setattr(simulator, "order", request.param)


def on_device(values):
    return {name: fake_cupy.asarray(v) for name, v in values.items()}


def check(case, dtype):
    program, values, n = case.make()
    values = {name: v for name, v in typed(values, dtype).items() if name in program.inputs}
    found = CudaExecutable(program, dtype).run(on_device(values), n)
    verdict = judge(case, {name: v.get() for name, v in found.items()}, dtype)
    assert verdict.right, verdict


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("case", [c for c in CASES.values() if not c.name.startswith(FLOAT32_ONLY)], ids=str)
def test_case(case, dtype):
    """Operations and their gradients, sums that are cut, chains with every kind of result."""
    check(case, dtype)


@pytest.mark.parametrize("case", [c for c in CASES.values() if c.name.startswith(FLOAT32_ONLY)], ids=str)
def test_product(case):
    check(case, "float32")


@pytest.mark.parametrize(("precision", "limit"), [("tf32", 1e-3), ("bf16", 1e-2)])
def test_products_on_tensor_cores(precision, limit):
    """A layer and its gradients, rows cut into pieces: on tensor cores, within the precision's error, and not exact."""
    rng = np.random.default_rng(0)
    x, w, g = graph.input("x", 5), graph.param("w", (5, 3)), graph.input("g", 3)
    a = x @ w
    dw, dx = graph.gradients((a * g).sum(), [w, x])  # one product each: errors of several would add up
    program = plan({"a": a.tanh(), "dw": dw, "dx": dx})
    values = {"x": rng.normal(size=(600, 5)), "w": rng.normal(size=(5, 3)), "g": rng.normal(size=(600, 3))}
    exact = backends.executable(program, "numpy", "float64").run(values, 600)
    run = CudaExecutable(program, "float32", precision)
    found = run.run(on_device(typed(values, "float32")), 600)
    assert sum(one.kernel == f"{precision}_small" for one in run.bound(600).bound.launches) == 3
    for name, expected in exact.items():
        assert 1e-6 < checks.relative_error(found[name].get(), expected) <= limit


def test_a_sum_over_many_rows_is_cut():
    program, _, n = CASES["sums over 700 rows"].make()
    assert any(one.kernel == "combine" for one in CudaExecutable(program, "float32").bound(n).bound.launches)


# every activation and every loss, launch by launch and by one block
PAIRS = [*((activation, "mse") for activation in scalars.ACTIVATIONS), *(("tanh", loss) for loss in LOSSES)]
EVERY = [(*pair, by_one_block) for pair in dict.fromkeys(PAIRS) for by_one_block in (False, True)]


@pytest.mark.parametrize(("activation", "loss", "by_one_block"), EVERY)
def test_training_steps(activation, loss, by_one_block, monkeypatch):
    """Whole steps of a network with shuffled rows, on both machines: losses and parameters step by step."""
    if not by_one_block:
        monkeypatch.setattr(blocks, "WHOLE_OPERATIONS", 0)
    layers, rows = (3, 4, 2), 5
    X, T = checks.batch_of(rows, layers, loss, 1)
    net = MLP(layers, activation=activation, loss=loss, backend="numpy", dtype="float64", seed=0)
    optimizer = optim.Adam(0.01)
    data = net.check_batch(X, T, None)
    run = net.training_step(sorted(data), optimizer, True)
    steps = np.array([[3, 0, 0], [2, 3, 1], [3, 0, 2]])
    order = np.random.default_rng(0).permutation(rows)[:, None]
    results = []
    for machine in (run, CudaExecutable(run.program, "float64")):
        state = optimizer.init(net.theta)
        values = {**data, "theta": net.theta.copy()[None], "order": order, "hyper": optimizer.hyper(np.arange(3.0))}
        values |= {f"state{k}": v.copy() for k, v in enumerate(state.vectors)}
        if machine is not run:
            values = on_device(values)
        losses = machine.run_steps(values, steps)["loss"]
        both = (losses, values["theta"]) if machine is run else (losses.get(), values["theta"].get())
        results.append([both[0].ravel(), both[1].ravel()])
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=1e-12)
    np.testing.assert_allclose(results[1][1], results[0][1], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("precision", ["highest", "tf32"])
def test_a_network_is_trained_as_by_array_code(precision):
    """Through MLP.fit: shuffled batches, a short last one, Adam, weights, labels; theta, losses and outputs."""
    rng = np.random.default_rng(0)
    X, labels, weight = rng.normal(size=(11, 3)), rng.integers(0, 3, 11), rng.uniform(0.5, 2, 11)
    found = []
    for backend in ("numpy", "cuda"):
        net = MLP([3, 4, 3], activation="tanh", loss="cross_entropy", backend=backend, precision=precision, seed=0)
        history = net.fit(X, labels, epochs=2, batch_size=4, optimizer=optim.Adam(0.01), sample_weight=weight)
        inputs = X.astype(np.float32) if backend == "numpy" else fake_cupy.asarray(X, np.float32)
        results = [net.theta, net.forward(inputs)]
        found.append([np.array(history.loss), *(r if backend == "numpy" else r.get() for r in results)])
    limit = 1e-5 if precision == "highest" else 1e-2
    for expected, got in zip(*found, strict=True):
        assert checks.relative_error(got, expected) <= limit


def test_dense_goes_by_the_arrays():
    """CuPy in, CuPy out, by the kernels; so does the backward pass."""
    rng = np.random.default_rng(0)
    x, w, b, g = (rng.normal(size=shape) for shape in ((5, 3), (3, 2), (2,), (5, 2)))
    expected, kept = fastbp.dense(x, w, b, "gelu", save=True, backend="numpy")
    back = fastbp.dense_backward(g, x, w, kept, "gelu", backend="numpy")
    xd, wd, bd, gd = (fake_cupy.asarray(v) for v in (x, w, b, g))
    got, saved = fastbp.dense(xd, wd, bd, "gelu", save=True)
    assert isinstance(got, fake_cupy.ndarray)
    np.testing.assert_allclose(got.get(), expected, rtol=1e-12)
    for one, other in zip(fastbp.dense_backward(gd, xd, wd, saved, "gelu"), back, strict=True):
        np.testing.assert_allclose(one.get(), other, rtol=1e-10, atol=1e-13)
