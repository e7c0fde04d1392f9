"""Measured times of forward, backward and training step, beside what theory and the machine allow.

What is timed, for each network and backend, the runs taken in turns and the median kept:

forward     the outputs alone, as ``MLP.forward`` computes them; hidden layers share memory.
storing     the forward pass of training: the outputs, the loss, and every value that the backward pass reads later kept
            in memory of its own. It is the part of the gradient's Program up to the loss, see :func:`storing_forward`.
gradient    loss and gradient, ``MLP.program("gradient")``.
backward    gradient - storing.
step        gradient and SGD update, as ``MLP.fit`` runs them on rows in order.

On ``cpu`` many steps run inside one compiled call, so that Python is not what a small network's time consists of; on
``numpy`` Python is part of every instruction anyway.

Theory, of a network whose layer l takes P_l operations forward (2 · rows · fan_in · fan_out) and ΣP in all: backward
is two products of the same size a layer, dW = Aᵀ dZ and dA = dZ Wᵀ, but dA of the input is not needed. So backward to
forward is (2 ΣP - P_1)/ΣP = 2 - P_1/ΣP. ``ratio_operations`` counts the elementwise work too, as the Programs hold it.

A floor is operations / (FMA peak of a core, measured in the same run, · threads): no backend can be faster. Threads
are those among which the cpu backend shares the network's instructions; the floors of all backends count with them.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastbp import arrays, optim, pictures
from fastbp.backends import ON_HOST, Executable, executable, resolve, resolve_dtype
from fastbp.backends.cpu import loading, target
from fastbp.backends.cpu.binding import Slots, bind
from fastbp.backends.cpu.executable import CpuExecutable
from fastbp.backends.threads import get_num_threads
from fastbp.errors import DataError, missing_extra, unknown
from fastbp.files import replacing
from fastbp.network import MLP
from fastbp.program import Program

if TYPE_CHECKING:
    from rich.table import Table

Array = npt.NDArray[Any]
LEARNING_RATE = 0.01


# ---- the networks --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """One case: a network, its batch and its loss."""

    name: str
    layers: tuple[int, ...]
    batch: int
    activation: str | tuple[str, ...] = "sigmoid"
    output: str = "sigmoid"
    loss: str = "half_sse"

    def make(self, dtype: str = "float32", backend: str | None = None, precision: str = "highest") -> MLP:
        """The network with its fixed initial weights."""
        return MLP(
            self.layers,
            activation=self.activation,
            output=self.output,
            loss=self.loss,
            dtype=dtype,
            precision=precision,
            backend=backend,
            seed=0,
        )

    def data(self, dtype: str = "float32") -> tuple[Array, Array]:
        """One batch of inputs and targets, uniform in [0, 1)."""
        rng = np.random.default_rng(0)
        X, T = (rng.random((self.batch, width)).astype(dtype) for width in (self.layers[0], self.layers[-1]))
        return X, T


NETWORKS: dict[str, Network] = {
    network.name: network
    for network in (
        Network("2-3-1", (2, 3, 1), 8),
        Network("3-4-1", (3, 4, 1), 8),
        Network("4-5-3", (4, 5, 3), 8),
        Network("2-4-1", (2, 4, 1), 4),
        Network("784-30-10", (784, 30, 10), 10),
        Network("64-64-64-10", (64, 64, 64, 10), 32),
        Network("784-128-10", (784, 128, 10), 64),
        Network("784-512-512-10", (784, 512, 512, 10), 256),
        Network("1024x4", (1024,) * 5, 1024),
        Network("4-32-16-4", (4, 32, 16, 4), 10_000),
        Network("64x5", (64,) * 6, 16_384),
    )
}
QUICK = tuple(NETWORKS)[:6]
# One shape in all sizes, to see how costs grow; see ``pictures.cost_chart``.
GROWING = tuple(Network(f"{w}-{w}-{w}", (w, w, w), 64) for w in (4, 8, 16, 32, 64, 128, 256, 512, 1024))


# ---- the machine ---------------------------------------------------------------------------------------------------

_PEAK_SECONDS = 0.005
_PEAK_REPEATS = 3  # after every case, and the best is kept


@cache
def _fma_entry(dtype: str) -> Callable[[int], None]:
    def make() -> Callable[..., None]:
        from fastbp.backends.cpu.probes import make_fma_entry

        return make_fma_entry(dtype)

    return loading.entry(f"{dtype} FMA peak", make, "backends/cpu/probes.py")


def fma_peak(dtype: str, threads: int = 1) -> float:
    """The FMA peak of ``threads`` cores in GFLOP/s, measured now: the best of several runs, for it is a limit."""
    dtype = resolve_dtype(dtype)
    entry = _fma_entry(dtype)

    def call(turns: int) -> Array:
        words = np.array([turns, 0], np.int64)
        words[1:].view(np.float64)[0] = 1.0
        entry(words.ctypes.data)
        return words

    operations_a_turn = 2 * target.LINKS * target.CHAINS * target.VECTOR_BYTES // np.dtype(dtype).itemsize
    call(1)
    turns = steps_lasting(call, _PEAK_SECONDS)

    def seconds() -> float:
        team = [threading.Thread(target=call, args=(turns,)) for _ in range(threads)]
        began = time.perf_counter()
        for thread in team:
            thread.start()
        for thread in team:
            thread.join()
        return time.perf_counter() - began

    best = min(seconds() for _ in range(_PEAK_REPEATS))
    return threads * turns * operations_a_turn / best / 1e9


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


# ---- timing --------------------------------------------------------------------------------------------------------


def clock(run: Callable[..., object], *arguments: Any) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - began


def steps_lasting(run: Callable[[int], object], seconds: float) -> int:
    """How many steps ``run`` needs to last that long twice in succession, found by running them.

    Once is not enough: the first time may be spent on what is done only then, and any on another process.
    """
    steps = 1
    while (elapsed := clock(run, steps)) < seconds or (elapsed := clock(run, steps)) < seconds:
        steps = max(2 * steps, min(100 * steps, int(1.1 * steps * seconds / elapsed)))
    return steps


@dataclass(frozen=True)
class Effort:
    """How long to measure: seconds a repeat, seconds a network and backend, repeats, seconds for the naive gradient."""

    repeat: float = 0.005
    budget: float = 2.5
    fewest: int = 3
    most: int = 40
    naive: float = 1.0


FULL, BRIEF = Effort(), Effort(repeat=0.0005, budget=0.1, fewest=3, most=5, naive=0.05)


def _samples(runs: Mapping[str, Callable[[int], object]], effort: Effort) -> dict[str, list[float]]:
    """Seconds a step of every run, taken in turns so that a disturbance meets all of them.

    The first run decides how many steps a repeat has for all: what a call allocates then weighs the same in each.
    """
    for run in runs.values():
        run(1)  # compiles, binds and touches memory
    steps = steps_lasting(next(iter(runs.values())), effort.repeat)
    found: dict[str, list[float]] = {name: [] for name in runs}
    began = time.perf_counter()
    for repeat in range(effort.most):
        if repeat >= effort.fewest and time.perf_counter() - began > effort.budget:
            break
        for name, run in runs.items():
            found[name].append(clock(run, steps) / steps)
    return found


def spread(samples: list[float]) -> float:
    """Interquartile range by median."""
    first, median, third = statistics.quantiles(samples, n=4, method="inclusive")
    return (third - first) / median


# ---- what is timed -------------------------------------------------------------------------------------------------


def storing_forward(gradient: Program) -> Program:
    """The forward part of a gradient's Program: up to its loss, what the rest reads kept where it keeps it."""
    last = next(k for k, i in enumerate(gradient.instructions) if gradient.outputs["loss"] in i.outs)
    head, tail = gradient.instructions[: last + 1], gradient.instructions[last + 1 :]
    written = {index for i in head for index in i.outs}
    saved = frozenset(written & {index for i in tail for index in i.ins})
    return Program(gradient.buffers, head, {"loss": gradient.outputs["loss"]}, saved)


