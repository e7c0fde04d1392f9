"""The benchmark's results; not its times, which no test can know."""

from __future__ import annotations

import builtins
import dataclasses
import functools
import importlib.util
import io
import itertools
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastbp import backends, measure
from fastbp.backends.cpu import compiling, probes, target
from fastbp.errors import DataError, InputError, MissingExtraError
from fastbp.measure import NETWORKS, Network, Report
from fastbp.program import place


@pytest.fixture(scope="module")
def report() -> Report:
    return measure.run(["2-3-1", "64-64-64-10"], quick=True)


# ---- what is timed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", backends.ON_HOST)
@pytest.mark.parametrize("network", ["2-3-1", "3-4-1", "4-5-3"])
def test_naive_gradient_is_the_gradient(network: str, backend: str) -> None:
    net, (X, T) = NETWORKS[network].make("float64", backend), NETWORKS[network].data("float64")
    before = net.theta.copy()
    naive, exact = measure.naive_gradient(net, X, T), net.loss_and_grad(X, T)[1]
    assert np.abs(exact).max() > 1e-3
    np.testing.assert_allclose(naive, exact, rtol=0, atol=1e-7)
    np.testing.assert_array_equal(net.theta, before)


@pytest.mark.parametrize(
    ("name", "rounded"), [("784-30-10", 1.01), ("784-512-512-10", 1.40), ("1024x4", 1.75), ("64x5", 1.80)]
)
def test_theoretical_ratio_of_products(name: str, rounded: float) -> None:
    sizes = [fan_in * fan_out for fan_in, fan_out in itertools.pairwise(NETWORKS[name].layers)]
    products, _ = measure.theoretical_ratios(NETWORKS[name])
    assert round(products, 2) == rounded
    assert products == pytest.approx(2 - sizes[0] / sum(sizes))


def test_ratio_of_deep_equal_layers_tends_to_two() -> None:
    assert measure.theoretical_ratios(Network("deep", (8,) * 51, 4))[0] == pytest.approx(2 - 1 / 50)


def test_ratio_of_one_layer_is_one() -> None:
    assert measure.theoretical_ratios(Network("flat", (5, 3), 4))[0] == pytest.approx(1.0)


def test_ratio_of_operations_tends_to_that_of_products_in_wide_layers() -> None:
    products, operations = measure.theoretical_ratios(NETWORKS["1024x4"])
    assert operations == pytest.approx(products, rel=0.02)
    products, operations = measure.theoretical_ratios(NETWORKS["2-3-1"])
    assert operations < products / 2  # the sigmoids, computed forward alone


@pytest.mark.parametrize("backend", backends.ON_HOST)
@pytest.mark.parametrize(
    ("activation", "output", "loss"),
    [("sigmoid", "sigmoid", "half_sse"), ("gelu", "identity", "mse"), ("relu", "softmax", "cross_entropy")],
)
def test_storing_forward_keeps_what_backward_reads(activation: str, output: str, loss: str, backend: str) -> None:
    network = Network("test", (5, 7, 6, 3), 9, activation, output, loss)
    net, (X, T) = network.make("float64", backend), network.data("float64")
    gradient = net.program("gradient")
    storing = measure.storing_forward(gradient)
    forward, tail = storing.instructions, gradient.instructions[len(storing.instructions) :]
    assert [i.op for i in tail].count("matmul") == 5  # 3 dW and 2 dA
    assert [i.op for i in forward].count("matmul") == 3
    given = set(gradient.inputs.values()) | {k for k, b in enumerate(gradient.buffers) if b.kind in ("const", "param")}
    made_later = {index for i in tail for index in i.outs}
    assert {index for i in tail for index in i.ins} - made_later - given == storing.kept

    values = {"X": X, "T": T, "theta": net.theta.reshape(1, -1)}
    found = backends.executable(storing, backend, "float64").run(values, len(X))
    assert found["loss"][0, 0] == pytest.approx(net.loss(X, T), rel=1e-12)
    places, size = place(storing, len(X), 8, 64)
    used = sorted((at, at + 8 * storing.size(index, len(X))) for index, at in places.items() if index in storing.kept)
    assert all(end <= after for (_, end), (after, _) in itertools.pairwise(used))  # memory of their own
    assert size >= sum(end - at for at, end in used)


@pytest.mark.parametrize("backend", backends.ON_HOST)
def test_timed_steps_are_training_steps(backend: str) -> None:
    case = measure.prepare(NETWORKS["4-5-3"], backend, "float64")
    before = case.net.theta.copy()
    assert set(case.runs) == set(case.programs) == {"forward", "storing", "gradient", "step"}
    for run in case.runs.values():
        run(3)
    np.testing.assert_array_equal(case.net.theta, before)  # the timed step trains a copy
    same = backends.executable(case.programs["gradient"], backend, "float64")
    values = {"X": case.X, "T": case.T, "theta": before.reshape(1, -1)}
    found = same.run(values, len(case.X))["gradient"].reshape(-1)
    np.testing.assert_allclose(found, case.net.loss_and_grad(case.X, case.T)[1], rtol=1e-12)


