"""Results that lie where an operand lay: which may, that they do, and that nothing is overwritten too soon."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fastbp import MLP, backends, graph, optim
from fastbp.backends.cpu.in_place import taken_over
from fastbp.plan import plan
from fastbp.program import place

RNG = np.random.default_rng(0)
X, R = graph.input("x", 6), graph.param("r", (1, 6))
W = graph.param("w", (6, 6))
Z = X @ W  # memory that is free when it has been read


def after(value, **others):
    """A product makes ``value`` a matrix that stays inside."""
    return {"y": value @ W, **others}


MAY = {
    "one step": after((Z - X).exp()),
    "several": after(((Z - X) * R).tanh() * 2.0),
    "beside a sum": after((Z.sin() - X) * 0.5, loss=(Z.sin() - X).square().sum()),
    "beside sums of rows": after((Z * R).exp() * X, sums=(Z * R).exp().sum(0)),
    "with a multiply-add": after((Z * X + R).sin() + 1.0),
    "a chain after another": after(((Z - X).exp() - ((Z - X).exp()).sum(1)).tanh() * X),
}
MAY_NOT = {
    "the operand is reduced as it is": after((Z - X).exp(), s=Z.sum()),
    "the operand is read later": after((Z - X).exp(), other=((Z - X).exp().sin() * Z).sum(1)),
    "a later product reads it": after((Z - X).exp(), other=Z @ W),
    "it came in": after((X - R).exp()),
    "it goes out": {"y": after((Z - X).exp())["y"], "z": Z},
}


def agree(outputs, n, dtype):
    program = plan(outputs)
    values = {"x": RNG.normal(size=(n, 6)), "w": RNG.normal(size=(6, 6)) / 3, "r": RNG.normal(size=(1, 6))}
    values = {name: value.astype(dtype) for name, value in values.items()}
    expected = backends.executable(program, "numpy", dtype).run(values, n)
    got = backends.executable(program, "cpu", dtype).run(values, n)
    for name, value in expected.items():
        tolerance = {"float32": 1e-4, "float64": 1e-12}[dtype] * max(1.0, np.abs(value).max(initial=0.0))
        np.testing.assert_allclose(got[name], value, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("case", MAY)
@pytest.mark.parametrize("n", [1, 7, 1000, 9000])
def test_a_result_may_take_its_operands_memory(case, n, dtype):
    assert taken_over(plan(MAY[case]))
    agree(MAY[case], n, dtype)


@pytest.mark.parametrize("case", MAY_NOT)
@pytest.mark.parametrize("n", [1, 7, 1000, 9000])
def test_an_operand_that_is_still_needed_stays(case, n, dtype):
    assert not taken_over(plan(MAY_NOT[case]))
    agree(MAY_NOT[case], n, dtype)


def test_a_squared_error_lies_where_the_outputs_lay():
    net = MLP([30, 200, 300], loss="half_sse")
    program = net.training_step(("X", "T"), optim.SGD(), False).program
    (pair,) = taken_over(program).items()
    offsets, total = place(program, 1000, 4, 64, taken_over={pair[0]: pair[1]})
    assert offsets[pair[0]] == offsets[pair[1]]
    assert total < place(program, 1000, 4, 64)[1]


@pytest.mark.parametrize("outputs", [*MAY.values(), *MAY_NOT.values()], ids=[*MAY, *MAY_NOT])
def test_what_lives_meanwhile_is_elsewhere(outputs):
    program = plan(outputs)
    taken = taken_over(program)
    offsets, total = place(program, 100, 4, 64, taken_over=taken)
    for i, (first, last) in program.lifetimes.items():
        for j, (other_first, other_last) in program.lifetimes.items():
            meet = first <= other_last and other_first <= last and j not in (taken.get(i), i) and taken.get(j) != i
            if meet:
                end, other_end = (offsets[k] + 4 * program.size(k, 100) for k in (i, j))
                assert end <= offsets[j] or other_end <= offsets[i]
        assert offsets[i] + 4 * program.size(i, 100) <= total


@pytest.mark.parametrize("order", list(itertools.permutations(("loss", "gradient", "other"))), ids="-".join)
def test_a_squared_error_reads_its_operands_when_all_of_it_is_done(order, dtype):
    """Another result of the same chain must not lie over one of them before: it did."""
    values = {"x": RNG.normal(size=(300, 6)), "w": RNG.normal(size=(6, 6)), "v": RNG.normal(size=(6, 6)), "c": [[0.5]]}
    v, c = graph.param("v", (6, 6)), graph.param("c", (1, 1))
    d = Z - X @ v
    parts = {"loss": lambda: d.square().sum(), "gradient": lambda: (d * c) @ W, "other": lambda: Z.tanh() @ W}
    outputs = {name: parts[name]() for name in order}
    given = {name: np.ascontiguousarray(value, dtype) for name, value in values.items()}
    got = backends.executable(plan(outputs), "cpu", dtype).run(given, 300)
    exact = {name: value.astype(np.float64) for name, value in given.items()}
    z = exact["x"] @ exact["w"]
    difference = z - exact["x"] @ exact["v"]
    expected = {
        "loss": (difference**2).sum(keepdims=True),
        "gradient": 0.5 * difference @ exact["w"],
        "other": np.tanh(z) @ exact["w"],
    }
    for name in order:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-4, atol=1e-4)
