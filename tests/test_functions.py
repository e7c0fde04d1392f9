"""Functions on arrays and on tracers: the same values, NumPy's forms the same as fastbp's, gradients by differences."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

import fastbp
from fastbp import graph, ops, scalars
from fastbp.errors import FastbpError, InputError, TraceError

UNARY = {  # name -> NumPy's form, whether values must be positive
    "exp": (np.exp, False),
    "log": (np.log, True),
    "sqrt": (np.sqrt, True),
    "square": (np.square, False),
    "abs": (np.abs, False),
    "sign": (np.sign, False),
    "sin": (np.sin, False),
    "cos": (np.cos, False),
    "tanh": (np.tanh, False),
    "sigmoid": (None, False),
    "relu": (None, False),
    "leaky_relu": (None, False),
    "gelu": (None, False),
    "silu": (None, False),
    "softplus": (None, False),
    "erf": (None, False),
}
SHAPES = [(), (1,), (5,), (1, 1), (4, 1), (1, 3), (4, 3)]


def values(name, *shapes, positive=False):
    """Away from kinks and from each other, the same for the same name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    found = [rng.uniform(0.2, 0.9, shape) + rng.integers(0, 2, shape) for shape in shapes]
    return found if positive else [v * rng.choice([-1.0, 1.0], v.shape) for v in found]


def differences(f, args, argnum, step=1e-6):
    """Central differences of a scalar function, an element at a time."""
    x = np.array(args[argnum], float)
    result = np.empty(x.shape)
    for place in np.ndindex(x.shape):
        ends = []
        for sign in (1, -1):
            moved = x.copy()
            moved[place] += sign * step
            ends.append(float(f(*args[:argnum], moved, *args[argnum + 1 :])))
        result[place] = (ends[0] - ends[1]) / (2 * step)
    return result


def check(f, args, backend, numpy_form=None, rtol=1e-6):
    """Compiled equals eager, NumPy's form too; the gradient of a weighted sum equals central differences."""
    eager = f(*args)
    compiled = fastbp.function(f, backend=backend)(*args)
    assert np.shape(compiled) == np.shape(eager)
    np.testing.assert_allclose(compiled, eager, rtol=1e-12, atol=1e-14)
    if numpy_form is not None:
        np.testing.assert_allclose(numpy_form(*args), eager, rtol=1e-12, atol=1e-14)
        np.testing.assert_array_equal(fastbp.function(numpy_form, backend=backend)(*args), compiled)
    weights = np.random.default_rng(1).normal(size=np.shape(eager))

    def loss(*given):
        return fastbp.sum(f(*given) * weights)

    for k in range(len(args)):
        got = fastbp.grad(loss, k, backend=backend)(*args)
        assert np.shape(got) == np.shape(args[k])
        np.testing.assert_allclose(got, differences(loss, args, k), rtol=rtol, atol=1e-7)
    if len(args) > 1:
        both = fastbp.grad(loss, tuple(range(len(args))), backend=backend)(*args)
        for k, got in enumerate(both):
            np.testing.assert_allclose(got, fastbp.grad(loss, k, backend=backend)(*args), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one_value(name, shape, backend):
    if name not in ops.TABLE:
        pytest.skip(f"{name} is not an operation of graphs yet")
    numpy_form, positive = UNARY[name]
    check(getattr(fastbp, name), values(name, shape, positive=positive), backend, numpy_form)


BROADCAST = [
    ((), ()),
    ((), (3,)),
    ((3,), ()),
    ((1,), (3,)),
    ((3,), (3,)),
    ((4, 3), ()),
    ((4, 3), (3,)),
    ((3,), (4, 3)),
    ((4, 3), (1,)),
    ((4, 3), (4, 1)),
    ((4, 3), (1, 3)),
    ((4, 1), (1, 3)),
    ((4, 1), (3,)),
    ((4, 3), (4, 3)),
    ((1, 1), (3,)),
    ((3, 3), (3,)),
]
BINARY = {
    "+": (lambda x, y: x + y, np.add),
    "-": (lambda x, y: x - y, np.subtract),
    "*": (lambda x, y: x * y, np.multiply),
    "/": (lambda x, y: x / y, np.divide),
    "maximum": (fastbp.maximum, np.maximum),
    "minimum": (fastbp.minimum, np.minimum),
}


@pytest.mark.parametrize("shapes", BROADCAST, ids=str)
@pytest.mark.parametrize("name", BINARY)
def test_functions_of_two_values(name, shapes, backend):
    f, numpy_form = BINARY[name]
    check(f, values(name, *shapes), backend, numpy_form)


@pytest.mark.parametrize("shapes", BROADCAST, ids=str)
def test_power(shapes, backend):
    if "power" not in ops.TABLE:
        pytest.skip("power is not an operation of graphs yet")
    check(fastbp.power, values("power", *shapes, positive=True), backend, np.power)


@pytest.mark.parametrize("exponent", [-2, -1, -0.5, 0.5, 1, 2, 3, 4])
def test_power_with_a_number(exponent, backend):
    check(lambda x: x**exponent, values("power", (4, 3), positive=True), backend, lambda x: np.power(x, exponent))


@pytest.mark.parametrize("compare", ["greater", "greater_equal", "less", "less_equal", "equal", "not_equal"])
def test_comparisons_are_masks(compare, backend):
    x, y = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0])
    numpy_form = getattr(np, compare)
    got = fastbp.function(lambda a, b: numpy_form(a, b), backend=backend)(x, y)
    np.testing.assert_array_equal(got, numpy_form(x, y))
    np.testing.assert_array_equal(fastbp.function(lambda a: numpy_form(2.0, a), backend=backend)(x), numpy_form(2.0, x))
    check(lambda a: fastbp.where(numpy_form(a, 2.0), a, a * a), values("compare", (4, 3)), backend)


