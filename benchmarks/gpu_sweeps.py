"""What launches and graphs cost on a card, and which values of the CUDA machine's constants are best there.

The constants were guessed: LARGE_TILES, WANTED_BLOCKS and SHORTEST of binding.py, WORTH_A_GRAPH of executable.py. They
decide by shape alone, so that results are the same on every card: one value has to do for all.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from choices import choice_for_all, first_worth, loss_of, threshold
from gpu_device import Device
from gpu_peers import GPU_NETWORKS

from fastbp import arrays, graph, optim
from fastbp.backends.cuda import binding, blas, executable
from fastbp.backends.cuda.executable import CudaExecutable
from fastbp.backends.cuda.launching import CAN_CAPTURE
from fastbp.measure import Network
from fastbp.plan import plan
from fastbp.program import Program

NEVER = 1 << 30
SMALL_NETWORKS = ("2-4-1", "784-30-10", "64-64-64-10", "784-128-10")
CAPTURES = (1, 2, 4, 8, 16, 32, 64)
TILES = (8, 16, 32, 64, 96, 128, 192, 256, 512)  # of 128 x 128, in a product
DEPTHS = (64, 512, 4096)  # K of those products
ROWS = (1 << 10, 1 << 13, 1 << 16, 1 << 18)  # over which a gradient sums
WIDTHS = ((16, 4), (64, 64), (128, 128), (784, 128), (512, 512))  # of the gradient
WANTED = (66, 132, 264, 528, 1056)
SHORTEST = (64, 128, 256, 512, 1024)


@contextmanager
def setting(module: Any, **values: Any) -> Iterator[None]:
    """With other values of a module's constants."""
    before = {name: getattr(module, name) for name in values}  # an AttributeError says that a constant is gone
    for name, value in values.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


# ---- steps -----------------------------------------------------------------------------------------------------------


