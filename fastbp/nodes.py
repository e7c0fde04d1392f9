"""Nodes of computational graphs of matrices, the operators on them, and ``build_grad`` (:func:`gradients`).

Nodes are cheap and immutable; nothing is computed until a graph is planned and run. :mod:`fastbp.graph` is the face of
this module.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Union, cast

from fastbp import ops
from fastbp.errors import GraphError, InputError
from fastbp.ops import ONE, SCALAR, TABLE, N, Shape, Size

_ids = itertools.count()
Operand = Union["Node", float, int]


class Node:
    """One value of a graph: an operation on earlier nodes.

    Attributes:
        id: counts up in order of creation, so inputs always have smaller ids than what is made of them.
        op: name of its row in ``ops.TABLE``.
        inputs: the nodes that it is made of.
        attrs: what the operation needs besides (axis, transposition, a constant's value).
        shape: (rows, columns), each a :class:`fastbp.ops.Size`.
    """

    __slots__ = ("attrs", "id", "inputs", "op", "shape")
    __array_ufunc__ = None  # NumPy scalars on the left leave the operator to us

    def __init__(self, op: str, inputs: Iterable[Node], attrs: Mapping[str, Any]) -> None:
        self.id = next(_ids)
        self.op = op
        self.inputs = tuple(inputs)
        self.attrs = dict(attrs)
        self.shape: Shape = TABLE[op].shape(self.attrs, *(i.shape for i in self.inputs))
        integer = TABLE[op].integer
        for position, i in enumerate(self.inputs):
            if (i.attrs.get("dtype") == "int") != (position == integer):
                needed = "an int input" if position == integer else "floats"
                raise GraphError(f"{op}: {i!r} is not what its argument {position} has to be, which is {needed}")
            if i.attrs.get("dtype") == "double" and op not in ("dropout_mask", "update"):
                raise GraphError(f"{op}: {i!r} is of dtype 'double', which serves as a key of dropout only")
            if i.op == "update":
                raise GraphError(f"{op}: {i!r} is an update, which comes after everything else: nothing can read it")

    @property
    def name(self) -> str:
        """The name of an input or parameter; the operation's name and id otherwise."""
        return str(self.attrs.get("name", f"{self.op}{self.id}"))

    def __repr__(self) -> str:
        return f"<{self.name} {ops.show(self.shape)}>"

    def __bool__(self) -> bool:
        raise GraphError(f"{self!r} has no value yet: a graph cannot branch on it; use where-like operations")

    def __add__(self, other: Operand) -> Node:
        return _binary("add", self, other)

    __radd__ = __add__

    def __sub__(self, other: Operand) -> Node:
        return _binary("sub", self, other)

    def __rsub__(self, other: Operand) -> Node:
        return _binary("sub", other, self)

    def __mul__(self, other: Operand) -> Node:
        return _multiply(self, _node(other))

    __rmul__ = __mul__

    def __truediv__(self, other: Operand) -> Node:
        return _binary("div", self, other)

    def __rtruediv__(self, other: Operand) -> Node:
        return _binary("div", other, self)

    def __neg__(self) -> Node:
        return Node("neg", (self,), {})

    def __pow__(self, exponent: Operand) -> Node:
        return _power(self, exponent)

    def __rpow__(self, base: Operand) -> Node:
        return _binary("power", base, self)

    def __gt__(self, other: Operand) -> Node:
        return _binary("greater", self, other)

    def __ge__(self, other: Operand) -> Node:
        return _binary("greater_equal", self, other)

    def __lt__(self, other: Operand) -> Node:
        return _binary("greater", other, self)

    def __le__(self, other: Operand) -> Node:
        return _binary("greater_equal", other, self)

    def __matmul__(self, other: Node) -> Node:
        return self.matmul(other)

    def matmul(self, other: Node, *, ta: bool = False, tb: bool = False) -> Node:
        """The product, this node transposed if ta, the other if tb."""
        if not isinstance(other, Node):
            raise InputError(f"matmul: other must be a node, got {type(other).__name__}")
        return Node("matmul", (self, other), {"ta": ta, "tb": tb})

    def maximum(self, other: Operand) -> Node:
        return _binary("maximum", self, other)

    def minimum(self, other: Operand) -> Node:
        return _binary("minimum", self, other)

    def clip(self, low: Operand, high: Operand) -> Node:
        """Limited to [low, high]; the gradient goes through from low to high, both included."""
        return _binary("maximum", low, self).minimum(high)  # of equal values the second has the gradient, see ops

    def where(self, x: Operand, y: Operand) -> Node:
        """X where this node is not 0, else y."""
        operands = (self, _node(x), _node(y))
        return Node("where", operands, {})

    def stop_gradient(self) -> Node:
        """The same value, taken as a constant by :func:`gradients`."""
        return Node("stop_gradient", (self,), {})

    def sum(self, axis: int | None = None) -> Node:
        """The sum over rows (axis 0: (1, d)), columns (axis 1: (n, 1)) or everything ((1, 1))."""
        return self._reduced("sum", axis)

    def max(self, axis: int | None = None) -> Node:
        """The largest element of every column (axis 0: (1, d)), every row (axis 1: (n, 1)) or of all ((1, 1))."""
        return self._reduced("max", axis)

    def min(self, axis: int | None = None) -> Node:
        """The smallest element; see :meth:`max`."""
        return -(-self).max(axis)

    def logsumexp(self, axis: int | None = None) -> Node:
        """Log Σ exp over rows (0), columns (1) or everything, without overflow."""
        return self._reduced("logsumexp", axis)

    def _reduced(self, op: str, axis: int | None) -> Node:
        if axis not in (None, 0, 1) or isinstance(axis, bool):
            raise InputError(f"{op}: axis={axis!r} must be None, 0 (rows) or 1 (columns)")
        return Node(op, (self,), {"axis": axis})

    def mean(self, axis: int | None = None) -> Node:
        """The mean over rows (0), columns (1) or everything."""
        rows, cols = self.shape
        counted = (ONE if axis == 1 else rows, ONE if axis == 0 else cols)
        return self.sum(axis) * constant(1.0, per=counted)

    def softmax(self) -> Node:
        """Softmax of every row."""
        return Node("softmax", (self,), {})

    def log_softmax(self) -> Node:
        """Logarithm of the softmax of every row."""
        return Node("log_softmax", (self,), {})

    def bce_logits(self, target: Node) -> Node:
        """Binary cross entropy of logits with targets in [0, 1], elementwise."""
        return _binary("bce_logits", self, target)

    def power(self, exponent: Operand) -> Node:
        """The value to the power of the exponent, elementwise, in all cases as C's pow."""
        return _binary("power", self, exponent)

    def greater(self, other: Operand) -> Node:
        """1 where this value > the other, else 0; NaN where either is."""
        return _binary("greater", self, other)

    def greater_equal(self, other: Operand) -> Node:
        """1 where this value >= the other, else 0; NaN where either is."""
        return _binary("greater_equal", self, other)

    def equal(self, other: Operand) -> Node:
        """1 where this value = the other, else 0; NaN where either is."""
        return _binary("equal", self, other)

    def onehot(self, classes: int) -> Node:
        """A column of labels 0 … classes - 1 as rows of 0 and 1."""
        return Node("onehot", (self,), {"classes": classes})

    @property
    def T(self) -> Node:
        """The transpose."""
        return Node("transpose", (self,), {})

    def take(self, index: Node) -> Node:
        """Rows by number: row i is row ``index_i`` of this matrix (an embedding). Index: an (n, 1) int input."""
        return Node("take", (self, index), {})

    def scatter_add(self, index: Node, rows: Size | int) -> Node:
        """A matrix of ``rows`` rows; row r is the sum of this matrix's rows i with ``index_i`` = r, in order."""
        return Node("scatter_add", (self, index), {"rows": Size(0, rows) if isinstance(rows, int) else rows})

    def reshape(self, shape: Shape | tuple[int, int]) -> Node:
        """The same elements, row by row, in another shape; costs nothing."""
        size = (_size(shape[0]), _size(shape[1]))
        if size == self.shape:
            return self
        return Node("reshape", (self,), {"shape": size})

    def columns(self, start: int, stop: int) -> Node:
        """Columns start to stop, without stop."""
        return Node("columns", (self,), {"start": start, "stop": stop})

    def pad(self, start: int, cols: int) -> Node:
        """A matrix of ``cols`` columns, this one from column ``start`` on, zeros beside it."""
        if not 0 <= start <= cols - ops.columns(self.shape):
            raise InputError(f"pad: {self!r} from column {start} on does not fit into {cols} columns")
        return Node("pad", (self,), {"start": start, "cols": cols})

    def view(self, offset: int, rows: int, cols: int) -> Node:
        """The (rows, cols) matrix that begins at element ``offset`` of this flat (1, P) vector; see :func:`view`."""
        return view(self, offset, rows, cols)

    def place(self, size: int, offset: int) -> Node:
        """A flat vector of ``size`` zeros with this matrix's elements from ``offset`` on."""
        return Node("place", (self,), {"size": size, "offset": offset})

    def broadcast_to(self, shape: Shape) -> Node:
        return self if self.shape == shape else Node("broadcast_to", (self,), {"shape": shape})

    def sum_to(self, shape: Shape) -> Node:
        """The sum over the axes along which a value of ``shape`` was broadcast to this one's shape."""
        node = self
        over = [axis for axis in (0, 1) if node.shape[axis] != shape[axis]]
        if len(over) == 2:
            return node.sum()
        for axis in over:
            node = node.sum(axis)
        return node

    if TYPE_CHECKING:  # the elementwise functions of one value: square, exp, sigmoid, … (set below from the table)

        def __getattr__(self, name: str) -> Callable[[], Node]: ...


def _method(name: str) -> Callable[[Node], Node]:
    def method(self: Node) -> Node:
        return Node(name, (self,), {})

    method.__name__ = name
    method.__doc__ = TABLE[name].doc or name
    return method


for _op in TABLE.values():
    if _op.kind == "unary":
        setattr(Node, _op.name, _method(_op.name))


def constant(value: float, per: Shape | None = None) -> Node:
    """A number, divided by rows x columns of ``per`` if given: the factor of a mean."""
    if isinstance(value, str):
        raise InputError(f"constant: value must be a number, got {value!r}")
    return Node("const", (), {"value": float(value), "per": per})


def _node(value: Operand) -> Node:
    if isinstance(value, Node):
        return value
    if isinstance(value, (int, float)) or getattr(value, "shape", None) == ():
        return constant(float(value))
    raise InputError(f"a graph works on nodes and numbers, got {type(value).__name__}; use graph.input or graph.param")


def _binary(op: str, x: Operand, y: Operand) -> Node:
    return Node(op, (_node(x), _node(y)), {})


def _power(x: Node, exponent: Operand) -> Node:
    """x ** exponent, with small whole numbers and halves multiplied out, which is exact or nearly so."""
    if isinstance(exponent, Node) or float(exponent) not in (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0, 3.0, 4.0):
        return _binary("power", x, exponent)
    match float(exponent):
        case 1.0:
            return x
        case 2.0:
            return Node("square", (x,), {})
        case 3.0:
            return Node("square", (x,), {}) * x
        case 4.0:
            return Node("square", (_power(x, 2.0),), {})
        case 0.5:
            return Node("sqrt", (x,), {})
        case negative:
            return 1.0 / _power(x, -negative)


def _size(value: Size | int) -> Size:
    return value if isinstance(value, Size) else Size(0, value)


def concat(parts: Sequence[Node]) -> Node:
    """Matrices with the same rows side by side."""
    return parts[0] if len(parts) == 1 else Node("concat", tuple(parts), {})


def _multiply(x: Node, y: Node) -> Node:
    """X y; 1 x is x."""
    shape = ops.broadcast("mul", x.shape, y.shape)
    for factor, other in ((x, y), (y, x)):
        if (
            factor.op == "const"
            and factor.attrs["value"] == 1.0
            and factor.attrs["per"] is None
            and other.shape == shape
        ):
            return other
    return Node("mul", (x, y), {})


def _leaf(kind: str, name: str, shape: Shape, dtype: str) -> Node:
    if not isinstance(name, str) or not name:
        raise InputError(f"graph.{kind}: name must be a non-empty string, got {name!r}")
    return Node(kind, (), {"name": name, "shape": shape, "dtype": dtype})


def _length(kind: str, what: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"graph.{kind}: {what} must be a positive integer, got {value!r}")
    return value


def input(name: str, cols: int, *, rows: int | None = None, dtype: str = "float") -> Node:
    """A matrix that comes in with every call: (n, cols), or (rows, cols) if rows is given.

    Args:
        dtype: "float" for the Program's own dtype, "int" for int64 (labels, row numbers), "double" for float64 whatever
            the Program's (the key of :func:`dropout`).
    """
    if dtype not in ("float", "int", "double"):
        raise InputError(f"graph.input: dtype must be 'float', 'int' or 'double', got {dtype!r}")
    size = N if rows is None else Size(0, _length("input", "rows", rows))
    return _leaf("input", name, (size, Size(0, _length("input", "cols", cols))), dtype)


def param(name: str, shape: tuple[int, int]) -> Node:
    """A parameter matrix of a fixed shape (rows, columns)."""
    if not isinstance(shape, tuple) or len(shape) != 2:
        raise InputError(f"graph.param: shape must be a pair of integers, got {shape!r}")
    return _leaf("param", name, ops.fixed(*(_length("param", "shape", s) for s in shape)), "float")


def dropout(x: Node, rate: float, key: Node, number: int = 0) -> Node:
    """X with a part ``rate`` of its elements set to 0, the others times 1/(1 - rate) (Srivastava et al. 2014).

    Args:
        key: a (1, 2) input of dtype "double": seed and step, whole numbers below 2³². The mask depends on them, on
            ``number`` and on the element's place in x alone, so it is the same on every machine.
        number: sets several dropouts of one network apart.
    """
    if not 0.0 <= rate < 1.0:
        raise InputError(f"dropout: rate must lie in [0, 1), got {rate!r}")
    if not isinstance(key, Node) or key.attrs.get("dtype") != "double" or key.shape != ops.fixed(1, 2):
        raise InputError(f"dropout: key must be a (1, 2) input of dtype 'double', got {key!r}")
    if rate == 0.0:
        return x
    return x * Node("dropout_mask", (key,), {"rate": float(rate), "number": number, "shape": x.shape})


def view(flat: Node, offset: int, rows: int, cols: int) -> Node:
    """The (rows, cols) matrix that begins at element ``offset`` of a flat (1, P) parameter; it costs nothing."""
    if not isinstance(flat, Node) or flat.op == "const":
        raise InputError(f"view: flat must be a (1, P) parameter or packed node, got {flat!r}")
    for name, value in (("offset", offset), ("rows", rows), ("cols", cols)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError(f"view: {name} must be an integer, got {value!r}")
    return Node("view", (flat,), {"offset": offset, "rows": rows, "cols": cols})


def pack(parts: Sequence[Node]) -> Node:
    """Matrices of fixed shapes as one flat (1, P) vector, in order; each is computed in its place."""
    return Node("pack", parts, {})


def update(rule: str, theta: Node, gradient: Node, states: Sequence[Node], hyper: Node) -> Node:
    """An optimiser's step in place on theta and its states (``fastbp.scalars.UPDATES``), after all that reads theta."""
    return Node("update", (theta, gradient, *states, hyper), {"rule": rule})


def ancestors(nodes: Iterable[Node]) -> list[Node]:
    """The nodes and everything that they are made of, inputs first."""
    found: dict[int, Node] = {}
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node.id not in found:
            found[node.id] = node
            stack.extend(node.inputs)
    return [found[i] for i in sorted(found)]


def gradients(target: Node, wrt: Sequence[Node]) -> list[Node]:
    """dtarget/dv for every v in wrt, as nodes: reverse accumulation (Goodfellow, Bengio and Courville 2016, 6.5.6).

    Only nodes between wrt and target are visited, in reverse order of creation; the gradients that the consumers of
    a node send back are summed.

    Args:
        target: a (1, 1) node.
        wrt: the nodes to differentiate with respect to; where target does not depend on one, its gradient is 0.

    Raises:
        GraphError: target is not a scalar, or an operation on the way has no gradient rule.
    """
    if isinstance(wrt, Node) or not all(isinstance(v, Node) for v in wrt):
        raise InputError(f"gradients: wrt must be a list of nodes, got {wrt!r}")
    if not isinstance(target, Node) or target.shape != SCALAR:
        raise GraphError(f"gradients: target must be a (1, 1) node, got {target!r}; take .sum() or .mean() first")
    reached = {v.id for v in wrt}
    order = ancestors([target])
    for node in order:
        if any(i.id in reached for i in node.inputs):
            reached.add(node.id)
    contributions: dict[int, list[Node]] = {target.id: [constant(1.0)]}
    totals: dict[int, Node] = {}
    for node in reversed(order):
        if node.id not in reached or node.id not in contributions:
            continue
        totals[node.id] = total = _summed(contributions.pop(node.id)).broadcast_to(node.shape)
        for position, source in enumerate(node.inputs):
            if source.id in reached:
                part = _apply_rule(node, position, total)
                if part is not None:
                    contributions.setdefault(source.id, []).append(part.sum_to(source.shape))
    return [totals[v.id] if v.id in totals else constant(0.0).broadcast_to(v.shape) for v in wrt]


def _summed(parts: list[Node]) -> Node:
    """The sum of what the consumers of a node send back; of parts that lie side by side, one matrix."""
    if len(parts) > 1 and all(p.op == "pad" for p in parts):
        parts = sorted(parts, key=lambda p: int(p.attrs["start"]))
        ends = [p.attrs["start"] + ops.columns(p.inputs[0].shape) for p in parts]
        if [p.attrs["start"] for p in parts] == [0, *ends[:-1]] and ends[-1] == parts[0].attrs["cols"]:
            return concat([p.inputs[0] for p in parts])
    if len(parts) > 1 and all(p.op == "place" for p in parts):
        parts = sorted(parts, key=lambda p: int(p.attrs["offset"]))
        sizes = [ops.columns(p.inputs[0].shape[::-1]) * ops.columns(p.inputs[0].shape) for p in parts]
        ends = [p.attrs["offset"] + size for p, size in zip(parts, sizes, strict=True)]
        if [p.attrs["offset"] for p in parts] == [0, *ends[:-1]] and ends[-1] == parts[0].attrs["size"]:
            return pack([p.inputs[0] for p in parts])
    total = parts[0]
    for more in parts[1:]:
        total = total + more
    return total


def _apply_rule(node: Node, position: int, g: Node) -> Node | None:
    op = TABLE[node.op]
    rules = op.gradient
    if op.variadic:
        return cast(Callable[..., Node], rules[0])(g, node, position)
    if position >= len(rules):
        raise GraphError(f"operation {node.op!r} has no gradient rule for its argument {position}")
    rule = rules[position]
    if rule is None:
        return None
    part: Node = rule(g, node, *node.inputs)
    return part
