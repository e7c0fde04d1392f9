"""Tracers: stand-ins for arrays that write down, as nodes of a graph, what a Python function does with them.

A tracer has the rank (0, 1, 2), the shape and the operators of the NumPy array that it stands for; its node is a matrix
all the same: (1, 1) for a scalar; for a 1-d array a row (1, d) or a column (d, 1), whichever costs nothing, turned
by a free reshape where two have to fit together. :mod:`fastbp.functions` are the public functions on tracers and
arrays; :mod:`fastbp.transform` runs what was written down.

Arguments that are data have symbolic rows (``ops.N``), so that the machine can go through them in chunks. Where a
function mixes them with numbers of its own, nodes raise GraphError, and it is traced again with all
sizes fixed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, cast

import numpy as np
import numpy.typing as npt

from fastbp import nodes, ops
from fastbp.arrays import DEVICE, HOST, Kind, is_array, kind_of, to_host
from fastbp.errors import GraphError, InputError, TraceError
from fastbp.nodes import Node
from fastbp.ops import ONE, SCALAR, N, Size

Array = npt.NDArray[Any]
Dims = tuple[int, ...]
Build = Callable[..., Node]

_running = threading.local()


def running() -> Tape | None:
    """The tape that is being written in this thread."""
    return getattr(_running, "tape", None)


# ---- the tape ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Feed:
    """What comes in under a name at every call.

    Attributes:
        source: number of an argument's leaf, or a captured array.
        shape: of the matrix that is made of it.
        integer: an int64 column; of floats otherwise.
        limit: integers must lie below it, None for no check.
        wraps: negative integers count from the end, as in indexing.
    """

    source: int | Array
    shape: tuple[int, int]
    integer: bool = False
    limit: int | None = None
    wraps: bool = False


@dataclass(frozen=True)
class Written:
    """One line of a teaching tape: an operation with an edge of its own (a copy node) from every tracer it reads."""

    name: str
    note: str
    operands: tuple[Any, ...]  # tracers and numbers
    edges: tuple[Node, ...]  # for every tracer among them
    out: Tracer


class Tape:
    """One trace, valid while it is being written (``with tape: ...``).

    Attributes:
        n: the number of rows that stands for ``ops.N``, None if all sizes are fixed.
        kind: of the arrays that come in.
        lines: what was done, if this is for teaching; None otherwise.
    """

    def __init__(
        self,
        n: int | None,
        dtype: str,
        *,
        kind: Kind = HOST,
        outside: Container[int] = (),
        guesses_rows: bool = False,
        teaching: bool = False,
    ) -> None:
        """``outside``: ids of the arrays that the function captures, to tell them from those that it makes."""
        self.n = n
        self.kind = kind
        self._outside = outside
        self._guesses_rows = guesses_rows  # those of the first matrix that is captured are the batch's
        self.dtype = np.dtype(dtype)
        self.lines: list[Written] | None = [] if teaching else None
        self.feeds: dict[str, Feed] = {}
        self.alive = False
        self._constants: dict[int, tuple[Tracer, Array]] = {}
        self._integers: dict[str, Node] = {}

    def __enter__(self) -> Tape:
        _running.tape, self.alive = self, True
        return self

    def __exit__(self, *_: object) -> None:
        _running.tape, self.alive = None, False

    def argument(self, number: int, value: Array, *, fixed: bool) -> Tracer:
        """A tracer for an argument's leaf, whose rows are the batch's only if it is not ``fixed``."""
        return self._comes_in(f"x{number}", number, value, fixed)

    def constant(self, value: Array) -> Tracer:
        """A tracer for an array from outside the function; it is read anew at every call.

        NumPy arrays that the function makes itself are moved to a GPU once.
        """
        if id(value) not in self._constants:
            if self._guesses_rows and self.n is None and value.ndim == 2 and value.shape[0] != 1:
                self.n = value.shape[0]
            here = self.kind.moved(value) if kind_of(value) is HOST else value
            tracer = self._comes_in(f"c{len(self._constants)}", here, here, False)
            self._constants[id(value)] = tracer, value  # kept, for its id to stay its own
        return self._constants[id(value)][0]

    def check(self, name: str, value: Array) -> None:
        """Refuse an array from outside that is not of the arguments' kind."""
        made_here = id(value) not in self._outside and id(value.base) not in self._outside
        if kind_of(value) is DEVICE or not made_here:
            self.kind.check(f"{name}: what the function captures, of shape {value.shape},", value)

    def _comes_in(self, name: str, source: int | Array, value: Array, fixed: bool) -> Tracer:
        kind = value.dtype.kind
        if kind not in "biuf":
            raise InputError(f"a traced function works on real numbers; got an array of dtype {value.dtype}")
        if value.ndim > 2:
            raise InputError(f"a traced function works on arrays of at most 2 dimensions; got shape {value.shape}")
        batch = not fixed and value.ndim > 0 and value.shape[0] == self.n
        if 0 in (value.shape[1:] if batch else value.shape):
            raise InputError(f"a traced function needs arrays with elements; got shape {value.shape}")
        if kind in "iu":
            return Tracer(self, None, value.shape, integers=(name, source, batch))
        return Tracer(self, self.floats(name, source, value.shape, batch), value.shape, mask=kind == "b")

    def floats(self, name: str, source: int | Array, shape: Dims, batch: bool) -> Node:
        """A matrix that comes in: rows of the batch, or a parameter of fixed shape."""
        size: tuple[int, int] = (1, 1)
        if len(shape) == 1:
            size = (shape[0], 1) if batch else (1, shape[0])
        elif shape:
            size = (shape[0], shape[1])
        self.feeds[name] = Feed(source, size)
        return nodes.input(name, size[1]) if batch else nodes.param(name, size)

    def integers(self, name: str, feed: Feed, batch: bool) -> Node:
        """A column of integers that comes in."""
        if name not in self._integers:
            self.feeds[name] = feed
            rows = None if batch and feed.shape[0] == self.n else feed.shape[0]
            self._integers[name] = nodes.input(name, 1, rows=rows, dtype="int")
        return self._integers[name]

    def shaped(self, node: Node, rows: int, cols: int) -> Node:
        """The node's elements as (rows, cols), in terms of n where it has rows of the batch."""
        if node.shape[0].per_row or node.shape[1].per_row:
            assert self.n is not None
            fixed = (Size(0, rows), Size(0, cols))
            area = ops.area(node.shape)
            for shape in ((self._in_rows(rows, cols, area), fixed[1]), (fixed[0], self._in_rows(cols, rows, area))):
                if ops.area(shape) == area:
                    return node.reshape(shape)
            raise GraphError(f"reshape: {node!r} to ({rows}, {cols})")
        return node.reshape((rows, cols))

    def _in_rows(self, size: int, other: int, area: tuple[int, int, int]) -> Size:
        """A size in terms of n, where that divides it; of 0 rows what gives the area beside the ``other`` size."""
        if self.n:
            return Size(size // self.n, 0) if size % self.n == 0 else Size(0, size)
        return Size(area[1] // other, 0) if size == 0 and other and area[1] % other == 0 else Size(0, size)

    def sizes(self, shape: Dims) -> ops.Shape:
        """A 2-d shape as nodes have it, with as many rows as the batch taken for the batch's."""
        return (N if shape[0] == self.n else Size(0, shape[0]), Size(0, shape[1]))


# ---- tracers -------------------------------------------------------------------------------------------------------


class Tracer:
    """A value inside a function that is being traced: NumPy's operators, methods and functions write nodes."""

    __slots__ = ("_integers", "_node", "_tape", "mask", "shape")
    __array_priority__ = 1000

    def __init__(
        self,
        tape: Tape,
        node: Node | None,
        shape: Dims,
        *,
        mask: bool = False,
        integers: tuple[str, int | Array, bool] | None = None,
    ) -> None:
        self._tape = tape
        self._node = node
        self.shape = shape
        self.mask = mask  # of zeros and ones, from a comparison
        self._integers = integers  # name, source, whether the rows are the batch's

    @property
    def tape(self) -> Tape:
        if not self._tape.alive:
            raise TraceError(
                f"{self!r} has left the function that was traced (kept in a global, a list, an attribute?); "
                "return what is needed outside"
            )
        return self._tape

    @property
    def node(self) -> Node:
        """The node; of integers that are computed with, one that brings them in as floats."""
        if self._node is None:
            name, source, batch = cast(tuple[str, Any, bool], self._integers)
            self._node = self.tape.floats(name, source, self.shape, batch)
        return self._node

    @property
    def is_integer(self) -> bool:
        return self._integers is not None

    def as_index(self, limit: int | None, *, wraps: bool = True) -> Node:
        """A column of these integers, checked at every call to lie below ``limit`` (None: known to)."""
        if self._integers is None:
            raise TraceError(
                "an index or a label must be an array of integers that comes in or is captured, "
                f"not a computed value: {self!r}"
            )
        name, source, batch = self._integers
        feed = Feed(source, (self.size, 1), True, limit, wraps)
        return self.tape.integers(f"{name} below {limit}{'' if wraps else ' from 0'}", feed, batch)

    # what an array says of itself

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape)) if self.shape else 1

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.int64) if self.is_integer else self._tape.dtype

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a traced value of shape ()")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<traced {self.dtype} {self.shape}>"

    # what only a value can do

    def _no_value(self, what: str, instead: str) -> NoReturn:
        raise TraceError(f"{what} of {self!r}: it has no value while its function is traced; {instead}")

    def __bool__(self) -> bool:
        self._no_value("the truth", "branch with fastbp.where(condition, x, y), or on shapes and static arguments")

    def __float__(self) -> float:
        self._no_value("float()", "keep it as it is; fastbp.sin(x) or np.sin(x), not math.sin(x)")

    def __int__(self) -> int:
        self._no_value("int()", "pass what decides about shapes and loops as a Python int")

    def __index__(self) -> int:
        self._no_value("the use as an index or a count", "pass what decides about shapes and loops as a Python int")

    def __complex__(self) -> complex:
        self._no_value("complex()", "fastbp computes with real numbers")

    def __array__(self, *_: Any, **__: Any) -> Array:
        self._no_value("np.asarray or an assignment into an array", "use it as it is, and fastbp.concatenate to join")

    def item(self) -> float:
        self._no_value("item()", "keep it as it is")

    def tolist(self) -> list[Any]:
        self._no_value("tolist()", "keep it as it is")

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TraceError(
            f"{self!r} cannot be changed in place; use fastbp.where(mask, new, x), or join parts (fastbp.concatenate)"
        )

    __hash__ = None  # type: ignore[assignment]

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"a traced value has no attribute {name!r}; the functions that are differentiated stand in docs/api.md"
        )

    # NumPy's functions, and CuPy's elementwise ones

    def __cupy_override_elementwise_kernel__(self, kernel: Any, *inputs: Any, **kwargs: Any) -> Any:
        name = kernel.name.removeprefix("cupy_")
        function = UFUNCS.get(name)
        if function is None or kwargs:
            raise TraceError(f"cupy.{name} is not among the functions that are differentiated (see docs/api.md)")
        return function(*inputs)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        name = f"np.{ufunc.__name__}"
        if method != "__call__":
            raise TraceError(f"{name}.{method} of a traced value is not supported; use np.sum, np.max and the like")
        if kwargs.get("out") is not None:
            raise TraceError(f"{name} cannot write a traced value into an array (out=, or an operator like +=)")
        function = UFUNCS.get(ufunc.__name__)
        if function is None or kwargs:
            with_ = f" with {', '.join(kwargs)}" if function else ""
            raise TraceError(f"{name}{with_} is not among the functions that are differentiated (see docs/api.md)")
        return function(*inputs)

    def __array_function__(self, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = f"{getattr(func, '__module__', 'numpy')}.{func.__name__}".replace("numpy", "np", 1)
        function = FUNCTIONS.get(name)
        if function is None:
            raise TraceError(f"{name} is not among the functions that are differentiated (see docs/api.md)")
        try:
            return function(*args, **kwargs)
        except TypeError as error:
            raise TraceError(f"{name} of a traced value: {str(error).replace(function.__name__, name)}") from None

    # operators

    def __add__(self, other: Any) -> Tracer:
        return binary("add", self, other)

    def __radd__(self, other: Any) -> Tracer:
        return binary("add", other, self)

    def __sub__(self, other: Any) -> Tracer:
        return binary("sub", self, other)

    def __rsub__(self, other: Any) -> Tracer:
        return binary("sub", other, self)

    def __mul__(self, other: Any) -> Tracer:
        return binary("mul", self, other)

    def __rmul__(self, other: Any) -> Tracer:
        return binary("mul", other, self)

    def __truediv__(self, other: Any) -> Tracer:
        return binary("div", self, other)

    def __rtruediv__(self, other: Any) -> Tracer:
        return binary("div", other, self)

    def __pow__(self, other: Any) -> Tracer:
        return power(self, other)

    def __rpow__(self, other: Any) -> Tracer:
        return power(other, self)

    def __matmul__(self, other: Any) -> Tracer:
        return matmul(self, other)

    def __rmatmul__(self, other: Any) -> Tracer:
        return matmul(other, self)

    def __neg__(self) -> Tracer:
        return unary("neg", self)

    def __pos__(self) -> Tracer:
        return self

    def __abs__(self) -> Tracer:
        return unary("abs", self)

    def __gt__(self, other: Any) -> Tracer:
        return compare("greater", self, other)

    def __ge__(self, other: Any) -> Tracer:
        return compare("greater_equal", self, other)

    def __lt__(self, other: Any) -> Tracer:
        return compare("greater", other, self)

    def __le__(self, other: Any) -> Tracer:
        return compare("greater_equal", other, self)

    def __eq__(self, other: Any) -> Any:
        return compare("equal", self, other) if _is_numeric(other) else NotImplemented

    def __ne__(self, other: Any) -> Any:
        return not_equal(self, other) if _is_numeric(other) else NotImplemented

    def __and__(self, other: Any) -> Tracer:
        return logical_and(self, other)

    __rand__ = __and__

    def __or__(self, other: Any) -> Tracer:
        return logical_or(self, other)

    __ror__ = __or__

    def __invert__(self) -> Tracer:
        return logical_not(self)

    def __getitem__(self, key: Any) -> Tracer:
        return getitem(self, key)

    def __iter__(self) -> Iterator[Tracer]:
        return (self[k] for k in range(len(self)))

    # methods

    @property
    def T(self) -> Tracer:
        return transpose(self)

    def transpose(self) -> Tracer:
        return transpose(self)

    def sum(self, axis: Any = None, keepdims: bool = False) -> Tracer:
        return reduce("sum", self, axis, keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> Tracer:
        return reduce("mean", self, axis, keepdims)

    def max(self, axis: Any = None, keepdims: bool = False) -> Tracer:
        return reduce("max", self, axis, keepdims)

    def min(self, axis: Any = None, keepdims: bool = False) -> Tracer:
        return reduce("min", self, axis, keepdims)

    def var(self, axis: Any = None, ddof: int = 0, keepdims: bool = False) -> Tracer:
        return variance(self, axis, ddof, keepdims)

    def std(self, axis: Any = None, ddof: int = 0, keepdims: bool = False) -> Tracer:
        return unary("sqrt", variance(self, axis, ddof, keepdims))

    def clip(self, low: Any = None, high: Any = None) -> Tracer:
        return clip(self, low, high)

    def dot(self, other: Any) -> Tracer:
        return dot(self, other)

    def take(self, indices: Any, axis: int | None = None) -> Tracer:
        return take(self, indices, axis)

    def reshape(self, *shape: Any) -> Tracer:
        return reshape(self, shape[0] if len(shape) == 1 else shape)

    def ravel(self) -> Tracer:
        return reshape(self, (-1,))

    flatten = ravel

    def squeeze(self, axis: Any = None) -> Tracer:
        return squeeze(self, axis)

    def copy(self) -> Tracer:
        return self

    def astype(self, dtype: Any) -> Tracer:
        if np.dtype(dtype).kind != "f":
            raise TraceError(f"{self!r} cannot become {np.dtype(dtype)}: traced values are floats")
        return as_floats(self)


Operand = Tracer | float


def is_traced(*values: Any) -> bool:
    """Whether one of the values is a tracer."""
    return any(isinstance(value, Tracer) for value in values)


def _is_numeric(value: Any) -> bool:
    return isinstance(value, (Tracer, bool, int, float, np.generic, list, tuple)) or is_array(value)


def as_floats(x: Tracer) -> Tracer:
    """Integers as floats; floats as they are."""
    return Tracer(x.tape, x.node, x.shape) if x.is_integer else x


def lift(name: str, value: Any) -> Operand:
    """A tracer as it is, an array as a constant of the tape that is running, a number as a number."""
    if isinstance(value, Tracer):
        if value.tape is not running():
            raise TraceError(f"{name}: {value!r} belongs to a function that is traced in another thread")
        return value
    if isinstance(value, (bool, int, float)):
        return float(value)
    if isinstance(value, np.generic):
        if value.dtype.kind not in "biuf":
            raise InputError(f"{name}: a traced function works on real numbers, got {value!r} of dtype {value.dtype}")
        return float(value)
    if isinstance(value, (list, tuple)):
        if _holds_tracer(value):
            raise InputError(f"{name}: got a {type(value).__name__} with traced values in it; join them with np.stack")
        value = np.asarray(value)
    tape = running()
    if not is_array(value) or tape is None:
        raise InputError(f"{name}: a traced function works on arrays and numbers, got {type(value).__name__}")
    tape.check(name, value)
    return tape.constant(value)


def _holds_tracer(value: Any) -> bool:
    return isinstance(value, Tracer) or (isinstance(value, (list, tuple)) and any(map(_holds_tracer, value)))


def as_tracer(name: str, value: Any) -> Tracer:
    """Anything that can be computed with, as a tracer of the tape that is running."""
    found = lift(name, value)
    if isinstance(found, float):
        tape = cast(Tape, running())
        return Tracer(tape, nodes.constant(found), ())
    return found


def record(
    name: str, operands: Sequence[Operand], shape: Dims, build: Build, *, note: str = "", mask: bool = False
) -> Tracer:
    """The tracer of ``build(*nodes of the operands)``, numbers as they are; on a teaching tape a line."""
    tape = next(o.tape for o in operands if isinstance(o, Tracer))
    if tape.lines is None:
        node = build(*(o.node if isinstance(o, Tracer) else o for o in operands))
        return Tracer(tape, node, shape, mask=mask)
    inside = [copied(o.node) if isinstance(o, Tracer) else o for o in operands]
    out = Tracer(tape, build(*inside), shape, mask=mask)
    tape.lines.append(Written(name, note, tuple(operands), tuple(i for i in inside if isinstance(i, Node)), out))
    return out


def copied(node: Node) -> Node:
    """The same value as a node of its own, with respect to which can be differentiated whatever else the node feeds."""
    return Node("copy", (node,), {})


# ---- elementwise ---------------------------------------------------------------------------------------------------


def broadcast(name: str, *shapes: Dims) -> Dims:
    """NumPy's rule."""
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        raise InputError(f"{name}: shapes {' and '.join(map(str, shapes))} do not fit together") from None


def _aligned(operands: Sequence[Operand], found: Sequence[Node | float], rank: int) -> list[Node | float]:
    """1-d operands all as rows or all as columns, beside 2-d ones as rows."""
    long = [
        node if isinstance(o, Tracer) and o.ndim == 1 and isinstance(node, Node) and node.shape != SCALAR else None
        for o, node in zip(operands, found, strict=True)
    ]
    vectors = [node for node in long if node is not None]
    batch = any(node.shape[0].per_row for node in vectors)
    rows = rank == 2 or (not batch and any(node.shape[0] == ONE for node in vectors))
    return [
        node if vector is None or (vector.shape[0] == ONE) == rows else vector.reshape(vector.shape[::-1])
        for node, vector in zip(found, long, strict=True)
    ]


def elementwise(name: str, values: Sequence[Any], build: Build, *, mask: bool = False) -> Tracer:
    """An operation on broadcast operands; ``build`` takes nodes and numbers."""
    operands = [lift(name, value) for value in values]
    shape = broadcast(name, *(o.shape for o in operands if isinstance(o, Tracer)))
    return record(name, operands, shape, lambda *found: build(*_aligned(operands, found, len(shape))), mask=mask)


def unary(name: str, x: Any) -> Tracer:
    """One of the elementwise operations of one value in ``ops.TABLE``."""
    if name not in ops.TABLE:
        raise TraceError(f"{name} is not among the operations of this version's graphs")
    return elementwise(name, (x,), lambda node: Node(name, (node,), {}))


_BINARY: dict[str, Build] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
}


def _node(value: Node | float) -> Node:
    return nodes.constant(value) if isinstance(value, float) else value


def _pair(name: str) -> Build:
    return _BINARY.get(name) or (lambda x, y: Node(name, (_node(x), _node(y)), {}))


def binary(name: str, x: Any, y: Any) -> Tracer:
    """One of the elementwise operations of two values in ``ops.TABLE``."""
    return elementwise(name, (x, y), _pair(name))


def compare(name: str, x: Any, y: Any) -> Tracer:
    """A comparison: 1 where it holds, 0 where not, NaN where a value is NaN."""
    return elementwise(name, (x, y), _pair(name), mask=True)


def not_equal(x: Any, y: Any) -> Tracer:
    """1 where the values differ, else 0."""
    return logical_not(compare("equal", x, y))


def _as_mask(name: str, value: Any) -> Tracer:
    x = as_tracer(name, value)
    if not x.mask:
        raise TraceError(f"{name} works on comparisons, like (x > 0) & (x < 1); got {x!r}")
    return x


def logical_and(x: Any, y: Any) -> Tracer:
    """1 where both masks are 1."""
    return elementwise("and", (_as_mask("and", x), _as_mask("and", y)), lambda a, b: a * b, mask=True)


def logical_or(x: Any, y: Any) -> Tracer:
    """1 where one of the masks is 1."""
    return elementwise("or", (_as_mask("or", x), _as_mask("or", y)), lambda a, b: a.maximum(b), mask=True)


def logical_not(x: Any) -> Tracer:
    """1 where the mask is 0."""
    return elementwise("not", (_as_mask("not", x),), lambda a: 1.0 - a, mask=True)


def power(x: Any, y: Any) -> Tracer:
    """x ** y; small whole numbers and halves are multiplied out."""
    return elementwise("power", (x, y), lambda a, b: a**b)


def where(condition: Any, x: Any, y: Any) -> Tracer:
    """X where the condition is not 0, else y."""
    return elementwise("where", (condition, x, y), lambda c, a, b: _node(c).where(a, b))


def clip(x: Any, low: Any = None, high: Any = None) -> Tracer:
    """X, limited to [low, high]; None for no limit."""
    found = as_tracer("clip", x)
    if low is not None:
        found = binary("maximum", low, found)  # of equal values the second has the gradient
    return found if high is None else binary("minimum", found, high)


def stop_gradient(x: Tracer) -> Tracer:
    """X, a constant to differentiation."""
    return elementwise("stop_gradient", (x,), lambda node: node.stop_gradient())


def scaled(function: Callable[[Any], Tracer], *, before: float = 1.0, after: float = 1.0) -> Callable[[Any], Tracer]:
    """after · f(before · x): logarithms and powers to other bases."""

    def wrapped(x: Any) -> Tracer:
        found = function(x if before == 1.0 else x * before)
        return found if after == 1.0 else found * after

    return wrapped


# ---- reductions ----------------------------------------------------------------------------------------------------


def normal_axis(name: str, axis: Any, rank: int) -> int | None:
    """0, 1 or None for all; None too for the axes of a 1-d value, and for both of a matrix."""
    if axis is None:
        return None
    if isinstance(axis, tuple):
        given = [normal_axis(name, a, rank) for a in axis]
        if len(set(axis)) == len(axis) == rank:
            return None
        if len(given) == 1:
            return given[0]
        raise InputError(f"{name}: axis={axis!r} does not fit a value of {rank} dimensions")
    if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)) or not -rank <= axis < rank:
        raise InputError(f"{name}: axis={axis!r} does not fit a value of {rank} dimensions")
    return int(axis) % rank if rank == 2 else None


