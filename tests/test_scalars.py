"""The vector functions: accuracy in units of the last place, and the special values."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

from fastbp import backends, graph
from fastbp.nodes import Node
from fastbp.plan import plan

mpmath.mp.dps = 40
INF, NAN = float("inf"), float("nan")


def apply(name: str, values, dtype: str) -> np.ndarray:
    x = np.ascontiguousarray(values, dtype).reshape(1, -1)
    run = backends.executable(plan({"y": Node(name, (graph.input("x", x.shape[1]),), {})}), "cpu", dtype)
    return run.run({"x": x}, 1)["y"][0]


def ulps(got: np.ndarray, exact: list, dtype: str) -> float:
    """The largest error in units of the last place of the exact value (of the smallest normal number below that)."""
    worst = 0.0
    for g, e in zip(got.tolist(), exact, strict=True):
        unit = mpmath.mpf(float(np.spacing(np.dtype(dtype).type(max(abs(float(e)), float(np.finfo(dtype).tiny))))))
        worst = max(worst, float(abs(mpmath.mpf(g) - e) / unit))
    return worst


SPANS = {"float32": 85.0, "float64": 700.0}
EXACT = {
    "exp": mpmath.exp,
    "tanh": mpmath.tanh,
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "softplus": lambda x: mpmath.log1p(mpmath.exp(x)),
    "silu": lambda x: x / (1 + mpmath.exp(-x)),
}


@pytest.mark.parametrize("name", EXACT)
def test_accuracy(name, dtype):
    rng = np.random.default_rng(0)
    span = SPANS[dtype]
    parts = [rng.uniform(-size, size, 300) for size in (span, 3.0, 1e-3, 1e-8)]
    points = np.concatenate(parts).astype(dtype)
    exact = [EXACT[name](mpmath.mpf(float(x))) for x in points]
    assert ulps(apply(name, points, dtype), exact, dtype) <= 4


def test_accuracy_of_log(dtype):
    rng = np.random.default_rng(0)
    parts = [np.exp(rng.uniform(-80, 80, 600)), rng.uniform(0.5, 2, 600), 1 + rng.normal(size=200) * 1e-4]
    points = np.concatenate([*parts, [np.finfo(dtype).tiny / 1024]]).astype(dtype)
    assert ulps(apply("log", points, dtype), [mpmath.log(mpmath.mpf(float(x))) for x in points], dtype) <= 4


def test_accuracy_of_gelu(dtype):
    """Relative where gelu is not small; in the left tail the distribution's own conditioning sets the limit."""
    points = np.random.default_rng(0).uniform(-4, 10, 1500).astype(dtype)
    exact = np.array([float(x * mpmath.ncdf(x)) for x in map(mpmath.mpf, points.astype(float).tolist())])
    got = apply("gelu", points, dtype).astype(float)
    assert np.max(np.abs(got - exact) / np.abs(exact)) <= 16 * np.finfo(dtype).eps


SPECIAL = {
    "exp": [(INF, INF), (-INF, 0.0), (0.0, 1.0), (1e4, INF), (-1e4, 0.0)],
    "log": [(INF, INF), (0.0, -INF), (-0.0, -INF), (-1.0, NAN), (-INF, NAN), (1.0, 0.0)],
    "tanh": [(INF, 1.0), (-INF, -1.0), (0.0, 0.0), (-0.0, -0.0), (1e4, 1.0)],
    "sigmoid": [(INF, 1.0), (-INF, 0.0), (0.0, 0.5), (1e4, 1.0), (-1e4, 0.0)],
    "softplus": [(INF, INF), (-INF, 0.0), (1e4, 1e4), (-1e4, 0.0)],
    "relu": [(INF, INF), (-INF, 0.0), (-1e4, 0.0)],
    "leaky_relu": [(INF, INF), (-INF, -INF)],
    "gelu": [(INF, INF), (1e4, 1e4), (-1e4, -0.0), (0.0, 0.0)],
    "silu": [(INF, INF), (1e4, 1e4), (-1e4, -0.0), (0.0, 0.0)],
    "sqrt": [(INF, INF), (0.0, 0.0), (-1.0, NAN)],
}


@pytest.mark.parametrize("name", SPECIAL)
def test_special_values(name, dtype):
    for x, expected in SPECIAL[name]:
        got = apply(name, [x], dtype)[0]
        np.testing.assert_array_equal(got, np.dtype(dtype).type(expected), err_msg=f"{name}({x})")
        assert np.isnan(expected) or np.signbit(got) == np.signbit(expected), f"{name}({x})"


def test_exp_reaches_into_the_subnormals(dtype):
    low = -100.0 if dtype == "float32" else -740.0
    got = apply("exp", [low], dtype)[0]
    assert 0 < got < np.finfo(dtype).tiny
    assert abs(float(got) - float(mpmath.exp(low))) <= float(np.finfo(dtype).smallest_subnormal)


def test_an_element_does_not_depend_on_its_place(dtype):
    """Full vectors and ragged ends give the same bits."""
    values = np.random.default_rng(0).normal(size=67).astype(dtype)
    for name in ("sigmoid", "tanh", "gelu", "log"):
        whole = apply(name, values, dtype)
        for place in (0, 15, 16, 31, 63, 66):
            np.testing.assert_array_equal(apply(name, values[place : place + 1], dtype), whole[place : place + 1])
