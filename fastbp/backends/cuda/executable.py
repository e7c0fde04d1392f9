"""A Program on the CUDA machine: CuPy arrays in, CuPy arrays out."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import cupy
import numpy as np

from fastbp.backends.cuda import blas, blocks, table
from fastbp.backends.cuda.binding import Bound, Product, bind, constants
from fastbp.backends.cuda.chain_table import Place
from fastbp.backends.cuda.launching import CAN_CAPTURE, captured, current_stream, launch, most_shared, new_stream
from fastbp.backends.cuda.rows import CONSTS, WORKSPACE, Slots
from fastbp.backends.cuda.streams import Order, between
from fastbp.ops import N
from fastbp.program import Program

KEPT_BINDINGS = 16  # numbers of rows for which tables are kept; training needs two
WORTH_A_GRAPH = 4  # steps of one number of rows from which a graph is captured; not measured yet


@dataclass
class _OnDevice:
    """A bound Program: its table in device memory, the row of its constants, its graph once it is captured.

    Attributes:
        fixed: the addresses that the graph has.
    """

    bound: Bound
    words: Any
    row: int
    graph: Any = None
    fixed: bytes = b""


@dataclass
class _Whole:
    """The table by which one block runs whole steps, in device memory, its constants, and a script's number by rows."""

    bound: blocks.Blocks
    words: Any
    consts: Any
    scripts: dict[int, int]


