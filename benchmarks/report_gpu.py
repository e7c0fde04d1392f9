"""Show what a run on a GPU found: Markdown of the JSON that scripts/test-gpu writes, and a picture (extra "plots").

    python benchmarks/report_gpu.py results/gpu/gpu.json            # prints; gpu.md and gpu.png beside the JSON
    python benchmarks/report_gpu.py results/gpu/gpu.json --readme   # renews README.md's tables and docs/gpu.png, too

The floor of a step is the larger of its operations at the peak of its precision, which cuBLAS reached in the same run,
and its bytes (every operand of every instruction once) at the bandwidth of a copy.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import report_peers
from gpu_device import PRECISIONS
from report import DOCS, renew_readme

from fastbp.files import replacing
from fastbp.measure import digits

Run = Mapping[str, Any]  # what the JSON holds
CHECKERS = ("memcheck", "racecheck")
CORRECT = ("kernels", "training", "limits", *CHECKERS)  # parts that say whether results are right
BAD = ("failed", "lost")
OURS = "fastbp"


def items(run: Run, *parts: str) -> Iterator[Mapping[str, Any]]:
    """The items of some parts, or of all."""
    for part in run["parts"]:
        if not parts or part["name"] in parts:
            yield from part["items"]


def wrong(run: Run) -> list[str]:
    """What is not right, a line each; empty if nothing was found wrong."""
    found = [
        f"{part['name']}: {i['item']} {i['state']}"
        for part in run["parts"]
        for i in part["items"]
        if part["name"] in CORRECT and i["state"] in BAD
    ]
    for part in run["parts"]:
        if part["name"] in CORRECT and part["state"] != "skipped":
            if part["state"] == "out of time" and part["name"] in CHECKERS:
                continue
            if part["state"] != "done":
                found.append(f"{part['name']}: {part['state']}: {part['why']}")
            elif not any(i["state"] in ("passed", "done") for i in part["items"]):
                found.append(f"{part['name']}: nothing was tested")
    found += [f"{i['item']}: {i['why']}" for i in items(run) if "WrongResultError" in str(i.get("why", ""))]
    return found


# ---- goals -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Goal:
    """How fast training steps are to be.

    Attributes:
        said: in words.
        cases: networks and precisions.
        peers: by whose time, the fastest's of them, it is judged.
        least: that time by fastbp's, in every case.
    """

    said: str
    cases: tuple[tuple[str, str], ...]
    peers: tuple[str, ...]
    least: float


GOALS = (
    Goal(
        "A step of a small network is at least 5 times as fast as PyTorch's with CUDA graphs",
        tuple((name, "highest") for name in report_peers.NAMES[:4]),
        ("PyTorch, graph",),
        5.0,
    ),
    Goal(
        "A step of 64x4 on 262,144 rows in bf16 is at least 3 times as fast as torch.compile's",
        (("64x4", "bf16"),),
        ("torch.compile", "torch.compile, graph"),
        3.0,
    ),
    Goal(
        "A step of 4096x4 on 8,192 rows is no slower than PyTorch's in the same precision",
        tuple(("4096x4", precision) for precision in PRECISIONS),
        ("PyTorch", "PyTorch, graph"),
        1.0,
    ),
)


def goals(run: Run) -> str:
    """Whether each goal is reached, and by how much."""
    found = {(step.network, step.precision): step.ratio for step in steps(run)}
    return "\n".join(f"- {_judged(goal, found)}" for goal in GOALS)


def _judged(goal: Goal, found: Mapping[tuple[str, str], Mapping[str, float]]) -> str:
    ratios = {}
    for case in goal.cases:
        here = found.get(case, {})
        ratios[case] = min((here[peer] for peer in goal.peers if peer in here), default=None)
    measured = [ratio for ratio in ratios.values() if ratio is not None]
    if not measured:
        return f"{goal.said}: not measured."
    if min(measured) < goal.least:
        verdict = "missed"
    else:
        verdict = "reached" if len(measured) == len(ratios) else "reached as far as it was measured"
    each = (
        f"{network} {precision} {'not measured' if ratio is None else f'{ratio:.3g}'}"
        for (network, precision), ratio in ratios.items()
    )
    return f"{goal.said}: {verdict} ({', '.join(each)})."


# ---- training steps, forward and backward ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One network in one precision: µs a training step.

    Attributes:
        us: by name, fastbp's first.
        ratio: a peer's time by that of fastbp in the same turns.
        floor: µs, None without peaks; bound: what it comes from.
    """

    network: str
    batch: int
    precision: str
    us: dict[str, float]
    ratio: dict[str, float]
    floor: float | None
    bound: str

    @property
    def best(self) -> str:
        """The fastest peer, or ""."""
        return min(self.ratio, key=self.ratio.__getitem__, default="")


