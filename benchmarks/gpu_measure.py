"""One part of the measurements on a GPU, as a process of its own that keeps records: see on_a_gpu.py.

FASTBP_RECORDS=FILE FASTBP_SECONDS=100 python benchmarks/gpu_measure.py timings
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gpu_peers
from gpu_device import Card, Device, peaks
from gpu_peers import FULL, GPU_NETWORKS, NAMES, GpuComparison, make_task
from peers import Effort
from records import DEVICE_LOST, ENV, SECONDS, Records, device_lost
from report_gpu import GOALS

from fastbp.measure import Network

Work = Callable[[], dict[str, Any]]
PARTS = ("timings", "goal", "sweeps", "jax", "compile")
WIDE = 1e8  # operations of a step from which precisions are told apart
FEW = ("64x4", "4096x4", "784-128-10", "1024x4", "64x5")  # of torch.compile, which takes long to compile
LEAST_LEFT = 3.0  # seconds, for another item


def fit(network: Network, precision: str, group: str, device: Device, effort: Effort = FULL) -> dict[str, Any]:
    """Whole fits: µs a training step of fastbp and a group of peers, whose parameters have been compared."""
    task = make_task(network, device.place, precision)
    comparison = GpuComparison(task, gpu_peers.kinds(group, precision))
    comparison.pilot(effort)
    comparison.rounds(effort)
    return _named(network, precision, group) | {
        "steps": task.steps,
        "operations": task.operations,
        "bytes": task.program.bytes(network.batch, 4),
        "tolerance": comparison.tolerance,
        "timings": {name: asdict(timing) for name, timing in comparison.timings().items()},
        "left_out": comparison.skipped,
    }


def costs(network: Network, precision: str, group: str, device: Device, budget: float = 0.5) -> dict[str, Any]:
    """A forward pass and a gradient of fastbp and a group of peers, cold, whose gradients have been compared."""
    task = make_task(network, device.place, precision, most_steps=1)
    found, skipped = gpu_peers.passes(task, gpu_peers.kinds(group, precision), device, budget)
    programs, n = gpu_peers.programs(network), network.batch
    return _named(network, precision, group) | {
        "operations": {name: p.operations(n) for name, p in programs.items()},
        "bytes": {name: p.bytes(n, 4) for name, p in programs.items()},
        "ratio_products": programs["gradient"].product_operations(n) / programs["forward"].product_operations(n) - 1.0,
        "tolerance": gpu_peers.TOLERANCES[precision],
        "costs": {name: asdict(cost) | {"ratio": cost.ratio} for name, cost in found.items()},
        "left_out": skipped,
    }


def _named(network: Network, precision: str, group: str) -> dict[str, Any]:
    return {
        "network": network.name,
        "layers": network.layers,
        "batch": network.batch,
        "precision": precision,
        "group": group,
    }


def items(part: str, device: Device) -> dict[str, Work]:
    """What a part measures, by name, in order of importance: first what goals are judged by."""
    if part == "sweeps":
        import gpu_sweeps

        return gpu_sweeps.items(device)
    found: dict[str, Work] = {"peaks": lambda: peaks(device)} if part == "timings" else {}
    group = {"timings": "torch", "goal": "compile", "jax": "jax", "compile": "compile"}[part]
    every = [
        (work, name, precision)
        for precision in ("highest", "bf16", "tf32")
        for work in (fit, costs)
        for name in (FEW if group == "compile" else NAMES)
        if precision == "highest" or _is_wide(GPU_NETWORKS[name])
    ]
    judged = [one for one in every if one[0] is fit and _is_judged(*one[1:], group)]
    rest = [one for one in every if one not in judged]
    for work, name, precision in {"goal": judged, "compile": rest}.get(part, judged + rest):
        found[f"{work.__name__} {name} {precision} {group}"] = functools.partial(
            _if_it_fits, work, GPU_NETWORKS[name], precision, group, device
        )
    return found


def _is_wide(network: Network) -> bool:
    """Whether precisions show a difference."""
    products = sum(a * b for a, b in itertools.pairwise(network.layers))
    return 6 * network.batch * products >= WIDE


def _is_judged(name: str, precision: str, group: str) -> bool:
    """Whether a goal is judged by a fit beside that group of peers."""
    peers = {kind.name for kind in gpu_peers.GROUPS[group]}
    return any((name, precision) in goal.cases and peers.intersection(goal.peers) for goal in GOALS)


class TooLargeError(Exception):
    """The device has too little memory for an item."""


def _if_it_fits(
    work: Callable[..., dict[str, Any]], network: Network, precision: str, group: str, device: Device
) -> Any:
    needed, free = gpu_peers.memory_needed(network, precision), device.free_bytes()
    if needed > free:
        raise TooLargeError(f"it takes some {needed / 1e9:.0f} GB, and {free / 1e9:.0f} are free")
    return work(network, precision, group, device)


def measure(work: dict[str, Work], records: Records, end: float, device: Device) -> None:
    """Do what no process before has begun, until the time is over; one failure leaves the others alone."""
    for name, run in work.items():
        if name in records.before:
            continue
        if time.monotonic() > end - LEAST_LEFT:
            records.end(name, "skipped", why="no time")
            continue
        records.begin(name)
        began = time.monotonic()
        try:
            records.end(name, "done", **run(), seconds=round(time.monotonic() - began, 1))
        except TooLargeError as error:
            records.end(name, "skipped", why=str(error))
        except Exception as error:
            traceback.print_exc()
            records.end(name, "failed", why=f"{type(error).__name__}: {error}"[-2000:])
            if lost := device_lost():
                print(f"the device is lost: {lost}", file=sys.stderr)
                sys.exit(DEVICE_LOST)
        gpu_peers.cleared(device)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a part on a GPU; see on_a_gpu.py.")
    parser.add_argument("parts", nargs="+", choices=PARTS)
    asked = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    device = Card()
    records, end = Records(Path(os.environ[ENV])), time.monotonic() + float(os.environ.get(SECONDS, "inf"))
    for part in asked.parts:
        measure(items(part, device), records, end, device)


if __name__ == "__main__":
    main()
