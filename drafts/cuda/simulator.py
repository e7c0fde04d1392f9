"""Numba's CUDA simulator, made fast and strict: threads as greenlets, memory with bounds, races found.

Set NUMBA_ENABLE_CUDASIM=1 before Numba is imported. Numba's own scheduler has an operating system thread for every CUDA
thread and polls them; here they take turns, from barrier to barrier. A barrier that some threads do not reach is an
error, not a standstill; so is an access outside of an array, and one to an element that another thread has written, or
writes after another has read it, without a barrier in between. ``order`` says who goes first, so that what depends on
the order shows.
"""

from __future__ import annotations

import bisect
import contextvars
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from greenlet import getcurrent, greenlet
from numba.cuda.simulator import kernel as numba_kernel
from numba.cuda.simulator import kernelapi

from fastbp.errors import FastbpError

ORDERS = ("forward", "backward", "random")
WARP = 32
order = "forward"


class SimulatedFault(FastbpError):  # noqa: N818
    """What a kernel must not do, and hardware would not report."""


# ---- threads -------------------------------------------------------------------------------------------------------


class Thread(greenlet):
    """One CUDA thread."""

    def __init__(self, run: Callable[[], None], number: int, index: Sequence[int], block: Sequence[int]) -> None:
        super().__init__(run)
        self.number = number
        self.threadIdx = kernelapi.Dim3(*index)
        self.blockIdx = kernelapi.Dim3(*block)
        self.waits = ""
        self.offered: Any = None
        self.gr_context = contextvars.copy_context()  # NumPy's settings for floating-point errors are in it

    def syncthreads(self) -> None:
        self.waits = "barrier"
        self.parent.switch()


def exchange(value: Any) -> tuple[list[Any], int]:
    """What all 32 lanes of the warp have for ``value``, and the lane that asks; all lanes call it together."""
    me = getcurrent()
    me.waits, me.offered = "warp", value
    return me.parent.switch(), me.number % WARP


def _run_block(manager: Any, block: Sequence[int], *arguments: Any) -> None:
    """In place of BlockManager.run: all threads of one block."""
    fn, dims = manager._f, manager._block_dim
    points = [(x, y, z) for z in range(dims[2]) for y in range(dims[1]) for x in range(dims[0])]
    threads = [Thread(lambda: fn(*arguments), k, point, block) for k, point in enumerate(points)]
    memory.begin_block(block)
    waiting: dict[int, Any] = dict.fromkeys(range(len(threads)))
    while waiting:
        for k in _in_order(list(waiting)):
            value = waiting.pop(k)
            threads[k].waits = ""
            try:
                threads[k].switch(value) if value is not None else threads[k].switch()
            except Exception as error:
                where = f"thread {tuple(threads[k].threadIdx)} of block {tuple(block)}"
                raise type(error)(f"{where}: {error}").with_traceback(error.__traceback__) from None
        alive = [t for t in threads if not t.dead]
        for first in range(0, len(threads), WARP):
            lanes = threads[first : first + WARP]
            if any(t.waits == "warp" for t in lanes):
                if len(lanes) < WARP or not all(t.waits == "warp" for t in lanes):
                    raise SimulatedFault(f"block {tuple(block)}: only a part of warp {first // WARP} exchanges values")
                values = [t.offered for t in lanes]
                waiting |= {t.number: values for t in lanes}
        if not waiting and alive:
            if len(alive) < len(threads):
                raise SimulatedFault(
                    f"block {tuple(block)}: {len(threads) - len(alive)} threads ended before a barrier"
                )
            memory.barrier()
            waiting = dict.fromkeys(range(len(threads)))
        elif waiting and any(t.waits == "barrier" for t in alive):
            pass  # whole warps go on to where the others wait


def _in_order(numbers: list[int]) -> list[int]:
    if order == "backward":
        return numbers[::-1]
    if order == "random":
        random.shuffle(numbers)
    return numbers


class _Current:
    """In place of ``threading`` in Numba's simulator."""

    @staticmethod
    def current_thread() -> Any:
        return getcurrent()


# ---- memory --------------------------------------------------------------------------------------------------------


