"""Checks of every operation, activation, loss and update rule, on every backend: ``fastbp check``, and the tests.

Two questions are asked. Is the gradient right? In float64 it is compared with central differences. Is the machine as
exact as it should be? Its float32 results are compared with the float64 array reference; their error may be twice that
of the same array code in float32, or 1e-6. The cases stand in one table, which the tests run through too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastbp import arrays, backends, graph, ops, scalars
from fastbp.functional import dense
from fastbp.losses import LOSSES
from fastbp.network import MLP
from fastbp.nodes import Node
from fastbp.optim import OPTIMIZERS
from fastbp.plan import plan
from fastbp.scalars import ACTIVATIONS

Array = npt.NDArray[Any]
Values = dict[str, Array]

# (rows, widths): 1, primes, ragged edges of vectors and tiles, wide, deep, many rows
SHAPES: tuple[tuple[int, tuple[int, ...]], ...] = (
    (1, (1, 1)),
    (1, (7, 13, 97)),
    (2, (13, 1031, 3)),
    (5, (1031, 97, 13)),
    (7, (13, 1, 7)),
    (8, (16, 24, 48, 8)),
    (33, (97, 13)),
    (130, (1031, 7, 1)),
    (4099, (7, 13, 2)),
)
SMALL: tuple[int, tuple[int, ...]] = (6, (3, 5, 4, 2))  # for central differences over every parameter
GRADIENT_LIMIT = 1e-7  # relative, of float64 against central differences
FLOAT32_FLOOR = 1e-6
STEP = 1e-5  # of central differences: error about h² + 1e-16/h, relative to values of order 1


@dataclass(frozen=True)
class CheckResult:
    """The worst of a group of cases: ``worst`` is an error, ``limit`` what it may be."""

    what: str
    backend: str
    dtype: str
    cases: int
    worst: float
    limit: float
    passed: bool


@dataclass(frozen=True)
class Case:
    """A scalar of some parameters: a graph and values to try it on, float64."""

    name: str
    loss: Node
    values: Values
    wrt: tuple[Node, ...]

    def gradients(self, backend: str, dtype: str) -> list[Array]:
        outputs = {f"d{k}": node for k, node in enumerate(graph.gradients(self.loss, list(self.wrt)))}
        found = _compiled(outputs, backend, dtype)(self.values)
        return [found[name] for name in outputs]

    def differences(self, backend: str) -> list[Array]:
        """Central differences of the loss, an element of a parameter at a time, in float64."""
        run = _compiled({"loss": self.loss}, backend, "float64")

        def loss_at(name: str, place: tuple[int, ...], shift: float) -> float:
            shifted = {k: v.copy() if k == name else v for k, v in self.values.items()}
            shifted[name][place] += shift
            return float(run(shifted)["loss"][0, 0])

        results = []
        for node in self.wrt:
            result = np.empty(self.values[node.name].shape)
            for place in np.ndindex(result.shape):
                result[place] = (loss_at(node.name, place, STEP) - loss_at(node.name, place, -STEP)) / (2 * STEP)
            results.append(result)
        return results


def _compiled(outputs: dict[str, Node], backend: str, dtype: str) -> Callable[[Values], Values]:
    """The outputs as a function of values; from the host and to it, whatever the backend computes on."""
    machine, kind = backends.executable(plan(outputs), backend, dtype), arrays.kind_for(backend)

    def run(values: Values) -> Values:
        typed = {k: v if v.dtype.kind == "i" else np.ascontiguousarray(v, dtype) for k, v in values.items()}
        found = machine.run({k: kind.moved(v) for k, v in typed.items()}, len(values["x"]))
        return {k: kind.to_host(v) for k, v in found.items()}

    return run


def relative_error(got: Array, expected: Array, floor: float = 1e-30) -> float:
    """‖got - expected‖/‖expected‖ in float64; infinite where only one of them is NaN."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    if not np.array_equal(np.isnan(got), np.isnan(expected)):
        return float("inf")
    size = max(float(np.linalg.norm(np.nan_to_num(expected))), floor)
    return float(np.linalg.norm(np.nan_to_num(got - expected))) / size


# ---- operations -----------------------------------------------------------------------------------------------------

_POSITIVE = {"sqrt", "log", "power", "softplus_grad"}
_ROWS, _COLS = 4, 5


