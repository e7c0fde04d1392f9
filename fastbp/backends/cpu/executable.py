"""A Program on the CPU machine."""

from __future__ import annotations

import ctypes
import threading
import time
from array import array
from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np

from fastbp.backends.cpu import straight, words
from fastbp.backends.cpu.binding import ALIGNMENT, Bound, Slots, bind
from fastbp.backends.cpu.cross_entropy import with_cross_entropy
from fastbp.backends.cpu.team import team
from fastbp.backends.cpu.words import CALL
from fastbp.backends.threads import threads_of_a_run
from fastbp.ops import N
from fastbp.program import Program

KEPT_BINDINGS = 16  # numbers of rows for which tables are kept; training needs two
KEPT_WORKSPACE = 256 << 20  # bytes up to which a workspace is kept for the next call
# Seconds in steps of one kind after which those that suit it get code of their own, which takes about as long to make;
# steps after which it is asked whether they have passed; steps of a kind in a row from which on such code is called.
COMPILE_AFTER, ASK_AFTER, FEWEST_IN_A_ROW = 0.5, 1 << 14, 8
MIXED = -1  # rows of steps that are run by the machine, all together


# (slot, buffer, shape) of the arrays that outputs lie in; (name, its array's buffer, start, stop, shape) of the
# outputs, no shape for a whole array
_Layout = tuple[list[tuple[int, int, tuple[int, int]]], list[tuple[str, int, int, int, tuple[int, ...]]]]
_ONE_STEP = np.zeros((1, 3), np.int64)  # the first table, position 0, step 0


