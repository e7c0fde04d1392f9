"""Where the time of one training step goes: every line that the cpu backend runs, beside what the machine allows.

The step is that of :mod:`fastbp.measure`: gradient and update on one batch of rows in order, with a learning rate so
small that the weights stay where they are. It runs without the clock and with it in turns; the median of each line is
kept. The clock itself is measured and taken off: what it adds to a line's time, and all it costs where the lines are
inside another.

The lines of a step that goes depth first are inside one line of the table. Threads take chunks of rows through them,
each on its own, so their times are those of all threads together and their floors those of one core. Their shares
count a thread's time as its part of the step; the time in which threads wait for each other at the end is in none.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt

from fastbp import arrays, losses, measure, ops, optim, scalars
from fastbp.backends import resolve_dtype
from fastbp.backends.cpu import loading, schedule
from fastbp.backends.cpu.binding import Line
from fastbp.backends.cpu.executable import COMPILE_AFTER, CpuExecutable
from fastbp.backends.division import divide
from fastbp.backends.threads import get_num_threads, set_num_threads
from fastbp.errors import DataError, InputError, missing_extra, unknown
from fastbp.files import replacing
from fastbp.measure import NETWORKS, Effort, Machine, Network, digits, large
from fastbp.network import MLP
from fastbp.optim import Optimizer
from fastbp.program import Instruction, Program
from fastbp.training import DEFAULT_BATCH

if TYPE_CHECKING:
    from rich.table import Table

Array = npt.NDArray[Any]
LEARNING_RATE = 1e-6
FULL, BRIEF = Effort(repeat=0.005, budget=0.4, fewest=3), Effort(repeat=0.0005, budget=0.03, fewest=3, most=5)
PEAK_EVERY = 10  # repeats
MOST_ROWS = 1 << 31
# what the cpu backend calls a line with others inside, and notes of a product that sums dZ to db on the way
DEPTH_FIRST, WITH_SUM = "depth first", "with db"


# ---- what is explained ---------------------------------------------------------------------------------------------


def network_of(
    name: str,
    *,
    batch: int | None = None,
    activation: str | Sequence[str] | None = None,
    output: str | None = None,
    loss: str | None = None,
) -> Network:
    """One of ``measure.NETWORKS``, or the network of the given widths; None takes its own or ``MLP``'s default.

    Args:
        name: a name out of ``NETWORKS``, or widths such as "20-50-1".
        batch: rows a step.
        output: follows the loss if that is given.
    """
    if name in NETWORKS:
        network = NETWORKS[name]
    elif re.fullmatch(r"\d{1,7}(-\d{1,7})+", name, re.ASCII):
        layers = tuple(map(int, name.split("-")))
        network = Network(name, layers, DEFAULT_BATCH, "relu", losses.get("mse").output, "mse")
    else:
        raise InputError(f"{unknown('network', name, NETWORKS)} Widths such as 20-50-1 are a network, too.")
    if loss is not None:
        network = replace(network, loss=loss, output=losses.get(loss).output)
    if batch is not None:
        if arrays.count("batch", batch) > MOST_ROWS:
            raise InputError(f"batch must be at most {MOST_ROWS:,}, got {batch:,}")
        network = replace(network, batch=batch)
    if activation is not None:
        network = replace(network, activation=activation if isinstance(activation, str) else tuple(activation))
    return network if output is None else replace(network, output=output)


@dataclass(frozen=True)
class Part:
    """One line of the step; see the module's text.

    Attributes:
        makes: what comes out, in the notation of ``MLP``: A1, dZ2, dW1, db1, theta; "loss"; or "".
        what, shape, schedule, inside, shared: of the cpu backend's line. A line inside has the shape of one chunk.
        us: µs a step; of a line inside, of all threads together.
        share: of the step.
        operations, bytes: a step, the part of the update that the line does among them.
        gflops, gbytes: a second; of a line inside, of one thread.
        floor_us: operations at the FMA peak of the cores that could do them.
        peak_fraction: floor_us / us.
    """

    makes: str
    what: str
    shape: tuple[int, ...]
    schedule: str
    inside: bool
    shared: bool
    us: float
    share: float
    operations: int
    bytes: int
    gflops: float
    gbytes: float
    floor_us: float
    peak_fraction: float

    @property
    def product(self) -> bool:
        return self.what.startswith("matmul")


@dataclass(frozen=True)
class Explanation:
    """A training step, line by line.

    Attributes:
        threads: those that the step uses.
        step_us: measured without the clock; spread: interquartile range of its repeats by the median.
        lines_us: sum of the lines that are not inside another.
        clock_ns: what the clock added to a line's time, already taken off.
        floor_us: operations at the FMA peak of the cores used.
        workspace, private: bytes of memory for temps, and bytes of each thread's own.
        code_us: a step in code of its own, which a small one gets when it has been run for long; None if it gets none.
    """

    machine: Machine
    network: str
    layers: tuple[int, ...]
    batch: int
    activations: tuple[str, ...]
    loss: str
    optimizer: str
    dtype: str
    parameters: int
    threads: int
    step_us: float
    spread: float
    lines_us: float
    clock_ns: float
    operations: int
    bytes: int
    floor_us: float
    peak_fraction: float
    workspace: int
    private: int
    lines: tuple[Part, ...]
    code_us: float | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Explanation:
        """What :meth:`to_json` was called on.

        Raises:
            DataError: the text is something else.
        """
        try:
            content = json.loads(text)
            peak = {int(threads): value for threads, value in content["machine"]["peak"].items()}
            content["machine"] = Machine(**{**content["machine"], "peak": peak})
            content["lines"] = tuple(Part(**{**part, "shape": tuple(part["shape"])}) for part in content["lines"])
            return cls(**{**content, **{key: tuple(content[key]) for key in ("layers", "activations")}})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"not an explanation of a step by fastbp: {error!r}") from error


def explain(
    network: Network,
    *,
    optimizer: str | Optimizer = "sgd",
    dtype: str = "float32",
    threads: int | None = None,
    quick: bool = False,
) -> Explanation:
    """Measure a training step line by line.

    Args:
        threads: that may be used; None takes ``get_num_threads()``.
        quick: few and short repeats, to see that everything works.
    """
    dtype = resolve_dtype(dtype)
    rule = replace(optim.get(optimizer), learning_rate=LEARNING_RATE)
    before = get_num_threads()
    try:
        if threads is not None:
            set_num_threads(threads)
        return _explain(network, rule, dtype, BRIEF if quick else FULL)
    finally:
        set_num_threads(before)


def save_json(explanation: Explanation, path: str | os.PathLike[str]) -> None:
    """Write the explanation; the file is there whole or not at all."""
    with replacing(path) as file:
        file.write(f"{explanation.to_json()}\n".encode())


# ---- measuring -----------------------------------------------------------------------------------------------------


def _explain(network: Network, rule: Optimizer, dtype: str, effort: Effort) -> Explanation:
    net, n = network.make(dtype, "cpu"), network.batch
    values = _values(net, network, rule)
    machine = cast(CpuExecutable, net.training_step([k for k in ("X", "T", "labels") if k in values], rule, False))
    program, bound = machine.program, machine.bound(n)
    machine.may_have_code = False  # it has no lines
    threads = get_num_threads() if bound.shared else 1
    seconds, clocked, peak = _samples(machine, values, n, threads, effort)
    lines, order, runs = _lines(machine, n)
    added, cost = _clock()
    nanoseconds = _without_clock(lines, clocked, runs, threads, added, cost)
    names = _names(program, net)
    makes = [_makes(instruction, names) for instruction in _instructions(lines, order)]
    costs = [_cost(line, rule, net.dtype.itemsize) for line in lines]
    parts = _parts(lines, nanoseconds, makes, costs, threads, peak)
    step, operations = statistics.median(seconds), program.operations(n)
    return Explanation(
        machine=measure.this_machine(peak),
        network=network.name,
        layers=net.layers,
        batch=n,
        activations=net.activations,
        loss=net.loss_name,
        optimizer=type(rule).__name__,
        dtype=dtype,
        parameters=net.theta.size,
        threads=threads,
        step_us=1e6 * step,
        spread=measure.spread(seconds),
        lines_us=sum(part.us for part in parts if not part.inside),
        clock_ns=added,
        operations=operations,
        bytes=sum(part.bytes for part in parts if not part.inside),
        floor_us=operations / peak[threads] / 1e3,
        peak_fraction=operations / peak[threads] / (1e9 * step),
        workspace=bound.workspace,
        private=bound.private,
        lines=parts,
        code_us=_in_code(CpuExecutable(program, dtype), values, n, effort),
    )


def _parts(
    lines: Sequence[Line],
    nanoseconds: Sequence[float],
    makes: Sequence[str],
    costs: Sequence[tuple[int, int]],
    threads: int,
    peak: dict[int, float],
) -> tuple[Part, ...]:
    """Every line with its figures."""
    total = sum(ns for line, ns in zip(lines, nanoseconds, strict=True) if not line.inside)
    parts, helpers = [], 1
    for line, ns, made, (operations, moved) in zip(lines, nanoseconds, makes, costs, strict=True):
        if not line.inside:
            helpers = threads if line.shared else 1  # lines inside follow the one that they are inside of
        cores, beside = (1, helpers) if line.inside else (helpers, 1)
        floor = operations / peak[cores]
        parts.append(
            Part(
                makes=made,
                what=line.what,
                shape=line.shape,
                schedule=line.schedule,
                inside=line.inside,
                shared=line.shared,
                us=ns / 1e3,
                share=ns / total / beside if ns else 0.0,
                operations=operations,
                bytes=moved,
                gflops=operations / ns if ns else 0.0,
                gbytes=moved / ns if ns else 0.0,
                floor_us=floor / 1e3,
                peak_fraction=floor / ns if ns else 0.0,
            )
        )
    return tuple(parts)


def _values(net: MLP, network: Network, rule: Optimizer) -> dict[str, Array]:
    """What the step reads and writes: a batch, labels for classes, a copy of the weights, the optimiser's state."""
    X, T = network.data(net.dtype.name)
    target = {"labels": T.argmax(axis=1, keepdims=True)} if net.loss_name == "cross_entropy" else {"T": T}
    theta = arrays.on_whole_lines(net.theta.reshape(1, -1).copy())
    states = {f"state{k}": vector for k, vector in enumerate(rule.init(theta).vectors)}
    return {"X": X, **target, "theta": theta, "hyper": rule.hyper(np.zeros(1)), **states}