def test_samples_are_taken_in_turns_with_as_many_steps() -> None:
    seen: list[tuple[str, int]] = []

    def run(name: str, steps: int) -> None:
        seen.append((name, steps))
        time.sleep(1e-4 * steps)

    effort = measure.Effort(repeat=1e-3, budget=10.0, fewest=2, most=4)
    found = measure._samples({name: functools.partial(run, name) for name in ("a", "b")}, effort)
    assert {name: len(samples) for name, samples in found.items()} == {"a": 4, "b": 4}
    assert seen[:2] == [("a", 1), ("b", 1)]  # the warm-up
    assert seen[-8:] == 4 * [("a", seen[-1][1]), ("b", seen[-1][1])]
    assert 1e-4 <= min(found["a"]) < 1e-2  # a step, not a repeat


def test_the_budget_ends_a_measurement() -> None:
    effort = measure.Effort(repeat=1e-4, budget=0.0, fewest=2, most=1000)
    assert len(measure._samples({"one": lambda steps: time.sleep(1e-3)}, effort)["one"]) == 2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fma_peak_is_a_plausible_number(dtype: str) -> None:
    assert 0.1 < measure.fma_peak(dtype) < 10_000
    assert 0.1 < measure.fma_peak(dtype, threads=2) < 20_000


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_fma_chains_compute(dtype: str) -> None:
    """Every chain tends to 1, so none has been optimised away."""

    def total(turns: int) -> float:
        call = np.array([turns, 0], np.int64)
        call[1:].view(np.float64)[0] = 1.0
        measure._fma_entry(dtype)(call.ctypes.data)
        return float(call[1:].view(np.float64)[0])

    assert total(0) == pytest.approx(sum(range(target.CHAINS)))
    assert total(10_000) == pytest.approx(target.CHAINS, rel=1e-3)


@pytest.mark.skipif(not target.HAS_FMA, reason="multiplies, then adds")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_fma_chain_is_left_out(dtype: str) -> None:
    """A peak of which a chain had been optimised away would be too high."""
    assembly = compiling.entry_library(probes.make_fma_entry(dtype), "entry").get_asm_str()
    found = len(re.findall(r"^\s*(?:vfmadd|fmla)", assembly, re.MULTILINE))
    assert found > 0
    assert found % (target.CHAINS * target.LINKS) == 0


# ---- the report ----------------------------------------------------------------------------------------------------


def test_rows_of_a_report(report: Report) -> None:
    assert [(row.network, row.backend) for row in report.rows] == [
        (network, backend) for network in ("2-3-1", "64-64-64-10") for backend in backends.ON_HOST
    ]
    for row in report.rows:
        network = NETWORKS[row.network]
        assert (row.layers, row.batch) == (network.layers, network.batch)
        assert row.backward_us == pytest.approx(row.gradient_us - row.storing_us)
        assert row.ratio == pytest.approx(row.backward_us / row.storing_us)
        assert row.rows_per_second == pytest.approx(1e6 * row.batch / row.step_us)
        assert row.peak_fraction == pytest.approx(row.step_floor_us / row.step_us)
        assert row.peak_fraction == pytest.approx(row.gflops / report.machine.peak[row.threads])
        assert 0 < row.forward_floor_us < row.step_floor_us
        assert row.backward_floor_us / row.forward_floor_us == pytest.approx(row.ratio_operations)
        assert row.naive_ratio == pytest.approx(row.naive_us / row.gradient_call_us)
    assert [row.parameters for row in report.rows[::2]] == [13, 64 * 65 * 2 + 65 * 10]
    assert not report.rows[0].naive_extrapolated
    large = report.rows[-1]
    assert large.naive_extrapolated
    assert large.naive_us == pytest.approx((large.parameters + 1) * large.loss_call_us)


def test_quick_runs_take_small_networks() -> None:
    assert set(measure.QUICK) <= set(NETWORKS)
    assert max(sum(NETWORKS[name].layers) * NETWORKS[name].batch for name in measure.QUICK) < 10_000
    seen: list[str] = []
    found = measure.run(backends=["numpy"], dtype="float64", quick=True, progress=seen.append)
    assert [row.network for row in found.rows] == list(measure.QUICK)
    assert seen == [f"{name} on numpy" for name in measure.QUICK]
    assert found.dtype == "float64"


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match=r"network='784-30-1' is unknown; did you mean '784-30-10'"):
        measure.run(["784-30-1"])
    with pytest.raises(InputError, match="backend='gpux'"):
        measure.run(["2-3-1"], backends=["gpux"])
    with pytest.raises(InputError, match="dtype='float16'"):
        measure.run(["2-3-1"], dtype="float16")


