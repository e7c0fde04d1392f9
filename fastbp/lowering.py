"""What happens to a graph before it is planned: constants folded, composite operations written out, factors that are
known multiplied, operands taken from before they were broadcast. Not earlier: gradients are taken with respect to any
node, so what a user wrote must lead through it.

Nodes are immutable, so what reads a replaced node is made anew; the rest of the graph stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from fastbp.nodes import Node, ancestors, constant
from fastbp.ops import ELEMENTWISE, TABLE, broadcast


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
    if node.op == "reshape" and node.inputs[0].op == "reshape":
        return node.inputs[0].inputs[0].reshape(node.shape)
    if node.op == "mul":
        return _multiplied(node)
    return _narrowed(node)


def _narrowed(node: Node) -> Node:
    """Elementwise operations broadcast by themselves: they take a broadcast operand's source.

    Where the result is then too small, it is broadcast instead.
    """
    if TABLE[node.op].kind not in ELEMENTWISE or len(node.inputs) == 1:
        return node
    if not any(i.op == "broadcast_to" for i in node.inputs):
        return node
    sources = [i.inputs[0] if i.op == "broadcast_to" else i for i in node.inputs]
    return Node(node.op, sources, node.attrs).broadcast_to(node.shape)


def _multiplied(node: Node) -> Node:
    """X y, with factors that are known now multiplied now: (c x) d is (c d) x, and 1 x is x."""
    x, y = node.inputs
    shape = broadcast("mul", x.shape, y.shape)
    if _known(x) is not None:
        x, y = y, x
    factor, other = _known(y), _known(x)
    if factor is None or (x.shape != shape and other is None):
        return _narrowed(node)
    if other is not None:
        if factor.attrs["per"] is not None and other.attrs["per"] is not None:
            return _narrowed(node)
        value = factor.attrs["value"] * other.attrs["value"]
        return constant(value, factor.attrs["per"] or other.attrs["per"]).broadcast_to(shape)
    if factor.attrs["value"] == 1.0 and factor.attrs["per"] is None:
        return x
    if x.op == "mul" and x.inputs[1].op == "const":
        return _multiplied(Node("mul", (x.inputs[0], _multiplied(Node("mul", (x.inputs[1], factor), {}))), {}))
    return node if node.inputs == (x, factor) else Node("mul", (x, factor), {})


def _known(x: Node) -> Node | None:
    """The constant that a node is, or is a broadcast of."""
    source = x.inputs[0] if x.op == "broadcast_to" else x
    return source if source.op == "const" else None


def _logsumexp(x: Node, axis: int | None) -> Node:
    """Log Σ exp(x - m) + m with m the largest element, or 0 where that is infinite."""
    largest = x.max(axis)
    m = (constant(math.inf) > largest.abs()).where(largest, 0.0)
    return (x - m).exp().sum(axis).log() + m
