"""The table of graph operations: shape rule, gradient rule and operation count, one row each.

Every value is a matrix: a scalar is (1, 1), a row (1, d), a column (n, 1). A dimension is a :class:`Size`, affine in
the number of rows n of the batch, so that a graph is built once for any n.

A gradient rule has one function an argument, ``(g, out, *inputs) -> node``: g is dL/dout, the result dL/dinput. It is
written with operations on nodes, so gradients are graphs again and can be differentiated. ``None`` in its place means
that the gradient is zero everywhere it exists; a rule that is missing raises when it is asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from fastbp import scalars
from fastbp.errors import GraphError


@dataclass(frozen=True)
class Size:
    """A dimension that is affine in the batch's rows: per_row * n + fixed."""

    per_row: int
    fixed: int

    def at(self, n: int) -> int:
        return self.per_row * n + self.fixed

    def __str__(self) -> str:
        if not self.per_row:
            return str(self.fixed)
        text = "n" if self.per_row == 1 else f"{self.per_row}n"
        return f"{text} + {self.fixed}" if self.fixed else text


ONE = Size(0, 1)
N = Size(1, 0)
Shape = tuple[Size, Size]
SCALAR: Shape = (ONE, ONE)


def fixed(rows: int, cols: int) -> Shape:
    """A shape that does not depend on n."""
    return (Size(0, rows), Size(0, cols))


def show(shape: Shape) -> str:
    """The shape as people write it: (n, 3)."""
    return f"({shape[0]}, {shape[1]})"


def columns(shape: Shape) -> int:
    """The number of columns as a number; only rows may depend on n where it is asked."""
    if shape[1].per_row:
        raise GraphError(f"a matrix of shape {show(shape)} has rows of the batch along its columns here")
    return shape[1].fixed


def broadcast(name: str, *shapes: Shape) -> Shape:
    """NumPy's rule on matrices, with n taken as different from 1."""
    result = []
    for axis in (0, 1):
        sizes = {s[axis] for s in shapes} - {ONE}
        if len(sizes) > 1:
            raise GraphError(f"{name}: shapes {' and '.join(map(show, shapes))} do not fit together")
        result.append(sizes.pop() if sizes else ONE)
    return (result[0], result[1])


Rule = Callable[..., Any] | None
MISSING: tuple[Rule, ...] = ()


@dataclass(frozen=True)
class Op:
    """One operation of the graph.

    Attributes:
        name: what ``Node.op`` says.
        shape: (attrs, *input shapes) -> output shape; raises GraphError if they do not fit.
        gradient: one rule an argument, see the module's text.
        kind: "leaf", "unary", "binary", "ternary" (elementwise, with broadcasting) or "special".
        variadic: any number of arguments with one rule for all, ``(g, out, position) -> node``.
        integer: position of the argument that has to be an int input, None where all are floats.
        doc: the equation.
    """

    name: str
    shape: Callable[..., Shape]
    gradient: tuple[Rule, ...] = MISSING
    kind: str = "special"
    variadic: bool = False
    integer: int | None = None
    doc: str = field(default="", compare=False)


TABLE: dict[str, Op] = {}


def _add(op: Op) -> None:
    TABLE[op.name] = op


def _unary(name: str, rule: Rule) -> None:
    doc = (scalars.UNARY[name].__doc__ or "").split("\n")[0]
    _add(Op(name, lambda attrs, x: x, (rule,), "unary", doc=doc))


def _binary(name: str, for_x: Rule, for_y: Rule) -> None:
    doc = (scalars.BINARY[name].__doc__ or "").split("\n")[0]
    _add(Op(name, lambda attrs, x, y: broadcast(name, x, y), (for_x, for_y), "binary", doc=doc))


ELEMENTWISE = ("unary", "binary", "ternary")


# ---- leaves --------------------------------------------------------------------------------------------------------


def _declared(attrs: Mapping[str, Any]) -> Shape:
    shape: Shape = attrs["shape"]
    return shape


_add(Op("input", _declared, kind="leaf"))
_add(Op("param", _declared, kind="leaf"))
_add(Op("const", lambda attrs: SCALAR, kind="leaf", doc="value / (rows x cols): a number, or a mean's factor"))