@dataclass(frozen=True)
class Case:
    """One network on one backend, ready to be timed.

    Attributes:
        programs: "forward", "storing", "gradient", "step".
        runs: for each of them, a function that runs so many identical steps.
    """

    net: MLP
    X: Array
    T: Array
    programs: dict[str, Program]
    runs: dict[str, Callable[[int], object]]


def prepare(network: Network, backend: str, dtype: str = "float32") -> Case:
    """Build everything that :func:`run` times; kernels are compiled here if they are not yet."""
    net, (X, T) = network.make(dtype, backend), network.data(dtype)
    gradient = net.program("gradient")
    programs = {"forward": net.program("forward"), "storing": storing_forward(gradient), "gradient": gradient}
    executables: dict[str, Any] = {name: executable(p, backend, dtype) for name, p in programs.items()}
    sgd = optim.SGD(LEARNING_RATE)
    executables["step"] = net.training_step(("X", "T"), sgd, False)
    programs["step"] = executables["step"].program
    theta = net.theta.reshape(1, -1)
    values = {"X": X, "T": T, "theta": theta, "hyper": sgd.hyper(np.zeros(1))}
    runs = {name: _runner(e, values, len(X), backend) for name, e in executables.items() if name != "step"}
    # the step has weights of its own: the others are timed at the initial ones
    own = arrays.on_whole_lines(theta.copy())
    runs["step"] = _runner(executables["step"], values | {"theta": own}, len(X), backend)
    return Case(net, X, T, programs, runs)


