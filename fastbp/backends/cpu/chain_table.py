"""The table of a chain (see chain.py): places, registers, blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastbp.backends.cpu import chain_words as chain
from fastbp.backends.cpu import target, words
from fastbp.program import Result, Step

# Elements of a block at most: starting an operation takes 5 to 10 ns, so they should be many; and as long as the values
# that live at once take no more than BLOCK_BYTES it does not matter whether they are in the first-level cache or the
# second: 71 steps with 22 values took 9.7 ms in blocks of 256, 8.0 of 512, 7.5 of 1024, 7.3 of 2048, 8.0 of 4096.
MOST, FEWEST = 1024, 256
BLOCK_BYTES = 192 << 10

_TABLES = {
    1: (chain.UNARY, words.UNARY_CODES),
    2: (chain.BINARY, words.BINARY_CODES),
    3: (chain.TERNARY, words.TERNARY_CODES),
}
_CODES = {"sum": words.SUM, "max": words.MAX}
_COMBINE = {"sum": chain.ADD, "max": chain.MAXIMUM}
ALIGNMENT = 64  # bytes
NONE = -1  # in the place of an operand
Ref = tuple[bool, int]  # a place: whether it moves from block to block, and its number among those that do, or do not


@dataclass(frozen=True)
class Place:
    """A matrix in memory: slot, offset in bytes, rows and columns, and the bytes from one piece's to the next."""

    slot: int
    offset: int
    rows: int
    cols: int
    a_piece: int = 0


@dataclass(frozen=True)
class Work:
    """What a chain does: steps, and what becomes of their values, over a matrix of some shape; see program.py."""

    shape: tuple[int, int]
    ins: tuple[Place, ...]
    steps: tuple[Step, ...]
    results: tuple[Result, ...]
    row: int = 0  # elements of a row before rows became one


@dataclass(frozen=True)
class Table:
    """A chain for one number of rows.

    Attributes:
        words: what chain.py reads.
        scratch: bytes of private memory.
    """

    words: np.ndarray
    scratch: int


def flattened(work: Work, in_chunk: bool = False) -> Work:
    """The same work over one long row, where rows do not matter.

    Reductions over a single element become results; a result is the value of a step, and each of another one. A
    chunk's only row is done as several are: its sums over rows add to those of the chunks before, others do not.
    """
    rows, cols = work.shape
    plain = all((p.rows, p.cols) in (work.shape, (1, 1)) for p in work.ins)
    if rows == 1 or cols == 1 or (plain and not any(r.how and r.axis is not None for r in work.results)):
        rows, cols = 1, rows * cols
    steps, results, stored = list(work.steps), [], set()

    def step(code: str, *args: int) -> int:
        steps.append(Step(code, args))
        return len(work.ins) + len(steps) - 1

    for result in work.results:
        how, axis, value, scale = result.how, result.axis, result.value, result.scale
        if how and axis is not None and work.shape[axis] == 1 and not (in_chunk and axis == 0):
            how = ""
        if how and rows == 1 and not (in_chunk and work.shape[0] == 1):
            axis = None
        if not how and scale >= 0:
            value, scale = step("mul", value, scale), -1
        if value < len(work.ins) or (not how and value in stored):
            value = step("copy", value)
        if not how:
            stored.add(value)
        results.append(Result(value, how, axis if how else None, scale))
    return Work((rows, cols), work.ins, tuple(steps), tuple(results), work.shape[1])


def with_multiply_adds(first: int, steps: Sequence[Step], results: Sequence[Result]) -> tuple[Step | None, ...]:
    """The steps with x y + z as one, where nobody else reads the product; None for a step that went into another.

    ``first`` is the number of the first step's value.
    """
    reads = [0] * (first + len(steps) + 1)
    for value in (v for s in steps for v in (*s.args, s.scale)):
        reads[value] += 1
    for result in results:
        reads[result.value] += 1
    found: list[Step | None] = list(steps)
    for k, step in enumerate(steps):
        if step.code != "add" or step.scale >= 0:
            continue
        for product, other in (step.args, step.args[::-1]):
            source = found[product - first] if product >= first else None
            if source is not None and source.code == "mul" and source.scale < 0 and reads[product] == 1:
                found[k], found[product - first] = Step("fma", (*source.args, other)), None
                break
    return tuple(found)


