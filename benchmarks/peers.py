"""The same training steps by other libraries, each in the way of running it that is fastest here.

A step is forward, loss, backward and plain SGD on one batch, in float32. Everybody starts from the same weights and
takes the same batches in the same order, over and over. Before anything is timed, everybody's parameters after a pass
over the batches are compared with those of fastbp's array machine in float64, see :class:`Comparison`.

A peer that offers a choice (threads, how far a loop is unrolled) is timed in the way that a short pilot found fastest.
Runs are taken in turns, so that a disturbance meets all; each after a pause, in which the threads of the peer before it
stop spinning for work (OpenBLAS's do for some 30 ms), and after an untimed run, which warms caches and threads.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import operator
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fastbp import MLP, get_num_threads, optim
from fastbp.backends.cpu.executable import CpuExecutable
from fastbp.measure import Network, clock, spread, steps_lasting
from fastbp.program import Program

Array = npt.NDArray[Any]
Layers = list[tuple[Array, Array]]  # W and b of every layer

MOST_BATCHES = 64
DATA_BYTES = 16e6  # of all batches; one batch may have more
PASS_OPERATIONS = 2e9  # of a pass over all batches; one step may have more
TRIAL_STEPS, MOST_TRIALS = 4, 9  # at a learning rate, before it is taken; of rates


# ---- the task --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """What everybody trains.

    Attributes:
        X, T: (batches, rows, units) inputs and targets; one-hot rows for cross_entropy.
        theta: initial parameters, laid out like ``MLP.theta``.
        rate: learning rate.
        program: of one step, as fastbp runs it.
        threads: that everybody may use.
    """

    network: Network
    X: Array
    T: Array
    theta: Array
    rate: float
    program: Program
    threads: int

    @property
    def operations(self) -> int:
        """Of one step, as fastbp's Program counts them."""
        return self.program.operations(self.network.batch)

    @property
    def steps(self) -> int:
        """Steps of one pass over the batches."""
        return len(self.X)

    def layers(self) -> Layers:
        """A fresh copy of the initial weights and biases."""
        weights, biases = self.network.make().split(self.theta.copy())
        return list(zip(weights, biases, strict=True))


def make_task(network: Network) -> Task:
    """The network's task, with so many batches that they stay small and a pass over them short."""
    net = network.make()
    step: Any = net.training_step(("X", "T"), optim.SGD(), False)
    program: Program = step.program
    rows, inputs, outputs = network.batch, network.layers[0], network.layers[-1]
    batch_bytes = 4 * rows * (inputs + outputs)
    steps = max(1, int(min(MOST_BATCHES, DATA_BYTES / batch_bytes, PASS_OPERATIONS / program.operations(rows))))
    rng = np.random.default_rng(0)
    X = rng.random((steps, rows, inputs), np.float32)
    if network.loss == "cross_entropy":
        T = np.zeros((steps, rows, outputs), np.float32)
        np.put_along_axis(T, rng.integers(outputs, size=(steps, rows, 1)), 1.0, axis=2)
    else:
        T = rng.random((steps, rows, outputs), np.float32)
    theta = net.theta.copy()
    return Task(network, X, T, theta, _rate(network, X[0], T[0], theta), program, get_num_threads())


def _rate(network: Network, X: Array, T: Array, theta: Array) -> float:
    """A learning rate at which nothing diverges in a long run, yet float32 sees every step.

    A step moves the parameters by a thousandth of their length at most, and lowers the loss by a tenth at most. Where
    the gradient is small at first only, as in a chain of linear layers, that is too much: a tenth as much then, until
    the loss of the first steps does not rise.
    """
    net = network.make("float64", "numpy")
    net.theta = theta
    first, gradient = net.loss_and_grad(X, T)
    length = np.linalg.norm(gradient)
    largest = min(1e-3 * np.linalg.norm(theta) / length, 0.1 * first / length**2)
    for rate in largest / 10.0 ** np.arange(MOST_TRIALS):
        if _descends(net, X, T, theta, rate, first, gradient):
            return float(np.float32(rate))
    raise WrongResultError(f"fastbp on {network}: its loss, {first:.3g} at first, falls at no learning rate")


