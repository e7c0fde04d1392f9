"""The functions that people write losses and models with, on arrays and on tracers.

On tracers they write down (:mod:`fastbp.tracing`); on arrays and numbers they compute at once, as NumPy does. Shapes,
``axis`` and ``keepdims`` are NumPy's; traced values have at most two dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastbp import arrays, scalars, tracing
from fastbp.backends.array import ArrayEmitter
from fastbp.errors import InputError
from fastbp.tracing import is_traced


def _elementwise(name: str, x: Any) -> Any:
    """A formula of :mod:`fastbp.scalars`, on a tracer or an array."""
    if is_traced(x):
        return tracing.unary(name, x)
    value = _floats(name, x)
    xp = _xp(value)
    with np.errstate(all="ignore"):
        return xp.asarray(scalars.UNARY[name](ArrayEmitter(xp, value.dtype.name), value))[()]


def _xp(*values: Any) -> Any:
    """The namespace that computes on them: CuPy's if one of them is its array."""
    return next((arrays.xp_of(value) for value in values if arrays.kind_of(value) is arrays.DEVICE), np)


def _floats(name: str, x: Any) -> Any:
    """An array of float32 or float64: of float64 what is neither."""
    array = arrays.asarray(name, x, "an array of numbers", arrays.kind_of(x) or arrays.HOST)
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name} works on real numbers; got dtype {array.dtype}")
    return array if array.dtype == np.float32 else arrays.xp_of(array).asarray(array, np.float64)


def exp(x: Any) -> Any:
    """e^x."""
    return _elementwise("exp", x)


def log(x: Any) -> Any:
    """The natural logarithm."""
    return _elementwise("log", x)


def sqrt(x: Any) -> Any:
    """The square root; its derivative at 0 is infinite."""
    return _elementwise("sqrt", x)


def square(x: Any) -> Any:
    """x²."""
    return _elementwise("square", x)


def abs(x: Any) -> Any:
    """|x|; its derivative at 0 is taken as 0."""
    return _elementwise("abs", x)


def sign(x: Any) -> Any:
    """-1, 0 or 1; its derivative is 0."""
    return _elementwise("sign", x)


def sin(x: Any) -> Any:
    """The sine."""
    return _elementwise("sin", x)


def cos(x: Any) -> Any:
    """The cosine."""
    return _elementwise("cos", x)


def tanh(x: Any) -> Any:
    """The hyperbolic tangent."""
    return _elementwise("tanh", x)


def sigmoid(x: Any) -> Any:
    """1/(1 + e^-x)."""
    return _elementwise("sigmoid", x)


def relu(x: Any) -> Any:
    """max(x, 0); its derivative at 0 is taken as 0."""
    return _elementwise("relu", x)


def leaky_relu(x: Any) -> Any:
    """X, or x/100 below 0."""
    return _elementwise("leaky_relu", x)


def gelu(x: Any) -> Any:
    """X Φ(x), with the exact normal distribution function."""
    return _elementwise("gelu", x)


def silu(x: Any) -> Any:
    """X sigmoid(x)."""
    return _elementwise("silu", x)


def softplus(x: Any) -> Any:
    """log(1 + e^x)."""
    return _elementwise("softplus", x)


def erf(x: Any) -> Any:
    """The error function."""
    return _elementwise("erf", x)


def maximum(x: Any, y: Any) -> Any:
    """The larger of two values, elementwise; at ties the gradient is y's."""
    return tracing.binary("maximum", x, y) if is_traced(x, y) else _xp(x, y).maximum(x, y)


def minimum(x: Any, y: Any) -> Any:
    """The smaller of two values, elementwise; at ties the gradient is x's."""
    return tracing.binary("minimum", x, y) if is_traced(x, y) else _xp(x, y).minimum(x, y)


def power(x: Any, y: Any) -> Any:
    """x^y, elementwise; the same as ``x ** y``. Negative x need whole y, else NaN."""
    if is_traced(x, y):
        return tracing.power(x, y)
    with np.errstate(all="ignore"):
        return _xp(x, y).power(_floats("power", x), y)


def where(condition: Any, x: Any, y: Any) -> Any:
    """X where the condition is not 0, else y. Both are computed: where one is NaN it must not be what is divided by."""
    return (
        tracing.where(condition, x, y)
        if is_traced(condition, x, y)
        else _xp(condition, x, y).where(condition, x, y)[()]
    )


def clip(x: Any, low: Any = None, high: Any = None) -> Any:
    """X, limited to [low, high]; None for no limit. The gradient goes through from low to high, both included."""
    return tracing.clip(x, low, high) if is_traced(x, low, high) else _xp(x, low, high).clip(x, low, high)


