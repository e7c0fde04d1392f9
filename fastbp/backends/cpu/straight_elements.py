"""The numbers of a small step while code for it is made (straight.py): lanes of vectors, or places in memory."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from llvmlite import ir

from fastbp.backends.cpu import words
from fastbp.backends.cpu.target import VECTOR_BYTES
from fastbp.backends.cpu.vectors import I32, I64, Vector, VectorEmitter
from fastbp.backends.cpu.words import EXTRA

MOST_INSTRUCTIONS = 8000  # LLVM's, of a step: making so many takes 1.5 s
MOST_ROOM = 1 << 16  # bytes of the stack for what loops read and write
BYTE = ir.IntType(8).as_pointer()

Where = tuple[int, int]  # slot and byte
Key = tuple[int, float | str, bool]  # of an element
Written = tuple[tuple[Where, ...], Vector]  # where the first lanes of a vector belong


class UnsuitableError(Exception):
    """A table that the machine runs as it is."""


@functools.cache
def _order(lanes: tuple[int, ...]) -> Any:
    """A constant of a shuffle; making one takes longer than all else about it."""
    return ir.Constant(ir.VectorType(I32, len(lanes)), lanes)


class Element(NamedTuple):
    """A number: lane ``at`` of a vector; the one at byte ``at`` from an address; without a source, ``at`` itself."""

    source: Any
    at: float
    in_memory: bool = False

    @property
    def key(self) -> Key:
        return id(self.source), repr(self.at) if self.source is None else self.at, self.in_memory  # -0 is not 0


class Elements:
    """What is known of the numbers of a step, and the code that fetches and keeps them.

    Attributes:
        bases: LLVM's addresses of the slots.
        row: of the table, the instruction that code is made for.
        in_loops: whether that instruction is long enough for loops.
        known: what has been computed in this step, by place.
        updated: the vectors that parameters have been written with, in order.
        looped: slot, first byte and end of parameters that loops write.
    """

    OWN = -2  # slot of a chain's private memory

    def __init__(self, builder: Any, dtype: str, absolute: int, parameters: frozenset[int]) -> None:
        """``absolute``: the slot whose offsets are addresses; ``parameters``: slots that updates may change."""
        self.builder, self.absolute, self.parameters = builder, absolute, parameters
        self.m = VectorEmitter(builder, dtype)
        self.item, self.lanes = self.m.itemsize, self.m.lanes
        self.bases: list[Any] = []
        self.row: list[int] = []
        self.in_loops = False
        self.known: dict[Where, Element] = {}
        self.updated: list[Written] = []
        self.looped: list[tuple[int, int, int]] = []
        self.room = 0  # bytes of the stack that are taken
        self.memo: dict[tuple[Key, ...], tuple[Any, Sequence[Element]]] = {}

    def _check_length(self) -> None:
        if sum(len(block.instructions) for block in self.builder.function.blocks) > MOST_INSTRUCTIONS:
            raise UnsuitableError("too long")

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
                if any(slot == at and first <= byte < end for at, first, end in self.looped for _, byte in places):
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

    # ---- loops -----------------------------------------------------------------------------------------------------

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
        self.room += count * self.item
        if self.room > MOST_ROOM:
            raise UnsuitableError("too much for the stack")
        with self.builder.goto_entry_block():
            room = self.builder.alloca(self.m.element, count)
            room.align = VECTOR_BYTES
            return self.builder.bitcast(room, BYTE)

    def _line(self, elements: Sequence[Element]) -> tuple[Any, int]:
        """Where numbers lie at equal distances, and these in bytes; they are copied there if they lie nowhere so."""
        first = elements[0]
        if all(e.in_memory and e.source is first.source for e in elements):
            stride = int(elements[1].at - first.at) if len(elements) > 1 else self.item
            if all(e.at == first.at + k * stride for k, e in enumerate(elements)):
                return self.builder.gep(first.source, [I64(int(first.at))]), stride
        room = self._room(len(elements))
        for start in range(0, len(elements), self.lanes):
            some = elements[start : start + self.lanes]
            self._store_at(room, start * self.item, self._vector(some), range(len(some)))
        return room, self.item

    def _matrix(self, rows: int, cols: int, element: Callable[[int, int], Element]) -> tuple[Any, int] | None:
        """Where a matrix in memory begins and how many bytes its rows are apart, if they are contiguous."""
        found = [[element(i, j) for j in range(cols)] for i in range(rows)]
        first = found[0][0]
        if not all(e.in_memory and e.source is first.source for row in found for e in row):
            return None
        stride = int(found[1][0].at - first.at) if rows > 1 else 0
        if any(e.at != first.at + i * stride + j * self.item for i, row in enumerate(found) for j, e in enumerate(row)):
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

    def _part(self, base: Any, byte: int, count: int) -> Vector:
        """So many numbers, and zeros."""
        made = self._loaded(Element(base, byte, True), count)
        if count == self.lanes:
            return Vector(self.m, made)
        zeros = self.m.constant(0.0)
        lanes = [lane if lane < count else self.lanes for lane in range(self.lanes)]
        return Vector(self.m, self._shuffle(made, zeros, lanes))

    def _stays_in_memory(self, slot: int, first: int, end: int) -> None:
        """Parameters that a loop writes."""
        if any((slot, byte) in self.known for byte in range(first, end, self.item)):
            raise UnsuitableError("parameters in vectors and in memory")
        self.looped.append((slot, first, end))