def on_device(values: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays of the host as the device's."""
    return {name: arrays.DEVICE.moved(np.ascontiguousarray(value)) for name, value in values.items()}


def steps_of(n: int, count: int) -> np.ndarray:
    """A table of so many equal steps, each of which writes over what the one before wrote."""
    return np.tile(np.array([n, 0, 0], np.int64), (count, 1))


def us_a_step(
    device: Device, run: CudaExecutable, values: Mapping[str, Any], n: int, count: int, repeats: int
) -> float:
    """µs of a step among ``count``, the best of some repeats; kernels are loaded and graphs captured before."""
    table = steps_of(n, count)
    run.run_steps(values, table)
    device.wait()
    if (run.bound(n).graph is not None) != (CAN_CAPTURE and count >= executable.WORTH_A_GRAPH):
        raise AssertionError("the steps were not done as the constants say: what was measured is something else")
    return min(device.timed(lambda: run.run_steps(values, table)) for _ in range(repeats)) * 1e6 / count


def training(network: Network) -> tuple[Program, dict[str, Any]]:
    """A network's training step with SGD, and its values on the device."""
    net, (X, T) = network.make("float32", "numpy"), network.data("float32")
    sgd = optim.SGD(0.01)
    step: Any = net.training_step(("X", "T"), sgd, False)
    return step.program, on_device({"X": X, "T": T, "theta": net.theta[None], "hyper": sgd.hyper(np.zeros(1))})


# ---- launches and graphs ---------------------------------------------------------------------------------------------


def launches(device: Device, count: int = 1000) -> dict[str, Any]:
    """What a launch costs: the host's µs while it does not wait, and the device's."""
    run = CudaExecutable(plan({"y": graph.input("x", 1) * 2.0}), "float32")
    values = on_device({"x": np.ones((1, 1), np.float32)})
    kept = run.run(values, 1)  # both stay where the launches expect them
    here, addresses = run.bound(1), run._addresses.get()

    def work() -> None:
        for _ in range(count):
            run._launch_all(here, addresses)

    work()
    device.wait()
    began = time.perf_counter()
    work()
    host = time.perf_counter() - began
    device.wait()
    on_card = device.timed(work)
    assert float(kept["y"][0, 0]) == 2.0 * float(values["x"][0, 0])
    return {"launch_host_us": 1e6 * host / count, "launch_us": 1e6 * on_card / count}


def replays(
    device: Device, names: Sequence[str] = SMALL_NETWORKS, count: int = 200, repeats: int = 3
) -> dict[str, Any]:
    """A training step by a graph's replay, and launch by launch."""
    found = {}
    for name in names:
        program, values = training(GPU_NETWORKS[name])
        n, here = GPU_NETWORKS[name].batch, {}
        for way, limit in (("graph", 1), ("launches", NEVER)):
            with setting(executable, WORTH_A_GRAPH=limit):
                run = CudaExecutable(program, "float32")
                here[way] = us_a_step(device, run, values, n, count, repeats)
        found[name] = {"kernels": len(run.bound(n).bound.launches) + 1, "us": here}
    return {"networks": found}


def captures(
    device: Device, names: Sequence[str] = SMALL_NETWORKS, counts: Sequence[int] = CAPTURES, repeats: int = 3
) -> dict[str, Any]:
    """From how many steps on it pays to capture a graph: a first call of run_steps, with and without."""
    found = {}
    for name in names:
        program, values = training(GPU_NETWORKS[name])
        n = GPU_NETWORKS[name].batch
        CudaExecutable(program, "float32").run_steps(values, steps_of(n, 1))  # loads the kernels
        us: dict[int, dict[str, float]] = {}
        for count in counts:
            us[count] = {}
            for way, limit in (("graph", 1), ("launches", NEVER)):
                with setting(executable, WORTH_A_GRAPH=limit):
                    us[count][way] = 1e6 * min(_first_call(device, program, values, n, count) for _ in range(repeats))
        found[name] = {"us": us, "best": first_worth(us)}
    return {"constant": "WORTH_A_GRAPH", "now": executable.WORTH_A_GRAPH, "networks": found}


def _first_call(device: Device, program: Program, values: Mapping[str, Any], n: int, count: int) -> float:
    run = CudaExecutable(program, "float32")
    device.wait()
    began = time.perf_counter()
    run.run_steps(values, steps_of(n, count))
    device.wait()
    return time.perf_counter() - began


# ---- tiles -----------------------------------------------------------------------------------------------------------


def tiles(
    device: Device,
    precision: str,
    counts: Sequence[int] = TILES,
    depths: Sequence[int] = DEPTHS,
    steps: int = 20,
    side: int = 128,
) -> dict[str, Any]:
    """Products by large tiles and by small ones; from how many large tiles on these are better."""
    rng = np.random.default_rng(0)
    shapes = {}
    for count, k in itertools.product(counts, depths):
        down = 2 ** round(math.log2(count) / 2)
        m, n = side * down, side * -(-count // down)
        values = on_device({"a": rng.random((m, k), np.float32), "b": rng.random((k, n), np.float32)})
        program = plan({"y": graph.param("a", (m, k)) @ graph.param("b", (k, n))})
        us = {}
        for size, limit in (("small", NEVER), ("large", 0)):
            with setting(binding, LARGE_TILES=limit, FEW_TILES=0), setting(blas, available=lambda: False):
                us[size] = us_a_step(device, CudaExecutable(program, "float32", precision), values, 1, steps, 3)
        shapes[f"{m}x{n}x{k}"] = {"tiles": m * n // side**2, "us": us, "best": min(us, key=us.__getitem__)}
    found = [(s["tiles"], s["us"]["small"], s["us"]["large"]) for s in shapes.values()]
    best = threshold(found)
    return {
        "constant": "LARGE_TILES",
        "precision": precision,
        "now": binding.LARGE_TILES,
        "best": best,
        "loss": loss_of(best, found),
        "loss_now": loss_of(binding.LARGE_TILES, found),
        "shapes": shapes,
    }


# ---- pieces ----------------------------------------------------------------------------------------------------------


def pieces(
    device: Device,
    precision: str,
    rows: Sequence[int] = ROWS,
    widths: Sequence[tuple[int, int]] = WIDTHS,
    wanted: Sequence[int] = WANTED,
    shortest: Sequence[int] = SHORTEST,
    steps: int = 20,
    repeats: int = 3,
) -> dict[str, Any]:
    """Gradients of weights, cut along their rows in several ways."""
    rng = np.random.default_rng(0)
    choices = list(itertools.product(wanted, shortest))
    times: dict[str, dict[str, float]] = {}
    for n, (m, k) in itertools.product(rows, widths):
        program = plan({"dw": graph.input("x", m).matmul(graph.input("g", k), ta=True)})
        values = on_device({"x": rng.random((n, m), np.float32), "g": rng.random((n, k), np.float32)})
        measured: dict[tuple[int, ...], float] = {}
        here = times[f"{m}x{k}x{n}"] = {}
        for choice in choices:
            own = setting(blas, available=lambda: False)
            with own, setting(binding, WANTED_BLOCKS=choice[0], SHORTEST=choice[1]):
                run = CudaExecutable(program, "float32", precision)
                cut = tuple(one.blocks for one in run.bound(n).bound.launches)
                if cut not in measured:  # many choices cut in the same way
                    measured[cut] = us_a_step(device, run, values, n, steps, repeats)
            here[name_of(choice)] = measured[cut]
    best, losses = choice_for_all(times)
    now = name_of((binding.WANTED_BLOCKS, binding.SHORTEST))
    return {
        "constant": "WANTED_BLOCKS, SHORTEST",
        "precision": precision,
        "now": now,
        "best": best,
        "loss": losses[best],
        "loss_now": losses.get(now),
        "shapes": {s: {"us": us, "best": min(us, key=us.__getitem__)} for s, us in times.items()},
    }


def name_of(choice: tuple[int, int]) -> str:
    """(264, 256) as "264, 256"."""
    return f"{choice[0]}, {choice[1]}"


def items(device: Device) -> dict[str, Callable[[], dict[str, Any]]]:
    """All that is measured here, by name, the most important first."""
    found: dict[str, Callable[[], dict[str, Any]]] = {
        "launches": lambda: launches(device),
        "replays": lambda: replays(device),
        "captures": lambda: captures(device),
    }
    for precision in ("highest", "bf16", "tf32"):
        found[f"tiles {precision}"] = lambda p=precision: tiles(device, p)  # type: ignore[misc]
    for precision in ("highest", "bf16", "tf32"):
        found[f"pieces {precision}"] = lambda p=precision: pieces(device, p)  # type: ignore[misc]
    return found
