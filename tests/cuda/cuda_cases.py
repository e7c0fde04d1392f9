"""The table of cases of the CUDA machine, for the simulator and for a card alike, and how results are judged.

What is large is for a card alone. Nothing here imports what only one of the two has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastbp import backends, checks, graph
from fastbp.backends.cuda.device import SIMULATED
from fastbp.plan import plan
from fastbp.program import Program

Values = dict[str, np.ndarray]
LIMITS = {"float32": 1e-6, "float64": 1e-14}
LIMITS_OF = {"tf32": 1e-3, "bf16": 1e-2}  # by precision, of one product
LAYOUTS = [(False, False), (False, True), (True, False), (True, True)]
SHAPES = [(1, 1, 1), (5, 7, 3), (65, 3, 1), (3, 66, 17), (64, 64, 33), (67, 5, 0)]
RAGGED = [(1, 1, 4099), (129, 127, 31), (257, 3, 1031), (1031, 1031, 33), (4099, 1031, 517), (31, 4099, 64)]  # large
MANY_ROWS = 1 << 18
WITHIN_LIMITS = 1024  # numbers in a sum for which LIMITS are meant


@dataclass(frozen=True)
class Case:
    """A Program, values to run it on, float64, and how many rows there are.

    Attributes:
        large: not for the simulator.
        one_product: whether every output is one product, so that it can be judged in tf32 and bf16.
        summed: numbers in its longest sum.
    """

    name: str
    make: Callable[[], tuple[Program, Values, int]]
    large: bool = False
    one_product: bool = False
    summed: int = 1

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Verdict:
    """The worst output: its error and what it may be."""

    error: float
    bound: float

    @property
    def right(self) -> bool:
        """Whether the error is within its bound; what is NaN is not."""
        return self.error <= self.bound


def typed(values: Mapping[str, Any], dtype: str) -> Values:
    """Values as a machine wants them: labels int64, the rest of that dtype."""
    return {
        name: np.ascontiguousarray(v, np.int64 if np.asarray(v).dtype.kind in "iu" else dtype)
        for name, v in values.items()
    }


def judge(case: Case, found: Mapping[str, np.ndarray], dtype: str, precision: str = "highest") -> Verdict:
    """Compare with array code in float64: an error may be twice that of array code in the same dtype, or the limit.

    In tf32 and bf16 the limit is the precision's, else it grows with the root of how many numbers are summed, as
    rounding errors do, those of the float64 to compare with, too. What is not finite has to be the same; shapes, too.
    """
    program, values, n = case.make()
    values = {name: v for name, v in values.items() if name in program.inputs}
    exact = backends.executable(program, "numpy", "float64").run(typed(values, "float64"), n)
    array = backends.executable(program, "numpy", dtype).run(typed(values, dtype), n)
    worst = Verdict(0.0, 1.0)
    for name, expected in exact.items():
        got, finite = found[name], np.isfinite(expected)
        if got.shape != expected.shape or not np.array_equal(got[~finite], expected[~finite], equal_nan=True):
            return Verdict(float("inf"), 0.0)
        error = checks.relative_error(got[finite], expected[finite])
        limit = LIMITS_OF.get(precision, LIMITS[dtype] * max(1.0, case.summed / WITHIN_LIMITS) ** 0.5)
        bound = max(2 * checks.relative_error(array[name][finite], expected[finite]), limit)
        if not error / bound <= worst.error / worst.bound:
            worst = Verdict(error, bound)
    return worst


# ---- the table -------------------------------------------------------------------------------------------------------


def operation(case: checks.Case) -> Case:
    """An operation's value and gradients."""

    def make() -> tuple[Program, Values, int]:
        outputs = {"loss": case.loss}
        outputs |= {f"d{k}": node for k, node in enumerate(graph.gradients(case.loss, list(case.wrt)))}
        return plan(outputs), case.values, len(case.values["x"])

    return Case(case.name, make)


def product(shape: tuple[int, int, int], ta: bool, tb: bool, large: bool = False) -> Case:
    """A product with an epilogue; of no inner rows, which are the batch's, without."""
    m, n, k = shape

    def make() -> tuple[Program, Values, int]:
        if not k:
            x = graph.input("x", 4).columns(0, 4)
            values = {"x": np.zeros((0, 4)), "z": np.zeros((0, n))}
            return plan({"y": x.matmul(graph.input("z", n), ta=True)}), values, 0
        rng = np.random.default_rng(0)
        a = graph.param("a", (k, m) if ta else (m, k))
        b = graph.param("b", (n, k) if tb else (k, n))
        row = graph.param("row", (1, n))
        values = {node.name: rng.normal(size=tuple(s.fixed for s in node.shape)) for node in (a, b, row)}
        values["a"] /= k**0.5  # so that tanh is not flat where sums are long
        return plan({"y": (a.matmul(b, ta=ta, tb=tb) + row).tanh()}), values, 1

    return Case(f"product {m}x{n}x{k} {'T' if ta else 'N'}{'T' if tb else 'N'}", make, large=large)


