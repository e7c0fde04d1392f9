"""The table of cases on a card: every operation, product and chain, all precisions, twice to the same bits."""

from __future__ import annotations

import warnings

import cupy
import numpy as np
import pytest
from cuda_cases import CASES, LIMITS, LIMITS_OF, judge, typed

import fastbp
from fastbp import backends, graph, optim, scalars
from fastbp.backends.cuda import binding, blas
from fastbp.backends.cuda.executable import CudaExecutable
from fastbp.backends.cuda.launching import launch
from fastbp.plan import plan

ONE_PRODUCT = [case for case in CASES.values() if case.one_product]
WITH_PRODUCTS = [case for case in CASES.values() if case.name.startswith(("product", "layer", "sums"))]
RNG = np.random.default_rng(0)


def on_device(values):
    return {name: cupy.asarray(v) for name, v in values.items()}


def check(case, dtype, precision, record_property):
    """Run it twice; note the error before it is judged."""
    for name, value in (("case", case.name), ("dtype", dtype), ("precision", precision)):
        record_property(name, value)
    program, values, n = case.make()
    values = on_device({name: v for name, v in typed(values, dtype).items() if name in program.inputs})
    run = CudaExecutable(program, dtype, precision)
    found, again = ({name: v.get() for name, v in run.run(values, n).items()} for _ in range(2))
    verdict = judge(case, found, dtype, precision)
    record_property("error", verdict.error)
    record_property("bound", verdict.bound)
    assert verdict.right, verdict
    for name, value in found.items():
        np.testing.assert_array_equal(again[name], value, err_msg=f"{name} of the second run")
    return run, n


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("case", CASES.values(), ids=str)
def test_case(case, dtype, record_property):
    check(case, dtype, "highest", record_property)


@pytest.fixture
def own_kernels(monkeypatch):
    """As where there is no cuBLAS."""
    monkeypatch.setattr(blas, "available", lambda: False)


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("case", WITH_PRODUCTS, ids=str)
def test_case_by_own_kernels(case, dtype, record_property, own_kernels):
    check(case, dtype, "highest", record_property)


@pytest.mark.parametrize("precision", LIMITS_OF)
@pytest.mark.parametrize("case", ONE_PRODUCT, ids=str)
def test_case_on_tensor_cores(case, precision, record_property, own_kernels):
    run, n = check(case, "float32", precision, record_property)
    assert any(one.kernel.startswith(precision) for one in run.bound(n).bound.launches)


@pytest.mark.parametrize("precision", LIMITS_OF)
@pytest.mark.parametrize("case", ONE_PRODUCT, ids=str)
def test_case_by_cublas(case, precision, record_property, monkeypatch):
    monkeypatch.setattr(binding, "OWN_K", 0)
    monkeypatch.setattr(binding, "NARROW", 0)
    run, n = check(case, "float32", precision, record_property)
    assert sum(one.kernel == "cublas" for one in run.bound(n).bound.launches) == 3