def _descends(net: MLP, X: Array, T: Array, theta: Array, rate: float, first: float, gradient: Array) -> bool:
    """Whether no loss of the first steps is above the ``first`` one, that at theta, as is the first gradient."""
    net.theta = theta
    for _ in range(TRIAL_STEPS):
        net.theta = net.theta - rate * gradient
        loss, gradient = net.loss_and_grad(X, T)
        if not loss <= first * (1 + 1e-9):  # NaN has risen, too
            return False
    return True


# ---- the peers -------------------------------------------------------------------------------------------------------


class Peer:
    """One library's way of training on a task.

    Attributes:
        name: as tables show it.
        needs: the modules it imports when it is used.
        choice: what its ways differ in.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    choice: ClassVar[str] = "threads"

    def __init__(self, task: Task) -> None:
        self.task = task

    @classmethod
    def refuses(cls, network: Network) -> str:
        """Why it cannot train the network, or ""."""
        for module in cls.needs:
            if reason := _missing(module):
                return reason
        return ""

    @classmethod
    def solves(cls, network: Network) -> Network:
        """The network that it trains: the one asked for, or the nearest to it that it can."""
        return network

    def ways(self) -> tuple[int, ...]:
        """The choices worth a try."""
        few = self.task.operations < 3e8  # a millisecond or two: threads may cost more than they bring
        return tuple(sorted({1, self.task.threads})) if few else (self.task.threads,)

    def using(self, way: int) -> AbstractContextManager[object]:
        """A context in which it runs in one of its ways."""
        return nullcontext()

    def reset(self) -> None:
        """Put back the initial weights."""
        raise NotImplementedError

    def run(self, passes: int) -> None:
        """Train so many passes over the batches, and return when that is done."""
        raise NotImplementedError

    def theta(self) -> Array:
        """The parameters, laid out like ``MLP.theta``."""
        raise NotImplementedError


@functools.cache
def _missing(module: str) -> str:
    try:
        importlib.import_module(module)
    except ImportError as error:
        return f"{module} cannot be imported: {error}"
    return ""


def _flat(layers: Sequence[tuple[Any, Any]]) -> Array:
    return np.concatenate([np.asarray(part).ravel() for layer in layers for part in layer])


@functools.cache
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


class _OnBlas(Peer):
    """Whose products are NumPy's."""

    def ways(self) -> tuple[int, ...]:
        return (self.task.threads,) if _missing("threadpoolctl") else super().ways()

    def using(self, way: int) -> AbstractContextManager[object]:
        return nullcontext() if _missing("threadpoolctl") else _blas().limit(limits=way, user_api="blas")


class Fastbp(Peer):
    """``MLP.fit``, many epochs in one call."""

    name = "fastbp"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.net = task.network.make()
        self.X, self.T = (batches.reshape(-1, batches.shape[2]) for batches in (task.X, task.T))
        step = self.net.training_step(("X", "T"), optim.SGD(task.rate), False)
        if isinstance(step, CpuExecutable):
            step.settle(task.network.batch)  # all that is compiled, before anything is timed

    def ways(self) -> tuple[int, ...]:
        return (self.task.threads,)  # it decides by itself what to share

    def reset(self) -> None:
        self.net.theta = self.task.theta
        self.net.training = None

    def run(self, passes: int) -> None:
        _fit(self.net, self.X, self.T, passes, self.task)

    def theta(self) -> Array:
        return self.net.theta


def _fit(net: MLP, X: Array, T: Array, passes: int, task: Task) -> None:
    net.fit(X, T, epochs=passes, batch_size=task.network.batch, optimizer=optim.SGD(task.rate), shuffle=False)


def _sigmoid(z: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-z))


def _normal_cdf(z: Array) -> Array:
    from scipy.special import ndtr

    cdf: Array = ndtr(z)
    return cdf