def _runner(machine: CpuExecutable, values: dict[str, Array], n: int) -> Callable[[int], object]:
    """A function that runs so many steps, all the same."""
    return lambda steps: machine.run_steps(values, np.broadcast_to(np.array([n, 0, 0], np.int64), (steps, 3)))


def _samples(
    machine: CpuExecutable, values: dict[str, Array], n: int, threads: int, effort: Effort
) -> tuple[list[float], Array, dict[int, float]]:
    """Seconds a step without the clock; nanoseconds a step of every line; the peak in GFLOP/s. All in turns."""

    def measured(peak: dict[int, float]) -> dict[int, float]:
        return {count: max(best, measure.fma_peak(machine.dtype.name, count)) for count, best in peak.items()}

    run = _runner(machine, values, n)
    run(1)
    machine.timed_steps(values, n, 1)
    steps = measure.steps_lasting(run, effort.repeat)
    peak = dict.fromkeys(sorted({1, threads}), 0.0)
    seconds: list[float] = []
    lines: list[Array] = []
    began = time.perf_counter()
    while len(seconds) < effort.most:
        if len(seconds) >= effort.fewest and time.perf_counter() - began > effort.budget:
            break
        if len(seconds) % PEAK_EVERY == 0:
            peak = measured(peak)
        seconds.append(measure.clock(run, steps) / steps)
        lines.append(machine.timed_steps(values, n, steps))
    return seconds, np.array(lines), measured(peak)


