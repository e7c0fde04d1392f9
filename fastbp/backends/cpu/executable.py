"""A Program on the CPU machine."""

from __future__ import annotations

import ctypes
import threading
from array import array
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from fastbp.backends.cpu import words
from fastbp.backends.cpu.binding import ALIGNMENT, Bound, Slots, bind
from fastbp.backends.cpu.cross_entropy import with_cross_entropy
from fastbp.backends.cpu.team import team
from fastbp.backends.cpu.words import CALL
from fastbp.backends.threads import get_num_threads
from fastbp.ops import N
from fastbp.program import Program

KEPT_BINDINGS = 16  # numbers of rows for which tables are kept; training needs two
KEPT_WORKSPACE = 256 << 20  # bytes up to which a workspace is kept for the next call


# (slot, buffer, shape) of the arrays that outputs lie in; (name, its array's buffer, start, stop, shape) of the
# outputs, no shape for a whole array
_Layout = tuple[list[tuple[int, int, tuple[int, int]]], list[tuple[str, int, int, int, tuple[int, ...]]]]
_ONE_STEP = np.zeros((1, 3), np.int64)  # the first table, position 0, step 0


class CpuExecutable:
    """Runs a Program with the compiled kernels. Safe to call from several Python threads at once."""

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
        sizes, table_of = np.unique(steps[:, 0], return_inverse=True)
        plan = steps.copy()
        plan[:, 0] = table_of
        count, most = int(steps[:, 2].max()) + 1, int(sizes[-1])
        outputs = {index: np.empty((count, *self.program.shape(index, most)), self.dtype) for _, index in self._results}
        strides = {index: array.strides[0] for index, array in outputs.items()}
        values = self._followed(values, int(steps[:, 1].max()) + 2 * most)
        self._launch([self.bound(int(n)) for n in sizes], plan, values, outputs, strides, clock)
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
        bindings: list[Bound],
        plan: np.ndarray,
        values: Mapping[str, Any],
        outputs: dict[int, np.ndarray],
        strides: dict[int, int],
        clock: int = 0,
    ) -> None:
        """Hand everything to the machine as addresses; the arrays live in this frame until it returns."""
        tables = np.array([(_address(b.table), len(b.table)) for b in bindings], np.int64)
        shared, private = (max(getattr(b, what) for b in bindings) for what in ("workspace", "private"))
        slots = [(0, 0, 0)] * self.slots.count
        for slot, name, a_position, a_step in self._sources:
            slots[slot] = (_address(values[name]), a_position, a_step)
        for slot, index in self._results:
            slots[slot] = (_address(outputs[index]), 0, strides[index])
        slots[words.CLOCK] = clock, 0, 0
        moving = np.array([(k, *slot) for k, slot in enumerate(slots) if slot[1] or slot[2]], np.int64).reshape(-1, 4)
        call = array("q", [0] * CALL + [address for address, _, _ in slots])
        call[words.TABLES] = _address(tables)
        call[words.STEPS], call[words.STEP_COUNT] = _address(plan), len(plan)
        call[words.MOVING], call[words.MOVING_COUNT] = _address(moving), len(moving)
        self._enter(call, any(b.shared for b in bindings), shared, private)

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

        self._team.run(get_num_threads() if divided else 1, prepared)
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


def _address(array: np.ndarray) -> int:
    """Of the first element, by the buffer protocol: 0.3 µs; ``__array_interface__`` and ``ctypes.data`` take 1 µs."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(cast(Any, array)))
    except (TypeError, ValueError):  # read only, or empty
        address: int = array.__array_interface__["data"][0]
        return address
