"""The multilayer perceptron: a chain of dense layers with one flat parameter vector."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from fastbp import arrays, backends, files, graph, initialisation, losses, optim, training
from fastbp.errors import DataError, InputError, unknown
from fastbp.history import History, Reporter
from fastbp.nodes import Node
from fastbp.optim import Optimizer, State
from fastbp.plan import plan
from fastbp.program import Program
from fastbp.scalars import ACTIVATIONS
from fastbp.training import TrainingState

Array = npt.NDArray[Any]
OUTPUTS = (*ACTIVATIONS, "softmax")
FORMAT = 1  # of saved files


# ---- the network -------------------------------------------------------------------------------------------------


class MLP:
    """A multilayer perceptron: A₀ = X, Zₗ = Aₗ₋₁ Wₗ + bₗ, Aₗ = f(Zₗ).

    Args:
        layers: widths from input to output, at least two.
        activation: of the hidden layers, one name or one a layer: identity, sigmoid, tanh, relu, leaky_relu (slope
            0.01), gelu (exact), silu, softplus.
        output: activation of the last layer, softmax among them; follows the loss if None (see ``fastbp.losses``).
        loss: half_sse, mse, sse, mae, huber, bce or cross_entropy, scaled as ``fastbp.losses`` says.
        reduction: "mean" or "sum" over the rows of a batch.
        init: "glorot", "he", "lecun", "normal" or "zeros", see ``fastbp.initialisation``. None chooses a layer's by
            its activation: he for relu, leaky_relu, gelu and silu, glorot otherwise.
        dtype: "float32" or "float64"; everything is computed in it.
        precision: "highest", or "bf16": leave to round the factors of large products (from 65,537 parameters on) to
            bfloat16, 8 bits of mantissa, and add up in float32; parameters, activations and updates stay float32. Taken
            by the cpu backend for float32 where the CPU has such products (``fastbp info`` says so), twice as fast.
        backend: "cpu" or "numpy"; None takes what :func:`fastbp.use_backend` set.
        seed: of the initialisation, and of the order of the rows in ``fit``; None draws one.

    Attributes:
        theta: all parameters, (P,): W₀, b₀, W₁, b₁, …; writing into it changes the network.
        weights, biases: views of theta, (fan_in, fan_out) and (fan_out,).
        training: optimiser state and history, None before the first ``fit``.

    Inputs of any real dtype are converted to ``dtype`` once a call; no scaling is done.
    """

    def __init__(
        self,
        layers: Sequence[int],
        *,
        activation: str | Sequence[str] = "relu",
        output: str | None = None,
        loss: str = "mse",
        reduction: str = "mean",
        init: str | None = None,
        dtype: Any = "float32",
        precision: str = "highest",
        backend: str | None = None,
        seed: int | None = None,
    ) -> None:
        self.layers = _check_layers(layers)
        self._loss = losses.get(loss)
        losses.check_units(self._loss, self.layers[-1])
        self.reduction = losses.check_reduction(reduction)
        self.activations = (*_check_activations(activation, len(self.layers) - 2), self._check_output(output))
        if init is not None and (not isinstance(init, str) or init not in initialisation.INITS):
            raise unknown("init", init, initialisation.INITS)
        self.init = init
        self._dtype = backends.resolve_dtype(dtype)
        self.precision = backends.resolve_precision(precision)
        self._backend = backends.resolve(backend)
        self.seed = arrays.count("seed", seed, 0) if seed is not None else int(np.random.default_rng().integers(2**31))
        self.training: TrainingState | None = None
        self._shapes = list(zip(self.layers[:-1], self.layers[1:], strict=True))
        self._theta = self._initial()
        self._executables: dict[Any, backends.Executable] = {}

    def _check_output(self, output: str | None) -> str:
        if output is None:
            return self._loss.output
        if output not in OUTPUTS:
            raise unknown("output", output, OUTPUTS)
        losses.check_output(self._loss, output)
        return output

    def _initial(self) -> Array:
        rng = np.random.default_rng(self.seed)
        parts = []
        for (fan_in, fan_out), activation in zip(self._shapes, self.activations, strict=True):
            w, b = initialisation.layer(self.init or initialisation.default(activation), rng, fan_in, fan_out)
            parts += [w.ravel(), b]
        return np.concatenate(parts).astype(self._dtype)

    # ---- parameters and settings ---------------------------------------------------------------------------------

    @property
    def theta(self) -> Array:
        """All parameters in one contiguous vector (P,)."""
        return self._theta

    @theta.setter
    def theta(self, value: Any) -> None:
        array = arrays.asarray("theta", value, f"{self._theta.shape} numbers")
        if array.dtype.kind not in "biuf" or array.shape != self._theta.shape:
            raise InputError(f"theta must be {self._theta.shape} numbers, got shape {array.shape}, dtype {array.dtype}")
        self._theta[...] = array

    def _offsets(self) -> list[tuple[int, int, int, int]]:
        """Of each layer: where its weights begin, where its bias does, fan_in, fan_out."""
        found, at = [], 0
        for fan_in, fan_out in self._shapes:
            found.append((at, at + fan_in * fan_out, fan_in, fan_out))
            at += (fan_in + 1) * fan_out
        return found

    def split(self, vector: Array) -> tuple[list[Array], list[Array]]:
        """Weights and biases as views of a vector laid out like theta, a gradient for one."""
        if not isinstance(vector, np.ndarray) or vector.shape != self._theta.shape:
            raise InputError(f"vector must have shape {self._theta.shape}, got {np.shape(vector)}")
        offsets = self._offsets()
        weights = [vector[w:b].reshape(rows, cols) for w, b, rows, cols in offsets]
        return weights, [vector[b : b + cols] for _, b, _, cols in offsets]

    @property
    def weights(self) -> list[Array]:
        return self.split(self._theta)[0]

    @property
    def biases(self) -> list[Array]:
        return self.split(self._theta)[1]

    @property
    def backend(self) -> str:
        return self._backend

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self._dtype)

    @property
    def loss_name(self) -> str:
        return self._loss.name

    @property
    def averages(self) -> bool:
        """Whether the loss of a batch is a mean over its rows."""
        return self._loss.averages(self.reduction)

    @property
    def history(self) -> History:
        """What training has seen so far."""
        return self.training.history if self.training else History()

    def __repr__(self) -> str:
        return (
            f"MLP({list(self.layers)}, activation={list(self.activations[:-1])}, output={self.activations[-1]!r}, "
            f"loss={self._loss.name!r}, dtype={self._dtype!r}, backend={self._backend!r}, seed={self.seed})"
        )

    # ---- graphs --------------------------------------------------------------------------------------------------

    def _forward_graph(self) -> tuple[Node, list[tuple[Node, Node]], list[Node], Node]:
        """theta, the views (W, b), the pre-activations Z and the output A as nodes."""
        theta = graph.param("theta", (1, len(self._theta)))
        a = graph.input("X", self.layers[0])
        views, logits = [], []
        for (w_at, b_at, fan_in, fan_out), name in zip(self._offsets(), self.activations, strict=True):
            w, b = graph.view(theta, w_at, fan_in, fan_out), graph.view(theta, b_at, 1, fan_out)
            z = a @ w + b
            views.append((w, b))
            logits.append(z)
            a = activate(z, name)
        return theta, views, logits, a

    def _loss_graph(self, batch: Sequence[str], logits: list[Node], a: Node) -> Node:
        """The loss as a node; ``batch`` names what comes in: "T" or "labels", and perhaps "weight"."""
        units = self.layers[-1]
        if "labels" in batch:
            target = graph.input("labels", 1, dtype="int").onehot(units)
        else:
            target = graph.input("T", units)
        weight = graph.input("weight", 1) if "weight" in batch else None
        return self._loss.total(logits[-1] if self._loss.logits else a, target, weight, self.reduction)

    def program(self, what: str, batch: Sequence[str] = ("X", "T")) -> Program:
        """The Program of "forward", "logits", "loss", "deltas" or "gradient", symbolic in the rows.

        Args:
            batch: the names of its inputs: "X", and with a loss "T" or "labels", and perhaps "weight".
        """
        _, views, logits, a = self._forward_graph()
        if what == "forward":
            return plan({"A": a})
        if what == "logits":
            return plan({"Z": logits[-1]})
        loss = self._loss_graph(batch, logits, a)
        if what == "loss":
            return plan({"loss": loss})
        if what == "deltas":
            return plan({f"dZ{k}": d for k, d in enumerate(graph.gradients(loss, logits))})
        if what == "gradient":
            return plan({"loss": loss, "gradient": _packed_gradient(loss, views)})
        raise unknown("what", what, ("forward", "logits", "loss", "deltas", "gradient"))

    def training_step(self, batch: Sequence[str], optimizer: Optimizer, gathered: bool) -> backends.Executable:
        """Forward, loss, backward and update as one Program, the rows gathered by "order" if asked."""
        key = ("step", tuple(batch), gathered, optimizer.rule, optimizer.clip_value, optimizer.clip_norm)
        if key not in self._executables:
            theta, views, logits, a = self._forward_graph()
            loss = self._loss_graph(batch, logits, a)
            program = plan({"loss": loss, "theta": optimizer.graph(theta, _packed_gradient(loss, views))})
            if gathered:
                program = program.gathering(list(batch))
            self._executables[key] = backends.executable(program, self._backend, self._dtype, self.precision)
        return self._executables[key]

    def operations_a_row(self) -> int:
        """Operations of the products of one training step, a row."""
        return 6 * sum(fan_in * fan_out for fan_in, fan_out in self._shapes)

    def _run(self, what: str, values: dict[str, Array]) -> dict[str, Array]:
        batch = tuple(values)
        key = (what, batch)
        if key not in self._executables:
            self._executables[key] = backends.executable(
                self.program(what, batch), self._backend, self._dtype, self.precision
            )
        return self._executables[key].run({**values, "theta": self._theta.reshape(1, -1)}, len(values["X"]))

    # ---- what users call -----------------------------------------------------------------------------------------

    def check_batch(
        self, X: Any, T: Any, sample_weight: Any = None, *, finite: bool = False, prefix: str = ""
    ) -> dict[str, Array]:
        """The arrays of a batch, converted and checked: "X", "T" or "labels", and "weight" if given."""
        x = arrays.matrix(f"{prefix}X", X, self.layers[0], self._dtype)
        units = self.layers[-1]
        target = T
        if not hasattr(T, "__cuda_array_interface__"):
            target = arrays.asarray(f"{prefix}T", T, f"(n, {units}) numbers or (n,) integer labels")
        batch = {"X": x}
        if target.dtype.kind in "biu" and units > 1 and (target.ndim == 1 or target.shape[1:] == (1,)):
            arrays.same_rows(f"{prefix}T", target, len(x), f"{prefix}X")
            batch["labels"] = arrays.labels(f"{prefix}T", target, units)
        else:
            if target.ndim == 1 and units > 1:
                raise InputError(
                    f"{prefix}T must be (n, {units}) numbers or (n,) integer labels 0 … {units - 1}; "
                    f"got shape {target.shape}, dtype {target.dtype}"
                )
            batch["T"] = arrays.matrix(f"{prefix}T", T, units, self._dtype)
            arrays.same_rows(f"{prefix}T", batch["T"], len(x), f"{prefix}X")
            arrays.finite(f"{prefix}T", batch["T"])
            self._check_probabilities(f"{prefix}T", batch["T"])
        if finite:
            arrays.finite(f"{prefix}X", x)
        if sample_weight is not None:
            batch["weight"] = arrays.weights(f"{prefix}sample_weight", sample_weight, len(x), self._dtype)
        return batch

    def _check_probabilities(self, name: str, target: Array) -> None:
        if self._loss.logits and target.size and (target.min() < 0.0 or target.max() > 1.0):
            raise InputError(
                f"{name}: targets of loss={self._loss.name!r} must lie in [0, 1], got {target.min()} … {target.max()}"
            )

    def forward(self, X: Any) -> Array:
        """The output A of the last layer, (n, d): probabilities for bce and cross_entropy. n may be 0.

        Args:
            X: (n, d₀) numbers. NaN in a row gives NaN in its outputs.
        """
        x = arrays.matrix("X", X, self.layers[0], self._dtype)
        return self._run("forward", {"X": x})["A"]

    __call__ = forward

    def logits(self, X: Any) -> Array:
        """Z of the last layer, before its activation, (n, d)."""
        x = arrays.matrix("X", X, self.layers[0], self._dtype)
        return self._run("logits", {"X": x})["Z"]

    def loss(self, X: Any, T: Any, sample_weight: Any = None) -> Any:
        """The loss, a scalar of the network's dtype.

        Args:
            X: (n, d₀) numbers, n at least 1.
            T: (n, d) numbers; (n,) for one output; (n,) or (n, 1) integer labels for several.
            sample_weight: (n,) weights of the rows, none negative.
        """
        return self._run("loss", self._nonempty(X, T, sample_weight))["loss"][0, 0]

    def loss_and_grad(self, X: Any, T: Any, sample_weight: Any = None) -> tuple[Any, Array]:
        """The loss and its gradient, (P,) laid out like ``theta``; arguments as in :meth:`loss`."""
        found = self._run("gradient", self._nonempty(X, T, sample_weight))
        return found["loss"][0, 0], found["gradient"].reshape(-1)

    def deltas(self, X: Any, T: Any, sample_weight: Any = None) -> list[Array]:
        """dC/dZ of every layer, (n, width) each, with the loss's scaling: dC/dWₗ = Aₗ₋₁ᵀ dC/dZₗ."""
        found = self._run("deltas", self._nonempty(X, T, sample_weight))
        return [found[f"dZ{k}"] for k in range(len(self._shapes))]

    def _nonempty(self, X: Any, T: Any, sample_weight: Any) -> dict[str, Array]:
        batch = self.check_batch(X, T, sample_weight)
        if not len(batch["X"]):
            raise InputError("X has no rows: the loss of nothing is not defined")
        return batch

    def predict(self, X: Any) -> Array:
        """Class numbers (n,) for cross_entropy; 0 or 1 (n, d) for bce; the outputs (n, d) otherwise, also for d = 1."""
        outputs = self.forward(X)
        if self._loss.name == "cross_entropy":
            classes: Array = outputs.argmax(axis=1)
            return classes
        return (outputs >= 0.5).astype(np.int64) if self._loss.name == "bce" else outputs

    def score(self, X: Any, T: Any, sample_weight: Any = None) -> float:
        """Accuracy where T are classes (labels, rows of one 1, or any T of bce); R² otherwise."""
        batch = self._nonempty(X, T, sample_weight)
        outputs = self._run("forward", {"X": batch["X"]})["A"]
        weight = batch["weight"][:, 0] if "weight" in batch else None
        if "labels" in batch:
            return float(np.average(outputs.argmax(axis=1) == batch["labels"][:, 0], weights=weight))
        target = batch["T"]
        if self._loss.name == "bce" and target.shape[1] == 1:
            return float(np.average((outputs >= 0.5) == (target >= 0.5), weights=batch.get("weight")))
        if target.shape[1] > 1 and ((target == 0) | (target == 1)).all() and (target.sum(axis=1) == 1).all():
            return float(np.average(outputs.argmax(axis=1) == target.argmax(axis=1), weights=weight))
        if self._loss.name == "bce":
            return float(np.average(((outputs >= 0.5) == (target >= 0.5)).mean(axis=1), weights=weight))
        return _r2(outputs.astype(np.float64), target.astype(np.float64), weight)

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
            X, T, sample_weight: as in :meth:`loss`; all finite.
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
        return training.fit(
            self,
            X,
            T,
            epochs=epochs,
            batch_size=batch_size,
            optimizer=optimizer,
            shuffle=shuffle,
            sampling=sampling,
            seed=seed,
            validation=validation,
            sample_weight=sample_weight,
            tol=tol,
            patience=patience,
            callbacks=callbacks,
            progress=progress,
        )

    # ---- keeping -------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_executables"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _executables={})

    def config(self) -> dict[str, Any]:
        """The arguments that make a network like this one, JSON-able."""
        return {
            "layers": list(self.layers),
            "activation": list(self.activations[:-1]),
            "output": self.activations[-1],
            "loss": self._loss.name,
            "reduction": self.reduction,
            "init": self.init,
            "dtype": self._dtype,
            "precision": self.precision,
            "seed": self.seed,
        }

    def save(self, path: str | os.PathLike[str], **extra: Array) -> None:
        """Write configuration, parameters, optimiser state and history to one ``.npz`` file, without pickle.

        The file is written beside its place and then renamed, so that no partial file is ever there.

        Args:
            extra: further arrays to keep under their names, which begin with "extra_" in the file.
        """
        content: dict[str, Any] = {f"extra_{name}": np.asarray(value) for name, value in extra.items()}
        for name, value in extra.items():
            if content[f"extra_{name}"].dtype.hasobject:
                raise InputError(f"{name} must be an array of numbers or text, which needs no pickle; got {value!r}")
        settings: dict[str, Any] = {"format": FORMAT, "config": self.config(), "training": None}
        content["theta"] = self._theta
        if self.training is not None:
            kept = self.training
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