class CpuExecutable:
    """Runs a Program with the compiled kernels. Safe to call from several Python threads at once.

    Attributes:
        may_have_code: whether small steps may get code of their own, see straight.py.
    """

    def __init__(self, program: Program, dtype: str, precision: str = "highest") -> None:
        self.program = program = with_cross_entropy(program)
        self.precision = precision
        self.dtype = np.dtype(dtype)
        self.slots = Slots(program)
        self._bound: dict[int, Bound] = {}
        self._layouts: dict[int, _Layout] = {}
        self._lock = threading.Lock()
        self._team = team(dtype)
        self._spare: list[np.ndarray] = []
        # by number of rows: code of their own, None where there will be none; seconds in steps that may get it
        self._code: dict[int, straight.Steps | None] = {}
        self._spent: dict[int, float] = {}
        # (slot, name, bytes a position, bytes a step) of what comes in; (slot, buffer) of what goes out
        self._sources: list[tuple[int, str, int, int]] = []
        self._results: list[tuple[int, int]] = []
        for index, slot in self.slots.of.items():
            buffer = program.buffers[index]
            if buffer.kind == "output":
                self._results.append((slot, index))
                continue
            cols = buffer.shape[1].fixed
            moves = buffer.kind == "input" and buffer.shape[0] == N
            itemsize = self.dtype.itemsize if buffer.dtype == "float" else 8
            self._sources.append((slot, buffer.name, itemsize * cols * moves, 8 * cols * (buffer.dtype == "double")))
        # the words of a call; to copy them takes a tenth of the time that making them takes
        self._once = array("q", [0] * (CALL + self.slots.count))
        self._once[words.STEPS], self._once[words.STEP_COUNT] = _ONE_STEP.ctypes.data, 1
        self._gathers = "order" in program.inputs
        self.may_have_code = True
        sizes = [size for _, index in self._results for size in program.buffers[index].shape]
        self._outputs_have_rows = any(size.per_row for size in sizes)  # how far apart they are is part of such code

    def bound(self, n: int) -> Bound:
        """The table for n rows, made once and kept."""
        with self._lock:
            found = self._bound.get(n)
            if found is None:
                found = bind(self.program, self.slots, n, self.dtype.name, self.precision)
                if len(self._bound) >= KEPT_BINDINGS:
                    self._bound.pop(next(iter(self._bound)))
                self._bound[n] = found
            return found

    def run(self, values: Mapping[str, Any], n: int) -> dict[str, Any]:
        """Run once for n rows; see :meth:`fastbp.backends.array.ArrayExecutable.run`. All arrays C-contiguous."""
        bound = self._bound.get(n) or self.bound(n)
        if self._gathers:
            values = self._followed(values, 2 * n)
        outputs: dict[int, np.ndarray] = {}
        call = self._once[:]
        for slot, name, _, _ in self._sources:
            call[CALL + slot] = _address(values[name])
        shapes, parts = self._layouts.get(n) or self._layout(n)
        for slot, index, shape in shapes:
            outputs[index] = place = np.empty(shape, self.dtype)
            call[CALL + slot] = _address(place)
        call[words.TABLES] = bound.entry
        self._enter(call, bound.shared, bound.workspace, bound.private)
        found: dict[str, Any] = {}
        for name, base, start, stop, part in parts:
            out = outputs.get(base)  # None of an update's theta: the caller has it already
            found[name] = out if out is None or not part else out.reshape(-1)[start:stop].reshape(part)
        return found

    def timed_steps(self, values: Mapping[str, Any], n: int, count: int) -> np.ndarray:
        """Run the first n rows ``count`` times; nanoseconds a step of every line of ``bound(n).lines``, float64."""
        clock = np.zeros(len(self.bound(n).lines), np.int64)
        self.run_steps(values, np.broadcast_to(np.array([n, 0, 0], np.int64), (count, 3)), _address(clock))
        return clock / count

    def run_steps(self, values: Mapping[str, Any], steps: np.ndarray, clock: int = 0) -> dict[str, Any]:
        """Run once for each row (rows, position, step) of ``steps``, int64, with no Python in between.

        Inputs whose rows are the batch's begin at row ``position``; inputs of dtype "double" (the scalars of updates)
        at row ``step``; outputs of fixed shape are written to row ``step``: (steps, rows, columns).
        """
        sizes, table_of = _sizes(steps[:, 0])
        plan = steps.copy()
        plan[:, 0] = table_of
        count, most = int(steps[:, 2].max()) + 1, sizes[-1]
        outputs = {index: np.empty((count, *self.program.shape(index, most)), self.dtype) for _, index in self._results}
        strides = {index: array.strides[0] for index, array in outputs.items()}
        values = self._followed(values, int(steps[:, 1].max()) + 2 * most)
        self._launch({n: self.bound(n) for n in sizes}, plan, values, outputs, strides, clock)
        return {name: outputs[index] for name, index in self.program.outputs.items() if index in outputs}

    def _followed(self, values: Mapping[str, Any], length: int) -> Mapping[str, Any]:
        """With an order of at least that length: gathering a batch looks at the row numbers of the next one."""
        if not self._gathers or len(values["order"]) >= length:
            return values
        order = np.zeros((length, 1), np.int64)
        order[: len(values["order"])] = values["order"]
        return {**values, "order": order}

    def _launch(
        self,
        bindings: dict[int, Bound],
        plan: np.ndarray,
        values: Mapping[str, Any],
        outputs: dict[int, np.ndarray],
        strides: dict[int, int],
        clock: int = 0,
    ) -> None:
        """Hand everything to the machine as addresses; the arrays live in this frame until it returns."""
        bound = list(bindings.values())
        tables = np.array([(_address(b.table), len(b.table)) for b in bound], np.int64)
        shared, private = (max(getattr(b, what) for b in bound) for what in ("workspace", "private"))
        slots = [(0, 0, 0)] * self.slots.count
        for slot, name, a_position, a_step in self._sources:
            slots[slot] = (_address(values[name]), a_position, a_step)
        for slot, index in self._results:
            slots[slot] = (_address(outputs[index]), 0, strides[index])
        slots[words.CLOCK] = clock, 0, 0
        moving = np.array([(k, *slot) for k, slot in enumerate(slots) if slot[1] or slot[2]], np.int64).reshape(-1, 4)
        bases = array("q", [address for address, _, _ in slots])
        call = array("q", [0] * CALL) + bases  # in which the machine moves them
        call[words.TABLES] = _address(tables)
        call[words.MOVING], call[words.MOVING_COUNT] = _address(moving), len(moving)
        for first, count, n in self._stretches(bindings, plan, bool(clock)):
            start, code = _address(plan) + first * plan.strides[0], self._code.get(n)
            if code is not None:
                code.run(bases.buffer_info()[0], start, count)
                continue
            began = time.perf_counter()
            call[words.STEPS], call[words.STEP_COUNT] = start, count
            self._enter(call, any(b.shared for b in bound), shared, private)
            if n != MIXED:
                self._spent[n] = self._spent.get(n, 0.0) + time.perf_counter() - began

    def _stretches(self, bindings: dict[int, Bound], plan: np.ndarray, timed: bool) -> Iterator[tuple[int, int, int]]:
        """(first step, steps, their rows) of what is run at once.

        That is all, MIXED; or, if some steps suit code of their own, those of a kind in a row. The code is made when
        they have taken as long as making it will.
        """
        no_code = timed or not self.may_have_code or (self._outputs_have_rows and len(bindings) > 1)
        if no_code or not any(self._suits(n, bound) for n, bound in bindings.items()):
            yield 0, len(plan), MIXED
            return
        changes = np.flatnonzero(np.diff(plan[:, 0])) + 1 if len(bindings) > 1 else np.empty(0, np.int64)
        ends = [*changes.tolist(), len(plan)]
        if len(plan) < FEWEST_IN_A_ROW * len(ends):
            yield 0, len(plan), MIXED
            return
        sizes, first = list(bindings), 0
        for end in ends:
            n = sizes[plan[first, 0]]
            while first < end:
                undecided = self._is_undecided(n, bindings[n])
                if undecided and self._spent.get(n, 0.0) >= COMPILE_AFTER:
                    self._make_code(n, bindings[n])
                    continue
                count = min(ASK_AFTER, end - first) if undecided else end - first
                yield first, count, n
                first += count

    def settle(self, n: int) -> bool:
        """Make now what steps of n rows will run on when they have been run for long: not while something is timed.

        Returns:
            whether that is code of their own.
        """
        bound = self.bound(n)
        if self.may_have_code and self._is_undecided(n, bound):
            self._make_code(n, bound)
        return self._code.get(n) is not None

    def _is_undecided(self, n: int, bound: Bound) -> bool:
        """Whether steps of n rows may get code of their own, and nobody has tried to make it."""
        return n not in self._code and bound.suits_code

    def _suits(self, n: int, bound: Bound) -> bool:
        """Whether steps of n rows have code of their own, or may get it."""
        return self._code.get(n) is not None or self._is_undecided(n, bound)

    def _make_code(self, n: int, bound: Bound) -> None:
        if len(self._code) >= KEPT_BINDINGS:
            self._code.clear()
            self._spent.clear()
        moves = {slot: (a_position, a_step) for slot, _, a_position, a_step in self._sources if a_position or a_step}
        moves |= {slot: (0, self.program.size(index, n) * self.dtype.itemsize) for slot, index in self._results}
        names = {name: slot for slot, name, _, _ in self._sources}
        updated = [names[b.name] for b in self.program.buffers if b.kind == "param" and b.base is None]
        self._code[n] = straight.steps_for(bound.table, self.dtype.name, self.slots.absolute, moves, updated)

    def _enter(self, call: array[int], divided: bool, shared: int, private: int) -> None:
        """Give the machine a workspace, ``shared`` bytes and ``private`` ones a thread, and let it run."""
        shared = -(-shared // ALIGNMENT) * ALIGNMENT
        call[CALL + words.PRIVATE_BYTES] = private
        kept = []

        def prepared(count: int) -> array[int]:
            workspace = self._borrow(shared + count * private + ALIGNMENT)
            kept.append(workspace)
            start = _address(workspace)
            start += -start % ALIGNMENT
            call[CALL + words.WORKSPACE] = call[CALL + words.PARTIALS] = start
            call[CALL + words.PRIVATE] = start + shared
            return call

        self._team.run(threads_of_a_run() if divided else 1, prepared)
        self._spare[:] = [workspace for workspace in kept if workspace.size <= KEPT_WORKSPACE]

    def _borrow(self, size: int) -> np.ndarray:
        """A workspace, if possible the one of the call before: fresh memory costs a page fault for every 4 KB.

        Taken out while it is used (pop is atomic), so that another thread that calls meanwhile gets its own.
        """
        try:
            spare = self._spare.pop()
        except IndexError:
            return np.empty(size, np.uint8)
        return spare if spare.size >= size else np.empty(size, np.uint8)

    def _layout(self, n: int) -> _Layout:
        """What ``run`` has to know of the outputs for n rows, kept since a shape takes a microsecond."""
        shapes = [(slot, index, self.program.shape(index, n)) for slot, index in self._results]
        parts: list[tuple[str, int, int, int, tuple[int, ...]]] = []
        for name, index in self.program.outputs.items():
            buffer = self.program.buffers[index]
            if buffer.base is None:
                parts.append((name, index, 0, 0, ()))
            else:
                stop = buffer.offset + self.program.size(index, n)
                parts.append((name, buffer.base, buffer.offset, stop, self.program.shape(index, n)))
        if len(self._layouts) >= KEPT_BINDINGS:
            self._layouts.clear()
        self._layouts[n] = shapes, parts
        return shapes, parts


def _sizes(rows: np.ndarray) -> tuple[list[int], np.ndarray | int]:
    """The numbers there are, in order, and which of them each is; most often there is one, and no need to sort."""
    if (rows == rows[0]).all():
        return [int(rows[0])], 0
    sizes, which = np.unique(rows, return_inverse=True)
    return sizes.tolist(), which


def _address(array: np.ndarray) -> int:
    """Of the first element, by the buffer protocol: 0.3 µs; ``__array_interface__`` and ``ctypes.data`` take 1 µs."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(cast(Any, array)))
    except (TypeError, ValueError):  # read only, or empty
        address: int = array.__array_interface__["data"][0]
        return address
