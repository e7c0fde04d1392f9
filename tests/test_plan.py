"""The planner: fusion, sharing, order, buffers; the Program's cost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastbp import MLP, backends, graph, nodes, optim
from fastbp.errors import GraphError
from fastbp.plan import plan
from fastbp.program import _in_order, _largest_first, place

RNG = np.random.default_rng(0)


def codes(program):
    return [(i.op, i.code, i.then) for i in program.instructions]


def test_a_layer_is_one_instruction_forward():
    program = MLP([5, 4, 3], activation="sigmoid", output="tanh").program("forward")
    assert codes(program) == [("matmul", "add_sigmoid", ""), ("matmul", "add_tanh", "")]


def test_the_derivative_is_fused_into_the_product_that_makes_it():
    program = MLP([5, 4, 3], activation="sigmoid", output="identity").program("gradient")
    products = [(i.code, i.ta, i.tb) for i in program.instructions if i.op == "matmul"]
    forward, output, *backward = products
    assert (forward, output) == (("add_sigmoid", False, False), ("add", False, False))
    assert sorted(backward) == [("", True, False), ("", True, False), ("mul_sigmoid_grad", False, True)]


def test_no_gradient_of_the_input_is_computed():
    """Backward costs 2ΣP - P₁: the first layer makes no dX."""
    net = MLP([784, 30, 10], activation="sigmoid")
    forward, both = net.program("forward"), net.program("gradient")
    products = [2 * 64 * 784 * 30, 2 * 64 * 30 * 10]
    assert forward.product_operations(64) == sum(products)
    assert both.product_operations(64) == 3 * sum(products) - products[0]


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_where_the_derivative_needs_z_one_product_stores_both(activation):
    program = MLP([5, 4, 3], activation=activation).program("gradient")
    assert codes(program)[0] == ("matmul", "add", activation)


def test_equal_subexpressions_are_computed_once():
    x, y = graph.input("x", 3), graph.input("y", 3)
    (chain,) = plan({"a": (x * y).exp() + (x * y).exp()}).instructions
    assert [step.code for step in chain.steps] == ["mul", "exp", "add"]


def test_nothing_is_computed_that_nobody_reads():
    x = graph.input("x", 3)
    x.exp().log()
    assert [i.code for i in plan({"a": x * 2.0}).instructions] == ["mul"]


def test_a_value_that_goes_out_is_not_fused_away(backend):
    x, w, b = graph.input("x", 3), graph.param("w", (3, 2)), graph.param("b", (1, 2))
    product = x @ w
    z = product + b
    outputs = {"p": product, "z": z, "a": z.sigmoid(), "again": z, "x": x, "b": b}
    values = {"x": RNG.normal(size=(4, 3)), "w": RNG.normal(size=(3, 2)), "b": RNG.normal(size=(1, 2))}
    got = backends.executable(plan(outputs), backend, "float64").run(values, 4)
    expected = values["x"] @ values["w"]
    np.testing.assert_allclose(got["p"], expected, rtol=1e-14)
    np.testing.assert_allclose(got["z"], expected + values["b"], rtol=1e-14)
    np.testing.assert_allclose(got["again"], got["z"], rtol=0)
    np.testing.assert_allclose(got["a"], 1 / (1 + np.exp(-got["z"])), rtol=1e-14)
    np.testing.assert_array_equal(got["x"], values["x"])
    assert not np.shares_memory(got["x"], values["x"])
    assert not np.shares_memory(got["b"], values["b"])


def test_packed_parts(backend):
    """Computed in place, copied where they are inputs, and usable as outputs of their own."""
    x, w = graph.input("x", 3), graph.param("w", (2, 2))
    total = x.sum(axis=0)
    outputs = {"flat": graph.pack([total, w, total, total * 2.0]), "total": total}
    values = {"x": RNG.normal(size=(4, 3)), "w": RNG.normal(size=(2, 2))}
    got = backends.executable(plan(outputs), backend, "float64").run(values, 4)
    s = values["x"].sum(axis=0)
    np.testing.assert_allclose(got["flat"][0], np.concatenate([s, values["w"].ravel(), s, 2 * s]), rtol=1e-14)
    np.testing.assert_allclose(got["total"][0], s, rtol=1e-14)


PLACED = [
    MLP([20, 30, 30, 30, 5], activation="gelu").program("gradient"),
    *(
        MLP(layers, loss="cross_entropy").program("gradient", batch).gathering(batch)
        for layers in ([3, 4, 3], [64, 4, 3], [8, 16, 10])
        for batch in (["X", "labels"], ["X", "labels", "weight"])
    ),
]


@pytest.mark.parametrize("program", PLACED)
@pytest.mark.parametrize("itemsize", [4, 8])
def test_buffers_that_live_at_the_same_time_do_not_overlap(program, itemsize):
    """In bytes: labels have 8 each, whatever a float has."""
    for n in (1, 2, 7, 10, 64, 100):
        offsets, total = place(program, n, itemsize, 64)
        spans = {}
        for i, offset in offsets.items():
            size = program.size(i, n) * (8 if program.buffers[i].dtype == "int" else itemsize)
            spans[i] = (offset, offset + size)
        for i, (first, last) in program.lifetimes.items():
            assert spans[i][1] <= total
            for j, (other_first, other_last) in program.lifetimes.items():
                if i < j and first <= other_last and other_first <= last:
                    assert spans[i][1] <= spans[j][0] or spans[j][1] <= spans[i][0]


def test_memory_is_used_again():
    """The workspace of a deep network's forward is two layers, not all."""
    program = MLP([64] * 21).program("forward")
    assert place(program, 100, 4, 64)[1] <= 2 * 64 * 100 * 4


