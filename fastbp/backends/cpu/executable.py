"""A Program on the CPU machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastbp.backends.cpu.binding import Bound, Slots, bind
from fastbp.backends.cpu.machine import team
from fastbp.backends.threads import get_num_threads
from fastbp.ops import N
from fastbp.program import Program

KEPT_BINDINGS = 16  # numbers of rows for which tables are kept; training needs two


class CpuExecutable:
    """Runs a Program with the compiled kernels. Safe to call from several Python threads at once."""

    def __init__(self, program: Program, dtype: str) -> None:
        self.program = program
        self.dtype = np.dtype(dtype)
        self.slots = Slots(program)
        self._bound: dict[int, Bound] = {}
        self._team = team(dtype)

    def bound(self, n: int) -> Bound:
        """The table for n rows, made once and kept."""
        found = self._bound.get(n)
        if found is None:
            found = bind(self.program, self.slots, n, self.dtype.name)
            while len(self._bound) >= KEPT_BINDINGS:
                self._bound.pop(next(iter(self._bound)), None)
            self._bound[n] = found
        return found

    def run(self, values: Mapping[str, Any], n: int) -> dict[str, Any]:
        """Run once for n rows; see :meth:`fastbp.backends.array.ArrayExecutable.run`. All arrays C-contiguous."""
        outputs = self._run(values, np.array([[n, 0, 0]], np.int64))
        return {name: self._output(outputs, index, n) for name, index in self.program.outputs.items()}

    def run_steps(self, values: Mapping[str, Any], steps: np.ndarray) -> dict[str, Any]:
        """Run once for each row (rows, position, step) of ``steps``, int64, with no Python in between.

        Inputs whose rows are the batch's begin at row ``position``; inputs of dtype "double" (the scalars of updates)
        at row ``step``; outputs of fixed shape are written to row ``step``: (steps, rows, columns).
        """
        outputs = self._run(values, steps)
        return {name: outputs[index] for name, index in self.program.outputs.items() if index in outputs}

    def _run(self, values: Mapping[str, Any], steps: np.ndarray) -> dict[int, np.ndarray]:
        sizes, table_of = np.unique(steps[:, 0], return_inverse=True)
        bindings = [self.bound(int(n)) for n in sizes]
        plan = np.ascontiguousarray(np.column_stack([table_of, steps[:, 1:]]), np.int64)
        tables = np.array([(b.table.ctypes.data, len(b.table)) for b in bindings], np.int64)
        workspace = np.empty(max(b.workspace for b in bindings) + 1, self.dtype)
        outputs = {
            index: np.empty((int(steps[:, 2].max()) + 1, *self._shape(index, int(sizes[-1]))), self.dtype)
            for index in self.slots.of
            if self.program.buffers[index].kind == "output"
        }
        slots = np.zeros((self.slots.count, 3), np.int64)
        for index, slot in self.slots.of.items():
            buffer = self.program.buffers[index]
            if buffer.kind == "output":
                slots[slot] = outputs[index].ctypes.data, 0, outputs[index].strides[0]
                continue
            array = values[buffer.name]
            slots[slot, 0] = array.ctypes.data
            if buffer.kind == "input" and buffer.shape[0] == N:
                slots[slot, 1] = array.itemsize * buffer.shape[1].fixed
            elif buffer.dtype == "double":
                slots[slot, 2] = 8 * buffer.shape[1].fixed
        slots[self.slots.workspace, 0] = workspace.ctypes.data
        bases = np.empty(self.slots.count, np.int64)
        shared = any(b.shared for b in bindings)
        arguments = (
            tables.ctypes.data,
            plan.ctypes.data,
            len(plan),
            slots.ctypes.data,
            self.slots.count,
            bases.ctypes.data,
        )
        self._team.run(get_num_threads() if shared else 1, arguments)
        return outputs

    def _shape(self, index: int, n: int) -> tuple[int, int]:
        shape = self.program.buffers[index].shape
        return shape[0].at(n), shape[1].at(n)

    def _output(self, outputs: dict[int, np.ndarray], index: int, n: int) -> Any:
        buffer = self.program.buffers[index]
        base = index if buffer.base is None else buffer.base
        if base not in outputs:
            return None  # an update's theta: the caller has it already
        whole = outputs[base][0]
        if buffer.base is None:
            return whole
        shape = self._shape(index, n)
        return whole.reshape(-1)[buffer.offset : buffer.offset + shape[0] * shape[1]].reshape(shape)
