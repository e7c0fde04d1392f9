"""The vector functions: accuracy in units of the last place, and the special values."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

from fastbp import backends, graph, ops, scalars
from fastbp.backends.cpu import gemm, simd
from fastbp.backends.cpu.target import HAS_FMA
from fastbp.backends.cpu.words import TERNARY_CODES
from fastbp.backends.llvm import LARGEST_ANGLE
from fastbp.nodes import Node
from fastbp.plan import plan

mpmath.mp.dps = 40
INF, NAN = float("inf"), float("nan")


def apply(name: str, values, dtype: str) -> np.ndarray:
    x = np.ascontiguousarray(values, dtype).reshape(1, -1)
    run = backends.executable(plan({"y": Node(name, (graph.input("x", x.shape[1]),), {})}), "cpu", dtype)
    return run.run({"x": x}, 1)["y"][0]


def combine(name: str, x, y, dtype: str) -> np.ndarray:
    values = {k: np.ascontiguousarray(v, dtype).reshape(1, -1) for k, v in {"x": x, "y": y}.items()}
    x, y = (graph.input(k, v.shape[1]) for k, v in values.items())
    return backends.executable(plan({"c": Node(name, (x, y), {})}), "cpu", dtype).run(values, 1)["c"][0]


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
    "sin": mpmath.sin,
    "cos": mpmath.cos,
    "erf": mpmath.erf,
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


def exact_of(f, *values: np.ndarray) -> list:
    return [
        f(*(mpmath.mpf(v) for v in point)) for point in zip(*(v.astype(float).tolist() for v in values), strict=True)
    ]


@pytest.mark.parametrize("name", ["sin", "cos"])
def test_accuracy_of_sines_and_cosines(name, dtype):
    """Next to multiples of pi/2, on both sides of the limit of the vector code, and of any size."""
    rng = np.random.default_rng(0)
    limit = LARGEST_ANGLE[dtype]
    multiples = rng.integers(1, int(limit * 2 / np.pi), 300).tolist() + list(range(-8, 9))
    near = np.array([float(k * mpmath.pi / 2) for k in multiples]).astype(dtype)
    largest = float(np.log10(np.finfo(dtype).max))
    sizes = 10 ** rng.uniform(-largest, largest, 400)
    parts = [
        near,
        np.nextafter(near, 0, dtype=dtype),
        rng.uniform(-limit, limit, 300),
        limit * rng.uniform(0.9, 1.1, 200),
    ]
    points = np.concatenate([*parts, sizes, -sizes]).astype(dtype)
    with mpmath.workdps(350):
        exact = exact_of(getattr(mpmath, name), points)
    assert ulps(apply(name, points, dtype), exact, dtype) <= 1.5


def test_accuracy_of_erf(dtype):
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.uniform(-s, s, 300) for s in (7.0, 1.1, 0.1, 1e-20)]).astype(dtype)
    assert ulps(apply("erf", points, dtype), exact_of(mpmath.erf, points), dtype) <= 2


def test_accuracy_of_power(dtype):
    """Powers of every size, of bases next to 1 too, where the exponent is large; with and without fma."""
    rng = np.random.default_rng(0)
    low, high = (-103.0, 88.5) if dtype == "float32" else (-744.0, 709.0)
    for spread in (80.0, 3.0, 1e-2, 1e-6):
        x = np.exp(rng.uniform(-spread, spread, 400)).astype(dtype)
        x[x == 1] = 1.5
        for size in (1.0, 0.01):
            y = (rng.uniform(low, high, 400) * size / np.log(x.astype(float))).astype(dtype)
            assert ulps(combine("power", x, y, dtype), exact_of(mpmath.power, x, y), dtype) <= 2
    x, y = -rng.uniform(0.1, 9, 300).astype(dtype), rng.integers(-30, 31, 300).astype(dtype)
    assert ulps(combine("power", x, y, dtype), exact_of(mpmath.power, x, y), dtype) <= 2
    x, y = (rng.uniform(0, 1, 300) * np.finfo(dtype).tiny).astype(dtype), rng.uniform(-1, 1, 300).astype(dtype)
    assert ulps(combine("power", x, y, dtype), exact_of(mpmath.power, x, y), dtype) <= 2


def special_pairs(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Every pair of values at which something may go wrong."""
    info = np.finfo(dtype)
    top = 2.0**info.nmant  # from here on every number is whole, from twice that even
    positive = [0, 1, 2, 3, 0.5, 1.5, 127, 1e10, INF, info.tiny, info.smallest_subnormal, info.max, 1 + info.eps]
    positive += [1 - info.epsneg, top / 2 + 0.5, top, top + 1, 2 * top - 1, 2 * top]
    values = np.array([*positive, *(-v for v in positive), NAN], dtype)
    x, y = np.meshgrid(values, values)
    return x.ravel(), y.ravel()


def test_special_values_of_power(dtype):
    """Those of C's pow, which NumPy calls."""
    x, y = special_pairs(dtype)
    with np.errstate(all="ignore"):
        expected = np.power(x, y)
    got = combine("power", x, y, dtype)
    np.testing.assert_allclose(got, expected, rtol=2 * np.finfo(dtype).eps, atol=0)  # atol 0: zeros and infinities too
    signed = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(got[signed]), np.signbit(expected[signed]))


