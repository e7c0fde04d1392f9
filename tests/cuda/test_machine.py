"""The CUDA machine in Numba's simulator, against array code: every operation, products, chains, whole training runs."""

from __future__ import annotations

import re
from dataclasses import replace

import fake_cupy
import numpy as np
import pytest
from cuda_cases import CASES, LIMITS, judge, typed

import fastbp
from fastbp import MLP, backends, checks, graph, optim, scalars
from fastbp.backends.cuda import blas, simulator
from fastbp.backends.cuda.executable import CudaExecutable
from fastbp.errors import DeviceMemoryError
from fastbp.losses import LOSSES
from fastbp.plan import plan

RNG = np.random.default_rng(0)
FLOAT32_ONLY = ("product", "layer", "chain", "sums")  # float64 takes the simulator as long again


@pytest.fixture(autouse=True, params=["backward"])
def order(request, monkeypatch):
    """Who goes first between barriers: not the first, so that what depends on it shows."""
    monkeypatch.setattr(simulator, "order", request.param)


@pytest.fixture(autouse=True)
def without_blas(monkeypatch):
    """Every product by its own kernel; test_blas.py has the others."""
    monkeypatch.setattr(blas, "available", lambda: False)


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


# every activation and every loss, launch by launch and by one block in turns
PAIRS = [*((activation, "mse") for activation in scalars.ACTIVATIONS), *(("tanh", loss) for loss in LOSSES)]
EVERY = [(*pair, bool(k % 2)) for k, pair in enumerate(dict.fromkeys(PAIRS))]


def steps_on_both(activation, loss, optimizer, dtype="float64", spoiled=None, by_one_block=False):
    """Losses and parameters after two steps of a network with shuffled rows: by array code in float64, by array code
    in ``dtype`` and by cuda in ``dtype``. ``spoiled`` is put into the data.
    """
    layers, rows = (3, 4, 2), 5
    X, T = checks.batch_of(rows, layers, loss, 1)
    net = MLP(layers, activation=activation, loss=loss, backend="numpy", dtype="float64", seed=0)
    data = net.check_batch(X, T, None)
    if spoiled is not None:
        data["X"][2, 1] = spoiled
    run = net.training_step(sorted(data), optimizer, True)
    steps = np.array([[3, 0, 0], [2, 3, 1]])
    order = np.random.default_rng(0).permutation(rows)[:, None]
    results = []
    for machine, kind in (
        (run, "float64"),
        (backends.executable(run.program, "numpy", dtype), dtype),
        (CudaExecutable(run.program, dtype), dtype),
    ):
        state = optimizer.init(net.theta)
        values = {**data, "theta": net.theta[None], "order": order}
        values |= {f"state{k}": v for k, v in enumerate(state.vectors)}
        values = {k: np.array(v, v.dtype if v.dtype.kind == "i" else kind) for k, v in values.items()}
        values["hyper"] = optimizer.hyper(np.arange(2.0))
        if isinstance(machine, CudaExecutable):
            values = on_device(values)
        if by_one_block and isinstance(machine, CudaExecutable):
            losses = machine.run_many([values], [steps])[0]["loss"]
        else:
            losses = machine.run_steps(values, steps)["loss"]
        both = (losses, values["theta"])
        results.append([(v.get() if isinstance(machine, CudaExecutable) else v).ravel() for v in both])
    return results


@pytest.mark.parametrize(("activation", "loss", "by_one_block"), EVERY)
def test_training_steps(activation, loss, by_one_block):
    """Whole steps of a network with shuffled rows, on both machines: losses and parameters step by step."""
    expected, _, found = steps_on_both(activation, loss, optim.Adam(0.01), by_one_block=by_one_block)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-12)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-10, atol=1e-13)


def test_more_numbers_of_rows_than_tables_are_kept():
    """One table would be overwritten while steps of its own are waiting."""
    net = MLP((3, 2), backend="numpy", dtype="float64", seed=0)
    run = net.training_step(["T", "X"], optim.SGD(0.1), False)
    steps = np.array([[n, 0, n - 1] for n in range(1, 18)])
    values = {"X": np.ones((17, 3)), "T": np.ones((17, 2)), "theta": net.theta[None], "hyper": np.ones((17, 1))}
    with pytest.raises(ValueError, match="at most 16 different numbers of rows; got 17"):
        CudaExecutable(run.program, "float64").run_steps(on_device(values), steps)


