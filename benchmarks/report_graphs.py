"""Time value and gradient of general graphs, and renew docs/graphs.png and the tables in README.md.

    python benchmarks/report_graphs.py                                       # all, some fifteen minutes
    python benchmarks/report_graphs.py --quick --cases "mixture density"     # rough, a look at some

A quick or partial run leaves README.md and docs/ alone. Every run writes results/graphs.json and results/graphs.png.
Each number of threads has a process of its own, with as many cores: some libraries count cores when they start.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import graphs
from graphs import CASES, LIBRARIES, ChainTiming, Fastbp, Jax, Timing, best_peer
from report import DOCS, README, RESULTS, progress, renew_readme, with_table

from fastbp import get_num_threads, measure
from fastbp.files import replacing

FIRST_GOAL, STEADY_GOAL, CHAIN_GOAL = 20.0, 1.0, 0.7
PICTURE = "![Calls and first gradients of other libraries, chains beside their limits](docs/graphs.png)"
VERSIONS = ("torch", "jax", "pytensor")


@dataclass(frozen=True)
class Row:
    """One case on so many threads: timings by library, fastbp among them."""

    case: str
    threads: int
    timings: dict[str, Timing]

    @property
    def best(self) -> str:
        """The fastest peer in steady state, "" without any."""
        return best_peer(self.timings)

    @property
    def steady(self) -> float:
        """Best peer's time a call by fastbp's."""
        return self.timings[self.best].us / self.timings[Fastbp.name].us if self.best else float("nan")

    @property
    def first(self) -> float:
        """JAX's time to the first gradient by fastbp's."""
        there = Jax.name in self.timings
        return self.timings[Jax.name].first_ms / self.timings[Fastbp.name].first_ms if there else float("nan")


@dataclass(frozen=True)
class Report:
    """Everything; ``skipped`` says by library why it is not there."""

    machine: measure.Machine
    versions: dict[str, str]
    quick: bool
    skipped: dict[str, str]
    rows: list[Row]
    chains: list[ChainTiming]


# ---- measuring -------------------------------------------------------------------------------------------------------


def alone(threads: int, names: Sequence[str], quick: bool) -> tuple[list[Row], list[ChainTiming], dict[str, str]]:
    """Measure in this process, which may use so many cores."""
    effort, firsts = graphs.BRIEF if quick else graphs.FULL
    skipped = {kind.name: reason for kind in LIBRARIES if (reason := kind.refuses())}
    libraries = [kind() for kind in LIBRARIES if kind.name not in skipped]
    for library in libraries:
        library.start(threads)
    rows = []
    for name in names:
        progress(f"{name}, {threads} threads")
        rows.append(Row(name, threads, graphs.compare(CASES[name], libraries, effort, firsts)))
    progress(f"chains, {threads} threads")
    chains = [graphs.chain_timing(what, threads, effort) for what in ("value", "value and gradient")]
    return rows, chains, skipped


def run(names: Sequence[str], quick: bool) -> Report:
    """Measure these of ``graphs.CASES``, on all threads and on one."""
    rows: list[Row] = []
    chains: list[ChainTiming] = []
    skipped: dict[str, str] = {}
    for threads in sorted({1, get_num_threads()}, reverse=True):
        found = _elsewhere(threads, names, quick)
        for row in found["rows"]:
            timings = {name: Timing(**timing) for name, timing in row["timings"].items()}
            rows.append(Row(row["case"], threads, timings))
        chains += [ChainTiming(**{**c, "slowest": tuple(map(tuple, c["slowest"]))}) for c in found["chains"]]
        skipped |= found["skipped"]
    return Report(measure.this_machine({}), _versions(), quick, skipped, rows, chains)


def _elsewhere(threads: int, names: Sequence[str], quick: bool) -> dict[str, Any]:
    """What :func:`alone` finds in a process of its own."""
    with tempfile.TemporaryDirectory() as folder, graphs.within(threads):
        file = Path(folder) / "rows.json"
        number = {name: str(threads) for name in ("FASTBP_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        command = [sys.executable, __file__, "--alone", str(threads), str(file), "--cases", *names]
        subprocess.run([*command, *["--quick"] * quick], check=True, env={**os.environ, **number})
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found


def _versions() -> dict[str, str]:
    found = {}
    for library in VERSIONS:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


# ---- showing it ------------------------------------------------------------------------------------------------------


def table(report: Report) -> str:
    """The report in Markdown."""
    names = [kind.name for kind in LIBRARIES if any(kind.name in row.timings for row in report.rows)]
    peers = [name for name in names if name != Fastbp.name]
    steady = [["µs a call", *peers, "fastbp", f"best peer / fastbp, goal ≥ {STEADY_GOAL:g}"]]
    first = [["ms to the first gradient", *peers, "fastbp", f"JAX / fastbp, goal ≥ {FIRST_GOAL:g}"]]
    for row in report.rows:
        head = f"{row.case}, {_threads(row.threads)}"
        calls = {name: measure.digits(timing.us) for name, timing in row.timings.items()}
        calls |= {row.best: f"**{calls[row.best]}**"} if row.best else {}
        waits = {name: measure.digits(timing.first_ms) for name, timing in row.timings.items()}
        steady.append([head, *(calls.get(name, "–") for name in (*peers, Fastbp.name)), f"{row.steady:.2f}"])
        first.append([head, *(waits.get(name, "–") for name in (*peers, Fastbp.name)), f"{row.first:.0f}"])
    chains = [["30 operations alone", "steps", "µs", "copy, µs", "steps in L1, µs", f"of limit, goal ≥ {CHAIN_GOAL:g}"]]
    for c in report.chains:
        times = [measure.digits(x) for x in (c.us, c.copy_us, c.operations_us)]
        chains.append([f"{c.what}, {_threads(c.threads)}", str(c.steps), *times, f"{c.fraction:.2f}"])
    return "\n".join([*map(_markdown, (steady, first, chains)), caption(report)]) + "\n"


def _markdown(lines: list[list[str]]) -> str:
    rule = [":--", *["--:"] * (len(lines[0]) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (lines[0], rule, *lines[1:])) + "\n"


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def caption(report: Report) -> str:
    """What the figures are, and with what they were made."""
    m = report.machine
    timings = [timing for row in report.rows for timing in row.timings.values()]
    about = "; ".join(f"{name}: {CASES[name].about}" for name in dict.fromkeys(row.case for row in report.rows))
    skipped = "".join(f" No {library}: {reason}." for library, reason in report.skipped.items())
    versions = "".join(f"{name} {version}, " for name, version in report.versions.items())
    return (
        f"{about[0].upper()}{about[1:]}. The best peer's in bold.{skipped}\n\n"
        "The first gradient is that of a function that nobody has seen, in a process in which a tiny one was compiled "
        "before. A chain's limit is the larger of the time to copy its bytes and of its steps, one by one over data in "
        "the first-level cache, over the threads; both measured in the same run.\n\n"
        f"{m.cpu}; float32. fastbp {m.fastbp}, {versions}NumPy {m.numpy}, Python {m.python}, {m.date[:10]}. "
        f"Rounds spread by up to {max((timing.spread for timing in timings), default=0.0):.0%} (interquartile)."
        f"{' Quick run: the times are rough.' * report.quick}"
    )


def draw(report: Report, path: Path) -> None:
    """Everybody's times by fastbp's, in steady state and to the first gradient; the chains beside their limits."""
    from matplotlib.figure import Figure

    rows = report.rows
    figure = Figure(figsize=(13.0, 2.4 + 0.5 * len(rows)), layout="constrained")
    steady, first, chains = figure.subplots(1, 3, width_ratios=(2.0, 2.0, 1.3))
    for panel, value, goal, title in (
        (steady, "us", STEADY_GOAL, "time of a call, by fastbp's"),
        (first, "first_ms", FIRST_GOAL, "time to the first gradient, by fastbp's"),
    ):
        for k, kind in enumerate(LIBRARIES[1:], 1):
            there = [
                (getattr(row.timings[kind.name], value) / getattr(row.timings[Fastbp.name], value), y)
                for y, row in enumerate(rows)
                if kind.name in row.timings
            ]
            if there:
                x, y = zip(*there, strict=True)
                panel.scatter(x, y, s=60, color=f"C{k}", label=kind.name, zorder=3)
        panel.axvline(1.0, color="C0", linewidth=2, label="fastbp")
        if goal != 1.0:
            panel.axvline(goal, color="black", linestyle=":", label="goal, of JAX")
        panel.set(xscale="log", title=title, ylim=(len(rows) - 0.5, -0.5))
        low, high = panel.get_xlim()
        ticks = [t * 10.0**e for e in range(-2, 6) for t in (1, 2, 5) if low <= t * 10.0**e <= high]
        ticks = ticks if len(ticks) <= 9 else [t for t in ticks if f"{t:e}"[0] == "1"]
        panel.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
        panel.set_xticks([], minor=True)
    steady.set_yticks(range(len(rows)), [f"{row.case}\n{_threads(row.threads)}" for row in rows])
    first.set_yticks(range(len(rows)), [])
    bars = chains.barh(range(len(report.chains)), [100 * c.fraction for c in report.chains], height=0.5)
    chains.bar_label(bars, [f"{100 * c.fraction:.0f}" for c in report.chains], padding=3)
    chains.axvline(100 * CHAIN_GOAL, color="black", linestyle=":")
    chains.set(xlim=(0, 130), title="30 operations, % of limit", ylim=(len(report.chains) - 0.5, -0.5))
    names = [f"{c.what.replace(' and ', chr(10) + 'and ')}\n{_threads(c.threads)}" for c in report.chains]
    chains.set_yticks(range(len(report.chains)), names)
    for panel in (steady, first, chains):
        panel.grid(axis="x", alpha=0.3)
        panel.set_axisbelow(True)
    handles = {label: handle for handle, label in zip(*first.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6, frameon=False)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time value and gradient of graphs by fastbp and other libraries.")
    parser.add_argument("--quick", action="store_true", help="few and short repeats")
    parser.add_argument("--cases", nargs="+", choices=CASES, metavar="NAME", help="only these")
    parser.add_argument("--alone", nargs=2, metavar=("THREADS", "FILE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    names = asked.cases or list(CASES)
    if asked.alone:
        rows, chains, skipped = alone(int(asked.alone[0]), names, asked.quick)
        found = {"rows": [asdict(r) for r in rows], "chains": [asdict(c) for c in chains], "skipped": skipped}
        Path(asked.alone[1]).write_text(json.dumps(found), encoding="utf-8")
        return
    whole = not asked.quick and asked.cases is None
    if whole:
        with_table(README.read_text(encoding="utf-8"), "", "graphs")  # complains before the measurement, not after it
    report = run(names, asked.quick)
    RESULTS.mkdir(exist_ok=True)
    with replacing(RESULTS / "graphs.json") as file:
        content = asdict(report)
        for row, shown in zip(report.rows, content["rows"], strict=True):
            shown |= {"best": row.best, "best_by_fastbp": row.steady, "jax_first_by_fastbp": row.first}
        for chain, shown in zip(report.chains, content["chains"], strict=True):
            shown["fraction"] = chain.fraction
        file.write(f"{json.dumps(content, indent=1)}\n".encode())
    draw(report, RESULTS / "graphs.png")
    print(table(report))
    if whole:
        shutil.copyfile(RESULTS / "graphs.png", DOCS / "graphs.png")
        renew_readme(f"{PICTURE}\n\n{table(report)}", "graphs")


if __name__ == "__main__":
    main()
