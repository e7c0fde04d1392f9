"""Optimisers: one elementwise update rule each, on the flat parameter vector; learning-rate schedules; clipping.

``fit`` runs the updates inside compiled code. A loop of one's own does the same, bit for bit, with::

    state = optimizer.init(net.theta)
    loss, g = net.loss_and_grad(X, T)
    optimizer.update(net.theta, g, state)          # in place

The formulas stand in the classes; t counts steps from 1, g is the (clipped) gradient, all operations elementwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fastbp import arrays, backends, scalars
from fastbp.backends import Machine
from fastbp.errors import InputError, unknown
from fastbp.nodes import Node, param, update
from fastbp.ops import fixed
from fastbp.plan import plan

Floats = npt.NDArray[np.float64]
Array = npt.NDArray[Any]


# ---- schedules -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """A learning rate that changes from step to step. Steps count from 0 over all calls of ``fit``."""

    def __call__(self, step: Floats) -> Floats:
        """The learning rate of each step of an array of step numbers."""
        raise NotImplementedError(f"{type(self).__name__} must say what its learning rate is")


@dataclass(frozen=True)
class StepDecay(Schedule):
    """initial · factor^⌊step/every⌋."""

    initial: float
    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        arrays.positive("initial", self.initial)
        arrays.count("every", self.every)
        arrays.positive("factor", self.factor)

    def __call__(self, step: Floats) -> Floats:
        return self.initial * self.factor ** np.floor(step / self.every)


@dataclass(frozen=True)
class ExponentialDecay(StepDecay):
    """initial · factor^(step/every)."""

    def __call__(self, step: Floats) -> Floats:
        return self.initial * self.factor ** (step / self.every)


@dataclass(frozen=True)
class CosineDecay(Schedule):
    """final + (initial - final)(1 + cos(π min(step, steps)/steps))/2 (Loshchilov and Hutter 2017, without restarts)."""

    initial: float
    steps: int
    final: float = 0.0

    def __post_init__(self) -> None:
        arrays.positive("initial", self.initial)
        arrays.count("steps", self.steps)
        arrays.positive("final", self.final, zero=True)

    def __call__(self, step: Floats) -> Floats:
        done = np.minimum(step, self.steps) / self.steps
        return self.final + (self.initial - self.final) * (1.0 + np.cos(np.pi * done)) / 2.0


@dataclass(frozen=True)
class WarmUp(Schedule):
    """A linear rise over the first ``steps`` steps, rate · (step + 1)/steps, then ``then`` from its own step 0 on."""

    steps: int
    then: float | Schedule

    def __post_init__(self) -> None:
        arrays.count("steps", self.steps)
        _check_rate("then", self.then)

    def __call__(self, step: Floats) -> Floats:
        rate = rate_at(self.then, np.maximum(step - self.steps, 0.0))
        return rate * np.minimum((step + 1.0) / self.steps, 1.0)


def rate_at(rate: float | Schedule, step: Floats) -> Floats:
    """The learning rate at each of an array of steps, counted from 0."""
    return rate(step) if isinstance(rate, Schedule) else np.full(step.shape, float(rate))


def _check_rate(name: str, rate: Any) -> None:
    if not isinstance(rate, Schedule):
        arrays.positive(name, rate)


# ---- optimisers ----------------------------------------------------------------------------------------------------


@dataclass
class State:
    """What an optimiser remembers: the number of steps taken and its vectors, each (1, P)."""

    step: int
    vectors: list[Array]


@dataclass(frozen=True)
class Optimizer:
    """Base of all optimisers.

    Args:
        learning_rate: a number above 0, or a :class:`Schedule`.
        clip_value: limit every element of the gradient to [-clip_value, clip_value].
        clip_norm: scale the gradient so that its Euclidean norm is at most this (Pascanu, Mikolov and Bengio 2013).
    """

    learning_rate: float | Schedule
    clip_value: float | None = field(default=None, kw_only=True)
    clip_norm: float | None = field(default=None, kw_only=True)

    rule: ClassVar[str]

    def __post_init__(self) -> None:
        _check_rate("learning_rate", self.learning_rate)
        for name in ("clip_value", "clip_norm"):
            if getattr(self, name) is not None:
                arrays.positive(name, getattr(self, name))
        for f in fields(self):
            if f.name in _FRACTIONS:
                arrays.fraction(f.name, getattr(self, f.name))
            if f.name in _NOT_NEGATIVE:
                arrays.positive(f.name, getattr(self, f.name), zero=True)

    def hyper(self, step: Floats) -> Floats:
        """The scalars of the update rule for steps counted from 0: (steps, scalars) float64."""
        rate = rate_at(self.learning_rate, step)
        columns = [np.broadcast_to(np.asarray(c, np.float64), rate.shape) for c in self._scalars(rate, step + 1.0)]
        return np.ascontiguousarray(np.stack(columns, axis=1))

    def _scalars(self, rate: Floats, t: Floats) -> tuple[Any, ...]:
        raise NotImplementedError(f"{type(self).__name__} must give the scalars of its rule {self.rule!r}")

    def init(self, theta: Array) -> State:
        """A fresh state for a parameter vector of any shape, of NumPy's or CuPy's: its vectors are of the same kind."""
        vectors = [self._first(name, theta.reshape(1, -1)) for name in scalars.UPDATES[self.rule].states]
        return State(0, [arrays.on_whole_lines(vector) for vector in vectors])

    def _first(self, name: str, theta: Array) -> Array:
        zeros: Array = arrays.xp_of(theta).zeros_like(theta)
        return zeros

    def graph(self, theta: Node, gradient: Node) -> Node:
        """The clipped update as a node; its states are the parameters "state0", "state1", its scalars "hyper"."""
        rule = scalars.UPDATES[self.rule]
        if self.clip_value is not None:
            gradient = gradient.maximum(-self.clip_value).minimum(self.clip_value)
        if self.clip_norm is not None:
            gradient = gradient * (self.clip_norm / _norm(gradient)).minimum(1.0)
        states = [param(f"state{k}", (1, theta.shape[1].fixed)) for k in range(len(rule.states))]
        hyper = Node("input", (), {"name": "hyper", "shape": fixed(1, len(rule.hyper)), "dtype": "double"})
        return update(self.rule, theta, gradient, states, hyper)

    def update(self, theta: Array, gradient: Array, state: State, *, backend: str | None = None) -> None:
        """One step, in place on ``theta`` and ``state``.

        Args:
            theta: contiguous, writable float32 or float64 array of P elements, NumPy's or CuPy's.
            gradient: P elements, of the same kind.
            state: from :meth:`init`.
            backend: None goes by the arrays: CuPy's on "cuda", NumPy's on the default.

        Raises:
            InputError: an array that cannot be updated in place, or of another size; nothing is changed then.
        """
        if not isinstance(theta, arrays.xp_of(theta).ndarray) or not arrays.in_place(theta):
            raise InputError(
                "theta must be a contiguous, writable NumPy array or CuPy array, for it is updated in place"
            )
        if not theta.dtype.isnative:
            raise InputError(f"theta must have the byte order of this machine, got dtype {theta.dtype.str}")
        dtype = backends.resolve_dtype(theta.dtype)
        kind, machine = arrays.switch({"theta": theta, "gradient": gradient}, backend)
        g = arrays.asarray("gradient", gradient, f"{theta.size} numbers", kind).reshape(1, -1)
        g = arrays.matrix("gradient", g, None, dtype, kind)
        if g.size != theta.size:
            raise InputError(f"gradient has {g.size} elements, but theta has {theta.size}")
        self.check_state(theta, state)
        run = _updater(self._rule_only(), theta.size, machine, dtype)
        hyper = kind.moved(self.hyper(np.array([float(state.step)])))
        values = {"theta": theta.reshape(1, -1), "gradient": g, "hyper": hyper}
        run.run(values | {f"state{k}": v for k, v in enumerate(state.vectors)}, 1)
        state.step += 1

    def check_state(self, theta: Array, state: State) -> None:
        """Refuse a state that is not this optimiser's for such a theta: kernels write into it unchecked."""
        if not isinstance(state, State):
            raise InputError(f"state must be what {type(self).__name__}.init gave, got {state!r}")
        names = scalars.UPDATES[self.rule].states
        shape = (1, theta.size)
        for k, vector in enumerate(state.vectors):
            (arrays.kind_of(theta) or arrays.HOST).check(f"state.vectors[{k}]", vector)
        found = [(v.shape, str(v.dtype), arrays.in_place(v)) for v in state.vectors]
        if found != [(shape, str(theta.dtype), True)] * len(names):
            raise InputError(
                f"state of {type(self).__name__} must be {len(names)} contiguous, writable vectors of shape {shape}, "
                f"dtype {theta.dtype}; got {[(s, d) for s, d, _ in found]}"
            )
        arrays.count("state.step", state.step, 0)

    def _rule_only(self) -> tuple[Any, ...]:
        """What the update's Program depends on."""
        return type(self), self.clip_value, self.clip_norm