_REDUCTIONS: dict[str, Callable[[Node, int | None], Node]] = {
    "sum": lambda x, axis: x.sum(axis),
    "mean": lambda x, axis: x.mean(axis),
    "max": lambda x, axis: x.max(axis),
    "min": lambda x, axis: x.min(axis),
    "logsumexp": lambda x, axis: x.logsumexp(axis),
}


def reduce(name: str, value: Any, axis: Any = None, keepdims: bool = False) -> Tracer:
    """A sum, mean, max, min or logsumexp over rows (axis 0), columns (axis 1) or all."""
    x = as_tracer(name, value)
    over = normal_axis(name, axis, x.ndim)
    shape: Dims = ()
    if keepdims:
        shape = tuple(1 if over is None or a == over else size for a, size in enumerate(x.shape))
    elif over is not None:
        shape = (x.shape[1 - over],)
    function = _REDUCTIONS[name]
    note = "" if over is None else f"axis={over}"
    return record(name, (x,), shape, lambda node: function(node, over), note=note)


def variance(value: Any, axis: Any = None, ddof: int = 0, keepdims: bool = False) -> Tracer:
    """The mean of the squared distance from the mean, times count/(count - ddof)."""
    x = as_tracer("var", value)
    squared = unary("square", x - reduce("mean", x, axis, True))
    mean = reduce("mean", squared, axis, keepdims)
    count = x.size // max(mean.size, 1)
    return mean if not ddof else mean * (count / (count - ddof) if count != ddof else float("nan"))