def test_masks_combine(backend):
    x = np.linspace(-1.0, 2.0, 7)
    got = fastbp.function(
        lambda a: [(a > 0) & (a < 1), (a < 0) | (a > 1), ~(a > 0), np.logical_and(a > 0, a < 1)], backend=backend
    )(x)
    expected = [(x > 0) & (x < 1), (x < 0) | (x > 1), ~(x > 0), (x > 0) & (x < 1)]
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_array_equal(g, e)
    with pytest.raises(TraceError, match="works on comparisons"):
        fastbp.function(lambda a: a & (a > 0))(x)


@pytest.mark.parametrize("shapes", [s for s in BROADCAST if len(s[0]) == 2], ids=str)
def test_where(shapes, backend):
    mask = np.random.default_rng(0).integers(0, 2, shapes[0]).astype(bool)
    check(lambda x, y: fastbp.where(mask, x, y), values("where", *shapes), backend, lambda x, y: np.where(mask, x, y))
    check(lambda x: fastbp.where(mask, 1.0, x), values("where", shapes[1]), backend)


@pytest.mark.parametrize(
    "limits", [(-0.5, 0.5), (None, 0.5), (-0.5, None), (np.array([-0.5, -0.1, 0.0]), 0.5)], ids=str
)
def test_clip(limits, backend):
    check(lambda x: fastbp.clip(x, *limits), values("clip", (4, 3)), backend, lambda x: np.clip(x, *limits))


def test_the_limits_of_clip_are_inside(backend):
    """As PyTorch has it: at the limits themselves the gradient goes through."""
    x = np.array([-2.0, -1.0, 0.0, 1.0, 2.0, np.nan])
    got = fastbp.grad(lambda x: fastbp.sum(fastbp.clip(x, -1.0, 1.0)), backend=backend)(x)
    np.testing.assert_array_equal(got, [0, 1, 1, 1, 0, np.nan])
    node = graph.input("x", 6)
    (dx,) = graph.gradients(node.clip(-1.0, 1.0).sum(), [node])
    np.testing.assert_array_equal(graph.compile(dx, backend=backend)(x=x[None]), got[None])


REDUCTIONS = {"sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min, "logsumexp": None}
AXES = [((), None), ((5,), None), ((5,), 0), ((5,), -1), ((4, 3), None), ((4, 3), 0), ((4, 3), 1), ((4, 3), -2)]


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize(("shape", "axis"), [*AXES, ((4, 3), (0, 1))], ids=str)
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name, shape, axis, keepdims, backend):
    f, numpy_form = getattr(fastbp, name), REDUCTIONS[name]
    np_too = numpy_form and (lambda x: numpy_form(x, axis=axis, keepdims=keepdims))
    check(lambda x: f(x, axis, keepdims), values(name, shape), backend, np_too)


