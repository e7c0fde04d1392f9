"""Time training steps of fastbp and of other libraries, and renew docs/peers.png and the table in README.md.

    python benchmarks/report_peers.py                                       # all, some ten minutes
    python benchmarks/report_peers.py --quick --networks 2-4-1 784-30-10    # rough, a look at some

A quick or partial run leaves README.md and docs/ alone. Every run writes results/peers.json and results/peers.png.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from peers import BRIEF, FULL, PEERS, Comparison, Timing, best_peer, make_task
from report import DOCS, README, RESULTS, progress, renew_readme, with_table

from fastbp import measure
from fastbp.files import replacing

NAMES = (
    "2-4-1",
    "784-30-10",
    "64-64-64-10",
    "784-128-10",
    "784-512-512-10",
    "1024x4",
    "4-32-16-4",
    "64x5",
)
QUICK = NAMES[:3]
LIBRARIES = ("scikit-learn", "torch", "jax")


@dataclass(frozen=True)
class Row:
    """One network.

    Attributes:
        batches: that a pass goes through.
        threads: among which fastbp shares the step, so those whose peak counts.
        operations: of a step, as fastbp's Program counts them.
        timings: by peer, fastbp among them.
        best: the fastest peer, "" without any.
        ratio: best peer's time by fastbp's.
        peak_fraction: operations / (fastbp's time · FMA peak).
    """

    network: str
    layers: tuple[int, ...]
    batch: int
    batches: int
    threads: int
    operations: int
    timings: dict[str, Timing]
    best: str
    ratio: float
    peak_fraction: float


@dataclass(frozen=True)
class Report:
    """All networks; ``skipped`` says by peer why it is not there."""

    machine: measure.Machine
    versions: dict[str, str]
    quick: bool
    skipped: dict[str, str]
    rows: list[Row]


def run(names: Sequence[str], quick: bool) -> Report:
    """Measure these of ``measure.NETWORKS``."""
    skipped: dict[str, str] = {}
    peak: dict[int, float] = {}
    measured = []
    for name in names:
        progress(f"{name}: same results?")
        comparison = Comparison(make_task(measure.NETWORKS[name]))
        for peer, reason in comparison.skipped.items():
            if peer not in skipped:
                progress(f"{peer} is left out: {reason}")
        skipped |= comparison.skipped
        progress(f"{name}: times")
        effort = BRIEF if quick else FULL
        comparison.pilot(effort)
        comparison.rounds(effort)
        measured.append(comparison)
        for threads in {1, comparison.task.threads}:
            peak[threads] = max(peak.get(threads, 0.0), measure.fma_peak("float32", threads))
    rows = [_row(comparison, peak) for comparison in measured]
    return Report(measure.this_machine(peak), _versions(), quick, skipped, rows)


def _row(comparison: Comparison, peak: dict[int, float]) -> Row:
    task, timings = comparison.task, comparison.timings()
    network = task.network
    threads = measure.threads_of(task.program, network.batch, "float32")
    best, mine = best_peer(timings), timings["fastbp"].us
    return Row(
        network=network.name,
        layers=network.layers,
        batch=network.batch,
        batches=task.steps,
        threads=threads,
        operations=task.operations,
        timings=timings,
        best=best,
        ratio=timings[best].us / mine if best else float("nan"),
        peak_fraction=task.operations / (mine * 1e3 * peak[threads]),
    )


def _versions() -> dict[str, str]:
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


# ---- showing it ------------------------------------------------------------------------------------------------------


def table(report: Report) -> str:
    """The report in Markdown."""
    peers = [kind.name for kind in PEERS if any(kind.name in row.timings for row in report.rows)]
    heads = ["network, batch", *peers, "fastbp", "best peer / fastbp", "% of FMA peak"]
    lines = [heads, [":--", *["--:"] * (len(heads) - 1)]]
    for row in report.rows:
        cells = [f"{row.network}, {row.batch}"]
        cells += [_cell(row, peer) for peer in peers]
        cells += [measure.digits(row.timings["fastbp"].us), f"{row.ratio:.2f}", measure.digits(100 * row.peak_fraction)]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + f"\n\n{caption(report)}\n"


def _cell(row: Row, peer: str) -> str:
    if peer not in row.timings:
        return "–"
    timing = row.timings[peer]
    text = measure.digits(timing.us) + "\\*" * (not timing.exact_network)
    return f"**{text}**" if peer == row.best else text


def caption(report: Report) -> str:
    """What the figures are, and with what they were made."""
    m = report.machine
    timings = [timing for row in report.rows for timing in row.timings.values()]
    peaks = ", ".join(f"{peak:.0f} on {threads}" for threads, peak in sorted(m.peak.items()))
    starred = " \\* Its output layer is linear: less work." * any(not timing.exact_network for timing in timings)
    first = {
        name: max(row.timings[name].first_s for row in report.rows if name in row.timings)
        for name in dict.fromkeys(name for row in report.rows for name in row.timings)
    }
    waits = ", ".join(f"{name} {measure.digits(seconds)}" for name, seconds in first.items())
    skipped = "".join(f" No {peer}: {reason}." for peer, reason in report.skipped.items())
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return (
        f"µs a training step, the best peer's in bold; FMA peak of the cores that fastbp uses.{starred}{skipped}\n\n"
        f"Seconds to the first result, compiling included but for what a disk cache had, at most: {waits}.\n\n"
        f"{m.cpu}, {m.threads} threads; float32; FMA peak measured, GFLOP/s by threads: {peaks}.\n"
        f"fastbp {m.fastbp}, NumPy {m.numpy}, {versions}, Python {m.python}, {m.date[:10]}. "
        f"Rounds spread by up to {max(timing.spread for timing in timings):.0%} (interquartile)."
        f"{' Quick run: the times are rough.' * report.quick}"
    )


def draw(report: Report, path: Path) -> None:
    """Everybody's time by fastbp's, and fastbp's fraction of the FMA peak."""
    from matplotlib.figure import Figure

    rows = report.rows
    figure = Figure(figsize=(11.0, 2.4 + 0.5 * len(rows)), layout="constrained")
    times, peak = figure.subplots(1, 2, width_ratios=(3.0, 1.0), sharey=True)
    for k, kind in enumerate(PEERS):
        there = [
            (row.timings[kind.name].us / row.timings["fastbp"].us, y)
            for y, row in enumerate(rows)
            if kind.name in row.timings
        ]
        if there:
            exact = rows[there[0][1]].timings[kind.name].exact_network
            x, y = zip(*there, strict=True)
            face = f"C{k + 1}" if exact else "none"
            label = kind.name if exact else f"{kind.name}, linear output"
            times.scatter(x, y, s=60, facecolors=face, edgecolors=f"C{k + 1}", label=label, zorder=3)
    times.axvline(1.0, color="C0", linewidth=2, label="fastbp")
    times.set(xscale="log", title="time of a training step, by fastbp's")
    ends = times.get_xlim()
    ticks = [t * 10**e for e in range(-1, 4) for t in (1, 2, 5) if ends[0] <= t * 10**e <= ends[1]]
    times.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    times.set_xticks([], minor=True)
    times.set_yticks(range(len(rows)), [f"{row.network}\nbatch {row.batch:,}" for row in rows])
    times.set_ylim(len(rows) - 0.5, -0.5)
    bars = peak.barh(range(len(rows)), [100 * row.peak_fraction for row in rows], height=0.5)
    peak.bar_label(bars, [f"{100 * row.peak_fraction:.0f}" for row in rows], padding=3)
    peak.set(xlim=(0, 110), title="fastbp, % of the FMA peak")
    for panel in (times, peak):
        panel.grid(axis="x", alpha=0.3)
        panel.set_axisbelow(True)
    figure.legend(*times.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time training steps of fastbp and of other libraries.")
    parser.add_argument(
        "--quick", action="store_true", help="few and short repeats; the smallest networks if none named"
    )
    parser.add_argument("--networks", nargs="+", choices=measure.NETWORKS, metavar="NAME", help="only these")
    asked = parser.parse_args()
    whole = not asked.quick and asked.networks is None
    if whole:
        with_table(README.read_text(encoding="utf-8"), "", "peers")  # complains before the measurement, not after it
    report = run(asked.networks or (QUICK if asked.quick else NAMES), asked.quick)
    RESULTS.mkdir(exist_ok=True)
    with replacing(RESULTS / "peers.json") as file:
        file.write(f"{json.dumps(asdict(report), indent=1)}\n".encode())
    draw(report, RESULTS / "peers.png")
    print(table(report))
    if whole:
        shutil.copyfile(RESULTS / "peers.png", DOCS / "peers.png")
        renew_readme(table(report), "peers")


if __name__ == "__main__":
    main()
