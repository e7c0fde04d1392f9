"""Layers, for networks that are no chain::

    from fastbp import layers

    x = layers.Input(4)
    h = layers.Dense(16, "tanh")(x)
    h = layers.Dense(16, "tanh")(h) + h                  # operators work on what layers give
    y = layers.Dense(1)(layers.concat([h, x]))
    net = fastbp.Network(x, y, loss="mse", seed=0)

Nothing is computed here: a :class:`Value` says which layer makes it of which values. Parameters live in a network's
theta, so layers hold none; a layer that is called twice has its parameters once. All values are matrices (n, cols).
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from fastbp import arrays, initialisation, nodes
from fastbp.errors import InputError, unknown
from fastbp.nodes import Node, ancestors
from fastbp.ops import TABLE, N
from fastbp.scalars import ACTIVATIONS

Array = npt.NDArray[Any]
OUTPUTS = (*ACTIVATIONS, "softmax")
_SIGNS = {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv}
_ids = itertools.count()


# ---- values ----------------------------------------------------------------------------------------------------------


class Value:
    """What a layer gives: a matrix (n, cols) that is not there yet. ``+ - * /`` work on values and numbers.

    Attributes:
        layer: what makes it.
        inputs: the values that it is made of.
        cols: its columns.
        integer: whether it is a column of row numbers (an Input of dtype "int").
    """

    __slots__ = ("cols", "id", "inputs", "integer", "layer")
    __array_ufunc__ = None  # NumPy scalars on the left leave the operator to us

    def __init__(self, layer: Layer, inputs: tuple[Value, ...], cols: int, integer: bool = False) -> None:
        self.id = next(_ids)  # counts up, so that inputs have smaller ids than what is made of them
        self.layer = layer
        self.inputs = inputs
        self.cols = cols
        self.integer = integer

    def __repr__(self) -> str:
        return f"<value (n, {self.cols}) of {self.layer!r}>"

    def __add__(self, other: Any) -> Value:
        return _arithmetic("add", self, other)

    def __radd__(self, other: Any) -> Value:
        return _arithmetic("add", other, self)

    def __sub__(self, other: Any) -> Value:
        return _arithmetic("sub", self, other)

    def __rsub__(self, other: Any) -> Value:
        return _arithmetic("sub", other, self)

    def __mul__(self, other: Any) -> Value:
        return _arithmetic("mul", self, other)

    def __rmul__(self, other: Any) -> Value:
        return _arithmetic("mul", other, self)

    def __truediv__(self, other: Any) -> Value:
        return _arithmetic("div", self, other)

    def __rtruediv__(self, other: Any) -> Value:
        return _arithmetic("div", other, self)

    def __neg__(self) -> Value:
        return self * -1.0


@dataclass
class Dropping:
    """The dropouts of one graph: where their key comes from in training, None elsewhere; how many there are so far."""

    key: Node | None = None
    count: int = 0


@dataclass(eq=False)
class Layer:
    """Base of all layers. A layer is called on values and gives a value."""

    def __call__(self, *values: Value) -> Value:
        what = type(self).__name__
        for value in values:
            if not isinstance(value, Value):
                raise InputError(f"{what}: its arguments must be values of layers, got {value!r}")
            if value.integer and not isinstance(self, (Embedding, Apply)):
                raise InputError(f"{what}: its arguments must be numbers, got row numbers: use layers.Embedding first")
        return Value(self, values, self._columns(values))

    def _columns(self, values: tuple[Value, ...]) -> int:
        """Columns of the result; checks the values."""
        raise NotImplementedError(f"{type(self).__name__} must say how many columns it gives")

    def parameters(self) -> list[tuple[str, tuple[int, int]]]:
        """Names and shapes of its parameters, as they lie in theta."""
        return []

    def initial(self, rng: np.random.Generator) -> Iterator[Array]:
        """Where its parameters start, float64, in order."""
        return iter(())

    def build(self, parameters: Sequence[Node], inputs: Sequence[Node], dropping: Dropping) -> tuple[Node, Node]:
        """Its output A, and Z from before the activation; the same node where it has none."""
        raise NotImplementedError(f"{type(self).__name__} must say what it computes")

    def penalties(self, parameters: Sequence[Node]) -> list[Node]:
        """What is added to the loss, (1, 1) nodes."""
        return []

    def operations_a_row(self) -> int:
        """Of its products, forward."""
        return 0

    def config(self) -> dict[str, Any]:
        """Its class and arguments, JSON-able."""
        arguments = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        return {"class": type(self).__name__.removeprefix("_"), **arguments}


# ---- layers ----------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Input(Layer):
    cols: int = 1
    name: str | None = None
    dtype: str = "float"

    def __post_init__(self) -> None:
        self.cols = arrays.count("cols", self.cols)
        _check_name(self.name)
        if self.dtype not in ("float", "int"):
            raise unknown("dtype", self.dtype, ("float", "int"))
        if self.dtype == "int" and self.cols != 1:
            raise InputError(f"cols must be 1 for an Input of dtype 'int', got {self.cols}: make an Input for each")

    def __call__(self, *values: Value) -> Value:
        return Value(self, (), self.cols, self.dtype == "int")


def Input(cols: int = 1, name: str | None = None, dtype: str = "float") -> Value:
    """What comes in with every call: a matrix (n, cols).

    Args:
        name: by which several inputs may be given, in a dict.
        dtype: "float" for the network's own, or "int": one column of row numbers, for an :class:`Embedding`.
    """
    return _Input(cols, name, dtype)()


def is_input(layer: Layer) -> bool:
    """Whether a layer is what :func:`Input` made."""
    return isinstance(layer, _Input)


def is_integer(layer: Layer) -> bool:
    """Whether a layer is an Input of row numbers."""
    return isinstance(layer, _Input) and layer.dtype == "int"


@dataclass(eq=False)
class Dense(Layer):
    """A = f(Z), Z = X W + b with X (n, d), W (d, units), b (1, units).

    Called on several values, each has weights of its own: Z = X₀ W₀ + X₁ W₁ + … + b. In theta: W₀, W₁, …, b.

    Args:
        activation: a name of ``fastbp.scalars.ACTIVATIONS``, or softmax.
        bias: False for none.
        init: a name of ``fastbp.initialisation.INITS``; None chooses by the activation. The weights of several values
            start like those of the values side by side.
        l1, l2: l1 Σ|w| + l2 Σw² over all weights, not the biases, is added to the loss, neither halved nor divided by
            the rows.
        name: of its parameters in ``Network.views``.
    """

    units: int
    activation: str = "identity"
    bias: bool = True
    init: str | None = None
    l1: float = 0.0
    l2: float = 0.0
    name: str | None = None
    widths: tuple[int, ...] = field(default=(), init=False, repr=False)  # of the values, known from the first call

    def __post_init__(self) -> None:
        self.units = arrays.count("units", self.units)
        _check_activation(self.activation)
        if not isinstance(self.bias, (bool, np.bool_)):
            raise InputError(f"bias must be True or False, got {self.bias!r}")
        self.bias = bool(self.bias)
        _check_init(self.init)
        self.l1 = arrays.positive("l1", self.l1, zero=True)
        self.l2 = arrays.positive("l2", self.l2, zero=True)
        _check_name(self.name)

    def _columns(self, values: tuple[Value, ...]) -> int:
        widths = tuple(value.cols for value in values)
        if not widths:
            raise InputError("Dense: it must be called on at least one value")
        if self.widths and widths != self.widths:
            raise InputError(
                f"{self!r} was called on widths {list(self.widths)} first, now on {list(widths)}: its weights are "
                "shared by all calls; make another Dense for other widths"
            )
        self.widths = widths
        return self.units

    def parameters(self) -> list[tuple[str, tuple[int, int]]]:
        found = [(f"W{k or ''}", (width, self.units)) for k, width in enumerate(self.widths)]
        return [*found, ("b", (1, self.units))] if self.bias else found

    def initial(self, rng: np.random.Generator) -> Iterator[Array]:
        init = self.init or initialisation.default(self.activation)
        w, b = initialisation.layer(init, rng, sum(self.widths), self.units)
        yield from np.split(w, np.cumsum(self.widths)[:-1])
        if self.bias:
            yield b

    def build(self, parameters: Sequence[Node], inputs: Sequence[Node], dropping: Dropping) -> tuple[Node, Node]:
        z = parameters[-1] if self.bias else None
        for x, w in reversed(list(zip(inputs, parameters, strict=False))):
            z = x @ w if z is None else x @ w + z  # each product adds what is there: one pass over Z for each
        assert z is not None
        return activate(z, self.activation), z

    def penalties(self, parameters: Sequence[Node]) -> list[Node]:
        weights = parameters[: len(self.widths)]
        found = [w.abs().sum() * self.l1 for w in weights if self.l1]
        return found + [w.square().sum() * self.l2 for w in weights if self.l2]

    def operations_a_row(self) -> int:
        return 2 * sum(self.widths) * self.units


@dataclass(eq=False)
class Dropout(Layer):
    """In training, every element is 0 with probability ``rate`` and divided by 1 - rate otherwise (Srivastava et al.
    2014, scaled in training); elsewhere it is left alone.

    Only the steps of ``fit`` train: ``forward``, ``predict``, ``score``, ``loss`` and ``loss_and_grad`` drop nothing.
    """

    rate: float

    def __post_init__(self) -> None:
        self.rate = arrays.fraction("rate", self.rate)

    def _columns(self, values: tuple[Value, ...]) -> int:
        return _one("Dropout", values).cols

    def build(self, parameters: Sequence[Node], inputs: Sequence[Node], dropping: Dropping) -> tuple[Node, Node]:
        (x,) = inputs
        if dropping.key is not None and self.rate:
            x = nodes.dropout(x, self.rate, dropping.key, dropping.count)
        dropping.count += 1
        return x, x


@dataclass(eq=False)
class Embedding(Layer):
    """Row i of the result is row k of a table (rows, cols), with k the i-th number of an Input of dtype "int".

    Args:
        init: of the table, a name of ``fastbp.initialisation.INITS``; with the usual "normal" its variance is 1.
        name: of the table in ``Network.views``.
    """

    rows: int
    cols: int
    init: str = "normal"
    name: str | None = None

    def __post_init__(self) -> None:
        self.rows, self.cols = arrays.count("rows", self.rows), arrays.count("cols", self.cols)
        if self.init is None:
            raise unknown("init", None, initialisation.INITS)
        _check_init(self.init)
        _check_name(self.name)

    def _columns(self, values: tuple[Value, ...]) -> int:
        if not _one("Embedding", values).integer:
            raise InputError(f"Embedding: its argument must be an Input of dtype 'int', got {values[0]!r}")
        return self.cols

    def parameters(self) -> list[tuple[str, tuple[int, int]]]:
        return [("table", (self.rows, self.cols))]

    def initial(self, rng: np.random.Generator) -> Iterator[Array]:
        yield initialisation.layer(self.init, rng, self.rows, self.cols)[0]

    def build(self, parameters: Sequence[Node], inputs: Sequence[Node], dropping: Dropping) -> tuple[Node, Node]:
        rows = parameters[0].take(inputs[0])
        return rows, rows


@dataclass(eq=False)
class Activation(Layer):
    """f(X), elementwise, or the softmax of every row, by name."""

    activation: str

    def __post_init__(self) -> None:
        _check_activation(self.activation)

    def _columns(self, values: tuple[Value, ...]) -> int:
        return _one("Activation", values).cols

    def build(self, parameters: Sequence[Node], inputs: Sequence[Node], dropping: Dropping) -> tuple[Node, Node]:
        return activate(inputs[0], self.activation), inputs[0]


@dataclass(eq=False)
class Concat(Layer):
    """Values side by side; see :func:`concat`."""

    def _columns(self, values: tuple[Value, ...]) -> int:
        return sum(value.cols for value in values)

    def build(self, parameters: Sequence[Node], inputs: Sequence[Node], dropping: Dropping) -> tuple[Node, Node]:
        wide = nodes.concat(inputs)
        return wide, wide


def concat(values: Sequence[Value]) -> Value:
    """The values side by side: (n, c₀ + c₁ + …)."""
    if not isinstance(values, (list, tuple)) or not values:
        raise InputError(f"concat: values must be a list of values of layers, got {values!r}")
    return Concat()(*values)


@dataclass(eq=False)
class Arithmetic(Layer):
    """What an operator between values and numbers makes; ``left`` and ``right`` are operands that are numbers."""

    sign: str
    left: float | None = None
    right: float | None = None

    def __post_init__(self) -> None:
        if self.sign not in _SIGNS:
            raise unknown("sign", self.sign, _SIGNS)

    def _columns(self, values: tuple[Value, ...]) -> int:
        if len(values) != (self.left is None) + (self.right is None):
            raise InputError(f"{self.sign}: it takes two operands, numbers among them, got {len(values)} values")
        widths = {value.cols for value in values} - {1}
        if len(widths) > 1:
            a, b = (value.cols for value in values)
            raise InputError(f"{self.sign}: values must have the same width, or one of them width 1; got {a} and {b}")
        return widths.pop() if widths else 1

    def build(self, parameters: Sequence[Node], inputs: Sequence[Node], dropping: Dropping) -> tuple[Node, Node]:
        operands = iter(inputs)
        left, right = (next(operands) if number is None else number for number in (self.left, self.right))
        result = _SIGNS[self.sign](left, right)
        return result, result


def _arithmetic(sign: str, left: Any, right: Any) -> Value:
    numbers: list[float | None] = []
    for side in (left, right):
        number = isinstance(side, (int, float, np.integer, np.floating)) and not isinstance(side, bool)
        if not number and not isinstance(side, Value):
            raise InputError(f"{sign}: a value of a layer goes with values and numbers, got {side!r}")
        numbers.append(float(side) if number else None)
    return Arithmetic(sign, *numbers)(*(side for side in (left, right) if isinstance(side, Value)))


@dataclass(eq=False)
class Apply(Layer):
    """A function of nodes as a layer; see :func:`apply`."""

    function: str | Callable[..., Node]

    def __post_init__(self) -> None:
        known = [name for name, op in TABLE.items() if op.kind == "unary"]
        if isinstance(self.function, str) and self.function not in known:
            raise unknown("function", self.function, known)
        if not isinstance(self.function, str) and not callable(self.function):
            raise InputError(f"function must be a function of nodes or an operation's name, got {self.function!r}")

    def _columns(self, values: tuple[Value, ...]) -> int:
        if isinstance(self.function, str):
            _one("apply", values)
        if not values:
            raise InputError("apply: function needs at least one value")
        given = [
            nodes.input(f"value {k}", value.cols, dtype="int" if value.integer else "float")
            for k, value in enumerate(values)
        ]
        result = self._result(given)
        if (
            not isinstance(result, Node)
            or result.shape[0] != N
            or result.shape[1].per_row
            or (result.attrs.get("dtype") == "int")
        ):
            raise InputError(f"apply: function must give a node of shape (n, cols), got {result!r}")
        for leaf in ancestors([result]):
            if leaf.op in ("input", "param") and leaf not in given:
                raise InputError(f"apply: function may use its arguments and numbers alone, not {leaf!r}")
        return result.shape[1].fixed

    def _result(self, inputs: Sequence[Node]) -> Any:
        return getattr(inputs[0], self.function)() if isinstance(self.function, str) else self.function(*inputs)

    def build(self, parameters: Sequence[Node], inputs: Sequence[Node], dropping: Dropping) -> tuple[Node, Node]:
        result = cast(Node, self._result(inputs))
        return result, result

    def config(self) -> dict[str, Any]:
        if not isinstance(self.function, str):
            raise InputError(
                f"a network with apply({self.function!r}) cannot be saved, for a file cannot hold a function: "
                "use layers, operators, or the name of an operation"
            )
        return super().config()


def apply(function: str | Callable[..., Node], *values: Value) -> Value:
    """Any operation of :mod:`fastbp.graph` on values.

    Args:
        function: of as many nodes as there are values, (n, cols) each, to a node (n, d); or the name of an elementwise
            operation of one node, such as "square". A network with a function of your own cannot be saved.
    """
    return Apply(function)(*values)


# ---- graphs of layers ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """One call of a layer; ``inputs`` are numbers of earlier calls."""

    layer: Layer
    inputs: tuple[int, ...]
    cols: int


def calls(values: Sequence[Value]) -> tuple[list[Call], list[int]]:
    """All calls that the values are made of, in the order in which they were made, and the number of each value's."""
    found: dict[int, Value] = {}
    stack = list(values)
    while stack:
        value = stack.pop()
        if value.id not in found:
            found[value.id] = value
            stack.extend(value.inputs)
    number = {id_: k for k, id_ in enumerate(sorted(found))}
    listed = [Call(v.layer, tuple(number[i.id] for i in v.inputs), v.cols) for _, v in sorted(found.items())]
    return listed, [number[value.id] for value in values]


