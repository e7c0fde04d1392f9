"""Small steps as straight-line code, compiled by LLVM for one Program and one number of rows.

The machine spends some 60 ns on every instruction of its table, however little there is to compute: a network of ten or
a hundred parameters takes no more for a whole step. So a table that is run often becomes a function of its own: a loop
over the steps, in which nothing is looked up. Values between instructions have no memory; they are lanes of vectors,
and LLVM keeps them in registers. Parameters are vectors, too, from the first step to the last.

Every result has the bits that the machine gives it: the same functions, and sums in the same order.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import binding, ir

from fastbp import scalars
from fastbp.backends.cpu import chain_words as chain
from fastbp.backends.cpu import words
from fastbp.backends.cpu.target import TILE_VECTORS, VECTOR_BYTES, target
from fastbp.backends.cpu.vectors import (
    I32,
    I64,
    STACK_VECTORS,
    SUMS,
    Vector,
    VectorEmitter,
    add,
    below,
    higher,
    logarithm,
    reductions,
    softmaxes,
    sums_of_lanes,
    transposed,
)
from fastbp.backends.cpu.words import EXTRA, OUT, OUT2, A, B, Y

# Of a table that is worth it: operations on vectors, times rows, for with many of them the machine's tiles are better;
# LLVM's instructions of a step (making 8000 takes 1.5 s); vectors of parameters and states. One row: 784-30-10 has 12,000
# operations and takes 0.8 of the time, 784-100-10 40,000 and 0.8, 256-256 41,000 and 1.05. 32-32-32-10 on 8 rows 5000 and
# 0.83, on 16 rows 9000 and 1.2; 64-64-64-10 on 4 rows 9000 and 0.96, on 16 rows 30,000 and 1.6.
MOST_OPERATIONS, MOST_INSTRUCTIONS, MOST_CARRIED = 40_000, 8000, 256
# Products are loops over matrices in memory from so many operations on: 16-32-8 on one row 0.33 of the time, unrolled 0.5;
# the same from 32 on, and from 128 on 0.42.
LOOP_FROM = 64
MOST_SUMMANDS = 16  # of a gradient in a loop
MOST_ROOM = 1 << 16  # bytes of the stack for gradients
ACCUMULATORS = 12  # vectors of a product that are summed at once
NAME = "steps"
BYTE = ir.IntType(8).as_pointer()

_UNARY, _BINARY, _TERNARY = (list(t.values()) for t in (scalars.UNARY, scalars.BINARY, scalars.TERNARY))
_RULES = list(scalars.UPDATES.values())

Where = tuple[int, int]  # slot and byte
Key = tuple[int, float | str, bool]  # of an element
Written = tuple[tuple[Where, ...], Vector]  # where the first lanes of a vector belong


class UnsuitableError(Exception):
    """A table that the machine runs as it is."""


@functools.cache
def _order(lanes: tuple[int, ...]) -> Any:
    """A constant of a shuffle; making one takes longer than all else about it."""
    return ir.Constant(ir.VectorType(I32, len(lanes)), lanes)


def _itself(vector: Vector) -> Vector:
    return vector


class Element(NamedTuple):
    """A number: lane ``at`` of a vector; the one at byte ``at`` from an address; without a source, ``at`` itself."""

    source: Any
    at: float
    in_memory: bool = False

    @property
    def key(self) -> Key:
        return id(self.source), repr(self.at) if self.source is None else self.at, self.in_memory  # -0 is not 0


class Steps:
    """A loop over steps that run one table, as compiled code.

    ``run(bases, plan, count)``: the addresses of the slots; (table, position, step) of each step, of which the first is
    not read; and how many there are. All are addresses and int64, as in a call of the machine.
    """

    def __init__(self, module: ir.Module) -> None:
        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        triple, cpu, features = target()
        machine = binding.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features, opt=3)
        code = binding.parse_assembly(str(module))
        # What straight-line code needs. LLVM's usual passes take longer to no use, and one of them has ended the
        # process on vectors of another length ("cast<Ty>() argument of incompatible type").
        passes = binding.create_new_module_pass_manager()
        passes.add_instruction_combine_pass()
        passes.add_dead_code_elimination_pass()
        passes.run(code, binding.create_pass_builder(machine, binding.PipelineTuningOptions()))
        self._engine = binding.create_mcjit_compiler(code, machine)  # owns the code
        self._engine.finalize_object()
        function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
        self.run: Callable[[int, int, int], None] = function(self._engine.get_function_address(NAME))


def suits(table: np.ndarray, rows: int, dtype: str) -> bool:
    """Whether a table for so many rows may be worth code of its own."""
    if not len(table) or table[:, words.SHARED].any() or not np.isin(table[:, words.OP], list(_Emitter.METHODS)).all():
        return False
    return int(_operations(table, dtype).sum()) * max(1, rows) <= MOST_OPERATIONS


def _operations(table: np.ndarray, dtype: str) -> np.ndarray:
    """On vectors, by instruction."""
    rows, cols, inner = table[:, [words.M, words.N, words.K]].T
    vectors = -(-rows * cols * np.dtype(dtype).itemsize // VECTOR_BYTES)
    products = np.isin(table[:, words.OP], (words.PRODUCT, words.PRODUCT_UPDATE))
    found: np.ndarray = vectors * (2 + inner * products)
    return found


def steps_for(
    table: np.ndarray, dtype: str, absolute: int, moves: Mapping[int, tuple[int, int]], parameters: Iterable[int]
) -> Steps | None:
    """Code for a bound table, or None if it is too long or has what is not done here.

    Args:
        absolute: the slot whose offsets are addresses.
        moves: slots whose address differs from step to step: bytes a position and a step.
        parameters: slots that updates may change.
    """
    try:
        first = _Emitter(table, dtype, absolute, moves, frozenset(parameters), ())
        layout = tuple(dict.fromkeys(places for places, _ in first.updated))
        if len(layout) > MOST_CARRIED:
            return None
        # again, with parameters in vectors as updates leave them
        return Steps(_Emitter(table, dtype, absolute, moves, frozenset(parameters), layout).module)
    except UnsuitableError:
        return None


class _Emitter:
    """Emits the loop.

    Attributes:
        known: what has been computed in this step, by place.
        updated: the vectors that parameters have been written with, in order.
    """

    METHODS: Mapping[int, str] = {
        words.PRODUCT: "_product",
        words.PRODUCT_UPDATE: "_product_update",
        words.MAP_UNARY: "_map",
        words.MAP_BINARY: "_map",
        words.CHAIN: "_chain",
        words.SOFTMAX: "_softmax",
        words.CROSS_ENTROPY: "_cross_entropy",
        words.GATHER: "_gather",
        words.ONEHOT: "_onehot",
        words.UPDATE: "_update",
    }
    OWN = -2  # slot of a chain's private memory

    def __init__(
        self,
        table: np.ndarray,
        dtype: str,
        absolute: int,
        moves: Mapping[int, tuple[int, int]],
        parameters: frozenset[int],
        layout: tuple[tuple[Where, ...], ...],
    ) -> None:
        self.absolute = absolute
        self.parameters = parameters
        self.room = 0  # bytes of the stack that gradients take
        self.in_memory: list[tuple[int, int, int]] = []  # slot, from, to: parameters that loops write
        self.module = ir.Module(NAME)
        self.module.triple = target()[0]
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [BYTE, BYTE, I64]), NAME)
        self.builder = b = ir.IRBuilder(function.append_basic_block("entry"))
        self.m = VectorEmitter(b, dtype)
        self.item, self.lanes = self.m.itemsize, self.m.lanes
        self.known: dict[Where, Element] = {}
        self.updated: list[Written] = []
        self.memo: dict[tuple[Key, ...], tuple[Any, Sequence[Element]]] = {}
        bases, plan, count = function.args
        slots = 1 + max(absolute, int(table[:, words.OPERANDS :: 4].max()), *moves, words.PARTIALS)
        self.bases = [b.load(self._place(bases, 8 * slot, BYTE)) for slot in range(slots)]
        begun = [self._vector([Element(self.bases[slot], byte, True) for slot, byte in group]) for group in layout]
        self.memo.clear()
        entry, loop, end = b.block, b.append_basic_block("step"), b.append_basic_block("end")
        b.branch(loop)
        b.position_at_end(loop)
        turn = b.phi(I64)
        turn.add_incoming(I64(0), entry)
        carried = [b.phi(self.m.type) for _ in layout]
        for group, phi, vector in zip(layout, carried, begun, strict=True):
            phi.add_incoming(vector.value, entry)
            self._keep(group, Vector(self.m, phi))
        line = b.gep(plan, [b.mul(turn, I64(24))])
        position, step = (b.load(self._place(line, 8 * word, I64)) for word in (1, 2))
        for slot, (a_position, a_step) in moves.items():
            moved = b.add(b.mul(position, I64(a_position)), b.mul(step, I64(a_step)))
            self.bases[slot] = b.gep(self.bases[slot], [moved])
        for row, in_loops in zip(table.tolist(), _operations(table, dtype) >= LOOP_FROM, strict=True):
            self.row, self.in_loops = row, bool(in_loops)
            getattr(self, self.METHODS[row[words.OP]])()
            self._forget_memory()
            self._check_length()
        ended = [self._vector([self.known[place] for place in group]) for group in layout]
        following = b.add(turn, I64(1))
        for phi, vector in zip((turn, *carried), (following, *(v.value for v in ended)), strict=True):
            phi.add_incoming(vector, b.block)
        b.cbranch(b.icmp_signed("<", following, count), loop, end)
        b.position_at_end(end)
        for group, vector in zip(layout, ended, strict=True):
            self._store(group, vector)
        b.ret_void()

    def _check_length(self) -> None:
        if sum(len(block.instructions) for block in self.builder.function.blocks) > MOST_INSTRUCTIONS:
            raise UnsuitableError("too long")

    # ---- elements ------------------------------------------------------------------------------------------------

    def _place(self, base: Any, byte: int, kind: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(base, [I64(byte)]), kind.as_pointer())

    def _element(self, slot: int, byte: int) -> Element:
        """What an instruction reads there."""
        found = self.known.get((slot, byte))
        if found is not None:
            return found
        if slot in (words.WORKSPACE, self.OWN):
            raise UnsuitableError("read before it is written")
        if slot == self.absolute:
            kind = ctypes.c_float if self.item == 4 else ctypes.c_double
            return Element(None, kind.from_address(byte).value)
        return Element(self.bases[slot], byte, True)

    def _scalar(self, element: Element) -> Any:
        if element.source is None:
            return ir.Constant(self.m.element, element.at)
        if not element.in_memory:
            return self.builder.extract_element(element.source, I32(int(element.at)))
        found = self.builder.load(self._place(element.source, int(element.at), self.m.element))
        found.align = self.item
        return found

    def _shuffle(self, x: Any, y: Any, lanes: Sequence[int]) -> Any:
        return self.builder.shuffle_vector(x, y, _order(tuple(lanes)))

    def _vector(self, elements: Iterable[Element], rest: float | None = None) -> Vector:
        """A vector with those in its first lanes, and in the others anything, or ``rest``."""
        wanted = list(elements)
        if rest is not None:
            wanted += [Element(None, rest)] * (self.lanes - len(wanted))
        key = tuple(e.key for e in wanted)
        if key not in self.memo:
            self.memo[key] = self._gathered(wanted, key), wanted  # elements too: an id lasts as long as its owner
        return Vector(self.m, self.memo[key][0])

    def _number(self, slot: int, byte: int) -> Vector:
        """One number in all lanes."""
        return self._vector([self._element(slot, byte)] * self.lanes)

    def _gathered(self, wanted: list[Element], key: tuple[Key, ...]) -> Any:
        m, first = self.m, wanted[0]
        unlike = dict(zip(key, wanted, strict=True))
        if len(unlike) == 1:
            return m.constant(first.at) if first.source is None else m.splat(self._scalar(first)).value
        if all(e.in_memory and e.source is first.source and e.at == first.at + k * self.item
               for k, e in enumerate(wanted)):  # fmt: skip
            return self._loaded(first, len(wanted))
        if len(unlike) < len(wanted):
            order = list(unlike)
            some = self._vector(unlike.values()).value
            return self._shuffle(some, some, self._filled([order.index(k) for k in key]))
        if any(e.in_memory for e in wanted):
            made = ir.Constant(m.type, ir.Undefined)
            for lane, e in enumerate(wanted):
                made = self.builder.insert_element(made, self._scalar(e), I32(lane))
            return made
        sources = {id(e.source): e.source for e in wanted}
        made = None
        for owner, source in sources.items():
            vector, here = source, [int(e.at) if id(e.source) == owner else None for e in wanted]
            if source is None:
                numbers = [e.at if e.source is None else 0.0 for e in wanted]
                vector = ir.Constant(m.type, numbers + [0.0] * (self.lanes - len(numbers)))
                here = [lane if e.source is None else None for lane, e in enumerate(wanted)]
            if made is None and len(sources) == 1 and all(lane == k for k, lane in enumerate(here)):
                return vector
            own = range(len(here))
            if made is None:
                made = self._shuffle(vector, vector, self._filled([lane or 0 for lane in here]))
            else:
                chosen = [k if lane is None else self.lanes + lane for k, lane in zip(own, here, strict=True)]
                made = self._shuffle(made, vector, self._filled(chosen))
        return made

    def _filled(self, lanes: list[int]) -> list[int]:
        return lanes + [0] * (self.lanes - len(lanes))

    def _loaded(self, first: Element, count: int) -> Any:
        """So many numbers that lie side by side: not a byte beyond them is read."""
        made, at = None, 0
        for size in self._sizes(count):
            kind = ir.VectorType(self.m.element, size)
            part = self.builder.load(self._place(first.source, int(first.at) + at * self.item, kind))
            part.align = self.item
            if size < self.lanes:
                part = self._shuffle(part, part, self._filled(list(range(size))))
            if made is not None:
                lanes = [k if k < at else self.lanes + k - at if k < at + size else 0 for k in range(self.lanes)]
                part = self._shuffle(made, part, lanes)
            made, at = part, at + size
        return made

    def _sizes(self, count: int) -> Iterator[int]:
        """Powers of two that add up to it, of a vector's lanes at most."""
        while count:
            size = min(self.lanes, 1 << count.bit_length() - 1)
            yield size
            count -= size

    def _write(self, written: Iterable[Written]) -> None:
        """Vectors to where their first lanes belong, when all of an instruction has been computed."""
        for places, vector in list(written):
            slot = places[0][0]
            if slot in self.parameters:
                if any(slot == at and first <= byte < end for at, first, end in self.in_memory for _, byte in places):
                    raise UnsuitableError("parameters in memory and in vectors")
                self.updated.append((places, vector))
            if slot in self.parameters or slot in (words.WORKSPACE, self.OWN):
                self._keep(places, vector)
            else:
                self._store(places, vector)
                self._forget_memory()

    def _keep(self, places: Iterable[Where], vector: Vector) -> None:
        self.known.update((place, Element(vector.value, lane)) for lane, place in enumerate(places))

    def _store(self, places: Sequence[Where], vector: Vector) -> None:
        """To memory, in pieces that lie side by side."""
        runs = [0]
        runs += [k for k in range(1, len(places)) if places[k] != (places[k - 1][0], places[k - 1][1] + self.item)]
        for start, stop in zip(runs, [*runs[1:], len(places)], strict=True):
            slot, byte = places[start]
            self._store_at(self.bases[slot], byte, vector, range(start, stop))

    def _store_at(self, base: Any, byte: int, vector: Vector, lanes: range) -> None:
        """Some lanes, side by side."""
        at = lanes.start
        for size in self._sizes(len(lanes)):
            own = range(at, at + size)
            part = vector.value if size == self.lanes else self._shuffle(vector.value, vector.value, own)
            place = self._place(base, byte + (at - lanes.start) * self.item, part.type)
            self.builder.store(part, place).align = self.item
            at += size

    def _forget_memory(self) -> None:
        """What has been read from memory is read again: it may have been written."""
        self.memo = {k: found for k, found in self.memo.items() if not any(e.in_memory for e in found[1])}

    # ---- operands ------------------------------------------------------------------------------------------------

    def _operand(self, which: int) -> tuple[int, int, int, int]:
        at = words.OPERANDS + 4 * which
        slot, offset, row, col = self.row[at : at + 4]
        return slot, offset, row, col

    def _at(self, which: int, i: int, j: int) -> Where:
        """Where element (i, j) of an operand is."""
        slot, offset, row, col = self._operand(which)
        return slot, offset + (i * row + j * col) * self.item

    def _in_row(self, which: int, i: int, j: int) -> Where:
        """The same of one whose rows are contiguous, whatever is said of its columns."""
        slot, offset, row, _ = self._operand(which)
        return slot, offset + (i * row + j) * self.item

    def _read(self, which: int, elements: Iterable[tuple[int, int]]) -> Vector:
        return self._vector(self._element(*self._at(which, i, j)) for i, j in elements)

    def _hyper(self, count: int) -> tuple[Vector, ...]:
        """The first numbers of a rule, float64 in memory."""
        slot, offset, _, _ = self._operand(EXTRA)
        found = []
        for k in range(count):
            number = self.builder.load(self._place(self.bases[slot], offset + 8 * k, ir.DoubleType()))
            found.append(self.m.splat(self.builder.fptrunc(number, self.m.element) if self.item == 4 else number))
        return tuple(found)

    def _groups(self, elements: Sequence[tuple[int, int]], cols: int) -> list[list[tuple[int, int]]]:
        """Elements, row by row, that share a vector: of the same row if rows are as long as one."""
        rows: dict[int, list[tuple[int, int]]] = {}
        for element in elements:
            rows.setdefault(element[0] if cols >= self.lanes else 0, []).append(element)
        return [row[k : k + self.lanes] for row in rows.values() for k in range(0, len(row), self.lanes)]

    # ---- products --------------------------------------------------------------------------------------------------

    def _sums(self, first: int) -> list[tuple[list[tuple[int, int]], Vector]]:
        """The elements of A B from a row on, a vector at a time, in the order of gemm.py or that of dot products."""
        row = self.row
        m, n, how = row[words.M], row[words.N], row[words.HOW]
        plain = how & (words.FEW_ROWS | words.SUMMANDS | words.FEW_COLUMNS | words.OUTER | words.SMALL | words.PACK_T)
        if how & words.PAIRS or (not plain and row[words.PANEL] != TILE_VECTORS * self.lanes):
            raise UnsuitableError("bfloat16, or B in panels")
        elements = [(i, j) for i in range(first, m) for j in range(n)]
        elements += [(m, j) for j in range(n if how & words.ONES else 0)]
        elements += [(0, n)] if how & words.TOTAL else []
        groups = self._groups(elements, n)
        if self.in_loops and n >= self.lanes and not how & (words.ONES | words.TOTAL | words.FEW_COLUMNS):
            in_loop = self._turned_in_loop if how & (words.PACK_T | words.DOTS) else self._chains_in_loop
            sums = in_loop(groups)
            if sums is not None:
                return list(zip(groups, sums, strict=True))
        if how & (words.DOTS | words.FEW_COLUMNS):
            return [(group, self._dots(group)) for group in groups]
        found: list[tuple[list[tuple[int, int]], Vector]] = []
        for start in range(0, len(groups), ACCUMULATORS):
            some = groups[start : start + ACCUMULATORS]
            found += zip(some, self._chains(some), strict=True)
            self._check_length()
        return found

    def _of_a(self, i: int, k: int) -> Element:
        """Of A, which may have one more row, of ones."""
        return Element(None, 1.0) if i == self.row[words.M] else self._element(*self._at(A, i, k))

    def _of_b(self, k: int, j: int) -> Element:
        """Of B, which may be given as its transpose, or have one more column, of ones."""
        if j == self.row[words.N]:
            return Element(None, 1.0)
        turned = self.row[words.HOW] & (words.PACK_T | words.DOTS)
        return self._element(*(self._in_row(B, j, k) if turned else self._in_row(B, k, j)))

    def _dots(self, group: list[tuple[int, int]]) -> Vector:
        """A vector of sums for each, which are then added pairwise."""
        m, k = self.m, self.row[words.K]
        totals = []
        for i, j in group:
            total = Vector(m, m.constant(0.0))
            for start in range(0, k, self.lanes):
                here = range(start, min(k, start + self.lanes))
                x = self._vector([self._of_a(i, q) for q in here], 0.0)
                total = m.fma(x, self._vector([self._of_b(q, j) for q in here], 0.0), total)
            totals.append(total)
        return sums_of_lanes(m, totals + totals[-1:] * (self.lanes - len(totals)))

    def _chains(self, groups: list[list[tuple[int, int]]]) -> list[Vector]:
        """A chain of fused multiply-adds for every block of K."""
        m, k, block = self.m, self.row[words.K], max(1, self.row[words.BLOCK])
        zero = Vector(m, m.constant(0.0))
        totals: list[Vector] = []
        for start in range(0, max(k, 1), block):
            sums = [zero for _ in groups]
            for q in range(start, min(k, start + block)):
                for number, group in enumerate(groups):
                    x = self._vector([self._of_a(i, q) for i, _ in group])
                    y = self._vector([self._of_b(q, j) for _, j in group])
                    # few summands are not added to 0, see one_row.update_by_panels
                    fresh = q == 0 and self.row[words.HOW] & words.SUMMANDS
                    sums[number] = x * y if fresh else m.fma(x, y, sums[number])
            totals = [t + s for t, s in zip(totals, sums, strict=True)] if totals else sums
        return totals

    # ---- products in loops, over matrices in memory ----------------------------------------------------------------

    def _loop(
        self, count: int, values: list[Vector], body: Callable[[Any, list[Vector]], list[Vector]]
    ) -> list[Vector]:
        """The values after ``count`` turns of the body, at least one: it is given the turn's number and the values."""
        b = self.builder
        before, inside, after = b.block, b.append_basic_block("loop"), b.append_basic_block("loop.end")
        b.branch(inside)
        b.position_at_end(inside)
        turn = b.phi(I64)
        phis = [b.phi(self.m.type) for _ in values]
        new = body(turn, [Vector(self.m, phi) for phi in phis])
        following = b.add(turn, I64(1))
        starts, ends = (I64(0), *(v.value for v in values)), (following, *(v.value for v in new))
        for phi, start, end in zip((turn, *phis), starts, ends, strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(end, b.block)
        b.cbranch(b.icmp_signed("<", following, I64(count)), inside, after)
        b.position_at_end(after)
        return new

    def _room(self, count: int) -> Any:
        """Memory on the stack for so many numbers."""
        with self.builder.goto_entry_block():
            room = self.builder.alloca(self.m.element, count)
            room.align = VECTOR_BYTES
            return self.builder.bitcast(room, BYTE)

    def _line(self, elements: Sequence[Element]) -> tuple[Any, int]:
        """Where numbers lie at equal distances, and these in bytes; they are copied there if they lie nowhere so."""
        first = elements[0]
        stride = int(elements[1].at - first.at) if len(elements) > 1 else self.item
        if all(e.in_memory and e.source is first.source and e.at == first.at + k * stride
               for k, e in enumerate(elements)):  # fmt: skip
            return self.builder.gep(first.source, [I64(int(first.at))]), stride
        room = self._room(len(elements))
        for start in range(0, len(elements), self.lanes):
            some = elements[start : start + self.lanes]
            self._store_at(room, start * self.item, self._vector(some), range(len(some)))
        return room, self.item

    def _matrix(self, rows: int, cols: int, element: Callable[[int, int], Element]) -> tuple[Any, int] | None:
        """Where a matrix in memory begins and how many bytes its rows are apart, if they are contiguous."""
        first = element(0, 0)
        stride = int(element(1, 0).at - first.at) if rows > 1 else 0
        for i in range(rows):
            for j in range(cols):
                e = element(i, j)
                if not e.in_memory or e.source is not first.source or e.at != first.at + i * stride + j * self.item:
                    return None
        return self.builder.gep(first.source, [I64(int(first.at))]), stride

    def _number_at(self, base: Any, byte: Any) -> Vector:
        found = self.builder.load(self.builder.bitcast(self.builder.gep(base, [byte]), self.m.element.as_pointer()))
        found.align = self.item
        return self.m.splat(found)

    def _vector_at(self, base: Any, byte: int) -> Vector:
        return Vector(self.m, self._loaded(Element(base, byte, True), self.lanes))

    def _first_lanes(self, vector: Vector, start: int) -> Vector:
        """From lane ``start`` on."""
        if not start:
            return vector
        return Vector(self.m, self._shuffle(vector.value, vector.value, self._filled(list(range(start, self.lanes)))))

    def _begins(self, groups: Sequence[Sequence[tuple[int, int]]]) -> list[int]:
        """The column where the vector of a group begins in memory: the last one of a row ends with the row."""
        return [min(group[0][1], self.row[words.N] - self.lanes) for group in groups]

    def _chains_in_loop(self, groups: list[list[tuple[int, int]]]) -> list[Vector] | None:
        """:meth:`_chains`, with a loop over each block of K."""
        m, n, k, block = self.m, self.row[words.N], self.row[words.K], max(1, self.row[words.BLOCK])
        of_b = self._matrix(k, n, self._of_b) if k > 1 else None
        if of_b is None or self.row[words.HOW] & words.SUMMANDS:
            return None
        b, zero = self.builder, Vector(m, m.constant(0.0))
        lines = {i: self._line([self._of_a(i, q) for q in range(k)]) for i in dict.fromkeys(g[0][0] for g in groups)}
        found: list[Vector] = []
        for first in range(0, len(groups), ACCUMULATORS):
            some = groups[first : first + ACCUMULATORS]
            begins, rows = self._begins(some), [group[0][0] for group in some]
            together = max(1, ACCUMULATORS // len(some))  # blocks, so that no chain waits for itself
            totals: list[Vector] = []
            starts = list(range(0, k, block))
            whole = k // block // together * together
            for blocks in [starts[q : q + together] for q in range(0, whole, together)] + [[q] for q in starts[whole:]]:

                def body(turn: Any, sums: list[Vector], blocks: list[int] = blocks, begins: list[int] = begins,
                         rows: list[int] = rows) -> list[Vector]:  # fmt: skip
                    added, old = [], iter(sums)
                    for start in blocks:
                        q = b.add(turn, I64(start))
                        line = b.gep(of_b[0], [b.mul(q, I64(of_b[1]))])
                        x = {i: self._number_at(lines[i][0], b.mul(q, I64(lines[i][1]))) for i in dict.fromkeys(rows)}
                        y = {j: self._vector_at(line, j * self.item) for j in dict.fromkeys(begins)}
                        added += [m.fma(x[i], y[j], next(old)) for i, j in zip(rows, begins, strict=True)]
                    return added

                sums = self._loop(min(block, k - blocks[0]), [zero] * len(some) * len(blocks), body)
                for at in range(0, len(sums), len(some)):
                    own = sums[at : at + len(some)]
                    totals = [t + s for t, s in zip(totals, own, strict=True)] if totals else own
            found += [self._first_lanes(t, g[0][1] - j) for t, g, j in zip(totals, some, begins, strict=True)]
        return found

    def _turned_in_loop(self, groups: list[list[tuple[int, int]]]) -> list[Vector] | None:
        """:meth:`_chains` or :meth:`_dots` where B is given as its transpose, as many of its rows a turn as lanes."""
        m, b, item, lanes = self.m, self.builder, self.item, self.lanes
        rows, n, k = self.row[words.M], self.row[words.N], self.row[words.K]
        of_b = self._matrix(n, k, lambda j, q: self._of_b(q, j)) if k else None
        if of_b is None:
            return None
        starts = range(0, k, lanes)
        dots = bool(self.row[words.HOW] & words.DOTS)
        a = [[self._of_a(i, q) for q in range(k)] for i in range(rows)]
        if dots:  # all that does not change from turn to turn comes first
            x = [[self._vector(of_row[q : q + lanes], 0.0) for q in starts] for of_row in a]
        else:
            x = [[self._vector([e] * lanes) for e in of_row] for of_row in a]
        zero, room = Vector(m, m.constant(0.0)), self._room(rows * n)

        def some_rows(first: Any) -> None:
            line = b.gep(of_b[0], [b.mul(first, I64(of_b[1]))])
            of_rows = [[self._part(line, lane * of_b[1] + q * item, min(lanes, k - q)) for q in starts]
                       for lane in range(lanes)]  # fmt: skip
            to = b.gep(room, [b.mul(first, I64(item))])
            columns = []
            if not dots:
                for part in zip(*of_rows, strict=True):
                    columns += transposed(m, list(part))
            for i in range(rows):
                if dots:
                    totals = []
                    for of_row in of_rows:
                        total = zero
                        for own, other in zip(x[i], of_row, strict=True):
                            total = m.fma(own, other, total)
                        totals.append(total)
                    result = sums_of_lanes(m, totals)
                else:
                    result = self._sum_of_products(x[i], columns[:k])
                self._store_at(to, i * n * item, result, range(lanes))

        def body(turn: Any, values: list[Vector]) -> list[Vector]:
            some_rows(b.mul(turn, I64(lanes)))
            return values

        self._loop(n // lanes, [], body)
        if n % lanes:
            some_rows(I64(n - lanes))
        return [self._vector(Element(room, (i * n + j) * item, True) for i, j in group) for group in groups]

    def _sum_of_products(self, x: Sequence[Vector], y: Sequence[Vector]) -> Vector:
        """The sum of one product or more, block by block."""
        m, block = self.m, max(1, self.row[words.BLOCK])
        totals = []
        for start in range(0, len(x), block):
            own = Vector(m, m.constant(0.0))
            for q in range(start, min(len(x), start + block)):
                fresh = q == 0 and self.row[words.HOW] & words.SUMMANDS  # as in _chains
                own = x[q] * y[q] if fresh else m.fma(x[q], y[q], own)
            totals.append(own)
        return functools.reduce(add, totals)

    def _part(self, base: Any, byte: int, count: int) -> Vector:
        """So many numbers, and zeros."""
        made = self._loaded(Element(base, byte, True), count)
        if count == self.lanes:
            return Vector(self.m, made)
        zeros = self.m.constant(0.0)
        lanes = [lane if lane < count else self.lanes for lane in range(self.lanes)]
        return Vector(self.m, self._shuffle(made, zeros, lanes))

    def _update_in_loop(self, rule: Any, places: list[tuple[int, int, int]]) -> int:
        """Rows of parameters and states changed by a gradient of few summands; how many have been.

        Args:
            places: slot, offset and bytes from row to row of the parameters and of each state.
        """
        m, row = self.m, self.row
        if not self._has_rows_of_few_summands() or any(slot not in self.parameters for slot, _, _ in places):
            return 0
        rows: int = row[words.M]
        n = row[words.N]
        for slot, first, stride in places:
            self._stays_in_memory(slot, first, first + (rows - 1) * stride + n * self.item)
        hyper = self._hyper(len(rule.hyper))
        here = [(self.builder.gep(self.bases[slot], [I64(first)]), stride) for slot, first, stride in places]

        def new(gradient: Vector, theta: Vector, *states: Vector) -> tuple[Vector, ...]:
            found: tuple[Vector, ...] = rule.formula(m, hyper, theta, gradient, *states)
            return found

        self._rows_in_loop(here, new)
        return rows

    def _gradient_in_loop(self) -> int:
        """Rows of a gradient of few summands, to the stack; how many have been."""
        row = self.row
        slot, offset, stride, _ = self._operand(OUT)
        more = row[words.HOW] & (words.BIAS | words.PACK_T | words.DOTS | words.FEW_COLUMNS)
        if not self._has_rows_of_few_summands() or more or slot != words.WORKSPACE:
            return 0
        if row[words.CODE] >= 0 or row[words.THEN] >= 0:
            return 0
        rows: int = row[words.M]
        n = row[words.N]
        self.room += rows * n * self.item
        if self.room > MOST_ROOM:
            raise UnsuitableError("gradients too large for the stack")
        room = self._room(rows * n)
        self._rows_in_loop([(room, n * self.item)], lambda gradient, _: (gradient,))
        for i in range(rows):
            for j in range(n):
                place = slot, offset + (i * stride + j) * self.item
                self.known[place] = Element(room, (i * n + j) * self.item, True)
        return rows

    def _has_rows_of_few_summands(self) -> bool:
        """Whether an instruction's product is worth a loop over its rows."""
        row = self.row
        suits = row[words.N] >= self.lanes and row[words.M] > 1 and 0 < row[words.K] <= MOST_SUMMANDS
        return self.in_loops and suits and not row[words.HOW] & words.TOTAL

    def _stays_in_memory(self, slot: int, first: int, end: int) -> None:
        """Parameters that a loop writes."""
        if any((slot, byte) in self.known for byte in range(first, end, self.item)):
            raise UnsuitableError("parameters in vectors and in memory")
        self.in_memory.append((slot, first, end))

    def _rows_in_loop(self, places: list[tuple[Any, int]], new: Callable[..., tuple[Vector, ...]]) -> None:
        """What a rule makes of rows of a product of few summands and of what lies there, row after row.

        Args:
            places: address and bytes from row to row of each matrix.
        """
        b, row, few = self.builder, self.row, 4
        rows, n, k = row[words.M], row[words.N], row[words.K]
        begins = self._begins(self._groups([(0, j) for j in range(n)], n))
        y = [[self._vector(self._of_b(q, j + lane) for lane in range(self.lanes)) for j in begins] for q in range(k)]
        lines = [self._line([self._of_a(i, q) for i in range(rows)]) for q in range(k)]
        # a few vectors are read before they are written: the last one may overlap the one before it
        starts = [v for v in range(0, len(begins), few) if v == 0 or v < len(begins) - 1]
        some = [range(v, end) for v, end in zip(starts, [*starts[1:], len(begins)], strict=True)]

        def body(turn: Any, values: list[Vector]) -> list[Vector]:
            x = [self._number_at(line, b.mul(turn, I64(stride))) for line, stride in lines]
            here = [b.gep(base, [b.mul(turn, I64(stride))]) for base, stride in places]
            for numbers in some:
                olds = [[self._vector_at(line, begins[v] * self.item) for line in here] for v in numbers]
                for v, old in zip(numbers, olds, strict=True):
                    gradient = self._sum_of_products(x, [of_q[v] for of_q in y])
                    for line, value in zip(here, new(gradient, *old), strict=True):
                        self._store_at(line, begins[v] * self.item, value, range(self.lanes))
            return values

        self._loop(rows, [], body)

    def _product(self) -> None:
        row, m = self.row, self.m
        how, code, then = row[words.HOW], row[words.CODE], row[words.THEN]
        written: list[Written] = []
        done = 0
        if how & words.SGD:
            slot, offset, stride, _ = self._operand(OUT)
            done = self._update_in_loop(scalars.UPDATES["sgd"], [(slot, offset, stride * self.item)])
        else:
            done = self._gradient_in_loop()
        for group, total in self._sums(done):
            out, value = tuple(self._in_row(OUT, i, j) for i, j in group), total
            if how & words.BIAS:
                value = value + self._vector(self._element(*self._in_row(Y, 0, j)) for _, j in group)
            if how & words.SGD:
                theta = self._vector(self._element(*place) for place in out)
                (value,) = scalars.UPDATES["sgd"].formula(m, self._hyper(1), theta, value)
            if code >= 0:
                value = _BINARY[code](m, value, self._read(Y, group))
            written.append((out, value))
            if then >= 0:
                written.append((tuple(self._in_row(OUT2, i, j) for i, j in group), _UNARY[then](m, value)))
        self._write(written)

    def _product_update(self) -> None:
        rule, n = _RULES[self.row[words.CODE]], self.row[words.N]
        written: list[Written] = []
        begins = [self._operand(which)[:2] for which in (OUT, Y, OUT2)[: 1 + len(rule.states)]]
        done = self._update_in_loop(rule, [(slot, offset, n * self.item) for slot, offset in begins])
        for group, gradient in self._sums(done):
            places = [tuple((slot, at + (i * n + j) * self.item) for i, j in group) for slot, at in begins]
            theta, *states = (self._vector(self._element(*place) for place in of) for of in places)
            new = rule.formula(self.m, self._hyper(len(rule.hyper)), theta, gradient, *states)
            written += zip(places, new, strict=True)
        self._write(written)

    # ---- elementwise -----------------------------------------------------------------------------------------------

    def _elements(self, done: Container[tuple[int, int]] = ()) -> list[list[tuple[int, int]]]:
        rows, cols = self.row[words.M], self.row[words.N]
        return self._groups([e for i in range(rows) for j in range(cols) if (e := (i, j)) not in done], cols)

    def _update(self) -> None:
        rule = _RULES[self.row[words.CODE]]
        which = (OUT, B, Y)[: 1 + len(rule.states)]
        written: list[Written] = []
        done = self._update_in_memory(rule, which)
        for group in self._elements(done):
            theta, gradient, *states = (self._read(operand, group) for operand in (OUT, A, *which[1:]))
            new = rule.formula(self.m, self._hyper(len(rule.hyper)), theta, gradient, *states)
            places = [tuple(self._in_row(operand, i, j) for i, j in group) for operand in which]
            written += zip(places, new, strict=True)
        self._write(written)

    def _update_in_memory(self, rule: Any, which: Sequence[int]) -> set[tuple[int, int]]:
        """Elements of one row whose gradient lies on the stack: updated in loops. Those that have been."""
        m, b, cols = self.m, self.builder, self.row[words.N]
        done: set[tuple[int, int]] = set()
        if not self.in_loops or self.row[words.M] != 1:
            return done
        gradients = [self._element(*self._at(A, 0, j)) for j in range(cols)]
        hyper = self._hyper(len(rule.hyper))
        first = 0
        while first < cols:
            end = first + 1
            one = gradients[first]
            while (end < cols and one.in_memory and gradients[end].in_memory and gradients[end].source is one.source
                   and gradients[end].at == one.at + (end - first) * self.item):  # fmt: skip
                end += 1
            turns, rest = divmod(end - first, self.lanes)
            if one.in_memory and turns > 1:
                places = [self._at(operand, 0, first) for operand in which]
                for slot, byte in places:
                    self._stays_in_memory(slot, byte, byte + (end - first) * self.item)
                bases = [b.gep(self.bases[slot], [I64(byte)]) for slot, byte in places]
                source = b.gep(one.source, [I64(int(one.at))])

                def update(byte: Any, count: int, bases: list[Any] = bases, source: Any = source) -> None:
                    here = [b.gep(base, [byte]) for base in (source, *bases)]
                    gradient, theta, *states = (self._part(line, 0, count) for line in here)
                    for line, new in zip(here[1:], rule.formula(m, hyper, theta, gradient, *states), strict=True):
                        self._store_at(line, 0, new, range(count))

                def body(turn: Any, values: list[Vector], update: Callable[[Any, int], None] = update) -> list[Vector]:
                    update(b.mul(turn, I64(VECTOR_BYTES)), self.lanes)
                    return values

                self._loop(turns, [], body)
                if rest:
                    update(I64(turns * VECTOR_BYTES), rest)
                done |= {(0, j) for j in range(first, end)}
            first = end
        return done

    def _map(self) -> None:
        code, written = self.row[words.CODE], []
        for group in self._elements():
            x = self._read(A, group)
            if self.row[words.OP] == words.MAP_UNARY:
                value = _UNARY[code](self.m, x)
            else:
                value = _BINARY[code](self.m, x * self._number(*self._operand(EXTRA)[:2]), self._read(B, group))
            written.append((tuple(self._in_row(OUT, i, j) for i, j in group), value))
        self._write(written)

    # ---- rows ------------------------------------------------------------------------------------------------------

    def _gather(self) -> None:
        """Rows of the batch are where they are in the data set: nothing is copied."""
        b, size = self.builder, 4 * self.row[words.N]
        (to, offset, _, _), (data, first, _, _), (order, index, _, _) = (self._operand(w) for w in (OUT, A, B))
        if to != words.WORKSPACE or data in self.parameters:
            raise UnsuitableError("rows that go out, or of what is not in memory while steps run")
        for r in range(self.row[words.M]):
            number = b.load(self._place(self.bases[order], index + 8 * r, I64))
            line = b.gep(self.bases[data], [b.add(b.mul(number, I64(size)), I64(first))])
            for byte in range(0, size, 4):
                self.known[to, offset + r * size + byte] = Element(line, byte, True)

    def _rows(self) -> Iterator[tuple[list[int], list[Vector]]]:
        """Rows that share vectors, a row in each lane, and a vector for each column of A."""
        rows, n = self.row[words.M], self.row[words.N]
        if n > STACK_VECTORS:
            raise UnsuitableError("long rows")
        for start in range(0, rows, self.lanes):
            some = list(range(start, min(rows, start + self.lanes)))
            yield some, self._columns(A, some)

    def _columns(self, which: int, rows: list[int]) -> list[Vector]:
        n = self.row[words.N]
        return [self._vector(self._element(*self._in_row(which, r, c)) for r in rows) for c in range(n)]

    def _in_rows(self, which: int, rows: list[int], columns: list[Vector]) -> Iterator[Written]:
        """Columns back to where rows belong."""
        elements = [(r, c) for r in range(len(rows)) for c in range(len(columns))]
        for group in self._groups(elements, len(columns)):
            vector = self._vector(Element(columns[c].value, r) for r, c in group)
            yield tuple(self._in_row(which, rows[r], c) for r, c in group), vector

    def _softmax(self) -> None:
        m, code = self.m, self.row[words.CODE]
        written: list[Written] = []
        for rows, z in self._rows():
            y = self._columns(B, rows) if code == words.LOGARITHMS_GRAD else z
            out: list[Vector] = []

            def over_row(start: float, step: Callable[[Vector, Vector], Vector], z: list[Vector] = z) -> Vector:
                return functools.reduce(step, z, Vector(m, m.constant(start)))

            def write(
                formula: Callable[[Vector, Callable[[], Vector]], Vector],
                pairs: Sequence[tuple[Vector, Vector]] = tuple(zip(z, y, strict=True)),
                out: list[Vector] = out,
            ) -> None:
                out += [formula(own, functools.partial(_itself, other)) for own, other in pairs]

            softmaxes(m, over_row, write, out.append)[code]()
            written += self._in_rows(OUT, rows, out)
        self._write(written)

    def _onehot(self) -> None:
        written: list[Written] = []
        for start in range(0, self.row[words.M], self.lanes):
            rows = list(range(start, min(self.row[words.M], start + self.lanes)))
            written += self._in_rows(OUT, rows, self._labelled(A, rows))
        self._write(written)

    def _cross_entropy(self) -> None:
        """As simd.cross_entropy_lanes does it."""
        m, code = self.m, self.row[words.CODE]
        zero = Vector(m, m.constant(0.0))
        written: list[Written] = []
        for rows, z in self._rows():
            t = self._labelled(B, rows) if code & words.BY_LABELS else self._columns(B, rows)
            top = Vector(m, m.constant(-float("inf")))
            for column in z:
                top = higher(top, column)
            exponentials, total = [below(m, column, top) for column in z], zero
            for e in exponentials:
                total = total + e
            shift, result, targets = m.log(total), zero, zero
            for column, own in zip(z, t, strict=True):
                result, targets = m.fma(logarithm(m, column, top, shift), own, result), targets + own
            written += self._in_rows(OUT, rows, [result])
            if code & words.WITH_GRADIENT:
                factor = self._number(*self._operand(EXTRA)[:2])
                share = targets * factor / total
                grad = [own * factor - e * share for own, e in zip(t, exponentials, strict=True)]
                written += self._in_rows(OUT2, rows, grad)
        self._write(written)

    def _labelled(self, which: int, rows: list[int]) -> list[Vector]:
        """The columns of a matrix with a 1 in each row where its label says."""
        m, b = self.m, self.builder
        slot, offset, _, _ = self._operand(which)
        labels = ir.Constant(ir.VectorType(I64, self.lanes), [-1] * self.lanes)
        for lane, r in enumerate(rows):
            source, byte, _ = self._element(slot, offset + 8 * r)
            labels = b.insert_element(labels, b.load(self._place(source, int(byte), I64)), I32(lane))
        return [
            Vector(m, b.select(b.icmp_signed("==", labels, ir.Constant(labels.type, [c] * self.lanes)),
                               m.constant(1.0), m.constant(0.0)))
            for c in range(self.row[words.N])
        ]  # fmt: skip

    # ---- chains ----------------------------------------------------------------------------------------------------

    def _chain(self) -> None:
        """A chain that is one block."""
        _Chain(self).emit()


class _Chain:
    """The operations of a chain's table, see chain.py; all of it is one block of ``rows`` by ``cols``."""

    def __init__(self, emitter: _Emitter) -> None:
        self.of = emitter
        self.m = emitter.m
        address = emitter.row[words.CODE]
        head = (ctypes.c_int64 * chain.HEADER).from_address(address)[:]
        count = sum(head[k] for k in (chain.PROLOGUE, chain.BODY, chain.EPILOGUE))
        length = chain.HEADER + head[chain.PLACES] * chain.PLACE + count * chain.OPERATION
        table = (ctypes.c_int64 * length).from_address(address)[:]
        after = chain.HEADER + head[chain.PLACES] * chain.PLACE
        self.places = [table[k : k + chain.PLACE] for k in range(chain.HEADER, after, chain.PLACE)]
        self.operations = [table[k : k + chain.OPERATION] for k in range(after, length, chain.OPERATION)]
        self.rows, self.cols = emitter.row[words.M], emitter.row[words.N]
        self.size = self.rows * self.cols
        if not self.size or self.rows > head[chain.HEIGHT] or self.cols > head[chain.WIDTH]:
            raise UnsuitableError("several blocks, or none")

    def emit(self) -> None:
        for place in [p for p in self.of.known if p[0] == self.of.OWN]:
            del self.of.known[place]
        for kind, code, *operands in self.operations:
            self._operate(kind, code, *operands)

    def _where(self, number: int, element: int = 0) -> Where:
        """Elements of a place lie side by side."""
        place = self.places[number]
        slot = self.of.OWN if place[chain.SLOT] == chain.OWN else place[chain.SLOT]
        return slot, place[chain.OFFSET] + element * self.of.item

    def _read(self, number: int, elements: Iterable[int]) -> Vector:
        """Elements, or one number for all of them."""
        step = self.places[number][chain.STEP]
        return self.of._vector(self.of._element(*self._where(number, e * step)) for e in elements)

    def _read_from(self, number: int, first: int, elements: range) -> Vector:
        return self._read(number, range(first + elements.start, first + elements.stop))

    def _factor(self, number: int) -> Vector:
        return self.of._number(*self._where(number)) if number >= 0 else Vector(self.m, self.m.constant(1.0))

    def _groups(self, size: int) -> list[range]:
        return [range(k, min(size, k + self.of.lanes)) for k in range(0, size, self.of.lanes)]

    def _write(self, out: int, values: Iterable[tuple[range, Vector]]) -> None:
        self.of._write([(tuple(self._where(out, e) for e in group), value) for group, value in values])

    def _folded(self, code: int, size: int, values: Callable[[range], Vector]) -> Vector:
        """The sum or the maximum of elements, as simd.reduce_row makes it, in all lanes."""
        m, lanes = self.m, self.of.lanes
        start, combine = reductions(m)[code]
        totals = [Vector(m, m.constant(start))] * SUMS
        for number, group in enumerate(self._groups(size)):
            old = totals[number % SUMS]
            new = combine(old, values(group))
            if len(group) < lanes:
                mask = ir.Constant(m.mask_type, [int(lane < len(group)) for lane in range(lanes)])
                new = Vector(m, m.builder.select(mask, new.value, old.value))
            totals[number % SUMS] = new
        first, second, third, fourth = totals
        return m.splat(m.reduce(combine(combine(first, second), combine(third, fourth)), combine))

    def _operate(self, kind: int, code: int, out: int, x: int, y: int, z: int, c: int, scale: int) -> None:
        m, groups = self.m, self._groups(self.size)
        match kind:
            case chain.UNARY:
                self._write(out, [(g, _UNARY[code](m, self._read(x, g))) for g in groups])
            case chain.BINARY:
                factor = self._factor(c)
                self._write(out, [(g, _BINARY[code](m, self._read(x, g) * factor, self._read(y, g))) for g in groups])
            case chain.TERNARY:
                operands = [[self._read(k, g) for k in (x, y, z)] for g in groups]
                self._write(out, [(g, _TERNARY[code](m, *o)) for g, o in zip(groups, operands, strict=True)])
            case chain.SQUARED_ERROR if code:
                errors = {g.start: self._read(x, g) - self._read(y, g) for g in groups}
                factor = self._factor(c)
                total = self._folded(words.SUM, self.size, lambda g: errors[g.start] * errors[g.start])
                self._write(out, [(g, errors[g.start] * factor) for g in groups])
                self._write(z, [(range(1), total * self._factor(scale))])
            case chain.REDUCE_WHOLE:
                total = self._folded(code, self.size, lambda g: self._read(x, g))
                self._write(out, [(range(1), total * self._factor(c))])
            case chain.REDUCE_ROWS:
                for r in range(self.rows):
                    first = r * self.cols
                    total = self._folded(code, self.cols, functools.partial(self._read_from, x, first))
                    self._write(out, [(range(r, r + 1), total * self._factor(c))])
            case chain.TILE:
                self._copy(out, [(x, e % self.cols) for e in range(self.size)])
            case chain.SPREAD:
                self._copy(out, [(x, e // self.cols) for e in range(self.size)])
            case chain.CLEAR | chain.CLEAR_MAX:
                start = Element(None, -float("inf") if kind == chain.CLEAR_MAX else 0.0)
                self.of.known.update((self._where(out, e), start) for e in range(code))
            case chain.END_COLUMNS:
                self._end_columns(code, out, x, c)
            case _:
                raise UnsuitableError("a mask, or several blocks")

    def _copy(self, out: int, sources: list[tuple[int, int]]) -> None:
        """Other names for what is there already."""
        for e, (number, element) in enumerate(sources):
            self.of.known[self._where(out, e)] = self.of._element(*self._where(number, element))

    def _end_columns(self, code: int, out: int, running: int, c: int) -> None:
        """The rows of the block added up, or their maximum."""
        combine = (add, self.m.maximum)[code]
        written = []
        for group in self._groups(self.cols):
            total = self._read(running, group)
            for r in range(1, self.rows):
                total = combine(total, self._read_from(running, r * self.cols, group))
            written.append((group, total * self._factor(c) + 0.0))
        self._write(out, written)