class CudaExecutable:
    """Runs a Program with the GPU kernels.

    Safe to call from several Python threads, and with several streams: they take turns, as the tables and the workspace
    are the same for all. Nothing waits for the device: outputs are arrays that the kernels will have filled when the
    stream comes to them.
    """

    def __init__(self, program: Program, dtype: str, precision: str = "highest") -> None:
        self.program = program
        self.dtype = np.dtype(dtype)
        self.precision = precision
        self.slots = Slots(program)
        self._bound: dict[int, _OnDevice] = {}
        self._wholes: dict[tuple[int, ...], _Whole] = {}
        self._lock = threading.Lock()
        self._order = Order()
        self._stream = new_stream()  # for steps, that they can be captured
        self._addresses = cupy.zeros(self.slots.count, np.int64)
        self._moving = cupy.zeros(table.MOVING_HEAD + table.MOVING_WIDTH * self.slots.count, np.int64)
        consts = sum(b.kind == "const" for b in program.buffers)
        self._consts = cupy.zeros((KEPT_BINDINGS, max(1, consts)), self.dtype)  # a row for each number of rows
        self._workspace: Any = None
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

    def bound(self, n: int) -> _OnDevice:
        """The tables for n rows, made once and kept: those that were asked for last."""
        found = self._bound.pop(n, None)
        if found is None:
            row = len(self._bound)
            if row == KEPT_BINDINGS:
                row = self._bound.pop(next(iter(self._bound))).row
            bytes_ = self._consts.strides[0]
            bound = self._bind(n, row * bytes_)
            self._consts[row].set(bound.consts)
            found = _OnDevice(bound, cupy.asarray(bound.words), row)
        self._bound[n] = found
        return found

    def _bind(self, n: int, consts_at: int) -> Bound:
        return bind(self.program, self.slots, n, self.dtype.name, self.precision, consts_at, with_blas=blas.available())

    def bytes_for(self, n: int) -> int:
        """Device memory that n rows take beside what comes in."""
        bound = self._bind(n, 0)
        outputs = sum(self.program.size(index, n) for _, index in self._results)
        return bound.workspace + bound.words.nbytes + outputs * self.dtype.itemsize

    def run(self, values: Mapping[str, Any], n: int) -> dict[str, Any]:
        """Run once for n rows; see :meth:`fastbp.backends.array.ArrayExecutable.run`. All arrays C-contiguous."""
        with self._lock, self._order.turn(current_stream()):
            here = self.bound(n)
            outputs = {index: cupy.empty(self.program.shape(index, n), self.dtype) for _, index in self._results}
            addresses = self._where(here.bound.workspace, values, outputs)
            self._addresses.set(addresses)
            self._launch_all(here, addresses)
        return {name: self._part(index, outputs, n) for name, index in self.program.outputs.items()}

    def suits_blocks(self, n: int) -> bool:
        """Whether :meth:`run_many` is for steps of at most n rows: small ones, with results of one size."""
        fixed = not any(self.program.buffers[index].shape[0].per_row for _, index in self._results)
        return fixed and blocks.suits_one_block(self.program, n)

    def whole(self, sizes: Sequence[int]) -> _Whole:
        """The tables for steps of so many rows by one block each."""
        key = tuple(sorted(set(sizes)))
        found = self._wholes.get(key)
        if found is None:
            if len(self._wholes) == KEPT_BINDINGS:
                self._wholes.pop(next(iter(self._wholes)))
            numbers: list[np.ndarray] = []
            places = []
            for n in key:
                values, where = constants(self.program, n, self.dtype.name, sum(x.nbytes for x in numbers))
                numbers.append(values)
                places.append(where)
            moving = {slot: (position, step) for slot, _, position, step in self._sources}
            item = self.dtype.itemsize
            moving |= {slot: (0, item * self.program.size(index, 0)) for slot, index in self._results}
            precision = self.precision if item == 4 else "highest"
            bound = blocks.bind_whole(self.program, self.slots, key, item, precision, places, moving, most_shared())
            words = cupy.asarray(np.array(bound.words, np.int64))
            consts = cupy.asarray(np.concatenate(numbers))
            found = self._wholes[key] = _Whole(bound, words, consts, {n: k for k, n in enumerate(key)})
        return found

    def run_many(self, values: Sequence[Mapping[str, Any]], steps: Sequence[Any]) -> list[dict[str, Any]]:
        """:meth:`run_steps` for several sets of values at once, a block each, where that suits the rows of a batch."""
        every = [np.ascontiguousarray(s, np.int64) for s in steps]
        with self._lock, self._order.turn(current_stream()):
            whole = self.whole([n for s in every for n in set(s[:, 0].tolist())])
            outputs = [
                {
                    index: cupy.empty((int(s[:, 2].max()) + 1, *self.program.shape(index, 0)), self.dtype)
                    for _, index in self._results
                }
                for s in every
            ]
            words: list[np.ndarray] = []
            begins = []
            for s in every:
                begins.append(sum(w.nbytes for w in words))
                scripts = [whole.scripts[n] for n in s[:, 0].tolist()]
                whole_steps = np.column_stack([scripts, s[:, 1:]]).ravel()
                words.append(np.concatenate([[0, len(s)], whole_steps]).astype(np.int64))
            on_device = cupy.asarray(np.concatenate(words))
            each = whole.bound.workspace
            rows = [self._where(each * len(every), v, o) for v, o in zip(values, outputs, strict=True)]
            for k, (row, begin) in enumerate(zip(rows, begins, strict=True)):
                row[WORKSPACE] += k * each
                row[CONSTS] = whole.consts.data.ptr
                row[self.slots.steps] = on_device.data.ptr + begin
            addresses = cupy.asarray(np.concatenate(rows))
            launch(
                whole.bound.kernel,
                self.dtype.name,
                len(every),
                whole.bound.threads,
                whole.bound.shared,
                whole.words.data.ptr,
                addresses.data.ptr,
            )
        return [{name: o[index] for name, index in self.program.outputs.items() if index in o} for o in outputs]

    def run_steps(self, values: Mapping[str, Any], steps: Any) -> dict[str, Any]:
        """Run once for each row (rows, position, step) of ``steps``, int64 on the host, without waiting in between.

        Inputs whose rows are the batch's begin at row ``position``; inputs of dtype "double" (the scalars of updates)
        at row ``step``; outputs of fixed shape are written to row ``step``: (steps, rows, columns). However many there
        are, they are the same launches, so that results do not depend on that.

        Raises:
            ValueError: more than KEPT_BINDINGS different numbers of rows, whose tables are not all kept.
        """
        steps = np.ascontiguousarray(steps, np.int64)
        count, most = int(steps[:, 2].max()) + 1, int(steps[:, 0].max())
        counts = Counter(steps[:, 0].tolist())
        if len(counts) > KEPT_BINDINGS:
            raise ValueError(f"steps: at most {KEPT_BINDINGS} different numbers of rows; got {len(counts)}")
        outside = current_stream()
        with self._lock, self._order.turn(outside):
            bindings = {n: self.bound(n) for n in sorted(counts, key=lambda n: n not in self._bound)}  # lest one go
            outputs = {
                index: cupy.empty((count, *self.program.shape(index, most)), self.dtype) for _, index in self._results
            }
            with nullcontext() if outside is None else between(outside, self._stream):
                addresses = self._where(max(b.bound.workspace for b in bindings.values()), values, outputs)
                on_device = cupy.asarray(steps)
                self._addresses.set(addresses)
                moves = self._moves(addresses, on_device, outputs)
                self._moving.set(moves)
                for here in bindings.values():
                    self._forget_if_moved(here, addresses)
                for n, position, step in steps.tolist():
                    here = bindings[n]
                    if here.graph is not None:
                        here.graph.launch(self._stream)
                        continue
                    now = addresses if here.bound.captured else _moved(addresses, moves, position, step)
                    self._advance_and_launch(here, now)  # which also loads the kernels for a graph
                    if CAN_CAPTURE and here.bound.captured and counts[n] >= WORTH_A_GRAPH:
                        here.graph = captured(self._stream, partial(self._advance_and_launch, here, now))
        return {name: outputs[index] for name, index in self.program.outputs.items() if index in outputs}

    # ---- addresses -------------------------------------------------------------------------------------------------

    def _where(self, workspace: int, values: Mapping[str, Any], outputs: Mapping[int, Any]) -> np.ndarray:
        """The address of every slot."""
        if self._workspace is None or self._workspace.size < workspace:
            if self._workspace is not None:
                self._order.wait()
            self._workspace = None  # given back before more is asked for
            self._workspace = cupy.empty(workspace, np.uint8)
        addresses = np.zeros(self.slots.count, np.int64)
        addresses[WORKSPACE], addresses[CONSTS] = self._workspace.data.ptr, self._consts.data.ptr
        for slot, name, _, _ in self._sources:
            addresses[slot] = values[name].data.ptr
        for slot, index in self._results:
            addresses[slot] = outputs[index].data.ptr
        return addresses

    def _moves(self, addresses: np.ndarray, steps: Any, outputs: Mapping[int, Any]) -> np.ndarray:
        """What ``advance`` reads: see table.py."""
        moving = [(slot, addresses[slot], a_position, a_step) for slot, _, a_position, a_step in self._sources]
        moving += [(slot, addresses[slot], 0, outputs[index].strides[0]) for slot, index in self._results]
        moving = [m for m in moving if m[2] or m[3]]
        words = np.zeros(self._moving.shape, np.int64)
        words[: table.MOVING_HEAD] = steps.data.ptr, 0, len(moving)
        words[table.MOVING_HEAD : table.MOVING_HEAD + table.MOVING_WIDTH * len(moving)] = np.ravel(moving)
        return words

    def _part(self, index: int, outputs: Mapping[int, Any], n: int) -> Any:
        """An output; None for an update's theta, which the caller has already."""
        buffer = self.program.buffers[index]
        if buffer.base is None:
            return outputs.get(index)
        flat = outputs[buffer.base].reshape(-1)[buffer.offset : buffer.offset + self.program.size(index, n)]
        return flat.reshape(self.program.shape(index, n))

    # ---- launches --------------------------------------------------------------------------------------------------

    def _forget_if_moved(self, here: _OnDevice, addresses: np.ndarray) -> None:
        """Forget a graph in which other addresses are fixed."""
        fixed = addresses[list(here.bound.blas_slots)].tobytes()
        if here.fixed != fixed:
            here.graph, here.fixed = None, fixed

    def _advance_and_launch(self, here: _OnDevice, addresses: np.ndarray) -> None:
        launch("advance", self.dtype.name, 1, 32, 0, self._moving.data.ptr, self._addresses.data.ptr)
        self._launch_all(here, addresses)

    def _launch_all(self, here: _OnDevice, addresses: np.ndarray) -> None:
        """All launches of a step; ``addresses`` are the slots' on the host, for cuBLAS."""
        words, slots = here.words.data.ptr, self._addresses.data.ptr
        for one in here.bound.launches:
            if isinstance(one, Product):
                self._multiply(one, addresses, here.bound.blas)
            else:
                launch(one.kernel, self.dtype.name, one.blocks, one.threads, one.shared, words + 8 * one.row, slots)

    def _multiply(self, one: Product, addresses: np.ndarray, workspace: int) -> None:
        """A product by cuBLAS, whose own workspace begins so many bytes behind that of all."""

        def address(place: Place) -> int:
            return int(addresses[place.slot] + place.offset)

        blas.product(
            self.dtype.name,
            self.precision if self.dtype == np.float32 else "highest",
            one.shape,
            (address(one.a), one.ta),
            (address(one.b), one.tb),
            address(one.out),
            int(addresses[WORKSPACE]) + workspace,
        )


def _moved(addresses: np.ndarray, moves: np.ndarray, position: int, step: int) -> np.ndarray:
    """The slots' addresses in a step, as ``advance`` has them on the device."""
    moved = addresses.copy()
    count = moves[table.MOVING]
    for slot, begin, a_position, a_step in moves[table.MOVING_HEAD :].reshape(-1, table.MOVING_WIDTH)[:count]:
        moved[slot] = begin + position * a_position + step * a_step
    return moved
