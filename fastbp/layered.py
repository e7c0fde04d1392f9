"""Networks: any graph of layers, a loss and one flat parameter vector."""

from __future__ import annotations

import functools
import json
import operator
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fastbp import arrays, backends, files, graph, layers, losses, optim, training
from fastbp.errors import InputError, unknown
from fastbp.history import History, Reporter
from fastbp.layers import Value
from fastbp.losses import Loss
from fastbp.nodes import Node, ancestors
from fastbp.ops import TABLE, Size
from fastbp.optim import Optimizer
from fastbp.plan import plan
from fastbp.program import Program
from fastbp.training import TrainingState

Array = npt.NDArray[Any]
FORMAT = 1  # of saved files


# ---- what comes in and what goes out ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ends:
    """The inputs or the outputs of a network, in the form in which they were given.

    Attributes:
        form: "one", "list" or "dict"; data comes and goes in the same.
        keys: names, or numbers where there is none.
        calls: numbers of the calls that make them.
    """

    form: str
    keys: tuple[str | int, ...]
    calls: tuple[int, ...]

    def label(self, name: str, k: int) -> str:
        """What errors and buffers call the k-th: X, X[1] or X['left']."""
        return name if self.form == "one" else f"{name}[{self.keys[k]!r}]"

    def labels(self, name: str) -> list[str]:
        return [self.label(name, k) for k in range(len(self.keys))]

    def separate(self, name: str, given: Any) -> list[Any]:
        """What was given for each, in order."""
        if self.form == "one":
            return [given]
        if isinstance(given, Mapping) and set(given) == set(self.keys):
            return [given[key] for key in self.keys]
        if isinstance(given, (list, tuple)) and len(given) == len(self.keys):
            return list(given)
        named = ", ".join(map(repr, self.keys))
        got = f"a dict of {list(given)}" if isinstance(given, Mapping) else f"a {type(given).__name__}"
        got += f" of {len(given)}" if isinstance(given, (list, tuple)) else ""
        raise InputError(f"{name} must be a list or tuple of {len(self.keys)}, or a dict of {named}; got {got}")

    def join(self, found: Sequence[Any]) -> Any:
        if self.form == "one":
            return found[0]
        return list(found) if self.form == "list" else dict(zip(self.keys, found, strict=True))


def _given(name: str, values: Any) -> tuple[str, list[Any], list[Value]]:
    """Form, names and values of the inputs or outputs."""
    if isinstance(values, Mapping):
        form, keys, listed = "dict", list(values), list(values.values())
        if not all(isinstance(key, str) and key for key in keys):
            raise InputError(f"{name} must have names as keys, got {keys}")
    elif isinstance(values, (list, tuple)):
        form, keys, listed = "list", list(range(len(values))), list(values)
    else:
        form, keys, listed = "one", [0], [values]
    for value in listed:
        if not isinstance(value, Value):
            raise InputError(f"{name} must be a value of a layer, or a list or dict of them; got {value!r}")
    if not listed:
        raise InputError(f"{name} must not be empty")
    return form, keys, listed


@dataclass(frozen=True)
class _Graph:
    """Nodes of a network: theta, its parts in order, and Z and A of every call."""

    theta: Node
    parts: list[Node]
    z: list[Node]
    a: list[Node]
    penalties: list[Node]


# ---- networks --------------------------------------------------------------------------------------------------------


