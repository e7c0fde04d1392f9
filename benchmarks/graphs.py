"""Value and gradient of general graphs, by fastbp and by other libraries, from the same plain functions.

A function is written once, on a namespace ``xp`` of operations and a list of arrays, and everybody gets it: eager
libraries run it, compiling ones trace it. All is float32, on the same inputs in each library's own arrays; before
anything is timed, value and gradients are compared with those of fastbp's array machine in float64.

first    from the plain function to its first value and gradient: tracing, planning, compiling, running once. Libraries
         are imported and have done the same for a tiny function; every repeat is a fresh function, and caches in which
         a library would find the last repeat are emptied before. fastbp's kernels, the same for all functions, are
         loaded.
steady   a call from Python, the results waited for. Runs are taken in turns, each after a pause and an untimed part,
         as in peers.py.

Threads are those that the process may use, see :func:`within`: JAX counts cores when it starts, and cannot be told.
"""

from __future__ import annotations

import contextlib
import gc
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FunctionType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
from peers import Array, Effort, WrongResultError, _missing, _torch_cannot_compile

import fastbp
from fastbp.backends.cpu.chain_table import Place, Work, flattened, with_multiply_adds
from fastbp.backends.cpu.executable import CpuExecutable
from fastbp.measure import clock, spread, steps_lasting
from fastbp.ops import ONE, Size
from fastbp.program import Buffer, Instruction, Program, Result, Step
from fastbp.transform import _Compiled

Function = Callable[..., Any]  # (xp, *arrays) -> scalar

TOLERANCE = 1e-4  # of the norm, of every gradient
ELEMENTS = 1_000_000


