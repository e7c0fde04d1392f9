"""Gradients, derivatives and traces of plain functions: against differences and PyTorch; caching; errors."""

from __future__ import annotations

import functools
import gc
import itertools
import threading
import types
import weakref
from collections import namedtuple

import numpy as np
import pytest

import fastbp
from fastbp import transform
from fastbp.errors import FastbpError, GraphError, InputError, TraceError

RNG = np.random.default_rng(0)
W, B, X, T = RNG.normal(size=(3, 2)), RNG.normal(size=2), RNG.normal(size=(7, 3)), RNG.normal(size=(7, 2))


def loss(w, b, x, t):
    return fastbp.mean((fastbp.tanh(x @ w + b) - t) ** 2)


def differences(f, x, step=1e-6):
    x = np.array(x, float)
    result = np.empty(x.shape)
    for place in np.ndindex(x.shape):
        ends = []
        for sign in (1, -1):
            moved = x.copy()
            moved[place] += sign * step
            ends.append(float(f(moved)))
        result[place] = (ends[0] - ends[1]) / (2 * step)
    return result


def close(got, expected, rtol=1e-6, atol=1e-7):
    assert np.shape(got) == np.shape(expected)
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=atol)


# ---- gradients -----------------------------------------------------------------------------------------------------


def test_gradients_of_every_argument(backend):
    args = (W, B, X, T)
    for k, arg in enumerate(args):
        got = fastbp.grad(loss, argnums=k, backend=backend)(*args)
        close(got, differences(lambda a, k=k: loss(*args[:k], a, *args[k + 1 :]), arg))
        close(fastbp.grad(loss, argnums=k - 4, backend=backend)(*args), got, 1e-13)
    value, (db, dx) = fastbp.value_and_grad(loss, argnums=[1, 2], backend=backend)(*args)
    for got, expected in zip(fastbp.grad(loss, argnums=(1, 2), backend=backend)(*args), (db, dx), strict=True):
        np.testing.assert_array_equal(got, expected)
    close(value, loss(*args), 1e-13)
    close(db, fastbp.grad(loss, 1, backend=backend)(*args), 1e-12)
    close(dx, fastbp.grad(loss, 2, backend=backend)(*args), 1e-12)


def test_against_pytorch(backend):
    torch = pytest.importorskip("torch")
    labels = np.array([0, 2, 1, 1, 0, 2, 2])
    params = {"W": [RNG.normal(size=(3, 8)), RNG.normal(size=(8, 3))], "b": [RNG.normal(size=8), RNG.normal(size=3)]}

    def f(p, x):
        h = fastbp.gelu(x @ p["W"][0] + p["b"][0])
        h = h / np.sqrt(fastbp.mean(h**2, axis=1, keepdims=True) + 1e-5)
        z = h @ p["W"][1] + p["b"][1]
        return -fastbp.mean(fastbp.log_softmax(z)[np.arange(7), labels]) + 0.01 * fastbp.sum(p["W"][0] ** 2)

    value, got = fastbp.value_and_grad(f, backend=backend)(params, X)
    tensors = {k: [torch.tensor(v, requires_grad=True) for v in vs] for k, vs in params.items()}
    h = torch.nn.functional.gelu(torch.tensor(X) @ tensors["W"][0] + tensors["b"][0])
    h = h / torch.sqrt((h**2).mean(dim=1, keepdim=True) + 1e-5)
    z = h @ tensors["W"][1] + tensors["b"][1]
    expected = torch.nn.functional.cross_entropy(z, torch.tensor(labels)) + 0.01 * (tensors["W"][0] ** 2).sum()
    expected.backward()
    close(value, expected.item(), 1e-12)
    for key, parts in tensors.items():
        for a, b in zip(got[key], parts, strict=True):
            close(a, b.grad.numpy(), 1e-10, 1e-12)


def test_nested_structures(backend):
    Layer = namedtuple("Layer", "w b act")
    params = {"layers": [Layer(W, B, "tanh"), (np.eye(2), 0.5, None)], "scale": 2.0, "on": True, "count": 3}

    def f(p, x):
        assert p["on"] is True
        first, (w, b, nothing) = p["layers"]
        assert nothing is None
        assert first.act == "tanh"
        z = fastbp.tanh(x @ first.w + first.b) @ w + b
        return fastbp.mean(z**2) * p["scale"] * p["count"]

    got = fastbp.grad(f, backend=backend)(params, X)
    assert isinstance(got["layers"][0], Layer)
    assert got["layers"][0].act is None
    assert got["on"] is None
    assert got["layers"][1][2] is None
    assert isinstance(got["layers"], list)
    close(
        got["layers"][0].w,
        differences(lambda w: f({**params, "layers": [Layer(w, B, "tanh"), params["layers"][1]]}, X), W),
    )
    close(got["scale"], f(params, X) / 2.0, 1e-12)
    close(got["count"], f(params, X) / 3, 1e-12)


def test_shapes_and_dtypes(backend):
    for shape in [(), (1,), (4,), (1, 1), (2, 3)]:
        x = RNG.normal(size=shape)
        got = fastbp.grad(lambda x: fastbp.sum(fastbp.tanh(x) ** 2), backend=backend)(x)
        assert got.shape == shape
        assert got.dtype == np.float64
        close(got, 2 * np.tanh(x) * (1 - np.tanh(x) ** 2), 1e-12)
    number = fastbp.grad(lambda x: x**3, backend=backend)(2)
    assert isinstance(number, np.float64)
    assert number == 12.0
    single = [a.astype(np.float32) for a in (W, B, X, T)]
    value, dw = fastbp.value_and_grad(loss, backend=backend)(*single)
    assert value.dtype == dw.dtype == np.float32
    close(dw, fastbp.grad(loss)(W, B, X, T), 1e-4, 1e-5)
    assert fastbp.grad(loss, backend=backend)(*single[:3], T).dtype == np.float64
    assert fastbp.grad(lambda w, s: fastbp.sum(w * s), backend=backend)(single[0], 2.0).dtype == np.float32
    assert fastbp.grad(lambda x: x * x, backend=backend)(np.float32(2.0)).dtype == np.float32
    half = fastbp.grad(loss, backend=backend)(W.astype(np.float16), B, X, T)
    assert half.dtype == np.float64