def softmax(value: Any, axis: int = -1, *, log: bool = False) -> Tracer:
    """The softmax along an axis, or its logarithm."""
    name = "log_softmax" if log else "softmax"
    x = as_tracer(name, value)
    if x.ndim == 0:
        raise InputError(f"{name} needs a value of 1 or 2 dimensions")
    over = normal_axis(name, axis, x.ndim)

    def build(node: Node) -> Node:
        if over == 1 or (x.ndim == 1 and node.shape[0] == ONE):
            return node.log_softmax() if log else node.softmax()
        shifted = node - node.logsumexp(over)
        return shifted if log else shifted.exp()

    return record(name, (x,), x.shape, build, note=f"axis={over}" if over is not None else "")


def norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Tracer:
    """The square root of the sum of squares; for vectors also ord=1, the sum of absolute values."""
    found = as_tracer("norm", x)
    vectors = found.ndim == 1 or axis is not None
    if ord == 1 and vectors:
        return reduce("sum", unary("abs", found), axis, keepdims)
    if ord is None or (ord == 2 and vectors) or (ord == "fro" and not vectors):
        return unary("sqrt", reduce("sum", unary("square", found), axis, keepdims))
    raise TraceError(f"np.linalg.norm with ord={ord!r} is not among the functions that are differentiated")