def _norm(gradient: Node) -> Node:
    """The Euclidean norm; taken of the scaled gradient too, for the squares of large elements leave float32."""
    scale = 1e-15
    of_large = (gradient * scale).square().sum().sqrt() * (1.0 / scale)
    of_small = gradient.square().sum().sqrt().minimum(1.0 / scale)
    return of_large.maximum(of_small)


@lru_cache(maxsize=64)
def _updater(key: tuple[Any, ...], size: int, machine: Machine, dtype: str) -> backends.Executable:
    kind, clip_value, clip_norm = key
    optimizer = kind(1.0, clip_value=clip_value, clip_norm=clip_norm)
    node = optimizer.graph(param("theta", (1, size)), param("gradient", (1, size)))
    return backends.executable(plan({"theta": node}), machine.backend, dtype)


_FRACTIONS = {"momentum", "rho", "beta1", "beta2"}
_NOT_NEGATIVE = {"epsilon", "weight_decay", "l1", "l2", "beta"}


@dataclass(frozen=True)
class SGD(Optimizer):
    """Gradient descent: θ ← θ - η g."""

    learning_rate: float | Schedule = 0.01
    rule: ClassVar[str] = "sgd"

    def _scalars(self, rate: Floats, t: Floats) -> tuple[Any, ...]:
        return (rate,)