def test_arrays_of_any_layout(backend):
    expected = fastbp.grad(loss, backend=backend)(W, B, X, T)
    f = fastbp.grad(loss, backend=backend)
    wide = np.zeros((7, 6))
    wide[:, ::2] = X
    for x in (np.asfortranarray(X), wide[:, ::2], X.astype(">f8"), X[::-1][::-1]):
        close(f(W, B, x, T), expected, 1e-13)
    frozen = X.copy()
    frozen.flags.writeable = False
    close(f(W, B, frozen, T), expected, 1e-13)


def test_no_result_shares_memory(backend):
    x, y = np.ones(3), np.ones(3)
    dx, dy = fastbp.grad(lambda x, y: fastbp.sum(x + y), argnums=(0, 1), backend=backend)(x, y)
    assert not np.shares_memory(dx, dy)
    a, b, c = fastbp.function(lambda x: (x, x, x.reshape(3, 1)), backend=backend)(x)
    assert not any(np.shares_memory(p, q) for p, q in [(a, b), (a, c), (b, c), (a, x)])
    made = fastbp.function(lambda x: {"made": np.arange(3), "captured": y}, backend=backend)
    for first, again in zip(made(x).values(), made(x).values(), strict=True):
        first[:] = 7.0  # a caller may write into what it got
        assert 7.0 not in again
    assert 7.0 not in y


def test_has_aux(backend):
    def f(x):
        y = x * 2.0
        return fastbp.sum(y**2), {"y": y, "name": "aux", "numbers": np.arange(3)}

    (value, aux), dx = fastbp.value_and_grad(f, has_aux=True, backend=backend)(np.ones(2))
    assert value == 8.0
    np.testing.assert_array_equal(aux["y"], [2.0, 2.0])
    assert aux["name"] == "aux"
    np.testing.assert_array_equal(dx, [8.0, 8.0])
    with pytest.raises(InputError, match=r"must return a pair \(scalar, more\)"):
        fastbp.value_and_grad(lambda x: x.sum(), has_aux=True)(np.ones(2))


def test_what_does_not_depend_has_gradient_zero(backend):
    np.testing.assert_array_equal(fastbp.grad(lambda x, y: fastbp.sum(y), backend=backend)(W, B), np.zeros((3, 2)))
    np.testing.assert_array_equal(fastbp.grad(lambda x: 3.0, backend=backend)(B), np.zeros(2))


def test_keyword_arguments(backend):
    f = fastbp.grad(lambda x, scale=1.0, name=None: fastbp.sum(x * x) * scale, backend=backend)
    np.testing.assert_array_equal(f(B), 2 * B)
    np.testing.assert_array_equal(f(B, scale=3.0, name="n"), 6 * B)


def test_an_mlp_is_the_same_network(backend):
    net = fastbp.MLP([3, 5, 2], activation="tanh", loss="mse", seed=0, dtype="float64", backend=backend)

    def f(theta, x, t):
        sizes, at, a = [3, 5, 2], 0, x
        for k, (i, o) in enumerate(itertools.pairwise(sizes)):
            w = theta[at : at + i * o].reshape(i, o)
            z = a @ w + theta[at + i * o : at + i * o + o]
            a, at = (fastbp.tanh(z) if k == 0 else z), at + i * o + o
        return fastbp.mean((a - t) ** 2)

    value, gradient = fastbp.value_and_grad(f, backend=backend)(net.theta, X, T)
    expected, expected_gradient = net.loss_and_grad(X, T)
    close(value, expected, 1e-12)
    close(gradient, expected_gradient, 1e-10, 1e-12)


@pytest.mark.parametrize(("layers", "n"), [((784, 30, 10), 10), ((16, 64, 64, 3), 4096), ((3, 5, 2), 7)], ids=str)
def test_an_mlp_as_a_function_costs_the_same(layers, n):
    """The same instructions, operations and bytes, and the same bits."""
    net = fastbp.MLP(layers, activation="tanh", loss="mse", seed=0)
    x, t = (RNG.normal(size=(n, d)).astype("float32") for d in (layers[0], layers[-1]))

    def f(parameters, x, t):
        for w, b in parameters[:-1]:
            x = np.tanh(x @ w + b)
        w, b = parameters[-1]
        return fastbp.mean((x @ w + b - t) ** 2)

    both = fastbp.value_and_grad(f)
    parameters = list(zip(net.weights, net.biases, strict=True))
    mine, its = both.program(parameters, x, t), net.program("gradient")
    assert [i.title for i in mine.instructions] == [i.title for i in its.instructions]
    assert (mine.operations(n), mine.bytes(n, 4)) == (its.operations(n), its.bytes(n, 4))
    value, gradient = both(parameters, x, t)
    expected, flat = net.loss_and_grad(x, t)
    assert value == expected
    for (dw, db), *both_of_net in zip(gradient, *net.split(flat), strict=True):
        np.testing.assert_array_equal(dw, both_of_net[0])
        np.testing.assert_array_equal(db, both_of_net[1])


def test_rows_of_every_number(backend):
    """0 rows, 1 row, rows as many as columns: as NumPy has it."""
    f = fastbp.value_and_grad(lambda w, x: fastbp.sum(fastbp.tanh(x @ w) ** 2), backend=backend)
    for n in (0, 1, 2, 3, 8, 300):
        x = RNG.normal(size=(n, 3))
        value, dw = f(W, x)
        a = np.tanh(x @ W)
        close(value, (a**2).sum(), 1e-12)
        close(dw, x.T @ (2 * a * (1 - a * a)), 1e-12)