def _softmax(z: Array) -> Array:
    e: Array = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def _silu_derivative(z: Array, a: Array) -> Array:
    s = _sigmoid(z)
    return s * (1.0 + z * (1.0 - s))


_ONE, _SLOPE = np.float32(1.0), np.float32(0.01)
# name: a = f(z), and f'(z, a); None where there is nothing to multiply by
_IN_NUMPY: dict[str, tuple[Callable[[Array], Array], Callable[[Array, Array], Array] | None]] = {
    "identity": (lambda z: z, None),
    "sigmoid": (_sigmoid, lambda z, a: a * (1.0 - a)),
    "tanh": (np.tanh, lambda z, a: 1.0 - a * a),
    "relu": (lambda z: np.maximum(z, 0.0), lambda z, a: z > 0.0),
    "leaky_relu": (lambda z: np.where(z > 0.0, z, _SLOPE * z), lambda z, a: np.where(z > 0.0, _ONE, _SLOPE)),
    "gelu": (lambda z: z * _normal_cdf(z), lambda z, a: _normal_cdf(z) + z * np.exp(-0.5 * z * z) * 0.3989422804014327),
    "silu": (lambda z: z * _sigmoid(z), _silu_derivative),
    "softplus": (lambda z: np.logaddexp(0.0, z), lambda z, a: _sigmoid(z)),
    "softmax": (_softmax, None),  # with cross entropy: dC/dZ is a - t, as with the identity and the squared error
}


class NumPyLoop(_OnBlas):
    """What a NumPy user writes."""

    name = "NumPy"

    @classmethod
    def refuses(cls, network: Network) -> str:
        return _missing("scipy.special") if "gelu" in (network.activation, network.output) else ""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        network = task.network
        names = [network.activation] * (len(network.layers) - 2) + [network.output]
        self.functions = [_IN_NUMPY[name] for name in names]
        self.batches = list(zip(task.X, task.T, strict=True))

    def reset(self) -> None:
        self.layers = self.task.layers()

    def run(self, passes: int) -> None:
        with np.errstate(over="ignore"):  # of exp, far out in a sigmoid
            for _ in range(passes):
                for x, t in self.batches:
                    self._step(x, t)

    def _step(self, x: Array, t: Array) -> None:
        inputs, logits, a = [], [], x
        for (w, b), (function, _) in zip(self.layers, self.functions, strict=True):
            inputs.append(a)
            z = a @ w + b
            logits.append(z)
            a = function(z)
        outputs = [*inputs[1:], a]
        d = (a - t) / len(x)
        for k in reversed(range(len(self.layers))):
            w, b = self.layers[k]
            derivative = self.functions[k][1]
            if derivative is not None:
                d = d * derivative(logits[k], outputs[k])
            dw, db = inputs[k].T @ d, d.sum(axis=0)
            if k > 0:
                d = d @ w.T
            w -= self.task.rate * dw
            b -= self.task.rate * db

    def theta(self) -> Array:
        return _flat(self.layers)


class ScikitLearn(_OnBlas):
    """``MLPRegressor.fit``. Its gradient is that of fastbp's half_sse; its output is always the identity."""

    name = "scikit-learn"
    needs = ("sklearn.neural_network",)
    activations: ClassVar[dict[str, str]] = {
        "identity": "identity",
        "sigmoid": "logistic",
        "tanh": "tanh",
        "relu": "relu",
    }

    @classmethod
    def refuses(cls, network: Network) -> str:
        if network.loss != "half_sse":
            return f"its {network.loss} wants every class in the data of every call"
        if network.activation not in cls.activations:
            return f"it has no {network.activation}"
        return super().refuses(network)

    @classmethod
    def solves(cls, network: Network) -> Network:
        return replace(network, output="identity")

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        from sklearn.neural_network import MLPRegressor

        self.X, self.T = (batches.reshape(-1, batches.shape[2]) for batches in (task.X, task.T))
        if self.T.shape[1] == 1:
            self.T = self.T[:, 0]
        rows = task.network.batch
        self.model = MLPRegressor(
            hidden_layer_sizes=task.network.layers[1:-1],
            activation=self.activations[task.network.activation],
            solver="sgd",
            alpha=0.0,
            batch_size=rows,
            learning_rate_init=task.rate,
            momentum=0.0,
            nesterovs_momentum=False,
            shuffle=False,
            tol=0.0,
            n_iter_no_change=np.inf,
            warm_start=True,  # goes on from the weights that it finds
        )
        self._fit(self.X[:rows], self.T[:rows], 1)

    def _fit(self, X: Array, T: Array, passes: int) -> None:
        self.model.set_params(max_iter=passes)
        with warnings.catch_warnings(action="ignore"):  # that it has not converged
            self.model.fit(X, T)

    def reset(self) -> None:
        layers = self.task.layers()
        self.model.coefs_ = [w for w, _ in layers]
        self.model.intercepts_ = [b for _, b in layers]

    def run(self, passes: int) -> None:
        self._fit(self.X, self.T, passes)

    def theta(self) -> Array:
        return _flat(list(zip(self.model.coefs_, self.model.intercepts_, strict=True)))