# ---- elementwise ---------------------------------------------------------------------------------------------------

_binary("add", lambda g, a, x, y: g, lambda g, a, x, y: g)
_binary("sub", lambda g, a, x, y: g, lambda g, a, x, y: -g)
_binary("mul", lambda g, a, x, y: g * y, lambda g, a, x, y: g * x)
_binary("div", lambda g, a, x, y: g / y, lambda g, a, x, y: -(g * a) / y)
_binary("maximum", lambda g, a, x, y: g * x.greater(y), lambda g, a, x, y: g * (1.0 - x.greater(y)))
_binary("minimum", lambda g, a, x, y: g * (1.0 - x.greater(y)), lambda g, a, x, y: g * x.greater(y))
_binary("greater", None, None)
_binary("greater_equal", None, None)
_binary("equal", None, None)
_binary("bce_logits", lambda g, a, z, t: g * (z.sigmoid() - t), lambda g, a, z, t: -(g * z))

_add(
    Op(
        "where",
        lambda attrs, c, x, y: broadcast("where", c, x, y),
        (None, lambda g, a, c, x, y: c.where(g, 0.0), lambda g, a, c, x, y: c.where(0.0, g)),
        "ternary",
        doc="x where c is not 0, else y",
    )
)

_add(
    Op(
        "dropout_mask",
        lambda attrs, key: attrs["shape"],
        (None,),
        doc="0 with probability rate, else 1/(1 - rate): random bits of (seed, step) = key, the mask and the element",
    )
)


def _power_for_x(g: Any, a: Any, x: Any, y: Any) -> Any:
    """Y x^(y - 1); 0 where y is 0, also at x = 0."""
    return g * (y * x.power(y - 1.0 + y.equal(0.0)))


def _power_for_y(g: Any, a: Any, x: Any, y: Any) -> Any:
    """x^y log x; its limit 0 at x = 0, where y >= 0."""
    return g * (a * (x + x.equal(0.0) * y.greater_equal(0.0)).log())


_binary("power", _power_for_x, _power_for_y)

_unary("copy", lambda g, a, x: g)
_add(Op("stop_gradient", lambda attrs, x: x, (None,), doc="x itself, a constant to differentiation"))
_unary("neg", lambda g, a, x: -g)
_unary("square", lambda g, a, x: g * (x * 2.0))
_unary("sqrt", lambda g, a, x: g * 0.5 / a)
_unary("exp", lambda g, a, x: g * a)
_unary("log", lambda g, a, x: g / x)
_unary("sin", lambda g, a, x: g * x.cos())
_unary("cos", lambda g, a, x: -(g * x.sin()))
_unary("erf", lambda g, a, x: g * ((-x.square()).exp() * scalars.ERF_SLOPE_AT_0))
_unary("abs", lambda g, a, x: g * x.sign())
_unary("sign", None)
_unary("step", None)
_unary("sigmoid", lambda g, a, z: g * a.sigmoid_grad())
_unary("tanh", lambda g, a, z: g * a.tanh_grad())
_unary("relu", lambda g, a, z: g * a.relu_grad())
_unary("leaky_relu", lambda g, a, z: g * a.leaky_relu_grad())
_unary("softplus", lambda g, a, z: g * a.softplus_grad())
_unary("silu", lambda g, a, z: g * z.silu_grad())
_unary("gelu", lambda g, a, z: g * z.gelu_grad())
_unary("huber", lambda g, a, d: g * d.huber_grad())

# The derivatives are operations too, so that the backward of a layer is one fused product; their own rules make
# second derivatives.
_unary("sigmoid_grad", lambda g, d, a: g * (1.0 - a * 2.0))
_unary("tanh_grad", lambda g, d, a: g * (a * -2.0))
_unary("relu_grad", None)
_unary("leaky_relu_grad", None)
_unary("softplus_grad", lambda g, d, a: g * (1.0 - d))
_unary("huber_grad", lambda g, d, x: g * (1.0 - (x.abs() - 1.0).step()))


