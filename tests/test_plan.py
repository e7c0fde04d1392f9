"""The planner: fusion, sharing, order, buffers; the Program's cost."""

from __future__ import annotations

import numpy as np
import pytest

from fastbp import MLP, backends, graph, optim
from fastbp.plan import plan
from fastbp.program import place

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
    program = plan({"a": (x * y).exp() + (x * y).exp()})
    assert [i.code for i in program.instructions] == ["mul", "exp", "add"]


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


def test_buffers_that_live_at_the_same_time_do_not_overlap():
    program = MLP([20, 30, 30, 30, 5], activation="gelu").program("gradient")
    for n in (1, 7, 64):
        offsets, total = place(program, n, 16)
        spans = {i: (o, o + program.size(i, n)) for i, o in offsets.items()}
        for i, (first, last) in program.lifetimes.items():
            assert spans[i][1] <= total
            for j, (other_first, other_last) in program.lifetimes.items():
                if i < j and first <= other_last and other_first <= last:
                    assert spans[i][1] <= spans[j][0] or spans[j][1] <= spans[i][0]


def test_memory_is_used_again():
    """The workspace of a deep network's forward is two layers, not all."""
    program = MLP([64] * 21).program("forward")
    assert place(program, 100, 16)[1] <= 2 * 64 * 100


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
    assert program.bytes(10, 4) == 4 * ((50 + 15 + 30) + (30 + 30))


def test_explain_names_every_instruction():
    text = MLP([5, 4, 3], activation="gelu").program("gradient").explain(10)
    assert len(text.splitlines()) == len(MLP([5, 4, 3], activation="gelu").program("gradient").instructions)
    assert "matmul add gelu" in text
    assert "X(n, 5)" in text
