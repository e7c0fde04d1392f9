"""Plain Python functions of arrays: their gradients and derivatives, compiled; and every value on the way, to look at.

    loss = lambda w, x, t: fastbp.mean((fastbp.tanh(x @ w) - t) ** 2)
    value, dw = fastbp.value_and_grad(loss)(w, x, t)

A function is traced (run once with tracers, see :mod:`fastbp.tracing`) for every signature: the structure of its
arguments, their shapes and dtypes, and the values of what is neither array nor float (strings, None, booleans, Python
integers that are not differentiated). From then on a call runs the Program and no Python of the function.

- Arrays that the function captures are read anew at every call. If a variable that it reads (a global, a closure's,
  an attribute of an object or class, an item of a dict, list or tuple) is bound to something else, it is traced again.
- What it computes from captured arrays alone, random numbers and other effects happen once, when it is traced.

All is computed in float32 if all arrays of floats among the arguments are float32, else in float64; on a GPU if the
arrays are CuPy's, and so are the results then. Captured arrays must be of the same kind; numbers, lists and the NumPy
arrays that the function makes go with either. Labels on a GPU are not read: what is no class gives NaN.
"""

from __future__ import annotations

import enum
import functools
import inspect
import itertools
import operator
import sysconfig
import types
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastbp import arrays, backends, nodes, trees
from fastbp.arrays import DEVICE, HOST, Kind, is_array
from fastbp.backends import Machine
from fastbp.errors import GraphError, InputError, TraceError
from fastbp.nodes import Node
from fastbp.plan import plan
from fastbp.program import Program
from fastbp.tracing import Array, Feed, Tape, Tracer, as_floats, as_tracer, copied, is_traced, reduce, running

KEPT = 128  # signatures of a function
MOST_ROW_GUESSES = 3
Argnums = int | Sequence[int]

# ---- what people call ----------------------------------------------------------------------------------------------


def function(f: Callable[..., Any], *, backend: str | None = None) -> Callable[..., Any]:
    """The same function, run by a Program instead of by Python; for use as a decorator too.

    Args:
        f: a function of arrays, numbers and nested dicts, lists and tuples of them, in NumPy's or fastbp's functions.
        backend: None goes by the arrays of a call: CuPy's on "cuda", else NumPy's, and numbers, on the default.
    """
    again = functools.partial(function, backend=backend)
    return _Compiled(f, f, lambda count, static: set(), ("function",), backend, again)


def grad(f: Callable[..., Any], argnums: Argnums = 0, *, backend: str | None = None) -> Callable[..., Any]:
    """The gradient of a scalar function: ``grad(f)(*args)`` is df/dargs[argnums], of the argument's structure.

    Args:
        argnums: which arguments to differentiate with respect to; the gradients of several, as in (0, 1), are a tuple.

    Raises:
        InputError: f returns no scalar; an argument cannot be differentiated.
        TraceError: f does with a traced value what only a value could do.
    """
    argnums = _hashable(argnums)
    both = _with_gradient(f, argnums, False)

    def run(*args: Any, **rest: Any) -> Any:
        return both(*args, **rest)[1]

    again = functools.partial(grad, argnums=argnums, backend=backend)
    return _Compiled(f, run, _chosen(argnums, "grad"), ("grad", argnums), backend, again)


def value_and_grad(
    f: Callable[..., Any], argnums: Argnums = 0, has_aux: bool = False, *, backend: str | None = None
) -> Callable[..., Any]:
    """The pair (f(*args), gradient); see :func:`grad`.

    Args:
        has_aux: f returns (scalar, more): the value is (scalar, more) too, and only the scalar is differentiated.
    """
    argnums = _hashable(argnums)
    run, title = _with_gradient(f, argnums, has_aux), "value_and_grad"
    again = functools.partial(value_and_grad, argnums=argnums, has_aux=has_aux, backend=backend)
    return _Compiled(f, run, _chosen(argnums, title), (title, argnums, bool(has_aux)), backend, again)


def hvp(f: Callable[..., Any], argnums: Argnums = 0, *, backend: str | None = None) -> Callable[..., Any]:
    """The product of the Hessian and a vector: ``hvp(f)(*args, v)`` is d²f/dx² v with x = args[argnums].

    v has x's structure and shapes (a tuple of them if argnums is one), and so has the product. It is the gradient of
    grad · v, so its cost is a few times the gradient's; no matrix is made.
    """
    argnums = _hashable(argnums)

    def run(*args: Any, **rest: Any) -> Any:
        if len(args) < 2:
            raise InputError("hvp(f)(*args, v): the last argument is the vector; got fewer than two arguments")
        *inputs, v = args
        opened = _Opened(inputs, argnums, "hvp")
        first = opened.gradients(_scalar("hvp", f(*opened.args, **rest)))
        vectors = [v] if isinstance(argnums, int) else v
        if not isinstance(vectors, (list, tuple)) or len(vectors) != len(opened.positions):
            raise InputError(f"hvp: v must be a tuple of {len(opened.positions)} vectors, one for each of argnums")
        along = opened.like(vectors, "hvp: v")
        return opened.rebuilt(opened.gradients(_dot(first, along)))

    def fixed(count: int, static: frozenset[int]) -> set[int]:
        return _chosen(argnums, "hvp")(count - 1, static) | {count - 1} if count > 1 else set()

    again = functools.partial(hvp, argnums=argnums, backend=backend)
    return _Compiled(f, run, fixed, ("hvp", argnums), backend, again)


