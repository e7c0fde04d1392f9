"""Products by cuBLAS, whose place its twin takes in Numba's simulator: operands, copies, epilogues, addresses."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_cases import CASES, LIMITS, judge, typed
from test_machine import on_device, order, steps_on_both  # noqa: F401

from fastbp import MLP, checks, graph, optim
from fastbp.backends.cuda import binding, blas
from fastbp.backends.cuda.executable import CudaExecutable
from fastbp.plan import plan

WITH_PRODUCTS = [c for c in CASES.values() if c.name.startswith(("product", "layer", "sums", "matmul"))]


@pytest.fixture(autouse=True)
def every_product(monkeypatch):
    """However small."""
    monkeypatch.setattr(binding, "OWN_K", 0)
    monkeypatch.setattr(binding, "NARROW", 0)


def kernels(run, n):
    return [one.kernel for one in run.bound(n).bound.launches]


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("case", WITH_PRODUCTS, ids=str)
def test_case(case, dtype):
    program, values, n = case.make()
    values = {name: v for name, v in typed(values, dtype).items() if name in program.inputs}
    run = CudaExecutable(program, dtype)
    verdict = judge(case, {name: v.get() for name, v in run.run(on_device(values), n).items()}, dtype)
    assert verdict.right, verdict
    shapes = [(i, program) for i in program.instructions if i.op == "matmul"]
    full = [i for i, p in shapes if n and p.buffers[i.ins[0]].shape[0 if i.ta else 1].at(n)]
    assert kernels(run, n).count("cublas") == len(full)
    assert not any(name.startswith("product") for name in kernels(run, n)) or not full


@pytest.mark.parametrize("m", [1, 3])
def test_bf16_operands_are_rounded_once(m):
    """X for the layer and for dW, W for the layer and for dX, dZ for both: three copies, and the products of those."""
    x, w, g = graph.input("x", 5), graph.param("w", (5, m)), graph.input("g", m)
    dw, dx = graph.gradients(((x @ w) * g).sum(), [w, x])
    program = plan({"a": x @ w, "dw": dw, "dx": dx})
    rng = np.random.default_rng(0)
    values = {"x": rng.normal(size=(7, 5)), "w": rng.normal(size=(5, m)), "g": rng.normal(size=(7, m))}
    run = CudaExecutable(program, "float32", "bf16")
    found = run.run(on_device(typed(values, "float32")), 7)
    assert kernels(run, 7).count("rounded") == 3
    rounded = {name: as_bf16(v) for name, v in typed(values, "float32").items()}
    x, w, g = (rounded[name].astype(np.float64) for name in "xwg")
    for name, expected in (("a", x @ w), ("dw", x.T @ g), ("dx", g @ w.T)):
        np.testing.assert_allclose(found[name].get(), expected, rtol=1e-5, atol=1e-6)


def as_bf16(x):
    """The nearest bf16, ties to even, as float32."""
    words = x.view(np.uint32)
    return ((words + 0x7FFF + (words >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("size", [1, 3, 4, 1023])
def test_rounding(size):
    """Ties, infinities, NaN, the largest, and subnormal numbers."""
    words = np.random.default_rng(0).integers(0, 1 << 32, size, dtype=np.uint64).astype(np.uint32)
    special = np.array([0x3F808000, 0x3F818000, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 0x00000001, 0x80008000], np.uint32)
    words[: len(special)] = special[:size]
    x = words.view(np.float32)[None, :].copy()
    x[0, -1] = np.nan if size > 4 else x[0, -1]
    program = plan({"y": graph.param("x", (1, size)).matmul(graph.param("one", (1, 1)), ta=True)})
    found = CudaExecutable(program, "float32", "bf16").run(on_device({"x": x, "one": np.ones((1, 1), np.float32)}), 1)
    np.testing.assert_array_equal(found["y"].get().ravel(), np.where(np.isnan(x), np.nan, as_bf16(x)).ravel())


@pytest.mark.parametrize("most_copied", [0, 1 << 20])
@pytest.mark.parametrize("gathered", [False, True])
def test_steps(most_copied, gathered, monkeypatch):
    """Inputs that move from step to step: copied to where a graph expects them, or reached where they are."""
    monkeypatch.setattr(binding, "MOST_COPIED", most_copied)
    rng = np.random.default_rng(0)
    X, T = rng.normal(size=(11, 4)), rng.normal(size=(11, 2))
    found = []
    for backend in ("numpy", "cuda"):
        net = MLP([4, 4, 2], activation="tanh", loss="mse", backend=backend, dtype="float64", seed=0)
        history = net.fit(X, T, epochs=2, batch_size=4, shuffle=gathered, optimizer=optim.Adam(0.01))
        theta = net.theta if backend == "numpy" else net.theta.get()
        found.append(np.concatenate([history.loss, theta]))
        if backend == "cuda":
            bound = [b.bound for run in net._executables.values() for b in run.inside._bound.values()]
            steps = [b for b in bound if any(one.kernel == "cublas" for one in b.launches)]
            assert steps
            assert all(b.captured == (gathered or most_copied > 0) for b in steps)
    np.testing.assert_allclose(*found, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_a_network_in_precision(precision):
    rng = np.random.default_rng(0)
    X, T = rng.normal(size=(9, 5)), rng.normal(size=(9, 3))
    found = []
    for backend in ("numpy", "cuda"):
        net = MLP([5, 6, 3], loss="mse", backend=backend, precision=precision, seed=0)
        net.fit(X, T, epochs=2, batch_size=4, optimizer=optim.SGD(0.1))
        found.append(net.theta if backend == "numpy" else net.theta.get())
    (bound,) = (b.bound for run in net._executables.values() for n, b in run.inside._bound.items() if n == 4)
    names = [one.kernel for one in bound.launches]
    assert "cublas" in names
    if precision == "bf16":  # activations and gradients are rounded where they are made
        assert (names.count("rounded"), names.count("combine_rounded")) == (4, 2)
    assert checks.relative_error(found[1], found[0]) <= 3e-2


@pytest.mark.parametrize("every", [True, False], ids=["cublas", "own"])
def test_a_result_of_every_step_that_is_an_operand(every, monkeypatch):
    """It moves from step to step, as inputs do."""
    if not every:
        monkeypatch.setattr(blas, "available", lambda: False)
    rng = np.random.default_rng(0)
    x, w, v = graph.input("x", 3), graph.param("w", (3, 4)), graph.param("v", (4, 2))
    h = (x @ w).tanh()
    run = CudaExecutable(plan({"h": h, "y": h @ v}), "float64")
    values = {"x": rng.normal(size=(4, 3)), "w": rng.normal(size=(3, 4)), "v": rng.normal(size=(4, 2))}
    found = run.run_steps(on_device(values), np.array([[2, 0, 0], [2, 2, 1]]))
    expected = np.tanh(values["x"] @ values["w"])
    np.testing.assert_allclose(found["h"].get().reshape(4, 4), expected, rtol=1e-13)
    np.testing.assert_allclose(found["y"].get().reshape(4, 2), expected @ values["v"], rtol=1e-13)
    assert run.bound(2).bound.captured != every


def test_inputs_whose_rows_begin_anywhere_are_copied(monkeypatch):
    """However large: cuBLAS chooses by alignment, and a batch may begin at any row."""
    monkeypatch.setattr(binding, "MOST_COPIED", 0)
    for cols, copied in ((3, True), (4, False)):
        run = CudaExecutable(plan({"y": graph.input("x", cols) @ graph.param("w", (cols, 2))}), "float32")
        assert ("move" in kernels(run, 5)) is copied


def test_a_graph_with_other_addresses_is_forgotten(monkeypatch):
    """What is fixed in it: the workspace, and where parameters and results lie."""
    monkeypatch.setattr(binding, "MOST_COPIED", 1 << 20)
    x, w = graph.input("x", 3), graph.param("w", (3, 2))
    run = CudaExecutable(plan({"y": (x @ w).sum()}), "float64")
    values = {"x": np.ones((4, 3)), "w": np.ones((3, 2))}
    device = on_device(values)
    run.run_steps(device, np.array([[4, 0, 0]]))
    here = run.bound(4)
    here.graph = object()
    run._forget_if_moved(here, run._where(here.bound.workspace, device, fake_outputs(run)))
    assert here.graph is not None
    other = device | {"w": on_device(values)["w"]}
    run._forget_if_moved(here, run._where(here.bound.workspace, other, fake_outputs(run)))
    assert here.graph is None


def fake_outputs(run):
    import fake_cupy

    return {index: fake_cupy.zeros((1, 1, 1)) for _, index in run._results}


def test_without_cublas(monkeypatch):
    monkeypatch.setattr(blas, "available", lambda: False)
    run = CudaExecutable(plan({"y": graph.input("x", 100) @ graph.param("w", (100, 2))}), "float64")
    assert kernels(run, 3) == ["product_tiny"]