def peaks_of(run: Run) -> dict[str, float]:
    """Operations a second by precision, and "bandwidth"."""
    found = [i for i in items(run, "timings") if i["item"] == "peaks" and i["state"] == "done"]
    return {k: v for k, v in found[-1].items() if isinstance(v, float) and k != "seconds"} if found else {}


def floor_of(peaks: Mapping[str, float], precision: str, operations: float, bytes_: float) -> tuple[float | None, str]:
    """µs at least, and what they are bound by."""
    if precision not in peaks or "bandwidth" not in peaks:
        return None, ""
    compute, memory = 1e6 * operations / peaks[precision], 1e6 * bytes_ / peaks["bandwidth"]
    return max(compute, memory), "operations" if compute >= memory else "bytes"


def _joined(run: Run, kind: str) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Items of a kind by network and precision, all groups of peers together, PyTorch's first."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for i in items(run, "timings", "goal", "jax", "compile"):
        if i["item"].startswith(f"{kind} ") and i["state"] == "done":
            found.setdefault((i["network"], i["precision"]), []).append(i)
    return found


def steps(run: Run) -> list[Step]:
    """All networks and precisions of which training was timed."""
    peaks, found = peaks_of(run), []
    for (network, precision), here in _joined(run, "fit").items():
        us = {OURS: here[0]["timings"][OURS]["us"]}
        ratio: dict[str, float] = {}
        for i in here:
            mine = i["timings"][OURS]["us"]
            others = {name: timing["us"] for name, timing in i["timings"].items() if name != OURS}
            us |= others
            ratio |= {name: their / mine for name, their in others.items()}
        floor, bound = floor_of(peaks, precision, here[0]["operations"], here[0]["bytes"])
        found.append(Step(network, here[0]["batch"], precision, us, ratio, floor, bound))
    return found


def steps_table(run: Run) -> str:
    """µs a training step, of everybody."""
    found = steps(run)
    peers = list(dict.fromkeys(name for step in found for name in step.us if name != OURS))
    rows = []
    for s in found:
        cells = [f"{s.network}, {s.batch:,}", s.precision]
        cells += [f"**{_digits(s.us.get(p))}**" if p == s.best else _digits(s.us.get(p)) for p in peers]
        cells += [_digits(s.us[OURS]), f"{s.ratio[s.best]:.2f}" if s.best else "–", _digits(s.floor), s.bound or "–"]
        cells.append(f"{100 * s.floor / s.us[OURS]:.0f}" if s.floor else "–")
        rows.append(cells)
    heads = ["network, batch", "precision", *peers, OURS, "best peer / fastbp", "floor", "bound by", "% of floor"]
    return markdown(heads, rows, 2)


def costs_table(run: Run) -> str:
    """Forward and backward, cold: fastbp beside its floors and the ratio that products alone would have."""
    peaks, rows = peaks_of(run), []
    for (network, precision), here in _joined(run, "costs").items():
        first = here[0]
        mine = first["costs"][OURS]
        forward, gradient = mine["forward"]["us"], mine["gradient"]["us"]
        floors = {
            name: floor_of(peaks, precision, first["operations"][name], first["bytes"][name])[0]
            for name in ("forward", "gradient")
        }
        both = [floors["forward"], floors["gradient"]]
        backward_floor = both[1] - both[0] if both[0] is not None and both[1] is not None else None
        ratio = {
            name: cost["gradient"]["us"] / i["costs"][OURS]["gradient"]["us"]
            for i in here
            for name, cost in i["costs"].items()
            if name != OURS
        }
        best = min(ratio, key=ratio.__getitem__, default="")
        rows.append(
            [
                f"{network}, {first['batch']:,}",
                precision,
                *map(_digits, (forward, floors["forward"], gradient - forward, backward_floor)),
                f"{mine['ratio']:.2f}",
                f"{first['ratio_products']:.2f}",
                best or "–",
                f"{ratio[best]:.2f}" if best else "–",
            ]
        )
    heads = ["network, batch", "precision", "forward", "floor", "backward", "floor", "ratio", "ratio, products"]
    return markdown([*heads, "best peer", "its gradient / fastbp's"], rows, 2)