# ---- products ------------------------------------------------------------------------------------------------------


def matmul(a: Any, b: Any) -> Tracer:
    """NumPy's ``@`` for 1-d and 2-d values: matrices, a matrix and a vector, two vectors."""
    x, y = as_tracer("matmul", a), as_tracer("matmul", b)
    if not x.ndim or not y.ndim:
        raise InputError(f"matmul: scalars are multiplied with *; got shapes {x.shape} and {y.shape}")
    if x.shape[-1] != y.shape[0]:
        raise InputError(
            f"matmul: shapes {x.shape} and {y.shape} do not fit together: {x.shape[-1]} is not {y.shape[0]}"
        )

    def build(p: Node, q: Node) -> Node:
        if x.ndim == y.ndim == 1:
            p, q = cast(list[Node], _aligned((x, y), (p, q), 1))
            return (p * q).sum()
        p, ta = _product_operand(p, column=False if x.ndim == 1 else None)
        q, tb = _product_operand(q, column=True if y.ndim == 1 else None)
        return p.matmul(q, ta=ta, tb=tb)

    return record("matmul", (x, y), x.shape[:-1] + y.shape[1:], build)


def _product_operand(node: Node, column: bool | None) -> tuple[Node, bool]:
    """A matrix with its transposition looked through, or a vector as a row or a column: (node, whether transposed)."""
    if column is not None:
        return node, node.shape != SCALAR and (node.shape[1] == ONE) != column
    return (node.inputs[0], True) if node.op == "transpose" else (node, False)