class TorchEager(Peer):
    """PyTorch without ``nn.Module`` and ``torch.optim``, which take 80 µs a step more on small networks."""

    name = "PyTorch"
    needs = ("torch",)

    def __init__(self, task: Task, device: str = "cpu") -> None:
        super().__init__(task)
        import torch

        self.parameters = [torch.from_numpy(part).to(device) for layer in task.layers() for part in layer]
        self.batches = [
            (torch.from_numpy(x).to(device), torch.from_numpy(t).to(device))
            for x, t in zip(task.X, task.T, strict=True)
        ]
        self.loss = self._make_loss()
        self.step = self._make_step()

    def _make_loss(self) -> Callable[..., Any]:
        """The loss of (parameters, x, t)."""
        return _torch_loss(self.task.network)

    def _make_step(self) -> Callable[..., object]:
        import torch

        for parameter in self.parameters:
            parameter.requires_grad_()

        def step(parameters: list[Any], x: Any, t: Any) -> None:
            gradient = torch.autograd.grad(self.loss(parameters, x, t), parameters)
            with torch.no_grad():
                torch._foreach_add_(parameters, gradient, alpha=-self.task.rate)

        return step

    @contextlib.contextmanager
    def using(self, way: int) -> Iterator[None]:
        import torch

        torch.set_num_threads(way)
        yield

    def reset(self) -> None:
        import torch

        initial = [part for layer in self.task.layers() for part in layer]
        with torch.no_grad():
            for parameter, start in zip(self.parameters, initial, strict=True):
                parameter.copy_(torch.from_numpy(start))

    def run(self, passes: int) -> None:
        for _ in range(passes):
            for x, t in self.batches:
                self.step(self.parameters, x, t)

    def theta(self) -> Array:
        return np.concatenate([parameter.detach().cpu().numpy().ravel() for parameter in self.parameters])


def _torch_loss(network: Network) -> Callable[..., Any]:
    import torch
    from torch.nn import functional

    activations: dict[str, Callable[..., Any]] = {
        "identity": lambda z: z,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
    }
    hidden, output = (
        activations[name] if name in activations else getattr(functional, name)
        for name in (network.activation, "identity" if network.output == "softmax" else network.output)
    )

    def loss(parameters: list[Any], x: Any, t: Any) -> Any:
        *before, (w, b) = zip(parameters[::2], parameters[1::2], strict=True)
        a = x
        for v, c in before:
            a = hidden(torch.addmm(c, a, v))
        a = output(torch.addmm(b, a, w))
        if network.loss == "cross_entropy":
            return functional.cross_entropy(a, t)
        return (a - t).square().sum() * (0.5 / len(x))

    return loss