def load(path: str | os.PathLike[str], *, backend: str | None = None) -> MLP:
    """The network that :meth:`MLP.save` wrote; training goes on from it as if it had not stopped.

    Raises:
        DataError: the file is not there, damaged, or not one of fastbp's.
    """
    backend = backends.resolve(backend)
    stored = _read(path)
    try:
        if "settings" not in stored:
            held = ", ".join(stored) or "nothing"
            raise DataError(f"{path} is not a network saved by fastbp, or it is damaged: it holds {held}")
        settings = json.loads(str(stored["settings"]))
        if settings["format"] != FORMAT:
            raise DataError(f"{path} has format {settings['format']}; this fastbp reads format {FORMAT}")
        net = MLP(**settings["config"], backend=backend)
        net.theta = stored["theta"]
        if settings["training"] is not None:
            net.training = _training(net, settings["training"], stored)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path} is not a network saved by fastbp, or it is damaged: {error}") from error
    return net


def _training(net: MLP, kept: dict[str, Any], stored: dict[str, Array]) -> TrainingState:
    optimizer = optim.from_config(kept["optimizer"])
    vectors = [stored[f"state{k}"] for k in range(sum(name.startswith("state") for name in stored))]
    state = State(kept["step"], vectors)
    optimizer.check_state(net.theta, state)
    seed, epoch = arrays.count("seed", kept["seed"], 0), arrays.count("epoch", kept["epoch"], 0)
    return TrainingState(optimizer, state, seed, epoch, History(**kept["history"]))


