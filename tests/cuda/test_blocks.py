"""Blocks of their own in Numba's simulator: whole steps, several networks at once."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_cases import typed
from test_machine import on_device

from fastbp import MLP, backends, checks, fit_many, graph, optim
from fastbp.backends.cuda import blocks, executable, simulator
from fastbp.backends.cuda.executable import CudaExecutable
from fastbp.plan import plan


@pytest.fixture(autouse=True, params=["backward"])
def order(request, monkeypatch):
    """Who goes first between barriers: not the first, so that what depends on it shows."""
    monkeypatch.setattr(simulator, "order", request.param)


def by_one_block(program, values, n, dtype="float64", precision="highest"):
    """What one step of n rows gives, without the dimension of steps."""
    machine = CudaExecutable(program, dtype, precision)
    (found,) = machine.run_many([on_device(typed(values, dtype))], [np.array([[n, 0, 0]])])
    return {name: v.get()[0] for name, v in found.items()}


def compare(program, values, n, allowed):
    """Float64, once on both machines; the CUDA machine's error is at most 1e-14, or some times that."""
    expected = backends.executable(program, "numpy", "float64").run(typed(values, "float64"), n)
    found = by_one_block(program, values, n)
    for name, array in expected.items():
        assert checks.relative_error(found[name], array) <= allowed * 1e-14


NETS = {
    "sigmoid": {"activation": "sigmoid", "loss": "half_sse"},
    "gelu": {"activation": "gelu", "loss": "mse"},
    "labels": {"activation": "relu", "loss": "cross_entropy"},
    "bce": {"activation": "tanh", "loss": "bce"},
    "dropout": {"activation": "tanh", "loss": "mse", "dropout": 0.4},
}


@pytest.mark.parametrize(
    ("name", "n"), [("sigmoid", 1), ("sigmoid", 21), ("gelu", 8), ("labels", 25), ("bce", 26), ("dropout", 27)]
)
def test_a_step(name, n):
    """Loss and parameters after it, shuffled rows and weights, as on the array machine."""
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
        values = {**data, "theta": net.theta.copy()[None], "order": order[:n], "hyper": optimizer.hyper(np.zeros(1))}
        values |= {f"state{k}": v.copy() for k, v in enumerate(state.vectors)}
        if "dropout" in run.program.inputs:
            values["dropout"] = np.array([[7.0, 1.0]])
        if machine is run:
            both = run.run(values, n)["loss"], values["theta"]
        else:
            values = on_device(values)
            (results,) = machine.run_many([values], [np.array([[n, 0, 0]])])
            both = results["loss"].get(), values["theta"].get()
        found.append([both[0].ravel(), both[1].ravel()])
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-12)
    np.testing.assert_allclose(found[1][1], found[0][1], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("precision", "limit"), [("highest", 1e-6), ("tf32", 1e-3), ("bf16", 1e-2)])
def test_precisions(precision, limit):
    """Two layers and their gradients: on tensor cores within the precision's error, not exact; the same bits twice."""
    rng = np.random.default_rng(0)
    x, w, v = graph.input("x", 5), graph.param("w", (5, 7)), graph.param("v", (7, 3))
    loss = ((x @ w).tanh() @ v).square().sum()
    program = plan({"loss": loss, **{f"d{k}": g for k, g in enumerate(graph.gradients(loss, [w, v]))}})
    values = {"x": rng.normal(size=(29, 5)), "w": rng.normal(size=(5, 7)), "v": rng.normal(size=(7, 3))}
    exact = backends.executable(program, "numpy", "float64").run(values, 29)
    found, again = (by_one_block(program, values, 29, "float32", precision) for _ in range(2))
    for name, expected in exact.items():
        error = checks.relative_error(found[name], expected)
        assert error <= 2 * limit  # of several products after each other
        assert precision == "highest" or error > 1e-6
        np.testing.assert_array_equal(found[name], again[name])


def test_a_chain_that_has_too_many_values_goes_step_by_step():
    """In a block too, in its part of the workspace."""
    x, w = graph.input("x", 3), graph.param("w", (3, 2))
    values = [((x @ w) * float(k)).sin() for k in range(1, 14)]
    total = values[-1]
    for value in values[-2::-1]:
        total = total * 0.5 + value
    program = plan({"s": total.square().sum()})
    rng = np.random.default_rng(0)
    compare(program, {"x": rng.normal(size=(19, 3)), "w": rng.normal(size=(3, 2))}, 19, allowed=10)


def test_what_does_not_fit_shared_memory_lies_in_the_workspace(monkeypatch):
    monkeypatch.setattr(executable, "most_shared", lambda: blocks.OPERATION + 600)
    x, w, v = graph.input("x", 5), graph.param("w", (5, 7)), graph.param("v", (7, 6))
    loss = ((x @ w).tanh() @ v).sigmoid().square().sum()
    program = plan({"loss": loss, **{f"d{k}": g for k, g in enumerate(graph.gradients(loss, [w, v]))}})
    rng = np.random.default_rng(0)
    values = {"x": rng.normal(size=(37, 5)), "w": rng.normal(size=(5, 7)), "v": rng.normal(size=(7, 6))}
    compare(program, values, 37, allowed=4)