# ---- the rest --------------------------------------------------------------------------------------------------------


def parts_table(run: Run) -> str:
    """What became of every part."""
    rows = []
    for part in run["parts"]:
        counts = Counter(i["state"] for i in part["items"])
        said = ", ".join(f"{n} {state}" for state, n in counts.items())
        rows.append([part["name"], part["state"], f"{part['seconds']:.0f}", str(part["starts"]), said, part["why"]])
    return markdown(["part", "state", "s", "starts", "items", "why"], rows, 2)


def cases_table(run: Run, only: Sequence[str] = ()) -> str:
    """Every case whose error was measured, or those in some states."""
    rows = [
        [
            i.get("case", i["item"]),
            i.get("dtype", ""),
            i.get("precision", ""),
            _error(i.get("error")),
            _error(i.get("bound")),
            "yes" if i["state"] in ("passed", "done") else i["state"],
        ]
        for i in items(run, *CORRECT)
        if (i["state"] in only if only else "error" in i or i["state"] in BAD)
    ]
    return markdown(["case", "dtype", "precision", "error", "bound", "pass"], rows, 3)


def overheads(run: Run) -> str:
    """What launches and graphs cost."""
    lines = []
    for i in items(run, "sweeps"):
        if i["state"] != "done":
            continue
        if i["item"] == "launches":
            host, card = i["launch_host_us"], i["launch_us"]
            lines.append(f"A launch takes {digits(host)} µs of the host's time, {digits(card)} µs on the card.\n")
        if i["item"] == "replays":
            rows = [
                [name, str(n["kernels"]), _digits(n["us"]["graph"]), _digits(n["us"]["launches"])]
                for name, n in i["networks"].items()
            ]
            lines.append(markdown(["µs a step", "kernels", "by a graph", "launch by launch"], rows))
    return "\n".join(lines)


def constants_table(run: Run) -> str:
    """Constants that were guesses: their values now, the best of this card, and what each loses."""
    rows = []
    for i in items(run, "sweeps"):
        if i["state"] != "done" or "constant" not in i:
            continue
        if "networks" in i:
            best = ", ".join(f"{name} {n['best']}" for name, n in i["networks"].items())
            rows.append([i["constant"], "", str(i["now"]), best, "–", "–"])
        else:
            loss, now = i["loss"], i["loss_now"]
            cells = [i["constant"], i["precision"], str(i["now"]), str(i["best"]), f"{loss:.1%}"]
            rows.append([*cells, "–" if now is None else f"{now:.1%}"])
    return markdown(["constant", "precision", "now", "best here", "which loses", "now loses"], rows, 2)


def shapes_table(run: Run) -> str:
    """The best value of those constants for every shape."""
    rows = [
        [
            i["constant"],
            i["precision"],
            shape,
            str(s["best"]),
            _digits(s["us"][s["best"]]),
            _digits(max(s["us"].values())),
        ]
        for i in items(run, "sweeps")
        if i["state"] == "done"
        for shape, s in i.get("shapes", {}).items()
    ]
    return markdown(["constant", "precision", "shape", "best", "µs", "worst, µs"], rows, 4)


def left_out(run: Run) -> list[str]:
    """What was not measured, or not to the end, and why."""
    found = [f"{p['name']}: {p['why']}" for p in run["parts"] if p["state"] == "skipped"]
    found += [
        f"{i['item']}: {i['state']}: {(str(i.get('why', '')).strip().splitlines() or [''])[-1]}"
        for i in items(run)
        if i["state"] in ("skipped", *BAD)
    ]
    peers = {f"{name}: {why}" for i in items(run) for name, why in i.get("left_out", {}).items()}
    return [*found, *sorted(peers)]


def machine_line(run: Run) -> str:
    """The card, what it reached, and versions."""
    m, peaks = run["machine"], peaks_of(run)
    reached = ", ".join(
        f"{name} {value / 1e12:.3g} {'TB/s' if name == 'bandwidth' else 'TFLOP/s'}" for name, value in peaks.items()
    )
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    more = "".join(f", {name} {m[name]:,}" for name in ("multiprocessors", "memory", "l2", "shared") if name in m)
    capability = f", capability {m['capability']}" if "capability" in m else ""
    return (
        f"{m['card']}{capability}{more}; driver {m['driver']}. Reached in this run: {reached or 'not measured'}.\n"
        f"{versions}, Python {m['python']}, {m['date'][:10]}."
    )


