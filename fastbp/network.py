"""The multilayer perceptron, the network that is a chain; loading what networks saved."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fastbp import arrays, backends, losses, optim
from fastbp.errors import DataError, InputError, unknown
from fastbp.history import History
from fastbp.layered import FORMAT, Network
from fastbp.layers import OUTPUTS, Dense, Dropout, Input
from fastbp.losses import Loss
from fastbp.optim import State
from fastbp.scalars import ACTIVATIONS
from fastbp.training import TrainingState

Array = npt.NDArray[Any]


# ---- the multilayer perceptron ---------------------------------------------------------------------------------------


class MLP(Network):
    """A multilayer perceptron: A₀ = X, Zₗ = Aₗ₋₁ Wₗ + bₗ, Aₗ = f(Zₗ); with ``skip`` also + Aₛ Wₛₗ for every (s, l).

    Args:
        layers: widths from input to output, at least two.
        activation: of the hidden layers, one name or one a layer: identity, sigmoid, tanh, relu, leaky_relu (slope
            0.01), gelu (exact), silu, softplus.
        output: activation of the last layer, softmax among them; follows the loss if None (see ``fastbp.losses``).
        loss: half_sse, mse, sse, mae, huber, bce or cross_entropy, scaled as ``fastbp.losses`` says.
        reduction: "mean" or "sum" over the rows of a batch.
        init: "glorot", "he", "lecun", "normal" or "zeros", see ``fastbp.initialisation``. None chooses a layer's by
            its activation: he for relu, leaky_relu, gelu and silu, glorot otherwise.
        bias: False for layers without b.
        skip: pairs (s, l): layer l, from 1 on, also receives Aₛ through weights of its own, s < l - 1; 0 is the input
            (Rumelhart, Hinton and Williams 1986: connections may skip layers).
        dropout: in the steps of ``fit``, each element of every hidden layer's output is 0 with this probability and
            divided by 1 - dropout otherwise; ``forward``, ``loss`` and the rest drop nothing.
        l1, l2: l1 Σ|w| + l2 Σw² over all weights, not the biases, is added to the loss that is minimised and reported,
            neither halved nor divided by the rows.
        dtype: "float32" or "float64"; everything is computed in it.
        precision: "highest", or leave to round the factors of large products and add up in float32; parameters,
            activations and updates stay float32. "bf16" rounds to 8 bits of mantissa: taken by the cpu backend for
            float32 where the CPU has such products (``fastbp info`` says so; from 65,537 parameters on), twice as fast,
            and by cuda. "tf32" rounds to 11 bits: taken by cuda alone.
        backend: "cpu", "numpy", "cuda" or "cupy" (see :func:`fastbp.available_backends`); None takes what
            :func:`fastbp.use_backend` set. With the last two the network is on the current GPU.
        seed: of the initialisation, of the order of the rows in ``fit``, and of dropout; None draws one.

    Attributes:
        theta: all parameters, (P,): W₀, b₀, W₁, b₁, …; writing into it changes the network. Between a layer's W and b
            lie its skip weights, in order of source.
        weights, biases: views of theta, (fan_in, fan_out) and (fan_out,); no biases with ``bias=False``.
        skip_weights: {(s, l): view of theta, (width of s, width of l)}.
        training: optimiser state and history, None before the first ``fit``.

    Inputs of any real dtype are converted to ``dtype`` once a call; no scaling is done. They are NumPy arrays, on a GPU
    CuPy arrays, and so is all that comes back; lists go with either. Only ``fit`` takes NumPy arrays to a GPU.
    """

    _kind: ClassVar[dict[str, str]] = {}  # files said nothing when there was no other network

    def __init__(
        self,
        layers: Sequence[int],
        *,
        activation: str | Sequence[str] = "relu",
        output: str | None = None,
        loss: str = "mse",
        reduction: str = "mean",
        init: str | None = None,
        bias: bool = True,
        skip: Sequence[tuple[int, int]] = (),
        dropout: float = 0.0,
        l1: float = 0.0,
        l2: float = 0.0,
        dtype: Any = "float32",
        precision: str = "highest",
        backend: str | None = None,
        seed: int | None = None,
    ) -> None:
        self.layers = _check_layers(layers)
        self.activations = (
            *_check_activations(activation, len(self.layers) - 2),
            _check_output(output, losses.get(loss)),
        )
        self.init = init
        self.skip = _check_skip(skip, len(self.layers) - 1)
        self.dropout = arrays.fraction("dropout", dropout)
        x = Input(self.layers[0])
        a = [x]  # output of every layer, the input's first
        for layer, (units, name) in enumerate(zip(self.layers[1:], self.activations, strict=True), 1):
            sources = (a[s] for s, target in self.skip if target == layer)
            out = Dense(units, name, bias, init, l1, l2)(a[-1], *sources)
            a.append(Dropout(self.dropout)(out) if self.dropout and layer < len(self.layers) - 1 else out)
        self.bias, self.l1, self.l2 = bool(bias), float(l1), float(l2)  # Dense has checked them
        super().__init__(
            x, a[-1], loss=loss, reduction=reduction, dtype=dtype, precision=precision, backend=backend, seed=seed
        )

    def split(self, vector: Array) -> tuple[list[Array], list[Array]]:
        """Weights and biases as views of a vector laid out like theta, a gradient for one.

        Skip weights are in :meth:`views`: those of layer l from its first source on are "dense{l - 1}.W1", …
        """
        found = self.views(self._check_vector(vector))
        weights, biases = ([v for name, v in found.items() if name.endswith(end)] for end in (".W", ".b"))
        return weights, biases

    @property
    def weights(self) -> list[Array]:
        return self.split(self._theta)[0]

    @property
    def biases(self) -> list[Array]:
        return self.split(self._theta)[1]

    @property
    def skip_weights(self) -> dict[tuple[int, int], Array]:
        """Of every skip connection (s, l), (width of s, width of l)."""
        found = [v for name, v in self.views().items() if not name.endswith((".W", ".b"))]
        return dict(zip(self.skip, found, strict=True))

    def __repr__(self) -> str:
        more = "".join(f", {name}={value!r}" for name, value in self._beyond_a_chain().items())
        return (
            f"MLP({list(self.layers)}, activation={list(self.activations[:-1])}, output={self.activations[-1]!r}, "
            f"loss={self.loss_name!r}{more}, dtype={self._dtype!r}, backend={self._backend!r}, seed={self.seed})"
        )

    def _beyond_a_chain(self) -> dict[str, Any]:
        """The arguments that files and networks of before did not have, where they say something."""
        usual = {"bias": True, "skip": [], "dropout": 0.0, "l1": 0.0, "l2": 0.0}
        own = {name: getattr(self, name) for name in usual} | {"skip": [list(pair) for pair in self.skip]}
        return {name: value for name, value in own.items() if value != usual[name]}

    def config(self) -> dict[str, Any]:
        """The arguments that make a network like this one, JSON-able."""
        return {
            "layers": list(self.layers),
            "activation": list(self.activations[:-1]),
            "output": self.activations[-1],
            "loss": self.loss_name,
            "reduction": self.reduction,
            "init": self.init,
            "dtype": self._dtype,
            "precision": self.precision,
            "seed": self.seed,
            **self._beyond_a_chain(),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], backend: str | None = None) -> MLP:
        return cls(**config, backend=backend)


# ---- files -----------------------------------------------------------------------------------------------------------


def load(path: str | os.PathLike[str], *, backend: str | None = None) -> Any:
    """The :class:`MLP` or :class:`Network` that its ``save`` wrote; training goes on from it as if it had not stopped.

    Args:
        backend: where it is to live, on a GPU for one; None takes what :func:`fastbp.use_backend` set. The file says
            nothing of it.

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
        kind = Network if settings.get("kind") == "Network" else MLP
        net = kind.from_config(settings["config"], backend)
        net.theta = net.kind.moved(stored["theta"])
        if settings["training"] is not None:
            net.training = _training(net, settings["training"], stored)
    except (DataError, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"{path} is not a network saved by fastbp, or it is damaged: {error}") from error
    return net