# ---- the functions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A scalar function and its arguments.

    Attributes:
        f: the function of ``xp`` and the arrays.
        wanted: so many of the arguments, the first ones, are differentiated.
        make: the arguments, in float32 and int64.
        about: one line for a caption.
    """

    name: str
    f: Function
    wanted: int
    make: Callable[[np.random.Generator], list[Array]]
    about: str

    def arrays(self) -> list[Array]:
        made = self.make(np.random.default_rng(0))
        return [a if a.dtype.kind == "i" else a.astype(np.float32) for a in made]


def _residual(xp: Any, w1: Any, b1: Any, w2: Any, b2: Any, w3: Any, b3: Any, w4: Any, b4: Any, *rest: Any) -> Any:
    v, c, x, t = rest
    h = x
    for w, b in ((w1, b1), (w2, b2), (w3, b3), (w4, b4)):
        h = h + xp.tanh(h @ w + b)
    return xp.mean(xp.square(h @ v + c - t))


def _make_residual(rng: np.random.Generator, rows: int = 512, width: int = 128) -> list[Array]:
    blocks = [a for _ in range(4) for a in (rng.normal(size=(width, width)) / width**0.5, rng.normal(size=width) / 10)]
    head = [rng.normal(size=(width, 1)) / width**0.5, np.zeros(1)]
    return [*blocks, *head, rng.normal(size=(rows, width)), rng.normal(size=(rows, 1))]


OPERATIONS = 30


def thirty(xp: Any, x: Any) -> Any:
    """Thirty operations an element; the sum is one more."""
    a = xp.tanh(x) * 0.5  # 2
    b = xp.sigmoid(x - a)  # 4
    c = xp.exp(a - b) + 1.0  # 7
    d = xp.log(c) * x  # 9
    e = xp.sqrt(xp.square(d) + 1.0)  # 12
    g = d / e  # 13
    h = xp.maximum(g, a)  # 14
    k = xp.abs(h - b) + c  # 17
    m = xp.square(k) / (e + b)  # 20
    p = xp.tanh(m - h) * g  # 23
    q = xp.exp(p - c) + d  # 26
    r = xp.log(e + m)  # 28
    return xp.sum(q * r + p)  # 30


def _embedding(xp: Any, table1: Any, table2: Any, w: Any, b: Any, v: Any, c: Any, i: Any, j: Any, t: Any) -> Any:
    x = xp.concatenate([xp.take(table1, i), xp.take(table2, j)], 1)
    z = xp.relu(x @ w + b) @ v + c
    return xp.mean(xp.softplus(z) - t * z)


def _make_embedding(rng: np.random.Generator, rows: int = 2048, ids: int = 5000, width: int = 64) -> list[Array]:
    tables = [rng.normal(size=(ids, width)) for _ in range(2)]
    layers = [
        rng.normal(size=(2 * width, 64)) / 11,
        rng.normal(size=64) / 10,
        rng.normal(size=(64, 1)) / 8,
        np.zeros(1),
    ]
    labels = rng.integers(2, size=(rows, 1)).astype(np.float64)
    return [*tables, *layers, rng.integers(ids, size=rows), rng.integers(ids, size=rows), labels]


KERNELS = 8


def _mixture(xp: Any, w: Any, b: Any, v: Any, c: Any, x: Any, t: Any) -> Any:
    out = xp.tanh(x @ w + b) @ v + c
    share, mean, log_width = (out[:, k * KERNELS : (k + 1) * KERNELS] for k in range(3))
    error = (t - mean) * xp.exp(-log_width)
    parts = xp.log_softmax(share) - 0.5 * xp.square(error) - log_width
    return -xp.mean(xp.logsumexp(parts, 1))


def _make_mixture(rng: np.random.Generator, rows: int = 4096) -> list[Array]:
    layers = [rng.normal(size=(8, 64)) / 3, np.zeros(64), rng.normal(size=(64, 3 * KERNELS)) / 8, np.zeros(3 * KERNELS)]
    return [*layers, rng.normal(size=(rows, 8)), rng.normal(size=(rows, 1))]


CASES = {
    case.name: case
    for case in (
        Case("residual MLP", _residual, 10, _make_residual, "4 blocks h + tanh(h W + b) of 128, batch 512, mse"),
        Case(
            "30 operations",
            thirty,
            1,
            lambda rng: [rng.normal(size=ELEMENTS)],
            "elementwise on 10⁶ elements, summed; gradient with respect to them",
        ),
        Case(
            "embeddings",
            _embedding,
            6,
            _make_embedding,
            "two of 5000×64, batch 2048, relu 64, binary cross entropy; gradients of the tables dense",
        ),
        Case(
            "mixture density",
            _mixture,
            4,
            _make_mixture,
            "8-64-3·8, batch 4096, log_softmax and logsumexp",
        ),
    )
}
TINY = Case("tiny", lambda xp, x, t: xp.sum(xp.square(x - t)), 1, lambda rng: [np.ones(3), np.zeros(3)], "")


def fresh(f: Function, xp: Any) -> Callable[..., Any]:
    """f on xp as a function that nobody has seen: of a code object of its own, which some caches go by."""
    twin: Any = FunctionType(f.__code__.replace(), f.__globals__, f.__name__, f.__defaults__, f.__closure__)

    def function(*arrays: Any) -> Any:
        return twin(xp, *arrays)

    return function


# ---- the libraries ---------------------------------------------------------------------------------------------------


class Library:
    """One way of getting value and gradient of a function.

    Attributes:
        name: as tables show it.
        needs: the module it imports.
    """

    name: ClassVar[str]
    needs: ClassVar[str] = ""

    @classmethod
    def refuses(cls) -> str:
        """Why it cannot be used here, or ""."""
        return _missing(cls.needs) if cls.needs else ""

    def start(self, threads: int) -> None:
        """Import what it needs, and use so many threads."""

    def forget(self) -> None:
        """Empty the caches in which a function that was compiled before would be found."""

    def own(self, arrays: Sequence[Array], wanted: int) -> list[Any]:
        """The arguments in its own type."""
        raise NotImplementedError

    def compiled(self, case: Case, arguments: list[Any]) -> Callable[[], Any]:
        """A function for value and gradients at the arguments, which returns when they are there."""
        raise NotImplementedError

    def numpy(self, result: Any) -> tuple[float, list[Array]]:
        """What ``compiled`` returned, for NumPy."""
        value, gradients = result
        return float(value), [np.asarray(g) for g in gradients]


class Fastbp(Library):
    """``fastbp.value_and_grad``."""

    name = "fastbp"

    def start(self, threads: int) -> None:
        fastbp.set_num_threads(threads)

    def own(self, arrays: Sequence[Array], wanted: int) -> list[Any]:
        return list(arrays)

    def compiled(self, case: Case, arguments: list[Any]) -> Callable[[], Any]:
        call = fastbp.value_and_grad(fresh(case.f, fastbp), tuple(range(case.wanted)))
        return lambda: call(*arguments)


class TorchEager(Library):
    """``torch.autograd.grad`` of what autograd records."""

    name = "PyTorch"
    needs = "torch"

    def start(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.xp = SimpleNamespace(
            **_named(torch, "exp log tanh sigmoid square sqrt abs relu sum mean"),
            maximum=torch.maximum,
            logsumexp=torch.logsumexp,
            softplus=torch.nn.functional.softplus,
            log_softmax=lambda x: torch.log_softmax(x, -1),
            concatenate=torch.cat,
            take=lambda table, index: torch.nn.functional.embedding(index, table),  # indexing's gradient is 3× slower
        )

    def own(self, arrays: Sequence[Array], wanted: int) -> list[Any]:
        import torch

        return [torch.from_numpy(a.copy()).requires_grad_(k < wanted) for k, a in enumerate(arrays)]

    def compiled(self, case: Case, arguments: list[Any]) -> Callable[[], Any]:
        import torch

        f, inputs = fresh(case.f, self.xp), arguments[: case.wanted]

        def call() -> Any:
            value = f(*arguments)
            return value, torch.autograd.grad(value, inputs)

        return call

    def numpy(self, result: Any) -> tuple[float, list[Array]]:
        value, gradients = result
        return value.item(), [g.detach().numpy() for g in gradients]


class TorchCompiled(TorchEager):
    """``torch.compile`` of ``torch.func.grad_and_value``: one graph, gradient and all."""

    name = "torch.compile"

    @classmethod
    def refuses(cls) -> str:
        return super().refuses() or _torch_cannot_compile()

    def forget(self) -> None:
        import torch
        from torch._inductor.utils import clear_caches

        torch.compiler.reset()
        clear_caches()
        self._folder = tempfile.TemporaryDirectory()  # gone with the next one
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = self._folder.name

    def own(self, arrays: Sequence[Array], wanted: int) -> list[Any]:
        import torch

        return [torch.from_numpy(a.copy()) for a in arrays]

    def compiled(self, case: Case, arguments: list[Any]) -> Callable[[], Any]:
        import torch

        both = torch.func.grad_and_value(fresh(case.f, self.xp), tuple(range(case.wanted)))
        step = torch.compile(both, dynamic=False)

        def call() -> Any:
            with torch.no_grad():
                gradients, value = step(*arguments)
            return value, gradients

        return call


class Jax(Library):
    """``jax.jit(jax.value_and_grad(f))``."""

    name = "JAX"
    needs = "jax"

    def start(self, threads: int) -> None:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        import jax
        import jax.numpy as jnp

        self.xp = SimpleNamespace(
            **_named(jnp, "exp log tanh square sqrt abs maximum sum mean concatenate"),
            take=lambda table, index: table[index],  # jnp.take fills with NaN what is out of range
            **_named(jax.nn, "sigmoid relu softplus log_softmax logsumexp"),
        )

    def forget(self) -> None:
        import jax

        jax.clear_caches()  # or parts of the function, such as a jitted logsumexp, would be there already

    def own(self, arrays: Sequence[Array], wanted: int) -> list[Any]:
        import jax

        given = [a.astype(np.int32) if a.dtype.kind == "i" else a for a in arrays]
        return list(jax.block_until_ready(jax.device_put(given)))

    def compiled(self, case: Case, arguments: list[Any]) -> Callable[[], Any]:
        import jax

        step = jax.jit(jax.value_and_grad(fresh(case.f, self.xp), tuple(range(case.wanted))))
        return lambda: jax.block_until_ready(step(*arguments))


class PyTensor(Library):
    """``pytensor.function`` in mode NUMBA, arguments trusted to be of the right type."""

    name = "PyTensor"
    needs = "pytensor"

    def start(self, threads: int) -> None:
        import pytensor
        import pytensor.tensor as pt

        pytensor.config.numba__cache = False  # on disk: the function of the last repeat would be there
        self.xp = SimpleNamespace(
            **_named(pt, "exp log tanh sigmoid sqrt abs maximum sum mean softplus"),
            square=pt.sqr,
            relu=lambda x: pt.maximum(x, np.float32(0.0)),
            logsumexp=lambda x, axis: pt.logsumexp(x, axis=axis),
            log_softmax=lambda x: pt.special.log_softmax(x, axis=-1),
            concatenate=lambda parts, axis: pt.concatenate(parts, axis=axis),
            take=lambda table, index: table[index],
        )

    def own(self, arrays: Sequence[Array], wanted: int) -> list[Any]:
        return [a.copy() for a in arrays]

    def compiled(self, case: Case, arguments: list[Any]) -> Callable[[], Any]:
        import pytensor
        import pytensor.tensor as pt

        names = [pt.tensor(dtype=a.dtype.name, shape=a.shape) for a in arguments]
        with pytensor.config.change_flags(floatX="float32"):
            value = fresh(case.f, self.xp)(*names)
            gradients = pytensor.grad(value, names[: case.wanted])
            step = pytensor.function(names, [value, *gradients], mode="NUMBA", trust_input=True)
        return lambda: step(*arguments)

    def numpy(self, result: Any) -> tuple[float, list[Array]]:
        value, *gradients = result
        return float(value), gradients


def _named(module: Any, names: str) -> dict[str, Any]:
    return {name: getattr(module, name) for name in names.split()}


LIBRARIES: tuple[type[Library], ...] = (Fastbp, TorchEager, TorchCompiled, Jax, PyTensor)


@contextlib.contextmanager
def within(threads: int) -> Iterator[None]:
    """Processes that are started meanwhile may use so many cores, where the system can say so."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, sorted(before)[-threads:])
        yield
    finally:
        os.sched_setaffinity(0, before)