def dot(a: Any, b: Any) -> Tracer:
    """NumPy's dot: matmul, or a product with a scalar."""
    x, y = as_tracer("dot", a), as_tracer("dot", b)
    return matmul(x, y) if x.ndim and y.ndim else x * y


def inner(a: Any, b: Any) -> Tracer:
    """NumPy's inner: products over the last axes, a bᵀ."""
    x, y = as_tracer("inner", a), as_tracer("inner", b)
    return dot(x, transpose(y))


def outer(a: Any, b: Any) -> Tracer:
    """The product of every element of a with every element of b."""
    x, y = as_tracer("outer", a), as_tracer("outer", b)
    return reshape(x, (-1, 1)) * reshape(y, (1, -1))


def vdot(a: Any, b: Any) -> Tracer:
    """The product of two values as vectors."""
    x, y = as_tracer("vdot", a), as_tracer("vdot", b)
    return matmul(reshape(x, (-1,)), reshape(y, (-1,)))


# ---- shapes --------------------------------------------------------------------------------------------------------


def transpose(value: Any, axes: Any = None) -> Tracer:
    """Rows as columns; a value of fewer dimensions as it is."""
    x = as_tracer("transpose", value)
    if axes is not None and tuple(a % max(x.ndim, 1) for a in axes) != tuple(range(x.ndim))[::-1]:
        if tuple(a % max(x.ndim, 1) for a in axes) == tuple(range(x.ndim)):
            return x
        raise InputError(f"transpose: axes={axes!r} do not fit a value of {x.ndim} dimensions")
    if x.ndim < 2:
        return x
    return record("transpose", (x,), x.shape[::-1], lambda node: node.inputs[0] if node.op == "transpose" else node.T)


