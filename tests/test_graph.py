"""build_grad: gradient rules, second derivatives, sharing, depth, errors."""

from __future__ import annotations

import numpy as np
import pytest

from fastbp import backends, checks, graph, nodes, ops
from fastbp.errors import GraphError, InputError
from fastbp.plan import plan

CASES = {case.name: case for case in checks.operation_cases()}
RNG = np.random.default_rng(0)


def evaluate(outputs, values, backend="numpy"):
    return backends.executable(plan(outputs), backend, "float64").run(values, len(values["x"]))


@pytest.mark.parametrize("name", CASES)
def test_gradient_rules(name, backend):
    case = CASES[name]
    for got, expected in zip(case.gradients(backend, "float64"), case.differences(backend), strict=True):
        assert checks.relative_error(got, expected, floor=1e-3) <= checks.GRADIENT_LIMIT


def test_every_operation_with_a_gradient_is_in_the_table():
    covered = {name.split()[0] for name in CASES} | {"mean"}
    needed = {op.name for op in ops.TABLE.values() if any(rule is not None for rule in op.gradient)}
    assert needed <= covered


@pytest.mark.parametrize("name", CASES)
def test_second_derivatives(name):
    """Gradients are graphs again: the gradient of Σ g² against central differences of it."""
    case = CASES[name]
    first = graph.gradients(case.loss, list(case.wrt))
    total = sum((g.square().sum() for g in first[1:]), first[0].square().sum())
    second = checks.Case(name, total, case.values, case.wrt)
    for got, expected in zip(second.gradients("cpu", "float64"), second.differences("numpy"), strict=True):
        assert checks.relative_error(got, expected, floor=1e-2) <= 1e-6


PYTORCH = ["sigmoid", "tanh", "gelu", "silu", "softplus", "exp", "log", "sqrt", "softmax", "sin", "cos", "erf"]


@pytest.mark.parametrize("name", PYTORCH)
def test_rules_against_pytorch(name):
    torch = pytest.importorskip("torch")
    functions = {
        "gelu": torch.nn.functional.gelu,
        "silu": torch.nn.functional.silu,
        "softplus": torch.nn.functional.softplus,
        "softmax": lambda t: torch.softmax(t, dim=1),
    }
    case = CASES[name]
    x = torch.tensor(case.values["x"], requires_grad=True)
    f = functions.get(name) or getattr(torch, name)
    (f(x) * torch.tensor(case.values["r"])).sum().backward()
    np.testing.assert_allclose(case.gradients("cpu", "float64")[0], x.grad.numpy(), rtol=1e-12, atol=1e-14)


def derivatives(f, x_values, y_values, backend):
    """df/dx and df/dy, an element at a time."""
    x, y = graph.input("x", len(x_values)), graph.input("y", len(y_values))
    dx, dy = graph.gradients(f(x, y).sum(), [x, y])
    values = {"x": np.array([x_values], float), "y": np.array([y_values], float)}
    got = evaluate({"dx": dx, "dy": dy}, values, backend)
    return got["dx"][0], got["dy"][0]