def jvp(f: Callable[..., Any], *, backend: str | None = None) -> Callable[..., Any]:
    """The derivative along a direction: ``jvp(f)(args, tangents)`` is the pair (f(*args), Σ df/dargs[i] tangents[i]).

    f may return any structure of arrays; the derivative has the same. ``tangents`` has an entry of the structure of
    each argument, or None for one that stays as it is. It is the derivative of the (linear) vector-Jacobian product,
    so the Program holds the tangents' operations alone.
    """

    def run(*both: Any) -> Any:
        args, tangents = both[: len(both) // 2], both[len(both) // 2 :]
        moved = tuple(k for k, tangent in enumerate(tangents) if tangent is not None)
        if not moved:
            raise InputError("jvp: all tangents are None: give one at least")
        opened = _Opened(args, moved, "jvp")
        along = opened.like([tangents[k] for k in moved], "jvp: tangents")
        out = f(*opened.args)
        leaves, structure = trees.flatten(out)
        tape = _tape()
        traced = [as_floats(leaf) for leaf in leaves if isinstance(leaf, Tracer)]
        zeros = [tape.constant(np.zeros(leaf.shape)) for leaf in traced]  # what a vector-Jacobian product is linear in
        found: list[Tracer] = []
        if traced:
            product = opened.gradients(_dot(zeros, traced))
            total = _dot(product, along)
            derivatives = nodes.gradients(total.node, [z.node for z in zeros])
            found = [Tracer(tape, d, z.shape) for d, z in zip(derivatives, zeros, strict=True)]
        rest = iter(found)
        moves = [next(rest) if isinstance(leaf, Tracer) else _still(leaf) for leaf in leaves]
        return out, trees.unflatten(structure, moves)

    def fixed(count: int, static: frozenset[int]) -> set[int]:
        half = count // 2
        return {k % half for k in range(half, count) if k not in static} | set(range(half, count))

    compiled = _Compiled(f, run, fixed, ("jvp",), backend)

    @functools.wraps(f, updated=())
    def call(args: Any, tangents: Any) -> Any:
        if not all(isinstance(given, (tuple, list)) for given in (args, tangents)) or len(args) != len(tangents):
            raise InputError("jvp(f)(args, tangents): two tuples of the same length, an entry for each argument of f")
        return compiled(*args, *tangents)

    return call


# ---- differentiating while a function is traced --------------------------------------------------------------------


def _tape() -> Tape:
    tape = running()
    assert tape is not None
    return tape


def _hashable(argnums: Argnums) -> Argnums:
    """A list of numbers as a tuple."""
    return tuple(argnums) if isinstance(argnums, list) else argnums


def _positions(argnums: Argnums, count: int, title: str) -> tuple[int, ...]:
    """The chosen arguments' numbers from 0 on."""
    given: Sequence[Any] = argnums if isinstance(argnums, tuple) else (argnums,)
    for k in given:
        if isinstance(k, bool) or not isinstance(k, int):
            raise InputError(f"{title}: argnums must be an integer or a tuple of integers, got {argnums!r}")
        if not -count <= k < count:
            raise InputError(f"{title}: argnums={argnums!r}, but the function is called with {count} arguments")
    found = tuple(k % count for k in given)
    if len(set(found)) != len(found) or not found:
        raise InputError(f"{title}: argnums={argnums!r} must name one argument at least, and each once")
    return found


def _chosen(argnums: Argnums, title: str) -> Callable[[int, frozenset[int]], set[int]]:
    return lambda count, static: set(_positions(argnums, count, title))


class _Opened:
    """Arguments with those that are differentiated copied, so that what else is made of their values stays constant.

    Attributes:
        args: the arguments to call the function with.
    """

    def __init__(self, args: Sequence[Any], argnums: Argnums, title: str) -> None:
        self.positions = _positions(argnums, len(args), title)
        self.args = list(args)
        self._single = isinstance(argnums, int)
        self._structures: list[Any] = []
        self._leaves: list[list[Any]] = []
        for k in self.positions:
            leaves, structure = trees.flatten(args[k])
            names = trees.paths(structure, f"argument {k}")
            opened = [_open(title, name, leaf) for name, leaf in zip(names, leaves, strict=True)]
            if not is_traced(*opened):
                raise InputError(f"{title}: argument {k} holds no array of floats and no number: {args[k]!r}")
            self.args[k] = trees.unflatten(structure, opened)
            self._structures.append(structure)
            self._leaves.append(opened)

    @property
    def tracers(self) -> list[Tracer]:
        return [leaf for leaves in self._leaves for leaf in leaves if isinstance(leaf, Tracer)]

    def gradients(self, target: Tracer) -> list[Tracer]:
        """dtarget/dx for every x that was opened."""
        found = nodes.gradients(target.node, [x.node for x in self.tracers])
        return [Tracer(_tape(), g, x.shape) for g, x in zip(found, self.tracers, strict=True)]

    def rebuilt(self, gradients: Sequence[Tracer]) -> Any:
        """Gradients in the structure of the arguments, None in the place of what has none."""
        rest = iter(gradients)
        parts = [
            trees.unflatten(structure, [next(rest) if isinstance(leaf, Tracer) else None for leaf in leaves])
            for structure, leaves in zip(self._structures, self._leaves, strict=True)
        ]
        return parts[0] if self._single else tuple(parts)

    def like(self, values: Sequence[Any], title: str) -> list[Tracer]:
        """The leaves of other values of the same structures and shapes, as tracers."""
        found = []
        for structure, leaves, value in zip(self._structures, self._leaves, values, strict=True):
            given = trees.leaves_in(structure, value)
            if given is None:
                theirs = trees.show(trees.flatten(value)[1])
                raise InputError(f"{title} must have the argument's structure {trees.show(structure)}, got {theirs}")
            for leaf, other in zip(leaves, given, strict=True):
                if isinstance(leaf, Tracer):
                    tracer = as_tracer(title, other)
                    if tracer.shape != leaf.shape:
                        raise InputError(f"{title} must have the argument's shape {leaf.shape}, got {tracer.shape}")
                    found.append(as_floats(tracer))
        return found


def _open(title: str, name: str, leaf: Any) -> Any:
    if leaf is None or isinstance(leaf, (bool, np.bool_, str)) or (callable(leaf) and not isinstance(leaf, Tracer)):
        return leaf
    tracer = as_tracer(title, leaf)
    if tracer.is_integer or tracer.mask:
        raise InputError(f"{title}: {name} is an array of integers, which has no gradient; pass {name}.astype(float)")
    return Tracer(_tape(), copied(tracer.node), tracer.shape)


def _scalar(title: str, value: Any) -> Tracer:
    """What a function that is differentiated returned."""
    numeric = isinstance(value, (Tracer, int, float, np.generic)) or is_array(value)
    shape = getattr(value, "shape", ()) if numeric else None
    if shape != ():
        got = f"an array of shape {shape}" if numeric else f"a {type(value).__name__}"
        hint = (
            "take fastbp.sum or fastbp.mean of it"
            if numeric
            else "(value_and_grad(has_aux=True) for a scalar and more)"
        )
        raise InputError(f"{title}: the function must return a scalar; it returned {got}; {hint}")
    return as_floats(as_tracer(title, value))


def _dot(a: Sequence[Tracer], b: Sequence[Tracer]) -> Tracer:
    """Σ over all leaves of the products."""
    parts = [reduce("sum", x * y) for x, y in zip(a, b, strict=True)]
    return functools.reduce(lambda x, y: x + y, parts)


def _still(leaf: Any) -> Any:
    """The derivative of an output that depends on nothing."""
    if is_array(leaf):
        return arrays.xp_of(leaf).zeros(leaf.shape)
    return np.float64(0.0) if isinstance(leaf, (float, np.floating)) else None


def _with_gradient(f: Callable[..., Any], argnums: Argnums, has_aux: bool) -> Callable[..., Any]:
    title = "value_and_grad" if has_aux else "grad"

    def run(*args: Any, **rest: Any) -> Any:
        opened = _Opened(args, argnums, title)
        out = f(*opened.args, **rest)
        if has_aux and not (isinstance(out, tuple) and len(out) == 2):
            raise InputError(f"{title}: with has_aux=True the function must return a pair (scalar, more), got {out!r}")
        loss = _scalar(title, out[0] if has_aux else out)
        gradients = opened.rebuilt(opened.gradients(loss))
        return ((loss, out[1]) if has_aux else loss), gradients

    return run


# ---- compiled functions --------------------------------------------------------------------------------------------

# by the id of a function or callable object, which is no other's while it lives; objects may be equal and yet differ
_caches: dict[int, tuple[weakref.ref[Any], dict[Any, dict[Any, _Entry]]]] = {}


def _cache(f: Any, key: object) -> dict[Any, _Entry]:
    """What is kept of a function: for all that is made of it, and gone with it; a bound method's, with its object."""
    if isinstance(f, types.MethodType):  # a new one at every access
        f, key = f.__self__, (key, f.__func__)
    number = id(f)
    try:
        if number not in _caches:
            _caches[number] = weakref.ref(f, lambda _: _caches.pop(number, None)), {}
        return _caches[number][1].setdefault(key, {})
    except TypeError:  # not hashable, or no weak references
        return {}


class _Compiled:
    """A function that is traced once a signature, and run as a Program; while another is traced, a part of that one."""

    def __init__(
        self,
        f: Callable[..., Any],
        inline: Callable[..., Any],
        fixed: Callable[[int, frozenset[int]], set[int]],
        kind: tuple[Any, ...],
        backend: str | None,
        again: Callable[[Callable[..., Any]], Any] | None = None,
    ) -> None:
        """``fixed(number of arguments, those that are None)``: positions of arguments that are no data.

        ``again``: the same made of another function.
        """
        if not callable(f):
            raise InputError(f"{kind[0]}: f must be a function, got {f!r}")
        if len(kind) > 1:
            _positions(kind[1], 1 << 20, kind[0])
        if backend is not None:
            backends.resolve(backend)
        functools.update_wrapper(self, f, updated=())
        self.f = f
        self._inline = inline
        self._fixed = fixed
        self._backend = backend
        self._again = again
        self._entries = _cache(f, kind)

    def __get__(self, owner: Any, kind: type | None = None) -> Any:
        """A method that was decorated, of its object: ``self`` is captured, arguments are counted without it."""
        return self if owner is None or self._again is None else self._again(types.MethodType(self.f, owner))

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        if running() is not None:
            return self._inline(*args, **kwargs)
        leaves, structure = trees.flatten((args, kwargs))
        kind, machine = _switch(leaves, structure, self._backend)
        key = _key(machine, structure, leaves)
        entry = self._entries.get(key) if key is not None else None
        if entry is not None and not entry.captured.changed():
            return entry(leaves)
        entry, result = self._traced(leaves, structure, kind, machine)
        if key is not None:
            while len(self._entries) >= KEPT:
                self._entries.pop(next(iter(self._entries)))
            self._entries[key] = entry
        return result

    def program(self, /, *args: Any, **kwargs: Any) -> Program | None:
        """The Program that a call with these arguments runs, None if it computes nothing; ``explain(n)`` shows it."""
        self(*args, **kwargs)
        leaves, structure = trees.flatten((args, kwargs))
        key = _key(_switch(leaves, structure, self._backend)[1], structure, leaves)
        if key is None:
            raise InputError("program: an argument has no hash, so its Program is not kept")
        return self._entries[key].program

    def _traced(self, leaves: list[Any], structure: Any, kind: Kind, machine: Machine) -> tuple[_Entry, Any]:
        """A new entry, and the result of its first call."""
        (_, _, ((_, count, _), _)) = structure
        values, positions = _checked(leaves, structure)
        captured = _Captured(self.f)
        fixed = self._fixed(count, frozenset(p for p, v in zip(positions, values, strict=True) if v is None))
        # rows that are none can only be the batch's, even of what is differentiated
        without_rows = [is_array(v) and v.shape[:1] == (0,) for v in values]
        data = [p not in fixed or none for p, none in zip(positions, without_rows, strict=True)]
        found = [v for v, free in zip(values, data, strict=True) if free and is_array(v) and v.ndim == 2]
        heights = [0] * any(without_rows) + [v.shape[0] for v in found]
        guesses = list(dict.fromkeys(n for n in heights if n != 1))[:MOST_ROW_GUESSES]
        dtype = _dtype(leaves)
        for n in guesses or [None]:
            try:
                tape = Tape(n, dtype, kind=kind, outside=captured.arrays, guesses_rows=not guesses)
                entry = _Entry(tape, self._inline, values, data, structure, machine, captured)
                return entry, entry(leaves)
            except TraceError:
                raise
            except GraphError:  # a function that mixes the rows with numbers of its own, as if they were 5 and not n
                continue
        tape = Tape(None, dtype, kind=kind, outside=captured.arrays)
        entry = _Entry(tape, self._inline, values, [False] * len(data), structure, machine, captured)
        return entry, entry(leaves)


def _switch(leaves: list[Any], structure: Any, backend: str | None) -> tuple[Kind, Machine]:
    """The kind of the arguments' arrays, and what computes on them."""
    try:
        return arrays.switch(enumerate(leaves), backend)
    except InputError:
        return arrays.switch(zip(_paths(structure)[0], leaves, strict=True), backend)  # the same, with names


def _key(machine: Machine, structure: Any, leaves: list[Any]) -> Any:
    """What tells signatures apart; None where something has no hash."""
    try:
        key = (machine, structure, *[_spec(leaf) for leaf in leaves])
        hash(key)
    except TypeError:
        return None
    return key


def _spec(leaf: Any) -> Any:
    """What a trace depends on: shape and dtype of an array, the value of what is neither array nor float."""
    kind = type(leaf)
    if kind is np.ndarray:
        return leaf.shape, leaf.dtype.char
    if kind is float:
        return kind
    if is_array(leaf):
        return kind, leaf.shape, leaf.dtype.char
    return kind if isinstance(leaf, np.floating) else (kind, leaf)


_STATIC = (type(None), bool, int, str, bytes, np.integer, np.bool_, np.dtype, enum.Enum)


def _checked(leaves: list[Any], structure: Any) -> tuple[list[Any], list[int]]:
    """The leaves, floats as arrays; and for each which argument it is of, -1 for a keyword's."""
    paths, positions = _paths(structure)
    return [_value(path, leaf) for path, leaf in zip(paths, leaves, strict=True)], positions


def _paths(structure: Any) -> tuple[list[str], list[int]]:
    """For every leaf of (args, kwargs) its name, and which argument it is of."""
    _, _, (of_args, of_kwargs) = structure
    names = [f"argument {k}" for k in range(of_args[1])] + list(of_kwargs[1])
    paths: list[str] = []
    positions: list[int] = []
    for k, (name, inside) in enumerate(zip(names, (*of_args[2], *of_kwargs[2]), strict=True)):
        found = trees.paths(inside, name)
        paths += found
        positions += [k if k < of_args[1] else -1] * len(found)
    return paths, positions


def _value(name: str, leaf: Any) -> Any:
    if isinstance(leaf, (float, np.floating)):
        return np.asarray(leaf, np.float64)
    if is_array(leaf):
        array = arrays.asarray(name, leaf, "an array of numbers", arrays.kind_of(leaf) or HOST)
        if array.dtype.kind not in "biuf":
            hint = "; split it into real and imaginary part" if array.dtype.kind == "c" else ""
            raise InputError(f"{name} must be an array of real numbers; got dtype {array.dtype}{hint}")
        if array.ndim > 2:
            raise InputError(f"{name} must have at most 2 dimensions; got shape {array.shape}")
        return array
    if isinstance(leaf, Tracer):
        raise TraceError(
            f"{name} is {leaf!r}, of a function that has returned: tracers must not leave the function that is traced"
        )
    if isinstance(leaf, (complex, np.complexfloating)):
        raise InputError(f"{name} is complex: {leaf!r}; fastbp computes with real numbers")
    if isinstance(leaf, _STATIC) or (callable(leaf) and not hasattr(leaf, "__array__")):
        return leaf
    hint = "; pass np.asarray of it" if hasattr(leaf, "__array__") or hasattr(leaf, "__dlpack__") else ""
    raise InputError(
        f"{name} is a {type(leaf).__name__}; arguments are arrays, numbers, dicts, lists and tuples of them, and "
        f"strings, None, booleans and functions{hint}"
    )


def _dtype(leaves: Sequence[Any]) -> str:
    """float32 if all arrays of floats are, numbers of NumPy's if there are no arrays; else float64."""
    numbers = [leaf for leaf in leaves if (isinstance(leaf, np.floating) or is_array(leaf)) and leaf.dtype.kind == "f"]
    of_numbers = {leaf.dtype for leaf in numbers}
    of_arrays = {leaf.dtype for leaf in numbers if leaf.ndim}
    return "float32" if (of_arrays or of_numbers) == {np.dtype(np.float32)} else "float64"


class _Entry:
    """One signature's Program, with what leads from leaves to matrices and back."""

    def __init__(
        self,
        tape: Tape,
        inline: Callable[..., Any],
        values: list[Any],
        data: list[bool],
        structure: Any,
        machine: Machine,
        captured: _Captured,
    ) -> None:
        with tape:
            inside = [_argument(tape, k, v, data[k]) for k, v in enumerate(values)]
            args, kwargs = trees.unflatten(structure, inside)
            out = _called(inline, args, kwargs)
            found, self._structure = trees.flatten(out)
            traced = {f"out{k}": leaf for k, leaf in enumerate(found) if isinstance(leaf, Tracer)}
            outputs = {name: tracer.node for name, tracer in traced.items()}
        self._leaves: list[Any] = [None if isinstance(leaf, Tracer) else leaf for leaf in found]
        self._arrays = [number for number, leaf in enumerate(found) if isinstance(leaf, np.ndarray)]
        captured.settle()
        self.captured = captured
        self.program = plan(outputs) if outputs else None
        self._n = 1 if tape.n is None else tape.n
        self._dtype = tape.dtype
        self._kind = tape.kind
        self._array: Any = tape.kind.xp.ndarray
        self._run = backends.executable(self.program, machine.backend, tape.dtype.name).run if self.program else None
        self._results: list[tuple[int, str, tuple[int, ...], bool]] = []  # place, name, shape, whether to copy
        self._static: dict[str, Array] = {}  # captured arrays that are matrices already
        self._floats: list[tuple[str, int | Array, tuple[int, int]]] = []
        self._integers: list[tuple[str, Feed]] = []
        self._place(tape, traced)

    def _place(self, tape: Tape, traced: dict[str, Tracer]) -> None:
        program = self.program
        if program is None:
            return
        seen = set()
        for name, tracer in traced.items():
            index = program.outputs[name]
            base = program.buffers[index].base
            root = index if base is None else base
            self._results.append((int(name[3:]), name, tracer.shape, root in seen))  # what is equal lies in one place
            seen.add(root)
        for name in program.inputs:
            feed = tape.feeds[name]
            if feed.integer:
                self._integers.append((name, feed))
            elif not isinstance(feed.source, int) and self._is_plain(feed.source):
                self._static[name] = feed.source.reshape(feed.shape)
            else:
                self._floats.append((name, feed.source, feed.shape))

    def _is_plain(self, array: Array) -> bool:
        return type(array) is self._array and array.dtype == self._dtype and bool(array.flags.c_contiguous)

    def __call__(self, leaves: list[Any]) -> Any:
        out = list(self._leaves)
        for number in self._arrays:
            out[number] = out[number].copy()  # results are the caller's
        if self._run is not None:
            values = dict(self._static)
            dtype, plain = self._dtype, self._array
            for name, source, shape in self._floats:
                leaf: Any = leaves[source] if type(source) is int else source
                if type(leaf) is plain and leaf.dtype == dtype and leaf.flags.c_contiguous:
                    values[name] = leaf if leaf.shape == shape else leaf.reshape(shape)
                else:
                    values[name] = _matrix(leaf, dtype, shape, self._kind)
            for name, feed in self._integers:
                values[name] = _indices(feed, leaves[feed.source] if isinstance(feed.source, int) else feed.source)
            found = self._run(values, self._n)
            for place, name, size, copy in self._results:
                value = found[name]
                if not size:
                    out[place] = value[0, 0]
                else:
                    value = value if len(size) == 2 else value.reshape(size)
                    out[place] = value.copy() if copy else value
        return trees.unflatten(self._structure, out)


def _called(f: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """f(*args, **kwargs), with what NumPy makes of a TraceError taken back."""
    try:
        return f(*args, **kwargs)
    except (TypeError, ValueError) as error:
        if isinstance(error.__cause__, TraceError):
            raise error.__cause__ from None
        raise


def _matrix(value: Any, dtype: np.dtype[Any], shape: tuple[int, int], kind: Kind) -> Array:
    if kind is HOST or is_array(value):
        return (arrays.contiguous(value, dtype) if kind is DEVICE else _on_host(value, dtype)).reshape(shape)
    number: Array = kind.xp.full(shape, float(value), dtype)
    return number


def _on_host(value: Any, dtype: np.dtype[Any]) -> Array:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        return np.ascontiguousarray(value, dtype)


def _indices(feed: Feed, value: Array) -> Array:
    """An int64 column, with numbers from the end made positive; InputError if one is out of range.

    Labels on a GPU are not looked at: that would wait for it, and what is none makes NaN.
    """
    column = arrays.contiguous(value, np.int64).reshape(feed.shape)
    if feed.limit is None or not column.size or (arrays.kind_of(column) is DEVICE and not feed.wraps):
        return column
    low, high = int(value.min()), int(value.max())  # not the column's: what uint64 alone can hold is negative there
    least = -feed.limit if feed.wraps else 0
    if low < least or high >= feed.limit:
        what = f"an index into {feed.limit} rows" if feed.wraps else "a label"
        raise InputError(f"{what} must lie in {least} … {feed.limit - 1}; got {low if low < least else high}")
    return column if low >= 0 else arrays.xp_of(column).where(column < 0, column + feed.limit, column)


def _argument(tape: Tape, number: int, value: Any, data: bool) -> Any:
    if is_array(value):
        return tape.argument(number, value, fixed=not data)
    return value


# ---- what a function captures --------------------------------------------------------------------------------------

MOST_WATCHED = 1000  # variables that a function reads from outside
_MISSING = object()
_INSTALLED = tuple(sysconfig.get_paths()[kind] for kind in ("stdlib", "purelib", "platlib"))


class _Captured:
    """The variables that a Python function reads from outside, and what they are bound to.

    Followed are globals, closures, defaults, functions that it calls (but for installed packages'), dicts, lists and
    tuples, and the attributes of objects and classes that the code mentions.

    Attributes:
        arrays: ids of the arrays among them.
    """

    def __init__(self, f: Any) -> None:
        self._watched: list[tuple[Callable[[Any], Any], Any, Any]] = []  # value = read(place)
        self._places: set[tuple[int, Any]] = set()  # that are watched already
        self._seen: dict[int, tuple[Any, frozenset[str]]] = {}  # values, alive so that no other gets the id, and names
        self.arrays: set[int] = set()
        self._waiting: list[tuple[Any, frozenset[str]]] = [(f, frozenset())]
        while self._waiting and len(self._watched) < MOST_WATCHED:
            self._follow(*self._waiting.pop())
        for emptied in (self._waiting, self._seen, self._places):  # they would keep the function alive
            emptied.clear()

    def changed(self) -> bool:
        """Whether a variable is bound to something else by now."""
        try:
            for read, place, value in self._watched:
                now = read(place)
                if now is not value and not _same(now, value):
                    return True
        except (LookupError, ValueError, AttributeError):  # gone
            return True
        return False

    def settle(self) -> None:
        """Forget what the function itself has changed, as it does a counter or a log."""
        watched, kept = self._watched, []
        for place in watched:
            self._watched = [place]
            if not self.changed():
                kept.append(place)
        self._watched = kept

    def _follow(self, value: Any, names: frozenset[str]) -> None:
        """What a value leads to; ``names`` are those that the code which reads it mentions."""
        if is_array(value):
            self.arrays.add(id(value))
            return
        if isinstance(value, (np.generic, str, int, float)):
            return
        first = id(value) not in self._seen
        before = frozenset() if first else self._seen[id(value)][1]
        if not first and names <= before:
            return
        names |= before
        self._seen[id(value)] = value, names
        if isinstance(value, types.FunctionType):
            if first:
                self._function(value)
            if not _is_ours(value.__module__):
                for name in sorted(names & vars(value).keys()):
                    self._item(vars(value), name, names)
        elif isinstance(value, types.MethodType):
            self._waiting.append((value.__func__, names))
            self._waiting.append((value.__self__, names | _names(value.__func__)))
        elif isinstance(value, functools.partial):
            self._waiting += [(part, names) for part in (value.func, value.args, value.keywords)]
        elif isinstance(value, _Compiled):
            self._waiting.append((value.f, names))
        elif isinstance(value, (dict, list, tuple)):
            if not isinstance(value, tuple):
                self._watch((id(value), len), value, len)
            keys = value if isinstance(value, dict) else range(len(value))
            for key in itertools.islice(keys, MOST_WATCHED):
                self._item(value, key, names)
        elif isinstance(value, types.ModuleType):
            if not _is_ours(value.__name__):
                for name in sorted(names & vars(value).keys()):
                    self._item(vars(value), name, names)
        elif isinstance(value, type):
            if not _is_ours(value.__module__):
                self._attributes(value, names | self._methods(value, names | {"__init__"}), value)
        elif not _is_ours(type(value).__module__):
            names |= self._methods(type(value), names | {"__call__"})
            self._attributes(value, names, type(value))
            self._waiting.append((type(value), names))  # methods may read its attributes from there

    def _methods(self, kind: type, names: frozenset[str]) -> frozenset[str]:
        """Follow the methods and properties that are mentioned, by each other too; the names that they mention."""
        waiting, found = set(names), set(names)
        while waiting:
            method = inspect.getattr_static(kind, waiting.pop(), None)
            method = getattr(method, "fget", None) or getattr(
                method, "__func__", method
            )  # a property's, a classmethod's
            method = method.f if isinstance(method, _Compiled) else method
            if isinstance(method, types.FunctionType):
                self._waiting.append((method, frozenset()))
                waiting |= _names(method) - found
                found |= _names(method)
        return frozenset(found)

    def _attributes(self, value: Any, names: frozenset[str], kind: type) -> None:
        """Watch an object's attributes that are mentioned, its own and its class's, or a class's."""
        own = {} if value is kind else getattr(value, "__dict__", {})
        for name in sorted(names):
            found = inspect.getattr_static(kind, name, _MISSING)
            in_slot = isinstance(found, types.MemberDescriptorType)
            plain = found is not _MISSING and (in_slot or not hasattr(type(found), "__get__"))
            if not plain and (name not in own or hasattr(type(found), "__set__")):
                continue  # not there, or computed when it is read
            try:
                self._waiting.append((getattr(value, name), names))
            except AttributeError:  # a slot that is empty yet
                continue
            try:
                place = weakref.ref(value)  # what is kept of a callable object must not keep it alive
            except TypeError:
                self._watch((id(value), name), value, operator.attrgetter(name))
            else:
                self._watch((id(value), name), place, _attribute_of(name))

    def _item(self, container: Any, key: Any, names: frozenset[str]) -> None:
        value = container[key]
        if not isinstance(value, types.ModuleType):
            self._watch((id(container), key), container, operator.itemgetter(key))
        self._waiting.append((value, names))

    def _watch(self, what: tuple[int, Any], place: Any, read: Callable[[Any], Any]) -> None:
        if what not in self._places:
            self._places.add(what)
            self._watched.append((read, place, read(place)))

    def _function(self, f: types.FunctionType) -> None:
        if _is_ours(f.__module__) or f.__code__.co_filename.startswith(_INSTALLED):
            return
        names = _names(f)
        for name in sorted(names & f.__globals__.keys()):
            self._item(f.__globals__, name, names)
        for cell in f.__closure__ or ():
            try:
                value = cell.cell_contents
            except ValueError:  # not bound yet
                continue
            self._watched.append((operator.attrgetter("cell_contents"), cell, value))
            self._waiting.append((value, names))
        for default in (*(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values()):
            self._waiting.append((default, names))


def _attribute_of(name: str) -> Callable[[Any], Any]:
    read = operator.attrgetter(name)
    return lambda reference: read(reference())


def _is_ours(module: str | None) -> bool:
    """Whether what is in the module does not change."""
    return (module or "").partition(".")[0] in ("fastbp", "numpy", "cupy")


def _names(f: Any) -> frozenset[str]:
    """Globals and attributes that a function's code mentions, inner functions' included."""
    found: set[str] = set()
    codes = [f.__code__] if isinstance(f, types.FunctionType) else []
    while codes:
        code = codes.pop()
        found.update(code.co_names)
        codes += [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return frozenset(found)


def _same(new: Any, old: Any) -> bool:
    """Whether another object is as good: an equal number or string."""
    return type(new) is type(old) and isinstance(new, (int, float, str, np.generic)) and bool(new == old)


# ---- every value on the way ----------------------------------------------------------------------------------------

Value = npt.NDArray[Any] | float


@dataclass(frozen=True)
class Edge:
    """What a step hands back to one of its inputs: its part of dL/dinput."""

    source: int
    contribution: Value


@dataclass(frozen=True)
class Step:
    """One value of a function.

    Attributes:
        number: 0, 1, … in order; arguments come first.
        name: of the operation; "input" and "constant" for what comes in and what is captured.
        text: the operation with its inputs' symbols.
        symbol: what later steps call it: an argument's name, else v and its number.
        inputs: numbers of the steps that it is made of.
        gradient: dL/dvalue, the sum of what the edges into it hand back.
        edges: to each of its inputs, in their order.
    """

    number: int
    name: str
    text: str
    symbol: str
    inputs: tuple[int, ...]
    value: Value
    gradient: Value
    edges: tuple[Edge, ...]


@dataclass(frozen=True)
class Trace:
    """A function's steps with values forward and gradients backward; ``print`` shows it as a table.

    Attributes:
        steps: in the order of the forward pass; the last that counts is the result.
        result: number of the step that is returned.
        gradients: of the chosen arguments, in their structure.
    """

    steps: tuple[Step, ...]
    result: int
    gradients: Any

    @property
    def value(self) -> Value:
        """What the function returned."""
        return self.steps[self.result].value

    def __str__(self) -> str:
        head = ("step", "value", f"dL/dstep, L = {self.steps[self.result].symbol}", "hands back")
        rows = [head, *(self._row(step) for step in self.steps)]
        widths = [max(len(row[k]) for row in rows) for k in range(3)]
        lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]) for row in rows]
        return "\n".join([lines[0].rstrip(), "-" * max(map(len, lines)), *(line.rstrip() for line in lines[1:])])

    def _row(self, step: Step) -> tuple[str, str, str, str]:
        text = step.text if step.name in ("input", "constant") else f"{step.symbol} = {step.text}"
        back = "; ".join(f"to {self.steps[e.source].symbol}: {self._product(step, e)}" for e in step.edges)
        return text, _shown(step.value), _shown(step.gradient), back

    def _product(self, step: Step, edge: Edge) -> str:
        """Of scalars the chain rule's product, gradient · local derivative."""
        g, part = step.gradient, edge.contribution
        if np.ndim(g) == np.ndim(part) == 0 and g != 0 and np.isfinite(part / g):
            return f"{_shown(g)} · {_shown(part / g)} = {_shown(part)}"
        return _shown(part)


def _shown(value: Value) -> str:
    """A number, a small array, or the shape and size of a large one, on one line."""
    array = np.asarray(value)
    if array.size <= 4:
        return str(np.vectorize(lambda x: f"{x:.4g}", otypes=[str])(array).tolist()).replace("'", "")
    return f"{' × '.join(map(str, array.shape))}, norm {np.linalg.norm(array):.4g}"


_INFIX = {
    "add": "+",
    "sub": "-",
    "mul": "·",
    "div": "/",
    "matmul": "@",
    "power": "**",
    "greater": ">",
    "greater_equal": ">=",
    "equal": "==",
}


def trace(f: Callable[..., Any], *args: Any, argnums: Argnums | None = None, backend: str | None = None) -> Trace:
    """Run a scalar function once and keep every value, its gradient, and what each edge of the graph hands back.

    They are NumPy's, to be looked at, wherever they were computed.

    Args:
        args: as for :func:`grad`.
        argnums: the arguments whose ``Trace.gradients`` are wanted; None for all, as a tuple.
    """
    if running() is not None:
        raise TraceError("trace cannot be called by a function that is traced")
    leaves, structure = trees.flatten((args, {}))
    values, positions = _checked(leaves, structure)
    chosen = tuple(range(len(args))) if argnums is None else _hashable(argnums)
    wanted = _positions(chosen, len(args), "trace")
    names = _argument_names(f, args)
    kind, machine = _switch(leaves, structure, backend)
    tape = Tape(None, _dtype(leaves), kind=kind, outside=_Captured(f).arrays, teaching=True)
    with tape:
        inside = [_argument(tape, k, _float_if_number(v, positions[k] in wanted), False) for k, v in enumerate(values)]
        out = _scalar("trace", _called(f, *trees.unflatten(structure, inside)))
        steps = _numbered(tape, inside, names, out)
        edges = [edge for step in steps for edge in step.edges]
        forward = [step.tracer.node for step in steps]
        backward = nodes.gradients(out.node, [*forward, *edges])
    named = {f"v{k}": node for k, node in enumerate([*forward, *backward])}
    program = plan(named)
    run = backends.executable(program, machine.backend, tape.dtype.name)
    given = {name: _fed(tape, tape.feeds[name], leaves) for name in program.inputs}
    found = run.run(given, 1)
    results = [arrays.to_host(found[name]) for name in named]
    gradients = results[len(steps) : 2 * len(steps)]
    handed = iter(results[2 * len(steps) :])
    shapes = [step.tracer.shape for step in steps]

    def value(matrix: Array, shape: tuple[int, ...]) -> Value:
        return matrix.reshape(shape)[()].copy()

    done = tuple(
        Step(
            number,
            step.name,
            step.text,
            step.symbol,
            step.inputs,
            value(results[number], shapes[number]),
            value(gradients[number], shapes[number]),
            tuple(Edge(k, value(next(handed), shapes[k])) for k in step.inputs),
        )
        for number, step in enumerate(steps)
    )
    number_of = {id(step.tracer): k for k, step in enumerate(steps)}
    per_leaf = [done[number_of[id(t)]].gradient if id(t) in number_of else None for t in inside]
    of_args = trees.unflatten(structure, per_leaf)[0]
    picked = tuple(of_args[k] for k in wanted)
    return Trace(done, number_of[id(out)], picked[0] if isinstance(argnums, int) else picked)


def _float_if_number(value: Any, wanted: bool) -> Any:
    number = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return np.asarray(value, np.float64) if wanted and number else value


def _fed(tape: Tape, feed: Feed, leaves: list[Any]) -> Array:
    value = leaves[feed.source] if isinstance(feed.source, int) else feed.source
    return _indices(feed, value) if feed.integer else _matrix(value, tape.dtype, feed.shape, tape.kind)


@dataclass(frozen=True)
class _Line:
    """A step before it has values."""

    name: str
    text: str
    symbol: str
    inputs: tuple[int, ...]
    edges: tuple[Node, ...]
    tracer: Tracer


def _numbered(tape: Tape, inside: list[Any], names: list[str], out: Tracer) -> list[_Line]:
    """The lines of a teaching tape, after its arguments; captured arrays where they are read first."""
    lines: list[_Line] = []
    number_of: dict[int, int] = {}

    def add(line: _Line) -> None:
        number_of[id(line.tracer)] = len(lines)
        lines.append(line)

    def leaf(tracer: Any, name: str, symbol: str) -> None:
        if isinstance(tracer, Tracer) and id(tracer) not in number_of:
            add(_Line(name, symbol, symbol, (), (), tracer))

    for tracer, name in zip(inside, names, strict=True):
        if isinstance(tracer, Tracer) and not tracer.is_integer:
            leaf(tracer, "input", name)
    for written in tape.lines or ():
        traced = [o for o in written.operands if isinstance(o, Tracer)]
        for operand in traced:
            known = [name for t, name in zip(inside, names, strict=True) if t is operand]
            leaf(operand, "constant", known[0] if known else f"c{len(lines)}")
        symbols = [lines[number_of[id(o)]].symbol if isinstance(o, Tracer) else f"{o:g}" for o in written.operands]
        inputs = tuple(number_of[id(o)] for o in traced)
        text = _text(written.name, symbols, written.note)
        add(_Line(written.name, text, f"v{len(lines)}", inputs, written.edges, written.out))
    leaf(out, "constant", f"c{len(lines)}")
    return lines


def _text(name: str, symbols: list[str], note: str) -> str:
    if name in _INFIX:
        return f"{symbols[0]} {_INFIX[name]} {symbols[1]}"
    match name:
        case "neg":
            return f"-{symbols[0]}"
        case "transpose":
            return f"{symbols[0]}.T"
        case "index":
            return f"{symbols[0]}[{note}]"
        case "concatenate" | "stack":
            return f"{name}({', '.join([*symbols, *([note] if note else [])])})"
    return f"{name}({', '.join([*symbols, *([note] if note else [])])})"


def _argument_names(f: Callable[..., Any], args: tuple[Any, ...]) -> list[str]:
    """A name for every leaf: the parameter's, and the way from there."""
    try:
        parameters = [p.name for p in inspect.signature(f).parameters.values() if p.kind in (0, 1)]
    except (TypeError, ValueError):
        parameters = []
    names: list[str] = []
    for k, arg in enumerate(args):
        names += trees.paths(trees.flatten(arg)[1], parameters[k] if k < len(parameters) else f"x{k}")
    return names