def _smooth(rng: np.random.Generator, shape: tuple[int, int], name: str) -> Array:
    """Values away from the kinks at 0 and ±1, positive where the operation asks for it."""
    sign: Any = 1.0 if name in _POSITIVE else rng.choice([-1.0, 1.0], shape)
    values: Array = sign * (rng.uniform(0.1, 0.9, shape) + rng.integers(0, 2, shape))
    return values


def operation_cases(seed: int = 0) -> Iterator[Case]:
    """A case for every operation of ``ops.TABLE`` that has a gradient, and for every way of broadcasting."""
    rng = np.random.default_rng(seed)
    weights = {"r": rng.normal(size=(_ROWS, _COLS))}
    x, r = graph.input("x", _COLS), graph.input("r", _COLS)

    def case(name: str, out: Node, values: Values, *wrt: Node) -> Case:
        factor = r if out.shape == r.shape else graph.constant(1.3)
        return Case(name, (out * factor).sum(), weights | values, wrt)

    for name, op in ops.TABLE.items():
        if op.kind == "unary":
            values = {"x": _smooth(rng, (_ROWS, _COLS), name)}
            if all(rule is not None for rule in op.gradient):
                yield case(name, Node(name, (x,), {}), values, x)
        elif op.kind == "binary" and all(rule is not None for rule in op.gradient):
            for rows, cols in ((None, _COLS), (1, _COLS), (None, 1), (1, 1)):
                y = graph.input("y", cols, rows=rows)
                other = _smooth(rng, (rows or _ROWS, cols), "exponent" if name == "power" else name)
                values = {"x": _smooth(rng, (_ROWS, _COLS), name), "y": other * 1.1}
                yield case(f"{name} {ops.show(y.shape)}", Node(name, (x, y), {}), values, x, y)
    x_value = {"x": rng.normal(size=(_ROWS, _COLS))}
    for axis in (None, 0, 1):
        yield case(f"sum {axis}", x.sum(axis).square(), x_value, x)
        yield case(f"mean {axis}", x.mean(axis).square(), x_value, x)
        yield case(f"max {axis}", x.max(axis).square(), x_value, x)
        yield case(f"min {axis}", x.min(axis).square(), x_value, x)
        yield case(f"logsumexp {axis}", x.logsumexp(axis).square(), x_value, x)
    yield case("transpose", x.T.T, x_value, x)
    yield case("softmax", x.softmax(), x_value, x)
    yield case("log_softmax", x.log_softmax(), x_value, x)
    column = graph.input("c", 1)
    yield case(
        "broadcast_to", column.broadcast_to(r.shape), {"x": x_value["x"], "c": rng.normal(size=(_ROWS, 1))}, column
    )
    yield from _product_cases(rng, x, x_value)
    yield from _moving_cases(rng, x, x_value)


def _moving_cases(rng: np.random.Generator, x: Node, values: Values) -> Iterator[Case]:
    """Operations that pick, move and join elements; each result is squared, so that second derivatives are not 0."""

    def case(name: str, out: Node, more: Values, *wrt: Node) -> Case:
        return Case(name, out.square().sum(), values | more, wrt)

    y, row = graph.input("y", _COLS), graph.param("row", (1, _COLS))
    both = {"y": rng.normal(size=(_ROWS, _COLS)), "row": rng.normal(size=(1, _COLS))}
    mask = graph.input("mask", _COLS)
    chosen = {"mask": rng.integers(0, 2, (_ROWS, _COLS)).astype(float)}
    yield case("where", mask.where(x, y), both | chosen, x, y)
    yield case("where (1, d)", mask.where(x, row), both | chosen, x, row)
    yield case("clip", x.clip(-0.5, 0.5), {}, x)
    yield case("concat", graph.concat([x, y.exp(), x]), both, x, y)
    yield case("columns", x.columns(1, _COLS), {}, x)
    yield case("pad", x.pad(2, _COLS + 3), {}, x)
    yield case("reshape", x.reshape((ops.Size(_COLS, 0), ops.ONE)) * 2.0, {}, x)
    table, index = graph.param("table", (6, _COLS)), graph.input("index", 1, dtype="int")
    rows = {"table": rng.normal(size=(6, _COLS)), "index": rng.integers(0, 6, (_ROWS, 1))}
    yield case("take", table.take(index) * x, rows, table, x)
    yield case("scatter_add", x.scatter_add(index, 6) * table, rows, table, x)
    flat = graph.param("flat", (1, 2 * _COLS + 3))
    long = {"flat": rng.normal(size=(1, 2 * _COLS + 3))}
    yield case("view", x @ flat.view(3, _COLS, 2), long, x, flat)
    yield case("pack", graph.pack([row.exp(), row * flat.view(1, 1, _COLS)]), both | long, row, flat)
    yield case("place", row.place(2 * _COLS + 3, 2) * flat, both | long, row, flat)
    yield case("stop_gradient", x * row.stop_gradient(), both, x)