class _Allocation:
    """One array in device memory, or a block's shared memory."""

    def __init__(self, array: np.ndarray, is_shared: bool = False) -> None:
        self.bytes = array.reshape(-1).view(np.uint8) if array.size else np.zeros(0, np.uint8)
        self.address = array.ctypes.data
        self.size = self.bytes.size
        self.is_shared = is_shared
        self.views: dict[type, np.ndarray] = {}
        words = -(-self.size // 4)
        self.writer = np.zeros(words, np.int64)  # moment · 2048 + thread of the last write, and of the last read
        self.reader = np.zeros(words, np.int64)
        self.owner = np.zeros(words, np.int64)  # block of the launch's last write

    def view(self, kind: type) -> np.ndarray:
        found = self.views.get(kind)
        if found is None:
            item = np.dtype(kind).itemsize
            found = self.views[kind] = self.bytes[: self.size // item * item].view(kind)
        return found


_THREADS = 2048


class Memory:
    """All that kernels may reach: arrays that were registered, and the block's shared memory."""

    def __init__(self) -> None:
        self.addresses: list[int] = []
        self.allocations: list[_Allocation] = []
        self.shared: _Allocation | None = None
        self.moment = 1  # grows with every barrier and block
        self.block = 0  # grows with every block
        self.launch = 0  # the block with which the launch began

    def register(self, array: np.ndarray) -> None:
        """Let kernels reach a contiguous array, until it is forgotten."""
        if not array.size:
            return
        allocation = _Allocation(array)
        at = bisect.bisect_left(self.addresses, allocation.address)
        if at < len(self.addresses) and self.addresses[at] == allocation.address:
            self.allocations[at] = allocation
            return
        self.addresses.insert(at, allocation.address)
        self.allocations.insert(at, allocation)

    def forget(self, address: int) -> None:
        at = bisect.bisect_left(self.addresses, address)
        if at < len(self.addresses) and self.addresses[at] == address:
            del self.addresses[at], self.allocations[at]

    def find(self, address: int, may_be_shared: bool) -> _Allocation:
        shared = self.shared
        if shared is not None and shared.address <= address < shared.address + max(1, shared.size):
            if not may_be_shared:
                raise SimulatedFault(f"address {address:#x} is in shared memory, but is taken for a global one")
            return shared
        at = bisect.bisect_right(self.addresses, address) - 1
        if at < 0 or address > self.addresses[at] + self.allocations[at].size:
            raise SimulatedFault(f"address {address:#x} is in no array")
        return self.allocations[at]

    def begin_launch(self, shared_bytes: int) -> None:
        self.launch = self.block + 1
        size = -(-shared_bytes // 16) * 16
        whole = np.full(size + 16, 0xFF, np.uint8)
        start = -whole.ctypes.data % 16
        self._shared = whole  # kept alive
        self.shared = _Allocation(whole[start : start + size], True)

    def begin_block(self, block: Sequence[int]) -> None:
        self.block += 1
        self.barrier()
        if self.shared is not None:
            self.shared.bytes[:] = 0xFF  # NaN
            self.shared.writer[:] = self.shared.reader[:] = 0

    def barrier(self) -> None:
        self.moment += 1

    def check(self, a: _Allocation, first: int, item: int, writes: bool) -> None:
        """Look for races on the ``item`` bytes from byte ``first`` on, and note the access."""
        me = getcurrent().number
        now = self.moment * _THREADS
        mine = now + me
        for word in range(first >> 2, (first + item + 3) >> 2):
            writer = a.writer[word]
            if writer >= now and writer != mine:
                raise self._race(a, word, int(writer) - now, me, "wrote", writes)
            if not a.is_shared and self.launch <= a.owner[word] != self.block and (writes or a.owner[word]):
                raise SimulatedFault(
                    f"word {word} of an array of {a.size} bytes: two blocks of a launch use it, one writes"
                )
            if writes:
                reader = a.reader[word]
                if reader >= now and reader != mine:
                    raise self._race(a, word, int(reader) - now, me, "read", writes)
                a.writer[word] = mine
                a.owner[word] = self.block
            elif a.reader[word] < now:
                a.reader[word] = mine
            elif a.reader[word] != mine:
                a.reader[word] = now + _THREADS - 1  # several

    @staticmethod
    def _race(a: _Allocation, word: int, other: int, me: int, did: str, writes: bool) -> SimulatedFault:
        who = "several threads" if other == _THREADS - 1 else f"thread {other}"
        where = f"word {word} of {'shared memory' if a.is_shared else 'an array'} of {a.size} bytes"
        does = "writes" if writes else "reads"
        return SimulatedFault(f"{where}: {who} {did} it and thread {me} {does} it with no barrier in between")


memory = Memory()


class Pointer:
    """A pointer to elements of one dtype; ``p[i]`` is checked."""

    __slots__ = ("allocation", "array", "first", "item", "kind")

    def __init__(self, allocation: _Allocation, kind: type, byte: int) -> None:
        self.kind = kind
        self.item = np.dtype(kind).itemsize
        if byte % self.item:
            raise SimulatedFault(f"byte {byte} of an array is no place for {np.dtype(kind)}")
        self.allocation = allocation
        self.array = allocation.view(kind)
        self.first = byte // self.item

    def _place(self, index: Any, writes: bool) -> int:
        place = self.first + int(index)
        if not 0 <= place < self.array.size:
            raise SimulatedFault(
                f"element {int(index)} from element {self.first} of {self.array.size} of {np.dtype(self.kind)} is outside"  # noqa: E501
            )
        memory.check(self.allocation, place * self.item, self.item, writes)
        return place

    def __getitem__(self, index: Any) -> Any:
        return self.array[self._place(index, False)]

    def __setitem__(self, index: Any, value: Any) -> None:
        self.array[self._place(index, True)] = value

    @property
    def address(self) -> int:
        return self.allocation.address + self.first * self.item

    def shifted(self, count: Any) -> Pointer:
        return Pointer(self.allocation, self.kind, (self.first + int(count)) * self.item)


# ---- installing ----------------------------------------------------------------------------------------------------


@contextmanager
def _everywhere(fake: Any) -> Iterator[None]:
    """Functions that kernels call see the running block's ``cuda``, too."""
    modules = [
        m for name, m in list(sys.modules.items()) if name.startswith("fastbp.backends.cuda.") and hasattr(m, "cuda")
    ]
    before = [m.cuda for m in modules]
    for m in modules:
        m.cuda = fake
    try:
        yield
    finally:
        for m, old in zip(modules, before, strict=True):
            m.cuda = old


@contextmanager
def _launch(fake: Any) -> Iterator[None]:
    """In place of Numba's _push_kernel_context: a launch begins."""
    memory.begin_launch(fake._shared._dynshared_size)
    numba_kernel._kernel_context = fake
    try:
        with _everywhere(fake), np.errstate(all="ignore"):
            yield
    finally:
        numba_kernel._kernel_context = None
        memory.shared = None


def install() -> None:
    """Make Numba's simulator run blocks in this way."""
    numba_kernel.BlockManager.run = _run_block
    numba_kernel._push_kernel_context = _launch
    kernelapi.threading = _Current
