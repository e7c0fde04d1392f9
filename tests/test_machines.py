"""Every instruction on every machine, against plain NumPy in float64; the array machine on array-api-strict too."""

from __future__ import annotations

import numpy as np
import pytest

from fastbp import backends, checks, graph, ops, scalars
from fastbp.backends.array import _INSTRUCTIONS, ArrayExecutable
from fastbp.nodes import Node
from fastbp.plan import plan
from fastbp.program import Program

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def same_numbers():
    """A test's numbers do not depend on which tests ran before it, in this process or another."""
    global RNG
    RNG = np.random.default_rng(0)


SIZES = [(1, 1), (1, 17), (3, 1), (7, 13), (33, 97), (64, 48), (5, 1031), (257, 3)]


def run(outputs: dict[str, Node], values: dict, machine: str, dtype: str) -> dict[str, np.ndarray]:
    program = plan(outputs)
    n = len(values["x"])
    typed = {k: v if v.dtype.kind == "i" else np.ascontiguousarray(v, dtype) for k, v in values.items()}
    if machine == "strict":
        xp = pytest.importorskip("array_api_strict")
        found = ArrayExecutable(program, xp, dtype).run({k: xp.asarray(v) for k, v in typed.items()}, n)
        return {k: np.asarray(v) for k, v in found.items()}
    return backends.executable(program, machine, dtype).run(typed, n)


@pytest.fixture(params=["cpu", "numpy", "strict"])
def machine(request):
    return request.param


def close(got, expected, dtype, scale=1.0):
    limit = (1e-6 if dtype == "float32" else 2e-15) * scale
    assert got.dtype == dtype
    assert got.shape == expected.shape
    assert checks.relative_error(got, expected) <= limit


@pytest.mark.parametrize(("n", "d"), SIZES)
@pytest.mark.parametrize(("ta", "tb"), [(False, False), (True, False), (False, True)])
def test_product(machine, dtype, n, d, ta, tb):
    x_value = RNG.normal(size=(n, d)).astype(np.float32)
    for k in (1, 5, 97):
        shape = (n if ta else d, k)
        w_value = RNG.normal(size=shape[::-1] if tb else shape).astype(np.float32)
        x, w = graph.input("x", d), graph.param("w", w_value.shape) if not ta else graph.input("w", k)
        a, b = x_value.astype(float), w_value.astype(float)
        expected = (a.T if ta else a) @ (b.T if tb else b)
        got = run({"c": x.matmul(w, ta=ta, tb=tb)}, {"x": x_value, "w": w_value}, machine, dtype)["c"]
        sizes = np.abs(a.T if ta else a) @ np.abs(b.T if tb else b)  # an error may be as large as the terms make it
        limit = np.finfo(dtype).eps * (a.shape[0] if ta else d) ** 0.5
        assert np.all(np.abs(got - expected) <= 2 * limit * sizes)


@pytest.mark.parametrize("name", scalars.UNARY)
@pytest.mark.parametrize(("n", "d"), [(1, 1), (3, 7), (16, 33), (200, 100)])
def test_unary(machine, dtype, name, n, d):
    x_value = checks._smooth(RNG, (n, d), name).astype(np.float32)
    x = graph.input("x", d)
    got = run({"y": Node(name, (x,), {})}, {"x": x_value}, machine, dtype)["y"]
    close(got, reference(name, x_value.astype(float)), dtype, 4)


def reference(name, x):
    """Written without the library's formulas."""
    from math import erf

    cdf = 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))
    s = 1 / (1 + np.exp(-x))
    table = {
        "copy": lambda: x,
        "neg": lambda: -x,
        "square": lambda: x**2,
        "sqrt": lambda: x**0.5,
        "exp": lambda: np.exp(x),
        "log": lambda: np.log(x),
        "sin": lambda: np.sin(x),
        "cos": lambda: np.cos(x),
        "erf": lambda: np.vectorize(erf)(x),
        "abs": lambda: np.abs(x),
        "sign": lambda: np.sign(x),
        "step": lambda: np.heaviside(x, 0.0),
        "sigmoid": lambda: s,
        "tanh": lambda: np.tanh(x),
        "relu": lambda: x * (x > 0),
        "leaky_relu": lambda: np.where(x > 0, x, x / 100),
        "softplus": lambda: np.logaddexp(0, x),
        "silu": lambda: x * s,
        "gelu": lambda: x * cdf,
        "sigmoid_grad": lambda: x - x**2,
        "tanh_grad": lambda: (1 - x) * (1 + x),
        "relu_grad": lambda: np.heaviside(x, 0.0),
        "leaky_relu_grad": lambda: np.where(x > 0, 1, 0.01),
        "softplus_grad": lambda: 1 - np.exp(-x),
        "silu_grad": lambda: s + x * s * (1 - s),
        "gelu_grad": lambda: cdf + x * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi),
        "huber": lambda: np.where(np.abs(x) < 1, x**2 / 2, np.abs(x) - 0.5),
        "huber_grad": lambda: np.clip(x, -1, 1),
    }
    return table[name]()