NO_ROWS = {
    "forward": (lambda x, w: np.tanh(x @ w), (0, 2)),
    "gram": (lambda x, w: x.T @ x, (3, 3)),
    "products of rows": (lambda x, w: x @ x.T, (0, 0)),
    "reshaped": (lambda x, w: x.reshape(-1, 1) + x.ravel()[:, None], (0, 1)),
    "parts": (lambda x, w: x[:, 1:] * x[:, 0][:, None] + x[:, :2][::-1], (0, 2)),
    "joined": (lambda x, w: np.concatenate([x, x @ w], axis=1), (0, 5)),
    "sums": (lambda x, w: fastbp.softmax(x).sum(axis=1) * np.sum(x), (0,)),
}


@pytest.mark.parametrize("name", NO_ROWS)
def test_no_rows(name, backend):
    """A batch wherever they come: beside a matrix that might be the batch, and where they are differentiated."""
    f, shape = NO_ROWS[name]
    x, v = np.zeros((0, 3)), np.zeros((0, 3))
    assert f(x, W).shape == shape
    swapped = fastbp.function(lambda w, x: f(x, w), backend=backend)
    for found in (fastbp.function(f, backend=backend)(x, W), swapped(W, x)):
        np.testing.assert_array_equal(found, np.zeros(shape))
    if name not in ("products of rows", "reshaped"):  # jvp makes arrays of a result's shape: here it is no batch's
        np.testing.assert_array_equal(fastbp.jvp(f, backend=backend)((x, W), (v, W))[1], np.zeros(shape))
    total = lambda x, w: fastbp.sum(f(x, w) ** 2)  # noqa: E731
    dx, dw = fastbp.grad(total, (0, 1), backend=backend)(x, W)
    assert dx.shape == (0, 3)
    np.testing.assert_array_equal(dw, np.zeros(W.shape))
    assert fastbp.hvp(total, backend=backend)(x, W, v).shape == (0, 3)


def test_no_row_numbers(backend):
    for table, shape in ((np.ones((4, 2)), (0, 2)), (np.ones(4), (0,))):
        none = np.zeros(0, int)
        assert fastbp.function(lambda t, i: t[i], backend=backend)(table, none).shape == shape
        got = fastbp.grad(lambda t, i: fastbp.sum(t[i]), backend=backend)(table, none)
        np.testing.assert_array_equal(got, np.zeros(table.shape))


def test_functions_that_mix_the_rows_with_other_sizes(backend):
    def f(w, x):
        y = x * w  # (4, 3)
        return fastbp.sum(y[1:] * y[:-1]) + fastbp.sum(y @ np.ones((3, 4)) * np.eye(4)) + fastbp.sum((y.T @ y) ** 2)

    x = RNG.normal(size=(4, 3))
    w = np.array([0.5, -1.0, 2.0])
    close(fastbp.grad(f, backend=backend)(w, x), differences(lambda w: f(w, x), w), 1e-5)


# ---- higher derivatives --------------------------------------------------------------------------------------------


def rosenbrock(x):
    return fastbp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)


def test_gradients_of_gradients(backend):
    x = np.array([0.7, -0.3, 0.4])
    hessian = np.stack(
        [fastbp.grad(lambda x, k=k: fastbp.grad(rosenbrock)(x)[k], backend=backend)(x) for k in range(3)]
    )
    step = 1e-5
    expected = np.stack(
        [
            (fastbp.grad(rosenbrock)(x + step * e) - fastbp.grad(rosenbrock)(x - step * e)) / (2 * step)
            for e in np.eye(3)
        ]
    )
    close(hessian, expected, 1e-6, 1e-5)
    for v in np.eye(3):
        close(fastbp.hvp(rosenbrock, backend=backend)(x, v), hessian @ v, 1e-12, 1e-12)
    third = fastbp.grad(fastbp.grad(fastbp.grad(lambda x: x**4)), backend=backend)(2.0)
    close(third, 48.0, 1e-13)


def test_an_inner_gradient_sees_the_outer_argument_as_a_constant(backend):
    """d/dx [d/dy (x y) at y = x] = 1, not 2."""
    close(fastbp.grad(lambda x: fastbp.grad(lambda y: x * y)(x), backend=backend)(3.0), 1.0)
    close(fastbp.grad(lambda x: fastbp.grad(lambda y: x * y * y)(x), backend=backend)(3.0), 12.0)
    close(fastbp.grad(lambda x: x * fastbp.grad(lambda y: x * y)(2.0), backend=backend)(3.0), 6.0)
    # arguments of the inner function that are computed: by a reshape, a broadcast, a factor
    for inner in (lambda x: (x * 2.0) * 3.0, lambda x: x.reshape(2, 1), lambda x: np.broadcast_to(x[0], (2,))):
        f = lambda x, inner=inner: fastbp.sum(fastbp.grad(lambda y: fastbp.sum(y * y * 5.0))(inner(x)))  # noqa: E731
        x = np.array([0.4, 0.7])
        close(fastbp.grad(f, backend=backend)(x), differences(f, x))


