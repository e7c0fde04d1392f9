"""The peers of peers.py on a card, in three precisions, and what a forward pass and a gradient of each take.

Precisions, of everybody's products; parameters, updates and sums are float32:

highest  float32 throughout.
tf32     factors rounded to 11 bits by the tensor cores (PyTorch: matmul precision "high"; JAX: "tensorfloat32").
bf16     factors rounded to bfloat16: fastbp rounds them on the way and stores float32; PyTorch's autocast and JAX's
         casts also store the products' results in bfloat16, so their bytes are fewer and their results rougher.

Results are compared before anything is timed: parameters after the first steps, and gradients, with fastbp's array code
in float64 on the same device, as a part of the way that the parameters went, or of the gradient.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import peers
from gpu_device import Device, Host, Place, Sample, cold
from peers import Array, Effort, Peer, Task, WrongResultError

from fastbp import arrays, optim
from fastbp.checks import relative_error
from fastbp.measure import NETWORKS, Network, storing_forward
from fastbp.program import Program

NAMES = (
    "784-128-10",
    "64x4",
    "4096x4",
    "64x5",
    "1024x4",
    "64-64-64-10",
    "784-30-10",
    "4-32-16-4",
    "784-512-512-10",
    "2-4-1",
)  # by importance
GIANTS = (Network("64x4", (64,) * 5, 1 << 18), Network("4096x4", (4096,) * 5, 8192))
GPU_NETWORKS = NETWORKS | {n.name: n for n in GIANTS}
TOLERANCES = {"highest": 5e-3, "tf32": 2e-2, "bf16": 0.1}  # of the way that the parameters went, or of the gradient
DATA_BYTES = 64e6  # of all batches; one batch may have more
SAMPLE_ROWS = 512  # by which the learning rate is chosen
FULL = Effort(run=0.1, pause=0.0, budget=1.0, fewest=3, most=9, hopeless=30.0)


# ---- the task --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GpuTask(Task):
    """What everybody trains, where, and how precisely."""

    place: Place
    precision: str


def make_task(network: Network, place: Place, precision: str, most_steps: int = peers.MOST_BATCHES) -> GpuTask:
    """The network's task, with so many batches that they stay small; see ``peers.make_task``."""
    net = network.make("float32", "numpy")
    step: Any = net.training_step(("X", "T"), optim.SGD(), False)
    rows, inputs, outputs = network.batch, network.layers[0], network.layers[-1]
    steps = max(1, int(min(most_steps, DATA_BYTES / (4 * rows * (inputs + outputs)))))
    rng = np.random.default_rng(0)
    X, T = rng.random((steps, rows, inputs), np.float32), rng.random((steps, rows, outputs), np.float32)
    if network.loss == "cross_entropy":
        T = np.zeros_like(T)
        np.put_along_axis(T, rng.integers(outputs, size=(steps, rows, 1)), 1.0, axis=2)
    theta = net.theta.copy()
    rate = peers._rate(network, X[0, :SAMPLE_ROWS], T[0, :SAMPLE_ROWS], theta)
    return GpuTask(network, X, T, theta, rate, step.program, 1, place, precision)


def memory_needed(network: Network, precision: str) -> int:
    """A rough guess of the bytes that an item takes while its peers are all there."""
    rows, widths = network.batch, network.layers
    parameters = sum((a + 1) * b for a, b in itertools.pairwise(widths))
    one = 4 * (3 * rows * sum(widths) + 4 * parameters) + int(max(DATA_BYTES, 4 * rows * (widths[0] + widths[-1])))
    return one * (7 if precision == "highest" else 5)  # the reference in float64 counts twice


# ---- the peers -------------------------------------------------------------------------------------------------------