@pytest.mark.parametrize(("shape", "axis"), AXES[1:4] + AXES[5:], ids=str)
def test_what_is_made_of_reductions(shape, axis, backend):
    args = values("softmax", shape)
    axis = -1 if axis is None else axis
    check(lambda x: fastbp.softmax(x, axis), args, backend)
    check(lambda x: fastbp.log_softmax(x, axis), args, backend)
    check(lambda x: np.var(x, axis=axis), args, backend)
    check(lambda x: np.std(x, axis=axis, ddof=1), args, backend)
    check(lambda x: np.linalg.norm(x, axis=axis), args, backend)
    total = fastbp.function(lambda x: fastbp.sum(fastbp.softmax(x, axis), axis), backend=backend)(*args)
    np.testing.assert_allclose(total, np.ones(np.shape(total)), rtol=1e-13)


def test_norms(backend):
    check(np.linalg.norm, values("norm", (5,)), backend)
    check(np.linalg.norm, values("norm", (4, 3)), backend)
    check(lambda x: np.linalg.norm(x, 1), values("norm", (5,)), backend)


@pytest.mark.parametrize(
    "shapes",
    [((4, 3), (3, 2)), ((4, 3), (3,)), ((4,), (4, 3)), ((5,), (5,)), ((1, 3), (3, 1)), ((4, 1), (1,))],
    ids=str,
)
def test_products(shapes, backend):
    check(lambda a, b: a @ b, values("@", *shapes), backend, np.matmul)
    check(fastbp.matmul, values("@", *shapes), backend)
    check(fastbp.dot, values("@", *shapes), backend, np.dot)
    check(lambda a, b: b.T @ a.T, values("@", *shapes), backend)


def test_other_products(backend):
    check(fastbp.dot, values("dot", (), (4, 3)), backend, np.dot)
    check(lambda a, b: np.outer(a, b), values("outer", (4,), (3,)), backend)
    check(lambda a, b: np.inner(a, b), values("inner", (4, 3), (2, 3)), backend)
    check(lambda a, b: np.vdot(a, b), values("vdot", (4, 3), (4, 3)), backend)
    # vectors that come from rows and from columns
    check(lambda a, b: (a @ b) * np.sum(a, 0)[0] + np.sum(a, axis=1), values("mix", (4, 3), (3,)), backend)
    check(lambda a, b: np.sum(a, axis=0) @ b + np.sum(a, axis=1), values("mix", (3, 3), (3,)), backend)
    check(lambda a, b: (a @ b) + b, values("mix", (3, 3), (3,)), backend)
    check(lambda a, b: a - (a @ b)[:, None] + (a @ b), values("mix", (3, 3), (3,)), backend)


def test_transposed_products_need_no_transpose():
    f = fastbp.value_and_grad(lambda w, x: fastbp.sum((x.T @ (x @ w)) ** 2))
    f(*values("T", (3, 2), (5, 3)))
    (entry,) = f._entries.values()
    assert "transpose" not in {i.op for i in entry.program.instructions}


