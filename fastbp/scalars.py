"""The scalar mathematics of fastbp, written once: activations, derivatives, losses, update rules.

Every function here is a formula over an *emitter* ``m``, which says what an operation means: the array machine
evaluates it on arrays, the CPU machine turns it into LLVM vector code. The values support ``+ - * /``, unary ``-`` and
the comparisons; everything else comes from ``m`` (see :class:`Emitter`).

NaN goes in, NaN comes out: comparisons are written so that their false branch carries the NaN on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fastbp import polynomials

Value = Any  # an array, an LLVM vector, a device scalar: whatever the emitter works on
LEAKY_SLOPE = 0.01
NORMAL_DENSITY_AT_0 = 1.0 / math.sqrt(2.0 * math.pi)
ERF_SLOPE_AT_0 = 2.0 / math.sqrt(math.pi)


class PolynomialEmitter(Protocol):
    """What a machine supplies for polynomials."""

    def fma(self, x: Value, y: Value, z: Value) -> Value:
        """X y + z, rounded once where the machine can."""


class Emitter(PolynomialEmitter, Protocol):
    """What a machine supplies to turn the formulas below into its own code."""

    dtype: str  # "float32" or "float64": chooses the polynomials

    def exp(self, x: Value) -> Value: ...
    def expm1(self, x: Value) -> Value: ...
    def log(self, x: Value) -> Value: ...
    def log1p(self, x: Value) -> Value: ...
    def tanh(self, x: Value) -> Value: ...
    def sin(self, x: Value) -> Value: ...
    def cos(self, x: Value) -> Value: ...
    def sqrt(self, x: Value) -> Value: ...
    def abs(self, x: Value) -> Value: ...
    def maximum(self, x: Value, y: Value) -> Value:
        """The larger value; NaN if either is NaN."""

    def minimum(self, x: Value, y: Value) -> Value:
        """The smaller value; NaN if either is NaN."""

    def power(self, x: Value, y: Value) -> Value:
        """X to the power of y, in all cases as C's pow."""

    def where(self, condition: Value, x: Value, y: Value) -> Value: ...


def polynomial(m: PolynomialEmitter, x: Value, coefficients: tuple[float, ...]) -> Value:
    """Horner's rule; coefficients with the highest power first."""
    total = m.fma(x, coefficients[0], coefficients[1])
    for c in coefficients[2:]:
        total = m.fma(total, x, c)
    return total


# ---- activations: a = f(z) ----------------------------------------------------------------------------------------


def sigmoid(m: Emitter, z: Value) -> Value:
    """1/(1 + e^-z), through e^-|z| so that nothing overflows and small values keep their digits."""
    e = m.exp(-m.abs(z))
    r = 1.0 / (e + 1.0)
    return m.where(z < 0.0, e * r, r)


def tanh(m: Emitter, z: Value) -> Value:
    """The hyperbolic tangent."""
    return m.tanh(z)


def relu(m: Emitter, z: Value) -> Value:
    """max(z, 0)."""
    return m.where(z <= 0.0, 0.0, z)


def leaky_relu(m: Emitter, z: Value) -> Value:
    """z, or z/100 below 0."""
    return m.where(z < 0.0, z * LEAKY_SLOPE, z)


def softplus(m: Emitter, z: Value) -> Value:
    """log(1 + e^z) = max(z, 0) + log1p(e^-|z|)."""
    return m.where(z < 0.0, 0.0, z) + m.log1p(m.exp(-m.abs(z)))


def silu(m: Emitter, z: Value) -> Value:
    """Z sigmoid(z) (Elfwing, Uchibe and Doya 2017)."""
    return z * sigmoid(m, z)


def erfc(m: Emitter, x: Value) -> Value:
    """The complementary error function: exp(-x^2) p(t)/(1 + 2x) for x >= 0 with t = (x - k)/(x + k), and erfc(-x) =
    2 - erfc(x) (form: Shepherd and Laframboise 1981; coefficients: scripts/fit_polynomials.py).
    """
    tail = _erfc_of_size(m, m.abs(x))
    return m.where(x < 0.0, 2.0 - tail, tail)