class OnDevice(Peer):
    """A peer of a :class:`GpuTask`, which can also be asked for a forward pass and a gradient.

    Attributes:
        waits: whether its calls return when they are done, on streams of its own: the host's clock has to time them.
    """

    task: GpuTask
    choice = "way"
    waits: ClassVar[bool] = False

    def ways(self) -> tuple[int, ...]:
        return (1,)

    def passes(self) -> tuple[Callable[[], object], Callable[[], object]]:
        """A forward pass up to the loss, and loss and gradient, of the first batch with the parameters as they are."""
        raise NotImplementedError

    def gradient(self) -> Array:
        """What the last gradient was, laid out like ``MLP.theta``."""
        raise NotImplementedError


class Fastbp(OnDevice):
    """``MLP.fit`` on data that is on the device, many epochs in one call; ``loss`` and ``loss_and_grad``."""

    name = "fastbp"

    def __init__(self, task: GpuTask) -> None:
        super().__init__(task)
        self.net = task.network.make("float32", self.backend_of(task), task.precision)
        moved = self.net.kind.moved
        self.X, self.T = (moved(batches.reshape(-1, batches.shape[2])) for batches in (task.X, task.T))
        self.start = moved(task.theta)

    @staticmethod
    def backend_of(task: GpuTask) -> str:
        """Which backend of fastbp's it is."""
        return task.place.backend

    def reset(self) -> None:
        self.net.theta = self.start
        self.net.training = None

    def run(self, passes: int) -> None:
        peers._fit(self.net, self.X, self.T, passes, self.task)

    def theta(self) -> Array:
        found: Array = arrays.to_host(self.net.theta)
        return found

    def passes(self) -> tuple[Callable[[], object], Callable[[], object]]:
        rows = self.task.network.batch
        x, t = self.X[:rows], self.T[:rows]

        def gradient() -> None:
            self.last = self.net.loss_and_grad(x, t)

        return lambda: self.net.loss(x, t), gradient

    def gradient(self) -> Array:
        found: Array = arrays.to_host(self.last[1])
        return found


class ArrayCode(Fastbp):
    """fastbp's array code, on CuPy."""

    name = "CuPy"

    @staticmethod
    def backend_of(task: GpuTask) -> str:
        return task.place.arrays


class TorchOnDevice(OnDevice, peers.TorchEager):
    """PyTorch, a call of Python's an operation."""

    def __init__(self, task: GpuTask) -> None:
        peers.TorchEager.__init__(self, task, task.place.torch)

    def _make_loss(self) -> Callable[..., Any]:
        loss = super()._make_loss()
        if self.task.precision != "bf16":
            return loss
        import torch

        def rounded(*arguments: Any) -> Any:
            with torch.autocast(self.task.place.torch, torch.bfloat16, cache_enabled=False):
                return loss(*arguments)

        return rounded

    @contextlib.contextmanager
    def using(self, way: int) -> Iterator[None]:
        import torch

        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if self.task.precision == "tf32" else "highest")
        try:
            with super().using(way):  # one thread of the host's
                yield
        finally:
            torch.set_float32_matmul_precision(before)

    def run(self, passes: int) -> None:
        super().run(passes)
        self.wait()

    def wait(self) -> None:
        """Until the device is idle."""
        import torch

        if self.task.place.torch != "cpu":
            torch.cuda.synchronize()

    def passes(self) -> tuple[Callable[[], object], Callable[[], object]]:
        import torch

        x, t = self.batches[0]

        def gradient() -> None:
            self.last = torch.autograd.grad(self.loss(self.parameters, x, t), self.parameters)

        return lambda: self.loss(self.parameters, x, t), gradient

    def gradient(self) -> Array:
        return np.concatenate([g.detach().float().cpu().numpy().ravel() for g in self.last])


class _Replayed(TorchOnDevice):
    """Whose launches are captured once, and replayed."""

    graph: Any = None

    @classmethod
    def refuses(cls, network: Network) -> str:
        return peers.TorchEager.refuses(network) or _no_graphs() or super().refuses(network)

    def _pass(self) -> None:
        for x, t in self.batches:
            self.step(self.parameters, x, t)

    def run(self, passes: int) -> None:
        if self.graph is None:
            self.graph = _captured(self._pass)
            self.reset()
        for _ in range(passes):
            self.graph.replay()
        self.wait()

    def passes(self) -> tuple[Callable[[], object], Callable[[], object]]:
        forward, gradient = super().passes()
        return _captured(forward).replay, _captured(gradient).replay