SHAPED = {
    "T": lambda x: x.T,
    "transpose": fastbp.transpose,
    "np.transpose": lambda x: np.transpose(x, (1, 0)),
    "reshape": lambda x: x.reshape(3, 4),
    "reshape -1": lambda x: fastbp.reshape(x, (2, -1)),
    "ravel": lambda x: x.ravel() * np.arange(12.0),
    "np.ravel": lambda x: np.ravel(x)[3:7],
    "squeeze": lambda x: np.squeeze(x[:, :1]),
    "expand_dims": lambda x: np.expand_dims(x[0], 1),
    "sum of a reshape": lambda x: x.reshape(2, 6).sum(axis=0).reshape(3, 2) @ np.ones(2),
    "column": lambda x: x[:, 0],
    "last column": lambda x: x[:, -1],
    "columns": lambda x: x[:, 1:3],
    "step": lambda x: x[:, ::2],
    "backwards": lambda x: x[::-1],
    "row": lambda x: x[1],
    "last row": lambda x: x[-1] + x[0],
    "rows": lambda x: x[1:],
    "element": lambda x: x[1, 2] * x[-1, -1],
    "part": lambda x: x[1:3, 1:],
    "dots": lambda x: x[..., 0] + x[..., 1],
    "new": lambda x: x[:, 0][:, None] * x[0][None, :],
    "rows by number": lambda x: x[np.array([2, 0, 2, -1])],
    "rows by list": lambda x: x[[1, 1]],
    "columns by number": lambda x: x[:, np.array([3, 0])],
    "pairs": lambda x: x[np.array([0, 2, 1]), np.array([3, 0, 1])],
    "one a row": lambda x: x[np.arange(3), np.array([3, 0, -1])],
    "matrix of numbers": lambda x: x[0][np.array([[0, 1], [3, 0]])],
    "take": lambda x: fastbp.take(x, np.array([2, 2])),
    "take columns": lambda x: fastbp.take(x, np.array([2, 2]), axis=1),
    "np.take": lambda x: np.take(x, np.array([2, 7])),
    "concatenate rows": lambda x: fastbp.concatenate([x, x * 2.0]),
    "concatenate columns": lambda x: fastbp.concatenate([x, x[:, :1], np.ones((3, 2))], axis=-1),
    "concatenate vectors": lambda x: np.concatenate([x[0], x[:, 0], np.ones(2)]),
    "concatenate all": lambda x: np.concatenate([x, x[0:1]], axis=None),
    "stack": lambda x: np.stack([x[0], x[1] * x[2]]),
    "stack columns": lambda x: np.stack([x[0], x[1] * x[2]], axis=1),
    "stack numbers": lambda x: np.stack([x[0, 0], x[1, 1]]),
    "hstack": lambda x: np.hstack([x, x]),
    "vstack": lambda x: np.vstack([x, x[0]]),
    "column_stack": lambda x: np.column_stack([x[:, 0], x]),
    "broadcast_to": lambda x: np.broadcast_to(x[0], (3, 4)) * x,
    "broadcast vector": lambda x: np.broadcast_to(x[0, 0], (4,)),
    "like": lambda x: np.ones_like(x) * x + np.zeros_like(x) - np.full_like(x, 2.0),
    "iterate": lambda x: sum(row * row for row in x),
    "unpack": lambda x: (lambda a, b, c: a * b - c)(*x),
    "sizes": lambda x: x * len(x) + x.shape[1] + x.ndim + x.size + np.shape(x)[0] + np.ndim(x) + np.size(x),
    "columns of rows": lambda x: np.sum(x, axis=1)[:, None] + np.sum(x, axis=0),
    "vectors both ways": lambda x: x[:3, 0] + x[0, :3],
    "scaled logarithms": lambda x: np.log2(x * x) + np.log10(x * x) + np.exp2(x) + np.reciprocal(x) + np.positive(x),
}


@pytest.mark.parametrize("name", SHAPED)
def test_shapes_and_indexing(name, backend):
    check(SHAPED[name], values(name, (3, 4)), backend)


@pytest.mark.parametrize("name", SHAPED)
def test_shapes_and_indexing_of_data(name, backend):
    """The same, of an argument whose rows are symbolic, if that goes."""
    f, (x,) = SHAPED[name], values(name, (3, 4))
    expected = f(x)
    np.testing.assert_allclose(fastbp.function(f, backend=backend)(x), expected, rtol=1e-12)

    def loss(w, data):
        return fastbp.sum(f(data * w + w) * np.arange(1.0, expected.size + 1).reshape(expected.shape))

    w = np.array([0.3, -0.2, 0.8, 1.2])
    got = fastbp.grad(loss, backend=backend)(w, x)
    np.testing.assert_allclose(got, differences(loss, (w, x), 0), rtol=1e-6, atol=1e-7)


def test_sines_through_numpy(backend):
    if "sin" not in ops.TABLE:
        pytest.skip("sin is not an operation of graphs yet")
    check(np.tan, values("tan", (4, 3)), backend)


def test_labels(backend):
    labels = np.array([2, 0, 1, 2])
    (x,) = values("labels", (4, 3))
    check(lambda x: fastbp.onehot(labels, 3) * x, [x], backend)
    loss = fastbp.grad(lambda x, t: -fastbp.mean(fastbp.log_softmax(x)[np.arange(4), t]), backend=backend)
    expected = (fastbp.softmax(x) - np.eye(3)[labels]) / 4
    np.testing.assert_allclose(loss(x, labels), expected, rtol=1e-13)
    onehot = fastbp.grad(lambda x, t: -fastbp.sum(fastbp.log_softmax(x) * fastbp.onehot(t, 3)) / 4, backend=backend)
    for given in (labels, labels[:, None], labels.astype(np.int8), labels.astype(np.uint16)):
        np.testing.assert_allclose(onehot(x, given), expected, rtol=1e-13)
    with pytest.raises(InputError, match=r"a label must lie in 0 … 2; got 3"):
        onehot(x, np.array([0, 3, 1, 1]))
    with pytest.raises(InputError, match=r"a label must lie in 0 … 2; got -1"):
        onehot(x, np.array([0, -1, 1, 1]))
    with pytest.raises(InputError, match="labels must be 0 … 2"):
        fastbp.onehot([3], 3)