@pytest.mark.parametrize("ta", [False, True])
def test_a_product_with_one_column_and_an_epilogue(machine, dtype, ta):
    for m, k in ((2, 2), (5, 1), (33, 7), (7, 40)):
        a, b = RNG.normal(size=(k, m) if ta else (m, k)), RNG.normal(size=(k, 1))
        product = (a.T if ta else a) @ b
        p = graph.param("a", a.shape).matmul(graph.param("b", b.shape), ta=ta)
        for y in (RNG.normal(size=(m, 1)), RNG.normal(size=(1, 1))):
            values = {"x": np.ones((1, 1)), "a": a, "b": b, "y": y}
            node = graph.param("y", y.shape)
            close(run({"c": p + node}, values, machine, dtype)["c"], product + y, dtype, 2)
            close(run({"c": p * node.tanh_grad()}, values, machine, dtype)["c"], product * (1 - y * y), dtype, 2)
            close(run({"c": (p + node).tanh()}, values, machine, dtype)["c"], np.tanh(product + y), dtype, 2)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "maximum", "minimum", "greater", "bce_logits"])
@pytest.mark.parametrize("other", ["full", "row", "column", "scalar"])
def test_binary_broadcasts(machine, dtype, name, other):
    for n, d in SIZES:
        rows = None if other in ("full", "column") else 1
        cols = d if other in ("full", "row") else 1
        x_value = RNG.normal(size=(n, d)).astype(np.float32)
        y_value = RNG.uniform(0.1, 0.9, (rows or n, cols)).astype(np.float32)
        x, y = graph.input("x", d), graph.input("y", cols, rows=rows)
        a, b = x_value.astype(float), y_value.astype(float)
        expected = {
            "add": lambda a, b: a + b,
            "sub": lambda a, b: a - b,
            "mul": lambda a, b: a * b,
            "div": lambda a, b: a / b,
            "maximum": np.fmax,
            "minimum": np.fmin,
            "greater": lambda a, b: 1.0 * (a > b),
            "bce_logits": lambda a, b: -b * np.log(1 / (1 + np.exp(-a))) - (1 - b) * np.log(1 / (1 + np.exp(a))),
        }[name](a, b)
        got = run({"c": Node(name, (x, y), {})}, {"x": x_value, "y": y_value}, machine, dtype)["c"]
        close(got, expected, dtype, 4)


def test_power(machine, dtype):
    """Matrix and row, scalar exponents, a number for base; negative bases have whole exponents."""
    x_value, row_value = RNG.uniform(0.1, 3, (7, 33)).astype(dtype), RNG.integers(-3, 4, (1, 33)).astype(dtype)
    x, row = graph.input("x", 33), graph.input("row", 33, rows=1)
    outputs = {"row": (-x).power(row), "number": x.power(-0.7), "base": graph.constant(1.7).power(x)}
    got = run(outputs, {"x": x_value, "row": row_value}, machine, dtype)
    a = x_value.astype(float)
    close(got["row"], np.power(-a, row_value.astype(float)), dtype, 4)
    close(got["number"], a**-0.7, dtype, 4)
    close(got["base"], 1.7**a, dtype, 4)


@pytest.mark.parametrize("name", ["sub", "div"])
def test_the_first_operand_broadcasts_too(machine, dtype, name):
    x, row, column = graph.input("x", 5), graph.input("row", 5, rows=1), graph.input("column", 1)
    values = {"x": RNG.uniform(1, 2, (4, 5)), "row": RNG.normal(size=(1, 5)), "column": RNG.normal(size=(4, 1))}
    f = {"sub": np.subtract, "div": np.divide}[name]
    for small in ("row", "column"):
        got = run({"c": Node(name, ({"row": row, "column": column}[small], x), {})}, values, machine, dtype)["c"]
        close(got, f(values[small], values["x"]), dtype)
    outer = run({"c": Node(name, (column, row), {}), "x": x}, values, machine, dtype)["c"]
    close(outer, f(values["column"], values["row"]), dtype)


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize(("n", "d"), [*SIZES, (5000, 3), (3, 5000)])
def test_sum(machine, dtype, axis, n, d):
    x_value = RNG.uniform(0.5, 1, (n, d)).astype(np.float32)
    got = run({"s": graph.input("x", d).sum(axis)}, {"x": x_value}, machine, dtype)["s"]
    close(got, x_value.sum(axis, dtype=np.float64, keepdims=True), dtype, 4)


