"""The Program: a short table of instructions over buffers, with its cost in operations and bytes.

A Program is symbolic in the rows n of the batch: sizes are affine in n. It is made by :func:`fastbp.plan.plan` and
run by any of the machines in :mod:`fastbp.backends`.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from fastbp import ops, scalars
from fastbp.ops import Shape, Size

MASK_OPERATIONS = 6 * scalars.PHILOX_ROUNDS
MOST_COMPARED = 1000
UNKNOWN_ROWS = Size(0, 0)  # a data set's: its rows are gathered, never all read


@dataclass(frozen=True)
class Buffer:
    """A matrix that instructions read and write.

    Attributes:
        kind: "input" (comes in with a call), "param" (a matrix that an update may change), "data" (rows are gathered
            from it), "const", "output" (goes out), "temp" (workspace).
        dtype: "float" for the machine's own dtype, "int" for int64.
        base: index of the buffer that this one is a part of, from element ``offset`` on; None for a buffer of its own.
            A base is never a part itself.
        value: of a const, the number and the shape whose size divides it (the factor of a mean).
    """

    name: str
    kind: str
    shape: Shape
    dtype: str = "float"
    base: int | None = None
    offset: int = 0
    value: tuple[float, Shape | None] = (0.0, None)


@dataclass(frozen=True)
class Step:
    """One elementwise operation of a chain: code(c x, y, …).

    Attributes:
        code: name in ``scalars.UNARY``, ``BINARY`` or ``TERNARY``.
        args: numbers of the values that it works on: the chain's inputs come first, then the steps.
            A "dropout_mask" has the key for its argument.
        scale: number of the value c, -1 for none; of binary functions only.
        bits: of a mask, its number · 2³² + its rate · 2³².
    """

    code: str
    args: tuple[int, ...]
    scale: int = -1
    bits: int = 0


@dataclass(frozen=True)
class Result:
    """What becomes of a chain's value.

    Attributes:
        value: its number.
        how: "" to store it; "sum" or "max" to reduce it.
        axis: over rows (0), columns (1) or all (None).
        scale: number of the value that a sum is multiplied by, -1 for none.
    """

    value: int
    how: str = ""
    axis: int | None = None
    scale: int = -1


@dataclass(frozen=True)
class Instruction:
    """One row of the table. Buffers are given by index; outputs first.

    ======================  ============================================================================
    op                      what it does
    ======================  ============================================================================
    matmul                  out = code(A B, y); A, B transposed if ta, tb; out2 = then(out), or out = then(A B) if alone
    map                     out = code(x) or code(x, y), elementwise with broadcasting; code(c x, y) if scaled
    sum                     over rows
    chain                   ``steps`` of elementwise work in one pass; ``results`` says what becomes the outputs
    logsumexp               log Σ exp of every row
    softmax, log_softmax    a row at a time
    log_softmax_grad        g - exp(y) Σg, from (g, y), a row at a time
    cross_entropy           Σ t log_softmax(z) of every row, from (z, t); its gradient with respect to z too, times c,
                            from (z, t, c), if then is "grad"; t as labels if code is "labels". The CPU machine's alone
    onehot                  labels to rows of 0 and 1
    transpose               out = xᵀ
    gather                  out_i = x[order_i]; take: the same of a table in a graph
    scatter_add             out_r = Σ x_i over the rows i with index_i = r, in order
    concat, columns, pad    matrices side by side; columns from ``start`` on; zeros beside x, which begins at ``start``
    place                   a flat vector of zeros with x from element ``start`` on
    update                  an optimiser's rule ``code``, in place: (theta, *states) from (theta, g, *states, hyper)
    ======================  ============================================================================
    """

    op: str
    outs: tuple[int, ...]
    ins: tuple[int, ...]
    code: str = ""
    then: str = ""
    ta: bool = False
    tb: bool = False
    scaled: bool = False  # the last input is a number c
    start: int = 0
    domain: Shape = ops.SCALAR  # of a chain: the shape that its work is done in
    steps: tuple[Step, ...] = ()
    results: tuple[Result, ...] = ()

    @property
    def operands(self) -> tuple[int, ...]:
        """The inputs without the number."""
        return self.ins[:-1] if self.scaled else self.ins

    @property
    def title(self) -> str:
        """The operation with its functions, "matmul Bᵀ mul_sigmoid_grad"; of a chain how many: "chain of 4"."""
        if self.op == "chain":
            return f"chain of {len(self.steps) + sum(bool(r.how) for r in self.results)}"
        if self.op == "cross_entropy":
            return self.op
        return " ".join(filter(None, (self.op, "Aᵀ" * self.ta, "Bᵀ" * self.tb, self.code, self.then)))


@dataclass(frozen=True)
class Program:
    """Instructions in order, the buffers they work on, and the names of what comes in and goes out.

    Attributes:
        kept: temps that stay in memory of their own to the end, as what a backward pass will read does.
    """

    buffers: tuple[Buffer, ...]
    instructions: tuple[Instruction, ...]
    outputs: Mapping[str, int]
    kept: frozenset[int] = frozenset()

    @cached_property
    def inputs(self) -> dict[str, int]:
        """Name -> index of every buffer that the caller supplies: inputs, parameters, data."""
        return {
            b.name: i for i, b in enumerate(self.buffers) if b.kind in ("input", "param", "data") and b.base is None
        }

    @cached_property
    def form(self) -> tuple[object, ...]:
        """Equal for Programs that do the same on the same inputs: all but the names of what stays inside."""
        outside = set(self.inputs.values())
        buffers = tuple(b if i in outside else replace(b, name="") for i, b in enumerate(self.buffers))
        return buffers, self.instructions, tuple(self.outputs.items()), self.kept

    @cached_property
    def lifetimes(self) -> dict[int, tuple[int, int]]:
        """For every temp that stands alone: its first and last instruction; parts count for their base."""
        found: dict[int, tuple[int, int]] = {}
        for position, instruction in enumerate(self.instructions):
            for index in (*instruction.outs, *instruction.ins):
                while (base := self.buffers[index].base) is not None:
                    index = base
                if self.buffers[index].kind == "temp":
                    last = len(self.instructions) if index in self.kept else position
                    found[index] = (found.get(index, (position, 0))[0], last)
        return found

    def shape(self, index: int, n: int) -> tuple[int, int]:
        """Rows and columns of a buffer for n rows."""
        rows, cols = self.buffers[index].shape
        return rows.at(n), cols.at(n)

    def size(self, index: int, n: int) -> int:
        """Elements of a buffer for n rows."""
        rows, cols = self.shape(index, n)
        return rows * cols

    def product_operations(self, n: int) -> int:
        """Operations of the matrix products alone: 2 M N K each."""
        return sum(self._product(i, n) for i in self.instructions)

    def operations(self, n: int) -> int:
        """Operations of everything: products, and elementwise work as counted in ``ops.OPERATIONS``."""
        return sum(self.instruction_operations(i, n) for i in self.instructions)

    def bytes(self, n: int, itemsize: int) -> int:
        """Bytes that the instructions read and write, each operand once an instruction."""
        return sum(self.instruction_bytes(i, n, itemsize) for i in self.instructions)

    def _product(self, instruction: Instruction, n: int) -> int:
        if instruction.op != "matmul":
            return 0
        inner = self.buffers[instruction.ins[0]].shape[0 if instruction.ta else 1].at(n)
        return 2 * self.size(instruction.outs[0], n) * inner

    def instruction_operations(self, instruction: Instruction, n: int) -> int:
        out = self.size(instruction.outs[0], n)
        match instruction.op:
            case "matmul" | "map":
                each = sum(ops.OPERATIONS[c] for c in (instruction.code, instruction.then) if c)
                return self._product(instruction, n) + (each + instruction.scaled) * out
            case "sum":
                return self.size(instruction.ins[0], n)
            case "chain":
                rows, cols = instruction.domain
                each = sum(ops.OPERATIONS.get(s.code, MASK_OPERATIONS) + (s.scale >= 0) for s in instruction.steps)
                return (each + sum(bool(r.how) for r in instruction.results)) * rows.at(n) * cols.at(n)
            case "softmax" | "log_softmax" | "log_softmax_grad":
                return (ops.OPERATIONS["exp"] + 3) * out
            case "cross_entropy":
                return (ops.OPERATIONS["exp"] + (8 if instruction.then else 5)) * self.size(instruction.ins[0], n)
            case "logsumexp":
                return (ops.OPERATIONS["exp"] + 2) * self.size(instruction.ins[0], n)
            case "scatter_add":
                return self.size(instruction.ins[0], n)
            case "update":
                return ops.count_update_operations(scalars.UPDATES[instruction.code]) * out
        return 0

    def instruction_bytes(self, instruction: Instruction, n: int, itemsize: int) -> int:
        out = sum(self.size(i, n) for i in instruction.outs)
        if instruction.op in ("gather", "take"):  # of the data set or table those rows alone
            return 2 * out * itemsize
        return (out + sum(self.size(i, n) for i in instruction.ins)) * itemsize

    def gathering(self, names: Sequence[str]) -> Program:
        """The same Program with the named inputs gathered: row i of each is row ``order[i]`` of a data set.

        The data sets take the inputs' names; ``order`` is an (n, 1) int input.
        """
        buffers = list(self.buffers)
        buffers.append(Buffer("order", "input", (ops.N, ops.ONE), "int"))
        order = len(buffers) - 1
        gathers = []
        for name in names:
            index = self.inputs[name]
            old = buffers[index]
            buffers.append(replace(old, kind="data", shape=(UNKNOWN_ROWS, old.shape[1])))
            buffers[index] = replace(old, name=f"{name}.batch", kind="temp")
            gathers.append(Instruction("gather", (index,), (len(buffers) - 1, order)))
        return Program(tuple(buffers), (*gathers, *self.instructions), self.outputs)

    def explain(self, n: int, itemsize: int = 4) -> str:
        """A readable table of the instructions, with operations and bytes for n rows, and of the memory they need.

        Below a chain stand its steps: what is not named in the chain's line is never written to memory.
        """
        lines = []
        for i in self.instructions:
            outs, ins = (", ".join(self._describe(b) for b in side) for side in (i.outs, i.ins))
            cost = f"{self.instruction_operations(i, n):>14,} op {self.instruction_bytes(i, n, itemsize):>14,} B"
            lines.append(f"{i.title:30s}{cost}  {outs} <- {ins}")
            if i.op == "chain":
                lines += [f"    {line}" for line in self._steps(i)]
        temps = [self.size(b, n) * itemsize for b in self.lifetimes]
        peak = place(self, n, itemsize, 64)[1]
        lines.append(
            f"{self.operations(n):,} operations; {self.bytes(n, itemsize):,} bytes read and written; "
            f"workspace {peak:,} bytes for {len(temps)} values of {sum(temps):,}"
        )
        return "\n".join(lines)

    def _steps(self, chain: Instruction) -> list[str]:
        names = [self._called(b) for b in chain.ins]
        stored = {r.value: self.buffers[b].name for r, b in zip(chain.results, chain.outs, strict=True) if not r.how}
        lines = []
        for k, step in enumerate(chain.steps, len(names)):
            names.append(stored.get(k, f"s{k - len(chain.ins) + 1}"))
            args = [names[v] for v in step.args]
            if step.scale >= 0:
                args[0] = f"{names[step.scale]} × {args[0]}"
            lines.append(f"{names[k]} = {step.code}({', '.join(args)})")
        for r, b in zip(chain.results, chain.outs, strict=True):
            if r.how:
                over = {None: "", 0: " over rows", 1: " over columns"}[r.axis]
                factor = f"{names[r.scale]} × " if r.scale >= 0 else ""
                lines.append(f"{self.buffers[b].name} = {factor}{r.how} of {names[r.value]}{over}")
        return lines

    def _describe(self, index: int) -> str:
        buffer = self.buffers[index]
        return self._called(index) + (ops.show(buffer.shape) if buffer.kind != "const" else "")

    def _called(self, index: int) -> str:
        """The name of a buffer, or the number that it is."""
        buffer = self.buffers[index]
        if buffer.kind != "const":
            return buffer.name
        value, per = buffer.value
        sizes = [f"({s})" if s.per_row and s.fixed else str(s) for s in per or () if s != ops.ONE]
        return "/".join([f"{value:g}", *sizes])


def place(
    program: Program,
    n: int,
    itemsize: int,
    alignment: int,
    only: Collection[int] | None = None,
    taken_over: Mapping[int, int] | None = None,
) -> tuple[dict[int, int], int]:
    """Offsets of the temps in one workspace for n rows, and its size, in bytes.

    Buffers whose lifetimes do not meet share memory: largest first, each at the lowest free offset (greedy by size,
    Pisarchyk and Lee 2020). That compares all with all, so more than MOST_COMPARED are placed in order of time.

    Args:
        itemsize: bytes of a float; ints always have 8.
        alignment: bytes that every offset is a multiple of.
        only: the temps to place; None places all.
        taken_over: temps that lie where others of their size do, which are dead by then: later one -> earlier one.
    """
    owners: dict[int, int] = {}
    lifetimes: dict[int, tuple[int, int]] = {}
    for index, (first, last) in sorted(program.lifetimes.items(), key=lambda item: item[1]):
        if only is None or index in only:
            before = (taken_over or {}).get(index, index)
            owner = owners[index] = owners.get(before, index)
            lifetimes[owner] = (lifetimes.get(owner, (first, last))[0], last)
    sizes = {
        index: program.size(index, n) * (8 if program.buffers[index].dtype == "int" else itemsize)
        for index in lifetimes
    }
    rounded = {index: -(-size // alignment) * alignment for index, size in sizes.items()}
    offsets, total = (_largest_first if len(sizes) <= MOST_COMPARED else _in_order)(rounded, lifetimes)
    return {index: offsets[owner] for index, owner in owners.items()}, total


def _largest_first(sizes: Mapping[int, int], lifetimes: Mapping[int, tuple[int, int]]) -> tuple[dict[int, int], int]:
    placed: list[tuple[int, int, int, int]] = []  # first, last, offset, size
    offsets: dict[int, int] = {}
    total = 0
    for index in sorted(sizes, key=lambda i: -sizes[i]):
        first, last = lifetimes[index]
        size, offset = sizes[index], 0
        for _, _, other, other_size in sorted(
            (p for p in placed if p[0] <= last and first <= p[1]), key=lambda p: p[2]
        ):
            if offset + size <= other:
                break
            offset = max(offset, other + other_size)
        placed.append((first, last, offset, size))
        offsets[index] = offset
        total = max(total, offset + size)
    return offsets, total


def _in_order(sizes: Mapping[int, int], lifetimes: Mapping[int, tuple[int, int]]) -> tuple[dict[int, int], int]:
    """Each when it is first needed, in the first gap that is large enough: many times faster, and nearly as tight."""
    gaps: list[tuple[int, int]] = []  # (offset, end) of free memory below ``total``, in order, never side by side
    living: list[tuple[int, int]] = []  # (last instruction, index)
    offsets: dict[int, int] = {}
    total = 0
    for index in sorted(sizes, key=lambda i: lifetimes[i]):
        first, last = lifetimes[index]
        while living and living[0][0] < first:
            _, dead = heapq.heappop(living)
            _give_back(gaps, offsets[dead], offsets[dead] + sizes[dead])
        size = sizes[index]
        fits = next((k for k, (start, end) in enumerate(gaps) if end - start >= size), None)
        if fits is None:
            offsets[index] = total
            total += size
        else:
            start, end = gaps[fits]
            offsets[index] = start
            gaps[fits : fits + 1] = [(start + size, end)] if start + size < end else []
        heapq.heappush(living, (last, index))
    return offsets, total


def _give_back(gaps: list[tuple[int, int]], start: int, end: int) -> None:
    """Add free memory, joined with the gaps beside it."""
    if start == end:
        return
    at = bisect.bisect(gaps, (start, end))
    first = at - (at > 0 and gaps[at - 1][1] == start)
    last = at + (at < len(gaps) and gaps[at][0] == end)
    joined = [*gaps[first:last], (start, end)]
    gaps[first:last] = [(min(a for a, _ in joined), max(b for _, b in joined))]


def const_value(buffer: Buffer, n: int) -> float:
    """The number of a const buffer for n rows; NaN for the mean of nothing."""
    value, per = buffer.value
    if per is None:
        return value
    count = per[0].at(n) * per[1].at(n)
    return value / count if count else float("nan")