class Network:
    """A network of layers (see :mod:`fastbp.layers`): any graph of them, several inputs, several outputs.

    Args:
        inputs: what ``layers.Input`` gave: one, or a list or dict of them. X is given in the same form later: an array
            for one; for a list or dict, a list or tuple in that order or a dict by name (of the dict's key, or the
            Input's; else its number).
        outputs: values of layers, one, or a list or dict; so are T, and what ``forward`` gives.
        loss: a name of ``fastbp.losses``: one for all outputs, or a list or dict. Losses on logits (bce,
            cross_entropy) need an output whose last layer applies the activation that goes with them.
        loss_weights: numbers that the outputs' losses are multiplied by before they are added up; None for 1 each.
        reduction, dtype, precision, backend, seed: as of :class:`MLP`. The network lives on the backend's side: on a
            GPU, theta and all that it takes and gives are CuPy arrays; only ``fit`` takes data from the host there.

    The loss that is minimised and reported is Σₖ weightₖ lossₖ + the layers' l1 Σ|w| + l2 Σw².

    Attributes:
        theta: all parameters, (P,): those of each layer, in the order in which the layers were first called; writing
            into it changes the network.
        training: optimiser state and history, None before the first ``fit``.
    """

    _kind: ClassVar[dict[str, str]] = {"kind": "Network"}  # what its files say besides

    def __init__(
        self,
        inputs: Any,
        outputs: Any,
        *,
        loss: Any = "mse",
        loss_weights: Any = None,
        reduction: str = "mean",
        dtype: Any = "float32",
        precision: str = "highest",
        backend: str | None = None,
        seed: int | None = None,
    ) -> None:
        self._connect(inputs, outputs)
        self._losses = self._check_losses(loss)
        self._loss_weights = self._check_loss_weights(loss_weights)
        self.reduction = losses.check_reduction(reduction)
        if len({one.averages(self.reduction) for one in self._losses}) > 1:
            raise InputError(
                f"loss={loss!r}: some of these are means over rows and some are sums, so that the loss of an epoch "
                "would be neither; take reduction='sum', or losses of one kind"
            )
        self._dtype = backends.resolve_dtype(dtype)
        self.precision = backends.resolve_precision(precision)
        self._backend = backends.resolve(backend)
        self.seed = arrays.count("seed", seed, 0) if seed is not None else int(np.random.default_rng().integers(2**31))
        self.training: TrainingState | None = None
        self._theta = self._initial()
        self._limits = self._row_limits()
        self._executables: dict[Any, backends.Executable] = {}

    def _connect(self, inputs: Any, outputs: Any) -> None:
        """Note the calls, and which of them are inputs and outputs."""
        form_in, keys_in, values_in = _given("inputs", inputs)
        form_out, keys_out, values_out = _given("outputs", outputs)
        self._calls, numbers = layers.calls([*values_out, *values_in])
        self._in = _Ends(form_in, _names(form_in, keys_in, values_in), tuple(numbers[len(values_out) :]))
        self._out = _Ends(form_out, tuple(keys_out), tuple(numbers[: len(values_out)]))
        used = {i for call in self._calls for i in call.inputs}
        for number, value in zip(self._in.calls, values_in, strict=True):
            if not layers.is_input(value.layer):
                raise InputError(f"inputs must be what layers.Input gave, got {value!r}")
            if number not in used:
                raise InputError(f"inputs: no output depends on {value!r}")
            if self._in.calls.count(number) > 1:
                raise InputError(f"inputs: {value!r} is there more than once")
        for number, call in enumerate(self._calls):
            if layers.is_input(call.layer) and number not in self._in.calls:
                raise InputError(f"inputs: outputs depend on {call.layer!r}, which is not among the inputs")
        self._parts = self._places()
        places = [name for parts in self._parts.values() for name, _, _ in parts]
        twice = [name for name, count in Counter(places).items() if count > 1]
        if twice:
            raise InputError(f"name: two layers have parameters called {twice[0]!r}")
        if not places:
            raise InputError("outputs depend on no layer with parameters: there is nothing to train")

    def _check_losses(self, loss: Any) -> list[Loss]:
        names = [loss] * len(self._out.keys) if isinstance(loss, str) else self._out.separate("loss", loss)
        found = []
        for name, number in zip(names, self._out.calls, strict=True):
            one, call = losses.get(name), self._calls[number]
            losses.check_units(one, call.cols)
            losses.check_output(one, getattr(call.layer, "activation", "identity"))
            found.append(one)
        return found

    def _check_loss_weights(self, weights: Any) -> list[float]:
        if weights is None:
            return [1.0] * len(self._out.keys)
        given = self._out.separate("loss_weights", weights)
        names = self._out.labels("loss_weights")
        return [arrays.positive(name, weight, zero=True) for name, weight in zip(names, given, strict=True)]

    def _initial(self) -> Array:
        rng = np.random.default_rng(self.seed)
        parts = [part.ravel() for layer in self._parts for part in layer.initial(rng)]
        return self.kind.moved(arrays.on_whole_lines(np.concatenate(parts).astype(self._dtype)))

    def _places(self) -> dict[layers.Layer, list[tuple[str, int, tuple[int, int]]]]:
        """Every layer once, in the order of the first calls: name, beginning in theta and shape of its parameters."""
        found: dict[layers.Layer, list[tuple[str, int, tuple[int, int]]]] = {}
        kinds: dict[str, int] = {}
        at = 0
        for layer in dict.fromkeys(call.layer for call in self._calls):
            kind = type(layer).__name__.lower()
            name = getattr(layer, "name", None) or f"{kind}{kinds.get(kind, 0)}"
            kinds[kind] = kinds.get(kind, 0) + 1
            found[layer] = []
            for part, (rows, cols) in layer.parameters():
                found[layer].append((f"{name}.{part}", at, (rows, cols)))
                at += rows * cols
        return found

    def _row_limits(self) -> dict[str, int]:
        """Of each input of row numbers: how many rows what it is used on has, the fewest of them."""
        found: dict[str, int] = {}
        if any(layers.is_integer(call.layer) for call in self._calls):
            g = self._forward_graph()
            for node in ancestors(g.a[number] for number in self._out.calls):
                position = TABLE[node.op].integer
                if position is not None:
                    name = node.inputs[position].name
                    found[name] = min(_rows_below(node), found.get(name, 2**63))
        return found

    # ---- parameters and settings ---------------------------------------------------------------------------------

    @property
    def theta(self) -> Array:
        """All parameters in one contiguous vector (P,)."""
        return self._theta

    @theta.setter
    def theta(self, value: Any) -> None:
        array = arrays.asarray("theta", value, f"{self._theta.shape} numbers", self.kind)
        if array.dtype.kind not in "biuf" or array.shape != self._theta.shape:
            raise InputError(f"theta must be {self._theta.shape} numbers, got shape {array.shape}, dtype {array.dtype}")
        self._theta[...] = array

    def views(self, vector: Array | None = None) -> dict[str, Array]:
        """All parameters by name, as views of theta, or of a vector laid out like it, such as a gradient.

        A Dense layer has "name.W" (d, units), for further values "name.W1", …, and "name.b" (units,), an Embedding
        "name.table"; layers without a name are dense0, dense1, …, embedding0, …
        """
        vector = self._theta if vector is None else self._check_vector(vector)
        return {
            name: vector[at : at + rows * cols].reshape((cols,) if name.endswith(".b") else (rows, cols))
            for parts in self._parts.values()
            for name, at, (rows, cols) in parts
        }

    def _check_vector(self, vector: Array) -> Array:
        self.kind.check("vector", vector)
        if not arrays.is_array(vector) or vector.shape != self._theta.shape:
            raise InputError(f"vector must have shape {self._theta.shape}, got {getattr(vector, 'shape', None)}")
        return vector

    @property
    def backend(self) -> str:
        return self._backend

    @property
    def kind(self) -> arrays.Kind:
        """Whose arrays the network works on."""
        return arrays.kind_for(self._backend)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self._dtype)

    @property
    def loss_name(self) -> str:
        return " + ".join(one.name for one in self._losses)

    @property
    def averages(self) -> bool:
        """Whether the loss of a batch is a mean over its rows."""
        return self._losses[0].averages(self.reduction)

    @property
    def history(self) -> History:
        """What training has seen so far."""
        return self.training.history if self.training else History()

    def __repr__(self) -> str:
        ends = [
            ", ".join(
                f"{label} (n, {self._calls[k].cols})" for label, k in zip(end.labels(name), end.calls, strict=True)
            )
            for end, name in ((self._in, "X"), (self._out, "A"))
        ]
        return (
            f"{type(self).__name__}({ends[0]} -> {ends[1]}, {len(self._theta)} parameters, loss={self.loss_name!r}, "
            f"dtype={self._dtype!r}, backend={self._backend!r}, seed={self.seed})"
        )

    # ---- graphs --------------------------------------------------------------------------------------------------

    def _forward_graph(self, key: Node | None = None) -> _Graph:
        """The network as nodes; ``key`` is what dropout draws from, None outside training."""
        theta = graph.param("theta", (1, len(self._theta)))
        dropping = layers.Dropping(key)
        parts: dict[layers.Layer, list[Node]] = {}
        z: list[Node] = []
        a: list[Node] = []
        for number, call in enumerate(self._calls):
            if layers.is_input(call.layer):
                label = self._in.label("X", self._in.calls.index(number))
                before = after = graph.input(
                    label, call.cols, dtype="int" if layers.is_integer(call.layer) else "float"
                )
            else:
                if call.layer not in parts:
                    parts[call.layer] = [graph.view(theta, at, *shape) for _, at, shape in self._parts[call.layer]]
                after, before = call.layer.build(parts[call.layer], [a[i] for i in call.inputs], dropping)
            z.append(before)
            a.append(after)
        penalties = [penalty for layer, own in parts.items() for penalty in layer.penalties(own)]
        return _Graph(theta, [part for own in parts.values() for part in own], z, a, penalties)

    def _loss_graph(self, batch: Sequence[str], g: _Graph) -> Node:
        """The loss as a node; ``batch`` names what comes in: "T" or "labels" of every output, and perhaps "weight"."""
        targets = []
        for k, number in enumerate(self._out.calls):
            units, labels = self._calls[number].cols, self._out.label("labels", k)
            if labels in batch:
                targets.append(graph.input(labels, 1, dtype="int").onehot(units))
            else:
                targets.append(graph.input(self._out.label("T", k), units))
        weight = graph.input("weight", 1) if "weight" in batch else None
        parts = []
        for number, loss, factor, target in zip(
            self._out.calls, self._losses, self._loss_weights, targets, strict=True
        ):
            prediction = g.z[number] if loss.logits else g.a[number]
            part = loss.total(prediction, target, weight, self.reduction)
            parts.append(part if factor == 1.0 else part * factor)
        return functools.reduce(operator.add, parts + g.penalties)

    def program(self, what: str, batch: Sequence[str] | None = None) -> Program:
        """The Program of "forward", "logits", "loss", "deltas" or "gradient", symbolic in the rows.

        Args:
            batch: the names of its inputs; None for "X" and "T" of every input and output. A loss has "T" or "labels",
                and perhaps "weight".
        """
        batch = batch or ("X", *self._out.labels("T"))
        g = self._forward_graph()
        if what == "forward":
            return plan({self._out.label("A", k): g.a[number] for k, number in enumerate(self._out.calls)})
        if what == "logits":
            return plan({self._out.label("Z", k): g.z[number] for k, number in enumerate(self._out.calls)})
        loss = self._loss_graph(batch, g)
        if what == "loss":
            return plan({"loss": loss})
        if what == "deltas":
            z = [g.z[number] for number in self._dense_calls()]
            return plan({f"dZ{k}": d for k, d in enumerate(graph.gradients(loss, z))})
        if what == "gradient":
            return plan({"loss": loss, "gradient": _packed_gradient(loss, g.parts)})
        raise unknown("what", what, ("forward", "logits", "loss", "deltas", "gradient"))

    def training_step(self, batch: Sequence[str], optimizer: Optimizer, gathered: bool) -> backends.Executable:
        """Forward, loss, backward and update as one Program, the rows gathered by "order" if asked.

        With dropout its input "dropout" is a row (seed, step) of float64 for each step.
        """
        key = ("step", tuple(batch), gathered, optimizer.rule, optimizer.clip_value, optimizer.clip_norm)
        if key not in self._executables:
            g = self._forward_graph(_dropout_key() if self._drops else None)
            loss = self._loss_graph(batch, g)
            program = plan({"loss": loss, "theta": optimizer.graph(g.theta, _packed_gradient(loss, g.parts))})
            if gathered:
                program = program.gathering([name for name in batch if name in program.inputs])
            self._executables[key] = backends.executable(program, self._backend, self._dtype, self.precision)
        return self._executables[key]

    @property
    def _drops(self) -> bool:
        return any(isinstance(call.layer, layers.Dropout) and call.layer.rate > 0.0 for call in self._calls)

    def _dense_calls(self) -> list[int]:
        return [number for number, call in enumerate(self._calls) if isinstance(call.layer, layers.Dense)]

    def operations_a_row(self) -> int:
        """Operations of the products of one training step, a row."""
        return 3 * sum(call.layer.operations_a_row() for call in self._calls)

    def _run(self, what: str, values: dict[str, Array]) -> dict[str, Array]:
        self.check_device()
        batch = tuple(values)
        key = (what, batch)
        if key not in self._executables:
            self._executables[key] = backends.executable(
                self.program(what, batch), self._backend, self._dtype, self.precision
            )
        return self._executables[key].run({**values, "theta": self._theta.reshape(1, -1)}, training.rows_of(values))

    def check_device(self) -> None:
        """Refuse to work on another GPU than the one that the network is on."""
        if self.kind is arrays.DEVICE:
            self.kind.check("theta of the network", self._theta)

    # ---- what users call -----------------------------------------------------------------------------------------

    def check_batch(
        self, X: Any, T: Any, sample_weight: Any = None, *, fitting: bool = False, prefix: str = ""
    ) -> dict[str, Array]:
        """The arrays of a batch, converted and checked: "X", "T" or "labels", and "weight" if given.

        Values on a GPU are read only for ``fit``, but for row numbers: reading waits for all that was asked before.

        Args:
            fitting: for ``fit``, which wants finite values, and takes data from the host for a network on a GPU; the
                batch is on the host then.
        """
        kind = self._kind_of_data(X, T, sample_weight, prefix) if fitting else self.kind
        reads = fitting or kind is arrays.HOST
        batch = self._check_inputs(X, kind, prefix)
        first, rows = f"{prefix}{self._in.label('X', 0)}", training.rows_of(batch)
        for k, target in enumerate(self._out.separate(f"{prefix}T", T)):
            batch |= self._check_target(k, target, rows, first, kind, reads, prefix)
        if fitting:
            for label in self._in.labels("X"):
                arrays.finite(f"{prefix}{label}", batch[label])
        if sample_weight is not None:
            check = arrays.weights if reads else arrays.weight_column
            batch["weight"] = check(f"{prefix}sample_weight", sample_weight, rows, self._dtype, kind)
        return batch

    def _kind_of_data(self, X: Any, T: Any, sample_weight: Any, prefix: str) -> arrays.Kind:
        """The kind of what ``fit`` was given; lists are on the host."""
        if self.kind is arrays.HOST:
            return self.kind
        named: list[tuple[str, Any]] = []
        for ends, name, given in ((self._in, f"{prefix}X", X), (self._out, f"{prefix}T", T)):
            named += zip(ends.labels(name), ends.separate(name, given), strict=True)
        return arrays.common_kind([*named, (f"{prefix}sample_weight", sample_weight)]) or arrays.HOST

    def _check_inputs(self, X: Any, kind: arrays.Kind, prefix: str = "") -> dict[str, Array]:
        found: dict[str, Array] = {}
        for k, value in enumerate(self._in.separate(f"{prefix}X", X)):
            call, label = self._calls[self._in.calls[k]], self._in.label("X", k)
            if layers.is_integer(call.layer):
                found[label] = _row_numbers(f"{prefix}{label}", value, self._limits.get(label, 2**63), kind)
            else:
                found[label] = arrays.matrix(f"{prefix}{label}", value, call.cols, self._dtype, kind)
            if k:
                first = self._in.label("X", 0)
                arrays.same_rows(f"{prefix}{label}", found[label], len(found[first]), f"{prefix}{first}")
        return found

    def _check_target(
        self, k: int, T: Any, rows: int, x_name: str, kind: arrays.Kind, reads: bool, prefix: str
    ) -> dict[str, Array]:
        """The k-th output's target, as numbers or as labels."""
        units, loss = self._calls[self._out.calls[k]].cols, self._losses[k]
        label = self._out.label("T", k)
        name = f"{prefix}{label}"
        target = arrays.asarray(name, T, f"(n, {units}) numbers or (n,) integer labels", kind)
        if target.dtype.kind in "biu" and units > 1 and (target.ndim == 1 or target.shape[1:] == (1,)):
            arrays.same_rows(name, target, rows, x_name)
            checked = arrays.labels(name, target, units) if reads else arrays.column(target)
            return {self._out.label("labels", k): checked}
        if target.ndim == 1 and units > 1:
            raise InputError(
                f"{name} must be (n, {units}) numbers or (n,) integer labels 0 … {units - 1}; "
                f"got shape {target.shape}, dtype {target.dtype}"
            )
        found = arrays.matrix(name, target, units, self._dtype, kind)
        arrays.same_rows(name, found, rows, x_name)
        if not reads:
            return {label: found}
        if loss.logits:
            arrays.in_unit_interval(name, found, f"targets of loss={loss.name!r}")
        else:
            arrays.finite(name, found)
        return {label: found}

    def _outputs(self, X: Any, what: str, letter: str) -> list[Array]:
        found = self._run(what, self._check_inputs(X, self.kind))
        return [found[self._out.label(letter, k)] for k in range(len(self._losses))]

    def forward(self, X: Any) -> Any:
        """The output A, (n, d), of each output: probabilities for bce and cross_entropy. n may be 0.

        Args:
            X: (n, d₀) numbers; several in the form of ``inputs``. NaN in a row gives NaN in its outputs.
        """
        return self._out.join(self._outputs(X, "forward", "A"))

    __call__ = forward

    def logits(self, X: Any) -> Any:
        """Z of the output, before its activation, (n, d)."""
        return self._out.join(self._outputs(X, "logits", "Z"))

    def loss(self, X: Any, T: Any, sample_weight: Any = None) -> Any:
        """The loss, penalties included, a scalar of the network's dtype.

        On a GPU it is an array of shape () that nothing has waited for; a label that is no class makes it NaN, and
        other targets and weights are taken as they are.

        Args:
            X: (n, d₀) numbers, n at least 1; several in the form of ``inputs``.
            T: (n, d) numbers; (n,) for one column; (n,) or (n, 1) integer labels for several. Several in the form of
                ``outputs``.
            sample_weight: (n,) weights of the rows, none negative.
        """
        return self._run("loss", self._nonempty(X, T, sample_weight))["loss"][0, 0]

    def loss_and_grad(self, X: Any, T: Any, sample_weight: Any = None) -> tuple[Any, Array]:
        """The loss and its gradient, (P,) laid out like ``theta``; see :meth:`loss`."""
        found = self._run("gradient", self._nonempty(X, T, sample_weight))
        return found["loss"][0, 0], found["gradient"].reshape(-1)

    def deltas(self, X: Any, T: Any, sample_weight: Any = None) -> list[Array]:
        """dC/dZ of every Dense call, in order, (n, units) each, with the loss's scaling: dC/dW = Xᵀ dC/dZ.

        X is what the layer is called on; a layer called twice has a delta for each, and dC/dW is the sum.
        """
        found = self._run("deltas", self._nonempty(X, T, sample_weight))
        return [found[f"dZ{k}"] for k in range(len(self._dense_calls()))]

    def _nonempty(self, X: Any, T: Any, sample_weight: Any) -> dict[str, Array]:
        batch = self.check_batch(X, T, sample_weight)
        if not training.rows_of(batch):
            raise InputError("X has no rows: the loss of nothing is not defined")
        return batch

    def predict(self, X: Any) -> Any:
        """Class numbers (n,) for cross_entropy; 0 or 1 (n, d) for bce; the outputs (n, d) otherwise, also for d = 1."""
        found = self._outputs(X, "forward", "A")
        return self._out.join([_predicted(a, loss) for a, loss in zip(found, self._losses, strict=True)])

    def score(self, X: Any, T: Any, sample_weight: Any = None) -> float:
        """Accuracy where T are classes (labels, rows of one 1, or any T of bce); R² otherwise.

        Of several outputs, the mean of their scores.
        """
        return self._score(self._nonempty(X, T, sample_weight))

    def _score(self, batch: dict[str, Array]) -> float:
        found = self._run("forward", {label: batch[label] for label in self._in.labels("X")})
        weight = batch["weight"][:, 0] if "weight" in batch else None
        scores = []
        for k, loss in enumerate(self._losses):
            labels, a = batch.get(self._out.label("labels", k)), found[self._out.label("A", k)]
            if labels is not None:
                scores.append(float(self.kind.xp.average(a.argmax(axis=1) == labels[:, 0], weights=weight)))
            else:
                scores.append(_score_of(a, batch[self._out.label("T", k)], loss, weight))
        return float(np.mean(scores))

    def evaluate(self, batch: dict[str, Array]) -> tuple[float, float]:
        """Loss and score of what :meth:`check_batch` gave."""
        return float(self._run("loss", batch)["loss"][0, 0]), self._score(batch)

    def fit(
        self,
        X: Any,
        T: Any,
        *,
        epochs: int = 10,
        batch_size: int | None = None,
        optimizer: str | Optimizer | None = None,
        shuffle: bool = True,
        sampling: str = "epoch",
        seed: int | None = None,
        validation: tuple[Any, ...] | float | None = None,
        sample_weight: Any = None,
        tol: float | None = None,
        patience: int | None = None,
        callbacks: Sequence[Callable[[Any, History], Any]] = (),
        progress: bool | Reporter = False,
    ) -> History:
        """Train in place. Data of any real dtype is converted to the network's once.

        Calling it again goes on where it stopped, with the optimiser's state and the next orders of the rows: two
        calls of 5 epochs give what one of 10 gives, to the last bit. Ctrl-C ends training within about 50 ms and
        keeps the parameters.

        Args:
            X, T, sample_weight: as in :meth:`loss`; all finite. With dropout, the history's loss is that of the steps,
                in which elements are dropped; validation drops none. A network on a GPU also takes NumPy arrays: they
                are moved there once, or where they do not fit in pieces, while the piece before is computed on.
            epochs: passes over the data.
            batch_size: rows a step, 1 to n; the last batch of an epoch may be shorter and counts with its own size.
                None: 32, or n if that is less.
            optimizer: a ``fastbp.optim`` optimiser or its name; None goes on with the last one, at first Adam.
            shuffle: a new random order every epoch; False takes the rows as they come.
            sampling: "epoch" uses every row once an epoch; "replacement" draws n rows at random.
            seed: of the orders; None the network's. Another seed starts its own sequence of orders.
            validation: (X, T), (X, T, sample_weight), or a fraction: that part of the rows, from the end, is held out.
            tol, patience: stop when ``patience`` (10) epochs in a row did not lower the best loss (on the validation
                data if there is any) by more than ``tol`` (1e-4); the best parameters are kept. Off if both are None.
            callbacks: functions of (net, history), called after every epoch; one that returns True ends training.
            progress: True draws a progress bar (extra "cli"), or a :class:`fastbp.Reporter`.

        Returns:
            The network's :class:`fastbp.history.History`, over all calls.

        Raises:
            InputError: an argument is wrong; nothing has changed.
            DivergedError: the loss is not finite any more; the parameters of the last good epoch are kept.
        """
        options = training.Options(epochs, batch_size, shuffle, sampling, validation, tol, patience, callbacks)
        return training.fit(
            self, X, T, options, optimizer=optimizer, seed=seed, sample_weight=sample_weight, progress=progress
        )

    # ---- keeping -------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in vars(self).items() if name != "_executables"}
        if self.kind is arrays.DEVICE:
            state["_theta"] = arrays.to_host(self._theta)
            state["training"] = self.training and self.training.on(arrays.HOST)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _executables={})
        if self.kind is arrays.DEVICE:
            backends.resolve(self._backend)  # says what is missing
        self._theta = self.kind.moved(arrays.on_whole_lines(self._theta))
        self.training = self.training and self.training.on(self.kind)

    def config(self) -> dict[str, Any]:
        """What makes a network like this one, JSON-able.

        Raises:
            InputError: it holds a function of your own (``layers.apply``).
        """
        return {
            **layers.to_config(self._calls),
            "inputs": self._in.join(self._in.calls),
            "outputs": self._out.join(self._out.calls),
            "loss": self._out.join([one.name for one in self._losses]),
            "loss_weights": self._out.join(self._loss_weights),
            "reduction": self.reduction,
            "dtype": self._dtype,
            "precision": self.precision,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], backend: str | None = None) -> Network:
        """A network from :meth:`config`, with parameters as they start."""
        values = layers.from_config(config)
        ends = {name: _mapped(config[name], values) for name in ("inputs", "outputs")}
        others = {name: value for name, value in config.items() if name not in ("layers", "calls", *ends)}
        return cls(**ends, **others, backend=backend)

    def save(self, path: str | os.PathLike[str], **extra: Array) -> None:
        """Write configuration, parameters, optimiser state and history to one ``.npz`` file, without pickle.

        The file is written beside its place and then renamed, so that no partial file is ever there. It is the same for
        a network on a GPU, and can be loaded on any backend.

        Args:
            extra: further arrays to keep under their names, which begin with "extra_" in the file.
        """
        content: dict[str, Any] = {f"extra_{name}": np.asarray(arrays.to_host(value)) for name, value in extra.items()}
        for name, value in extra.items():
            if content[f"extra_{name}"].dtype.hasobject:
                raise InputError(f"{name} must be an array of numbers or text, which needs no pickle; got {value!r}")
        settings: dict[str, Any] = {"format": FORMAT, "config": self.config(), "training": None}
        settings |= self._kind
        content["theta"] = arrays.to_host(self._theta)
        if self.training is not None:
            kept = self.training.on(arrays.HOST)
            settings["training"] = {
                "optimizer": optim.to_config(kept.optimizer),
                "step": kept.state.step,
                "seed": kept.seed,
                "epoch": kept.epoch,
                "history": kept.history.to_config(),
            }
            content |= {f"state{k}": v for k, v in enumerate(kept.state.vectors)}
        content["settings"] = np.array(json.dumps(settings))
        with files.replacing(path) as file:
            np.savez(file, **content)