def _erfc_of_size(m: Emitter, size: Value) -> Value:
    """erfc(x) for x >= 0."""
    k = 3.75
    u = m.minimum(size, 28.0)  # erfc(28) is 0 in float64
    p = polynomial(m, (u - k) / (u + k), polynomials.ERFC[m.dtype])
    square = u * u
    rest = m.fma(u, u, -square)  # what rounding took from u*u: exp would magnify it
    return m.exp(-square) * (1.0 - rest) * p / (u * 2.0 + 1.0)


def erf(m: Emitter, x: Value) -> Value:
    """The error function: x + x P(x^2) for |x| < 1, sign(x) (1 - erfc(|x|)) beyond."""
    size = m.abs(x)
    near = m.fma(x, polynomial(m, x * x, polynomials.ERF[m.dtype]), x)
    far = 1.0 - _erfc_of_size(m, size)
    return m.where(size < 1.0, near, m.where(x < 0.0, -far, far))


def normal_cdf(m: Emitter, z: Value) -> Value:
    """Phi(z) = erfc(-z/sqrt 2)/2."""
    return erfc(m, z * -math.sqrt(0.5)) * 0.5


def gelu(m: Emitter, z: Value) -> Value:
    """Z Phi(z), with the exact normal distribution function, not its tanh approximation (Hendrycks and Gimpel 2016)."""
    return z * normal_cdf(m, z)


# ---- derivatives, from the output a where it determines them, from z where it does not ------------------------------


def sigmoid_grad(m: Emitter, a: Value) -> Value:
    """A (1 - a). The form e^-z sigmoid(z)^2 gives NaN in float32 below z = -89."""
    return a * (1.0 - a)


def tanh_grad(m: Emitter, a: Value) -> Value:
    """1 - a^2."""
    return 1.0 - a * a


def relu_grad(m: Emitter, a: Value) -> Value:
    """1 where a > 0, else 0: at the kink the derivative is taken as 0."""
    return m.where(a <= 0.0, 0.0, m.where(a > 0.0, 1.0, a))


def leaky_relu_grad(m: Emitter, a: Value) -> Value:
    """1 where a > 0, else 1/100."""
    return m.where(a <= 0.0, LEAKY_SLOPE, m.where(a > 0.0, 1.0, a))


def softplus_grad(m: Emitter, a: Value) -> Value:
    """sigmoid(z) = 1 - e^-a at a = softplus(z)."""
    return -m.expm1(-a)


def silu_grad(m: Emitter, z: Value) -> Value:
    """S (1 + z (1 - s)) with s = sigmoid(z)."""
    s = sigmoid(m, z)
    return s * (z * (1.0 - s) + 1.0)


def gelu_grad(m: Emitter, z: Value) -> Value:
    """Phi(z) + z phi(z)."""
    return normal_cdf(m, z) + z * m.exp(z * z * -0.5) * NORMAL_DENSITY_AT_0


# ---- losses, an element at a time ----------------------------------------------------------------------------------


def huber(m: Emitter, d: Value) -> Value:
    """d^2/2 for |d| <= 1, |d| - 1/2 beyond (Huber 1964, delta = 1)."""
    size = m.abs(d)
    return m.where(size <= 1.0, d * d * 0.5, size - 0.5)


def huber_grad(m: Emitter, d: Value) -> Value:
    """d, limited to [-1, 1]."""
    return m.where(d > 1.0, 1.0, m.where(d < -1.0, -1.0, d))


def bce_logits(m: Emitter, z: Value, t: Value) -> Value:
    """-t log s - (1 - t) log(1 - s) with s = sigmoid(z), as max(z, 0) - z t + log1p(e^-|z|)."""
    return m.where(z < 0.0, 0.0, z) - z * t + m.log1p(m.exp(-m.abs(z)))


# ---- random bits ---------------------------------------------------------------------------------------------------

PHILOX_MULTIPLIER, PHILOX_WEYL, PHILOX_ROUNDS = 0xD256D193, 0x9E3779B9, 10
DROPOUT_KEY = 0x85EBCA6B  # sets the keys of a network's dropouts apart


class IntegerEmitter(Protocol):
    """What a machine supplies for arithmetic on unsigned integers of 32 bits."""

    def multiply(self, x: Value, constant: int) -> tuple[Value, Value]:
        """The upper and the lower half of a product."""

    def add(self, x: Value, constant: int) -> Value: ...
    def xor(self, x: Value, y: Value) -> Value: ...