@pytest.mark.parametrize("widths", [(72, 136, 80), (7, 13, 5)], ids=str)
@pytest.mark.parametrize("precision", ["highest", *LIMITS_OF])
def test_layers_by_cublas(precision, widths, monkeypatch):
    """Two of them and all gradients: what one makes is the next one's operand, in bf16 rounded where it is made."""
    monkeypatch.setattr(binding, "OWN_K", 0)
    monkeypatch.setattr(binding, "NARROW", 0)
    x, w, v = graph.input("x", widths[0]), graph.param("w", widths[:2]), graph.param("v", widths[1:])
    loss = ((x @ w).tanh() @ v).square().sum()
    program = plan({"loss": loss, **{f"d{k}": g for k, g in enumerate(graph.gradients(loss, [w, v, x]))}})
    values = {"x": RNG.normal(size=(19, widths[0]))}
    values |= {"w": RNG.normal(size=widths[:2]) / widths[0] ** 0.5, "v": RNG.normal(size=widths[1:]) / widths[1] ** 0.5}
    exact = backends.executable(program, "numpy", "float64").run(values, 19)
    run = CudaExecutable(program, "float32", precision)
    found = run.run(on_device(typed(values, "float32")), 19)
    for name, expected in exact.items():
        assert fastbp.checks.relative_error(found[name].get(), expected) <= 3 * LIMITS_OF.get(precision, 1e-6)
    kernels = [one.kernel for one in run.bound(19).bound.launches]
    assert kernels.count("cublas") == 6
    assert ("combine_rounded" in kernels) == (precision == "bf16")


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("activation", scalars.ACTIVATIONS)
def test_dense_and_its_backward(activation, dtype, record_property):
    x, w, b, g = (RNG.normal(size=shape).astype(dtype) for shape in ((257, 131), (131, 67), (67,), (257, 67)))
    expected, kept = fastbp.dense(*(v.astype(np.float64) for v in (x, w, b)), activation, save=True, backend="numpy")
    wide = [v.astype(np.float64) for v in (g, x, w)]
    back = fastbp.dense_backward(*wide, kept, activation, backend="numpy")
    xd, wd, bd, gd = (cupy.asarray(v) for v in (x, w, b, g))
    got, saved = fastbp.dense(xd, wd, bd, activation, save=True)
    errors = [fastbp.checks.relative_error(got.get(), expected)]
    for one, other in zip(fastbp.dense_backward(gd, xd, wd, saved, activation), back, strict=True):
        errors.append(fastbp.checks.relative_error(one.get(), other))
    bound = 2e-6 if dtype == "float32" else 1e-13
    for name, value in (("case", f"dense {activation}"), ("dtype", dtype), ("error", max(errors)), ("bound", bound)):
        record_property(name, value)
    assert max(errors) <= bound


@pytest.mark.parametrize("rule", optim.OPTIMIZERS)
def test_updates(rule):
    optimizer = optim.OPTIMIZERS[rule](clip_norm=1.0, clip_value=0.5)
    theta, gradient = RNG.normal(size=(2, 100_003))
    t, g = cupy.asarray(theta), cupy.asarray(gradient)
    mine, theirs = optimizer.init(t), optimizer.init(theta)
    for _ in range(3):
        optimizer.update(t, g, mine)
        optimizer.update(theta, gradient, theirs, backend="numpy")
    np.testing.assert_allclose(t.get(), theta, rtol=1e-12, atol=1e-14)
    for a, b in zip(mine.vectors, theirs.vectors, strict=True):
        np.testing.assert_allclose(a.get(), b, rtol=1e-12, atol=1e-14)


def test_a_plain_function_on_the_device():
    def loss(w, x, labels):
        return -fastbp.mean(fastbp.log_softmax(fastbp.tanh(x @ w))[np.arange(len(x)), labels])

    w, x, labels = RNG.normal(size=(33, 7)), RNG.normal(size=(515, 33)), RNG.integers(0, 7, 515)
    expected = fastbp.value_and_grad(loss, backend="numpy")(w, x, labels)
    value, gradient = fastbp.value_and_grad(loss)(*(cupy.asarray(v) for v in (w, x, labels)))
    assert float(value) == pytest.approx(float(expected[0]), rel=1e-12)
    np.testing.assert_allclose(gradient.get(), expected[1], rtol=1e-10, atol=1e-15)


def test_a_launch_warns_of_nothing():
    """Numba thinks that few blocks are a mistake."""
    x = cupy.asarray(np.ones((1, 1)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = CudaExecutable(plan({"y": graph.input("x", 1) * 2.0}), "float64")
        assert float(run.run({"x": x}, 1)["y"][0, 0]) == 2.0
        here, addresses = run.bound(1), run._addresses
        for one in here.bound.launches:  # with a number of threads that nothing else has taken before
            launch(one.kernel, "float64", 3, 32, one.shared, here.words.data.ptr + 8 * one.row, addresses.data.ptr)
    cupy.cuda.get_current_stream().synchronize()