def _runner(machine: Executable, values: dict[str, Array], n: int, backend: str) -> Callable[[int], object]:
    if backend == "numpy":  # its run_steps would pile up the outputs of all steps

        def run(steps: int) -> None:
            for _ in range(steps):
                machine.run(values, n)

        return run
    if isinstance(machine, CpuExecutable):
        machine.settle(n)
    # every step is step 0 of the outputs too, so that they are overwritten and memory does not grow
    return lambda steps: machine.run_steps(values, np.broadcast_to(np.array([n, 0, 0], np.int64), (steps, 3)))


def _repeated(function: Callable[[], object]) -> Callable[[int], None]:
    def run(steps: int) -> None:
        for _ in range(steps):
            function()

    return run


def naive_gradient(net: MLP, X: Array, T: Array) -> Array:
    """The gradient by forward differences, one forward pass a parameter and one more: what backpropagation replaces.

    The step is √ε, which balances rounding and curvature: about half the digits of the dtype are right.
    """
    theta = net.theta
    step = theta.dtype.type(np.finfo(theta.dtype).eps ** 0.5)
    here = net.loss(X, T)
    gradient = np.empty_like(theta)
    for k, value in enumerate(theta.copy()):
        theta[k] = value + step
        gradient[k] = (net.loss(X, T) - here) / (theta[k] - value)  # the step as it was rounded
        theta[k] = value
    return gradient