class TorchCompiled(TorchEager):
    """``torch.compile`` of the whole step, gradient and update within: compiling the loss alone is much slower."""

    name = "torch.compile"

    @classmethod
    def refuses(cls, network: Network) -> str:
        return super().refuses(network) or _torch_cannot_compile()

    def _make_step(self) -> Callable[..., object]:
        import torch

        torch.compiler.reset()  # it gives up on a function that it has compiled for too many networks
        gradient_of, rate = torch.func.grad(self.loss), self.task.rate

        def step(parameters: list[Any], x: Any, t: Any) -> None:
            for parameter, gradient in zip(parameters, gradient_of(parameters, x, t), strict=True):
                parameter.sub_(gradient, alpha=rate)

        compiled: Callable[..., object] = torch.compile(step, dynamic=False)
        return compiled

    def run(self, passes: int) -> None:
        import torch

        with torch.no_grad():
            super().run(passes)


@functools.cache
def _torch_cannot_compile(device: str = "cpu") -> str:
    """Why not, or "": tried out, since it needs a C++ compiler and Python's headers, or Triton."""
    import torch

    try:
        torch.compile(lambda x: x + 1.0)(torch.ones(3, device=device))
    except Exception as error:  # whatever it is, it is a reason to skip
        return f"torch.compile fails: {str(error).strip().splitlines()[0]}"
    return ""


class JaxCalls(Peer):
    """``jax.jit`` of the step, called for every step; the parameters' buffers are given away, so reused."""

    name = "JAX, a call a step"
    needs = ("jax",)

    def __init__(self, task: Task, platform: str = "cpu") -> None:
        os.environ.setdefault("JAX_PLATFORMS", platform)
        super().__init__(task)
        import jax

        self.X, self.T = jax.device_put((task.X, task.T))
        self.loss = self._make_loss()
        self.prepare(_jax_step(task, self.loss))

    def _make_loss(self) -> Callable[..., Any]:
        """The loss of (parameters, x, t)."""
        return _jax_loss(self.task.network)

    def ways(self) -> tuple[int, ...]:
        return (self.task.threads,)  # its pool has as many threads as there are cores, and cannot be told otherwise

    def prepare(self, step: Callable[..., Any]) -> None:
        """Compile, when it is first called, and cut the batches."""
        import jax

        self.batches = list(zip(self.X, self.T, strict=True))
        self.step = jax.jit(step, donate_argnums=0)

    def reset(self) -> None:
        import jax

        self.parameters = jax.block_until_ready(jax.device_put(self.task.layers()))

    def run(self, passes: int) -> None:
        import jax

        parameters = self.parameters
        for _ in range(passes):
            for x, t in self.batches:
                parameters = self.step(parameters, x, t)
        self.parameters = jax.block_until_ready(parameters)

    def theta(self) -> Array:
        return _flat(self.parameters)


class JaxScan(JaxCalls):
    """``lax.scan`` over the batches within a loop over passes, all in one call of ``jax.jit``."""

    name = "JAX, scan"
    choice = "unroll"

    def ways(self) -> tuple[int, ...]:
        return (1, 4) if self.task.steps >= 4 else (1,)

    @contextlib.contextmanager
    def using(self, way: int) -> Iterator[None]:
        self.unroll = way
        yield

    def prepare(self, step: Callable[..., Any]) -> None:
        import jax

        @functools.partial(jax.jit, static_argnums=4, donate_argnums=0)
        def train(parameters: Any, X: Any, T: Any, passes: Any, unroll: int) -> Any:
            def one_pass(_: Any, parameters: Any) -> Any:
                return jax.lax.scan(lambda p, batch: (step(p, *batch), None), parameters, (X, T), unroll=unroll)[0]

            return jax.lax.fori_loop(0, passes, one_pass, parameters)

        self.train = train

    def run(self, passes: int) -> None:
        import jax

        self.parameters = jax.block_until_ready(self.train(self.parameters, self.X, self.T, passes, self.unroll))