def stop_gradient(x: Any) -> Any:
    """X itself, a constant to differentiation."""
    return tracing.stop_gradient(x) if is_traced(x) else x


def sum(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """The sum over an axis, or over everything."""
    return tracing.reduce("sum", x, axis, keepdims) if is_traced(x) else _xp(x).sum(x, axis=axis, keepdims=keepdims)


def mean(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """The mean over an axis, or over everything."""
    return tracing.reduce("mean", x, axis, keepdims) if is_traced(x) else _xp(x).mean(x, axis=axis, keepdims=keepdims)


def max(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """The largest element over an axis, or of all; elements that are equally large share the gradient."""
    return tracing.reduce("max", x, axis, keepdims) if is_traced(x) else _xp(x).max(x, axis=axis, keepdims=keepdims)


def min(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """The smallest element over an axis, or of all; see :func:`max`."""
    return tracing.reduce("min", x, axis, keepdims) if is_traced(x) else _xp(x).min(x, axis=axis, keepdims=keepdims)


def logsumexp(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """log Σ e^x over an axis, or over everything, without overflow."""
    if is_traced(x):
        return tracing.reduce("logsumexp", x, axis, keepdims)
    value = _floats("logsumexp", x)
    xp = _xp(value)
    with np.errstate(all="ignore"):
        largest = xp.max(value, axis=axis, keepdims=True)
        shift = xp.where(xp.isinf(largest), 0.0, largest).astype(value.dtype)
        total = xp.log(xp.sum(xp.exp(value - shift), axis=axis, keepdims=True)) + shift
    return total if keepdims else xp.squeeze(total, axis)[()]


def softmax(x: Any, axis: int = -1) -> Any:
    """e^x/Σ e^x along an axis."""
    if is_traced(x):
        return tracing.softmax(x, axis)
    found = log_softmax(x, axis)
    return _xp(found).exp(found)


def log_softmax(x: Any, axis: int = -1) -> Any:
    """X - log Σ e^x along an axis."""
    if is_traced(x):
        return tracing.softmax(x, axis, log=True)
    value = _floats("log_softmax", x)
    return value - logsumexp(value, axis, keepdims=True)


def matmul(a: Any, b: Any) -> Any:
    """The product of two matrices, a matrix and a vector, or two vectors; the same as ``a @ b``."""
    return tracing.matmul(a, b) if is_traced(a, b) else _xp(a, b).matmul(a, b)


def dot(a: Any, b: Any) -> Any:
    """:func:`matmul`, or a product with a scalar."""
    return tracing.dot(a, b) if is_traced(a, b) else _xp(a, b).dot(a, b)


def transpose(x: Any) -> Any:
    """Rows as columns; the same as ``x.T``."""
    return tracing.transpose(x) if is_traced(x) else _xp(x).transpose(x)


def reshape(x: Any, shape: Any) -> Any:
    """The same elements, row by row, in another shape; one size may be -1."""
    return tracing.reshape(x, shape) if is_traced(x) else _xp(x).reshape(x, shape)


def concatenate(parts: Sequence[Any], axis: int | None = 0) -> Any:
    """Vectors end to end; matrices below each other (axis 0) or side by side (axis 1 or -1)."""
    return tracing.concatenate(parts, axis) if is_traced(*parts) else _xp(*parts).concatenate(parts, axis=axis)


def take(x: Any, index: Any, axis: int = 0) -> Any:
    """Rows by number (an embedding), the same as ``x[index]``; columns with axis 1."""
    return tracing.take(x, index, axis) if is_traced(x, index) else _xp(x, index).take(x, index, axis=axis)


def onehot(labels: Any, classes: int) -> Any:
    """Labels 0 … classes - 1, (n,) or (n, 1) integers, as rows of zeros and ones (n, classes)."""
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 1:
        raise InputError(f"onehot: classes must be a positive integer, got {classes!r}")
    if is_traced(labels):
        return tracing.onehot(labels, classes)
    column = arrays.asarray("labels", labels, "an array of integers", arrays.kind_of(labels) or arrays.HOST)
    if column.dtype.kind not in "iu" or column.ndim == 0 or column.shape[1:] not in ((), (1,)):
        raise InputError(f"onehot: labels must be (n,) or (n, 1) integers, got {column.dtype} {column.shape}")
    return (arrays.labels("labels", column, classes) == _xp(column).arange(classes)).astype(np.float64)