@dataclass(frozen=True)
class Momentum(Optimizer):
    """v ← μ v + g; θ ← θ - η v (Polyak 1964; η outside v, as in PyTorch)."""

    learning_rate: float | Schedule = 0.01
    momentum: float = 0.9
    rule: ClassVar[str] = "momentum"

    def _scalars(self, rate: Floats, t: Floats) -> tuple[Any, ...]:
        return rate, self.momentum


@dataclass(frozen=True)
class Nesterov(Momentum):
    """v ← μ v + g; θ ← θ - η (g + μ v) (Nesterov 1983, in the form of Sutskever et al. 2013, as in PyTorch)."""

    rule: ClassVar[str] = "nesterov"


@dataclass(frozen=True)
class Adagrad(Optimizer):
    """s ← s + g²; θ ← θ - η g/(√s + ε) (Duchi, Hazan and Singer 2011); ε outside the root."""

    learning_rate: float | Schedule = 0.01
    epsilon: float = 1e-10
    rule: ClassVar[str] = "adagrad"

    def _scalars(self, rate: Floats, t: Floats) -> tuple[Any, ...]:
        return rate, self.epsilon


@dataclass(frozen=True)
class RMSprop(Optimizer):
    """s ← ρ s + (1 - ρ) g²; θ ← θ - η g/(√s + ε) (Tieleman and Hinton 2012); ε outside the root."""

    learning_rate: float | Schedule = 0.001
    rho: float = 0.9
    epsilon: float = 1e-8
    rule: ClassVar[str] = "rmsprop"

    def _scalars(self, rate: Floats, t: Floats) -> tuple[Any, ...]:
        return rate, self.rho, 1.0 - self.rho, self.epsilon