@pytest.mark.parametrize(("n", "d"), SIZES)
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_softmax(machine, dtype, n, d, scale):
    x_value = (RNG.normal(size=(n, d)) * scale).astype(np.float32)
    x = graph.input("x", d)
    z = x_value.astype(float) - x_value.max(axis=1, keepdims=True)
    logs = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    got = run({"p": x.softmax(), "l": x.log_softmax()}, {"x": x_value}, machine, dtype)
    close(got["p"], np.exp(logs), dtype, 4)
    close(got["l"], logs, dtype, 4)


def test_onehot_transpose_and_broadcast(machine, dtype):
    labels = np.array([[2], [0], [1], [2]])
    x = graph.input("x", 1, dtype="int")
    got = run({"o": x.onehot(3)}, {"x": labels}, machine, dtype)["o"]
    close(got, np.eye(3)[labels[:, 0]], dtype)
    for n, d in SIZES:
        x_value = RNG.normal(size=(n, d)).astype(np.float32)
        x = graph.input("x", d)
        close(run({"t": x.T}, {"x": x_value}, machine, dtype)["t"], x_value.T.astype(float), dtype)
        wide = graph.input("x", 1).broadcast_to((ops.N, ops.Size(0, 9)))
        column = x_value[:, :1]
        close(run({"b": wide}, {"x": column}, machine, dtype)["b"], np.repeat(column, 9, 1).astype(float), dtype)


def test_gather(machine, dtype):
    data, labels = RNG.normal(size=(11, 5)).astype(dtype), RNG.integers(0, 3, (11, 1))
    x, t = graph.input("x", 5), graph.input("t", 1, dtype="int")
    program = plan({"y": x * 1.5, "o": t.onehot(3)}).gathering(["x", "t"])
    order = np.array([[10], [0], [3], [3]])
    values = {"x": data, "t": labels, "order": order}
    if machine == "strict":
        xp = pytest.importorskip("array_api_strict")
        found = ArrayExecutable(program, xp, dtype).run({k: xp.asarray(v) for k, v in values.items()}, 4)
    else:
        found = backends.executable(program, machine, dtype).run(values, 4)
    np.testing.assert_array_equal(np.asarray(found["y"]), data[order[:, 0]] * np.dtype(dtype).type(1.5))
    np.testing.assert_array_equal(np.asarray(found["o"]), np.eye(3)[labels[order[:, 0], 0]])


def test_no_rows(machine, dtype):
    x, w = graph.input("x", 5), graph.param("w", (5, 3))
    outputs = {"a": (x @ w).sigmoid(), "t": x.T, "p": x.softmax(), "dw": x.matmul(x @ w, ta=True), "db": x.sum(axis=0)}
    got = run(outputs, {"x": np.empty((0, 5)), "w": np.ones((5, 3))}, machine, dtype)
    assert {k: v.shape for k, v in got.items()} == {"a": (0, 3), "t": (5, 0), "p": (0, 5), "dw": (5, 3), "db": (1, 5)}
    assert not got["dw"].any()
    assert not got["db"].any()


def test_sums_and_means_of_nothing(machine, dtype):
    x, w = graph.input("x", 3), graph.param("w", (2, 2))
    outputs = {"sum": x.exp().sum(), "mean": x.mean(), "across": x.T.sum(axis=1), "constant": w * 3.0}
    for _ in range(2):  # memory that happens to be 0 proves nothing: fill it
        run({"y": graph.input("x", 3) + 7.0}, {"x": np.full((50, 3), 5.0)}, machine, dtype)
        got = run(outputs, {"x": np.empty((0, 3)), "w": np.ones((2, 2))}, machine, dtype)
        assert got["sum"] == 0
        assert np.isnan(got["mean"])
        np.testing.assert_array_equal(got["across"], np.zeros((3, 1)))
        np.testing.assert_array_equal(got["constant"], np.full((2, 2), 3.0))


