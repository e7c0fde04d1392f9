"""The table of a chain for the GPU (see elementwise.py): how its matrix is cut, registers, actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fastbp.backends.cuda import table
from fastbp.backends.cuda.codes import CODES
from fastbp.program import Result, Step

THREADS = 128
QUAD = 4  # columns a thread
MOST_LANES = 32  # for sums over columns: those of one warp
REGISTER_ELEMENTS = THREADS * QUAD
MOST_SHARED = 96 << 10  # bytes of registers that a block may have
MOST_ROW_PIECES = 128  # whose sums over rows one thread a column adds up
MOST_PIECES = 1024  # whose sums over all elements one block adds up
FLAT_PIECE = 4 * REGISTER_ELEMENTS  # elements: enough to do between two looks at the table's head

Strides = tuple[int, int]


@dataclass(frozen=True)
class Place:
    """Where a matrix lies: slot, offset in bytes; strides of its rows and columns in elements, 0 where it repeats."""

    slot: int
    offset: int
    row: int = 0
    col: int = 1

    @property
    def words(self) -> list[int]:
        return [self.slot, self.offset, self.row, self.col]


@dataclass(frozen=True)
class Operand:
    """A matrix that a chain reads or writes, and its shape."""

    place: Place
    rows: int
    cols: int

    def over(self, shape: tuple[int, int]) -> Place:
        """With strides for work over that shape, repeated along what it has one of."""
        row = self.cols if self.rows == shape[0] else 0
        return replace(self.place, row=row if shape[0] > 1 else 0, col=int(self.cols == shape[1] and shape[1] > 1))


@dataclass(frozen=True)
class Work:
    """What a chain does: steps, and what becomes of their values, over a matrix of some shape; see program.py."""

    shape: tuple[int, int]
    ins: tuple[Operand, ...]
    steps: tuple[Step, ...]
    results: tuple[Result, ...]
    outs: tuple[Operand, ...]


@dataclass(frozen=True)
class Pieces:
    """A result of which every piece makes ``elements`` of its own, where it goes in the end, and its factor."""

    result: Result
    out: Operand
    pieces: int
    elements: int
    factor: Place | None


@dataclass(frozen=True)
class Part:
    """A table of a chain, or of a part of one.

    Attributes:
        shape: what M and N become.
        words: the table, from its head on.
        pieces: how many there are.
        registers: how many each thread has.
        sums: results that are still in pieces, one after the other in the scratch memory.
    """

    shape: tuple[int, int]
    words: list[int]
    pieces: int
    registers: int
    sums: tuple[Pieces, ...]


def flattened(work: Work) -> Work:
    """The same work over one long row, where rows do not matter; reductions over one element become results."""
    rows, cols = work.shape
    plain = all((x.rows, x.cols) in (work.shape, (1, 1)) for x in work.ins)
    by_axis = any(r.how and r.axis is not None for r in work.results)
    if not (rows == 1 or cols == 1 or (plain and not by_axis)):
        return work
    long = (1, rows * cols)
    ins = tuple(x if (x.rows, x.cols) == (1, 1) else Operand(x.place, *long) for x in work.ins)
    steps, results, outs = list(work.steps), [], []
    for r, out in zip(work.results, work.outs, strict=True):
        kept = r
        if r.how and (long == (1, 1) or (r.axis is not None and work.shape[r.axis] == 1)):  # of one element: that one
            value = r.value
            if r.scale >= 0:
                steps.append(Step("mul", (value, r.scale)))
                value = len(work.ins) + len(steps) - 1
            kept = Result(value)
        elif r.how:
            kept = replace(r, axis=None)
        results.append(kept)
        outs.append(out if kept.how else Operand(out.place, *long))
    return Work(long, ins, tuple(steps), tuple(results), tuple(outs))


def parts(work: Work, scratch: Place, item: int, threads: int = THREADS, alone: bool = False) -> list[Part]:
    """The tables of a chain: one, or two where sums over rows and over columns of wide matrices meet.

    Args:
        alone: one block does it, in as few pieces as can be.
    """
    work = flattened(work)
    cols = work.shape[1]
    over_columns = [k for k, r in enumerate(work.results) if r.how and r.axis == 1]
    over_rows = [k for k, r in enumerate(work.results) if r.how and r.axis == 0]
    if over_columns and over_rows and cols > QUAD * MOST_LANES:
        first = [k for k in range(len(work.results)) if k not in over_rows]
        found = [_chosen(work, first), _chosen(work, over_rows)]
    else:
        found = [work]
    made = []
    for one in found:
        part = _Builder(one, item, threads, alone).part(scratch)
        made.append(part)
        used = sum(s.pieces * s.elements for s in part.sums) * item
        scratch = replace(scratch, offset=scratch.offset + used)
    return made


def _chosen(work: Work, numbers: Sequence[int]) -> Work:
    return replace(work, results=tuple(work.results[k] for k in numbers), outs=tuple(work.outs[k] for k in numbers))


def power_of_two(x: int) -> int:
    """The smallest one that is not below x."""
    return 1 << max(0, x - 1).bit_length()


class _Builder:
    """One table."""

    def __init__(self, work: Work, item: int, threads: int, alone: bool) -> None:
        self.work = work
        self.item = item
        self.threads = threads
        self.rows, self.cols = work.shape
        self.piece = self._cut(alone)
        self.row_pieces = max(1, -(-self.rows // self.piece[0]))
        self.column_pieces = max(1, -(-self.cols // self.piece[1]))
        self.actions: list[list[int]] = []
        self.register_of: dict[int, int] = {}
        self.free: list[int] = []
        self.registers = 0

    def _cut(self, alone: bool) -> tuple[int, int]:
        """Rows and columns of a piece."""
        rows, cols = self.work.shape
        how = {r.axis for r in self.work.results if r.how}
        most = MOST_LANES if 1 in how else self.threads
        self.lanes = min(most, power_of_two(-(-cols // QUAD)))
        below = self.threads // self.lanes
        at_once = QUAD * self.lanes
        if alone:
            return max(1, rows), at_once if 0 in how else max(1, cols)
        if rows == 1 and 1 not in how:
            each = FLAT_PIECE if None not in how else max(FLAT_PIECE, -(-cols // MOST_PIECES))
            return 1, -(-each // at_once) * at_once
        high = MOST_ROW_PIECES if 0 in how else max(1, MOST_PIECES // max(1, -(-cols // at_once)))
        tall = max(4 * below, -(-rows // high)) if how - {1} else 4 * below
        return -(-tall // below) * below, max(1, cols) if 1 in how else at_once

    def part(self, scratch: Place) -> Part:
        """The table; sums of which there are several pieces go to ``scratch``, one after the other."""
        work, first = self.work, len(self.work.ins)
        reads = self._last_reads()
        sums: list[Pieces] = []
        results: list[list[int]] = []
        after: dict[int, list[list[int]]] = {}
        for r, out in zip(work.results, work.outs, strict=True):
            if not r.how:
                action = [table.STORE, 0, r.value, 0, 0, table.NONE, *out.over(work.shape).words, 0]
                after.setdefault(r.value, []).append(action)
                continue
            register = self._register()
            code = table.LARGEST if r.how == "max" else table.ADD
            after.setdefault(r.value, []).append([code, register, r.value, 0, 0, table.NONE, 0, 0, 0, 0, 0])
            pieces, elements = {
                0: (self.row_pieces, self.cols),
                1: (1, self.rows),
                None: (self.row_pieces * self.column_pieces, 1),
            }[r.axis]
            place, factor = replace(out.place, row=1 if r.axis == 1 else 0, col=int(r.axis == 0)), r.scale
            if pieces > 1:
                place, factor = replace(scratch, row=elements, col=1), -1
                scratch = replace(scratch, offset=scratch.offset + pieces * elements * self.item)
                sums.append(Pieces(r, out, pieces, elements, work.ins[r.scale].place if r.scale >= 0 else None))
            scale = [table.NONE, 0] if factor < 0 else self._scalar(factor)
            axis = {0: table.OVER_ROWS, 1: table.OVER_COLUMNS, None: table.OVER_ALL}[r.axis]
            results.append([register, int(r.how == "max"), axis, *place.words, *scale])
        for value in after:
            if value < first:
                self._act_on_input(value, after, reads)
        for k, step in enumerate(work.steps):
            self._step(first + k, step, after, reads, k)
        head = [len(self.actions), len(results), self.lanes, *self.piece, self.column_pieces]
        words = [*head, *(w for a in self.actions for w in a), *(w for r in results for w in r)]
        pieces = self.row_pieces * self.column_pieces
        return Part(work.shape, words, pieces, self.registers, tuple(sums))

    def _last_reads(self) -> dict[int, int]:
        """The last step that reads each value; -1 for results of inputs."""
        found: dict[int, int] = {}
        for k, s in enumerate(self.work.steps):
            for value in (*(() if s.code == "dropout_mask" else s.args), s.scale):
                found[value] = k
        return found

    def _scalar(self, value: int) -> list[int]:
        place = self.work.ins[value].place  # a factor comes from outside the chain: it has another shape
        return [place.slot, place.offset]

    def _register(self) -> int:
        if self.free:
            return self.free.pop()
        self.registers += 1
        return self.registers - 1

    def _read(self, value: int) -> int:
        """The register of a value, which an input is loaded into when it is first needed."""
        if value not in self.register_of:
            register = self.register_of[value] = self._register()
            place = self.work.ins[value].over(self.work.shape)
            self.actions.append([table.LOAD, register, 0, 0, 0, table.NONE, *place.words, 0])
        return self.register_of[value]

    def _act_on_input(self, value: int, after: dict[int, list[list[int]]], reads: dict[int, int]) -> None:
        """Results that are inputs."""
        register = self._read(value)
        self._results(register, after[value])
        if value not in reads:
            self.free.append(register)

    def _results(self, register: int, actions: list[list[int]]) -> None:
        for action in actions:
            action[table.FIRST] = register
            self.actions.append(action)

    def _step(self, value: int, step: Step, after: dict[int, list[list[int]]], reads: dict[int, int], k: int) -> None:
        if step.code == "dropout_mask":
            to = self.register_of[value] = self._register()
            key = self.work.ins[step.args[0]].place
            self.actions.append([table.MASK, to, 0, 0, 0, table.NONE, key.slot, key.offset, 0, 0, step.bits])
        else:
            operands = [self._read(v) for v in step.args]
            scale = self._read(step.scale) if step.scale >= 0 else table.NONE
            for v in {*step.args, step.scale} - {-1}:
                if reads.get(v) == k:
                    self.free.append(self.register_of[v])
            to = self.register_of[value] = self._register()
            operands += operands[:1] * (3 - len(operands))
            self.actions.append([CODES[step.code], to, *operands, scale, 0, 0, 0, 0, 0])
        self._results(to, after.get(value, []))
        if value not in reads:
            self.free.append(to)