# ---- the rest --------------------------------------------------------------------------------------------------------


def _row_numbers(name: str, value: Any, limit: int, kind: arrays.Kind) -> Array:
    numbers = arrays.asarray(name, value, "(n,) or (n, 1) integers", kind)
    if numbers.dtype.kind not in "iu" or numbers.ndim not in (1, 2) or numbers.shape[1:] not in ((), (1,)):
        raise InputError(f"{name} must be (n,) or (n, 1) integers; got shape {numbers.shape}, dtype {numbers.dtype}")
    return arrays.labels(name, numbers, limit, "row numbers")


def _rows_below(node: Node) -> int:
    """What the row numbers that an operation takes must lie below; kernels do not check it."""
    if node.op == "onehot":
        return int(node.attrs["classes"])
    rows: Size = node.inputs[0].shape[0] if node.op == "take" else node.attrs["rows"]
    if rows.per_row:
        raise InputError(f"apply: row numbers go with a matrix of fixed rows, not with one of a batch; got {node!r}")
    return rows.fixed


def _mapped(numbers: Any, values: Sequence[Value]) -> Any:
    """Values for numbers, in the form in which these come: one, a list or a dict."""
    if isinstance(numbers, dict):
        return {name: values[k] for name, k in numbers.items()}
    return [values[k] for k in numbers] if isinstance(numbers, list) else values[numbers]