def steps_of(net, optimizer, rows, seed, device):
    """Executable, values and steps: batches of 3, 2 and 3 rows of a shuffled set."""
    X, T = checks.batch_of(rows, [layer.shape[0] for layer in net.weights] + [net.weights[-1].shape[1]], net.loss, 1)
    data = net.check_batch(X, T, None)
    run = net.training_step(sorted(data), optimizer, True)
    state = optimizer.init(net.theta)
    order = np.random.default_rng(seed).permutation(rows)[:, None]
    values = {**data, "theta": net.theta.copy()[None], "order": order, "hyper": optimizer.hyper(np.arange(3.0))}
    values |= {f"state{k}": v.copy() for k, v in enumerate(state.vectors)}
    return run, on_device(values) if device else values, np.array([[3, 0, 0], [2, 3, 1], [3, 0, 2]])


def test_whole_steps_have_the_same_bits_with_less_shared_memory(monkeypatch):
    """What a card has of it decides where temps lie, not what comes out."""
    found = []
    for most in (blocks.SHARED, blocks.OPERATION + 600):
        monkeypatch.setattr(executable, "most_shared", lambda m=most: m)
        net = MLP((3, 5, 4, 2), activation="tanh", backend="numpy", dtype="float64", seed=0)
        run, values, steps = steps_of(net, optim.SGD(0.1), 5, 0, True)
        machine = CudaExecutable(run.program, "float64")
        losses = machine.run_many([values], [steps])[0]["loss"].get()
        found.append((losses, values["theta"].get(), machine.whole([3, 2]).bound.workspace))
    (*expected, small), (*others, large) = found
    assert small < large
    for one, other in zip(expected, others, strict=True):
        np.testing.assert_array_equal(one, other)


OPTIMIZERS = {"float32": optim.Adam(0.01), "float64": optim.Ftrl(0.1)}


@pytest.mark.parametrize("dtype", OPTIMIZERS)
def test_whole_steps_of_several_networks(dtype):
    """Three networks, a block each, with batches of two sizes: losses and parameters as one by one on array code."""
    optimizer = OPTIMIZERS[dtype]
    expected, machines, values, steps = [], [], [], []
    for seed in range(3):
        net = MLP((3, 5, 2), activation="tanh", loss="mse", backend="numpy", dtype=dtype, seed=seed)
        run, inputs, table = steps_of(net, optimizer, 5, seed, device=False)
        losses = run.run_steps(inputs, table)["loss"]
        expected.append((losses.ravel(), inputs["theta"].ravel()))
        machine = CudaExecutable(run.program, dtype)
        machines.append(machine)
        _, inputs, table = steps_of(net, optimizer, 5, seed, device=True)
        values.append(inputs)
        steps.append(table)
    results = machines[0].run_many(values, steps)
    limit = 1e-5 if dtype == "float32" else 1e-12
    for (losses, theta), result, inputs in zip(expected, results, values, strict=True):
        np.testing.assert_allclose(result["loss"].get().ravel(), losses, rtol=limit)
        np.testing.assert_allclose(inputs["theta"].get().ravel(), theta, rtol=10 * limit, atol=limit)


def test_steps_are_one_launch(monkeypatch):
    launched = []
    monkeypatch.setattr(executable, "launch", lambda name, *rest, launch=executable.launch: (
        launched.append(name), launch(name, *rest)
    ))  # fmt: skip
    net = MLP((3, 5, 2), backend="numpy", seed=0)
    run, values, steps = steps_of(net, optim.SGD(0.1), 5, 0, device=True)
    machine = CudaExecutable(run.program, "float32")
    machine.run_many([values], [steps])
    assert launched == ["blocks"]
    assert machine.suits_blocks(3)
    monkeypatch.setattr(blocks, "WHOLE_OPERATIONS", run.program.operations(3) - 1)
    assert machine.suits_blocks(2)
    assert not machine.suits_blocks(3)


def test_outputs_that_have_rows_are_not_made_by_one_block():
    x = graph.input("x", 3)
    machine = CudaExecutable(plan({"y": (x @ graph.param("w", (3, 2))).tanh()}), "float32")
    assert not machine.suits_blocks(4)


def test_an_ensemble_is_trained_by_a_block_each(monkeypatch):
    """fit_many: each network as by its own fit but for rounding, other seeds and rates, one launch a slice; one that
    diverges stops.
    """
    rng = np.random.default_rng(0)
    X, T = rng.normal(size=(7, 3)).astype(np.float32), rng.normal(size=(7, 2)).astype(np.float32)
    rates, launched = [0.1, 0.05, 1e30], []
    run_many = CudaExecutable.run_many
    monkeypatch.setattr(CudaExecutable, "run_many", lambda self, values, steps: (
        launched.append(len(values)), run_many(self, values, steps)
    )[1])  # fmt: skip

    def nets():
        return [MLP([3, 4, 2], loss="mse", output="identity", backend="cuda", seed=s) for s in range(3)]

    asked = {"epochs": 1, "batch_size": 4}
    alone, together = nets(), nets()
    expected = [net.fit(X, T, optimizer=optim.SGD(r), seed=7 + k, **asked)
                for k, (net, r) in enumerate(zip(alone, rates[:2], strict=False))]  # fmt: skip
    launched.clear()
    histories = fit_many(together, X, T, optimizer=[optim.SGD(r) for r in rates], seed=[7, 8, 9], **asked)
    assert launched[0] == 3
    assert [h.stopped for h in histories] == ["epochs", "epochs", "diverged"]
    for one, other, net, net2 in zip(expected, histories, alone, together, strict=False):
        np.testing.assert_allclose(one.loss, other.loss, rtol=1e-6)
        assert checks.relative_error(net2.theta.get(), net.theta.get()) <= 1e-6
    assert np.isfinite(together[2].theta.get()).all()