def with_squared_errors(work: Work, steps: Sequence[Step | None]) -> tuple[tuple[Step | None, ...], dict[int, int]]:
    """The steps with d = x - y, Σ d² and c d as one in place of the last, where nobody else reads d and d².

    And for each such step, which one has made the squares.
    """
    first, size = len(work.ins), work.shape[0] * work.shape[1]
    reads = Counter(v for s in steps if s is not None for v in (*s.args, s.scale))
    reads.update(v for r in work.results for v in (r.value, r.scale))
    found, squares = list(steps), {}
    by_value = {first + k: (k, s) for k, s in enumerate(steps) if s is not None and s.scale < 0}
    sums = {r.value for r in work.results if r.how == "sum" and r.axis is None}
    for k, square in by_value.values():
        if square.code != "square" or first + k not in sums or reads[first + k] != 1:
            continue
        difference = square.args[0]
        j, source = by_value.get(difference, (0, square))
        full = all(v < first and work.ins[v].rows * work.ins[v].cols == size for v in source.args)
        times = [p for p, s in by_value.values() if s.code == "mul" and difference in s.args and p > k]
        if source.code != "sub" or not full or reads[difference] != 2 or len(times) != 1:
            continue
        (factor,) = [v for v in by_value[first + times[0]][1].args if v != difference] or [first]
        if factor < first and (work.ins[factor].rows, work.ins[factor].cols) == (1, 1):
            found[times[0]], found[j], found[k] = Step("squared_error", (*source.args, factor)), None, None
            squares[times[0]] = k
    return tuple(found), squares