def layer(rows: int, widths: tuple[int, int], large: bool = False) -> Case:
    """A layer without activation, the gradients of its weights and of its input: one product each."""

    def make() -> tuple[Program, Values, int]:
        rng = np.random.default_rng(0)
        x, w, g = graph.input("x", widths[0]), graph.param("w", widths), graph.input("g", widths[1])
        a = x @ w
        dw, dx = graph.gradients((a * g).sum(), [w, x])
        values = {"x": rng.normal(size=(rows, widths[0])), "g": rng.normal(size=(rows, widths[1]))}
        return plan({"a": a, "dw": dw, "dx": dx}), values | {"w": rng.normal(size=widths)}, rows

    name = f"layer {widths[0]}-{widths[1]} on {rows} rows"
    return Case(name, make, large=large, one_product=True, summed=max(rows, *widths))


def cut_sums(rows: int, large: bool = False) -> Case:
    """dW and db over many rows: pieces, and a COMBINE with its epilogue."""

    def make() -> tuple[Program, Values, int]:
        rng = np.random.default_rng(0)
        x, g = graph.input("x", 3), graph.input("g", 5)
        dw = x.matmul(g, ta=True)
        values = {"x": rng.normal(size=(rows, 3)), "g": rng.normal(size=(rows, 5)), "c": rng.normal(size=(3, 5))}
        return plan({"dw": dw, "scaled": dw * graph.param("c", (3, 5)), "db": g.sum(axis=0)}), values, rows

    return Case(f"sums over {rows} rows", make, large=large, summed=rows)


def chain(rows: int, cols: int, large: bool = False) -> Case:
    """Elementwise work with every kind of result."""

    def make() -> tuple[Program, Values, int]:
        rng = np.random.default_rng(rows)
        x, column, row = graph.input("x", cols), graph.input("c", 1), graph.param("row", (1, cols))
        y = (x * row + column).sigmoid()
        outputs = {"y": y, "all": y.sum(), "down": y.sum(axis=0), "across": y.sum(axis=1), "top": y.max()}
        values = {
            "x": rng.normal(size=(rows, cols)),
            "c": rng.normal(size=(rows, 1)),
            "row": rng.normal(size=(1, cols)),
        }
        return plan(outputs | {"tops": y.max(1)}), values, rows

    return Case(f"chain {rows}x{cols}", make, large=large, summed=rows * cols)


def many_values() -> Case:
    """110 values that live at once: a chain for each step, in memory."""

    def make() -> tuple[Program, Values, int]:
        x = graph.input("x", 3)
        values = [(x * float(k)).sin() for k in range(110)]
        total = values[-1]
        for value in values[-2::-1]:
            total = total * 0.5 + value
        return plan({"y": total}), {"x": np.random.default_rng(0).normal(size=(2, 3))}, 2

    return Case("more values than registers", make)


def softmax(rows: int, cols: int) -> Case:
    """All that goes a row at a time."""

    def make() -> tuple[Program, Values, int]:
        x = graph.input("x", cols)
        outputs = {"p": x.softmax(), "log": x.log_softmax(), "sum": x.logsumexp(1), "t": x.T}
        return plan(outputs), {"x": np.random.default_rng(0).normal(size=(rows, cols)) * 5}, rows

    return Case(f"softmax {rows}x{cols}", make, large=True)


def onehot(rows: int, classes: int, large: bool = False) -> Case:
    """Labels as rows of 0 and 1; what is no class is NaN."""

    def make() -> tuple[Program, Values, int]:
        labels = np.random.default_rng(0).integers(0, classes, (rows, 1))
        labels[: rows // 3] = classes
        return plan({"y": graph.input("labels", 1, dtype="int").onehot(classes)}), {"labels": labels}, rows

    return Case(f"onehot {rows}x{classes}", make, large=large)


_ALL = (
    *map(operation, checks.operation_cases()),
    *(product(shape, ta, tb) for shape in SHAPES for ta, tb in LAYOUTS),
    *(product(shape, ta, tb, large=True) for shape in RAGGED for ta, tb in LAYOUTS),
    layer(70, (5, 3)),
    *(layer(rows, widths, large=True) for rows, widths in ((4099, (517, 131)), (8192, (1024, 1024)), (1, (13, 7)))),
    layer(MANY_ROWS, (64, 64), large=True),
    cut_sums(700),
    *(cut_sums(rows, large=True) for rows in (100_003, MANY_ROWS)),
    *(chain(rows, cols) for rows in (0, 1, 5, 33) for cols in (1, 3, 130)),
    *(chain(rows, cols, large=True) for rows, cols in ((4099, 1031), (MANY_ROWS, 3), (3, 100_003))),
    many_values(),
    onehot(7, 3),
    onehot(4099, 1031, large=True),
    softmax(4099, 10),
    softmax(130, 5003),
)
CASES = {case.name: case for case in _ALL if not (SIMULATED and case.large)}  # what can be run in this process
