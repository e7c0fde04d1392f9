"""The functions of graphs.py: the same results from everybody, and a short look at how each is timed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import graphs
import numpy as np
import peers
import pytest
import report_graphs
from graphs import CASES, LIBRARIES, Case, Fastbp, Firsts, Library

import fastbp
from fastbp import measure

TINY = peers.Effort(run=1e-4, pause=0.0, budget=0.0, fewest=2, most=2)
ONCE = Firsts(1, 0.0)
THREADS = 1
LARGE = (graphs.TorchCompiled, graphs.PyTensor)  # 3 to 20 s to compile
BOTH = [
    pytest.param(kind, name, id=f"{kind.name}-{name}", marks=[pytest.mark.large] if kind in LARGE else [])
    for kind in LIBRARIES
    for name in CASES
]


def started(kind: type[Library]) -> Library:
    if reason := kind.refuses():
        pytest.skip(reason)
    library = kind()
    library.start(THREADS)
    return library


def smaller(case: Case) -> Case:
    """The same function on few elements, where it matters."""
    if case.name == "30 operations":
        return replace(case, make=lambda rng: [rng.normal(size=2000)])
    return case


@pytest.mark.parametrize(("kind", "name"), BOTH)
def test_same_results_and_some_time(kind: type[Library], name: str) -> None:
    library = started(kind)
    (timing,) = graphs.compare(smaller(CASES[name]), [library], TINY, ONCE).values()
    assert timing.us > 0
    assert timing.first_ms > 0
    assert (timing.rounds, timing.repeats) == (2, 1)
    assert timing.error <= graphs.TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_the_reference_against_finite_differences(name: str) -> None:
    case = smaller(CASES[name])
    arrays = [a if a.dtype.kind == "i" else a.astype(np.float64) for a in case.arrays()]
    _, gradients = graphs.reference(case)
    rng = np.random.default_rng(1)
    along = [rng.normal(size=g.shape) for g in gradients]

    def value(step: float) -> float:
        moved = [a + step * d for a, d in zip(arrays, along, strict=False)]
        return float(case.f(fastbp, *moved, *arrays[case.wanted :]))

    step = 1e-6
    numeric = (value(step) - value(-step)) / (2 * step)
    exact = sum(float(np.sum(g * d)) for g, d in zip(gradients, along, strict=True))
    assert numeric == pytest.approx(exact, rel=1e-4)


def test_a_library_that_computes_something_else_is_named() -> None:
    class Wrong(Fastbp):
        name = "wrong"

        def numpy(self, result: Any) -> Any:
            value, gradients = super().numpy(result)
            return value, [1.001 * g for g in gradients]

    with pytest.raises(peers.WrongResultError, match=r"wrong on mixture"):
        graphs.compare(CASES["mixture density"], [Wrong()], TINY, ONCE)


def test_thirty_operations() -> None:
    """What the name says: counted on the function as it is written."""
    counted = 0

    class Number:
        def __getattr__(self, name: str) -> Any:
            nonlocal counted
            counted += name != "sum"
            return lambda *args: Number()

        def __add__(self, other: Any) -> Any:
            nonlocal counted
            counted += 1
            return Number()

        __sub__ = __mul__ = __truediv__ = __add__

    graphs.thirty(Number(), Number())
    assert counted == graphs.OPERATIONS


@pytest.mark.parametrize("what", ["value", "value and gradient"])
def test_a_chain_and_its_limit(what: str) -> None:
    timing = graphs.chain_timing(what, THREADS, TINY, 50_000)
    assert timing.steps > graphs.OPERATIONS - 5  # multiply and add as one
    assert min(timing.us, timing.copy_us, timing.operations_us) > 0
    assert timing.fraction < 10  # of a machine that does something else meanwhile


def test_report() -> None:
    everybody = [started(Fastbp)]
    rows = [
        report_graphs.Row(name, THREADS, graphs.compare(smaller(CASES[name]), everybody, TINY, ONCE)) for name in CASES
    ]
    chains = [graphs.chain_timing("value", THREADS, TINY, 10_000)]
    machine = measure.this_machine({})
    report = report_graphs.Report(machine, {}, True, {"JAX": "it is away"}, rows, chains)
    text = report_graphs.table(report)
    assert all(f"| {name}, 1 thread |" in text for name in CASES)
    assert "No JAX: it is away." in text