# ---- the report ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One network on one backend; times in µs, see the module's text.

    Attributes:
        spread: interquartile range of the step's repeats by their median.
        ratio: backward / storing, measured; ratio_products and ratio_operations are the theory.
        gflops: of the step, all operations counted.
        peak_fraction: step_floor_us / step_us.
        loss_call_us, gradient_call_us: ``MLP.loss`` and ``MLP.loss_and_grad``, called from Python.
        naive_us: :func:`naive_gradient`; (parameters + 1) · loss_call_us if it would take too long.
        naive_ratio: naive_us / gradient_call_us, so that Python's share is on both sides.
    """

    network: str
    backend: str
    layers: tuple[int, ...]
    batch: int
    parameters: int
    threads: int
    forward_us: float
    storing_us: float
    backward_us: float
    gradient_us: float
    step_us: float
    spread: float
    rows_per_second: float
    forward_floor_us: float
    backward_floor_us: float
    step_floor_us: float
    ratio: float
    ratio_products: float
    ratio_operations: float
    gflops: float
    peak_fraction: float
    loss_call_us: float
    gradient_call_us: float
    naive_us: float
    naive_extrapolated: bool
    naive_ratio: float


@dataclass(frozen=True)
class Machine:
    """Where and with what a report was made; ``peak`` is GFLOP/s by number of threads."""

    cpu: str
    threads: int
    vector_bytes: int
    peak: dict[int, float]
    python: str
    numpy: str
    numba: str
    fastbp: str
    date: str


@dataclass(frozen=True)
class Report:
    """The result of :func:`run`."""

    machine: Machine
    dtype: str
    quick: bool
    rows: list[Row]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """What :meth:`to_json` was called on.

        Raises:
            DataError: the text is something else.
        """
        try:
            content = json.loads(text)
            peak = {int(threads): value for threads, value in content["machine"]["peak"].items()}
            rows = [Row(**{**row, "layers": tuple(row["layers"])}) for row in content["rows"]]
            return cls(Machine(**{**content["machine"], "peak": peak}), content["dtype"], content["quick"], rows)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"not a report of fastbp's benchmark: {error!r}") from error


def theoretical_ratios(network: Network) -> tuple[float, float]:
    """Backward to forward, from the products alone (2 - P_1/ΣP) and from all operations of the Programs."""
    gradient = network.make().program("gradient")
    storing, n = storing_forward(gradient), network.batch
    products = gradient.product_operations(n) / storing.product_operations(n) - 1.0
    return products, gradient.operations(n) / storing.operations(n) - 1.0


def run(
    networks: Sequence[str | Network] | None = None,
    backends: Sequence[str] | None = None,
    dtype: str = "float32",
    quick: bool = False,
    progress: Callable[[str], object] | None = None,
) -> Report:
    """Measure.

    Args:
        networks: names out of ``NETWORKS``, or networks; None takes all, or the six of ``QUICK`` if quick.
        backends: those that compute on the host, both if None.
        quick: few and short repeats, to see that everything works.
        progress: called with a line before each network and backend.
    """
    dtype = resolve_dtype(dtype)
    chosen = [_network(name) for name in networks or (QUICK if quick else NETWORKS)]
    machines = [resolve(name) for name in backends or ON_HOST]
    effort = BRIEF if quick else FULL
    counts = sorted({1, get_num_threads()})
    peak = dict.fromkeys(counts, 0.0)
    measured = []
    for network in chosen:
        for backend in machines:
            if progress is not None:
                progress(f"{network.name} on {backend}")
            case = prepare(network, backend, dtype)
            measured.append((network, case, *_measure(case, effort)))
            # again and again: a limit that another process happened to lower would flatter everything
            peak = {threads: max(before, fma_peak(dtype, threads)) for threads, before in peak.items()}
    rows = [_row(network, case, samples, naive, peak) for network, case, samples, naive in measured]
    return Report(this_machine(peak), dtype, quick, rows)


def _network(name: str | Network) -> Network:
    if isinstance(name, Network):
        return name
    if name not in NETWORKS:
        raise unknown("network", name, NETWORKS)
    return NETWORKS[name]


def _measure(case: Case, effort: Effort) -> tuple[dict[str, list[float]], float | None]:
    """Seconds of everything, and of the naive gradient unless it would take too long."""
    net, X, T = case.net, case.X, case.T
    calls = {
        "loss call": _repeated(lambda: net.loss(X, T)),
        "gradient call": _repeated(lambda: net.loss_and_grad(X, T)),
    }
    samples = _samples(case.runs, effort) | _samples(calls, effort)  # a call of Python's lasts many compiled steps
    estimate = (net.theta.size + 1) * statistics.median(samples["loss call"])
    if estimate > effort.naive:
        return samples, None
    repeats = 5 if estimate < effort.naive / 5 else 1
    return samples, statistics.median(clock(naive_gradient, net, X, T) for _ in range(repeats))


def threads_of(program: Program, n: int, dtype: str) -> int:
    """Threads among which the cpu backend shares the Program's instructions."""
    return get_num_threads() if bind(program, Slots(program), n, dtype).shared else 1


def _row(
    network: Network, case: Case, samples: dict[str, list[float]], naive: float | None, peak: Mapping[int, float]
) -> Row:
    n, parameters = network.batch, case.net.theta.size
    seconds = {name: statistics.median(found) for name, found in samples.items()}
    operations = {name: program.operations(n) for name, program in case.programs.items()}
    threads = threads_of(case.programs["step"], n, case.net.dtype.name)
    floor = {name: count / (peak[threads] * 1e9) for name, count in operations.items()}
    backward = seconds["gradient"] - seconds["storing"]
    products, all_operations = theoretical_ratios(network)
    naive_seconds = (parameters + 1) * seconds["loss call"] if naive is None else naive
    return Row(
        network=network.name,
        backend=case.net.backend,
        layers=network.layers,
        batch=n,
        parameters=parameters,
        threads=threads,
        forward_us=1e6 * seconds["forward"],
        storing_us=1e6 * seconds["storing"],
        backward_us=1e6 * backward,
        gradient_us=1e6 * seconds["gradient"],
        step_us=1e6 * seconds["step"],
        spread=spread(samples["step"]),
        rows_per_second=n / seconds["step"],
        forward_floor_us=1e6 * floor["storing"],
        backward_floor_us=1e6 * (floor["gradient"] - floor["storing"]),
        step_floor_us=1e6 * floor["step"],
        ratio=backward / seconds["storing"],
        ratio_products=products,
        ratio_operations=all_operations,
        gflops=operations["step"] / seconds["step"] / 1e9,
        peak_fraction=floor["step"] / seconds["step"],
        loss_call_us=1e6 * seconds["loss call"],
        gradient_call_us=1e6 * seconds["gradient call"],
        naive_us=1e6 * naive_seconds,
        naive_extrapolated=naive is None,
        naive_ratio=naive_seconds / seconds["gradient call"],
    )