def _training(net: Network, kept: dict[str, Any], stored: dict[str, Array]) -> TrainingState:
    optimizer = optim.from_config(kept["optimizer"])
    vectors = [net.kind.moved(stored[f"state{k}"]) for k in range(sum(name.startswith("state") for name in stored))]
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


# ---- checks ----------------------------------------------------------------------------------------------------------


def _check_output(output: str | None, loss: Loss) -> str:
    if output is None:
        return loss.output
    if output not in OUTPUTS:
        raise unknown("output", output, OUTPUTS)
    losses.check_output(loss, output)
    return output


def _check_skip(skip: Any, count: int) -> tuple[tuple[int, int], ...]:
    """Pairs (source, target) by target, then source."""
    needed = f"skip must be a list of pairs (source, target) of layers, 0 the input and {count} the last; got"
    if not isinstance(skip, (list, tuple)):
        raise InputError(f"{needed} {skip!r}")
    found = []
    for pair in skip:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise InputError(f"{needed} {pair!r} among them")
        source, target = arrays.count("skip: source", pair[0], 0), arrays.count("skip: target", pair[1])
        if target > count or source > target - 2:
            raise InputError(
                f"skip: ({source}, {target}) must lead over at least one layer, to one of 1 … {count}; "
                f"layer {target} receives layer {target - 1} anyway"
            )
        if (source, target) in found:
            raise InputError(f"skip: ({source}, {target}) is there more than once")
        found.append((source, target))
    return tuple(sorted(found, key=lambda pair: pair[::-1]))


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