def _names(form: str, keys: list[Any], values: list[Value]) -> tuple[str | int, ...]:
    """What inputs are called: by the key of their dict, else their own name, else a number."""
    if form == "list":
        keys = [getattr(value.layer, "name", None) or key for key, value in zip(keys, values, strict=True)]
    if len(set(keys)) < len(keys):
        raise InputError(f"inputs: two of them have the same name, of {keys}")
    return tuple(keys)


def _dropout_key() -> Node:
    """(seed, step), a row of float64 for each step, as the scalars of an update are."""
    return graph.input("dropout", 2, rows=1, dtype="double")


def _packed_gradient(loss: Node, parts: Sequence[Node]) -> Node:
    return graph.pack(graph.gradients(loss, parts))


def _predicted(outputs: Array, loss: Loss) -> Array:
    if loss.name == "cross_entropy":
        classes: Array = outputs.argmax(axis=1)
        return classes
    return (outputs >= 0.5).astype(np.int64) if loss.name == "bce" else outputs


def _score_of(outputs: Array, target: Array, loss: Loss, weight: Array | None) -> float:
    """Accuracy or R² of one output whose targets are numbers; see :meth:`Network.score`."""
    average = arrays.xp_of(outputs).average
    if loss.name == "bce" and target.shape[1] == 1:
        column = None if weight is None else weight[:, None]
        return float(average((outputs >= 0.5) == (target >= 0.5), weights=column))
    if target.shape[1] > 1 and ((target == 0) | (target == 1)).all() and (target.sum(axis=1) == 1).all():
        return float(average(outputs.argmax(axis=1) == target.argmax(axis=1), weights=weight))
    if loss.name == "bce":
        return float(average(((outputs >= 0.5) == (target >= 0.5)).mean(axis=1), weights=weight))
    return _r2(outputs.astype(np.float64), target.astype(np.float64), weight)


@np.errstate(over="ignore", invalid="ignore")  # a diverging network's score is infinite or NaN
def _r2(outputs: Array, target: Array, weight: Array | None) -> float:
    """1 - residual/total sum of squares, averaged over the outputs; a constant target counts 1 if it is hit, else 0."""
    xp = arrays.xp_of(outputs)
    mean = xp.average(target, axis=0, weights=weight)
    residual = xp.average((target - outputs) ** 2, axis=0, weights=weight)
    total = xp.average((target - mean) ** 2, axis=0, weights=weight)
    scores = xp.where(total > 0, 1.0 - residual / xp.where(total > 0, total, 1.0), (residual == 0).astype(float))
    return float(scores.mean())