def test_the_update_comes_after_all_that_reads_theta():
    net = MLP([3, 4, 4, 2])
    step = net.training_step(("X", "T"), optim.Adam(clip_norm=1.0), True)
    instructions = step.program.instructions
    assert instructions[-1].op == "update"
    assert [i.op for i in instructions].count("update") == 1
    assert [i.op for i in instructions[:2]] == ["gather", "gather"]


def test_operations_and_bytes():
    x, w = graph.input("x", 5), graph.param("w", (5, 3))
    program = plan({"y": (x @ w).relu()})
    assert program.operations(10) == 2 * 10 * 5 * 3 + 2 * 30  # relu: a comparison and a choice
    assert program.bytes(10, 4) == 4 * (50 + 15 + 30)


def test_an_embedding_reads_the_rows_that_it_takes():
    table, index = graph.param("table", (5000, 64)), graph.input("index", 1, dtype="int")
    program = plan({"y": table.take(index)})
    assert program.bytes(10, 4) == 2 * 4 * 10 * 64


def test_explain_names_every_instruction():
    program = MLP([5, 4, 3], activation="gelu").program("gradient")
    text = program.explain(10)
    lines = [line for line in text.splitlines() if not line.startswith(" ")]
    assert len(lines) == len(program.instructions) + 1
    inside = [line for line in text.splitlines() if line.startswith(" ")]
    assert len(inside) == sum(len(i.steps) + sum(bool(r.how) for r in i.results) for i in program.instructions)
    assert f"workspace {place(program, 10, 4, 64)[1]:,} bytes" in lines[-1]
    assert "matmul add gelu" in text
    assert "X(n, 5)" in text


def test_views_of_views_and_of_packed_parts(backend):
    theta = graph.param("theta", (1, 12))
    inner = graph.view(graph.view(theta, 2, 1, 8), 3, 2, 2)
    x = graph.input("x", 3)
    packed = graph.pack([x.sum(axis=0), x.sum()])
    outputs = {"inner": inner * 1.0, "part": graph.view(packed, 1, 1, 3) * 2.0, "x": x.sum()}
    values = {"theta": np.arange(12.0)[None], "x": RNG.normal(size=(5, 3))}
    got = backends.executable(plan(outputs), backend, "float64").run(values, 5)
    np.testing.assert_array_equal(got["inner"], [[5, 6], [7, 8]])
    s = values["x"].sum(axis=0)
    np.testing.assert_allclose(got["part"][0], 2 * np.array([s[1], s[2], s.sum()]), rtol=1e-14)


def _sgd(theta, gradient):
    return optim.SGD().graph(theta, gradient)