def _silu_second(g: Any, d: Any, z: Any) -> Any:
    """S (1 - s) (2 + z (1 - 2 s)) with s = sigmoid(z)."""
    s = z.sigmoid()
    return g * (s.sigmoid_grad() * (z * (1.0 - s * 2.0) + 2.0))


def _gelu_second(g: Any, d: Any, z: Any) -> Any:
    """phi(z) (2 - z^2)."""
    density = (z.square() * -0.5).exp() * scalars.NORMAL_DENSITY_AT_0
    return g * (density * (2.0 - z.square()))


_unary("silu_grad", _silu_second)
_unary("gelu_grad", _gelu_second)


# ---- products, reductions and the rest -----------------------------------------------------------------------------


def _matmul_shape(attrs: Mapping[str, Any], a: Shape, b: Shape) -> Shape:
    m, k = a[::-1] if attrs["ta"] else a
    k2, n = b[::-1] if attrs["tb"] else b
    if k != k2:
        marks = ("ᵀ" if attrs["ta"] else "", "ᵀ" if attrs["tb"] else "")
        raise GraphError(f"matmul: {show(a)}{marks[0]} @ {show(b)}{marks[1]}: the inner sizes {k} and {k2} differ")
    return (m, n)


def _matmul_for_a(g: Any, c: Any, a: Any, b: Any) -> Any:
    """C = A B: dA = dC Bᵀ; C = Aᵀ B: dA = B dCᵀ, and so on."""
    ta, tb = c.attrs["ta"], c.attrs["tb"]
    return b.matmul(g, ta=tb, tb=True) if ta else g.matmul(b, tb=not tb)


def _matmul_for_b(g: Any, c: Any, a: Any, b: Any) -> Any:
    ta, tb = c.attrs["ta"], c.attrs["tb"]
    return g.matmul(a, ta=True, tb=ta) if tb else a.matmul(g, ta=not ta)


_add(Op("matmul", _matmul_shape, (_matmul_for_a, _matmul_for_b), doc="C = A B, either one transposed (ta, tb)"))


def _sum_shape(attrs: Mapping[str, Any], x: Shape) -> Shape:
    axis = attrs["axis"]
    return SCALAR if axis is None else (ONE, x[1]) if axis == 0 else (x[0], ONE)


def _max_rule(g: Any, m: Any, x: Any) -> Any:
    """Shared by the elements that are the largest, as in NumPy-like libraries."""
    largest = x.equal(m)
    return largest * (g / largest.sum(m.attrs["axis"]))


_add(Op("sum", _sum_shape, (lambda g, s, x: g.broadcast_to(x.shape),), doc="over rows (0), columns (1) or all (None)"))
_add(Op("max", _sum_shape, (_max_rule,), doc="the largest element of every column (0), every row (1) or of all (None)"))
_add(
    Op(
        "logsumexp",
        _sum_shape,
        (lambda g, s, x: g * (x - s).exp(),),
        doc="log sum exp(x), as max + log sum exp(x - max), over rows (0), columns (1) or all (None)",
    )
)


def _broadcast_shape(attrs: Mapping[str, Any], x: Shape) -> Shape:
    shape: Shape = attrs["shape"]
    if broadcast("broadcast_to", x, shape) != shape:
        raise GraphError(f"broadcast_to: {show(x)} does not broadcast to {show(shape)}")
    return shape


_add(Op("broadcast_to", _broadcast_shape, (lambda g, y, x: g.sum_to(x.shape),)))
_add(Op("transpose", lambda attrs, x: (x[1], x[0]), (lambda g, y, x: g.T,)))


def _rows_of(name: str) -> Callable[..., Shape]:
    def shape(attrs: Mapping[str, Any], x: Shape) -> Shape:
        columns(x)
        return x

    shape.__name__ = name
    return shape


_add(
    Op(
        "softmax",
        _rows_of("softmax"),
        (lambda g, y, z: y * (g - (g * y).sum(axis=1)),),
        doc="exp(z - max)/sum exp(z - max), a row at a time",
    )
)
_add(
    Op(
        "log_softmax",
        _rows_of("log_softmax"),
        (lambda g, y, z: g - y.exp() * g.sum(axis=1),),
        doc="z - max - log sum exp(z - max), a row at a time",
    )
)