def this_machine(peak: dict[int, float]) -> Machine:
    """The machine and its versions, with the peak that was measured."""
    import fastbp

    return Machine(
        cpu=_cpu_name(),
        threads=get_num_threads(),
        vector_bytes=target.VECTOR_BYTES,
        peak=peak,
        python=platform.python_version(),
        numpy=np.__version__,
        numba=importlib.metadata.version("numba"),
        fastbp=fastbp.__version__,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


# ---- showing it ----------------------------------------------------------------------------------------------------

_COLUMNS = (
    ("network, batch", ""),
    ("backend", ""),
    ("cores", ""),
    ("forward", "µs"),
    ("storing", "µs"),
    ("floor", "µs"),
    ("backward", "µs"),
    ("floor", "µs"),
    ("ratio", "measured"),
    ("ratio", "products"),
    ("ratio", "all op."),
    ("step", "µs"),
    ("rows/s", ""),
    ("GFLOP/s", ""),
    ("% peak", ""),
    ("naive/bp", ""),
)
_NARROW = {  # the columns of a terminal of 80, and their shorter heads
    0: "network, batch",
    1: "backend",
    4: "storing\nµs",
    6: "backward\nµs",
    8: "ratio\nmeas.",
    9: "ratio\nprod.",
    11: "step\nµs",
    14: "%\npeak",
    15: "naive\n/bp",
}
_WIDE = 140  # columns of a terminal that all of them fit
_NOT_IN_README = {("cores", ""), ("forward", "µs"), ("ratio", "all op.")}
_LEFT = 2  # columns of text; the others are numbers


def digits(x: float) -> str:
    """Three significant digits without an exponent, two below 1."""
    if abs(x) >= 99.95:
        return f"{x:,.0f}"
    return f"{x:.1f}" if abs(x) >= 9.995 else f"{x:.2f}" if abs(x) >= 0.995 else f"{x:.2g}"


def large(x: float) -> str:
    """Three significant digits with a unit: 950, 1.23 k, 45.6 M."""
    for unit, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if x >= 0.9995 * unit:
            return digits(x / unit) + letter
    return digits(x)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        f"{row.network}, {row.batch}",
        row.backend,
        str(row.threads),
        digits(row.forward_us),
        digits(row.storing_us),
        digits(row.forward_floor_us),
        digits(row.backward_us),
        digits(row.backward_floor_us),
        f"{row.ratio:.2f}",
        f"{row.ratio_products:.2f}",
        f"{row.ratio_operations:.2f}",
        digits(row.step_us),
        large(row.rows_per_second),
        digits(row.gflops),
        digits(100 * row.peak_fraction),
        f"{'~' * row.naive_extrapolated}{large(row.naive_ratio)}",
    )


def _caption(report: Report) -> str:
    m = report.machine
    peaks = ", ".join(f"{peak:.0f} on {threads}" for threads, peak in m.peak.items())
    spread = max(row.spread for row in report.rows)
    return (
        f"{m.cpu}, {m.threads} threads, vectors of {m.vector_bytes} bytes; {report.dtype}; FMA peak measured, GFLOP/s "
        f"by threads: {peaks}.\nfastbp {m.fastbp}, Numba {m.numba}, NumPy {m.numpy}, Python {m.python}, {m.date[:10]}."
        f" Repeats of a step spread by up to {spread:.0%} (interquartile)."
        f"{' Quick run: the times are rough.' * report.quick}"
    )


_LEGEND = (
    "storing: forward with loss, keeping what backward reads. floor: operations at the FMA peak of the cores used. "
    "ratio: backward to storing, measured, and in theory by products (2 - P1/ΣP) and by all operations. "
    "naive/bp: one forward pass a parameter against backpropagation; ~ extrapolated."
)


def table(report: Report, width: int = _WIDE) -> Table:
    """The report for a terminal of so many columns, at least 80; fewer figures below 140 (extra "cli")."""
    try:
        from rich import box
        from rich.table import Table
    except ImportError as error:
        raise missing_extra("rich", "cli", "The benchmark's table") from error
    wide = width >= _WIDE
    heads = {k: f"{name}\n{unit}" for k, (name, unit) in enumerate(_COLUMNS)} if wide else _NARROW
    more = "" if wide else f" A terminal of {_WIDE} columns shows more."
    shown = Table(
        title="forward, backward and training step",
        caption=f"{_caption(report)}\n{_LEGEND}{more}",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        show_edge=wide,
    )
    for k, head in heads.items():
        shown.add_column(head, justify="left" if k < _LEFT else "right", no_wrap=True)
    for before, row in zip([None, *report.rows], report.rows, strict=False):
        if before is not None and before.network != row.network:
            shown.add_section()
        cells = _cells(row)
        shown.add_row(*(cells[k] for k in heads))
    return shown


