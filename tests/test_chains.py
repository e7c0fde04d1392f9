"""Chains: which elementwise work is done in one pass, and that the machines agree on it over shapes and broadcasts."""

from __future__ import annotations

import numpy as np
import pytest

import fastbp
from fastbp import backends, graph
from fastbp.backends.cpu.chain_table import MOST
from fastbp.plan import plan

RNG = np.random.default_rng(0)
ROWS = (0, 1, 2, 7, 100, 5000)
COLUMNS = (1, 3, 10, MOST // 2, MOST // 2 + 1, 2 * MOST + 5)
SIZES = [(n, d) for n in ROWS for d in COLUMNS if n * d < 300_000] + [(3, 70_001)]


def steps(outputs):
    """The steps and reductions of every chain, and the names of the other instructions."""
    found = []
    for i in plan(outputs).instructions:
        codes = [s.code for s in i.steps] + [r.how for r in i.results if r.how]
        found.append(codes if i.op == "chain" else " ".join(filter(None, (i.op, i.code, i.then))))
    return found


def agree(outputs, values, n, dtype="float64"):
    program = plan(outputs)
    tolerance = {"float32": 2e-5, "float64": 1e-13}[dtype]
    values = {name: v.astype(dtype) if v.dtype.kind == "f" else v for name, v in values.items()}
    expected = backends.executable(program, "numpy", dtype).run(values, n)
    got = backends.executable(program, "cpu", dtype).run(values, n)
    for name, value in expected.items():
        assert got[name].shape == value.shape
        scale = max(1.0, np.abs(value[np.isfinite(value)]).max(initial=0.0))
        np.testing.assert_allclose(got[name] / scale, value / scale, rtol=0, atol=tolerance, err_msg=name)


# ---- what is a chain -----------------------------------------------------------------------------------------------

X, Y, W = graph.input("x", 3), graph.input("y", 3), graph.param("w", (3, 3))
C, R = graph.input("c", 1), graph.param("r", (1, 3))


def test_a_loss_and_its_gradient_are_one_pass():
    loss = ((X - Y).square() * 0.5).exp().sum()
    (dx,) = graph.gradients(loss, [X])
    (chain,) = steps({"loss": loss, "dx": dx})
    assert chain.count("exp") == 1
    assert chain[-1] == "sum"


def test_what_one_chain_needs_of_another_is_computed_before():
    """The sum that a softmax divides by comes between two chains."""
    powers = X.exp()
    found = steps({"p": powers / powers.sum()})
    assert found == [["exp", "sum"], "map div"] or found == [["exp", "sum"], ["div"]]
    assert len(steps({"v": (X - X.mean()).square().mean()})) >= 2


def test_products_and_other_shapes_are_apart():
    z = X @ W
    found = steps({"a": (z.exp() + Y).tanh() * 2.0, "b": (R.exp() + 1.0).sqrt()})
    assert sorted(map(str, found)) == sorted(map(str, ["matmul", ["exp", "add_tanh", "mul"], ["exp", "add", "sqrt"]]))


def test_rows_columns_and_numbers_are_broadcast_inside():
    assert steps({"a": ((X * R + C) * 2.0).tanh()}) == [["mul", "add", "mul", "tanh"]]


def test_a_value_that_only_a_later_chain_reads_is_computed_there():
    late = (X @ W).exp() * X.sqrt()
    found = steps({"a": late + Y})
    assert found == ["matmul", ["exp", "sqrt", "mul", "add"]]


def test_work_that_shares_an_operand_is_one_pass():
    assert steps({"a": X.exp(), "b": X.square().sum(), "c": X.max(0)}) == [["exp", "square", "sum", "max"]]


# ---- that it is right ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "d"), SIZES, ids=str)
def test_all_kinds_of_broadcasts_and_reductions(n, d):
    x, r, c = graph.input("x", d), graph.param("r", (1, d)), graph.input("c", 1)
    y = (x * r + c).tanh()
    z = (y.square() + r) / (c.square() + 1.0)
    outputs = {"y": y, "sum": z.sum(), "rows": (z * y).sum(0), "columns": z.sum(1), "most": z.max(1)}
    outputs |= {"powers": (z - y).exp() * 0.5, "mean": (z * x).mean(0), "count": x.broadcast_to(x.shape).sum(1)}
    if n:
        outputs |= {
            "max": z.max(),
            "max0": z.max(0),
            "lse": x.logsumexp(),
            "lse0": x.logsumexp(0),
            "lse1": z.logsumexp(1),
        }
    values = {"x": RNG.normal(size=(n, d)), "r": RNG.normal(size=(1, d)), "c": RNG.normal(size=(n, 1))}
    agree(outputs, values, n)
    agree(outputs, values, n, "float32")


@pytest.mark.parametrize(("n", "d"), SIZES, ids=str)
def test_one_long_row(n, d):
    x = graph.input("x", d)
    e = x * 2.0 + 1.0
    outputs = {"a": e.exp(), "b": (e * e).sum(), "c": e.square().sum() * 3.0, "d": (x > 0.0).where(e, x)}
    agree(outputs, {"x": RNG.normal(size=(n, d))}, n)


def test_many_values_alive_at_once():
    """More registers than the first-level cache holds blocks of."""
    x = graph.input("x", 1000)
    values = [(x * float(k)).sin() for k in range(1, 90)]
    total = values[0]
    for value in values[1:]:
        total = total * value + value
    loss = total.square().mean()
    agree({"loss": loss, "dx": graph.gradients(loss, [x])[0]}, {"x": RNG.normal(size=(7, 1000))}, 7)


def test_a_very_long_chain():
    x = graph.input("x", 2)
    node = x
    for _ in range(10_000):
        node = node * 0.5 + x
    program = plan({"y": node})
    (chain,) = program.instructions
    assert len(chain.steps) == 20_000
    got = backends.executable(program, "cpu", "float64").run({"x": np.array([[1.0, 3.0]])}, 1)
    np.testing.assert_allclose(got["y"], [[2.0, 6.0]], rtol=1e-15)


def test_sums_are_the_same_with_and_without_what_is_done_besides(dtype):
    """A loss has the same bits alone and beside its gradient, in blocks of any length."""
    x = graph.input("x", 7)
    loss = (x.square() + 1.0).log().sum()
    (dx,) = graph.gradients(loss, [x])
    for n in (1, 30, 151, 40_001):
        values = {"x": RNG.normal(size=(n, 7)).astype(dtype)}
        alone = backends.executable(plan({"loss": loss}), "cpu", dtype).run(values, n)["loss"]
        beside = backends.executable(plan({"loss": loss, "dx": dx}), "cpu", dtype).run(values, n)["loss"]
        np.testing.assert_array_equal(alone, beside)


def test_any_number_of_threads_gives_the_same_bits(dtype):
    x, r = graph.input("x", 5), graph.param("r", (1, 5))
    y = (x * r).sin()
    outputs = {"y": y, "s": y.sum(), "rows": y.sum(0), "columns": y.sum(1), "max": y.max(0)}
    run = backends.executable(plan(outputs), "cpu", dtype)
    values = {"x": RNG.normal(size=(50_000, 5)).astype(dtype), "r": RNG.normal(size=(1, 5)).astype(dtype)}
    before = fastbp.get_num_threads()
    try:
        fastbp.set_num_threads(1)
        alone = run.run(values, 50_000)
        for threads in (2, 3, 4):
            fastbp.set_num_threads(threads)
            for name, value in run.run(values, 50_000).items():
                np.testing.assert_array_equal(value, alone[name])
    finally:
        fastbp.set_num_threads(before)


def test_nan_and_infinities_go_through():
    x = graph.input("x", 4)
    value = np.array([[np.nan, np.inf, -np.inf, 1.0], [-np.inf] * 4, [0.0, -0.0, 1.0, 2.0]])
    outputs = {"max": x.max(1), "lse": x.logsumexp(1), "lse0": x.logsumexp(0), "s": (x * 0.5 + 1.0).sum(1)}
    for backend in ("numpy", "cpu"):
        got = backends.executable(plan(outputs), backend, "float64").run({"x": value}, 3)
        np.testing.assert_array_equal(got["max"][:, 0], [np.nan, -np.inf, 2.0])
        np.testing.assert_array_equal(got["lse"][:2, 0], [np.nan, -np.inf])
        np.testing.assert_array_equal(got["lse0"][0, :2], [np.nan, np.inf])
        np.testing.assert_array_equal(got["s"][:2, 0], [np.nan, -np.inf])


@pytest.mark.parametrize("m", [1, 2, 3, 40])
@pytest.mark.parametrize("n", [0, 1, 5, 3000])
def test_transposed_products_with_one_column_have_their_epilogue(n, m):
    """With an activation, a number, a column, both; and so have those without transpose."""
    x, y, u, v = graph.input("x", m), graph.input("y", 1), graph.param("u", (2, m)), graph.param("v", (2, 1))
    c, b = graph.param("c", (1, 1)), graph.param("b", (m, 1))
    products = {"x": x.matmul(y, ta=True), "u": u.matmul(v, ta=True), "b": b @ c}
    outputs = {f"{k} tanh": p.tanh() for k, p in products.items()}
    outputs |= {f"{k} gelu": (p + c).gelu() for k, p in products.items()}
    outputs |= {f"{k} + c": p + c for k, p in products.items()}
    outputs |= {f"{k} - b": p - b for k, p in products.items()}
    outputs |= {f"{k} + b": (p + b).sigmoid() for k, p in products.items()}
    shapes = {"x": (n, m), "y": (n, 1), "u": (2, m), "v": (2, 1), "c": (1, 1), "b": (m, 1)}
    values = {k: RNG.normal(size=shape) for k, shape in shapes.items()}
    for name, node in outputs.items():  # alone, so that the product is fused
        agree({name: node}, {k: values[k] for k in plan({name: node}).inputs}, n)


def test_two_derivatives_and_a_number():
    """c f'(x) g'(y): c f'(x) is one function already, so its c cannot go into the other."""
    values = {"x": RNG.normal(size=(5, 3)), "y": RNG.normal(size=(5, 3))}
    for product in (X.tanh_grad() * 2.0 * Y.silu_grad(), 2.0 * X.gelu_grad() * (Y.sigmoid_grad() * X.tanh_grad())):
        agree({"product": product}, values, 5)


@pytest.mark.parametrize("n", [1, 2, 4, 5])
@pytest.mark.parametrize("k", [3, 127, 128, 300])
def test_products_with_a_transpose_have_their_bias(n, k):
    """Dot products, of few rows, too."""
    x, w, b = graph.input("x", k), graph.param("w", (40, k)), graph.param("b", (1, 40))
    values = {"x": RNG.normal(size=(n, k)), "w": RNG.normal(size=(40, k)), "b": RNG.normal(size=(1, 40))}
    z = x.matmul(w, tb=True) + b
    for out in (z, z.tanh(), {"z": z, "a": z.gelu()}):
        agree(out if isinstance(out, dict) else {"out": out}, values, n)


@pytest.mark.parametrize("n", [1, 3, 50, 3000])
def test_two_activations_after_a_bias(n):
    """... of which one pass stores both."""
    x, w, b = graph.input("x", 5), graph.param("w", (5, 7)), graph.param("b", (1, 7))
    values = {"x": RNG.normal(size=(n, 5)), "w": RNG.normal(size=(5, 7)), "b": RNG.normal(size=(1, 7)) * 3}
    for z in (x @ w + b, x @ w * b, x @ w + (b + x.sum(1))):
        h = z.tanh()
        agree({"y": h.sigmoid()}, values, n)
        agree({"h": h, "y": h.gelu() * 2.0}, values, n)