def _in_code(machine: CpuExecutable, values: dict[str, Array], n: int, effort: Effort) -> float | None:
    """µs a step in code of its own, if it gets any."""
    if not machine.settle(n):
        return None
    run = _runner(machine, values, n)
    steps = measure.steps_lasting(run, effort.repeat)
    return 1e6 * statistics.median(measure.clock(run, steps) / steps for _ in range(effort.fewest))


def _without_clock(
    lines: Sequence[Line], clocked: Array, runs: int, threads: int, added: float, cost: float
) -> list[float]:
    """The median time of every line in nanoseconds, less what the clock took.

    Args:
        clocked: (repeats, lines).
        runs: how often a step does the lines inside.
        added, cost: nanoseconds that the clock adds to a line, and that it costs in all.
    """
    inside = sum(line.inside for line in lines)
    found = []
    for line, ns in zip(lines, np.median(clocked, axis=0).tolist(), strict=True):
        clock = added * (runs if line.inside else 1)
        if line.what == DEPTH_FIRST:
            clock += cost * runs * inside / (threads if line.shared else 1)
        found.append(max(ns - clock, 0.0))
    return found


@cache
def _clock_entry() -> Callable[[int], None]:
    def make() -> Callable[..., None]:
        from fastbp.backends.cpu.probes import make_clock_entry

        return make_clock_entry()

    return loading.entry("clock", make, "backends/cpu/probes.py")