def test_an_embedding(backend):
    (table,) = values("embedding", (5, 3))
    index = np.array([4, 0, 4, -5, -1])
    f = fastbp.value_and_grad(lambda w, i: fastbp.sum(fastbp.take(w, i) ** 2), backend=backend)
    value, dw = f(table, index)
    np.testing.assert_allclose(value, (table[index] ** 2).sum(), rtol=1e-13)
    expected = np.zeros_like(table)
    np.add.at(expected, index, 2 * table[index])
    np.testing.assert_allclose(dw, expected, rtol=1e-13)
    for bad in (5, -6):
        with pytest.raises(InputError, match=rf"an index into 5 rows must lie in -5 … 4; got {bad}"):
            f(table, np.array([0, bad, 0, 0, 0]))


def test_integers_count_as_numbers(backend):
    x = np.arange(12).reshape(4, 3)
    got = fastbp.grad(lambda w, x: fastbp.mean((x @ w) ** 2), backend=backend)(np.ones(3), x)
    np.testing.assert_allclose(got, 2 * x.T @ (x @ np.ones(3)) / 4, rtol=1e-13)
    mask = x > 4
    np.testing.assert_array_equal(
        fastbp.function(lambda x, m: fastbp.where(m, x, 0.0), backend=backend)(x, mask), x * mask
    )


def test_stop_gradient(backend):
    got = fastbp.grad(lambda x: fastbp.sum(x * fastbp.stop_gradient(x)), backend=backend)(np.array([2.0, 3.0]))
    np.testing.assert_array_equal(got, [2.0, 3.0])
    assert fastbp.stop_gradient(3.0) == 3.0


def test_arrays_compute_at_once():
    for name in UNARY:
        if name in scalars.UNARY:
            assert isinstance(getattr(fastbp, name)(0.5), np.float64)
            assert getattr(fastbp, name)(np.ones(2, np.float32)).dtype == np.float32
            assert getattr(fastbp, name)([1, 2]).dtype == np.float64
    assert fastbp.sum([[1, 2], [3, 4]]) == 10
    np.testing.assert_allclose(fastbp.softmax([1.0, 1.0]), [0.5, 0.5])
    assert fastbp.logsumexp([-np.inf, -np.inf]) == -np.inf
    with pytest.raises(InputError, match="real numbers"):
        fastbp.exp(1j)


def test_symbolic_rows_are_used():
    """Data goes through in chunks of rows: its rows are n in the Program."""
    f = fastbp.grad(lambda w, x, t, s: fastbp.mean(s * (fastbp.tanh(x @ w) - t) ** 2))
    f(np.ones(3), np.ones((7, 3)), np.ones(7), np.ones(7))
    (entry,) = f._entries.values()
    assert {str(entry.program.buffers[i].shape[0]) for i in entry.program.inputs.values()} == {"n", "1"}
    captured = np.ones((7, 3))
    f = fastbp.grad(lambda w: fastbp.mean((captured @ w) ** 2))
    f(np.ones(3))
    (entry,) = f._entries.values()
    assert {str(entry.program.buffers[i].shape[0]) for i in entry.program.inputs.values()} == {"n", "1"}