def philox(m: IntegerEmitter, counter: Value, step: Value, key: Value) -> Value:
    """32 random bits for every counter and step: Philox 2x32-10 (Salmon, Moraes, Dror and Shaw 2011)."""
    for _ in range(PHILOX_ROUNDS):
        high, low = m.multiply(counter, PHILOX_MULTIPLIER)
        counter, step = m.xor(m.xor(high, key), step), low
        key = m.add(key, PHILOX_WEYL)
    return counter


# ---- comparisons: 1 where they hold, 0 where they do not, NaN where either value is -------------------------------


def greater(m: Emitter, x: Value, y: Value) -> Value:
    """X > y."""
    return m.where(x > y, 1.0, m.where(x <= y, 0.0, x + y))


def greater_equal(m: Emitter, x: Value, y: Value) -> Value:
    """X >= y."""
    return m.where(x >= y, 1.0, m.where(x < y, 0.0, x + y))


def equal(m: Emitter, x: Value, y: Value) -> Value:
    """X = y."""
    return m.where(x > y, 0.0, m.where(x >= y, 1.0, m.where(x < y, 0.0, x + y)))


def where(m: Emitter, c: Value, x: Value, y: Value) -> Value:
    """X where c is not 0, y where it is, NaN where it is NaN; of the value that is not taken nothing is seen."""
    return m.where(c > 0.0, x, m.where(c < 0.0, x, m.where(c >= 0.0, y, c)))


# ---- the tables that every machine implements ----------------------------------------------------------------------

UNARY: dict[str, Callable[..., Value]] = {
    "copy": lambda m, x: x,
    "neg": lambda m, x: -x,
    "square": lambda m, x: x * x,
    "sqrt": lambda m, x: m.sqrt(x),
    "exp": lambda m, x: m.exp(x),
    "log": lambda m, x: m.log(x),
    "sin": lambda m, x: m.sin(x),
    "cos": lambda m, x: m.cos(x),
    "erf": erf,
    "abs": lambda m, x: m.abs(x),
    "sign": lambda m, x: m.where(x > 0.0, 1.0, m.where(x < 0.0, -1.0, x)),
    "step": lambda m, x: m.where(x <= 0.0, 0.0, m.where(x > 0.0, 1.0, x)),
    "sigmoid": sigmoid,
    "tanh": tanh,
    "relu": relu,
    "leaky_relu": leaky_relu,
    "softplus": softplus,
    "silu": silu,
    "gelu": gelu,
    "sigmoid_grad": sigmoid_grad,
    "tanh_grad": tanh_grad,
    "relu_grad": relu_grad,
    "leaky_relu_grad": leaky_relu_grad,
    "softplus_grad": softplus_grad,
    "silu_grad": silu_grad,
    "gelu_grad": gelu_grad,
    "huber": huber,
    "huber_grad": huber_grad,
}

BINARY: dict[str, Callable[..., Value]] = {
    "add": lambda m, x, y: x + y,
    "sub": lambda m, x, y: x - y,
    "mul": lambda m, x, y: x * y,
    "div": lambda m, x, y: x / y,
    "maximum": lambda m, x, y: m.maximum(x, y),
    "minimum": lambda m, x, y: m.minimum(x, y),
    "power": lambda m, x, y: m.power(x, y),
    "greater": greater,
    "greater_equal": greater_equal,
    "equal": equal,
    "bce_logits": bce_logits,
}

TERNARY: dict[str, Callable[..., Value]] = {
    "where": where,
    "fma": lambda m, x, y, z: m.fma(x, y, z),
}


@dataclass(frozen=True)
class Activation:
    """An elementwise activation: which unary gives it, which its derivative, and from what.

    Attributes:
        forward: name in UNARY, or "" for the identity.
        derivative: name in UNARY, or "" for the identity's 1.
        saves: "output" if the derivative is a function of a = f(z), "input" if it needs z.
    """

    forward: str
    derivative: str
    saves: str


ACTIVATIONS: Mapping[str, Activation] = {
    "identity": Activation("", "", "output"),
    "sigmoid": Activation("sigmoid", "sigmoid_grad", "output"),
    "tanh": Activation("tanh", "tanh_grad", "output"),
    "relu": Activation("relu", "relu_grad", "output"),
    "leaky_relu": Activation("leaky_relu", "leaky_relu_grad", "output"),
    "gelu": Activation("gelu", "gelu_grad", "input"),
    "silu": Activation("silu", "silu_grad", "input"),
    "softplus": Activation("softplus", "softplus_grad", "output"),
}