def _clock(count: int = 2000, repeats: int = 9) -> tuple[float, float]:
    """Nanoseconds that the clock adds to the time of a line, and that it costs in all."""
    entry, found = _clock_entry(), []
    for _ in range(repeats):
        call = np.array([count, 0, 0], np.int64)
        entry(call.ctypes.data)
        found.append(call[1:] / count)
    added, cost = np.median(found, axis=0).tolist()
    return added, cost


# ---- from lines back to the Program --------------------------------------------------------------------------------


def _lines(machine: CpuExecutable, n: int) -> tuple[tuple[Line, ...], Sequence[Instruction], int]:
    """The lines for n rows, the instructions in the order in which they do them, and how many chunks there are."""
    program, lines = machine.program, machine.bound(n).lines
    division = divide(program) if any(line.what == DEPTH_FIRST for line in lines) else None
    chunks = schedule.chunks_for(program, division, n) if division is not None else None
    if division is None or chunks is None:
        return lines, program.instructions, 0
    return lines, (*division.head, *division.body, *division.tail), -(-n // chunks.rows)


def _instructions(lines: Sequence[Line], order: Sequence[Instruction]) -> list[Instruction | None]:
    """The instruction of every line; None where the line is the machine's own, as a transposition of weights is.

    Lines that are called the same do their instructions in order. An update may have several lines, or none; a
    product may do the sum over the rows of its right operand, too, which then has no line.
    """
    waiting: dict[str, deque[Instruction]] = {}
    for i in order:
        waiting.setdefault(i.title, deque()).append(i)
    found: list[Instruction | None] = [None] * len(lines)
    summed: set[int] = set()  # by products
    for k, line in sorted(enumerate(lines), key=lambda numbered: not numbered[1].what.startswith("matmul")):
        queue = waiting.get(line.what, deque())
        while queue and queue[0].op == "sum" and queue[0].ins[0] in summed:
            queue.popleft()
        if not queue:
            continue
        found[k] = instruction = queue[0] if queue[0].op == "update" else queue.popleft()
        if WITH_SUM in _notes(line):
            summed.add(instruction.ins[1])
    return found


def _notes(line: Line) -> set[str]:
    return set(line.schedule.split(", "))


def _cost(line: Line, rule: Optimizer, item: int) -> tuple[int, int]:
    """Operations and bytes of a line; those of an update by the elements that this line updates."""
    formula, elements = scalars.UPDATES[rule.rule], math.prod(line.shape[:2])
    each, words = ops.count_update_operations(formula), 2 + 2 * len(formula.states)  # theta, states: read, written
    if line.what.startswith("update "):
        return each * elements, (words + 1) * item * elements
    if rule.rule not in _notes(line):
        return line.operations, line.bytes
    bias = line.shape[1] if WITH_SUM in _notes(line) else 0
    moved = line.bytes + ((words - 1) * elements + words * bias) * item  # the gradient is not written
    return line.operations + each * (elements + bias), moved


def _names(program: Program, net: MLP) -> dict[int, str]:
    """What the buffers of a step are in the notation of ``MLP``, by their numbers."""
    theta, size = program.inputs["theta"], net.theta.size
    weights, biases, at = {}, {}, 0
    for layer, (fan_in, fan_out) in enumerate(zip(net.layers[:-1], net.layers[1:], strict=True), 1):
        weights[at], biases[at + fan_in * fan_out] = layer, layer
        at += (fan_in + 1) * fan_out
    found: dict[int, str] = {theta: "theta"}
    for i in program.instructions:
        out = program.buffers[i.outs[0]]
        of_gradient = out.base is not None and out.base != theta and program.size(out.base, 1) == size
        if of_gradient and i.op == "matmul" and out.offset in weights:
            layer = weights[out.offset]
            found |= {i.outs[0]: f"dW{layer}", i.ins[0]: f"A{layer - 1}", i.ins[1]: f"dZ{layer}"}
        elif of_gradient and out.offset in biases:
            found[i.outs[0]] = f"db{biases[out.offset]}"
        elif i.op == "matmul" and not i.tb and program.buffers[i.ins[1]].base == theta:
            layer = weights[program.buffers[i.ins[1]].offset]
            found[i.outs[-1]] = f"A{layer}"
    last = len(net.layers) - 1
    if net.activations[-1] == "softmax" or net.loss_name == "bce":  # the loss takes the logits
        found = {index: f"Z{last}" if name == f"A{last}" else name for index, name in found.items()}
    for i in program.instructions:  # what is left before the loss is known belongs to it
        for index in i.outs:
            found.setdefault(index, "loss")
        if program.outputs["loss"] in i.outs:
            break
    for i in program.instructions:
        if i.op == "map" and i.code.startswith("mul_") and found.get(i.outs[0], "").startswith("dZ"):
            found.setdefault(i.ins[0], found[i.outs[0]].replace("dZ", "dA"))
    return found


def _makes(instruction: Instruction | None, names: dict[int, str]) -> str:
    if instruction is None:
        return ""
    made = list(dict.fromkeys(names[index] for index in reversed(instruction.outs) if index in names))
    return " and ".join(made if instruction.op == "chain" else made[:1])


# ---- showing it ----------------------------------------------------------------------------------------------------

_BAR = 10  # characters of a share of 1
_EIGHTHS = " ▏▎▍▌▋▊▉"
_COLUMNS = (  # head, and from how many columns of a terminal on it is shown
    ("line", 0),
    ("shape", 0),
    ("µs", 0),
    ("% of\nstep", 0),
    ("", 100),
    ("% of\npeak", 0),
    ("floor\nµs", 130),
    ("oper-\nations", 130),
    ("bytes", 130),
    ("GFLOP/s", 100),
    ("GB/s", 100),
    ("schedule", 0),
)
_LEFT = ("line", "", "schedule")
_OTHERS = 112  # columns that all others take at most
_SCHEDULE = 14  # columns of a schedule at least; it goes on in the next line
_BUSY = 0.15  # spread of the repeats, or half of the time between lines, from which on something else is running
_ALIKE = 0.75  # the peak of several threads, by threads times the peak of one, up to which it is so, too


def summary(e: Explanation) -> str:
    """The network and where its step's time goes, in a few sentences."""
    products = [part for part in e.lines if part.product]
    share = sum(part.share for part in products)
    speed = sum(part.share * part.peak_fraction for part in products) / share if share else 0.0
    waiting = _between(e) if any(part.inside for part in e.lines) else 0.0
    lost = sorted(_leaves(e), key=_above_floor, reverse=True)[:3]
    most = ", ".join(f"{part.makes or _what(part)} {_percent(_above_floor(part))}" for part in lost)
    runs = [(name, len(list(same))) for name, same in itertools.groupby(e.activations)]
    activations = ", ".join(f"{count} × {name}" if count > 1 else name for name, count in runs)
    return (
        f"{e.network}, {e.batch:,} row{'s' * (e.batch > 1)}: {activations}; {e.loss}; {e.optimizer}; {e.dtype}\n"
        f"A step takes {digits(e.step_us)} µs on {e.threads} thread{'s' * (e.threads > 1)}, at "
        f"{_percent(e.peak_fraction)} of the FMA peak.\n"
        f"Products take {_percent(share)} of it and run at {_percent(speed)} of the peak; everything else takes "
        f"{_percent(1.0 - share - waiting)}{f', waiting {_percent(waiting)}' if waiting >= 0.005 else ''}.\n"
        f"Furthest above their floors, as a part of the step: {most}."
        f"{_own_code(e)}"
    )


def _own_code(e: Explanation) -> str:
    """What becomes of a small step that is run for long."""
    if e.code_us is None:
        return ""
    return (
        f"\nThat is how the step begins; when it has been run for {COMPILE_AFTER:g} s it gets code of its own, without "
        f"lines, and takes {digits(e.code_us)} µs."
    )


def _leaves(e: Explanation) -> list[Part]:
    """The lines that have none inside."""
    return [part for part in e.lines if part.what != DEPTH_FIRST]


def _above_floor(part: Part) -> float:
    """The part of the step that a line takes beyond its floor."""
    return part.share * (1.0 - part.peak_fraction)


def _between(e: Explanation) -> float:
    """The part of the step in which threads work depth first, but at none of the lines inside."""
    outer = sum(part.share for part in e.lines if part.what == DEPTH_FIRST)
    return outer - sum(part.share for part in e.lines if part.inside)


def notes(e: Explanation) -> str:
    """What the figures mean, and where they were measured."""
    peaks = [f"{peak:.0f} on {count}" for count, peak in e.machine.peak.items()]
    inside = (
        " Lines inside depth first: times of all threads together, against the peak of one; threads spend "
        f"{_percent(_between(e))} of the step in none of them, waiting for each other."
    )
    rough = max(e.spread, _between(e) / 2) > _BUSY or e.machine.peak[e.threads] < _ALIKE * e.threads * e.machine.peak[1]
    busy = ": the machine is busy, or its threads share cores, and the figures are rough."
    return (
        f"The lines add up to {digits(e.lines_us)} µs, {e.clock_ns:.0f} ns for the clock taken off each; the step was "
        f"measured without it, its repeats spread by {_percent(e.spread)} (interquartile){busy if rough else '.'} "
        f"FMA peak measured, GFLOP/s by threads: {', '.join(peaks)}; floor: operations at it."
        f"{inside if any(part.inside for part in e.lines) else ''} {large(e.operations)} operations; workspace "
        f"{large(e.workspace)}B, {large(e.private)}B more for each thread.\n"
        f"{e.machine.cpu}, vectors of {e.machine.vector_bytes} bytes; fastbp {e.machine.fastbp}, {e.machine.date[:10]}."
    )


def _percent(x: float) -> str:
    return f"{100 * x:.0f}%"


def _what(part: Part) -> str:
    """The line's name, with signs for what is fused into it."""
    name = re.sub(r"\bmul_(\w+)_grad\b", r"× \1′", part.what)
    return re.sub(r"^matmul add(?:[ _](\w+))?$", lambda m: f"matmul + b{f', {m[1]}' if m[1] else ''}", name)


def _bar(share: float) -> str:
    eighths = round(8 * _BAR * min(1.0, share))
    return f"{'█' * (eighths // 8)}{_EIGHTHS[eighths % 8]}".rstrip()


def _count(x: int) -> str:
    return str(x) if x < 1000 else large(x)


def _in_lines(text: str, most: int) -> str:
    """The parts of a text between commas, as many a line as fit."""
    lines = [""]
    for part in text.split(", "):
        joined = f"{lines[-1]}, {part}" if lines[-1] else part
        if len(joined) < most or not lines[-1]:  # and a comma
            lines[-1] = joined
        else:
            lines.append(part)
    return ",\n".join(lines)


def _cells(part: Part, schedule_width: int) -> tuple[str, ...]:
    return (
        f"{'│ ' * part.inside}{part.makes:<5} {_what(part)}",
        "×".join(map(str, part.shape)),
        digits(part.us),
        f"{100 * part.share:.1f}",
        _bar(part.share),
        f"{100 * part.peak_fraction:.0f}" if part.operations else "",
        digits(part.floor_us) if part.operations else "",
        _count(part.operations) if part.operations else "",
        _count(part.bytes),
        digits(part.gflops) if part.operations else "",
        digits(part.gbytes),
        _in_lines(part.schedule, schedule_width),
    )


def table(e: Explanation, width: int) -> Table:
    """The lines for a terminal of so many columns, at least 80; all figures from 130 on (extra "cli")."""
    try:
        from rich import box
        from rich.table import Table
    except ImportError as error:
        raise missing_extra("rich", "cli", "The explanation's table") from error
    columns = [k for k, (_, least) in enumerate(_COLUMNS) if width >= least]
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for k in columns:
        head, text = _COLUMNS[k][0], _COLUMNS[k][0] == "schedule"
        justify: Literal["left", "right"] = "left" if head in _LEFT else "right"
        shown.add_column(head, justify=justify, no_wrap=not text, min_width=_SCHEDULE if text else None)
    for part in e.lines:
        cells = _cells(part, max(_SCHEDULE, width - _OTHERS))
        style = "bold" if part.share >= 0.1 else "dim" if part.share < 0.005 else ""
        shown.add_row(*(cells[k] for k in columns), style=style)
    return shown