def _product_cases(rng: np.random.Generator, x: Node, values: Values) -> Iterator[Case]:
    """x (n, d) times w, either one transposed; w has n rows where x is transposed."""
    for ta in (False, True):
        for tb in (False, True):
            inner, symbolic = (_ROWS, graph.input("w", 3)) if ta else (_COLS, graph.param("w", (_COLS, 3)))
            w = rng.normal(size=(inner, 3))
            if tb and not ta:
                symbolic, w = graph.param("w", (3, _COLS)), rng.normal(size=(3, _COLS))
            other = symbolic.T if ta and tb else symbolic
            product = x.matmul(other, ta=ta, tb=tb)
            yield Case(f"matmul ta={ta} tb={tb}", product.tanh().sum(), values | {"w": w}, (x, symbolic))


# ---- networks -------------------------------------------------------------------------------------------------------


def fits(layers: Sequence[int], loss: str) -> bool:
    """Whether a network of these widths can have the loss: a softmax needs two outputs."""
    return layers[-1] > 1 or LOSSES[loss].output != "softmax"


def batch_of(n: int, layers: Sequence[int], loss: str, seed: int, scale: float = 1.0) -> tuple[Array, Array]:
    """Inputs N(0, scale²) and fitting targets, float64: labels for cross entropy with an odd seed, else a matrix."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, layers[0])) * scale
    if loss != "cross_entropy":
        return X, rng.uniform(0.05, 0.95, (n, layers[-1]))
    labels = rng.integers(0, layers[-1], n)
    return X, labels if seed % 2 and layers[-1] > 1 else np.eye(layers[-1])[labels]


def _kink_distance(net: MLP, X: Array, T: Array) -> float:
    """How far the batch stays from the points where relu, leaky_relu, mae and huber have no derivative."""
    a, distances = X, [1.0]
    for w, b, name in list(zip(net.weights, net.biases, net.activations, strict=True))[:-1]:
        if name in ("relu", "leaky_relu"):
            distances.append(float(np.abs(dense(a, w, b)).min()))
        a = dense(a, w, b, name)
    if net.loss_name in ("mae", "huber"):
        distances.append(float(np.abs(np.abs(net.forward(X) - T) - (net.loss_name == "huber")).min()))
    return min(distances)


def _same_on(start: MLP, backend: str, dtype: str) -> MLP:
    """A network on the backend with the parameters of one on the host."""
    net = MLP.from_config(start.config() | {"dtype": dtype}, backend)
    net.theta = net.kind.moved(start.theta)
    return net


def _gradient(net: MLP, X: Array, T: Array) -> Array:
    """The gradient for data on the host, there."""
    gradient: Array = net.kind.to_host(net.loss_and_grad(net.kind.moved(X), net.kind.moved(T))[1])
    return gradient


def gradient_error(activation: str, loss: str, backend: str) -> float:
    """Relative error of the float64 gradient of a small network against central differences, at a smooth place."""
    n, layers = SMALL
    for seed in range(100):
        start = MLP(layers, activation=activation, loss=loss, dtype="float64", backend="numpy", seed=seed)
        start.theta = start.theta + np.random.default_rng(seed).normal(size=start.theta.shape) * 0.1
        X, T = batch_of(n, layers, loss, seed)
        if _kink_distance(start, X, T) > 100 * STEP:
            break
    net, theta = _same_on(start, backend, "float64"), start.theta
    gradient = _gradient(net, X, T)
    X, T = net.kind.moved(X), net.kind.moved(T)
    numeric = np.empty_like(gradient)
    for k in range(len(theta)):
        both = []
        for shift in (STEP, -STEP):
            net.theta[k] = theta[k] + shift
            both.append(float(net.loss(X, T)))
        net.theta[k] = theta[k]
        numeric[k] = (both[0] - both[1]) / (2 * STEP)
    return relative_error(gradient, numeric, floor=1e-3)


def float32_errors(
    n: int, layers: Sequence[int], activation: str, loss: str, backend: str, scale: float = 1.0, draws: int = 4
) -> tuple[float, float]:
    """Root-mean-square relative error over several draws of the float32 gradient: the backend's, and array code's."""
    squares = np.zeros(2)
    for seed in range(draws):
        X, T = batch_of(n, layers, loss, seed, scale)
        X, T = X.astype(np.float32), T if T.dtype.kind == "i" else T.astype(np.float32)
        start = MLP(layers, activation=activation, loss=loss, backend="numpy", seed=seed)
        machines = (("numpy", "float64"), (backend, "float32"), ("numpy", "float32"))
        found = [_gradient(_same_on(start, name, dtype), X, T) for name, dtype in machines]
        squares += [relative_error(g, found[0]) ** 2 for g in found[1:]]
    own, array = np.sqrt(squares / draws)
    return float(own), float(array)


# ---- update rules ---------------------------------------------------------------------------------------------------


def update_error(rule: str, backend: str, dtype: str) -> float:
    """Relative error of one update, parameters and states together, against float64 array code."""
    optimizer = next(kind() for kind in OPTIMIZERS.values() if kind.rule == rule)  # type: ignore[call-arg]
    rng = np.random.default_rng(0)
    theta, g = rng.normal(size=(2, 1031)).astype(np.float32)
    results = []
    for name, of in (("numpy", "float64"), (backend, dtype)):
        kind = arrays.kind_for(name)
        t, gradient = kind.moved(theta.astype(of)), kind.moved(g.astype(of))
        state = optimizer.init(t)
        for _ in range(3):
            optimizer.update(t, gradient, state, backend=name)
        results.append(np.concatenate([kind.to_host(v).reshape(-1) for v in (t, *state.vectors)]))
    return relative_error(results[1], results[0])


# ---- all of it ------------------------------------------------------------------------------------------------------


def run_checks(backends_: Sequence[str] | None = None, dtypes: Sequence[str] | None = None) -> list[CheckResult]:
    """Run every check on the given backends (all that this machine can run) and dtypes (both).

    float64: gradients against central differences. float32: errors against the float64 reference, as a multiple of
    what is allowed.
    """
    results = []
    for backend in [backends.resolve(b) for b in backends_ or backends.available_backends()]:
        for dtype in [backends.resolve_dtype(d) for d in dtypes or ("float64", "float32")]:
            groups = _float64_groups(backend) if dtype == "float64" else _float32_groups(backend)
            for what, errors, limit in groups:
                worst = float(np.max(errors))  # NaN if any is
                results.append(CheckResult(what, backend, dtype, len(errors), worst, limit, worst <= limit))
    return results


def _float64_groups(backend: str) -> Iterator[tuple[str, list[float], float]]:
    errors = [
        relative_error(got, expected, floor=1e-3)
        for case in operation_cases()
        for got, expected in zip(case.gradients(backend, "float64"), case.differences(backend), strict=True)
    ]
    yield "gradients of operations against central differences", errors, GRADIENT_LIMIT
    for activation in ACTIVATIONS:
        errors = [gradient_error(activation, loss, backend) for loss in LOSSES]
        yield f"gradients with {activation}, every loss, against central differences", errors, GRADIENT_LIMIT
    yield "update rules against array code", [update_error(r, backend, "float64") for r in scalars.UPDATES], 1e-14


def _float32_groups(backend: str) -> Iterator[tuple[str, list[float], float]]:
    errors = []
    for case in operation_cases():
        reference = case.gradients("numpy", "float64")
        pairs = zip(case.gradients(backend, "float32"), case.gradients("numpy", "float32"), reference, strict=True)
        errors += [_allowed(relative_error(own, ref), relative_error(array, ref)) for own, array, ref in pairs]
    yield "operations, error over what is allowed", errors, 1.0
    for activation in ACTIVATIONS:
        errors = [
            _allowed(*float32_errors(n, layers, activation, loss, backend, draws=2))
            for loss in LOSSES
            for n, layers in SHAPES[:3]
            if fits(layers, loss)
        ]
        yield f"gradients with {activation}, every loss, error over what is allowed", errors, 1.0
    yield "update rules against float64", [update_error(r, backend, "float32") for r in scalars.UPDATES], 1e-6


def _allowed(own: float, array: float) -> float:
    """The error as a multiple of what is allowed: twice that of array code in the same dtype, or the floor."""
    return own / max(2.0 * array, FLOAT32_FLOOR)