def _after_add(f: Callable[..., Value]) -> Callable[..., Value]:
    return lambda m, x, y: f(m, x + y)


def _times(f: Callable[..., Value]) -> Callable[..., Value]:
    return lambda m, x, y: x * f(m, y)


# Pairs that the planner fuses: f(x + y) is the dense layer's bias and activation, x f(y) the backward's dA * f'(saved).
FUSED: dict[str, Callable[..., Value]] = {}
for _a in ACTIVATIONS.values():
    if _a.forward:
        FUSED[f"add_{_a.forward}"] = _after_add(UNARY[_a.forward])
        FUSED[f"mul_{_a.derivative}"] = _times(UNARY[_a.derivative])
BINARY.update(FUSED)


# ---- update rules of the optimisers --------------------------------------------------------------------------------


@dataclass(frozen=True)
class UpdateRule:
    """One optimiser's elementwise update.

    Attributes:
        states: names of the state vectors, each laid out like theta.
        hyper: names of the scalars that the formula takes, in order; they may change from step to step.
        formula: (m, h, theta, g, *states) -> (theta, *states), h a tuple of scalars.
    """

    states: tuple[str, ...]
    hyper: tuple[str, ...]
    formula: Callable[..., tuple[Value, ...]]


def _sgd(m: Emitter, h: Any, theta: Value, g: Value) -> tuple[Value, ...]:
    (lr,) = h
    return (m.fma(-lr, g, theta),)


def _momentum(m: Emitter, h: Any, theta: Value, g: Value, v: Value) -> tuple[Value, ...]:
    lr, mu = h
    v = m.fma(mu, v, g)
    return m.fma(-lr, v, theta), v


def _nesterov(m: Emitter, h: Any, theta: Value, g: Value, v: Value) -> tuple[Value, ...]:
    lr, mu = h
    v = m.fma(mu, v, g)
    return m.fma(-lr, m.fma(mu, v, g), theta), v


def _adagrad(m: Emitter, h: Any, theta: Value, g: Value, s: Value) -> tuple[Value, ...]:
    lr, eps = h
    s = s + g * g
    return theta - lr * g / (m.sqrt(s) + eps), s


def _rmsprop(m: Emitter, h: Any, theta: Value, g: Value, s: Value) -> tuple[Value, ...]:
    lr, rho, one_minus_rho, eps = h
    s = rho * s + one_minus_rho * (g * g)
    return theta - lr * g / (m.sqrt(s) + eps), s


def _adam(m: Emitter, h: Any, theta: Value, g: Value, first: Value, second: Value) -> tuple[Value, ...]:
    decay, step, one_minus_beta1, beta2, one_minus_beta2, unbias, eps = h
    first = first + one_minus_beta1 * (g - first)
    second = beta2 * second + one_minus_beta2 * (g * g)
    return decay * theta - step * first / (m.sqrt(second * unbias) + eps), first, second


def _ftrl(m: Emitter, h: Any, theta: Value, g: Value, z: Value, s: Value) -> tuple[Value, ...]:
    inverse_lr, beta, l1, l2 = h
    grown = s + g * g
    root = m.sqrt(grown)
    z = z + g - (root - m.sqrt(s)) * inverse_lr * theta
    shrunk = m.where(z > l1, z - l1, m.where(z < -l1, z + l1, z * 0.0))
    return -shrunk / ((beta + root) * inverse_lr + l2), z, grown


UPDATES: dict[str, UpdateRule] = {
    "sgd": UpdateRule((), ("lr",), _sgd),
    "momentum": UpdateRule(("velocity",), ("lr", "momentum"), _momentum),
    "nesterov": UpdateRule(("velocity",), ("lr", "momentum"), _nesterov),
    "adagrad": UpdateRule(("squares",), ("lr", "eps"), _adagrad),
    "rmsprop": UpdateRule(("squares",), ("lr", "rho", "one_minus_rho", "eps"), _rmsprop),
    "adam": UpdateRule(
        ("first", "second"),
        ("decay", "step", "one_minus_beta1", "beta2", "one_minus_beta2", "unbias", "eps"),
        _adam,
    ),
    "ftrl": UpdateRule(("z", "squares"), ("inverse_lr", "beta", "l1", "l2"), _ftrl),
}