def test_hessian_vector_products(backend):
    v = RNG.normal(size=W.shape)
    step = 1e-5
    gradient = fastbp.grad(loss)
    expected = (gradient(W + step * v, B, X, T) - gradient(W - step * v, B, X, T)) / (2 * step)
    close(fastbp.hvp(loss, backend=backend)(W, B, X, T, v), expected, 1e-6, 1e-8)
    both = fastbp.hvp(loss, argnums=[0, 1], backend=backend)(W, B, X, T, (v, np.zeros(2)))
    close(both[0], expected, 1e-6, 1e-8)
    inner = differences(lambda b: fastbp.sum(gradient(W, b, X, T) * v), B)
    close(both[1], inner, 1e-6, 1e-8)
    tree = fastbp.hvp(lambda p, x: loss(p["w"], p["b"], x, T), backend=backend)(
        {"w": W, "b": B}, X, {"w": v, "b": B * 0}
    )
    close(tree["w"], both[0], 1e-12, 1e-13)
    tree = fastbp.hvp(lambda p, x: loss(p["w"], p["b"], x, T), backend=backend)(
        {"w": W, "b": B},
        X,
        {"b": B * 0, "w": v},  # a dict is the same in any order of its keys
    )
    close(tree["w"], both[0], 1e-12, 1e-13)
    close(fastbp.hvp(lambda x: x**3, backend=backend)(2.0, 5.0), 60.0, 1e-13)
    close(fastbp.hvp(lambda x: 3.0 * x, backend=backend)(2.0, 5.0), 0.0)


def test_derivatives_along_a_direction(backend):
    def f(w, x):
        h = fastbp.tanh(x @ w)
        return {"rows": fastbp.sum(h, axis=1), "all": fastbp.max(h), "h": h * 2.0, "name": "f", "fixed": 2.0}

    v, u = RNG.normal(size=W.shape), RNG.normal(size=X.shape)
    step = 1e-6
    for tangents, ahead, behind in [
        ((v, None), f(W + step * v, X), f(W - step * v, X)),
        ((None, u), f(W, X + step * u), f(W, X - step * u)),
        ((v, u), f(W + step * v, X + step * u), f(W - step * v, X - step * u)),
    ]:
        out, moved = fastbp.jvp(f, backend=backend)((W, X), tangents)
        for key in ("rows", "all", "h"):
            close(out[key], f(W, X)[key], 1e-13)
            close(moved[key], (ahead[key] - behind[key]) / (2 * step))
        assert out["name"] == "f"
        assert moved["name"] is None
        assert moved["fixed"] == 0.0


def test_forward_and_backward_agree(backend):
    """u · (J v) = (Jᵀ u) · v, to rounding, for every activation."""
    for name in ("sigmoid", "tanh", "relu", "leaky_relu", "gelu", "silu", "softplus", "softmax", "exp", "sin", "erf"):
        f = getattr(fastbp, name)
        v, u = RNG.normal(size=X.shape), RNG.normal(size=X.shape)
        _, moved = fastbp.jvp(f, backend=backend)((X,), (v,))
        back = fastbp.grad(lambda x, f=f, u=u: fastbp.sum(f(x) * u), backend=backend)(X)
        close((u * moved).sum(), (back * v).sum(), 1e-11)


def test_transforms_within_functions(backend):
    """A step of gradient descent, differentiated through: jvp and hvp inside too."""

    def after(rate, w):
        return loss(w - rate * fastbp.grad(loss)(w, B, X, T), B, X, T)

    close(fastbp.grad(after, backend=backend)(0.1, W), differences(lambda r: after(r, W), 0.1))
    along = lambda x: fastbp.jvp(rosenbrock)((x,), (np.ones(3),))[1]  # noqa: E731
    x = np.array([0.7, -0.3, 0.4])
    close(fastbp.grad(along, backend=backend)(x), fastbp.hvp(rosenbrock)(x, np.ones(3)), 1e-11)
    twice = lambda x: fastbp.sum(fastbp.hvp(rosenbrock)(x, np.ones(3)))  # noqa: E731
    close(fastbp.grad(twice, backend=backend)(x), differences(twice, x), 1e-5, 1e-4)
    compiled = fastbp.function(rosenbrock)
    close(fastbp.grad(compiled, backend=backend)(x), fastbp.grad(rosenbrock)(x), 1e-13)


def random_function(seed):
    """A few random operations on whatever fits, and a sum of all that came out."""
    one = [
        *(fastbp.tanh, fastbp.sigmoid, fastbp.softplus, fastbp.gelu, np.square, np.negative, np.transpose),
        *(fastbp.sum, fastbp.max, np.ravel, lambda a: np.broadcast_to(a, (3, *np.shape(a))) if np.ndim(a) < 2 else a),
        lambda a: a[..., None] if np.ndim(a) < 2 else a[:, 0],
        lambda a: fastbp.where(a > 0.1, a, a * a),
    ]
    some = [  # of at least one dimension
        *(lambda a: np.sum(a, axis=0), lambda a: np.mean(a, axis=-1), lambda a: np.min(a, axis=0, keepdims=True)),
        *(lambda a: a[0], lambda a: a[::-1], lambda a: a[np.array([0, -1, 0])], lambda a: np.var(a, axis=0)),
        *(fastbp.softmax, fastbp.log_softmax, lambda a: fastbp.logsumexp(a, axis=0), lambda a: fastbp.softmax(a, 0)),
        *(lambda a: np.concatenate([a, a * 2.0]), lambda a: np.concatenate([a, a * a], axis=-1)),
    ]
    two = [np.add, np.multiply, np.subtract, np.maximum, lambda a, b: a / (1.5 + b * b)]

    def f(*args):
        rng, pool = np.random.default_rng(seed), list(args)
        for _ in range(rng.integers(3, 12)):
            a, b = (pool[rng.integers(len(pool))] for _ in range(2))
            sizes = zip(np.shape(a)[::-1], np.shape(b)[::-1], strict=False)
            if np.ndim(a) and np.ndim(b) and np.shape(a)[-1] == np.shape(b)[0] and rng.random() < 0.5:
                out = a @ b
            elif rng.random() < 0.5 and all(p == q or 1 in (p, q) for p, q in sizes):
                out = two[rng.integers(len(two))](a, b)
            else:
                group = [*one, *some] if np.ndim(a) else one
                out = group[rng.integers(len(group))](a)
            if np.size(out) < 400:
                pool.append(out)
        return sum(fastbp.sum(fastbp.tanh(p) * (k + 1)) for k, p in enumerate(pool))

    rng = np.random.default_rng(seed + 1)
    n, d, k = rng.integers(1, 6, 3)
    return f, [rng.normal(size=shape) for shape in ((d, k), (k,), (n, d), (n,))]