def _jax_loss(network: Network, product: Callable[[Any, Any], Any] = operator.matmul) -> Callable[..., Any]:
    import jax
    import jax.numpy as jnp

    activations: dict[str, Callable[..., Any]] = {
        "identity": lambda z: z,
        "gelu": functools.partial(jax.nn.gelu, approximate=False),
    }
    hidden, output = (
        activations[name] if name in activations else getattr(jax.nn, name)
        for name in (network.activation, "identity" if network.output == "softmax" else network.output)
    )

    def loss(parameters: Any, x: Any, t: Any) -> Any:
        *before, (w, b) = parameters
        a = x
        for v, c in before:
            a = hidden(product(a, v) + c)
        a = output(product(a, w) + b)
        total = -jnp.sum(t * jax.nn.log_softmax(a)) if network.loss == "cross_entropy" else 0.5 * jnp.sum((a - t) ** 2)
        return total / len(x)

    return loss


def _jax_step(task: Task, loss: Callable[..., Any]) -> Callable[..., Any]:
    import jax

    def step(parameters: Any, x: Any, t: Any) -> Any:
        gradient = jax.grad(loss)(parameters, x, t)
        return jax.tree.map(lambda p, g: p - task.rate * g, parameters, gradient)

    return step


PEERS: tuple[type[Peer], ...] = (NumPyLoop, ScikitLearn, TorchEager, TorchCompiled, JaxCalls, JaxScan)


# ---- the same results, and the time they take ------------------------------------------------------------------------

TOLERANCE = 5e-3  # of the way that the parameters went
KINKED_TOLERANCE = 0.1  # with relus, one of which rounding may switch: 0.03 was seen in JAX on 974-258-266-582-30
FEWEST_STEPS = 2  # before results are compared


class WrongResultError(Exception):
    """Parameters are not those of the reference: a peer, or fastbp itself, trains something else."""


@dataclass(frozen=True)
class Effort:
    """How long to measure a network.

    Attributes:
        run: seconds that a timed run lasts at least.
        pause: seconds before each run.
        budget: seconds of all rounds, if there are ``fewest``; never more than ``most``.
        hopeless: a peer that is this many times slower than the fastest in the pilot keeps the pilot's time.
    """

    run: float = 0.05
    pause: float = 0.04
    budget: float = 15.0
    fewest: int = 5
    most: int = 15
    hopeless: float = np.inf


FULL, BRIEF = Effort(), Effort(run=0.005, pause=0.01, budget=0.5, fewest=2, most=3)


@dataclass(frozen=True)
class Timing:
    """What was found of one peer on one network.

    Attributes:
        us: microseconds a step, the median of the rounds; without rounds the pilot's.
        spread: interquartile range of the rounds by their median.
        way: the one it was timed in, "threads 2" for one.
        first_s: seconds from nothing to the first result, compilation included.
        error: distance of the first parameters from the reference's, by the way that these went.
        exact_network: whether it trained the network that was asked for, see ``Peer.solves``.
    """

    us: float
    spread: float
    rounds: int
    way: str
    first_s: float
    error: float
    exact_network: bool


@dataclass
class _Entry:
    """A peer that has shown that its results are right."""

    peer: Peer
    first_s: float
    error: float
    way: int = 0
    passes: int = 0
    pilot: float = np.inf  # seconds a step
    samples: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return statistics.median(self.samples) if self.samples else self.pilot