def test_results_never_share_memory_with_what_came_in(machine, dtype):
    x = graph.input("x", 3)
    value = RNG.normal(size=(4, 3)).astype(dtype)
    if machine != "strict":
        got = run({"t": x.T, "same": x + 0.0, "copy": x.broadcast_to(x.shape)}, {"x": value}, machine, dtype)
        assert not any(np.shares_memory(result, value) for result in got.values())


def test_expm1_beyond_its_range(machine, dtype):
    """softplus_grad is a method of nodes, so that any value may come."""
    got = run({"y": graph.input("x", 4).softplus_grad()}, {"x": np.array([[-1e4, -1.0, 0.0, 1e4]])}, machine, dtype)[
        "y"
    ]
    np.testing.assert_allclose(got, [[-np.inf, 1 - np.exp(1.0), 0, 1]], rtol=1e-6)


@pytest.mark.parametrize("name", scalars.UNARY)
def test_nan_in_nan_out(machine, dtype, name):
    value = np.array([[np.nan, 0.5, np.nan]])
    got = run({"y": Node(name, (graph.input("x", 3),), {})}, {"x": value}, machine, dtype)["y"]
    np.testing.assert_array_equal(np.isnan(got), [[True, False, True]])


NAN_OF_EITHER = ["add", "maximum", "minimum", "bce_logits", "power", "greater", "greater_equal", "equal"]


@pytest.mark.parametrize("name", NAN_OF_EITHER)
def test_nan_of_either_operand(machine, dtype, name):
    x, y = graph.input("x", 3), graph.input("y", 3)
    values = {"x": np.array([[np.nan, 0.5, 0.5]]), "y": np.array([[0.5, np.nan, 0.5]])}
    got = run({"c": Node(name, (x, y), {})}, values, machine, dtype)["c"]
    np.testing.assert_array_equal(np.isnan(got), [[True, True, False]])


def test_a_row_of_nan_stays_in_its_row(machine, dtype):
    x, w = graph.input("x", 4), graph.param("w", (4, 6))
    value = RNG.normal(size=(9, 4))
    value[3, 2] = np.nan
    got = run({"a": (x @ w).relu(), "p": (x @ w).softmax()}, {"x": value, "w": RNG.normal(size=(4, 6))}, machine, dtype)
    for result in got.values():
        np.testing.assert_array_equal(np.isnan(result).all(axis=1), np.arange(9) == 3)
        np.testing.assert_array_equal(np.isnan(result).any(axis=1), np.arange(9) == 3)


def test_every_instruction_has_a_kernel():
    """A machine without an instruction would be a failure, not a fallback."""
    from fastbp.backends.cpu.binding import _Table

    for op in _INSTRUCTIONS:
        assert hasattr(_Table, f"_{op}"), op


def test_gradients_of_operations_on_array_api_strict():
    """The whole table of operations, forward and backward, with nothing that only NumPy has."""
    xp = pytest.importorskip("array_api_strict")
    for case in checks.operation_cases():
        program = plan({f"d{k}": g for k, g in enumerate(graph.gradients(case.loss, list(case.wrt)))})
        values = {k: xp.asarray(v) for k, v in case.values.items()}
        found = ArrayExecutable(program, xp, "float64").run(values, len(case.values["x"]))
        for k, expected in enumerate(case.gradients("numpy", "float64")):
            np.testing.assert_allclose(np.asarray(found[f"d{k}"]), expected, rtol=1e-13, atol=1e-15, err_msg=case.name)


def test_update_rules_on_array_api_strict(dtype):
    xp = pytest.importorskip("array_api_strict")
    from fastbp.optim import OPTIMIZERS

    tolerance = {"float32": 1e-5, "float64": 1e-13}[dtype]
    for name, kind in OPTIMIZERS.items():
        optimizer = kind(clip_norm=1.0, clip_value=0.5)
        node = optimizer.graph(graph.param("theta", (1, 7)), graph.param("gradient", (1, 7)))
        program: Program = plan({"theta": node})
        theta, g = RNG.normal(size=(2, 1, 7)).astype(dtype)
        state = optimizer.init(theta)
        hyper = optimizer.hyper(np.zeros(1))
        mine = {"theta": theta.copy(), "gradient": g, "hyper": hyper}
        mine |= {f"state{k}": v.copy() for k, v in enumerate(state.vectors)}
        strict = {k: xp.asarray(v) for k, v in mine.items()}
        ArrayExecutable(program, xp, dtype).run(strict, 1)
        backends.executable(program, "cpu", dtype).run(mine, 1)
        np.testing.assert_allclose(np.asarray(strict["theta"]), mine["theta"], rtol=tolerance, err_msg=name)
        assert not np.array_equal(mine["theta"], theta)