UNSUPPORTED = {
    "np.cumsum": (lambda x: np.cumsum(x), r"np\.cumsum is not among the functions"),
    "np.sort": (lambda x: np.sort(x), r"np\.sort is not among"),
    "np.arctan": (lambda x: np.arctan(x), r"np\.arctan is not among"),
    "np.linalg.inv": (lambda x: np.linalg.inv(x), r"np\.linalg\.inv is not among"),
    "np.sum dtype": (
        lambda x: np.sum(x, dtype=np.float32),
        r"np\.sum of a traced value: np\.sum\(\) got an unexpected",
    ),
    "np.add.reduce": (lambda x: np.add.reduce(x), r"np\.add\.reduce of a traced value"),
    "out": (lambda x: np.exp(x, out=np.ones((3, 3))), r"np\.exp cannot write a traced value into an array"),
    "+=": (lambda x: np.ones((3, 3)).__iadd__(x), r"np\.add cannot write a traced value into an array"),
    "where=": (lambda x: np.exp(x, where=np.ones((3, 3), bool)), r"np\.exp with where is not among"),
    "attribute": (lambda x: x.cumsum(), "a traced value has no attribute 'cumsum'"),
    "3 dimensions": (lambda x: x[:, :, None], "at most 2"),
    "reshape to 3": (lambda x: x.reshape(3, 3, 1), "at most 2 dimensions"),
    "reshape": (lambda x: x.reshape(4, 2), r"\(3, 3\) does not become \(4, 2\)"),
    "order": (lambda x: np.reshape(x, (9,), "F"), "order='F' is not supported"),
    "axis": (lambda x: x.sum(axis=2), r"sum: axis=2 does not fit a value of 2 dimensions"),
    "inner sizes": (lambda x: x @ np.ones(4), r"matmul: shapes \(3, 3\) and \(4,\) do not fit together: 3 is not 4"),
    "broadcast": (lambda x: x + np.ones(4), r"add: shapes \(3, 3\) and \(4,\) do not fit together"),
    "scalar product": (lambda x: x @ 2.0, r"scalars are multiplied with \*"),
    "mask": (lambda x: x[x > 0], "indexing by a mask"),
    "numpy mask": (lambda x: x[np.ones((3, 3), bool)], "indexing by a mask"),
    "index": (lambda x: x[3], "index 3 is outside axis 0"),
    "index array": (lambda x: x[np.array([0, 3])], r"an index into 3 rows must lie in -3 … 2; got 3"),
    "index above int64": (
        lambda x: x[np.array([2**64 - 1], np.uint64)],
        r"an index into 3 rows must lie in -3 … 2; got 18446744073709551615",
    ),
    "pairs": (lambda x: x[np.array([0, 3]), np.array([0, 0])], "an index is outside axis 0"),
    "empty": (lambda x: x[3:], "leaves nothing"),
    "too many": (lambda x: x[0, 0, 0], "has not the 3 dimensions"),
    "float index": (lambda x: x[x[0]], "must be an array of integers"),
    "a name": (lambda x: x["a"], "indexed by integers"),
    "list of tracers": (lambda x: x.__add__([x[0]]), "join them with np.stack"),
    "string": (lambda x: x * "a", "works on arrays and numbers, got str"),
    "complex": (lambda x: x * np.ones(3, complex), "real numbers"),
    "objects": (lambda x: x * np.array([None] * 3), "real numbers"),
    "captured 3-d": (lambda x: x * np.ones((2, 3, 3)), "at most 2 dimensions"),
    "if": (lambda x: x if x[0, 0] > 0 else -x, r"the truth of <traced float64 \(\)>.*fastbp\.where"),
    "float": (lambda x: float(x[0, 0]), r"float\(\) of <traced"),
    "int": (lambda x: int(x[0, 0]), r"int\(\) of <traced"),
    "range": (lambda x: range(x[0, 0]), "the use as an index or a count"),
    "asarray": (lambda x: np.asarray(x), r"np\.asarray .*of <traced float64 \(3, 3\)>"),
    "item": (lambda x: x[0, 0].item(), r"item\(\) of <traced"),
    "in place": (lambda x: x.__setitem__(0, 1.0), "cannot be changed in place; use fastbp.where"),
    "into an array": (lambda x: np.zeros(3).__setitem__(0, x[0, 0]), "has no value while its function is traced"),
    "astype": (lambda x: x.astype(int), "cannot become int64"),
    "concatenate": (lambda x: np.concatenate([x, x[0]]), r"concatenate: shapes \(3, 3\), \(3,\) do not fit"),
    "onehot of floats": (lambda x: fastbp.onehot(x[0], 3), "must be an array of integers"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_errors_say_what_and_what_to_do(name):
    f, message = UNSUPPORTED[name]
    with pytest.raises((FastbpError, AttributeError), match=message):
        fastbp.function(f)(np.ones((3, 3)))


def test_a_traced_value_shows_itself():
    shown = []
    fastbp.function(lambda x: shown.append(repr(x)) or x)(np.ones((2, 3)))
    assert shown[-1] == "<traced float64 (2, 3)>"
