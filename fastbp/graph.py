"""Computational graphs for users: declare, combine, differentiate, compile.

    from fastbp import graph
    x, w = graph.input("x", cols=3), graph.param("w", (3, 1))
    loss = ((x @ w).sigmoid() - 1.0).square().mean()
    (dw,) = graph.gradients(loss, [w])               # a node again: gradients of gradients work
    f = graph.compile([loss, dw])
    value, gradient = f(x=X, w=W)

Every value is a matrix: a scalar is (1, 1), a row (1, d), a column (n, 1); n, the number of rows that come in, stays
open until a call. The methods of :class:`Node` are the operations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fastbp import arrays, backends
from fastbp.backends import Machine
from fastbp.errors import InputError
from fastbp.nodes import Node, concat, constant, dropout, gradients, input, pack, param, view
from fastbp.ops import SCALAR, TABLE, N, Shape, Size
from fastbp.plan import plan
from fastbp.program import Program

__all__ = [
    "Compiled",
    "Node",
    "compile",
    "concat",
    "constant",
    "dropout",
    "gradients",
    "input",
    "pack",
    "param",
    "view",
]


class Compiled:
    """A graph that can be called with its inputs and parameters by name; see :func:`compile`.

    Attributes:
        program: the Program that runs, symbolic in the rows.
    """

    def __init__(
        self, outputs: Sequence[Node], single: bool, inputs: Sequence[Node], backend: str | None, dtype: Any
    ) -> None:
        self._names = {f"out{k}": node.shape == SCALAR for k, node in enumerate(outputs)}
        self._single = single
        self._accepted = {node.name: node for node in inputs}
        self.program: Program = plan(dict(zip(self._names, outputs, strict=True)))
        self._limits = list(self._row_limits())
        shapes = [shape for b in self.program.buffers for shape in (b.shape, b.value[1]) if shape is not None]
        self._needs_rows = any(size.per_row for shape in shapes for size in shape)
        self._dtype = backends.resolve_dtype(dtype)
        self._backend = None if backend is None else backends.resolve(backend)
        self._executables: dict[Machine, backends.Executable] = {}

    def _row_limits(self) -> Iterator[tuple[str, Size, str]]:
        """Of every input of labels or row numbers: how many classes or rows there are, and what it is for."""
        for i in self.program.instructions:
            if i.op in ("onehot", "take", "scatter_add"):
                index = i.ins[TABLE[i.op].integer or 0]
                size = self.program.buffers[i.outs[0] if i.op != "take" else i.ins[0]].shape[int(i.op == "onehot")]
                yield self.program.buffers[index].name, size, i.op

    def __call__(self, /, **values: Any) -> Any:
        """The outputs, each a matrix of the dtype, a node of shape (1, 1) a scalar; one value if one node was compiled.

        They are arrays of the kind that comes in, NumPy's or CuPy's. Labels on a GPU are not read: the row of a label
        that is no class is NaN.

        Raises:
            InputError: an input is missing, unknown, or has another shape than it was declared with.
        """
        needed = self.program.inputs
        missing = [name for name in needed if name not in values]
        unneeded = [name for name in values if name not in needed and name not in self._accepted]
        if missing or unneeded:
            named = [", ".join(map(repr, names)) or "nothing" for names in (needed, missing, unneeded)]
            raise InputError(
                f"this graph needs {named[0]}; missing: {named[1]}; not among them: {named[2]} "
                "(what cancels out is not needed; compile(..., inputs=[...]) lets it come in all the same)"
            )
        declared = {name: (self.program.buffers[k].shape, self.program.buffers[k].dtype) for name, k in needed.items()}
        for name in (name for name in values if name not in needed):
            declared[name] = (self._accepted[name].shape, self._accepted[name].attrs["dtype"])
        kind, machine = arrays.switch(values, self._backend)
        typed = {name: self._typed(name, *declared[name], values[name], kind) for name in declared}
        n = self._rows({name: typed[name] for name, (shape, _) in declared.items() if shape[0] == N})
        for name, size, use in self._limits:
            if kind is arrays.HOST or use != "onehot":  # row numbers lead to addresses
                arrays.labels(name, typed[name], size.at(n))
        if machine not in self._executables:
            self._executables[machine] = backends.executable(self.program, machine.backend, self._dtype)
        found = self._executables[machine].run({name: typed[name] for name in needed}, n)
        results = [found[name][0, 0] if scalar else found[name] for name, scalar in self._names.items()]
        return results[0] if self._single else results

    def _typed(self, name: str, shape: Shape, dtype: str, value: Any, kind: arrays.Kind) -> arrays.Array:
        rows, cols = shape[0], shape[1].fixed
        if dtype == "int":
            value = arrays.asarray(name, value, "integers", kind)
            if value.dtype.kind not in "biu":
                raise InputError(f"{name} must be an array of integers; got dtype {value.dtype}")
        array = arrays.matrix(name, value, cols, {"int": np.int64, "double": np.float64}.get(dtype, self._dtype), kind)
        if rows != N and len(array) != rows.fixed:
            raise InputError(f"{name} must be an array of shape ({rows}, {cols}); got shape {array.shape}")
        return array

    def _rows(self, open_: dict[str, arrays.Array]) -> int:
        """The number of rows that came in, which must be the same for all inputs that leave it open."""
        if not open_ and self._needs_rows:
            raise InputError(
                "this graph works on the rows that come in, but reads none of its inputs: name one in "
                "compile(..., inputs=[...]) and give it"
            )
        first = next(iter(open_), "")
        for name, array in open_.items():
            arrays.same_rows(name, array, len(open_[first]), first)
        return len(open_[first]) if open_ else 1


def compile(
    outputs: Node | Sequence[Node],
    *,
    inputs: Sequence[Node] = (),
    backend: str | None = None,
    dtype: Any = "float64",
) -> Compiled:
    """A function that computes the nodes. Nothing is compiled for the graph: it starts at once, for any number of rows.

    Args:
        outputs: a node, or a list of them.
        inputs: inputs and parameters that a call may give though the outputs do not depend on them, as where a second
            derivative is zero.
        backend: None goes by the arrays of a call: CuPy's on "cuda", else NumPy's, and lists, on the default.
        dtype: "float64" or "float32"; everything is computed in it.
    """
    nodes = [outputs] if isinstance(outputs, Node) else outputs
    if not isinstance(nodes, Sequence) or not nodes or not all(isinstance(node, Node) for node in nodes):
        raise InputError(f"outputs must be a node or a list of nodes, got {outputs!r}")
    if not all(isinstance(node, Node) and node.op in ("input", "param") for node in inputs):
        raise InputError(f"inputs must be a list of inputs and parameters, got {inputs!r}")
    return Compiled(nodes, isinstance(outputs, Node), inputs, backend, dtype)
