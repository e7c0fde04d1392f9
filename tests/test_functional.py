"""dense and dense_backward: against plain formulas, finite differences, and at the edges of shapes and values."""

from __future__ import annotations

import math

import numpy as np
import pytest

import fastbp
from fastbp import dense, dense_backward
from fastbp.errors import InputError

BACKENDS = ("cpu", "numpy")
DTYPES = ("float32", "float64")
RTOL = {"float32": 2e-5, "float64": 1e-12}


def sigma(z):
    return 1 / (1 + np.exp(-z))


def phi(z):
    return np.vectorize(lambda v: 0.5 * (1 + math.erf(v / math.sqrt(2))), otypes=[float])(z)


# name -> f and f′ as functions of z, in the form that a textbook has them
PLAIN = {
    "identity": (lambda z: z, lambda z: np.ones_like(z)),
    "sigmoid": (sigma, lambda z: sigma(z) * (1 - sigma(z))),
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "relu": (lambda z: np.maximum(z, 0), lambda z: 1.0 * (z > 0)),
    "leaky_relu": (lambda z: np.where(z > 0, z, 0.01 * z), lambda z: np.where(z > 0, 1, 0.01)),
    "gelu": (lambda z: z * phi(z), lambda z: phi(z) + z * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)),
    "silu": (lambda z: z * sigma(z), lambda z: sigma(z) + z * sigma(z) * (1 - sigma(z))),
    "softplus": (lambda z: np.log1p(np.exp(z)), sigma),
}
SAVES_Z = {"gelu", "silu"}


def layer(rows, d, k, dtype="float64", seed=0):
    """X, W, b, dA for a layer, of the dtype."""
    rng = np.random.default_rng([seed, rows, d, k])
    shapes = ((rows, d), (d, k), (k,), (rows, k))
    x, w, b, da = (rng.normal(size=s).astype(dtype) for s in shapes)
    return x, w / max(1.0, d**0.5), b, da


def close(found, expected, dtype):
    found = np.asarray(found)
    assert found.dtype == dtype
    assert found.shape == np.shape(expected)
    size = np.abs(expected).max() if np.size(expected) else 0.0
    np.testing.assert_allclose(found, expected, rtol=RTOL[dtype], atol=RTOL[dtype] * size)


def test_every_activation_has_a_plain_formula():
    assert set(PLAIN) == set(fastbp.functional.ACTIVATIONS)


# ---- forward and backward ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 5, 3), (1, 1, 1), (33, 17, 49), (5, 300, 2)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PLAIN)
def test_dense_and_its_backward_are_the_plain_formulas(name, backend, dtype, bias, shape):
    x, w, b, da = layer(*shape, dtype)
    f, slope = PLAIN[name]
    x64, w64, da64 = (v.astype(np.float64) for v in (x, w, da))
    z = x64 @ w64 + (b.astype(np.float64) if bias else 0.0)
    a, saved = dense(x, w, b if bias else None, name, save=True, backend=backend)
    close(a, f(z), dtype)
    close(saved, z if name in SAVES_Z else f(z), dtype)
    np.testing.assert_array_equal(dense(x, w, b if bias else None, name, backend=backend), a)
    dz = da64 * slope(z)
    dx, dw, db = dense_backward(da, x, w, saved, name, backend=backend)
    close(dx, dz @ w64.T, dtype)
    close(dw, x64.T @ dz, dtype)
    close(db, dz.sum(axis=0), dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PLAIN)
def test_backward_is_that_of_finite_differences(name, backend):
    x, w, b, da = layer(4, 3, 2)
    saved = dense(x, w, b, name, save=True, backend=backend)[1]
    found = dense_backward(da, x, w, saved, name, backend=backend)
    h = 1e-6
    for argument, gradient in zip((x, w, b), found, strict=True):
        expected = np.empty_like(argument)
        for index in np.ndindex(argument.shape):
            kept = argument[index]
            values = []
            for moved in (kept + h, kept - h):
                argument[index] = moved
                values.append((da * dense(x, w, b, name, backend=backend)).sum())
            argument[index] = kept
            expected[index] = (values[0] - values[1]) / (2 * h)
        np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PLAIN)