def extras(path: str | os.PathLike[str]) -> dict[str, Array]:
    """The further arrays that were saved with a network."""
    return {name[6:]: value for name, value in _read(path).items() if name.startswith("extra_")}


def _read(path: str | os.PathLike[str]) -> dict[str, Array]:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except Exception as error:
        raise DataError(f"{path} is not a network saved by fastbp, or it is damaged: {error}") from error


def activate(z: Node, name: str) -> Node:
    """The activation of that name applied to a node."""
    if name == "softmax":
        return z.softmax()
    forward = ACTIVATIONS[name].forward
    return cast(Node, getattr(z, forward)()) if forward else z


def _packed_gradient(loss: Node, views: list[tuple[Node, Node]]) -> Node:
    return graph.pack(graph.gradients(loss, [node for pair in views for node in pair]))


def _check_layers(layers: Sequence[int]) -> tuple[int, ...]:
    if isinstance(layers, (str, int)) or not isinstance(layers, Sequence) or len(layers) < 2:
        raise InputError(f"layers must be at least two widths, input and output, such as [784, 30, 10]; got {layers!r}")
    return tuple(arrays.count(f"layers[{k}]", width) for k, width in enumerate(layers))


def _check_activations(activation: str | Sequence[str], hidden: int) -> list[str]:
    if not isinstance(activation, (str, Sequence)):
        raise InputError(f"activation must be one name, or one for each hidden layer; got {activation!r}")
    names = [activation] * hidden if isinstance(activation, str) else list(activation)
    for name in [activation] if isinstance(activation, str) else names:
        if not isinstance(name, str) or name not in ACTIVATIONS:
            raise unknown("activation", name, ACTIVATIONS)
    if len(names) != hidden:
        raise InputError(f"activation has {len(names)} names for {hidden} hidden layers")
    return names


@np.errstate(over="ignore", invalid="ignore")  # a diverging network's score is infinite or NaN
def _r2(outputs: Array, target: Array, weight: Array | None) -> float:
    """1 - residual/total sum of squares, averaged over the outputs; a constant target counts 1 if it is hit, else 0."""
    mean = np.average(target, axis=0, weights=weight)
    residual = np.average((target - outputs) ** 2, axis=0, weights=weight)
    total = np.average((target - mean) ** 2, axis=0, weights=weight)
    scores = np.where(total > 0, 1.0 - residual / np.where(total > 0, total, 1.0), (residual == 0).astype(float))
    return float(scores.mean())
