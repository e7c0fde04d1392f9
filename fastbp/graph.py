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

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastbp import arrays, backends
from fastbp.errors import InputError
from fastbp.nodes import Node, constant, gradients, input, pack, param, view
from fastbp.ops import N
from fastbp.plan import plan
from fastbp.program import Program

__all__ = ["Compiled", "Node", "compile", "constant", "gradients", "input", "pack", "param", "view"]


class Compiled:
    """A graph that can be called with its inputs and parameters by name; see :func:`compile`.

    Attributes:
        program: the Program that runs, symbolic in the rows.
    """

    def __init__(self, outputs: Sequence[Node], single: bool, backend: str | None, dtype: Any) -> None:
        self._names = [f"out{k}" for k in range(len(outputs))]
        self._single = single
        self.program: Program = plan(dict(zip(self._names, outputs, strict=True)))
        self._dtype = backends.resolve_dtype(dtype)
        self._run = backends.executable(self.program, backends.resolve(backend), self._dtype)

    def __call__(self, **values: Any) -> Any:
        """The outputs, each a matrix of the dtype, or a scalar for (1, 1); one value if one node was compiled.

        Raises:
            InputError: an input is missing, unknown, or has another shape than it was declared with.
        """
        needed = self.program.inputs
        missing = [name for name in needed if name not in values]
        unneeded = [name for name in values if name not in needed]
        if missing or unneeded:
            raise InputError(
                f"this graph needs {', '.join(map(repr, needed))}; missing: {', '.join(map(repr, missing)) or 'none'}; "
                f"not among them: {', '.join(map(repr, unneeded)) or 'none'}"
            )
        typed = {name: self._typed(name, index, values[name]) for name, index in needed.items()}
        found = self._run.run(typed, self._rows(typed))
        results = [found[name] for name in self._names]
        results = [r[0, 0] if r.shape == (1, 1) else r for r in results]
        return results[0] if self._single else results

    def _typed(self, name: str, index: int, value: Any) -> arrays.Array:
        buffer = self.program.buffers[index]
        rows, cols = buffer.shape[0], buffer.shape[1].fixed
        array = arrays.matrix(name, value, cols, np.int64 if buffer.dtype == "int" else self._dtype)
        if rows != N and len(array) != rows.fixed:
            raise InputError(f"{name} must be an array of shape ({rows}, {cols}); got shape {array.shape}")
        return array

    def _rows(self, typed: dict[str, arrays.Array]) -> int:
        """The number of rows that came in, which must be the same for all inputs that leave it open."""
        open_ = [name for name, index in self.program.inputs.items() if self.program.buffers[index].shape[0] == N]
        for name in open_[1:]:
            arrays.same_rows(name, typed[name], len(typed[open_[0]]), open_[0])
        return len(typed[open_[0]]) if open_ else 1


def compile(outputs: Node | Sequence[Node], *, backend: str | None = None, dtype: Any = "float64") -> Compiled:
    """A function that computes the nodes. Nothing is compiled for the graph: it starts at once, for any number of rows.

    Args:
        outputs: a node, or a list of them.
        backend: "cpu" or "numpy"; None the default.
        dtype: "float64" or "float32"; everything is computed in it.
    """
    nodes = [outputs] if isinstance(outputs, Node) else outputs
    if not isinstance(nodes, Sequence) or not nodes or not all(isinstance(node, Node) for node in nodes):
        raise InputError(f"outputs must be a node or a list of nodes, got {outputs!r}")
    return Compiled(nodes, isinstance(outputs, Node), backend, dtype)