def test_a_gradient_that_goes_out_is_written_though_an_update_uses_it(backend):
    x, theta = graph.input("x", 3), graph.param("theta", (1, 6))
    w = graph.view(theta, 0, 3, 2)
    (dw,) = graph.gradients((x @ w).tanh().sum(), [w])
    packed = graph.pack([dw])
    program = plan({"g": packed, "theta": _sgd(theta, packed)})
    values = {"x": RNG.normal(size=(4, 3)), "theta": RNG.normal(size=(1, 6)), "hyper": np.array([[0.1]])}
    before = values["theta"].copy()
    got = backends.executable(program, backend, "float64").run(values, 4)["g"]
    z = values["x"] @ before.reshape(3, 2)
    expected = (values["x"].T @ (1 - np.tanh(z) ** 2)).reshape(1, 6)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    np.testing.assert_allclose(values["theta"], before - 0.1 * expected, rtol=1e-12)


def test_what_reads_a_parameter_late_reads_the_old_one(backend):
    """A view of a view of theta, taken after the gradient: the fused update must not come before it."""
    x, theta = graph.input("x", 3), graph.param("theta", (1, 6))
    w = graph.view(theta, 0, 3, 2)
    (dw,) = graph.gradients((x @ w).tanh().sum(), [w])
    update = _sgd(theta, graph.pack([dw]))
    late = graph.view(graph.view(theta, 0, 1, 4), 1, 1, 2) * 2.0
    values = {"x": RNG.normal(size=(4, 3)), "theta": RNG.normal(size=(1, 6)), "hyper": np.array([[0.1]])}
    before = values["theta"].copy()
    got = backends.executable(plan({"theta": update, "late": late}), backend, "float64").run(values, 4)["late"]
    np.testing.assert_array_equal(got, 2 * before[:, 1:3])
    assert not np.array_equal(values["theta"], before)


def test_updates_are_last_and_alone():
    theta, other = graph.param("theta", (1, 6)), graph.param("other", (1, 6))
    update = _sgd(theta, other)
    with pytest.raises(GraphError, match="nothing can read it"):
        update * 2.0
    with pytest.raises(GraphError, match="two updates share a vector"):
        plan({"theta": update, "other": nodes.update("sgd", other, theta, [], update.inputs[-1])})


def test_constants_that_differ_in_sign_alone_stay_apart(backend):
    x = graph.input("x", 1)
    outputs = {"plus": x / graph.constant(0.0), "minus": x / graph.constant(-0.0)}
    got = backends.executable(plan(outputs), backend, "float64").run({"x": np.ones((1, 1))}, 1)
    assert got["plus"][0, 0] == np.inf
    assert got["minus"][0, 0] == -np.inf


def test_a_factor_that_is_a_function_itself_stays():
    """c f'(y) is one function already: what reads it as a factor must not take c out of it."""
    x = graph.input("x", 3)
    y = x.tanh()
    out = (y.tanh_grad() * 2.0) * x.sigmoid().sigmoid_grad()
    values = np.linspace(-1.0, 1.0, 6).reshape(2, 3)
    s = 1 / (1 + np.exp(-values))
    for backend in ("cpu", "numpy"):
        got = graph.compile(out, backend=backend)(x=values)
        np.testing.assert_allclose(got, 2 * (1 - np.tanh(values) ** 2) * s * (1 - s), rtol=1e-13)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 30), st.integers(0, 9)), max_size=40), st.booleans())
def test_places_do_not_overlap(buffers, many):
    """(size, first use, length of life) each; of many buffers each is placed when it is needed."""
    sizes = {k: 64 * size for k, (size, _, _) in enumerate(buffers)}
    lives = {k: (first, first + length) for k, (_, first, length) in enumerate(buffers)}
    offsets, total = (_in_order if many else _largest_first)(sizes, lives)
    for a in sizes:
        assert 0 <= offsets[a] <= offsets[a] + sizes[a] <= total <= sum(sizes.values())
        for b in range(a):
            meet = sizes[a] and sizes[b] and lives[a][0] <= lives[b][1] and lives[b][0] <= lives[a][1]
            assert not meet or offsets[a] + sizes[a] <= offsets[b] or offsets[b] + sizes[b] <= offsets[a]