def test_squares_are_exact(dtype):
    x = np.arange(-40.0, 41.0)
    np.testing.assert_array_equal(combine("power", x, np.full_like(x, 2.0), dtype), x * x)


@pytest.mark.parametrize("name", ["greater", "greater_equal", "equal"])
def test_comparisons(name, dtype):
    x, y = special_pairs(dtype)
    expected = np.where(np.isnan(x) | np.isnan(y), np.nan, 1.0 * getattr(np, name)(x, y))
    np.testing.assert_array_equal(combine(name, x, y, dtype), expected)


@pytest.fixture(scope="module")
def ternary():
    """The kernel of three operands, which is a compiled function's to call."""
    from numba import njit

    @njit(nogil=True, error_model="numpy")
    def run(code, n, out, x, x_step, y, y_step, z, z_step, one):
        x, y, z = simd.pointer(x, 0, one), simd.pointer(y, 0, one), simd.pointer(z, 0, one)
        gemm.apply_ternary(code, n, simd.pointer(out, 0, one), x, x_step, y, y_step, z, z_step)

    def apply(name: str, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        out = np.empty(max(v.size for v in (x, y, z)), x.dtype)
        operands = [part for v in (x, y, z) for part in (v.ctypes.data, int(v.size > 1))]
        run(TERNARY_CODES[name], out.size, out.ctypes.data, *operands, x.dtype.type(1))
        return out

    return apply


def test_where(ternary, dtype):
    c = np.array([0.0, -0.0, 1.0, -2.0, INF, -INF, NAN, np.finfo(dtype).smallest_subnormal] * 5, dtype)
    x, y = np.full(40, NAN, dtype), np.arange(40).astype(dtype)
    np.testing.assert_array_equal(ternary("where", c, x, y), np.where(c == 0, y, NAN))
    np.testing.assert_array_equal(ternary("where", c, y, x), np.where((c != 0) & ~np.isnan(c), y, NAN))
    np.testing.assert_array_equal(ternary("where", c, y, y[3:4])[:3], [3, 3, 2])
    np.testing.assert_array_equal(ternary("where", c[2:3], y, x), y)


def test_fma(ternary, dtype):
    rng = np.random.default_rng(0)
    x, y, z = rng.normal(size=(3, 67)).astype(dtype)
    np.testing.assert_allclose(ternary("fma", x, y, z), x * y + z, rtol=0, atol=4 * np.finfo(dtype).eps)
    np.testing.assert_allclose(ternary("fma", x, y[:1], z), x * y[0] + z, rtol=0, atol=4 * np.finfo(dtype).eps)
    if HAS_FMA:
        step = np.array([np.finfo(dtype).eps], dtype)
        assert ternary("fma", 1 + step, 1 - step, np.array([-1.0], dtype))[0] == -(step[0] ** 2)


def test_every_function_has_a_cost():
    for table in (scalars.UNARY, scalars.BINARY, scalars.TERNARY):
        assert set(table) <= set(ops.OPERATIONS)
    assert ops.OPERATIONS["power"] > ops.OPERATIONS["sin"] > ops.OPERATIONS["exp"]
    assert ops.OPERATIONS["fma"] == 2


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
    "sin": [(INF, NAN), (-INF, NAN), (NAN, NAN), (0.0, 0.0), (-0.0, -0.0), (1e-30, 1e-30), (-1e-30, -1e-30)],
    "cos": [(INF, NAN), (-INF, NAN), (NAN, NAN), (0.0, 1.0), (-0.0, 1.0), (1e-30, 1.0)],
    "erf": [(INF, 1.0), (-INF, -1.0), (NAN, NAN), (0.0, 0.0), (-0.0, -0.0), (30.0, 1.0), (-1e4, -1.0)],
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
    """Full vectors and ragged ends give the same bits, whatever stands in the other lanes."""
    values = np.random.default_rng(0).normal(size=67).astype(dtype)
    places = (0, 15, 16, 31, 63, 66)
    for name in ("sigmoid", "tanh", "gelu", "log", "sin", "cos", "erf"):
        whole = apply(name, values, dtype)
        for place in places:
            np.testing.assert_array_equal(apply(name, values[place : place + 1], dtype), whole[place : place + 1])
    mixed = values * 1000
    mixed[::3] = 1e20  # the C library's lanes
    for name in ("sin", "cos"):
        whole = apply(name, mixed, dtype)
        others = np.arange(67) % 3 > 0
        np.testing.assert_array_equal(whole[others], apply(name, values * 1000, dtype)[others])
        for place in places:
            np.testing.assert_array_equal(apply(name, mixed[place : place + 1], dtype), whole[place : place + 1])
    whole = combine("power", np.abs(values), values, dtype)
    for place in places:
        alone = slice(place, place + 1)
        np.testing.assert_array_equal(combine("power", np.abs(values[alone]), values[alone], dtype), whole[alone])