LEGEND = (
    "µs a training step, SGD, from whole fits (fastbp: `MLP.fit`), the best peer's in bold. Floor: operations at the "
    "peak of the precision or bytes at the bandwidth, whichever takes longer. Forward and backward: by events, with "
    "caches that hold something else; backward is the gradient without the forward pass. In bf16, PyTorch and JAX also "
    "store what products give in bfloat16."
)


def short(run: Run) -> str:
    """The tables that say how fast it is."""
    tables = {"Training steps": steps_table(run), "Forward and backward, µs": costs_table(run)}
    parts = [f"**{title}**\n\n{table}" for title, table in tables.items() if table]
    return "\n\n".join([*parts, LEGEND, machine_line(run)]) + "\n"


def whole(run: Run) -> str:
    """Everything, in Markdown."""
    problems = wrong(run)
    verdict = "Nothing was found wrong." if not problems else "\n".join(["**Wrong:**", *(f"- {p}" for p in problems)])
    chapters = {
        "Goals": goals(run),
        "Parts": parts_table(run),
        "How fast": short(run),
        "Launches and graphs": overheads(run),
        "Constants": constants_table(run),
        "Constants by shape": shapes_table(run),
        "Correctness": cases_table(run),
        "Left out": "\n".join(f"- {line}" for line in left_out(run)),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in chapters.items() if text)
    return f"# fastbp on {run['machine']['card']}\n\n{verdict}\n\n{body}\n"


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table, the first ``left`` columns of text; "" without rows."""
    lines = [list(heads), [":--" if k < left else "--:" for k in range(len(heads))], *map(list, rows)]
    clean = ([" ".join(cell.split()).replace("|", "¦") for cell in cells] for cells in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in clean) if len(lines) > 2 else ""


def _digits(x: float | None) -> str:
    return "–" if x is None else digits(x)


def _error(x: Any) -> str:
    return f"{x:.1e}" if isinstance(x, float) else "" if x is None else str(x)


def draw(run: Run, path: Path) -> bool:
    """Everybody's step by fastbp's, and fastbp's part of its floor; False without matplotlib or anything to draw."""
    found = steps(run)
    if importlib.util.find_spec("matplotlib") is None or not found:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 2.4 + 0.35 * len(found)), layout="constrained")
    times, floors = figure.subplots(1, 2, width_ratios=(3.0, 1.0), sharey=True)
    names = list(dict.fromkeys(name for step in found for name in step.ratio))
    for k, name in enumerate(names, 1):
        x, y = zip(*((s.ratio[name], row) for row, s in enumerate(found) if name in s.ratio), strict=True)
        times.scatter(x, y, s=50, color=f"C{k}", label=name, zorder=3)
    times.axvline(1.0, color="C0", linewidth=2, label=OURS)
    times.set(xscale="log", title="time of a training step, by fastbp's")
    times.set_yticks(range(len(found)), [f"{s.network}, {s.batch:,}, {s.precision}" for s in found])
    times.set_ylim(len(found) - 0.5, -0.5)
    floors.barh(range(len(found)), [100 * s.floor / s.us[OURS] if s.floor else 0.0 for s in found], height=0.5)
    floors.set(xlim=(0, 110), title="fastbp, % of its floor")
    for panel in (times, floors):
        panel.grid(axis="x", alpha=0.3)
        panel.set_axisbelow(True)
    figure.legend(*times.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=150)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description="Show what a run on a GPU found.")
    parser.add_argument("json", type=Path, help="what scripts/test-gpu wrote")
    parser.add_argument("--readme", action="store_true", help="renew README.md's tables and docs/gpu.png")
    asked = parser.parse_args()
    run = json.loads(asked.json.read_text(encoding="utf-8"))
    picture = asked.json.with_suffix(".png")
    drawn = draw(run, picture)
    with replacing(asked.json.with_suffix(".md")) as file:
        file.write(whole(run).encode())
    print(whole(run))
    if asked.readme:
        if drawn:
            shutil.copyfile(picture, DOCS / "gpu.png")
        renew_readme("![Steps of others by fastbp's, and floors](docs/gpu.png)\n\n" * drawn + short(run), "gpu")


if __name__ == "__main__":
    main()