def _onehot_shape(attrs: Mapping[str, Any], labels: Shape) -> Shape:
    if labels[1] != ONE:
        raise GraphError(f"onehot: labels must be a column, got {show(labels)}")
    return (labels[0], Size(0, attrs["classes"]))


_add(Op("onehot", _onehot_shape, (None,), integer=0, doc="row i has 1 in column label_i, 0 elsewhere"))


def _take_shape(attrs: Mapping[str, Any], table: Shape, index: Shape) -> Shape:
    if index[1] != ONE:
        raise GraphError(f"take: index must be a column, got {show(index)}")
    return (index[0], table[1])


def _scatter_add_shape(attrs: Mapping[str, Any], x: Shape, index: Shape) -> Shape:
    if index != (x[0], ONE):
        raise GraphError(f"scatter_add: index must be a column with a row for each of {show(x)}, got {show(index)}")
    return (attrs["rows"], x[1])


_add(
    Op(
        "take",
        _take_shape,
        (lambda g, y, table, index: g.scatter_add(index, table.shape[0]), None),
        integer=1,
        doc="row i is row index_i of the table",
    )
)
_add(
    Op(
        "scatter_add",
        _scatter_add_shape,
        (lambda g, y, x, index: g.take(index), None),
        integer=1,
        doc="row r is the sum of the rows i of x with index_i = r",
    )
)


def _view_shape(attrs: Mapping[str, Any], flat: Shape) -> Shape:
    rows, cols, offset = attrs["rows"], attrs["cols"], attrs["offset"]
    inside = min(rows, cols) >= 1 and offset >= 0 and offset + rows * cols <= columns(flat)
    if flat[0] != ONE or not inside:
        raise GraphError(f"view: ({rows}, {cols}) at {offset} does not lie in {show(flat)}")
    return fixed(rows, cols)


def _pack_shape(attrs: Mapping[str, Any], *parts: Shape) -> Shape:
    if not parts:
        raise GraphError("pack: there is nothing to pack")
    return fixed(1, sum(columns((p[1], p[0])) * columns(p) for p in parts))


def _place_shape(attrs: Mapping[str, Any], x: Shape) -> Shape:
    return fixed(1, attrs["size"])


def _view_rule(g: Any, y: Any, flat: Any) -> Any:
    return g.place(columns(flat.shape), y.attrs["offset"])


@lru_cache(maxsize=8)  # for all positions of one node, which come one after the other
def _ends(y: Any) -> tuple[int, ...]:
    """Where each part of a pack ends in it, or of matrices side by side: in elements, or columns."""
    rows = [columns(p.shape[::-1]) if y.op == "pack" else 1 for p in y.inputs]
    return tuple(itertools.accumulate(h * columns(p.shape) for h, p in zip(rows, y.inputs, strict=True)))


def _pack_rule(g: Any, y: Any, position: int) -> Any:
    start = _ends(y)[position - 1] if position else 0
    return g.view(start, *(s.fixed for s in y.inputs[position].shape))


_add(Op("view", _view_shape, (_view_rule,), doc="a matrix inside a flat (1, P) vector; costs nothing"))
_add(
    Op(
        "pack",
        _pack_shape,
        (_pack_rule,),
        variadic=True,
        doc="matrices side by side in one flat (1, P) vector; they are computed in their place",
    )
)
_add(
    Op(
        "place",
        _place_shape,
        (lambda g, y, x: g.view(y.attrs["offset"], *(s.fixed for s in x.shape)),),
        doc="a flat vector of zeros with a matrix at an offset: the gradient of a view",
    )
)


def _reshape_shape(attrs: Mapping[str, Any], x: Shape) -> Shape:
    shape: Shape = attrs["shape"]
    if area(shape) != area(x):
        raise GraphError(f"reshape: {show(x)} and {show(shape)} have different numbers of elements")
    return shape


def area(shape: Shape) -> tuple[int, int, int]:
    """The number of elements as a polynomial in n."""
    (a, b), (c, d) = ((s.per_row, s.fixed) for s in shape)
    return a * c, a * d + b * c, b * d