def test_json_round_trip(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text("old")
    measure.save_json(report, path)
    assert Report.from_json(path.read_text(encoding="utf-8")) == report
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"machine": {"peak": {}}, "rows": []}', '{"machine": {"peak": 1}}'])
def test_what_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="not a report"):
        Report.from_json(text)


def all_networks(report: Report) -> Report:
    """A report with a row for every network and backend, and long numbers."""
    one = report.rows[0]
    rows = [
        dataclasses.replace(one, network=n.name, batch=n.batch, backend=b, step_us=123456.7, storing_us=98765.4)
        for n in NETWORKS.values()
        for b in ("cpu", "numpy")
    ]
    return dataclasses.replace(report, rows=rows)


def test_table_fits_140_columns(report: Report) -> None:
    from rich.console import Console

    everything = all_networks(report)
    console = Console(width=140, file=io.StringIO())
    console.print(measure.table(everything))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert not any("…" in line for line in lines)
    assert all(any(line.strip().startswith(f"{n.name}, {n.batch} ") for line in lines) for n in NETWORKS.values())


@pytest.mark.parametrize("width", [80, 139])
def test_table_of_a_narrow_terminal_is_whole(report: Report, width: int) -> None:
    from rich.console import Console

    console = Console(width=80, file=io.StringIO())
    console.print(measure.table(all_networks(report), width))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert not any("…" in line for line in lines)
    heads = " ".join(lines[1:3]).split()
    assert {"network,", "backend", "storing", "backward", "meas.", "prod.", "step", "peak", "/bp"} <= set(heads)
    rows = [line.split() for line in lines if "784-512-512-10, 256 " in line]
    assert [row[2:4] for row in rows] == [["cpu", "98,765"], ["numpy", "98,765"]]
    assert len(measure._NARROW) == 9
    assert "A terminal of 140 columns shows more." in " ".join(line.strip() for line in lines)


def test_markdown_table(report: Report) -> None:
    lines = measure.plain_table(report).splitlines()
    columns = len(measure._COLUMNS) - len(measure._NOT_IN_README)
    assert {line.count("|") for line in lines[: 2 + len(report.rows)]} == {columns + 1}
    assert lines[0].startswith(
        "| network, batch | backend | storing, µs | floor, µs | backward, µs | floor, µs | ratio"
    )
    assert lines[2].startswith("| 2-3-1, 8 | cpu | ")
    assert report.machine.cpu in lines[3 + len(report.rows)]


@pytest.mark.parametrize(
    ("x", "digits", "large"),
    [
        (0.0, "0", "0"),
        (0.00412, "0.0041", "0.0041"),
        (0.9949, "0.99", "0.99"),
        (0.996, "1.00", "1.00"),
        (9.994, "9.99", "9.99"),
        (9.996, "10.0", "10.0"),
        (99.96, "100", "100"),
        (999.4, "999", "999"),
        (999.6, "1,000", "1.00 k"),
        (123_456.0, "123,456", "123 k"),
        (1.5e6, "1,500,000", "1.50 M"),
    ],
)
def test_numbers(x: float, digits: str, large: str) -> None:
    assert measure.digits(x) == digits
    assert measure.large(x) == large


@pytest.mark.parametrize("which", ["two", "all"])
def test_picture(report: Report, which: str, tmp_path: Path) -> None:
    path = tmp_path / "bench.png"
    measure.draw(all_networks(report) if which == "all" else report, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [path]


def test_missing_extras_are_named(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.split(".")[0] in ("rich", "matplotlib"):
            raise ImportError(name)
        return original(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"fastbp\[cli\]"):
        measure.table(report)
    with pytest.raises(MissingExtraError, match=r"fastbp\[plots\]"):
        measure.draw(report, tmp_path / "bench.png")
    assert not list(tmp_path.iterdir())


# ---- the script that renews the README -----------------------------------------------------------------------------


@pytest.fixture
def script() -> Any:
    path = Path(__file__).parents[1] / "benchmarks" / "report.py"
    spec = importlib.util.spec_from_file_location("report_script", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_table_goes_between_its_marks(script: Any) -> None:
    other = "<!-- peers:begin -->\nother\n<!-- peers:end -->\n"
    text = f"before\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nafter\n{other}"
    expected = f"before\n<!-- bench:begin -->\n\n| new |\n\n<!-- bench:end -->\nafter\n{other}"
    assert script.with_table(text, "| new |\n") == expected
    assert script.with_table(expected, "| new |\n") == expected
    assert script.with_table(text, "other", "peers") == text.replace("other", "\nother")


@pytest.mark.parametrize("text", ["", "<!-- bench:begin -->", "<!-- bench:end --> <!-- bench:begin -->"])
def test_a_text_without_both_marks_is_refused(script: Any, text: str) -> None:
    with pytest.raises(SystemExit, match="bench:begin"):
        script.with_table(text, "table")
