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
from fastbp.nodes import Node, concat, constant, gradients, input, pack, param, view
from fastbp.ops import SCALAR, N
from fastbp.plan import plan
from fastbp.program import Instruction, Program

__all__ = ["Compiled", "Node", "compile", "concat", "constant", "gradients", "input", "pack", "param", "view"]


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
        self._accepted = {node.name for node in inputs}
        self.program: Program = plan(dict(zip(self._names, outputs, strict=True)))
        # of labels: how many classes there are
        self._classes = {i.ins[0]: self.program.shape(i.outs[0], 0)[1] for i in self._onehots()}
        self._dtype = backends.resolve_dtype(dtype)
        self._run = backends.executable(self.program, backends.resolve(backend), self._dtype)

    def _onehots(self) -> list[Instruction]:
        return [i for i in self.program.instructions if i.op == "onehot"]

    def __call__(self, /, **values: Any) -> Any:
        """The outputs, each a matrix of the dtype, a node of shape (1, 1) a scalar; one value if one node was compiled.

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
        typed = {name: self._typed(name, index, values[name]) for name, index in needed.items()}
        found = self._run.run(typed, self._rows(typed))
        results = [found[name][0, 0] if scalar else found[name] for name, scalar in self._names.items()]
        return results[0] if self._single else results

    def _typed(self, name: str, index: int, value: Any) -> arrays.Array:
        buffer = self.program.buffers[index]
        rows, cols = buffer.shape[0], buffer.shape[1].fixed
        if buffer.dtype == "int" and arrays.asarray(name, value, "integers").dtype.kind not in "biu":
            raise InputError(f"{name} must be an array of integers; got dtype {np.asarray(value).dtype}")
        array = arrays.matrix(name, value, cols, np.int64 if buffer.dtype == "int" else self._dtype)
        if index in self._classes:
            arrays.labels(name, array, self._classes[index])
        if rows != N and len(array) != rows.fixed:
            raise InputError(f"{name} must be an array of shape ({rows}, {cols}); got shape {array.shape}")
        return array

    def _rows(self, typed: dict[str, arrays.Array]) -> int:
        """The number of rows that came in, which must be the same for all inputs that leave it open."""
        open_ = [name for name, index in self.program.inputs.items() if self.program.buffers[index].shape[0] == N]
        for name in open_[1:]:
            arrays.same_rows(name, typed[name], len(typed[open_[0]]), open_[0])
        return len(typed[open_[0]]) if open_ else 1


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
        backend: "cpu" or "numpy"; None the default.
        dtype: "float64" or "float32"; everything is computed in it.
    """
    nodes = [outputs] if isinstance(outputs, Node) else outputs
    if not isinstance(nodes, Sequence) or not nodes or not all(isinstance(node, Node) for node in nodes):
        raise InputError(f"outputs must be a node or a list of nodes, got {outputs!r}")
    if not all(isinstance(node, Node) and node.op in ("input", "param") for node in inputs):
        raise InputError(f"inputs must be a list of inputs and parameters, got {inputs!r}")
    return Compiled(nodes, isinstance(outputs, Node), inputs, backend, dtype)
