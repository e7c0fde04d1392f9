"""The CUDA machine in Numba's simulator, against array code: every operation, products, chains, whole training runs."""

from __future__ import annotations

import fake_cupy
import numpy as np
import pytest

import fastbp
from fastbp import MLP, backends, checks, graph, optim, scalars
from fastbp.backends.cuda import blocks, simulator
from fastbp.backends.cuda.executable import CudaExecutable
from fastbp.losses import LOSSES
from fastbp.plan import plan

CASES = {case.name: case for case in checks.operation_cases()}
LIMITS = {"float32": 1e-6, "float64": 1e-14}


@pytest.fixture(autouse=True, params=["backward"])
def order(request, monkeypatch):
    """Who goes first between barriers: not the first, so that what depends on it shows."""
    monkeypatch.setattr(simulator, "order", request.param)


def typed(values, dtype):
    return {
        name: np.ascontiguousarray(v, np.int64 if np.asarray(v).dtype.kind in "iu" else dtype)
        for name, v in values.items()
    }


def on_device(values):
    return {name: fake_cupy.asarray(v) for name, v in values.items()}


def compare(program, values, n, dtype, allowed=1.0):
    """Run once on both machines; the CUDA machine's error is at most twice that of array code, or the limit."""
    values = {name: v for name, v in values.items() if name in program.inputs}
    exact = backends.executable(program, "numpy", "float64").run(typed(values, "float64"), n)
    array = backends.executable(program, "numpy", dtype).run(typed(values, dtype), n)
    found = CudaExecutable(program, dtype).run(on_device(typed(values, dtype)), n)
    for name, expected in exact.items():
        got, finite = found[name].get(), np.isfinite(expected)
        assert got.shape == expected.shape
        np.testing.assert_array_equal(got[~finite], expected[~finite])
        error = checks.relative_error(got[finite], expected[finite])
        assert error <= allowed * max(2 * checks.relative_error(array[name][finite], expected[finite]), LIMITS[dtype])


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("name", CASES)
def test_operation_and_its_gradient(name, dtype):
    case = CASES[name]
    outputs = {"loss": case.loss}
    outputs |= {f"d{k}": node for k, node in enumerate(graph.gradients(case.loss, list(case.wrt)))}
    compare(plan(outputs), case.values, len(case.values["x"]), dtype)


SHAPES = [(1, 1, 1), (5, 7, 3), (65, 3, 1), (3, 66, 17), (64, 64, 33), (67, 5, 0)]


@pytest.mark.parametrize("ta", [False, True])
@pytest.mark.parametrize("tb", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products(shape, ta, tb):
    m, n, k = shape
    rng = np.random.default_rng(0)
    if not k:
        x = graph.input("x", 4).columns(0, 4)
        program, values = (
            plan({"y": x.matmul(graph.input("z", n), ta=True)}),
            {
                "x": np.zeros((0, 4)),
                "z": np.zeros((0, n)),
            },
        )
        found = CudaExecutable(program, "float32").run(on_device(typed(values, "float32")), 0)["y"]
        np.testing.assert_array_equal(found.get(), np.zeros((4, n)))
        return
    a = graph.param("a", (k, m) if ta else (m, k))
    b = graph.param("b", (n, k) if tb else (k, n))
    row = graph.param("row", (1, n))
    y = a.matmul(b, ta=ta, tb=tb)
    values = {node.name: rng.normal(size=tuple(s.fixed for s in node.shape)) for node in (a, b, row)}
    compare(plan({"y": (y + row).tanh()}), values, 1, "float32")


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
    """dW over 700 rows: pieces, and a COMBINE with its epilogue."""
    rng = np.random.default_rng(0)
    x, g = graph.input("x", 3), graph.input("g", 5)
    dw = x.matmul(g, ta=True)
    program = plan({"dw": dw, "scaled": dw * graph.param("c", (3, 5)), "db": g.sum(axis=0)})
    run = CudaExecutable(program, "float32")
    assert any(one.kernel == "combine" for one in run.bound(700).bound.launches)
    values = {"x": rng.normal(size=(700, 3)), "g": rng.normal(size=(700, 5)), "c": rng.normal(size=(3, 5))}
    compare(program, values, 700, "float32")


@pytest.mark.parametrize("n", [0, 1, 5, 33])
@pytest.mark.parametrize("cols", [1, 3, 130])
def test_chains_with_every_kind_of_result(n, cols):
    rng = np.random.default_rng(n)
    x, column, row = graph.input("x", cols), graph.input("c", 1), graph.param("row", (1, cols))
    y = (x * row + column).sigmoid()
    outputs = {"y": y, "all": y.sum(), "down": y.sum(axis=0), "across": y.sum(axis=1), "top": y.max(), "tops": y.max(1)}
    values = {"x": rng.normal(size=(n, cols)), "c": rng.normal(size=(n, 1)), "row": rng.normal(size=(1, cols))}
    compare(plan(outputs), values, n, "float32")


def test_a_chain_with_more_values_than_registers():
    """110 values that live at once: a chain for each step, in memory."""
    x = graph.input("x", 3)
    values = [(x * float(k)).sin() for k in range(110)]
    total = values[-1]
    for value in values[-2::-1]:
        total = total * 0.5 + value
    compare(plan({"y": total}), {"x": np.random.default_rng(0).normal(size=(2, 3))}, 2, "float64", allowed=10)


EVERY = [(activation, loss, False) for activation in scalars.ACTIVATIONS for loss in LOSSES]
EVERY += [(activation, "mse", True) for activation in scalars.ACTIVATIONS]
EVERY += [("tanh", loss, True) for loss in LOSSES]


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
