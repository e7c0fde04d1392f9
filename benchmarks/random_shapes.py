"""fastbp against the peers on networks that nobody chose: widths, depth, batch, activation and loss drawn at random.

    python benchmarks/random_shapes.py                          # 200 networks, some 20 minutes
    python benchmarks/random_shapes.py --count 20 --seed 1      # the first 20 of a sequence
    python benchmarks/random_shapes.py --resume                 # go on where a run was interrupted

Widths (1 to 2048) and rows of a batch (1 to 20,000) are log-uniform, layers 1 to 6, all activations alike; half_sse on
linear outputs or cross_entropy. A network whose step takes more than 2e10 operations or whose batch more than 64 MB is
drawn again. Results are compared before timing, as in peers.py. A network on which fastbp seems slower by more than 5 %
is measured again, longer, and only that counts. results/random_shapes.json holds every network as soon as it is done.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from peers import (
    Comparison,
    Effort,
    JaxCalls,
    JaxScan,
    NumPyLoop,
    Timing,
    TorchCompiled,
    TorchEager,
    WrongResultError,
    best_peer,
    make_task,
)
from report import RESULTS, progress

from fastbp import measure
from fastbp.files import replacing
from fastbp.measure import Network
from fastbp.scalars import ACTIVATIONS

WIDEST, MOST_LAYERS, MOST_ROWS = 2048, 6, 20_000
MOST_OPERATIONS, MOST_BYTES = 2e10, 64e6
SLOWER = 1 / 1.05  # a ratio below it counts as slower
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
WORST = 10
PEERS = (NumPyLoop, TorchEager, JaxCalls, JaxScan)


# ---- the networks ----------------------------------------------------------------------------------------------------


def draw(seed: int, index: int) -> tuple[Network, int]:
    """Network number ``index`` of a sequence, and how many were drawn before it that were too large."""
    rng = np.random.default_rng([seed, index])
    rejected = 0
    while True:
        layers = tuple(_log_uniform(rng, WIDEST) for _ in range(rng.integers(1, MOST_LAYERS + 1) + 1))
        rows = _log_uniform(rng, MOST_ROWS)
        activation = str(rng.choice(list(ACTIVATIONS)))
        output, loss = (
            ("softmax", "cross_entropy") if layers[-1] > 1 and rng.random() < 0.5 else ("identity", "half_sse")
        )
        network = Network("-".join(map(str, layers)), layers, rows, activation, output, loss)
        if operations(network) <= MOST_OPERATIONS and 4 * rows * (layers[0] + layers[-1]) <= MOST_BYTES:
            return network, rejected
        rejected += 1


def _log_uniform(rng: np.random.Generator, most: int) -> int:
    """A whole number from 1 to ``most``."""
    return int(math.exp(rng.uniform(0.0, math.log(most + 1))))


def operations(network: Network) -> int:
    """Of the products of a step."""
    return network.batch * network.make().operations_a_row()


# ---- one network -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """What was found of one network; ratio is the best peer's time by fastbp's."""

    index: int
    network: Network
    rejected: int
    timings: dict[str, Timing]
    skipped: dict[str, str]
    best: str
    ratio: float
    measured_again: bool
    seconds: float

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Row:
        network = Network(**{**content["network"], "layers": tuple(content["network"]["layers"])})
        timings = {name: Timing(**timing) for name, timing in content["timings"].items()}
        return cls(**{**content, "network": network, "timings": timings})

    def line(self) -> str:
        n = self.network
        what = f"{n.name}, batch {n.batch}, {n.activation}, {n.loss}"
        times = ", ".join(f"{name} {measure.digits(timing.us)}" for name, timing in self.timings.items())
        return f"{self.index:4d}  {self.ratio:5.2f}  {what}: µs {times}{' (measured again)' * self.measured_again}"


def examine(index: int, seed: int, effort: Effort, compiled: bool) -> Row:
    """Measure network number ``index``."""
    began = time.perf_counter()
    network, rejected = draw(seed, index)
    comparison = Comparison(make_task(network), (*PEERS, TorchCompiled) if compiled else PEERS)
    comparison.pilot(effort)
    comparison.rounds(effort)
    timings, again = comparison.timings(), False
    if _ratio(timings) < SLOWER:
        again = True
        comparison.rounds(replace(effort, budget=2 * effort.budget, fewest=7, most=25), within=1.5)
        timings = comparison.timings()
    return Row(
        index=index,
        network=network,
        rejected=rejected,
        timings=timings,
        skipped=comparison.skipped,
        best=best_peer(timings),
        ratio=_ratio(timings),
        measured_again=again,
        seconds=time.perf_counter() - began,
    )


def _ratio(timings: dict[str, Timing]) -> float:
    return timings[best_peer(timings)].us / timings["fastbp"].us


# ---- all of them -----------------------------------------------------------------------------------------------------


def summary(rows: Iterable[Row]) -> str:
    """How often fastbp is slower, the quantiles of the ratio, and where it does worst."""
    ordered = sorted(rows, key=lambda row: row.ratio)
    ratios = [row.ratio for row in ordered]
    slower = sum(ratio < SLOWER for ratio in ratios)
    quantiles = ", ".join(f"{q:.0%}: {x:.2f}" for q, x in zip(QUANTILES, np.quantile(ratios, QUANTILES), strict=True))
    wins: dict[str, int] = {}
    for row in ordered:
        wins[row.best] = wins.get(row.best, 0) + 1
    return "\n".join(
        (
            f"{len(ratios)} networks ({sum(row.rejected for row in ordered)} larger ones drawn again); best peer's "
            f"time by fastbp's:",
            f"  slower than the best peer by more than 5 %: {slower} ({slower / len(ratios):.1%})",
            f"  quantiles  {quantiles}",
            f"  the best peer was  {', '.join(f'{name}: {wins[name]}' for name in sorted(wins))}",
            f"  the {min(WORST, len(ratios))} worst:",
            *(row.line() for row in ordered[:WORST]),
        )
    )


def save(path: Path, seed: int, rows: list[Row]) -> None:
    """Write all that is known; an interruption leaves the file before it."""
    machine = asdict(measure.this_machine({}))
    content = {"seed": seed, "machine": machine, "rows": [asdict(row) for row in rows]}
    with replacing(path) as file:
        file.write(f"{json.dumps(content, indent=1)}\n".encode())


def main() -> None:
    parser = argparse.ArgumentParser(description="fastbp against the peers on random networks.")
    parser.add_argument("--count", type=int, default=200, help="networks (200)")
    parser.add_argument("--seed", type=int, help="of the sequence of networks; drawn and printed if not given")
    parser.add_argument("--seconds", type=float, default=1.0, help="of timing a network, beside preparations (1)")
    parser.add_argument("--resume", action="store_true", help="go on with the sequence of the results that are there")
    parser.add_argument("--torch-compile", action="store_true", help="with torch.compile, a minute more a network")
    parser.add_argument("--out", type=Path, default=RESULTS / "random_shapes.json", help="where results go")
    asked = parser.parse_args()
    asked.out.parent.mkdir(exist_ok=True)
    seed, rows = asked.seed, []
    if asked.resume:
        content = json.loads(asked.out.read_text(encoding="utf-8"))
        if seed not in (None, content["seed"]):
            raise SystemExit(f"{asked.out} holds networks of seed {content['seed']}, not {seed}")
        seed, rows = content["seed"], [Row.from_json(row) for row in content["rows"]]
    elif seed is None:
        seed = int(np.random.default_rng().integers(2**31))
    print(f"seed {seed}; no, best peer / fastbp, network: times", flush=True)
    effort = Effort(run=0.05, budget=asked.seconds, fewest=3, most=9, hopeless=3.0)
    done = {row.index for row in rows}
    for index in range(asked.count):
        if index in done:
            continue
        try:
            rows.append(examine(index, seed, effort, asked.torch_compile))
        except WrongResultError as error:  # rounding has switched a relu: listed, and not timed
            print(f"{index:4d}  not compared: {error}", flush=True)
            continue
        print(rows[-1].line(), flush=True)
        save(asked.out, seed, rows)
    for peer, reason in sorted({item for row in rows for item in row.skipped.items()}):
        progress(f"{peer} was left out of some: {reason}")
    print(summary(rows))


if __name__ == "__main__":
    main()