@pytest.mark.parametrize("seed", range(60))
def test_random_functions(seed, backend):
    """Values as NumPy has them; gradients, jvp and hvp agree with differences and with each other."""
    f, args = random_function(seed)
    u, v = ([np.random.default_rng(seed + k).normal(size=a.shape) for a in args[:2]] for k in (2, 3))
    value, gradient = fastbp.value_and_grad(f, (0, 1), backend=backend)(*args)
    close(value, f(*args), 1e-10)
    step = 1e-6
    ahead, behind = (f(*(a + s * b for a, b in zip(args[:2], v, strict=True)), *args[2:]) for s in (step, -step))
    along = sum((g * b).sum() for g, b in zip(gradient, v, strict=True))
    close(along, (ahead - behind) / (2 * step), 1e-5, 1e-5)
    close(fastbp.jvp(f, backend=backend)(args, (*v, None, None))[1], along, 1e-8, 1e-9)
    product, other = (fastbp.hvp(f, (0, 1), backend=backend)(*args, tuple(w)) for w in (u, v))
    symmetric = [sum((a * b).sum() for a, b in zip(*pair, strict=True)) for pair in ((product, v), (other, u))]
    close(*symmetric, 1e-7, 1e-8)


# ---- caching -------------------------------------------------------------------------------------------------------


def counted(f):
    """The function, and a list that grows by one with every run of it."""
    calls = []

    @functools.wraps(f)
    def run(*args, **kwargs):
        calls.append(1)
        return f(*args, **kwargs)

    return run, calls


def test_traced_once_a_signature():
    f, calls = counted(lambda x, y, mode="a": fastbp.sum(x * y))
    g = fastbp.grad(f)
    for _ in range(3):
        g(np.ones(3), np.full(3, 2.0))
        g(np.zeros(3), 4.0)
    assert len(calls) == 2
    g(np.ones(4), np.ones(4))
    g(np.ones(3, np.float32), np.ones(3, np.float32))
    g(np.ones(3), np.ones(3), mode="b")
    g(np.ones(3), np.ones(3), mode="a")
    g([1.0, 2.0][0], 3.0)
    assert len(calls) == 7
    with fastbp.use_backend("numpy"):
        g(np.ones(3), np.ones(3))
        g(np.ones(3), np.ones(3))
    assert len(calls) == 8
    fastbp.grad(f)(np.ones(3), np.ones(3))  # what was made of the same function before
    assert len(calls) == 8
    assert fastbp.function(f)(np.ones(3), np.ones(3)) == 3.0
    assert len(calls) == 9


def test_static_arguments_are_told_apart():
    f = fastbp.function(lambda x, k: x * 1.0 if k is True else x * 2.0 if k == 1 else x * 3.0)
    assert [f(1.0, True), f(1.0, 1), f(1.0, 2), f(1.0, np.int64(1)), f(1.0, None)] == [1.0, 2.0, 3.0, 2.0, 3.0]
    act = fastbp.function(lambda x, a: a(x))
    assert act(0.5, np.tanh) == pytest.approx(np.tanh(0.5))
    assert act(0.5, fastbp.exp) == pytest.approx(np.exp(0.5))
    loop = fastbp.grad(lambda x, n: functools.reduce(lambda a, b: a * b, [x] * n))
    assert [loop(2.0, n) for n in (1, 2, 3)] == [1.0, 4.0, 12.0]


SCALE = 1.0
DATA = {"x": np.ones(2)}


def scaled_sum(w):
    return helper(w) * SCALE + fastbp.sum(w * DATA["x"])


def helper(w):
    return fastbp.sum(w * OFFSET)


OFFSET = np.zeros(2)


def test_what_is_captured_is_watched(monkeypatch):
    g = fastbp.grad(scaled_sum)
    here = globals()
    np.testing.assert_array_equal(g(np.ones(2)), [1.0, 1.0])
    monkeypatch.setitem(here, "OFFSET", np.full(2, 3.0))  # of a function that it calls
    np.testing.assert_array_equal(g(np.ones(2)), [4.0, 4.0])
    monkeypatch.setitem(here, "SCALE", 2.0)
    np.testing.assert_array_equal(g(np.ones(2)), [7.0, 7.0])
    monkeypatch.setitem(DATA, "x", np.full(2, 5.0))  # inside a container
    np.testing.assert_array_equal(g(np.ones(2)), [11.0, 11.0])
    here["OFFSET"][0] = 4.0  # in place
    np.testing.assert_array_equal(g(np.ones(2)), [13.0, 11.0])


def test_closures_and_objects_are_watched():
    x = np.ones(2)

    def f(w):
        return fastbp.sum(w * x)

    g = fastbp.grad(f)
    assert g(np.ones(2))[0] == 1.0
    x = np.full(2, 2.0)
    assert g(np.ones(2))[0] == 2.0
    x[:] = 7.0
    assert g(np.ones(2))[0] == 7.0

    model = types.SimpleNamespace(x=np.ones(2), layers=[1.0])
    h = fastbp.grad(lambda w: fastbp.sum(w * model.x) * model.layers[0])
    assert h(np.ones(2))[0] == 1.0
    model.x = np.full(2, 3.0)
    assert h(np.ones(2))[0] == 3.0
    model.layers[0] = 2.0
    assert h(np.ones(2))[0] == 6.0
    model.layers.append(1.0)
    assert h(np.ones(2))[0] == 6.0

    class Model:
        def __init__(self):
            self.x = 1.0

        def loss(self, w):
            return fastbp.sum(w * self.x)

        def __call__(self, w):
            return self.loss(w)

    m = Model()
    method, itself, part = fastbp.grad(m.loss), fastbp.grad(m), fastbp.grad(functools.partial(m.loss))
    for value in (1.0, 4.0):
        m.x = value
        assert [k(np.ones(2))[0] for k in (method, itself, part)] == [value] * 3