class Builder:
    """Decides where the values of a chain live, and how large its blocks are.

    Attributes:
        height, width: rows and columns of a block.
    """

    def __init__(self, work: Work, item: int) -> None:
        """For flattened work; ``item`` is the bytes of an element."""
        self.work = work
        self.item = item
        self.rows, self.cols = work.shape
        steps = with_multiply_adds(len(work.ins), work.steps, work.results)
        self.steps, self.squares = with_squared_errors(work, steps)
        self.tall = self.rows > 1 and self.cols <= MOST // 2  # blocks of several rows
        wanted = MOST
        blocks = self._most_registers() + sum((p.rows, p.cols) != (1, 1) for p in work.ins)
        wanted = max(FEWEST, min(MOST, BLOCK_BYTES // (item * max(1, blocks)) // FEWEST * FEWEST))
        self.height = max(1, min(self.rows, wanted // max(1, self.cols))) if self.tall else 1
        whole_rows = self.tall or any(r.how and r.axis == 1 for r in work.results)
        self.width = max(1, self.cols if whole_rows else min(self.cols, wanted))
        self.still: list[list[int]] = []
        self.moving: list[list[int]] = []
        self.prologue: list[list[Any]] = []
        self.body: list[list[Any]] = []
        self.epilogue: list[list[Any]] = []
        self.private: list[tuple[Ref, int]] = []  # places of private memory and their elements
        self.free: list[Ref] = []

    def _last_reads(self) -> dict[int, int]:
        """The last step that reads each value."""
        return {v: k for k, s in enumerate(self.steps) if s is not None for v in (*s.args, s.scale)}

    def _most_registers(self) -> int:
        """Values of steps that live at the same time, at most."""
        last, first = self._last_reads(), len(self.work.ins)
        ends: dict[int, int] = {}
        alive = most = 0
        for k, step in enumerate(self.steps):
            alive += step is not None
            most = max(most, alive)
            ends[last.get(first + k, k)] = ends.get(last.get(first + k, k), 0) + (step is not None)
            alive -= ends.get(k, 0)
        return most

    # ---- places ----------------------------------------------------------------------------------------------------

    def _memory(self, place: Place, *, still: bool = False) -> Ref:
        across = place.cols == self.cols if self.rows > 1 else place.rows * place.cols == self.cols
        down = self.rows > 1 and place.rows > 1
        steps = (place.cols * self.item * down, self.item * across)
        words = [place.slot, place.offset, *((0, 0) if still else steps), place.a_piece, int(across)]
        return self._add(words, not still and any(steps))

    def _result(self, out: Place) -> Ref:
        """Where a reduction goes: to a number, or from the first column of the piece on."""
        words = [out.slot, out.offset, 0, self.item * (out.cols > 1), out.a_piece, 1]
        return self._add(words, False)

    def _own(self, elements: int, a_column: int = 0) -> Ref:
        """Private memory; its offset is known in the end."""
        found = self._add([chain.OWN, 0, 0, a_column, 0, 1], bool(a_column))
        self.private.append((found, elements))
        return found

    def _add(self, words: list[int], moves: bool) -> Ref:
        table = self.moving if moves else self.still
        table.append(words)
        return moves, len(table) - 1

    def _register(self) -> Ref:
        return self.free.pop() if self.free else self._own(self.height * self.width)

    # ---- operations ----------------------------------------------------------------------------------------------

    def table(self, outs: Sequence[Place], n_block: int) -> Table:
        """The table, with the places where the results go, for pieces of ``n_block`` columns."""
        self.n_block = min(self.cols, n_block)
        first, last = len(self.work.ins), self._last_reads()
        at: dict[int, Any] = {k: self._input(place) for k, place in enumerate(self.work.ins)}
        at[NONE] = NONE
        stored = {r.value: out for r, out in zip(self.work.results, outs, strict=True) if not r.how}
        reduced: dict[int, list[tuple[Result, Place]]] = {}
        for r, out in zip(self.work.results, outs, strict=True):
            if r.how:
                reduced.setdefault(r.value, []).append((r, out))
        ends: dict[int, list[int]] = {}
        for k, step in enumerate(self.steps):
            if step is None:
                continue
            value = first + k
            self.free.extend(at[v] for v in ends.get(k, []))
            at[value] = self._memory(stored[value]) if value in stored else self._register()
            if k in self.squares:
                x, y, factor = (at[v] for v in step.args)
                ((result, out),) = reduced[first + self.squares[k]]
                to, scale, whole = self._result(out), at[result.scale], self._is_whole()
                if not whole:
                    to, scale = self._running(result, to, scale), NONE
                self.body.append([chain.SQUARED_ERROR, int(whole), at[value], x, y, to, factor, scale])
            else:
                operands = [at[v] for v in step.args] + [NONE] * (3 - len(step.args))
                kind, codes = _TABLES[len(step.args)]
                if step.code == "dropout_mask":
                    self.body.append([chain.MASK, step.bits, at[value], *operands, NONE])
                else:
                    self.body.append([kind, codes[step.code], at[value], *operands, at[step.scale]])
            for result, out in reduced.get(value, []):
                self._reduce(at[value], result, out, at[result.scale])
            if value not in stored:
                if value in last:
                    ends.setdefault(last[value], []).append(value)
                else:
                    self.free.append(at[value])
        return self._words()

    def _input(self, place: Place) -> Ref:
        """Where an input is read: tiled or spread over blocks of several rows, if it is a row or a column."""
        shape = (place.rows, place.cols)
        if not self.tall or shape in (self.work.shape, (1, 1)):
            return self._memory(place)
        register = self._own(self.height * self.width)
        if place.rows == 1:
            self.prologue.append([chain.TILE, 0, register, self._memory(place, still=True), NONE, NONE, NONE])
        else:
            self.body.append([chain.SPREAD, 0, register, self._memory(place), NONE, NONE, NONE])
        return register

    def _reduce(self, value: Any, result: Result, out: Place, scale: Any) -> None:
        code = _CODES[result.how]
        if result.axis == 1:
            self.body.append([chain.REDUCE_ROWS, code, self._memory(out), value, NONE, NONE, scale])
            return
        to = self._result(out)
        if result.axis is None and self._is_whole():
            self.body.append([chain.REDUCE_WHOLE, code, to, value, NONE, NONE, scale])
        elif result.axis is None:
            self.body.append([chain.REDUCE_ALL, code, self._running(result, to, scale), value, NONE, NONE, NONE])
        else:
            length = self.height * self.n_block
            running = here = self._cleared(result, length)
            if self.width < self.cols:  # the same memory, seen from the block's first column
                here = self._add([chain.OWN, 0, 0, self.item, 0, 1], True)
                self.private.append((here, -1))
            self.body.append([chain.BINARY, _COMBINE[result.how], here, here, value, NONE, NONE])
            self.epilogue.append([chain.END_COLUMNS, code, to, running, NONE, NONE, scale])

    def _is_whole(self) -> bool:
        """Whether there is one block, and something in it."""
        return 0 < self.rows * self.cols <= self.height * self.width

    def _running(self, result: Result, to: Ref, scale: Any) -> Ref:
        """Running sums over all elements, which go ``to`` a number in the end."""
        running = self._cleared(result, chain.RUNNING * target.VECTOR_BYTES // self.item)
        self.epilogue.append([chain.END_ALL, _CODES[result.how], to, running, NONE, NONE, scale])
        return running

    def _cleared(self, result: Result, length: int) -> Ref:
        running = self._own(length)
        clear = chain.CLEAR_MAX if result.how == "max" else chain.CLEAR
        self.prologue.append([clear, length, running, NONE, NONE, NONE, NONE])
        return running

    def _words(self) -> Table:
        places = [*self.still, *self.moving]
        size = 16 * len(places)
        start = size
        for (moves, number), elements in self.private:
            if elements >= 0:
                start = size + -size % ALIGNMENT
                size = start + elements * self.item
            (self.moving if moves else self.still)[number][chain.OFFSET] = start
        still = len(self.still)
        words = [len(places), still, len(self.prologue), len(self.body), len(self.epilogue)]
        words += [self.height, self.width, self.cols, self.work.row]
        for place in places:
            words += place
        for kind, code, *operands in (*self.prologue, *self.body, *self.epilogue):
            operands += [NONE] * (chain.OPERATION - 2 - len(operands))
            words += [kind, code, *(o if o == NONE else o[1] + still * o[0] for o in operands)]
        return Table(np.array(words, np.int64), size)


def added_pieces(result: Result, pieces: Place) -> Work:
    """The work that brings together what each piece made: a row a piece."""
    return Work((pieces.rows, pieces.cols), (pieces,), (), (replace(result, value=0, axis=0, scale=-1),))