# ---- the same results, and the time they take ------------------------------------------------------------------------


@dataclass(frozen=True)
class Firsts:
    """How long to look at first gradients: repeats, while the seconds last; one at least."""

    most: int = 7
    budget: float = 5.0


FULL, BRIEF = (Effort(), Firsts()), (Effort(run=0.005, pause=0.01, budget=0.5, fewest=2, most=3), Firsts(2, 1.0))


@dataclass(frozen=True)
class Timing:
    """What was found of one library on one case.

    Attributes:
        us: microseconds a call, the median of the rounds; spread: their interquartile range by it.
        first_ms: milliseconds to the first gradient, the median of ``repeats``.
        error: the largest distance of a gradient from the reference's, by its norm.
    """

    us: float
    spread: float
    rounds: int
    first_ms: float
    repeats: int
    error: float


def reference(case: Case) -> tuple[float, list[Array]]:
    """Value and gradients by fastbp's array machine in float64."""
    arrays = [a if a.dtype.kind == "i" else a.astype(np.float64) for a in case.arrays()]
    both = fastbp.value_and_grad(fresh(case.f, fastbp), tuple(range(case.wanted)), backend="numpy")
    value, gradients = both(*arrays)
    return float(value), list(gradients)


def checked(library: Library, case: Case, result: Any, expected: tuple[float, list[Array]]) -> float:
    """The error of a result, beside the :func:`reference`.

    Raises:
        WrongResultError: it is too large.
    """
    value, gradients = library.numpy(result)
    errors = [abs(value - expected[0]) / abs(expected[0])]
    for got, want in zip(gradients, expected[1], strict=True):
        if got.dtype != np.float32 or got.shape != want.shape:
            raise WrongResultError(f"{library.name} on {case.name}: {got.dtype} {got.shape}, not float32 {want.shape}")
        errors.append(float(np.linalg.norm(got - want) / np.linalg.norm(want)))
    if not max(errors) <= TOLERANCE:  # NaN is wrong too
        raise WrongResultError(f"{library.name} on {case.name}: off by {max(errors):.2g}")
    return max(errors)