def reshape(value: Any, shape: Any, order: str = "C") -> Tracer:
    """The same elements, row by row, in a shape of up to 2 dimensions; one size may be -1."""
    x = as_tracer("reshape", value)
    if order not in ("C", "A"):
        raise TraceError(f"reshape with order={order!r} is not supported: elements are taken row by row")
    wanted = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    if not all(isinstance(s, (int, np.integer)) and not isinstance(s, bool) for s in wanted):
        raise InputError(f"reshape: shape must be integers, got {shape!r}")
    known = int(np.prod([s for s in wanted if s != -1])) if wanted else 1
    if wanted.count(-1) == 1 and known and x.size % known == 0:
        wanted = tuple(x.size // known if s == -1 else s for s in wanted)
    if any(s < 0 for s in wanted) or int(np.prod(wanted)) != x.size:
        raise InputError(f"reshape: {x.shape} does not become {shape!r}")
    if len(wanted) > 2:
        raise InputError(f"reshape: traced values have at most 2 dimensions; got {shape!r}")
    return reshaped(x, tuple(int(s) for s in wanted))


def reshaped(x: Tracer, shape: Dims) -> Tracer:
    """The same elements in a shape that fits."""
    if shape == x.shape:
        return x
    tape = x.tape

    def build(node: Node) -> Node:
        if len(shape) == 2:
            return tape.shaped(node, *shape)
        column = node.shape[1] == ONE or node.shape[0].per_row
        return tape.shaped(node, x.size, 1) if column else tape.shaped(node, 1, x.size)

    return record("reshape", (x,), shape, build, note=str(shape))


def squeeze(value: Any, axis: Any = None) -> Tracer:
    """Without axes of size 1: all of them, or those given."""
    x = as_tracer("squeeze", value)
    gone = [a for a, s in enumerate(x.shape) if s == 1]
    if axis is not None:
        asked = [a % max(x.ndim, 1) for a in (axis if isinstance(axis, tuple) else (axis,))]
        if not set(asked) <= set(gone):
            raise InputError(f"squeeze: axis={axis!r} of shape {x.shape} has not size 1")
        gone = asked
    return reshaped(x, tuple(s for a, s in enumerate(x.shape) if a not in gone))


def expand_dims(value: Any, axis: int) -> Tracer:
    """With an axis of size 1 more."""
    x = as_tracer("expand_dims", value)
    if x.ndim == 2 or not isinstance(axis, int) or not -x.ndim - 1 <= axis <= x.ndim:
        raise InputError(f"expand_dims: axis={axis!r} does not fit a value of {x.ndim} dimensions, of 3 at most 2")
    shape = list(x.shape)
    shape.insert(axis % (x.ndim + 1), 1)
    return reshaped(x, tuple(shape))


def broadcast_to(value: Any, shape: Any) -> Tracer:
    """The value, repeated to a shape of up to 2 dimensions."""
    x = as_tracer("broadcast_to", value)
    wanted = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    if len(wanted) > 2 or broadcast("broadcast_to", x.shape, wanted) != wanted:
        raise InputError(f"broadcast_to: {x.shape} does not become {shape!r}")
    tape = x.tape

    def build(node: Node) -> Node:
        if len(wanted) < 2:
            return node if x.size == int(np.prod(wanted)) else node.broadcast_to((ONE, Size(0, wanted[0])))
        (row,) = _aligned((x,), (node,), 2)
        return cast(Node, row).broadcast_to(tape.sizes(wanted))

    return record("broadcast_to", (x,), wanted, build, note=str(wanted))


def concatenate(values: Sequence[Any], axis: int | None = 0) -> Tracer:
    """Vectors end to end; matrices below each other (axis 0) or side by side (axis 1)."""
    parts = [as_tracer("concatenate", value) for value in values]
    if axis is None:
        return concatenate([reshape(part, (-1,)) for part in parts])
    ranks = {part.ndim for part in parts}
    if len(ranks) != 1 or ranks == {0}:
        raise InputError(f"concatenate: shapes {', '.join(str(p.shape) for p in parts)} do not fit together")
    (rank,) = ranks
    if not isinstance(axis, int) or not -rank <= axis < rank:
        raise InputError(f"concatenate: axis={axis!r} does not fit values of {rank} dimensions")
    axis %= rank
    if len({part.shape[1 - axis] for part in parts if rank == 2}) > 1:
        raise InputError(f"concatenate: shapes {', '.join(str(p.shape) for p in parts)} do not fit along axis {axis}")
    total = sum(part.shape[axis] for part in parts)
    if rank == 2 and axis == 1:
        return record("concatenate", parts, (parts[0].shape[0], total), lambda *n: nodes.concat(n), note="axis=1")
    tape = parts[0].tape
    shape = (total, *parts[0].shape[1:])

    def build(*found: Node) -> Node:
        flat = nodes.concat([tape.shaped(n, 1, p.size) for n, p in zip(found, parts, strict=True)])
        return tape.shaped(flat, *shape) if rank == 2 else flat

    return record("concatenate", parts, shape, build, note="axis=0" if rank == 2 else "")


def stack(values: Sequence[Any], axis: int = 0) -> Tracer:
    """Scalars as a vector, vectors as rows (axis 0) or columns (axis 1)."""
    parts = [as_tracer("stack", value) for value in values]
    if not parts or len({p.shape for p in parts}) != 1 or parts[0].ndim > 1:
        raise InputError(
            f"stack: needs scalars, or vectors of one length; got {', '.join(str(p.shape) for p in parts)}"
        )
    if not parts[0].ndim:
        return concatenate([reshaped(p, (1,)) for p in parts])
    if axis % 2 == 0:
        return concatenate([reshaped(p, (1, p.size)) for p in parts], axis=0)
    return concatenate([reshaped(p, (p.size, 1)) for p in parts], axis=1)


def hstack(values: Sequence[Any]) -> Tracer:
    """Vectors end to end, matrices side by side."""
    parts = [as_tracer("hstack", value) for value in values]
    parts = [p if p.ndim else reshaped(p, (1,)) for p in parts]
    return concatenate(parts, axis=parts[0].ndim - 1)


def vstack(values: Sequence[Any]) -> Tracer:
    """Vectors as rows, and matrices, below each other."""
    parts = [as_tracer("vstack", value) for value in values]
    return concatenate([p if p.ndim == 2 else reshaped(p, (1, p.size)) for p in parts], axis=0)


def column_stack(values: Sequence[Any]) -> Tracer:
    """Vectors as columns, and matrices, side by side."""
    parts = [as_tracer("column_stack", value) for value in values]
    return concatenate([p if p.ndim == 2 else reshaped(p, (p.size, 1)) for p in parts], axis=1)


# ---- indexing ------------------------------------------------------------------------------------------------------


def getitem(x: Tracer, key: Any) -> Tracer:
    """Numbers, slices, None, ``...`` and arrays of integers, as NumPy has them."""
    items = list(key) if isinstance(key, tuple) else [key]
    dims: list[list[int]]  # the sizes that each axis of x leaves
    for item in items:
        if _is_mask(item):
            raise TraceError("indexing by a mask gives a shape that depends on values; use fastbp.where(mask, x, 0)")
    given = sum(1 for item in items if item is not None and item is not Ellipsis)
    if given > x.ndim:
        raise InputError(f"{x!r} has not the {given} dimensions that {_shown(key)} asks for")
    if not any(item is Ellipsis for item in items):
        items.append(Ellipsis)
    dots = next(k for k, item in enumerate(items) if item is Ellipsis)
    items[dots : dots + 1] = [slice(None)] * (x.ndim - given)
    if any(item is Ellipsis for item in items):
        raise InputError("an index has more than one ...")
    per_axis = [item for item in items if item is not None]
    if x.ndim == 2 and all(_is_index_array(item) for item in per_axis):
        found = _paired(x, *per_axis)
        dims = [list(found.shape), []]
    else:
        found, dims = x, []
        for axis in reversed(range(x.ndim)):
            found, size = _selected(found, axis, per_axis[axis])
            dims.insert(0, size)
    sizes = iter(dims)
    shape: list[int] = []
    for item in items:
        if item is None:
            shape.append(1)
        else:
            shape.extend(next(sizes))
    if len(shape) > 2:
        raise InputError(
            f"indexing {x!r} with {_shown(key)} gives {len(shape)} dimensions; traced values have at most 2"
        )
    return reshaped(found, tuple(shape))


def _shown(key: Any) -> str:
    return repr(key) if len(repr(key)) < 60 else f"a {type(key).__name__}"


def _is_mask(item: Any) -> bool:
    if isinstance(item, Tracer):
        return item.mask
    if isinstance(item, list):
        item = np.asarray(item)
    return isinstance(item, (bool, np.bool_)) or (is_array(item) and item.dtype.kind == "b")


def _is_index_array(item: Any) -> bool:
    return isinstance(item, (list, Tracer)) or is_array(item)


def _selected(x: Tracer, axis: int, item: Any) -> tuple[Tracer, list[int]]:
    """Part of one axis, and the sizes that it leaves: none for a number, one for a slice, an array's own."""
    size = x.shape[axis]
    if isinstance(item, slice):
        start, stop, step = item.indices(size)
        count = len(range(start, stop, step))
        if not size:  # a batch of no rows: any slice is all there is
            return x, [0]
        if not count:
            raise InputError(f"{_shown(item)} leaves nothing of the {size} elements of {x!r}")
        if step == 1:
            return _stretch(x, axis, start, stop), [count]
        return _by_index(x, axis, as_tracer("index", np.arange(size)[item]), checked=False), [count]
    if isinstance(item, (int, np.integer)) and not isinstance(item, bool):
        if not -size <= item < size:
            raise InputError(f"index {item} is outside axis {axis} of {x!r}, which has {size} elements")
        start = int(item) % size
        return _stretch(x, axis, start, start + 1), []
    if not _is_index_array(item):
        raise InputError(f"{x!r} is indexed by integers, slices, None and arrays of integers; got {_shown(item)}")
    index = as_tracer("index", np.asarray(item) if isinstance(item, list) else item)
    return _by_index(x, axis, index), list(index.shape)


def _stretch(x: Tracer, axis: int, start: int, stop: int) -> Tracer:
    """Elements start to stop of one axis."""
    if stop - start == x.shape[axis]:
        return x
    tape, shape = x.tape, tuple(stop - start if a == axis else s for a, s in enumerate(x.shape))

    def build(node: Node) -> Node:
        if axis == 1:
            return node.columns(start, stop)
        across = x.shape[1] if x.ndim == 2 else 1
        part = tape.shaped(node, 1, x.size).columns(start * across, stop * across)
        return tape.shaped(part, *shape) if x.ndim == 2 else part

    text = f"{start}:{stop}" if axis == 0 else f":, {start}:{stop}"
    return record("index", (x,), shape, build, note=text)


def _by_index(x: Tracer, axis: int, index: Tracer, *, checked: bool = True) -> Tracer:
    """Elements of one axis by number; with 2-d numbers of a vector a matrix."""
    if index.ndim > 1 and x.ndim > 1:
        raise InputError(f"indexing {x!r} with an array of shape {index.shape} gives more than 2 dimensions")
    size, tape = x.shape[axis], x.tape
    shape = index.shape if x.ndim == 1 else tuple(index.size if a == axis else s for a, s in enumerate(x.shape))

    def build(node: Node) -> Node:
        column = index.as_index(size if checked else None)
        if axis == 1:
            return node.T.take(column).T
        if x.ndim == 2:
            return node.take(column)
        taken = tape.shaped(node, x.size, 1).take(column)
        return tape.shaped(taken, *index.shape) if index.ndim == 2 else taken

    return record("take", (x,), shape, build, note="" if axis == 0 else "axis=1")


def _paired(x: Tracer, rows: Any, cols: Any) -> Tracer:
    """X[rows, cols]: one element for each pair. With rows = arange(len(x)) one a row, which needs no other row."""
    rows = to_host(rows) if is_array(rows) else rows
    if isinstance(rows, (np.ndarray, list)) and np.array_equal(rows, np.arange(x.shape[0])):
        labels = as_tracer("index", cols)
        if labels.shape == x.shape[:1]:
            return record(
                "index",
                (x,),
                labels.shape,
                lambda node: labels.as_index(x.shape[1]).onehot(x.shape[1]).where(node, 0.0).sum(1),
                note="a column for each row",
            )
    if is_traced(rows, cols):
        raise TraceError("x[rows, columns] needs rows = np.arange(len(x)), or two arrays that are no arguments")
    pair = np.broadcast_arrays(rows, to_host(cols) if is_array(cols) else cols)
    for axis, numbers in enumerate(pair):
        if numbers.dtype.kind not in "iu":
            raise InputError(f"{x!r} is indexed by integers; got an array of {numbers.dtype}")
        if numbers.size and not (-x.shape[axis] <= numbers.min() and numbers.max() < x.shape[axis]):
            raise InputError(f"an index is outside axis {axis} of {x!r}")
    return reshape(x, (-1,))[pair[0] % x.shape[0] * x.shape[1] + pair[1] % x.shape[1]]


def take(value: Any, indices: Any, axis: int | None = None) -> Tracer:
    """Elements of an axis by number, of the flattened value without one."""
    x = as_tracer("take", value)
    if axis is None:
        return reshape(x, (-1,))[indices]
    if isinstance(axis, bool) or not isinstance(axis, int) or not -x.ndim <= axis < x.ndim:
        raise InputError(f"take: axis={axis!r} does not fit a value of {x.ndim} dimensions")
    return x[(slice(None),) * (axis % x.ndim) + (indices,)]


def onehot(labels: Any, classes: int) -> Tracer:
    """Labels (n,) or (n, 1) from 0 to classes - 1 as rows of 0 and 1, (n, classes)."""
    x = as_tracer("onehot", labels)
    if x.ndim == 0 or x.shape[1:] not in ((), (1,)):
        raise InputError(f"onehot: labels must have shape (n,) or (n, 1), got {x.shape}")
    found = x.as_index(classes, wraps=False).onehot(classes)
    return Tracer(x.tape, found, (x.size, classes), mask=True)


# ---- NumPy's names -------------------------------------------------------------------------------------------------

UFUNCS: dict[str, Callable[..., Any]] = {
    "add": lambda x, y: binary("add", x, y),
    "subtract": lambda x, y: binary("sub", x, y),
    "multiply": lambda x, y: binary("mul", x, y),
    "divide": lambda x, y: binary("div", x, y),
    "true_divide": lambda x, y: binary("div", x, y),
    "maximum": lambda x, y: binary("maximum", x, y),
    "minimum": lambda x, y: binary("minimum", x, y),
    "greater": lambda x, y: compare("greater", x, y),
    "greater_equal": lambda x, y: compare("greater_equal", x, y),
    "less": lambda x, y: compare("greater", y, x),
    "less_equal": lambda x, y: compare("greater_equal", y, x),
    "equal": lambda x, y: compare("equal", x, y),
    "not_equal": not_equal,
    "logical_and": logical_and,
    "logical_or": logical_or,
    "logical_not": logical_not,
    "bitwise_and": logical_and,
    "bitwise_or": logical_or,
    "invert": logical_not,
    "power": power,
    "float_power": power,
    "matmul": matmul,
    "positive": lambda x: x,
    "negative": lambda x: unary("neg", x),
    "absolute": lambda x: unary("abs", x),
    "fabs": lambda x: unary("abs", x),
    "reciprocal": lambda x: 1.0 / x,
    "tan": lambda x: unary("sin", x) / unary("cos", x),
    "exp2": scaled(lambda x: unary("exp", x), before=float(np.log(2.0))),
    "log2": scaled(lambda x: unary("log", x), after=float(1.0 / np.log(2.0))),
    "log10": scaled(lambda x: unary("log", x), after=float(1.0 / np.log(10.0))),
}
for _name in ("square", "sqrt", "exp", "log", "sign", "sin", "cos", "tanh"):
    UFUNCS[_name] = partial(unary, _name)


def _np_sum(a: Any, axis: Any = None, *, keepdims: bool = False) -> Tracer:
    return reduce("sum", a, axis, keepdims)


def _np_mean(a: Any, axis: Any = None, *, keepdims: bool = False) -> Tracer:
    return reduce("mean", a, axis, keepdims)


def _np_max(a: Any, axis: Any = None, *, keepdims: bool = False) -> Tracer:
    return reduce("max", a, axis, keepdims)


def _np_min(a: Any, axis: Any = None, *, keepdims: bool = False) -> Tracer:
    return reduce("min", a, axis, keepdims)


def _np_var(a: Any, axis: Any = None, *, ddof: int = 0, keepdims: bool = False) -> Tracer:
    return variance(a, axis, ddof, keepdims)


def _np_std(a: Any, axis: Any = None, *, ddof: int = 0, keepdims: bool = False) -> Tracer:
    return unary("sqrt", variance(a, axis, ddof, keepdims))


def _np_clip(a: Any, a_min: Any = None, a_max: Any = None, *, min: Any = None, max: Any = None) -> Tracer:
    return clip(a, a_min if min is None else min, a_max if max is None else max)


def _np_full(value: float) -> Callable[..., Array]:
    def full(a: Any, dtype: Any = None) -> Array:
        return np.full(a.shape, value, dtype or a.dtype)

    return full


def _np_full_like(a: Any, fill_value: Any, dtype: Any = None) -> Any:
    if is_traced(fill_value):
        return broadcast_to(fill_value, a.shape)
    return np.full(a.shape, fill_value, dtype or a.dtype)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "np.sum": _np_sum,
    "np.mean": _np_mean,
    "np.max": _np_max,
    "np.amax": _np_max,
    "np.min": _np_min,
    "np.amin": _np_min,
    "np.var": _np_var,
    "np.std": _np_std,
    "np.clip": _np_clip,
    "np.where": where,
    "np.dot": dot,
    "np.inner": inner,
    "np.outer": outer,
    "np.vdot": vdot,
    "np.linalg.norm": norm,
    "np.transpose": transpose,
    "np.reshape": reshape,
    "np.ravel": lambda a: reshape(a, (-1,)),
    "np.squeeze": squeeze,
    "np.expand_dims": expand_dims,
    "np.broadcast_to": broadcast_to,
    "np.concatenate": concatenate,
    "np.stack": stack,
    "np.hstack": hstack,
    "np.vstack": vstack,
    "np.column_stack": column_stack,
    "np.take": take,
    "np.shape": lambda a: a.shape,
    "np.ndim": lambda a: a.ndim,
    "np.size": lambda a, axis=None: a.size if axis is None else a.shape[axis],
    "np.copy": lambda a: a,
    "np.zeros_like": _np_full(0.0),
    "np.ones_like": _np_full(1.0),
    "np.full_like": _np_full_like,
}