class Comparison:
    """fastbp and the peers on one task.

    Attributes:
        skipped: name of a peer -> why it is not there.
    """

    ours: ClassVar[type[Peer]] = Fastbp

    def __init__(self, task: Task, kinds: Sequence[type[Peer]] = PEERS) -> None:
        """Start all, and compare their results.

        Raises:
            WrongResultError: somebody's are not right.
        """
        self.task = task
        self.skipped = {kind.name: reason for kind in kinds if (reason := kind.refuses(task.network))}
        self._expected: dict[Network, Array] = {}
        everybody: list[type[Peer]] = [self.ours, *kinds]
        self._entries = {kind.name: self._start(kind) for kind in everybody if kind.name not in self.skipped}

    def _start(self, kind: type[Peer]) -> _Entry:
        network = kind.solves(self.task.network)
        if network not in self._expected:
            self._expected[network] = self._reference(network)
        began = time.perf_counter()
        peer = kind(self.task)
        first_s, error = 0.0, 0.0
        for way in peer.ways():
            with peer.using(way):
                peer.reset()
                peer.run(self._first_passes)
            first_s = first_s or time.perf_counter() - began
            error = max(error, self._error(peer, self._expected[network]))
        return _Entry(peer, first_s, error)

    @property
    def _first_passes(self) -> int:
        return -(-FEWEST_STEPS // self.task.steps)

    def _reference(self, network: Network) -> Array:
        """The parameters after the first passes, by fastbp's array machine in float64."""
        net = network.make("float64", "numpy")
        net.theta = self.task.theta
        X, T = (batches.reshape(-1, batches.shape[2]).astype(np.float64) for batches in (self.task.X, self.task.T))
        _fit(net, X, T, self._first_passes, self.task)
        return net.theta

    def _error(self, peer: Peer, expected: Array) -> float:
        way = np.linalg.norm(expected - self.task.theta)
        error = float(np.linalg.norm(peer.theta() - expected) / way)
        if not error <= self.tolerance:  # NaN is wrong too
            raise WrongResultError(
                f"{peer.name} on {self.task.network}: its parameters are off by {error:.2g} of the way they went"
            )
        return error

    @property
    def tolerance(self) -> float:
        """How far parameters may be off, of the way that they went."""
        kinked = self.task.network.activation in ("relu", "leaky_relu")
        return KINKED_TOLERANCE if kinked else TOLERANCE

    def lasting(self, effort: Effort) -> float:
        """Seconds that a run has to last."""
        # a call of fit looks once at all data and copies the parameters, at some 0.1 ns a byte: not to be seen
        return max(effort.run, 5e-9 * (self.task.X.nbytes + self.task.T.nbytes) + 1e-8 * self.task.theta.nbytes)

    def pilot(self, effort: Effort) -> None:
        """Find everybody's best way, and how many passes a run of it takes."""
        lasting = self.lasting(effort)
        for entry in self._entries.values():
            for way in entry.peer.ways():
                with entry.peer.using(way):
                    entry.peer.reset()
                    passes = steps_lasting(entry.peer.run, lasting)
                    seconds = min(clock(entry.peer.run, passes) for _ in range(2)) / (passes * self.task.steps)
                if seconds < entry.pilot:
                    entry.way, entry.passes, entry.pilot = way, passes, seconds

    def rounds(self, effort: Effort, within: float = np.inf) -> None:
        """Time everybody anew, in turns, but for peers ``within`` times slower than the fastest so far."""
        limit = min(effort.hopeless, within) * min(entry.seconds for entry in self._entries.values())
        chosen = [e for e in self._entries.values() if e.seconds <= limit or isinstance(e.peer, self.ours)]
        for entry in chosen:
            entry.samples = []
        began = time.perf_counter()
        for turn in range(effort.most):
            if turn >= effort.fewest and time.perf_counter() - began > effort.budget:
                break
            for entry in chosen:
                entry.samples.append(self._timed(entry, effort.pause))

    def _timed(self, entry: _Entry, pause: float) -> float:
        with entry.peer.using(entry.way):
            entry.peer.reset()
            time.sleep(pause)
            entry.peer.run(max(1, entry.passes // 4))
            return clock(entry.peer.run, entry.passes) / (entry.passes * self.task.steps)

    def timings(self) -> dict[str, Timing]:
        """What was found, by name, fastbp first."""
        return {
            name: Timing(
                us=1e6 * entry.seconds,
                spread=spread(entry.samples) if len(entry.samples) > 1 else 0.0,
                rounds=len(entry.samples),
                way=f"{entry.peer.choice} {entry.way}",
                first_s=entry.first_s,
                error=entry.error,
                exact_network=entry.peer.solves(self.task.network) == self.task.network,
            )
            for name, entry in self._entries.items()
        }


def best_peer(timings: dict[str, Timing]) -> str:
    """The name of the fastest of those that trained the network asked for; "" if fastbp is alone."""
    exact = {name: t.us for name, t in timings.items() if t.exact_network and name != Fastbp.name}
    return min(exact, key=exact.__getitem__, default="")