@dataclass
class _Entry:
    library: Library
    call: Callable[[], Any]
    error: float
    firsts: list[float]
    calls: int = 0
    samples: list[float] = field(default_factory=list)


def compare(case: Case, libraries: Sequence[Library], effort: Effort, firsts: Firsts) -> dict[str, Timing]:
    """Everybody on one case: results, first gradients, and rounds of calls. ``libraries`` have been started."""
    expected = reference(case)
    entries = [_started(case, library, firsts, expected) for library in libraries]
    for entry in entries:
        entry.calls = steps_lasting(_calling(entry.call), effort.run)
    began = time.perf_counter()
    for turn in range(effort.most):
        if turn >= effort.fewest and time.perf_counter() - began > effort.budget:
            break
        for entry in entries:
            time.sleep(effort.pause)
            run = _calling(entry.call)
            run(max(1, entry.calls // 4))
            entry.samples.append(clock(run, entry.calls) / entry.calls)
    return {
        e.library.name: Timing(
            us=1e6 * statistics.median(e.samples),
            spread=spread(e.samples) if len(e.samples) > 1 else 0.0,
            rounds=len(e.samples),
            first_ms=1e3 * statistics.median(e.firsts),
            repeats=len(e.firsts),
            error=e.error,
        )
        for e in entries
    }


def _calling(call: Callable[[], Any]) -> Callable[[int], None]:
    def run(count: int) -> None:
        for _ in range(count):
            call()

    return run


def _started(case: Case, library: Library, firsts: Firsts, expected: tuple[float, list[Array]]) -> _Entry:
    arguments = library.own(case.arrays(), case.wanted)
    tiny = library.own(TINY.arrays(), TINY.wanted)
    found: list[float] = []
    error, began = 0.0, time.perf_counter()
    while not found or (len(found) < firsts.most and time.perf_counter() - began < firsts.budget):
        library.forget()
        for _ in range(2):  # what happens at the first calls alone is not the function's
            library.compiled(TINY, tiny)()
        gc.collect()
        start = time.perf_counter()
        call = library.compiled(case, arguments)
        result = call()
        found.append(time.perf_counter() - start)
        error = error or checked(library, case, result, expected)
    return _Entry(library, call, error, found)


def best_peer(timings: dict[str, Timing]) -> str:
    """The name of the fastest but fastbp in steady state, "" if there is nobody else."""
    return min((n for n in timings if n != Fastbp.name), key=lambda n: timings[n].us, default="")


# ---- a chain beside its limit ----------------------------------------------------------------------------------------

L1_ELEMENTS, FEW = 1024, 16  # of a row, and of one vector: what starting costs is taken off by the difference
LIMIT_REPEATS = 5  # a turn


@dataclass(frozen=True)
class ChainTiming:
    """A chain of :func:`thirty` operations, beside the time that it cannot do without.

    Attributes:
        what: "value" or "value and gradient".
        steps: of the chain as it runs, x y + z as one.
        us: measured, inside compiled code: the best of the rounds, like its limits; ``spread`` is that of the rounds.
        copy_us: for its bytes, at the bandwidth of a copy of as many.
        operations_us: of its steps one by one over 1024 elements in the first-level cache, for all elements over the
            threads.
        slowest: the steps that take most of ``operations_us``, with their count and part.
    """

    what: str
    threads: int
    steps: int
    us: float
    spread: float
    copy_us: float
    operations_us: float
    slowest: tuple[tuple[str, int, float], ...]

    @property
    def fraction(self) -> float:
        """Of the limit."""
        return max(self.copy_us, self.operations_us) / self.us


def chain_timing(what: str, threads: int, effort: Effort, elements: int = ELEMENTS) -> ChainTiming:
    """Measure the chain, the copy and the steps in turns, and take the best of each."""
    f, x = fresh(thirty, fastbp), np.random.default_rng(0).normal(size=elements).astype(np.float32)
    compiled: _Compiled = fastbp.function(f) if what == "value" else fastbp.value_and_grad(f)  # type: ignore[assignment]
    compiled(x)
    (entry,) = compiled._entries.values()
    program = entry.program
    assert program is not None
    (chain, *rest) = program.instructions
    assert chain.op == "chain"
    assert not rest, "a chain and nothing else"
    machine = CpuExecutable(program, "float32")
    n = entry._n
    values = {name: x.reshape(program.shape(index, n)) for name, index in program.inputs.items()}
    once = _steps_of(machine, values, n)
    moved = program.bytes(n, 4)
    copying = _Copy(moved // 2, threads)
    kinds = _counted(chain, elements)
    runs = {kind: _single(kind) for kind in kinds}
    calls = steps_lasting(once, effort.run)
    own: list[float] = []
    copies: list[float] = []
    # one that another process happened to raise would flatter the chain, a raised time of its own belittle it
    best = dict.fromkeys(kinds, (np.inf, np.inf))
    for _ in range(effort.fewest):
        own.append(clock(once, calls) / calls)
        copies.append(copying.seconds())
        own.extend(clock(once, calls) / calls for _ in range(LIMIT_REPEATS - 1))
        for kind, (long, short, count) in runs.items():
            for _ in range(LIMIT_REPEATS):
                row, vector = best[kind]
                best[kind] = min(row, clock(long, count) / count), min(vector, clock(short, count) / count)
    copying.close()
    costs = {
        kind: max(0.0, row - vector) / (L1_ELEMENTS - FEW) * kinds[kind] * elements / threads
        for kind, (row, vector) in best.items()
    }
    total = sum(costs.values())
    by_code: dict[str, tuple[int, float]] = {}
    for kind, cost in costs.items():
        count, so_far = by_code.get(kind.code, (0, 0.0))
        by_code[kind.code] = (count + kinds[kind], so_far + cost / total)
    slowest = sorted(((code, *both) for code, both in by_code.items()), key=lambda row: -row[2])
    return ChainTiming(
        what,
        threads,
        sum(kinds.values()),
        1e6 * min(own),
        spread(own),
        1e6 * min(copies),
        1e6 * total,
        tuple(slowest[:6]),
    )


def _steps_of(machine: CpuExecutable, values: dict[str, Array], n: int) -> Callable[[int], object]:
    # every step is step 0 of the outputs too: they are overwritten
    return lambda count: machine.run_steps(values, np.broadcast_to(np.array([n, 0, 0], np.int64), (count, 3)))


def _counted(chain: Instruction, elements: int) -> dict[Step, int]:
    """How often the chain has a step of each kind, as the cpu backend runs it; arguments are left out of the kinds."""
    places = tuple(Place(0, 0, 1, elements) for _ in chain.ins)  # numbers too: only counted
    kinds: dict[Step, int] = {}
    work = flattened(Work((1, elements), places, chain.steps, chain.results))
    for step in with_multiply_adds(len(work.ins), work.steps, work.results):
        if step is not None:
            first = tuple(range(len(step.args)))
            kind = Step(step.code, first, len(step.args) if step.scale >= 0 else -1)
            kinds[kind] = kinds.get(kind, 0) + 1
    for result in chain.results:
        if result.how:
            kind = Step(f"{result.how} over all", (0,))
            kinds[kind] = kinds.get(kind, 0) + 1
    return kinds


def _single(kind: Step) -> tuple[Callable[[int], object], Callable[[int], object], int]:
    """Runs of a Program of this step alone over a row and over one vector, and for how many steps to run them."""
    long, short = (_one_step(kind, size) for size in (L1_ELEMENTS, FEW))
    return long, short, steps_lasting(long, 1e-3)


def _one_step(kind: Step, size: int) -> Callable[[int], object]:
    row = (ONE, Size(0, size))
    reduces = kind.code.endswith(" over all")
    buffers = [Buffer(f"x{k}", "param", row) for k in kind.args]
    if kind.scale >= 0:
        buffers.append(Buffer("c", "const", (ONE, ONE), value=(0.7, None)))
    out = len(buffers)
    buffers.append(Buffer("out", "output", (ONE, ONE) if reduces else row))
    results = (Result(0, "sum") if reduces else Result(out),)
    chain = Instruction(
        "chain", (out,), tuple(range(out)), domain=row, steps=() if reduces else (kind,), results=results
    )
    rng = np.random.default_rng(1)
    values = {f"x{k}": rng.uniform(0.2, 0.9, (1, size)).astype(np.float32) for k in kind.args}
    return _steps_of(CpuExecutable(Program(tuple(buffers), (chain,), {"out": out}), "float32"), values, 1)


class _Copy:
    """A copy of so many bytes to as many others, over threads that each copy a part many times."""

    def __init__(self, size: int, threads: int, turns: int = 20) -> None:
        self.turns = turns
        self.parts = [(np.ones(size // threads, np.uint8), np.ones(size // threads, np.uint8)) for _ in range(threads)]
        self.gate = threading.Barrier(threads + 1)
        self.going = True
        self.team = [threading.Thread(target=self._work, args=part, daemon=True) for part in self.parts]
        for thread in self.team:
            thread.start()

    def _work(self, source: Array, target: Array) -> None:
        while True:
            self.gate.wait()
            if not self.going:
                return
            for _ in range(self.turns):
                np.copyto(target, source)
            self.gate.wait()

    def seconds(self) -> float:
        """Of one copy."""
        self.gate.wait()
        began = time.perf_counter()
        self.gate.wait()
        return (time.perf_counter() - began) / self.turns

    def close(self) -> None:
        self.going = False
        self.gate.wait()
        for thread in self.team:
            thread.join()