_CLASSES: dict[str, type[Layer]] = {
    kind.__name__.removeprefix("_"): kind
    for kind in (_Input, Dense, Dropout, Embedding, Activation, Concat, Arithmetic, Apply)
}


def to_config(listed: Sequence[Call]) -> dict[str, Any]:
    """Calls as what JSON can hold: every layer once, and which layer is called on which calls."""
    number: dict[int, int] = {}
    layers: list[dict[str, Any]] = []
    for call in listed:
        if id(call.layer) not in number:
            number[id(call.layer)] = len(layers)
            layers.append(call.layer.config())
    return {"layers": layers, "calls": [[number[id(call.layer)], *call.inputs] for call in listed]}


def from_config(config: dict[str, Any]) -> list[Value]:
    """The values of all calls that :func:`to_config` was given, of new layers."""
    made = []
    for settings in config["layers"]:
        if settings["class"] not in _CLASSES:
            raise unknown("class", settings["class"], _CLASSES)
        arguments = {name: value for name, value in settings.items() if name != "class"}
        made.append(_CLASSES[settings["class"]](**arguments))
    values: list[Value] = []
    for layer, *inputs in config["calls"]:
        if not all(0 <= i < len(values) for i in inputs):
            raise InputError(f"calls: {inputs} are not all calls before it")
        values.append(made[layer](*(values[i] for i in inputs)))
    return values


# ---- checks ----------------------------------------------------------------------------------------------------------


def activate(z: Node, name: str) -> Node:
    """The activation of that name applied to a node."""
    if name == "softmax":
        return z.softmax()
    forward = ACTIVATIONS[name].forward
    return cast(Node, getattr(z, forward)()) if forward else z


def _one(what: str, values: tuple[Value, ...]) -> Value:
    if len(values) != 1:
        raise InputError(f"{what}: it must be called on one value, got {len(values)}")
    return values[0]


def _check_activation(name: Any) -> None:
    if not isinstance(name, str) or name not in OUTPUTS:
        raise unknown("activation", name, OUTPUTS)


def _check_init(init: Any) -> None:
    if init is not None and (not isinstance(init, str) or init not in initialisation.INITS):
        raise unknown("init", init, initialisation.INITS)


def _check_name(name: Any) -> None:
    if name is not None and (not isinstance(name, str) or not name):
        raise InputError(f"name must be a non-empty string or None, got {name!r}")