def test_attributes_of_classes_are_watched():
    class Settings:
        rate, table = 1.0, {"a": 1.0}

        @classmethod
        def from_table(cls):
            return cls.table["a"]

        @staticmethod
        def offset():
            return OFFSETS.here

    class OFFSETS:
        here = 0.0

    f = fastbp.function(lambda x: x * Settings.rate * Settings.from_table() + Settings.offset())
    assert f(2.0) == 2.0
    Settings.rate = 3.0
    assert f(2.0) == 6.0
    Settings.table["a"] = 2.0
    assert f(2.0) == 12.0
    OFFSETS.here = 1.0
    assert f(2.0) == 13.0

    class Model:
        rate = 1.0

        def __call__(self, x):
            return x * self.rate

    model = Model()
    g = fastbp.function(model)
    assert g(2.0) == 2.0
    Model.rate = 3.0
    assert g(2.0) == 6.0
    model.rate = 5.0  # its own, in the place of the class's
    assert g(2.0) == 10.0
    del model.rate
    assert g(2.0) == 6.0


def test_slots_properties_and_attributes_of_functions_are_watched():
    class Slots:
        __slots__ = ("empty", "rate")

    class Property:
        def __init__(self):
            self._rate = 1.0
            self.reads = 0

        @property
        def rate(self):
            self.reads += 1
            return self._rate

    def helper(x):
        return x

    slots, computed = Slots(), Property()
    slots.rate = helper.rate = 1.0
    f = fastbp.function(lambda x: helper(x) * slots.rate * computed.rate * helper.rate)
    assert f(2.0) == 2.0
    slots.rate = 3.0
    assert f(2.0) == 6.0
    helper.rate = 2.0
    assert f(2.0) == 12.0
    computed._rate = 0.5
    assert f(2.0) == 6.0
    reads = computed.reads
    f(2.0)
    assert computed.reads == reads, "what is watched is not computed"


def test_an_object_that_is_reached_twice_is_watched_for_all_that_is_read():
    class Shared:
        a, b = 1.0, 1.0

    def of_a():
        return Shared.a

    def of_b():
        return Shared.b

    f = fastbp.function(lambda x: x * of_a() * of_b())
    for name in ("a", "b"):
        before = f(2.0)
        setattr(Shared, name, 3.0)
        assert f(2.0) == 3 * before


def test_what_the_function_changes_itself_is_not_watched():
    state = {"calls": 0}

    def f(x):
        state["calls"] += 1
        return fastbp.sum(x * x)

    g = fastbp.grad(f)
    for size in (2, 3, 2, 3):
        g(np.ones(size))
    assert state["calls"] == 2


def test_captured_arrays_of_other_kinds(backend):
    data, labels, mask = [[1, 2], [3, 4], [5, 6]], np.array([0, 1, 1]), np.array([True, False, True])
    offsets = np.asfortranarray(np.arange(6.0).reshape(3, 2)).astype(np.float32)

    def f(w):
        z = np.array(data) * w + offsets
        return fastbp.sum(fastbp.where(mask, z[np.arange(3), labels], 0.0)) + fastbp.sum(w[labels])

    w = np.array([0.5, 2.0])
    g = fastbp.grad(f, backend=backend)
    close(g(w), [1 + 1, 6 + 2], 1e-13)
    labels[0] = 1
    close(g(w), [0 + 0, 2 + 6 + 3], 1e-13)
    before = f(w)
    close(fastbp.function(f, backend=backend)(w), before, 1e-6)
    offsets += 1.0  # of two elements that count
    close(fastbp.function(f, backend=backend)(w), before + 2.0, 1e-6)


def test_methods():
    """Decorated, and bound anew for every call: traced once an object; equal objects stay apart."""

    class Model:
        traced = 0

        def __init__(self, rate):
            self.rate = rate

        def __eq__(self, other):
            return isinstance(other, Model)

        def __hash__(self):
            return 0

        @fastbp.function
        def scaled(self, x):
            Model.traced += 1
            return x * self.rate

        @functools.partial(fastbp.grad, argnums=1)
        def slope(self, x, y):
            return x * y**3 * self.rate

        def loss(self, x):
            return self.scaled(x) ** 2

    one, two = Model(1.0), Model(2.0)
    assert [one.scaled(3.0), two.scaled(3.0), one.slope(2.0, 3.0), two.slope(2.0, 3.0)] == [3.0, 6.0, 54.0, 108.0]
    for rate in (1.0, 5.0, 5.0):
        one.rate = rate
        assert [one.scaled(3.0), two.scaled(3.0)] == [3.0 * rate, 6.0]
        assert [fastbp.grad(m.loss)(3.0) for m in (one, two)] == [6.0 * rate**2, 24.0]
    assert Model.traced == 6  # of two functions and two objects, and of two functions again when a rate was another


def test_what_is_kept_goes_with_the_function():
    big = np.ones(3)
    f = lambda x: fastbp.sum(x * big)  # noqa: E731
    fastbp.grad(f)(np.ones(3))
    seen = weakref.ref(f)
    del f
    gc.collect()
    assert seen() is None

    class Model:
        def __init__(self):
            self.rate = 1.0

        def __call__(self, x):
            return x * self.rate

    model = Model()
    fastbp.grad(model)(1.0)
    fastbp.grad(model.__call__)(1.0)
    seen = weakref.ref(model)
    del model
    gc.collect()
    assert seen() is None