def plain_table(report: Report) -> str:
    """The report in Markdown, for a README: the columns of the terminal's table that fit a page."""
    shown = [k for k, (name, unit) in enumerate(_COLUMNS) if (name, unit) not in _NOT_IN_README]
    heads = [f"{name}, {unit}" if unit else name for name, unit in _COLUMNS]
    rules = [":--" if k < _LEFT else "--:" for k in range(len(heads))]
    lines = [[cells[k] for k in shown] for cells in (heads, rules, *map(_cells, report.rows))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + f"\n\n{_caption(report)}\n\n{_LEGEND}\n"


def save_json(report: Report, path: str | os.PathLike[str]) -> None:
    """Write the report; the file is there whole or not at all."""
    with replacing(path) as file:
        file.write(f"{report.to_json()}\n".encode())


def draw(report: Report, path: str | os.PathLike[str]) -> None:
    """A picture of the report, its format told by the name's ending (extra "plots")."""
    pictures.check(path)
    from matplotlib.figure import Figure

    by_network = {row.network: row for row in report.rows}  # theory and floors are the same on any backend
    rows, height = list(by_network.values()), {name: k for k, name in enumerate(by_network)}
    inches = 0.42 * max(6, len(rows))  # of the panels
    figure = Figure(figsize=(15.0, 2.6 + inches), layout="constrained")
    ratio, step, naive = figure.subplots(1, 3, width_ratios=(1.0, 1.1, 0.9))
    at = list(height.values())
    hollow = {"facecolors": "none", "edgecolors": "black", "s": 80}
    ratio.scatter([r.ratio_products for r in rows], at, marker="s", label="theory: products, 2 − P₁/ΣP", **hollow)
    ratio.scatter([r.ratio_operations for r in rows], at, marker="D", label="theory: all operations", **hollow)
    step.scatter([r.step_floor_us for r in rows], at, marker="|", s=160, color="black", label="operations / FMA peak")
    names = list(dict.fromkeys(row.backend for row in report.rows))
    for k, backend in enumerate(names):
        mine = [row for row in report.rows if row.backend == backend]
        beside = 0.2 * (k - (len(names) - 1) / 2)  # so that equal values do not hide each other
        at_dots = [height[row.network] + beside for row in mine]
        dots = {"edgecolors": f"C{k}", "s": 36, "zorder": 3}
        ratio.scatter([row.ratio for row in mine], at_dots, facecolors=f"C{k}", label=backend, **dots)
        step.scatter([row.step_us for row in mine], at_dots, facecolors=f"C{k}", label=backend, **dots)
        for extrapolated in (False, True):
            chosen = [row for row in mine if row.naive_extrapolated == extrapolated]
            x, y = [row.parameters for row in chosen], [row.naive_ratio for row in chosen]
            if not chosen:
                continue
            face, label = ("none", f"{backend}, extrapolated") if extrapolated else (f"C{k}", backend)
            naive.scatter(x, y, facecolors=face, label=label, **dots)
    ends = [min(row.parameters for row in rows) / 2, max(row.parameters for row in rows) * 2]
    naive.plot(ends, [(p + 1) / 3 for p in ends], color="grey", label="(parameters + 1) / 3")

    ratio.set(title="backward / storing forward, time", xlim=(0, None))
    ratio.set_yticks(range(len(rows)), [f"{row.network}\nbatch {row.batch:,}" for row in rows])
    step.set(title="training step, µs", xscale="log")
    step.set_yticks(range(len(rows)), [])
    naive.set(title="naive gradient / backpropagation, time", xscale="log", yscale="log")
    for panel, columns in ((ratio, 2), (step, 3), (naive, 2)):
        panel.grid(alpha=0.3)
        panel.set_axisbelow(True)
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.55 / inches), ncols=columns, frameon=False)
    for panel in (ratio, step):
        panel.set_ylim(len(rows) - 0.5, -0.5)
    naive.set_xlabel("parameters")
    figure.suptitle(_caption(report), fontsize="small")
    with replacing(path) as file:
        figure.savefig(file, format=Path(path).suffix[1:], dpi=150)