class TorchGraphs(_Replayed):
    """All steps of a pass over the batches as one CUDA graph."""

    name = "PyTorch, graph"


@functools.cache
def _no_graphs() -> str:
    import torch

    return "" if torch.cuda.is_available() else "CUDA graphs need a GPU that PyTorch can use"


def _captured(work: Callable[[], object]) -> Any:
    """A CUDA graph of what ``work`` launches, after three times that set up libraries and memory."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


class TorchCompiled(TorchOnDevice, peers.TorchCompiled):
    """``torch.compile`` of the whole step; its forward pass keeps nothing for a backward pass."""

    name = "torch.compile"

    @classmethod
    def refuses(cls, network: Network) -> str:
        return peers.TorchEager.refuses(network) or peers._torch_cannot_compile("cpu" if _no_graphs() else "cuda")

    def passes(self) -> tuple[Callable[[], object], Callable[[], object]]:
        import torch

        x, t = self.batches[0]
        forward = torch.compile(self.loss, dynamic=False)
        backward = torch.compile(torch.func.grad_and_value(self.loss), dynamic=False)

        def gradient() -> None:
            with torch.no_grad():
                self.last = backward(self.parameters, x, t)[0]

        def value() -> None:
            with torch.no_grad():
                forward(self.parameters, x, t)

        return value, gradient


class TorchCompiledGraphs(_Replayed, TorchCompiled):
    """The compiled steps of a pass over the batches as one CUDA graph."""

    name = "torch.compile, graph"

    def _pass(self) -> None:
        import torch

        with torch.no_grad():
            super()._pass()


class JaxOnDevice(OnDevice, peers.JaxScan):
    """``jax.jit`` of a loop over all batches and passes."""

    name = "JAX, scan"
    choice = "unroll"
    waits = True

    def __init__(self, task: GpuTask) -> None:
        peers.JaxScan.__init__(self, task, task.place.jax)

    def ways(self) -> tuple[int, ...]:
        return peers.JaxScan.ways(self)

    def _make_loss(self) -> Callable[..., Any]:
        if self.task.precision != "bf16":
            return super()._make_loss()
        import jax.numpy as jnp

        def product(a: Any, b: Any) -> Any:
            return (a.astype(jnp.bfloat16) @ b.astype(jnp.bfloat16)).astype(jnp.float32)

        return peers._jax_loss(self.task.network, product)

    @contextlib.contextmanager
    def using(self, way: int) -> Iterator[None]:
        import jax

        name = {"highest": "highest", "tf32": "tensorfloat32", "bf16": "default"}[self.task.precision]
        with super().using(way), jax.default_matmul_precision(name):
            yield

    def passes(self) -> tuple[Callable[[], object], Callable[[], object]]:
        import jax

        x, t = self.X[0], self.T[0]
        value, both = jax.jit(self.loss), jax.jit(jax.value_and_grad(self.loss))

        def gradient() -> None:
            self.last = jax.block_until_ready(both(self.parameters, x, t))

        return lambda: jax.block_until_ready(value(self.parameters, x, t)), gradient

    def gradient(self) -> Array:
        return peers._flat(self.last[1])


GROUPS: dict[str, tuple[type[OnDevice], ...]] = {
    "torch": (ArrayCode, TorchOnDevice, TorchGraphs),
    "jax": (JaxOnDevice,),
    "compile": (TorchCompiled, TorchCompiledGraphs),
}


# ---- the same results, and times ------------------------------------------------------------------------------------


class GpuComparison(peers.Comparison):
    """fastbp and some peers on one task: see ``peers.Comparison``."""

    ours = Fastbp
    task: GpuTask

    @property
    def tolerance(self) -> float:
        return max(super().tolerance, TOLERANCES[self.task.precision])

    def lasting(self, effort: Effort) -> float:
        return effort.run  # the device looks at all data in no time

    def _reference(self, network: Network) -> Array:
        """The parameters after the first passes, by array code in float64 on the same device."""
        net = network.make("float64", self.task.place.arrays)
        net.theta = net.kind.moved(self.task.theta.astype(np.float64))
        X, T = (net.kind.moved(b.reshape(-1, b.shape[2]).astype(np.float64)) for b in (self.task.X, self.task.T))
        peers._fit(net, X, T, self._first_passes, self.task)
        found: Array = arrays.to_host(net.theta)
        return found


@dataclass(frozen=True)
class Cost:
    """What one forward pass and one gradient of one peer took, cold; error: of the gradient."""

    forward: Sample
    gradient: Sample
    error: float

    @property
    def ratio(self) -> float:
        """Backward to forward, where backward is the gradient's time without the forward pass's."""
        return (self.gradient.us - self.forward.us) / self.forward.us


def passes(
    task: GpuTask, kinds: Sequence[type[OnDevice]], device: Device, budget: float = 0.5
) -> tuple[dict[str, Cost], dict[str, str]]:
    """Forward and gradient of fastbp and the peers, in turns; and why some are not there.

    Raises:
        WrongResultError: a gradient is not right.
    """
    expected = _gradient(task)
    costs: dict[str, Cost] = {}
    skipped = {k.name: why for k in kinds if (why := k.refuses(task.network))}
    runs: dict[str, Callable[[], object]] = {}
    errors: dict[str, float] = {}
    clocked: dict[str, Callable[[], object]] = {}
    with ExitStack() as stack:
        everybody: list[type[OnDevice]] = [Fastbp, *kinds]
        for kind in everybody:
            if kind.name in skipped:
                continue
            peer = kind(task)
            stack.enter_context(_using(peer))
            peer.reset()
            forward, gradient = peer.passes()
            gradient()
            error = errors[kind.name] = relative_error(peer.gradient(), expected)
            if not error <= TOLERANCES[task.precision]:
                raise WrongResultError(f"{kind.name} on {task.network}: its gradient is off by {error:.2g} of it")
            where = clocked if peer.waits else runs
            where |= {f"{kind.name} forward": forward, f"{kind.name} gradient": gradient}
        found = cold(device, runs, budget)
        if clocked:
            found |= cold(_Clocked(device), clocked, budget)
        for name, error in errors.items():
            costs[name] = Cost(found[f"{name} forward"], found[f"{name} gradient"], error)
    return costs, skipped


def _using(peer: OnDevice) -> AbstractContextManager[object]:
    ways = peer.ways()
    return peer.using(ways[0]) if ways else nullcontext()


class _Clocked(Host):
    """The host's clock, for what waits by itself, after the device's caches were emptied."""

    def __init__(self, device: Device) -> None:
        super().__init__(device.place)
        self.device = device

    def flush(self) -> None:
        self.device.flush()
        self.device.wait()


def _gradient(task: GpuTask) -> Array:
    """Of the first batch, by array code in float64 on the same device."""
    net = task.network.make("float64", task.place.arrays)
    net.theta = net.kind.moved(task.theta.astype(np.float64))
    x, t = (net.kind.moved(batches[0].astype(np.float64)) for batches in (task.X, task.T))
    found: Array = arrays.to_host(net.loss_and_grad(x, t)[1])
    return found


def programs(network: Network) -> dict[str, Program]:
    """The Programs whose costs are counted: of the forward pass that stores, and of the gradient."""
    gradient = network.make("float32", "numpy").program("gradient")
    return {"forward": storing_forward(gradient), "gradient": gradient}


def cleared(device: Device) -> None:
    """Forget what an item has left behind."""
    gc.collect()
    device.release()


def kinds(group: str, precision: str) -> tuple[type[OnDevice], ...]:
    """The peers of a group that do something else in a precision than in "highest"."""
    return tuple(k for k in GROUPS[group] if precision == "highest" or k is not ArrayCode)