def test_a_cache_does_not_grow_without_end():
    f = fastbp.function(lambda x, k: x * k)
    for k in range(transform.KEPT + 10):
        assert f(1.0, k) == k
    assert len(f._entries) == transform.KEPT


def test_threads_trace_on_their_own():
    f = fastbp.value_and_grad(loss)
    expected = f(W, B, X, T)
    wrong = []

    def work():
        g = fastbp.value_and_grad(lambda *args: loss(*args))
        for _ in range(20):
            found = [f(W, B, X, T), g(W, B, X, T)]
            wrong.extend(p for p in found if p[0] != expected[0] or not np.array_equal(p[1], expected[1]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_error_leaves_nothing_behind():
    g = fastbp.grad(lambda x, bad: fastbp.sum(x[9]) if bad else fastbp.sum(x))
    with pytest.raises(InputError):
        g(np.ones(3), True)
    np.testing.assert_array_equal(g(np.ones(3), False), np.ones(3))


def test_names_and_docstrings_stay():
    assert fastbp.grad(loss).__name__ == "loss"
    assert fastbp.jvp(rosenbrock).__name__ == "rosenbrock"


# ---- errors --------------------------------------------------------------------------------------------------------


def square_sum(x):
    return fastbp.sum(x * x)


ERRORS = {
    "no scalar": (
        lambda: fastbp.grad(lambda x: x * 2.0)(B),
        InputError,
        r"it returned an array of shape \(2,\); take fastbp.sum",
    ),
    "a tuple": (lambda: fastbp.grad(lambda x: (x, x))(1.0), InputError, "it returned a tuple; .*has_aux"),
    "nothing": (lambda: fastbp.grad(lambda x: None)(B), InputError, "it returned a NoneType"),
    "argnums": (
        lambda: fastbp.grad(square_sum, 1)(B),
        InputError,
        "argnums=1, but the function is called with 1 argument",
    ),
    "argnums -2": (lambda: fastbp.grad(square_sum, -2)(B), InputError, "argnums=-2"),
    "argnums twice": (lambda: fastbp.grad(square_sum, (0, 0)), InputError, "each once"),
    "argnums kind": (lambda: fastbp.grad(square_sum, "x"), InputError, "argnums must be an integer or a tuple"),
    "argnums list": (lambda: fastbp.grad(square_sum, [0.0]), InputError, "argnums must be an integer or a tuple"),
    "argnums bool": (lambda: fastbp.grad(square_sum, True), InputError, "argnums must be an integer or a tuple"),
    "no function": (lambda: fastbp.grad(3.0), InputError, "f must be a function, got 3.0"),
    "backend": (lambda: fastbp.grad(square_sum, backend="gpu"), InputError, "backend='gpu' is unknown"),
    "integers": (
        lambda: fastbp.grad(square_sum)(np.arange(3)),
        InputError,
        r"argument 0 is an array of integers.*astype",
    ),
    "integers inside": (
        lambda: fastbp.grad(lambda p: square_sum(p["a"]))({"a": B, "i": np.arange(3)}),
        InputError,
        r"argument 0\['i'\] is an array of integers",
    ),
    "a string": (lambda: fastbp.grad(lambda s: 1.0)("x"), InputError, "argument 0 holds no array of floats"),
    "complex": (lambda: fastbp.grad(square_sum)(np.ones(2, complex)), InputError, "argument 0 .*complex128; split it"),
    "a complex number": (lambda: fastbp.grad(square_sum)(1j), InputError, "argument 0 is complex"),
    "objects": (lambda: fastbp.grad(square_sum)(np.array([None])), InputError, "argument 0 .*dtype object"),
    "3-d": (
        lambda: fastbp.grad(square_sum)(np.ones((2, 2, 2))),
        InputError,
        r"at most 2 dimensions; got shape \(2, 2, 2\)",
    ),
    "empty": (
        lambda: fastbp.grad(square_sum)(np.ones((3, 0))),
        InputError,
        r"arrays with elements; got shape \(3, 0\)",
    ),
    "masked": (lambda: fastbp.grad(square_sum)(np.ma.masked_array(B)), InputError, "masked array"),
    "a set": (lambda: fastbp.function(square_sum)({1.0}), InputError, "argument 0 is a set; arguments are"),
    "an object": (
        lambda: fastbp.function(lambda x, o: x)(1.0, types.SimpleNamespace(a=1)),
        InputError,
        "argument 1 is a SimpleNamespace",
    ),
    "hvp without v": (lambda: fastbp.hvp(square_sum)(B), InputError, "the last argument is the vector"),
    "hvp shape": (
        lambda: fastbp.hvp(square_sum)(B, np.ones(3)),
        InputError,
        r"hvp: v must have the argument's shape \(2,\)",
    ),
    "hvp structure": (lambda: fastbp.hvp(square_sum)(B, [B]), InputError, r"structure \*, got \[\*\]"),
    "hvp count": (lambda: fastbp.hvp(loss, (0, 1))(W, B, X, T, W), InputError, "v must be a tuple of 2 vectors"),
    "jvp lengths": (lambda: fastbp.jvp(square_sum)((B,), ()), InputError, "two tuples of the same length"),
    "jvp no tuple": (lambda: fastbp.jvp(square_sum)(B, B), InputError, "two tuples"),
    "jvp none": (lambda: fastbp.jvp(square_sum)((B,), (None,)), InputError, "all tangents are None"),
    "jvp shape": (
        lambda: fastbp.jvp(square_sum)((B,), (np.ones(3),)),
        InputError,
        "tangents must have the argument's shape",
    ),
    "sizes": (lambda: fastbp.grad(lambda w, x: fastbp.sum(x @ w))(W, np.ones((5, 4))), InputError, "matmul: shapes"),
    "branch": (lambda: fastbp.grad(lambda x: x if x > 0 else -x)(1.0), TraceError, "branch with fastbp.where"),
    "trace inside": (
        lambda: fastbp.grad(lambda x: fastbp.trace(square_sum, x).value)(B),
        TraceError,
        "trace cannot be",
    ),
    "trace": (lambda: fastbp.trace(lambda x: x * 2.0, B), InputError, "trace: the function must return a scalar"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_what_and_what_is_needed(name):
    f, kind, message = ERRORS[name]
    with pytest.raises(kind, match=message):
        f()


def test_other_frameworks_arrays_are_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(InputError, match=r"argument 0 is a Tensor; .*pass np\.asarray of it"):
        fastbp.grad(square_sum)(torch.ones(2))


def test_a_tracer_that_leaks():
    kept = []
    fastbp.grad(lambda x: kept.append(x) or square_sum(x))(B)
    for use in (lambda: kept[0] + 1.0, lambda: fastbp.sum(kept[0]), lambda: fastbp.grad(square_sum)(kept[0])):
        with pytest.raises(TraceError, match=r"has left the function|must not leave the function"):
            use()
    with pytest.raises(TraceError, match="has left the function"):
        fastbp.grad(lambda x: fastbp.sum(x * kept[0]))(B)
    assert issubclass(TraceError, GraphError)
    assert issubclass(GraphError, FastbpError)


def test_exceptions_of_the_function_come_through():
    def f(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fastbp.grad(f)(B)
    assert fastbp.grad(square_sum)(B).shape == (2,)


# ---- every value on the way ----------------------------------------------------------------------------------------


def test_the_trace_of_a_chain(backend):
    """f(g(h(j(x)))): what a lecture writes on the edges."""
    x = 0.7
    j, h, g, f = x**2, np.tanh(x**2), np.exp(np.tanh(x**2)), np.log(np.exp(np.tanh(x**2)))
    trace = fastbp.trace(lambda x: np.log(np.exp(np.tanh(np.square(x)))), x, backend=backend)
    assert [s.name for s in trace.steps] == ["input", "square", "tanh", "exp", "log"]
    assert [s.symbol for s in trace.steps] == ["x", "v1", "v2", "v3", "v4"]
    assert [s.inputs for s in trace.steps] == [(), (0,), (1,), (2,), (3,)]
    np.testing.assert_allclose([s.value for s in trace.steps], [x, j, h, g, f], rtol=1e-14)
    locals_ = [2 * x, 1 - h**2, g, 1 / g]
    gradients = [np.prod(locals_[k:]) for k in range(5)]
    np.testing.assert_allclose([s.gradient for s in trace.steps], gradients, rtol=1e-13)
    handed = [s.edges[0].contribution for s in trace.steps[1:]]
    np.testing.assert_allclose(handed, gradients[:4], rtol=1e-13)
    assert trace.value == trace.steps[4].value
    close(trace.gradients[0], gradients[0], 1e-13)
    lines = str(trace).splitlines()
    assert lines[0].split() == ["step", "value", "dL/dstep,", "L", "=", "v4", "hands", "back"]
    assert lines[2].split() == ["x", "0.7", f"{gradients[0]:.4g}"]
    assert "v2 = tanh(v1)" in lines[4]
    assert f"to v1: 1 · {1 - h**2:.4g} = {1 - h**2:.4g}" in lines[4]


def test_a_trace_sums_what_the_edges_hand_back(backend):
    c = np.array([1.0, 2.0, 3.0])

    def f(p, x, labels):
        z = x @ p["w"] + p["b"]
        y = fastbp.where(z > 0, z * z, -z) + x[:, 0] * c
        return fastbp.mean(y) * 2.0 + fastbp.sum(p["w"][labels] * p["w"][labels])

    args = ({"w": B, "b": 0.3}, X[:3, :2], np.array([1, 0, 1]))
    assert isinstance(fastbp.trace(f, *args, argnums=[0], backend=backend).gradients, tuple)
    trace = fastbp.trace(f, *args, argnums=0, backend=backend)
    symbols = [s.symbol for s in trace.steps]
    assert symbols[:3] == ["p['w']", "p['b']", "x"]
    assert any(s.name == "constant" and np.array_equal(s.value, c) for s in trace.steps)
    into = {s.number: np.zeros(np.shape(s.value)) for s in trace.steps}
    for step in trace.steps:
        assert len(step.edges) == len(step.inputs)
        for edge, source in zip(step.edges, step.inputs, strict=True):
            assert edge.source == source < step.number
            assert np.shape(edge.contribution) == np.shape(trace.steps[source].value)
            into[source] = into[source] + edge.contribution
    for step in trace.steps:
        if step.number != trace.result:
            close(step.gradient, into[step.number], 1e-12, 1e-13)
    close(trace.value, f(*args), 1e-13)
    expected = fastbp.grad(f)(*args)
    close(trace.gradients["w"], expected["w"], 1e-12)
    close(trace.gradients["b"], expected["b"], 1e-12)
    assert len(str(trace).splitlines()) == len(trace.steps) + 2
    every = fastbp.trace(f, *args, backend=backend).gradients
    assert every[2] is None
    close(every[1], fastbp.grad(f, 1)(*args), 1e-12)


def test_traces_of_small_things(backend):
    assert fastbp.trace(lambda x: x, 2.0, backend=backend).gradients == (1.0,)
    constant = fastbp.trace(lambda x: 3.0, 2.0, backend=backend)
    assert constant.value == 3.0
    assert constant.gradients == (0.0,)
    twice = fastbp.trace(lambda x: x * x, 3, backend=backend)
    assert [e.contribution for e in twice.steps[1].edges] == [3.0, 3.0]
    assert twice.steps[1].text == "x · x"
    inside = fastbp.trace(lambda x: fastbp.grad(lambda y: y**3)(x), 2.0, backend=backend)
    assert inside.value == 12.0
    assert inside.gradients == (12.0,)