_add(
    Op(
        "reshape",
        _reshape_shape,
        (lambda g, y, x: g.reshape(x.shape),),
        doc="the same elements, row by row, in another shape; costs nothing",
    )
)


def _concat_shape(attrs: Mapping[str, Any], *parts: Shape) -> Shape:
    if not parts:
        raise GraphError("concat: there is nothing to join")
    if any(p[0] != parts[0][0] for p in parts):
        raise GraphError(f"concat: {', '.join(map(show, parts))} have not the same number of rows")
    return (parts[0][0], Size(0, sum(columns(p) for p in parts)))


def _concat_rule(g: Any, y: Any, position: int) -> Any:
    return g.columns(_ends(y)[position - 1] if position else 0, _ends(y)[position])


def _columns_shape(attrs: Mapping[str, Any], x: Shape) -> Shape:
    start, stop = attrs["start"], attrs["stop"]
    if not 0 <= start < stop <= columns(x):
        raise GraphError(f"columns: {start} to {stop} do not lie in {show(x)}")
    return (x[0], Size(0, stop - start))


def _pad_shape(attrs: Mapping[str, Any], x: Shape) -> Shape:
    return (x[0], Size(0, attrs["cols"]))


_add(Op("concat", _concat_shape, (_concat_rule,), variadic=True, doc="matrices side by side"))
_add(
    Op(
        "columns",
        _columns_shape,
        (lambda g, y, x: g.pad(y.attrs["start"], columns(x.shape)),),
        doc="columns start to stop, without stop",
    )
)
_add(
    Op(
        "pad",
        _pad_shape,
        (lambda g, y, x: g.columns(y.attrs["start"], y.attrs["start"] + columns(x.shape)),),
        doc="a matrix from column start on, zeros beside it: the gradient of columns",
    )
)
_add(
    Op(
        "update",
        lambda attrs, theta, *rest: theta,
        doc="an optimiser's rule, in place on theta and its states; runs after all that reads theta",
    )
)


# ---- cost ----------------------------------------------------------------------------------------------------------


class _Counter:
    """An emitter that counts: every operation is 1, a transcendental the length of its vector code."""

    dtype = "float32"

    def __init__(self) -> None:
        self.operations = 0

    def _count(self, operations: int) -> _Symbol:
        self.operations += operations
        return _Symbol(self)

    def exp(self, x: Any) -> _Symbol:
        return self._count(20)

    expm1 = tanh = log = log1p = exp

    def sin(self, x: Any) -> _Symbol:
        return self._count(40)

    cos = sin

    def power(self, x: Any, y: Any) -> _Symbol:
        return self._count(100)

    def sqrt(self, x: Any) -> _Symbol:
        return self._count(1)

    abs = sqrt

    def fma(self, x: Any, y: Any, z: Any) -> _Symbol:
        return self._count(2)

    def maximum(self, x: Any, y: Any) -> _Symbol:
        return self._count(1)

    minimum = maximum

    def where(self, condition: Any, x: Any, y: Any) -> _Symbol:
        return self._count(1)


class _Symbol:
    """A value whose every operator counts 1."""

    def __init__(self, counter: _Counter) -> None:
        self._counter = counter

    def _operator(self, *_: Any) -> _Symbol:
        return self._counter._count(1)

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _operator
    __neg__ = __lt__ = __le__ = __gt__ = __ge__ = _operator


def count_operations(formula: Callable[..., Any], arity: int) -> int:
    """Operations an element of a formula of ``arity`` values (see :mod:`fastbp.scalars`)."""
    counter = _Counter()
    formula(counter, *(_Symbol(counter) for _ in range(arity)))
    return counter.operations


def count_update_operations(rule: scalars.UpdateRule) -> int:
    """Operations a parameter of an update rule."""
    counter = _Counter()
    hyper = tuple(1.0 for _ in rule.hyper)  # what is done to these alone is done once
    rule.formula(counter, hyper, *(_Symbol(counter) for _ in range(2 + len(rule.states))))
    return counter.operations


OPERATIONS: dict[str, int] = {
    name: count_operations(formula, arity)
    for arity, table in enumerate((scalars.UNARY, scalars.BINARY, scalars.TERNARY), 1)
    for name, formula in table.items()
}
