"""The dense layer's forward and backward on arrays: the kernels themselves."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from fastbp import arrays, backends, graph
from fastbp.arrays import Kind
from fastbp.backends import Machine
from fastbp.errors import InputError, unknown
from fastbp.nodes import Node
from fastbp.plan import plan
from fastbp.scalars import ACTIVATIONS

Array = npt.NDArray[Any]


def dense(
    X: Any, W: Any, b: Any = None, activation: str = "identity", *, save: bool = False, backend: str | None = None
) -> Any:
    """A = f(X W + b); with a bias, in one pass over every tile of the product.

    Args:
        X: (n, d); n may be 0.
        W: (d, k).
        b: (k,), or None for no bias.
        activation: a name of ``fastbp.scalars.ACTIVATIONS``.
        save: also return what :func:`dense_backward` needs.
        backend: None goes by the arrays: CuPy's on "cuda", else NumPy's, and lists, on the default.

    Returns:
        A (n, k), of X's dtype (float64 if that is no float32); with ``save`` a pair (A, saved): saved is A where f′ is
        a function of the output, Z = X W + b for gelu and silu.
    """
    _check_activation(activation)
    dtype = _dtype(X)
    kind, machine = arrays.switch({"X": X, "W": W, "b": b}, backend)
    w = _weights(W, dtype, kind)
    x = arrays.matrix("X", X, w.shape[0], dtype, kind)
    values = {"X": x, "W": w}
    if b is not None:
        values["b"] = _bias(b, w.shape[1], dtype, kind)
    keeps_input = save and ACTIVATIONS[activation].saves == "input"
    run = _forward(w.shape, b is not None, activation, keeps_input, machine, dtype)
    found = run.run(values, len(x))
    return (found["A"], found["Z"] if keeps_input else found["A"]) if save else found["A"]


def dense_backward(
    dA: Any, X: Any, W: Any, saved: Any, activation: str = "identity", *, backend: str | None = None
) -> tuple[Array, Array, Array]:
    """The gradients of :func:`dense`: dZ = dA ⊙ f′(saved); dX = dZ Wᵀ, dW = Xᵀ dZ, db = Σ rows of dZ.

    (Lecture notes write the forward as W a with column vectors; there dW is g aᵀ and what is passed down Wᵀ g, with
    the W from before the update.)

    Args:
        dA: dL/dA, (n, k).
        X, W: as in the forward, (n, d) and (d, k).
        saved: from ``dense(..., save=True)``, (n, k).

    Returns:
        dX (n, d), dW (d, k), db (k,).
    """
    _check_activation(activation)
    dtype = _dtype(X)
    needs_saved = bool(ACTIVATIONS[activation].derivative)
    kind, machine = arrays.switch({"dA": dA, "X": X, "W": W, "saved": saved if needs_saved else None}, backend)
    w = _weights(W, dtype, kind)
    x = arrays.matrix("X", X, w.shape[0], dtype, kind)
    values = {"X": x, "W": w, "dA": arrays.matrix("dA", dA, w.shape[1], dtype, kind)}
    arrays.same_rows("dA", values["dA"], len(x), "X")
    if needs_saved:
        values["saved"] = arrays.matrix("saved", saved, w.shape[1], dtype, kind)
        arrays.same_rows("saved", values["saved"], len(x), "X")
    run = _backward(w.shape, activation, machine, dtype)
    found = run.run(values, len(x))
    return found["dX"], found["dW"], found["db"][0]


def _check_activation(activation: str) -> None:
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise unknown("activation", activation, ACTIVATIONS)


def _dtype(X: Any) -> str:
    return "float32" if getattr(X, "dtype", None) == np.float32 else "float64"


def _weights(W: Any, dtype: str, kind: Kind) -> Array:
    w = arrays.matrix("W", W, None, dtype, kind)
    if 0 in w.shape:
        raise InputError(f"W must have at least one row and one column, got shape {w.shape}")
    return w


def _bias(b: Any, cols: int, dtype: str, kind: Kind) -> Array:
    array = arrays.asarray("b", b, f"({cols},) numbers", kind)
    if array.dtype.kind not in "biuf" or array.shape not in ((cols,), (1, cols)):
        raise InputError(f"b must be ({cols},) numbers, got shape {array.shape}, dtype {array.dtype}")
    return arrays.contiguous(array, dtype).reshape(1, cols)


@lru_cache(maxsize=256)
def _forward(
    shape: tuple[int, int], bias: bool, activation: str, keeps_input: bool, machine: Machine, dtype: str
) -> backends.Executable:
    z = graph.input("X", shape[0]) @ graph.param("W", shape)
    if bias:
        z = z + graph.param("b", (1, shape[1]))
    name = ACTIVATIONS[activation].forward
    a = cast(Node, getattr(z, name)()) if name else z
    return backends.executable(plan({"A": a, "Z": z} if keeps_input else {"A": a}), machine.backend, dtype)


@lru_cache(maxsize=256)
def _backward(shape: tuple[int, int], activation: str, machine: Machine, dtype: str) -> backends.Executable:
    x, w = graph.input("X", shape[0]), graph.param("W", shape)
    dz = graph.input("dA", shape[1])
    name = ACTIVATIONS[activation].derivative
    if name:
        dz = dz * getattr(graph.input("saved", shape[1]), name)()
    outputs = {"dX": dz.matmul(w, tb=True), "dW": x.matmul(dz, ta=True), "db": dz.sum(axis=0)}
    return backends.executable(plan(outputs), machine.backend, dtype)
