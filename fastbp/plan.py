"""Graph -> Program: share common subexpressions, fuse, order, give every value a buffer.

Fusions, each a pattern of the graph that one instruction does in one pass:

- f(x + y) and x f'(y) become one elementwise function of two values (``scalars.FUSED``);
- a product followed by one elementwise function of it and another value becomes that product with an epilogue:
  act(X W + b) forward, (dZ Wᵀ) ⊙ act'(saved) backward; not one that adds up rows of the batch, as dW does, so that it
  can be done a chunk of rows at a time;
- the sum of an elementwise function, times a number (a loss), becomes one pass without the function's values stored;
- what a log-softmax hands back, g - exp(y) Σg, is done a row at a time;
- c x f'(y) with a number c (the first delta, a mean's) becomes one function too;
- where the pre-activation is needed too (gelu and silu take their derivative from it), the product stores both;
- what elementwise work is left over the same rows and columns, its sums included, becomes chains, each one pass over
  memory (see :mod:`fastbp.chains`).
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping

from fastbp import scalars
from fastbp.chains import Item, chains
from fastbp.errors import GraphError
from fastbp.lowering import lowered
from fastbp.nodes import Node, ancestors
from fastbp.ops import ELEMENTWISE, SCALAR, TABLE, Shape, broadcast, columns, fixed
from fastbp.program import Buffer, Instruction, Program, Result, Step

_ACTS = {a.forward for a in scalars.ACTIVATIONS.values() if a.forward}
_COMMUTES = {"add", "mul", "maximum", "minimum"}
_LEAVES = {"input", "param", "const"}
_FREE = _LEAVES | {"view", "pack", "reshape"}  # made by no instruction of their own: copied into a pack


def plan(outputs: Mapping[str, Node]) -> Program:
    """The Program that computes the named nodes (updates included) from its inputs and parameters."""
    return _Planner(outputs).program()


class _Planner:
    def __init__(self, outputs: Mapping[str, Node]) -> None:
        outputs = lowered(outputs)
        self.nodes, same = _share(ancestors(outputs.values()))
        self.outputs = {name: same[node.id] for name, node in outputs.items()}
        self.inputs = {node.id: tuple(same[i.id] for i in node.inputs) for node in self.nodes}
        self.readers: dict[int, list[Node]] = {node.id: [] for node in self.nodes}
        for node in self.nodes:
            for i in self.inputs[node.id]:
                self.readers[i.id].append(node)
        self.kept = {node.id for node in self.outputs.values()}
        self.absorbed: set[int] = set()
        self.pairs: dict[int, tuple[str, Node, Node]] = {}
        self.products: dict[int, Node] = {}  # node -> the product whose epilogue it is
        self.scales: dict[int, Node] = {}  # node -> the constant that its first operand, or its sum, is multiplied by
        self.sums: dict[int, tuple[str, tuple[Node, ...]]] = {}  # sum, or its multiple -> the function and operands
        self.softmax_grads: dict[int, tuple[Node, Node]] = {}  # g - exp(y) Σg -> g, y
        self.then: dict[int, Node] = {}  # node -> the activation of it that the same pass stores
        self.made_by: dict[int, int] = {}  # that activation -> the node
        self.chain_of: dict[int, tuple[Node, ...]] = {}  # node -> the nodes that are computed in one pass with it
        self.buffers: list[Buffer] = []
        self.index: dict[int, int] = {}
        self.instructions: list[Instruction] = []

    # ---- fusion ------------------------------------------------------------------------------------------------

    def _only_for(self, node: Node, reader: Node) -> bool:
        return node.id not in self.kept and self.readers[node.id] == [reader]

    def _fuse(self) -> None:
        for node in self.nodes:
            self._fuse_pair(node)
        for node in self.nodes:
            if node.id not in self.absorbed:
                self._fuse_product(node)
        for node in self.nodes:
            if node.op == "sum" and node.attrs["axis"] is None:
                self._fuse_sum(node)
            if node.op == "sub" and node.id not in self.absorbed and node.id not in self.pairs:
                self._fuse_log_softmax_grad(node)

    def _fuse_pair(self, node: Node) -> None:
        inputs = self.inputs[node.id]
        if node.op in _ACTS and inputs[0].op == "add" and self._only_for(inputs[0], node):
            x, y = self.inputs[inputs[0].id]
            self.pairs[node.id] = (f"add_{node.op}", x, y)
            self.absorbed.add(inputs[0].id)
        elif node.op == "mul":
            for x, y in (inputs, inputs[::-1]):
                if f"mul_{y.op}" in scalars.FUSED and self._only_for(y, node):
                    self.pairs[node.id] = (f"mul_{y.op}", x, self.inputs[y.id][0])
                    self.absorbed.add(y.id)
                    self._fuse_scale(node)
                    return

    def _fuse_log_softmax_grad(self, node: Node) -> None:
        """G - exp(y) Σg, with the sum over the columns: what a log-softmax y hands back of g."""
        g, product = self.inputs[node.id]
        if product.op != "mul" or product.id in self.pairs or not self._only_for(product, node):
            return
        power, total = self.inputs[product.id]
        if power.op != "exp" or total.op != "sum" or total.attrs["axis"] != 1 or self.inputs[total.id] != (g,):
            return
        if self._only_for(power, product) and self._only_for(total, product) and g.shape == node.shape:
            self.softmax_grads[node.id] = (g, self.inputs[power.id][0])
            self.absorbed.update((product.id, power.id, total.id))

    def _fuse_scale(self, node: Node) -> None:
        """C x f'(y): its factor goes into the function."""
        code, x, y = self.pairs[node.id]
        if x.op != "mul" or x.id in self.pairs or not self._only_for(x, node):
            return
        for value, factor in (self.inputs[x.id], self.inputs[x.id][::-1]):
            if factor.op == "const" and factor.shape == SCALAR and value.shape == node.shape and value.op != "matmul":
                self.pairs[node.id] = (code, value, y)
                self.scales[node.id] = factor
                self.absorbed.add(x.id)
                return

    def _fuse_sum(self, node: Node) -> None:
        """The sum of f(x) or f(x, y), and then c times it."""
        (inside,) = self.inputs[node.id]
        found = self._elementwise(inside)
        free = not any(inside.id in taken for taken in (self.products, self.made_by, self.scales, self.absorbed))
        alike = found is not None and all(x.shape in (inside.shape, SCALAR) for x in found[1])
        if found is not None and alike and free and self._only_for(inside, node):
            self.sums[node.id] = found
            self.absorbed.add(inside.id)
        function = self.sums.get(node.id, ("", (inside,)))
        readers = self.readers[node.id]
        if len(readers) != 1 or node.id in self.kept or readers[0].op != "mul" or readers[0].id in self.absorbed:
            return
        (times,) = readers
        if times.id in self.pairs:
            return
        for factor in self.inputs[times.id]:
            if factor.op == "const" and factor.shape == SCALAR:
                self.sums[times.id] = function
                self.scales[times.id] = factor
                self.absorbed.add(node.id)
                return

    def _elementwise(self, node: Node) -> tuple[str, tuple[Node, ...]] | None:
        """The function and operands of an elementwise node, fused pairs included."""
        if node.id in self.pairs:
            code, x, y = self.pairs[node.id]
            return code, (x, y)
        if TABLE[node.op].kind in ELEMENTWISE:
            return node.op, self.inputs[node.id]
        return None

    def _fuse_product(self, node: Node) -> None:
        found = self._elementwise(node)
        if found is not None and node.op in _ACTS and found[1][0].op == "matmul" and self._only_for(found[1][0], node):
            self.products[node.id] = found[1][0]
            self.absorbed.add(found[1][0].id)
            return
        if found is None or len(found[1]) != 2:
            return
        code, (x, y) = found
        swaps = code in _COMMUTES or code.startswith("add_")
        for a, b in ((x, y), (y, x)) if swaps else ((x, y),):
            consumer = self._consumer(node, a)
            free = a.op == "matmul" and a is not b and not self._sums_rows(a)
            if free and a.shape == node.shape and self._only_for(a, consumer):
                self.pairs[node.id] = (code, a, b)
                self.products[node.id] = a
                self.absorbed.add(a.id)
                self._fuse_then(node)
                return

    def _sums_rows(self, product: Node) -> bool:
        """Whether a product adds up rows of the batch: done a chunk of them at a time, it has no epilogue."""
        return bool(product.attrs["ta"] and self.inputs[product.id][0].shape[0].per_row)

    def _consumer(self, node: Node, operand: Node) -> Node:
        """The node that reads the operand in the graph: the one fused into ``node``, or ``node`` itself."""
        if operand not in self.inputs[node.id]:
            for i in self.inputs[node.id]:
                if i.id in self.absorbed and operand in self.inputs[i.id]:
                    return i
        return node

    def _fuse_then(self, node: Node) -> None:
        for reader in self.readers[node.id]:
            if reader.op in _ACTS and reader.id not in self.pairs and reader.id not in self.absorbed:
                self.then[node.id] = reader
                self.made_by[reader.id] = node.id
                self.absorbed.add(reader.id)
                return

    # ---- buffers -------------------------------------------------------------------------------------------------

    def _new(self, buffer: Buffer) -> int:
        self.buffers.append(buffer)
        return len(self.buffers) - 1

    def _place_packs(self) -> None:
        """Give packed parts that an instruction computes their place inside the pack; the others are copied."""
        for node in self.nodes:
            if node.op != "pack":
                continue
            kind = "output" if node.id in self.kept else "temp"
            whole = self.index[node.id] = self._new(Buffer(node.name, kind, node.shape))
            offset = 0
            for part in self.inputs[node.id]:
                if part.op not in _FREE and part.id not in self.index:
                    self.index[part.id] = self._new(Buffer(part.name, kind, part.shape, base=whole, offset=offset))
                offset += columns(part.shape) * columns(part.shape[::-1])

    def _place_gradients(self) -> None:
        """Give Aᵀ dZ and the sum of dZ's rows that both go out, dW and db, one memory: a product does both then."""
        for node in self.nodes:
            if node.op != "sum" or node.attrs["axis"] != 0 or node.id in self.index or node.id not in self.kept:
                continue
            (delta,) = self.inputs[node.id]
            for product in self.readers[delta.id]:
                alone = product.id in self.kept and product.id not in self.index and product.id not in self.absorbed
                is_gradient = product.op == "matmul" and product.attrs["ta"] and not product.attrs["tb"]
                if not (alone and is_gradient) or self.inputs[product.id][1] is not delta or product.shape[0].per_row:
                    continue
                rows, cols = (size.fixed for size in product.shape)
                whole = self._new(Buffer(f"{product.name}.{node.name}", "output", fixed(1, (rows + 1) * cols)))
                for part, offset in ((product, 0), (node, rows * cols)):
                    self.index[part.id] = self._new(Buffer(part.name, "output", part.shape, base=whole, offset=offset))
                break

    def _buffer(self, node: Node) -> int:
        if node.id not in self.index:
            attrs = node.attrs
            if node.op in ("input", "param"):
                buffer = Buffer(node.name, node.op, node.shape, attrs["dtype"])
            elif node.op == "const":
                buffer = Buffer(node.name, "const", node.shape, value=(attrs["value"], attrs["per"]))
            elif node.op in ("view", "reshape"):
                source = self._buffer(self.inputs[node.id][0])
                kind, base, start = self.buffers[source].kind, self.buffers[source].base, self.buffers[source].offset
                root = source if base is None else base
                buffer = Buffer(node.name, kind, node.shape, base=root, offset=start + attrs.get("offset", 0))
            else:
                buffer = Buffer(node.name, "output" if node.id in self.kept else "temp", node.shape)
            self.index[node.id] = self._new(buffer)
        return self.index[node.id]

    # ---- instructions ----------------------------------------------------------------------------------------------

    # ---- chains ------------------------------------------------------------------------------------------------

    def _chain(self) -> None:
        """Find the nodes that become chains."""
        items = []
        for node in self.nodes:
            if node.id in self.absorbed or node.op in _LEAVES or node.op == "update":
                continue
            sources = [self.made_by.get(o.id, o.id) for o in self._operands(node) if o.op not in _LEAVES]
            domain = self._domain(node)
            whole = frozenset(o.id for o in self._operands(node) if o.shape == domain and o.op != "const")
            items.append(Item(node.id, domain, node.op in ("sum", "max") or node.id in self.sums, sources, whole))
        by_id = {node.id: node for node in self.nodes}
        for ids in chains(items, self.kept):
            members = tuple(by_id[i] for i in ids)
            self.chain_of |= dict.fromkeys(ids, members)

    def _domain(self, node: Node) -> Shape | None:
        """The shape that a node's elementwise work is done in; None where it is done in another way."""
        if any(node.id in taken for taken in (self.products, self.softmax_grads, self.then)):
            return None
        if node.id in self.sums:
            return broadcast("sum", *(x.shape for x in self.sums[node.id][1]))
        if node.op in ("sum", "max"):
            (x,) = self.inputs[node.id]
            gradient_of_bias = node.op == "sum" and node.attrs["axis"] == 0 and self._is_delta(x)
            return None if gradient_of_bias else x.shape
        return (
            node.shape if node.op in ("broadcast_to", "dropout_mask") or self._elementwise(node) is not None else None
        )

    def _is_delta(self, x: Node) -> bool:
        """Whether X is a dZ, with a product Aᵀ dZ that sums its rows too."""
        return any(r.op == "matmul" and r.attrs["ta"] and self.inputs[r.id][1] is x for r in self.readers[x.id])

    def _emit_chain(self, members: tuple[Node, ...]) -> None:
        """One instruction for all members: their steps in order, and what becomes of the values."""
        inside = {node.id for node in members}
        domain = self._domain(members[0]) or self.inputs[members[0].id][0].shape
        read = {o.id: o for node in members for o in self._operands(node) if o.id not in inside}
        inputs = list(read.values())
        number = {node.id: k for k, node in enumerate(inputs)}
        steps: list[Step] = []
        results: list[Result] = []
        outs: list[int] = []

        def step(code: str, operands: tuple[Node, ...], scale: int = -1) -> int:
            steps.append(Step(code, tuple(number[o.id] for o in operands), scale))
            return len(inputs) + len(steps) - 1

        for node in members:
            factor = number[self.scales[node.id].id] if node.id in self.scales else -1
            if node.id in self.sums or node.op in ("sum", "max"):
                code, operands = self.sums.get(node.id, ("", self.inputs[node.id]))
                value = step(code, operands) if code else number[operands[0].id]
                how, axis = ("max" if node.op == "max" else "sum"), node.attrs.get("axis")
                results.append(Result(value, how, axis, factor))
                outs.append(self._buffer(node))
                continue
            if node.op == "dropout_mask":
                bits = (node.attrs["number"] << 32) + int(node.attrs["rate"] * 2.0**32)
                steps.append(Step(node.op, (number[self.inputs[node.id][0].id],), bits=bits))
                number[node.id] = len(inputs) + len(steps) - 1
            elif node.op in ("broadcast_to", "copy"):
                number[node.id] = number[self.inputs[node.id][0].id]
            else:
                code, operands = self._elementwise(node) or ("", ())
                number[node.id] = step(code, operands, factor)
            if node.id in self.kept or any(self._reads(r) not in inside for r in self.readers[node.id]):
                results.append(Result(number[node.id]))
                outs.append(self._buffer(node))
        ins = tuple(self._buffer(i) for i in inputs)
        self.instructions.append(
            Instruction("chain", tuple(outs), ins, steps=tuple(steps), results=tuple(results), domain=domain)
        )

    def _reads(self, reader: Node) -> int:
        """The node that does what a reader does: the one that it was fused into, or itself."""
        while reader.id in self.absorbed and reader.id not in self.made_by:
            reader = self.readers[reader.id][0]
        return reader.id

    def program(self) -> Program:
        self._fuse()
        self._chain()
        self._place_packs()
        self._place_gradients()
        for node in self.nodes:
            if node.op in ("input", "param"):
                self._buffer(node)
        for node in self._order():
            if node.id in self.chain_of:
                self._emit_chain(self.chain_of[node.id])
            elif node.op != "update":
                self._emit(node)
        outputs = {name: self._output(node) for name, node in self.outputs.items() if node.op != "update"}
        for node in self.nodes:  # updates overwrite what the others read, so they come last
            if node.op == "update":
                self._emit_update(node)
        outputs |= {name: self._buffer(node.inputs[0]) for name, node in self.outputs.items() if node.op == "update"}
        _check_names(self.buffers)
        self._check_updates()
        return Program(tuple(self.buffers), tuple(self.instructions), outputs)

    def _order(self) -> list[Node]:
        """The nodes that make instructions: as created, a product with its epilogue in the product's place.

        So a layer's dX comes before its dW, and dW may be joined with the update of W.
        """
        waiting: dict[int, int] = {}
        unlocks: dict[int, list[Node]] = {}
        ready: list[tuple[int, int, Node]] = []
        first = {number: members[0].id for number, members in self.chain_of.items()}
        for node in self.nodes:
            if node.id in self.absorbed or first.get(node.id, node.id) != node.id:
                continue
            members = self.chain_of.get(node.id, (node,))
            sources = {self.made_by.get(i.id, i.id) for member in members for i in self._operands(member)}
            sources = {first.get(source, source) for source in sources} - {node.id}
            waiting[node.id] = len(sources)
            for source in sources:
                unlocks.setdefault(source, []).append(node)
            if not sources:
                heapq.heappush(ready, (node.id, node.id, node))
        order = []
        while ready:
            node = heapq.heappop(ready)[2]
            order.append(node)
            for reader in unlocks.get(node.id, ()):
                waiting[reader.id] -= 1
                if not waiting[reader.id]:
                    place = self.products.get(reader.id, reader).id
                    heapq.heappush(ready, (place, reader.id, reader))
        return order

    def _operands(self, node: Node) -> tuple[Node, ...]:
        """What an instruction reads, with what is fused into it looked through."""
        if node.id in self.softmax_grads:
            return self.softmax_grads[node.id]
        if node.id in self.sums:
            return (*self.sums[node.id][1], *self._factor(node))
        found = self._elementwise(node)
        operands = found[1] if found is not None else self.inputs[node.id]
        if node.id in self.products:
            return (*self.inputs[self.products[node.id].id], *operands[1:])
        return (*operands, *self._factor(node))

    def _factor(self, node: Node) -> tuple[Node, ...]:
        return (self.scales[node.id],) if node.id in self.scales else ()

    def _output(self, node: Node) -> int:
        """The buffer of an output; what lies in the caller's own memory is copied out of it."""
        index = self._buffer(node)
        if self.buffers[index].dtype != "float":
            raise GraphError(f"{node!r} is an input of dtype {self.buffers[index].dtype!r}: it cannot be an output")
        if self.buffers[index].kind == "output":
            return index
        out = self._new(Buffer(f"{node.name}.out", "output", node.shape))
        self.instructions.append(Instruction("map", (out,), (index,), code="copy"))
        return out

    def _emit(self, node: Node) -> None:
        if node.id in self.softmax_grads:
            self._append("log_softmax_grad", node, self.softmax_grads[node.id])
            return
        if node.id in self.sums:
            self._emit_chain((node,))
            return
        found = self._elementwise(node)
        if found is not None:
            code, operands = found
            if len(operands) == 3:
                self._emit_chain((node,))
            elif node.id in self.products:
                self._emit_product(self.products[node.id], node, code, operands[1:])
            else:
                self._append("map", node, operands, code=code)
            return
        inputs = self.inputs[node.id]
        match node.op:
            case "matmul":
                self._append("matmul", node, inputs, ta=node.attrs["ta"], tb=node.attrs["tb"])
            case "sum" if node.attrs["axis"] == 0:
                self._append("sum", node, inputs)
            case "sum" | "max" | "dropout_mask":
                self._emit_chain((node,))
            case "broadcast_to":
                self._append("map", node, inputs, code="copy")
            case "transpose" | "softmax" | "log_softmax" | "logsumexp" | "onehot" | "take" | "scatter_add" | "concat":
                self._append(node.op, node, inputs)
            case "columns" | "pad":
                self._append(node.op, node, inputs, start=node.attrs["start"])
            case "place":
                self._append(node.op, node, inputs, start=node.attrs["offset"])
            case "pack":
                self._emit_copies(node)
            case "input" | "param" | "const" | "view" | "reshape":
                pass
            case other:
                raise GraphError(f"operation {other!r} cannot be planned")

    def _append(
        self,
        op: str,
        node: Node,
        inputs: tuple[Node, ...],
        *,
        code: str = "",
        ta: bool = False,
        tb: bool = False,
        start: int = 0,
    ) -> None:
        ins = tuple(self._buffer(i) for i in (*inputs, *self._factor(node)))
        scaled = node.id in self.scales
        out = (self._buffer(node),)
        self.instructions.append(Instruction(op, out, ins, code, ta=ta, tb=tb, scaled=scaled, start=start))

    def _emit_product(self, product: Node, node: Node, code: str, operands: tuple[Node, ...]) -> None:
        """A product with code(A B, y) as its epilogue, or an activation alone."""
        outs, then = [self._buffer(node)], "" if operands else code
        if node.id in self.then:
            then = self.then[node.id].op
            outs.append(self._buffer(self.then[node.id]))
        ins = tuple(self._buffer(i) for i in (*self.inputs[product.id], *operands))
        ta, tb = product.attrs["ta"], product.attrs["tb"]
        self.instructions.append(Instruction("matmul", tuple(outs), ins, code if operands else "", then, ta, tb))

    def _check_updates(self) -> None:
        """Every vector is written by one update, and read by no other."""
        updates = [i for i in self.instructions if i.op == "update"]
        for one in updates:
            for other in updates:
                if one is not other and set(one.outs) & set(other.ins):
                    raise GraphError("two updates share a vector, so that the second would read what the first wrote")

    def _emit_copies(self, node: Node) -> None:
        whole, offset = self.index[node.id], 0
        for part in self.inputs[node.id]:
            own = self._buffer(part)
            if self.buffers[own].base != whole or self.buffers[own].offset != offset:
                place = self._new(
                    Buffer(f"{node.name}[{offset}]", self.buffers[whole].kind, part.shape, base=whole, offset=offset)
                )
                self.instructions.append(Instruction("map", (place,), (own,), code="copy"))
            offset += columns(part.shape) * columns(part.shape[::-1])

    def _emit_update(self, node: Node) -> None:
        ins = tuple(self._buffer(i) for i in self.inputs[node.id])
        states = ins[2:-1]
        self.instructions.append(Instruction("update", (ins[0], *states), ins, node.attrs["rule"]))


def _share(nodes: list[Node]) -> tuple[list[Node], dict[int, Node]]:
    """Unique nodes in order, and for every id the node that stands for it: equal operations on equal inputs are one."""
    seen: dict[object, Node] = {}
    same: dict[int, Node] = {}
    unique = []
    for node in nodes:
        key: object = node.id
        if node.op not in ("input", "param", "update"):
            attrs = {k: v.hex() if isinstance(v, float) else v for k, v in node.attrs.items()}  # 0.0 is not -0.0
            key = (node.op, tuple(same[i.id].id for i in node.inputs), tuple(sorted(attrs.items(), key=str)))
        if key not in seen:
            seen[key] = node
            unique.append(node)
        same[node.id] = seen[key]
    return unique, same


def _check_names(buffers: list[Buffer]) -> None:
    names = Counter(b.name for b in buffers if b.kind in ("input", "param") and b.base is None)
    for name, count in names.items():
        if count > 1:
            raise GraphError(f"two different inputs or parameters are called {name!r}")