def test_no_rows(name, backend, dtype):
    x, w, b, da = layer(0, 5, 3, dtype)
    a, saved = dense(x, w, b, name, save=True, backend=backend)
    assert a.shape == saved.shape == (0, 3)
    assert a.dtype == dtype
    dx, dw, db = dense_backward(da, x, w, saved, name, backend=backend)
    assert dx.shape == (0, 5)
    np.testing.assert_array_equal(dw, np.zeros((5, 3)))
    np.testing.assert_array_equal(db, np.zeros(3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PLAIN)
def test_far_out_values_stay_numbers(name, backend, dtype):
    """e^-z sigmoid(z)^2 and its like give NaN here; the right derivative is 0 or 1."""
    z = np.array([[-1e4, -800.0, -200.0, -95.0, 0.0, 95.0, 200.0, 800.0, 1e4]], dtype).T
    one = np.ones((1, 1), dtype)
    a, saved = dense(z, one, None, name, save=True, backend=backend)
    dx, dw, _ = dense_backward(np.ones_like(z), z, one, saved, name, backend=backend)
    assert np.isfinite(a).all()
    assert np.isfinite(dx).all()
    assert np.isfinite(dw).all()
    left = {"leaky_relu": 0.01, "identity": 1.0}.get(name, 0.0)
    right = 0.0 if name in ("sigmoid", "tanh") else 1.0
    np.testing.assert_allclose(dx[:3, 0], left, rtol=1e-6, atol=1e-37)
    np.testing.assert_allclose(dx[-3:, 0], right, rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PLAIN)
def test_nan_stays_in_its_row(name, backend, dtype):
    x, w, b, da = layer(4, 3, 5, dtype)
    x[1, 2] = np.nan
    a, saved = dense(x, w, b, name, save=True, backend=backend)
    assert np.isnan(a[1]).all()
    assert np.isfinite(np.delete(a, 1, axis=0)).all()
    da[2, 0] = np.nan
    dx, dw, db = dense_backward(da, np.nan_to_num(x), w, np.nan_to_num(saved), name, backend=backend)
    assert np.isnan(dx[2]).all()
    assert np.isfinite(np.delete(dx, 2, axis=0)).all()
    assert np.isnan(dw[:, 0]).all()
    assert np.isnan(db[0])
    assert np.isfinite(dw[:, 1:]).all()


# ---- what comes in and what goes out -------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_dtype_is_that_of_x(backend):
    x, w, b, da = layer(4, 3, 2)
    for kind, dtype in ((np.float32, "float32"), (np.float64, "float64"), (np.float16, "float64"), (int, "float64")):
        a, saved = dense(x.astype(kind), w, b, "tanh", save=True, backend=backend)
        close(a, np.tanh(x.astype(kind).astype(float) @ w + b), dtype)
        gradients = dense_backward(da, x.astype(kind), w.astype(np.float32), saved, "tanh", backend=backend)
        assert {g.dtype for g in gradients} == {np.dtype(dtype)}
    assert dense([[1, 2], [3, 4]], [[1], [10]], [100], backend=backend).tolist() == [[121.0], [143.0]]
    assert dense(np.ones((2, 2), bool), np.ones((2, 1), np.uint8), backend=backend).tolist() == [[2.0], [2.0]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_memory_layout(backend, dtype):
    """Transposed, strided, reversed, read-only, byte-swapped and unaligned arrays give the same bits."""
    x, w, b, da = layer(6, 5, 4, dtype)
    expected = dense(x, w, b, "sigmoid", backend=backend)
    saved = expected
    backward = dense_backward(da, x, w, saved, "sigmoid", backend=backend)

    def strided(v):
        wide = np.full([2 * s for s in v.shape], np.nan, v.dtype)
        wide[tuple(slice(None, None, 2) for _ in v.shape)] = v
        return wide[tuple(slice(None, None, 2) for _ in v.shape)]

    def turned(v):
        return np.ascontiguousarray(v[::-1])[::-1]

    def unaligned(v):
        found = np.ndarray(v.shape, v.dtype, bytearray(v.nbytes + 1), 1)
        found[...] = v
        return found

    def read_only(v):
        v = v.copy()
        v.flags.writeable = False
        return v

    layouts = (np.asfortranarray, strided, turned, unaligned, read_only, lambda v: v.astype(v.dtype.newbyteorder(">")))
    for layout in layouts:
        arrays = [layout(v) for v in (x, w, b, da, saved)]
        copies = [v.copy() for v in arrays]
        if arrays[0].dtype == x.dtype:
            found = dense(*arrays[:3], "sigmoid", backend=backend)
            np.testing.assert_array_equal(found, expected)
            again = dense_backward(arrays[3], arrays[0], arrays[1], arrays[4], "sigmoid", backend=backend)
            for one, other in zip(again, backward, strict=True):
                np.testing.assert_array_equal(one, other)
        else:
            np.testing.assert_allclose(dense(*arrays[:3], "sigmoid", backend=backend), expected, rtol=1e-5)
        for v, copy in zip(arrays, copies, strict=True):
            np.testing.assert_array_equal(v, copy)


@pytest.mark.parametrize("name", ["identity", "tanh", "gelu"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_results_are_the_callers_own(backend, name):
    """No result lies in an argument or in what a later call writes."""
    x, w, b, da = layer(3, 3, 3)
    a, saved = dense(x, w, b, name, save=True, backend=backend)
    gradients = dense_backward(da, x, w, saved, name, backend=backend)
    for result in (a, *gradients):
        assert result.flags.writeable
        for argument in (x, w, b, da):
            assert not np.shares_memory(result, argument)
    kept = [g.copy() for g in (a, saved, *gradients)]
    dense_backward(2 * da, 2 * x, w, dense(2 * x, w, b, name, save=True, backend=backend)[1], name, backend=backend)
    for before, after in zip(kept, (a, saved, *gradients), strict=True):
        np.testing.assert_array_equal(before, after)


def test_identity_needs_nothing_saved():
    x, w, _, da = layer(4, 3, 2)
    dx, dw, db = dense_backward(da, x, w, None)
    np.testing.assert_allclose(dx, da @ w.T, rtol=1e-13)
    np.testing.assert_allclose(dw, x.T @ da, rtol=1e-13)
    np.testing.assert_allclose(db, da.sum(axis=0), rtol=1e-13)


def test_a_bias_may_be_a_row():
    x, w, b, _ = layer(4, 3, 2)
    np.testing.assert_array_equal(dense(x, w, b[None, :]), dense(x, w, b))


def test_the_default_backend_can_be_switched(monkeypatch):
    from fastbp import functional

    asked = []
    original = functional.backends.executable
    monkeypatch.setattr(
        functional.backends,
        "executable",
        lambda p, backend, dtype: asked.append(backend) or original(p, backend, dtype),
    )
    functional._forward.cache_clear()
    x, w, _, _ = layer(2, 13, 11)
    with fastbp.use_backend("numpy"):
        dense(x, w)
        dense(x, w, backend="cpu")
    dense(x, w)
    assert asked == ["numpy", "cpu"]


# ---- layers in a chain ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_chain_of_layers_is_a_network(backend):
    net = fastbp.MLP([4, 6, 5, 2], activation=["gelu", "sigmoid"], loss="sse", dtype="float64", backend=backend, seed=1)
    rng = np.random.default_rng(0)
    net.theta = rng.normal(0, 0.5, net.theta.shape)
    x, t = rng.normal(size=(9, 4)), rng.normal(size=(9, 2))
    below, saves = [x], []
    for w, b, f in zip(net.weights, net.biases, net.activations, strict=True):
        a, saved = dense(below[-1], w, b, f, save=True, backend=backend)
        below.append(a)
        saves.append(saved)
    g = 2 * (below[-1] - t)
    parts = []
    for k in (2, 1, 0):
        g, dw, db = dense_backward(g, below[k], net.weights[k], saves[k], net.activations[k], backend=backend)
        parts = [dw.ravel(), db, *parts]
    loss, gradient = net.loss_and_grad(x, t)
    np.testing.assert_allclose(loss, ((below[-1] - t) ** 2).sum(), rtol=1e-13)
    np.testing.assert_allclose(gradient, np.concatenate(parts), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_closed_form_of_a_bias_free_net_with_one_hidden_layer(backend):
    """S12, corrected: dW1 contains W2 and is taken at W1 X; f = s(s(X W1) W2), and |f - Y|^2 is the loss of a pair."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(1, 3)), rng.normal(size=(1, 2))
    w1, w2 = rng.normal(size=(3, 4)), rng.normal(size=(4, 2))
    hidden = dense(x, w1, None, "sigmoid", backend=backend)
    f = dense(hidden, w2, None, "sigmoid", backend=backend)
    dh, dw2, _ = dense_backward(2 * (f - y), hidden, w2, f, "sigmoid", backend=backend)
    dw1 = dense_backward(dh, x, w1, hidden, "sigmoid", backend=backend)[1]
    s1, s2 = sigma(x @ w1), sigma(sigma(x @ w1) @ w2)
    for i in range(3):
        for k in range(4):
            inner = sum(2 * (s2[0, m] - y[0, m]) * s2[0, m] * (1 - s2[0, m]) * w2[k, m] for m in range(2))
            assert dw1[i, k] == pytest.approx(inner * s1[0, k] * (1 - s1[0, k]) * x[0, i], rel=1e-12, abs=1e-15)
    for k in range(4):
        for m in range(2):
            expected = 2 * (s2[0, m] - y[0, m]) * s2[0, m] * (1 - s2[0, m]) * s1[0, k]
            assert dw2[k, m] == pytest.approx(expected, rel=1e-12)


# ---- refusals ------------------------------------------------------------------------------------------------------

X, W, B, DA = layer(4, 3, 2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: dense(X, W[:2]), ["X must be", "(n, 2)", "(4, 3)"]),
        (lambda: dense(X[0], W), ["X must be", "(3,)"]),
        (lambda: dense(X[None], W), ["X must be", "(1, 4, 3)"]),
        (lambda: dense(X, W[0]), ["W must be", "(2,)"]),
        (lambda: dense(X, W, B[:1]), ["b must be (2,)", "(1,)"]),
        (lambda: dense(X, W, B[:, None]), ["b must be (2,)", "(2, 1)"]),
        (lambda: dense(X, W, 1.0), ["b must be (2,)", "()"]),
        (lambda: dense(X, W, B + 1j), ["b must be (2,)", "complex128"]),
        (lambda: dense(X, W, [[1], [2, 3]]), ["b must be", "(2,)"]),
        (lambda: dense(X.astype(str), W), ["X must be", "dtype <U"]),
        (lambda: dense(X + 0j, W), ["X must be", "complex128"]),
        (lambda: dense([[1, 2, 3], [4]], W), ["X must be", "different lengths"]),
        (lambda: dense(X, W.astype(object)), ["W must be", "object"]),
        (lambda: dense(np.zeros((4, 0)), np.zeros((0, 2))), ["W must", "(0, 2)"]),
        (lambda: dense(X, W, B, "sigmod"), ["activation='sigmod'", "did you mean 'sigmoid'?"]),
        (lambda: dense(X, W, B, "softmax"), ["activation='softmax'"]),
        (lambda: dense(X, W, B, backend="numpi"), ["backend='numpi'", "did you mean 'numpy'?"]),
        (lambda: dense_backward(DA[:3], X, W, DA, "tanh"), ["dA has 3 rows", "X has 4"]),
        (lambda: dense_backward(DA, X, W, DA[:3], "tanh"), ["saved has 3 rows", "X has 4"]),
        (lambda: dense_backward(DA, X, W, DA[:, :1], "tanh"), ["saved must be", "(n, 2)", "(4, 1)"]),
        (lambda: dense_backward(DA, X, W, None, "tanh"), ["saved must be", "(n, 2)"]),
        (lambda: dense_backward(DA[:, :1], X, W, DA, "tanh"), ["dA must be", "(n, 2)", "(4, 1)"]),
        (lambda: dense_backward(DA, X, W, DA, "tan"), ["activation='tan'", "did you mean 'tanh'?"]),
    ],
)
def test_refusals_name_the_argument_what_came_and_what_is_needed(call, words):
    with pytest.raises(InputError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