@dataclass(frozen=True)
class Adam(Optimizer):
    """m ← m + (1 - β₁)(g - m); v ← β₂ v + (1 - β₂) g²; θ ← θ - η/(1 - β₁ᵗ) · m/(√(v/(1 - β₂ᵗ)) + ε).

    Kingma and Ba 2015, with both bias corrections; ε is added to the corrected root.
    """

    learning_rate: float | Schedule = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    rule: ClassVar[str] = "adam"

    def _scalars(self, rate: Floats, t: Floats) -> tuple[Any, ...]:
        step = rate / (1.0 - self.beta1**t)
        unbias = 1.0 / (1.0 - self.beta2**t)
        return self._decay(rate), step, 1.0 - self.beta1, self.beta2, 1.0 - self.beta2, unbias, self.epsilon

    def _decay(self, rate: Floats) -> Any:
        """The factor of theta before the step."""
        return 1.0


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam after θ ← (1 - η λ) θ, decay apart from the gradient (Loshchilov and Hutter 2019); λ = weight_decay."""

    weight_decay: float = 0.01

    def _decay(self, rate: Floats) -> Any:
        return 1.0 - rate * self.weight_decay


@dataclass(frozen=True)
class Ftrl(Optimizer):
    """s′ = s + g²; z ← z + g - (√s′ - √s)/η · θ; s ← s′; θ ← 0 if |z| <= λ₁, else
    -(z - sign(z) λ₁)/((β + √s)/η + λ₂): FTRL-Proximal (McMahan et al. 2013, algorithm 1).

    z starts at -θ (β/η + λ₂) - sign(θ) λ₁ and not at 0, so that the first step starts from the θ that is there; from
    0 it would throw away the initialisation, and with it what makes hidden units differ.
    """

    learning_rate: float | Schedule = 0.1
    beta: float = 1.0
    l1: float = 0.0
    l2: float = 0.0
    rule: ClassVar[str] = "ftrl"

    def _scalars(self, rate: Floats, t: Floats) -> tuple[Any, ...]:
        if (rate <= 0.0).any():
            raise InputError("learning_rate of Ftrl must stay above 0, but its schedule reaches 0")
        return 1.0 / rate, self.beta, self.l1, self.l2

    def _first(self, name: str, theta: Array) -> Array:
        if name != "z":
            return super()._first(name, theta)
        rate = float(rate_at(self.learning_rate, np.zeros(1))[0])
        z: Array = -theta * (self.beta / rate + self.l2) - arrays.xp_of(theta).sign(theta) * self.l1
        return z.astype(theta.dtype)


OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": SGD,
    "momentum": Momentum,
    "nesterov": Nesterov,
    "adagrad": Adagrad,
    "rmsprop": RMSprop,
    "adam": Adam,
    "adamw": AdamW,
    "ftrl": Ftrl,
}
SCHEDULES: dict[str, type[Schedule]] = {
    kind.__name__: kind for kind in (StepDecay, ExponentialDecay, CosineDecay, WarmUp)
}


def get(optimizer: str | Optimizer) -> Optimizer:
    """An optimiser as it is, or the one of that name with its default settings."""
    if isinstance(optimizer, Optimizer):
        return optimizer
    if isinstance(optimizer, type) and issubclass(optimizer, Optimizer):
        raise InputError(f"optimizer={optimizer!r} is a class: pass {optimizer.__name__}()")
    if not isinstance(optimizer, str) or optimizer not in OPTIMIZERS:
        raise unknown("optimizer", optimizer, OPTIMIZERS)
    return OPTIMIZERS[optimizer]()  # type: ignore[call-arg]


def to_config(value: Any) -> Any:
    """An optimiser or schedule as what JSON can hold; numbers stay as they are."""
    if not is_dataclass(value):
        return value.item() if isinstance(value, np.generic) else value
    known = {**{k.__name__: k for k in OPTIMIZERS.values()}, **SCHEDULES}
    name = type(value).__name__
    if known.get(name) is not type(value):
        raise InputError(f"{name} is not one of fastbp's own optimisers or schedules, so it cannot be saved")
    return {"class": name, **{f.name: to_config(getattr(value, f.name)) for f in fields(value)}}


def from_config(config: Any) -> Any:
    """What :func:`to_config` was given."""
    if not isinstance(config, dict):
        return config
    known: dict[str, Any] = {**{k.__name__: k for k in OPTIMIZERS.values()}, **SCHEDULES}
    if config.get("class") not in known:
        raise unknown("class", config.get("class"), known)
    arguments = {name: from_config(value) for name, value in config.items() if name != "class"}
    return known[config["class"]](**arguments)
