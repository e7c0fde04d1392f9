"""What happens to a graph before it is planned: constants folded, composite operations written out.

Nodes are immutable, so what reads a replaced node is made anew; the rest of the graph stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from fastbp.nodes import Node, ancestors, constant


def _compared(x: float, y: float, holds: bool) -> float:
    return math.nan if math.isnan(x) or math.isnan(y) else float(holds)


_FOLDED: dict[str, Callable[..., float]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "equal": lambda x, y: _compared(x, y, x == y),
    "greater": lambda x, y: _compared(x, y, x > y),
    "greater_equal": lambda x, y: _compared(x, y, x >= y),
    "neg": lambda x: -x,
    "square": lambda x: x * x,
}


def lowered(outputs: Mapping[str, Node]) -> dict[str, Node]:
    """The same outputs, of a graph in which every operation is an instruction's."""
    now: dict[int, Node] = {}
    for node in ancestors(outputs.values()):
        inputs = [now[i.id] for i in node.inputs]
        if any(new is not old for new, old in zip(inputs, node.inputs, strict=True)):
            node_now = Node(node.op, inputs, node.attrs)
        else:
            node_now = node
        now[node.id] = _replaced(node_now)
    return {name: now[node.id] for name, node in outputs.items()}


def _replaced(node: Node) -> Node:
    # what matters to differentiation alone; and (1, 1) of a number is the number
    if node.op in ("stop_gradient", "copy") or (node.op == "view" and node.inputs[0].op == "const"):
        return node.inputs[0]
    if node.op == "logsumexp" and node.attrs["axis"] != 1:
        return _logsumexp(node.inputs[0], node.attrs["axis"])
    if node.op in _FOLDED and all(i.op == "const" and i.attrs["per"] is None for i in node.inputs):
        return constant(_FOLDED[node.op](*(i.attrs["value"] for i in node.inputs)))
    return node


def _logsumexp(x: Node, axis: int | None) -> Node:
    """Log Σ exp(x - m) + m with m the largest element, or 0 where that is infinite."""
    largest = x.max(axis)
    m = (constant(math.inf) > largest.abs()).where(largest, 0.0)
    return (x - m).exp().sum(axis).log() + m