def test_the_smaller_and_the_larger_of_infinities(backend):
    inf = np.inf
    x, y = [inf, -inf, inf, -inf, 1.0, 2.0], [-inf, inf, inf, -inf, inf, 2.0]
    larger = np.array([1.0, 0, 0, 0, 0, 0])
    for got, expected in zip(derivatives(lambda a, b: a.maximum(b), x, y, backend), (larger, 1 - larger), strict=True):
        np.testing.assert_array_equal(got, expected)
    for got, expected in zip(derivatives(lambda a, b: a.minimum(b), x, y, backend), (1 - larger, larger), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_the_gradient_of_power_at_0(backend):
    """As PyTorch has it: x^y log x is 0 at x = 0 where y >= 0, and y x^(y - 1) is 0 where y = 0."""
    x, y = [0.0, 0.0, 0.0, -0.0, 0.0, 5.0, -2.0], [0.0, 1.0, 2.0, 2.0, -1.0, 0.0, 3.0]
    dx, dy = derivatives(lambda a, b: a.power(b), x, y, backend)
    np.testing.assert_array_equal(dx, [0, 1, 0, 0, -np.inf, 0, 12])
    np.testing.assert_array_equal(dy, [0, 0, 0, 0, -np.inf, np.log(5.0), np.nan])


def test_comparisons_have_no_gradient(backend):
    for name in ("greater", "greater_equal", "equal"):
        for got in derivatives(lambda a, b, name=name: getattr(a, name)(b) + a * 0.0, [1.0, 2.0], [2.0, 2.0], backend):
            np.testing.assert_array_equal(got, [0, 0])


def test_gradients_of_several_consumers_are_summed():
    x = graph.input("x", 1)
    y = x.square()
    loss = (y * 3.0 + y.exp() + x).sum()
    (dx,) = graph.gradients(loss, [x])
    value = np.array([[0.3], [-0.7]])
    expected = 6 * value + 2 * value * np.exp(value**2) + 1
    np.testing.assert_allclose(evaluate({"dx": dx}, {"x": value})["dx"], expected, rtol=1e-15)


def test_operands_that_are_both_broadcast():
    """Each could be replaced by its source, but not both: the shape is theirs."""
    x = graph.input("x", 1)
    wide = x.broadcast_to((x.shape[0], graph.param("p", (3, 3)).shape[1]))
    for out in (wide + wide, wide.where(wide, wide)):
        assert out.shape == wide.shape
    (dx,) = graph.gradients((wide * wide).sum(), [x])
    np.testing.assert_array_equal(evaluate({"dx": dx}, {"x": np.array([[1.0], [2.0]])})["dx"], [[6.0], [12.0]])


def test_a_gradient_with_respect_to_a_node_in_the_middle():
    x, w = graph.input("x", 3), graph.param("w", (3, 2))
    z = x @ w
    loss = z.tanh().sum()
    (dz,) = graph.gradients(loss, [z])
    values = {"x": RNG.normal(size=(4, 3)), "w": RNG.normal(size=(3, 2))}
    expected = 1 - np.tanh(values["x"] @ values["w"]) ** 2
    np.testing.assert_allclose(evaluate({"dz": dz}, values)["dz"], expected, rtol=1e-14)


def test_a_parameter_that_the_loss_does_not_use_has_gradient_zero():
    x, w = graph.input("x", 3), graph.param("w", (2, 2))
    (dw,) = graph.gradients(x.sum(), [w])
    got = evaluate({"dw": dw}, {"x": np.ones((1, 3)), "w": np.ones((2, 2))})["dw"]
    np.testing.assert_array_equal(got, np.zeros((2, 2)))


def test_a_long_chain():
    """Iterative: no recursion limit."""
    x = graph.input("x", 1)
    node = x
    for _ in range(20_000):
        node = node + x
    (dx,) = graph.gradients(node.sum(), [x])
    assert evaluate({"dx": dx}, {"x": np.ones((1, 1))})["dx"] == 20_001


def test_only_nodes_between_are_visited():
    """A rule that is missing does no harm where the gradient does not go through it."""
    x, labels = graph.input("x", 3), graph.input("labels", 1, dtype="int")
    flat = graph.param("flat", (1, 6))
    loss = (x * labels.onehot(3) * graph.view(flat, 0, 1, 3)).sum()
    (dx,) = graph.gradients(loss, [x])
    values = {"x": RNG.normal(size=(2, 3)), "labels": np.array([[2], [0]]), "flat": np.arange(6.0)[None]}
    np.testing.assert_array_equal(evaluate({"dx": dx}, values)["dx"], [[0, 0, 2], [0, 0, 0]])
    updated = nodes.update("sgd", flat, flat * 2.0, [], graph.constant(1.0))
    with pytest.raises(GraphError, match=r"'update' has no gradient rule for its argument 0"):
        nodes._apply_rule(updated, 0, loss)


def test_a_gradient_with_respect_to_what_is_planned_away():
    """Known factors are multiplied, broadcasts and reshapes looked through, but not before the gradient is taken."""
    x, r = graph.input("x", 3), graph.param("r", (1, 3))
    doubled, wide, tall = x * 2.0, r.broadcast_to(x.shape), r.reshape((3, 1))
    losses = {
        "a": ((doubled * 3.0).sum(), doubled),
        "b": ((wide * x).sum(), wide),
        "d": (x.mean().where(wide, x).sum(), wide),
    }
    losses["c"] = ((tall.reshape((1, 3)) * 5.0).sum(), tall)
    found = evaluate(
        {name: graph.gradients(loss, [v])[0] for name, (loss, v) in losses.items()}, {"x": np.full((4, 3), 7.0)}
    )
    for name, (shape, value) in {
        "a": ((4, 3), 3.0),
        "b": ((4, 3), 7.0),
        "c": ((3, 1), 5.0),
        "d": ((4, 3), 1.0),
    }.items():
        np.testing.assert_array_equal(found[name], np.full(shape, value), err_msg=name)


def test_known_factors_are_multiplied_by_the_planner():
    x = graph.input("x", 3)
    program = plan({"y": (x * 2.0) * 3.0})
    assert [i.title for i in program.instructions] == ["map mul"]
    assert [b.value[0] for b in program.buffers if b.kind == "const"] == [6.0]
    assert x * 1.0 is x
    values = {"x": RNG.normal(size=(2, 3))}
    np.testing.assert_array_equal(evaluate({"y": 3.0 * (2.0 * x)}, values)["y"], 6 * values["x"])


def test_mean_counts_the_rows_that_came():
    x = graph.input("x", 3)
    f = backends.executable(plan({"all": x.mean(), "rows": x.mean(axis=0), "cols": x.mean(axis=1)}), "cpu", "float64")
    for n in (1, 2, 7):
        value = RNG.normal(size=(n, 3))
        got = f.run({"x": value}, n)
        np.testing.assert_allclose(got["all"][0, 0], value.mean(), rtol=1e-14)
        np.testing.assert_allclose(got["rows"][0], value.mean(axis=0), rtol=1e-14)
        np.testing.assert_allclose(got["cols"][:, 0], value.mean(axis=1), rtol=1e-14)


def test_compile(backend):
    x, w = graph.input("x", cols=3), graph.param("w", (3, 1))
    loss = ((x @ w).sigmoid() - 1.0).square().mean()
    (dw,) = graph.gradients(loss, [w])
    f = graph.compile([loss, dw], backend=backend)
    X, W = RNG.normal(size=(5, 3)), RNG.normal(size=(3, 1))
    a = 1 / (1 + np.exp(-X @ W))
    got_loss, got_dw = f(x=X, w=W)
    np.testing.assert_allclose(got_loss, ((a - 1) ** 2).mean(), rtol=1e-14)
    np.testing.assert_allclose(got_dw, X.T @ (2 * (a - 1) * a * (1 - a)) / 5, rtol=1e-13)
    assert np.ndim(got_loss) == 0
    single = graph.compile(loss, backend=backend, dtype="float32")(x=X, w=W)
    assert single.dtype == np.float32
    labels = graph.input("labels", 1, dtype="int")
    onehot = graph.compile(labels.onehot(3), backend=backend)
    np.testing.assert_array_equal(onehot(labels=[2, 0]), [[0, 0, 1], [1, 0, 0]])


def test_compile_says_what_is_wrong():
    x, w, y = graph.input("x", cols=3), graph.param("w", (3, 1)), graph.input("y", cols=1)
    f = graph.compile((x @ w) * y)
    X, W = np.ones((5, 3)), np.ones((3, 1))
    with pytest.raises(InputError, match=r"missing: 'w', 'y'"):
        f(x=X)
    with pytest.raises(InputError, match=r"needs 'x', 'w', 'y'; missing: nothing; not among them: 'z'"):
        f(x=X, w=W, y=np.ones((5, 1)), z=1)
    with pytest.raises(InputError, match=r"w must be .*\(3, 1\).*got shape \(2, 1\)"):
        f(x=X, w=np.ones((2, 1)), y=np.ones((5, 1)))
    with pytest.raises(InputError, match=r"y has 4 rows, but x has 5"):
        f(x=X, w=W, y=np.ones((4, 1)))
    with pytest.raises(InputError, match=r"outputs"):
        graph.compile([])
    with pytest.raises(InputError, match=r"outputs"):
        graph.compile([3])


def test_nothing_to_join():
    for join in (graph.concat, graph.pack):
        with pytest.raises(GraphError, match=f"{join.__name__}: there is nothing to"):
            join([])


def test_shapes_that_do_not_fit():
    x, w = graph.input("x", 3), graph.param("w", (2, 4))
    with pytest.raises(GraphError, match=r"\(n, 3\) @ \(2, 4\): the inner sizes 3 and 2 differ"):
        x @ w
    with pytest.raises(GraphError, match=r"add: shapes \(n, 3\) and \(2, 4\) do not fit"):
        x + w
    with pytest.raises(GraphError, match=r"target must be a \(1, 1\) node"):
        graph.gradients(x, [x])
    with pytest.raises(GraphError, match="cannot branch"):
        bool(x)
    with pytest.raises(InputError, match="a graph works on nodes and numbers, got ndarray"):
        x + np.ones(3)
    with pytest.raises(InputError, match="axis=2"):
        x.sum(2)
    with pytest.raises(InputError, match="cols must be a positive integer, got 0"):
        graph.input("x", 0)
    with pytest.raises(InputError, match="name must be a non-empty string"):
        graph.param("", (1, 1))
    with pytest.raises(GraphError, match="two different inputs or parameters are called 'x'"):
        plan({"y": x + graph.input("x", 3)})


def test_what_cancels_out_may_come_in_all_the_same():
    """The Hessian of a relu is 0 and depends on nothing."""
    x, w, v = graph.input("x", 3), graph.param("w", (3, 2)), graph.param("v", (3, 2))
    (d,) = graph.gradients((x @ w).relu().sum(), [w])
    (h,) = graph.gradients((d * v).sum(), [w])
    values = {"x": RNG.normal(size=(4, 3)), "w": RNG.normal(size=(3, 2)), "v": RNG.normal(size=(3, 2))}
    np.testing.assert_array_equal(graph.compile(h, inputs=[x, w, v])(**values), np.zeros((3, 2)))
    with pytest.raises(InputError, match="what cancels out is not needed"):
        graph.compile(h)(**values)
    with pytest.raises(InputError, match="inputs must be a list of inputs"):
        graph.compile(h, inputs=[d])


def test_labels_go_into_onehot_and_nowhere_else():
    labels, x = graph.input("labels", 1, dtype="int"), graph.input("x", 1)
    for wrong in (lambda: labels * 2.0, lambda: labels.exp(), lambda: labels.T, lambda: x.onehot(3)):
        with pytest.raises(GraphError, match="is not what its argument"):
            wrong()
    f = graph.compile(labels.onehot(3))
    for bad, words in (([3], "labels must be 0 … 2; row 0 is 3"), ([0, -1], "row 1 is -1"), ([1.7], "integers")):
        with pytest.raises(InputError, match=words):
            f(labels=bad)


def test_views_lie_inside():
    theta = graph.param("theta", (1, 6))
    for offset, rows, cols in ((-1, 1, 2), (0, 0, 2), (0, 2, 0), (4, 1, 3)):
        with pytest.raises(GraphError, match="does not lie in"):
            graph.view(theta, offset, rows, cols)
    for wrong in (lambda: graph.view(3, 0, 1, 1), lambda: graph.view(graph.constant(1.0), 0, 1, 1)):
        with pytest.raises(InputError, match="flat must be"):
            wrong()
    with pytest.raises(InputError, match="offset must be an integer"):
        graph.view(theta, 1.5, 1, 1)


def test_the_shape_of_a_result_does_not_depend_on_the_rows(backend):
    f = graph.compile(graph.input("x", 1) * 2.0, backend=backend)
    assert f(x=[[1.0]]).shape == (1, 1)
    assert f(x=[[1.0], [2.0]]).shape == (2, 1)


def test_an_input_may_be_called_self():
    assert graph.compile(graph.input("self", 1) * 2.0)(self=[[1.0]]) == 2.0


def test_gradients_wants_a_list_of_nodes():
    x = graph.input("x", 1)
    for wrong in (x, [3]):
        with pytest.raises(InputError, match="wrt must be a list of nodes"):
            graph.gradients(x.sum(), wrong)


def test_operands_that_are_both_broadcast_keep_the_shape():
    """... though the operation is done on what they were broadcast from."""
    x, y, r, s = graph.input("x", 3), graph.input("y", 1), graph.param("r", (1, 3)), graph.param("s", (1, 3))
    wide_r, wide_s = r.broadcast_to(x.shape), s.broadcast_to(x.shape)
    values = {"x": np.ones((5, 3)), "y": np.ones((5, 1)), "r": RNG.normal(size=(1, 3)), "s": RNG.normal(size=(1, 3))}
    for product in (wide_r * wide_s, graph.constant(1.0).where(wide_r * s, wide_s), wide_r * s):
        assert product.shape == x.shape
    product = wide_r * wide_s
    (dr,) = graph.gradients(product.sum() * y.sum(), [r])
    found = evaluate({"product": product, "sum": product.sum(), "dr": dr}, values | {"x": np.ones((5, 3))})
    np.testing.assert_allclose(found["product"], np.tile(values["r"] * values["s"], (5, 1)), rtol=1e-15)
    np.testing.assert_allclose(found["sum"], 5 * (values["r"] * values["s"]).sum(), rtol=1e-14)
    np.testing.assert_allclose(found["dr"], 25 * values["s"], rtol=1e-14)


def test_comparisons_of_constants_with_nan(backend):
    nan, one = graph.constant(float("nan")), graph.constant(1.0)
    outputs = {k: getattr(a, op)(b) for op in ("equal", "greater", "greater_equal") for k, a, b in ((op, nan, one),)}
    outputs["ones"] = one.greater_equal(1.0)
    found = evaluate(outputs, {"x": np.ones((1, 1))}, backend)
    assert np.isnan([found[op] for op in ("equal", "greater", "greater_equal")]).all()
    assert found["ones"] == 1.0


def test_a_view_of_a_constant(backend):
    node = (graph.constant(1.0) + 2.0).view(0, 1, 1)
    assert evaluate({"y": node}, {"x": np.ones((1, 1))}, backend)["y"] == 3.0


def test_reductions_of_nothing(backend):
    """Of no rows, and of no columns."""
    x = graph.input("x", 3)
    outputs = {
        f"{name} {axis}": getattr(x, name)(axis) for name in ("sum", "max", "logsumexp") for axis in (None, 0, 1)
    }
    outputs |= {
        f"{name} {axis} T": getattr(x.T, name)(axis) for name in ("sum", "max", "logsumexp") for axis in (None, 0, 1)
    }
    found = evaluate(outputs, {"x": np.ones((0, 3))}, backend)
    shapes = {"None": (1, 1), "0": (1, 3), "1": (0, 1), "None T": (1, 1), "0 T": (1, 0), "1 T": (3, 1)}
    for name, value in found.items():
        op, _, kind = name.partition(" ")
        np.testing.assert_array_equal(value, np.full(shapes[kind], 0.0 if op == "sum" else -np.inf), err_msg=name)


@pytest.mark.parametrize("d", [1, 40, 300])
def test_products_over_no_rows_are_0(d, dtype):
    """... whatever the memory held before."""
    x, y, one = graph.input("x", d), graph.input("y", 1), graph.param("one", (1, d))
    outputs = {"xy": x.matmul(y, ta=True), "yx": y.matmul(x, ta=True), "rows": (x - one).sum(0), "xx": x.T @ x}
    outputs["delta"] = y.matmul(x * one, ta=True) + (x * one).sum(0)
    run = backends.executable(plan(outputs), "cpu", dtype)
    values = {"one": np.ones((1, d), dtype)}
    run.run({"x": np.full((50, d), np.nan, dtype), "y": np.ones((50, 1), dtype), **values}, 50)
    for _ in range(3):
        junk = [np.full(size, np.nan, dtype) for size in (d, d * d) for _ in range(9)]
        del junk
        found = run.run({"x": np.ones((0, d), dtype), "y": np.ones((0, 1), dtype), **values}, 0)
        for name, value in found.items():
            np.testing.assert_array_equal(value, np.zeros_like(value), err_msg=name)


def test_rows_come_from_inputs_that_are_not_needed(backend):
    """The gradient of a mean is 1/n everywhere, whatever x is."""
    x, w = graph.input("x", 3), graph.param("w", (1, 3))
    (dx,) = graph.gradients(x.mean(), [x])
    X = RNG.normal(size=(5, 3))
    np.testing.assert_allclose(graph.compile(dx, inputs=[x], backend=backend)(x=X), np.full((5, 3), 1 / 15), rtol=1e-15)
    found = graph.compile([w * 2.0, dx], inputs=[x], backend=backend)(x=X, w=np.ones((1, 3)))
    assert [v.shape for v in found] == [(1, 3), (5, 3)]
    for f in (graph.compile(dx, backend=backend), graph.compile(graph.constant(1.0, per=x.shape), backend=backend)):
        with pytest.raises(InputError, match="reads none of its inputs"):
            f()
    with pytest.raises(InputError, match="shape"):
        graph.compile(dx, inputs=[x])(x=np.ones((5, 4)))
    with pytest.raises(InputError, match="y has 4 rows, but x has 5"):
        graph.compile(x * 2.0, inputs=[graph.input("y", 1)])(x=X, y=np.ones(4))
    assert graph.compile(w * 2.0, backend=backend)(w=np.ones((1, 3))).shape == (1, 3)


def test_row_numbers_lie_inside(backend):
    """On the CPU others would read memory of somebody else."""
    x, table, i = graph.input("x", 2), graph.param("table", (4, 2)), graph.input("i", 1, dtype="int")
    X, T = np.ones((2, 2)), np.ones((4, 2))
    for bad, words in (([0, 4], "i: labels must be 0 … 3; row 1 is 4"), ([-1, 0], "row 0 is -1")):
        with pytest.raises(InputError, match=words):
            graph.compile(table.take(i), backend=backend)(table=T, i=bad)
        with pytest.raises(InputError, match=words):
            graph.compile(x.scatter_add(i, 4), backend=backend)(x=X, i=bad)
    with pytest.raises(InputError, match="row 1 is 2"):
        graph.compile(x.take(i), backend=backend)(x=X, i=[0, 2])
    with pytest.raises(InputError, match="row 0 is 3"):
        graph.compile([i.onehot(3), table.take(i)], backend=backend)(table=T, i=[3])
    np.testing.assert_array_equal(graph.compile(table.take(i), backend=backend)(table=T, i=[0, 3]), T[:2])


def test_what_is_of_another_dtype_is_no_value():
    labels, key, x = (
        graph.input("labels", 1, dtype="int"),
        graph.input("key", 2, rows=1, dtype="double"),
        graph.input("x", 2),
    )
    for node in (labels, key):
        with pytest.raises(GraphError, match="cannot be an output"):
            graph.compile(node)
    with pytest.raises(GraphError, match="serves as a key of dropout only"):
        key * x
    for wrong in (x, 3, graph.input("key", 2, rows=1), graph.input("key", 3, rows=1, dtype="double")):
        with pytest.raises(InputError, match="key must be"):
            nodes.dropout(x, 0.5, wrong)


def test_the_key_of_dropout_is_float64_in_float32_too():
    x, key = graph.input("x", 3), graph.input("key", 2, rows=1, dtype="double")
    dropped = graph.dropout(x, 0.5, key)
    expected = graph.compile(dropped, backend="numpy")(x=np.ones((9, 3)), key=[[3, 4]])
    for backend in ("cpu", "numpy"):
        got = graph.compile(dropped, backend=backend, dtype="float32")(x=np.ones((9, 3)), key=[[3, 4]])
        np.testing.assert_array_equal(got, expected)
