"""Products with few columns on the CPU, dot products among them, against plain NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest

import fastbp
from fastbp import graph, optim
from fastbp.backends.cpu import binding, caches, target
from fastbp.backends.cpu.executable import CpuExecutable
from fastbp.plan import plan

ROWS = [0, 1, 2, 7, 8, 9, 15, 17, 100, 1031]
SUMMANDS = [1, 2, 7, 47, 48, 49, 64, 373, 1009]
LIMITS = {"float32": 2e-6, "float64": 4e-15}


@pytest.mark.parametrize("summands", SUMMANDS)
@pytest.mark.parametrize("columns", [1, 2, 3, 4, 5])
def test_forward_and_deltas(columns, summands, dtype):
    """tanh(A B + row), and A Bᵀ ⊙ tanh′(Y) with the same B as it lies in memory; A whole and a part of wider rows."""
    rng = np.random.default_rng(columns * 10_000 + summands)
    wide = graph.input("wide", summands + 5)
    a, y = wide.columns(2, 2 + summands), graph.input("y", columns)
    b, turned = graph.param("b", (summands, columns)), graph.param("turned", (columns, summands))
    row = graph.param("row", (1, columns))
    whole = graph.input("whole", summands)
    outputs = {
        "part": (a.matmul(b) + row).tanh(),
        "whole": (whole.matmul(b) + row).tanh(),
        "delta": whole.matmul(turned, tb=True) * (1.0 - y.square()),
    }
    machine = CpuExecutable(plan(outputs), dtype)
    values = {
        "b": rng.normal(size=(summands, columns)) / summands**0.5,
        "row": rng.normal(size=(1, columns)),
        "turned": rng.normal(size=(columns, summands)) / summands**0.5,
    }
    for n in ROWS:
        values |= {"wide": rng.normal(size=(n, summands + 5)), "y": rng.uniform(-1, 1, (n, columns))}
        values["whole"] = np.ascontiguousarray(values["wide"][:, 2 : 2 + summands])
        found = machine.run({name: np.ascontiguousarray(v, dtype) for name, v in values.items()}, n)
        plain = np.tanh(values["whole"] @ values["b"] + values["row"])
        expected = {
            "part": plain,
            "whole": plain,
            "delta": values["whole"] @ values["turned"].T * (1 - values["y"] ** 2),
        }
        for name, exact in expected.items():
            assert found[name].shape == exact.shape
            np.testing.assert_allclose(found[name], exact, rtol=0, atol=LIMITS[dtype], err_msg=f"{name}, {n} rows")


@pytest.mark.skipif(not target.NARROW, reason="with 32 registers tiles do them")
def test_which_are_dot_products():
    x, w, v = graph.input("x", 60), graph.param("w", (60, 3)), graph.param("v", (4, 60))
    outputs = {"forward": x.matmul(w), "delta": x.matmul(v, tb=True), "wide": x.matmul(graph.param("u", (60, 4)))}
    lines = CpuExecutable(plan(outputs), "float32").bound(31).lines
    assert ["dot products" in line.schedule for line in lines] == [True, True, False]
    assert not binding.goes_by_dots(3, binding.DOT_SUMMANDS - 1, turned=True)


def test_a_lone_product_with_a_transposed_matrix_that_no_cache_holds_goes_in_order():
    """Depth first it took twice the time."""
    x = graph.input("x", 400)
    lines = CpuExecutable(plan({"y": x.matmul(graph.param("w", (500, 400)), tb=True)}), "float32").bound(4096).lines
    assert not any(line.what == "depth first" for line in lines)
    narrow = CpuExecutable(plan({"y": x.matmul(graph.param("w", (20, 400)), tb=True)}), "float32").bound(4096).lines
    assert any(line.what == "depth first" for line in narrow)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("rows", [0, 1, 2, 127, 128, 129, 1031, 9000, 70_001])
def test_the_sum_of_a_column(rows, threads, dtype):
    """Alone, and for a net of one output: its gradient; SGD by hand and by training give the same bits."""
    rng = np.random.default_rng(rows)
    x, t = rng.normal(size=(rows, 3)).astype(dtype), rng.normal(size=(rows, 1)).astype(dtype)
    before = fastbp.get_num_threads()
    fastbp.set_num_threads(threads)
    try:
        machine = CpuExecutable(plan({"sum": graph.input("t", 1).sum(axis=0)}), dtype)
        line = machine.bound(rows).lines[0]  # what adds up pieces may follow
        assert line.shape == ((1, rows) if rows >= binding.LONG_COLUMN else (1, 1, rows))
        (total,) = machine.run({"t": t}, rows)["sum"].ravel()
        assert abs(float(total) - t.astype(np.float64).sum()) <= LIMITS[dtype] * max(1.0, np.abs(t).sum())
        if not rows:
            return
        net, trained = (fastbp.MLP([3, 5, 1], loss="half_sse", dtype=dtype, seed=1) for _ in range(2))
        _, gradient = net.loss_and_grad(x, t)
        optimizer = optim.SGD(0.125)
        trained.fit(x, t, epochs=1, batch_size=rows, optimizer=optimizer, shuffle=False)
    finally:
        fastbp.set_num_threads(before)
    exact = fastbp.MLP([3, 5, 1], loss="half_sse", dtype="float64", seed=1, backend="numpy")
    _, expected = exact.loss_and_grad(x.astype(np.float64), t.astype(np.float64))
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=30 * LIMITS[dtype] * np.abs(expected).max())
    theta = net.theta.copy()
    optimizer.update(theta, gradient, optimizer.init(theta))
    np.testing.assert_array_equal(trained.theta, theta)


@pytest.mark.parametrize(
    ("rows", "inputs"),
    [*((rows, inputs) for rows in (1, 3, 11, 127) for inputs in (1, 2, 9, 300)), (1, 700_000), (3, 700_000)],
)
def test_the_bias_of_one_output_comes_with_its_weights(rows, inputs, dtype):
    """In one instruction: with SGD, and as a stored gradient, which threads share in pieces where it is long."""
    rng = np.random.default_rng(inputs + rows)
    x, t = rng.normal(size=(rows, inputs)).astype(dtype), rng.normal(size=(rows, 1)).astype(dtype)
    net, trained = (fastbp.MLP([inputs, 1], loss="half_sse", dtype=dtype, seed=1) for _ in range(2))
    optimizer = optim.SGD(0.125)
    for rule in (optimizer, *([optim.Adam()] if inputs >= 300 else [])):  # in a narrow product Adam updates W alone
        lines = CpuExecutable(net.training_step(("X", "T"), rule, False).program, dtype).bound(rows).lines
        assert ["with db" in line.schedule for line in lines[:3]] == [False, False, True]
        assert ("pieces" in lines[2].schedule) == (inputs == 700_000 and rule is not optimizer)
    _, gradient = net.loss_and_grad(x, t)
    residuals = (x.astype(np.float64) @ net.weights[0] + net.biases[0] - t) / rows
    assert abs(gradient[-1] - residuals.sum()) <= 20 * LIMITS[dtype] * np.abs(residuals).sum() * inputs**0.5
    trained.fit(x, t, epochs=1, batch_size=rows, optimizer=optimizer, shuffle=False)
    theta = net.theta.copy()
    optimizer.update(theta, gradient, optimizer.init(theta))
    np.testing.assert_array_equal(trained.theta, theta)


LENGTHS = [1, 7, 8, 9, 61, 300]  # around one vector of rows
FEW = [1, 2, 3, 4, 5, 8, 9, 16, 17]  # columns: around what is done so, and a vector of them
PANELS = [24, 31, 33, 63, 64, 65, 72, 100, 127, 128, 129, 136, 200]  # around what one_row.py does, and its panels


@pytest.mark.parametrize("columns", [*FEW, *PANELS])
def test_one_row_has_the_bits_of_many(columns, dtype):
    """x W and g Wᵀ, for every shape of a ragged end: few columns are one long row then, others walked in panels."""
    rng = np.random.default_rng(columns)
    for length in LENGTHS:
        x, g = graph.input("x", length), graph.input("g", columns)
        w = graph.param("w", (length, columns))
        outputs = {"y": (x @ w + graph.param("row", (1, columns))).tanh(), "d": g.matmul(w, tb=True) * x}
        machine = CpuExecutable(plan(outputs), dtype)
        values = {"x": rng.normal(size=(20, length)), "g": rng.normal(size=(20, columns))}
        values |= {"w": rng.normal(size=(length, columns)), "row": rng.normal(size=(1, columns))}
        values = {name: v.astype(dtype) for name, v in values.items()}
        many = machine.run(values, 20)
        for rows in (1, 2, 7):
            few = machine.run(values | {"x": values["x"][:rows], "g": values["g"][:rows]}, rows)
            for name, all_rows in many.items():
                np.testing.assert_array_equal(few[name], all_rows[:rows], err_msg=f"{name}, {length} x {columns}")


@pytest.mark.parametrize("columns", [33, 35, 36, 65, 67, 71, 72])
def test_panels_that_could_be_shared_have_no_rest_narrower_than_a_vector(columns, dtype, monkeypatch):
    """It would begin among the columns before it, whose tanh is done already."""
    monkeypatch.setattr(caches, "second_level", lambda: 1 << 12)
    rng = np.random.default_rng(columns)
    x, w = graph.input("x", 300), graph.param("w", (300, columns))
    machine = CpuExecutable(plan({"y": (x @ w + graph.param("row", (1, columns))).tanh()}), dtype)
    values = {"x": rng.normal(size=(20, 300)), "w": rng.normal(size=(300, columns)) / 17, "row": np.ones((1, columns))}
    values = {name: v.astype(dtype) for name, v in values.items()}
    many = machine.run(values, 20)["y"]
    one = machine.run(values | {"x": values["x"][:1]}, 1)["y"]
    np.testing.assert_array_equal(one, many[:1])


@pytest.mark.parametrize("columns", [24, 33, 64, 100, 200])
def test_one_column_turned_has_the_bits_of_two(columns, dtype):
    """Aᵀ B with one column of A, whose elements lie apart, and without a bias."""
    rng = np.random.default_rng(columns)
    for length in LENGTHS:
        x, t = graph.input("x", 3), graph.input("t", columns)
        outputs = {"one": x.columns(1, 2).matmul(t, ta=True), "two": x.columns(0, 2).matmul(t, ta=True)}
        values = {
            "x": rng.normal(size=(length, 3)).astype(dtype),
            "t": rng.normal(size=(length, columns)).astype(dtype),
        }
        found = CpuExecutable(plan(outputs), dtype).run(values, length)
        np.testing.assert_array_equal(found["one"][0], found["two"][1], err_msg=f"{length} x {columns}")
        exact = values["x"][:, 1].astype(np.float64) @ values["t"].astype(np.float64)
        np.testing.assert_allclose(found["one"][0], exact, rtol=0, atol=LIMITS[dtype] * 10 * length**0.5)


@pytest.mark.parametrize("columns", [*FEW, *PANELS])
def test_sgd_of_one_row_is_done_as_by_hand(columns, dtype):
    """theta less an outer product, to the same bits as the gradient and its update one after the other."""
    rng = np.random.default_rng(columns)
    for length in LENGTHS:
        x, t = rng.normal(size=(1, length)).astype(dtype), rng.normal(size=(1, columns)).astype(dtype)
        made = {"loss": "half_sse", "output": "identity", "dtype": dtype, "seed": 1}
        net, trained = (fastbp.MLP([length, columns], **made) for _ in range(2))
        gradient, optimizer, theta = net.loss_and_grad(x, t)[1], optim.SGD(0.125), net.theta.copy()
        optimizer.update(theta, gradient, optimizer.init(theta))
        trained.fit(x, t, epochs=1, batch_size=1, optimizer=optimizer)
        np.testing.assert_array_equal(trained.theta, theta, err_msg=f"{length} x {columns}")
        exact = (x.astype(np.float64) @ net.weights[0] + net.biases[0] - t) * x.T.astype(np.float64)
        np.testing.assert_allclose(
            gradient[: length * columns].reshape(exact.shape), exact, rtol=0, atol=40 * LIMITS[dtype]
        )