def test_tables_that_a_call_needs_are_not_given_up_for_others_of_it():
    """The mean of n rows has 1/n in its constants: those of the oldest table were overwritten."""
    machine = CudaExecutable(plan({"mean": graph.input("x", 1).mean()}), "float64")
    x = fake_cupy.asarray(np.ones((40, 1)))
    for n in range(1, 17):
        machine.run({"x": x[:n]}, n)
    found = machine.run_steps({"x": x}, np.array([[1, 0, 0], [20, 0, 1], [1, 0, 2]]))["mean"].get()
    np.testing.assert_array_equal(found.ravel(), np.ones(3))


@pytest.mark.parametrize("loss", LOSSES)
def test_training_steps_in_float32(loss):
    """As exact as array code in float32, of each loss and of the way that the parameters went."""
    expected, array, found = steps_on_both("tanh", loss, optim.SGD(0.1), "float32")
    for exact, other, got in zip(expected, array, found, strict=True):
        assert checks.relative_error(got, exact) <= max(2 * checks.relative_error(other, exact), LIMITS["float32"])


@pytest.mark.parametrize("rule", optim.OPTIMIZERS)
def test_nan_reaches_the_parameters(rule):
    """Through losses, gradients and updates, of those that it reaches by array code and of no others."""
    expected, _, found = steps_on_both("relu", "mse", optim.OPTIMIZERS[rule](0.01), spoiled=np.nan)
    for exact, got in zip(expected, found, strict=True):
        assert np.isnan(exact).any()
        np.testing.assert_allclose(got, exact, rtol=1e-10, atol=1e-13)  # NaN equals NaN


KINDS = {c.name.split()[0]: c for c in CASES.values() if c.name.startswith(FLOAT32_ONLY) and c.name[:4] != "sums"}
WITH_NAN = [*(c for c in CASES.values() if not c.name.startswith(FLOAT32_ONLY)), *KINDS.values()]


@pytest.mark.parametrize("case", WITH_NAN, ids=str)
def test_nan_in_nan_out(case):
    """NaN in one element of the first array of numbers: what is not finite has to be what it is by array code."""

    def make():
        program, values, n = case.make()
        values = {name: np.array(v) for name, v in values.items()}
        for name, v in values.items():
            if name in program.inputs and v.dtype.kind == "f" and v.size:
                v.flat[v.size // 2] = np.nan
                break
        return program, values, n

    check(replace(case, make=make), "float32")


@pytest.mark.parametrize(("precision", "limit"), [("highest", 1e-5), ("tf32", 1e-2), ("bf16", 3e-2)])
def test_a_network_is_trained_as_by_array_code(precision, limit):
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


def test_too_little_memory_says_what_this_machine_needs():
    """Its own workspace, not that of array code; a batch that it says would fit does, and nothing is lost."""
    state, room = fake_cupy._state, 9000
    net = MLP([4, 8, 2], backend="cuda", seed=0)
    X, T = fake_cupy.asarray(RNG.normal(size=(90, 4)), np.float32), fake_cupy.zeros((90, 2), np.float32)
    before = net.loss_and_grad(X[:3], T[:3])[1].get()  # makes what does not depend on the rows
    limit = state.limit
    try:
        state.limit = state.used + room
        with pytest.raises(DeviceMemoryError, match=r"90 rows need [\d,]+ bytes .*; batches of \d+ rows") as found:
            net.loss_and_grad(X, T)
        rows = int(re.search(r"batches of (\d+) rows", str(found.value))[1])
        assert 3 < rows < 90
        state.limit = limit
        few = X[:rows].copy(), T[:rows].copy()
        state.limit = state.used + room
        net.loss_and_grad(*few)
    finally:
        state.limit = limit
    np.testing.assert_array_equal(net.loss_and_grad(X[:3], T[:3])[1].get(), before)
