"""Numba's CUDA simulator, made quick and strict: threads take turns, memory has bounds, races are found.

Set NUMBA_ENABLE_CUDASIM=1 before Numba is imported. Numba's own scheduler has an operating system thread for every CUDA
thread and polls them; here they are greenlets that run from one barrier or warp exchange to the next. These are errors,
where hardware would go on with wrong numbers or stand still:

* a barrier or an exchange that not all threads reach, or that they reach at different places of the source;
* an access outside of every registered array, to a place that is not aligned, or to shared memory by a pointer that is
  said to be global;
* two threads of a block that access the same element between two barriers, two blocks that do so in one launch, at
  least one of them writing. Elements are compared by the address at which they begin.

``order`` says which thread goes first, so that what depends on the order shows even where races are not looked for.
"""

from __future__ import annotations

import bisect
import contextvars
import ctypes
import random
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import index as as_index
from typing import Any

import numpy as np
from greenlet import getcurrent, greenlet
from numba import cuda
from numba.cuda.simulator import kernel as numba_kernel
from numba.cuda.simulator import kernelapi

from fastbp.errors import FastbpError

ORDERS = ("forward", "backward", "random")
WARP = 32
order = "forward"
races = True  # whether to look for them
lines = False  # whether a race's message says which lines of the source met: slow, for looking into one

BARRIER, EXCHANGE, ENDED = "barrier", "exchange", "ended"
_INNER = {__name__, "fastbp.backends.cuda.twins", "numba.cuda.simulator.kernelapi"}


class SimulatedError(FastbpError):
    """What a kernel must not do, and hardware would not report."""


class OutOfBoundsError(SimulatedError, IndexError):
    """An access to memory that belongs to no array, or not to the one that the pointer points into."""


class _Now:
    """What runs: a thread, in a launch."""

    thread: Any = None
    launch: Any = None  # Numba's stand-in for the module ``cuda``, one a launch
    threads32 = np.int32(0)  # of a block


now = _Now()


# ---- threads -------------------------------------------------------------------------------------------------------


def _site() -> tuple[Any, int]:
    """Where a kernel's source calls what asks."""
    frame = sys._getframe(2)
    while frame.f_globals.get("__name__") in _INNER and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code, frame.f_lasti


def _line(site: tuple[Any, int]) -> str:
    code, at = site
    line = next((line for begin, end, line in code.co_lines() if begin <= at < end), code.co_firstlineno)
    return f"{code.co_filename.rsplit('/', 1)[-1]}:{line}"


class _Traced(set[int]):
    """Addresses with the line of the source that accessed each first."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[int, str] = {}

    def add(self, address: int) -> None:
        self.lines.setdefault(address, _line(_site()))
        super().add(address)

    def update(self, *addresses: Any) -> None:
        for some in addresses:
            self.lines |= dict.fromkeys(some, _line(_site()))
        super().update(*addresses)


class Thread:
    """One CUDA thread.

    Attributes:
        number: in its block; number32 the same as int32.
        waits: BARRIER, EXCHANGE or ENDED, and at which site of the source; while it runs this means nothing.
        offered, received: what it gives to those that it waits for, and what it gets: all that they have offered.
        copies: what it copies without waiting (see twins.copy4).
        reads, writes: addresses in global memory since the last barrier; shared_reads, shared_writes: in shared memory.
    """

    def __init__(self, number: int, index: Sequence[int], block: Sequence[int], hub: greenlet) -> None:
        self.number = self.thread_id = number
        self.number32 = np.int32(number)
        self.lane = number % WARP
        self.threadIdx = kernelapi.Dim3(*index)
        self.blockIdx = kernelapi.Dim3(*block)
        self.hub = hub
        self.waits = ENDED
        self.site: Any = None
        self.offered: Any = None
        self.received: Any = None
        self.copies: list[Any] = []
        log: Callable[[], Any] = _Traced if lines else set
        self.reads, self.writes, self.shared_reads, self.shared_writes = log(), log(), log(), log()

    def wait(self, what: str, offered: Any = None) -> Any:
        """Let others run until all are there; what they have offered."""
        self.waits, self.site, self.offered = what, _site(), offered
        self.hub.switch()
        return self.received

    def syncthreads(self) -> None:
        """CUDA's barrier."""
        self.wait(BARRIER)

    def syncthreads_count(self, value: Any) -> int:
        """CUDA's barrier that counts."""
        return sum(bool(v) for v in self.wait(BARRIER, value))

    def syncthreads_and(self, value: Any) -> int:
        """CUDA's barrier that asks whether all hold."""
        return int(all(self.wait(BARRIER, value)))

    def syncthreads_or(self, value: Any) -> int:
        """CUDA's barrier that asks whether one holds."""
        return int(any(self.wait(BARRIER, value)))


class _Workers(threading.local):
    """Greenlets that have nothing to do: to start one takes longer than most threads of a kernel."""

    def __init__(self) -> None:
        self.idle: list[greenlet] = []


_workers = _Workers()


def _work(function: Callable[[], None], thread: Thread) -> None:
    """Run one thread after another; what comes in is the next one."""
    me = getcurrent()
    while True:
        function()
        thread.waits = ENDED
        _workers.idle.append(me)
        function, thread = thread.hub.switch()


class _Values(list[Any]):
    """What the lanes of a warp offer, and what was made of it."""

    results: Any = None


def exchange(value: Any) -> tuple[list[Any], int]:
    """What all 32 lanes of the warp have for ``value``, and the lane that asks; all lanes call it together."""
    me = now.thread
    return me.wait(EXCHANGE, value), me.lane


def together(value: Any, function: Callable[[list[Any]], Any]) -> Any:
    """The lane's item of function(what all 32 lanes have for ``value``), which runs once for a warp."""
    values: Any
    values, lane = exchange(value)
    if values.results is None:
        values.results = function(values)
    return values.results[lane]


def _run_block(manager: Any, block: Sequence[int], *arguments: Any) -> None:
    """In place of BlockManager.run: all threads of one block."""
    kernel, dims, hub = manager._f, manager._block_dim, getcurrent()
    points = [(x, y, z) for z in range(dims[2]) for y in range(dims[1]) for x in range(dims[0])]
    threads = [Thread(k, point, block, hub) for k, point in enumerate(points)]
    memory.begin_block(block, threads)
    shuffled = random.Random(0)
    at_work: dict[int, greenlet] = {}
    ready = threads

    def function() -> None:
        kernel(*arguments)

    try:
        while ready:
            if order == "backward":
                ready = ready[::-1]
            elif order == "random":
                ready = shuffled.sample(ready, len(ready))
            for thread in ready:
                now.thread = thread
                worker = at_work.get(thread.number)
                if worker is not None:
                    worker.switch()
                    continue
                idle = _workers.idle
                worker = at_work[thread.number] = idle.pop() if idle else greenlet(_work, hub)
                worker.parent, worker.gr_context = (
                    hub,
                    contextvars.copy_context(),
                )  # of which NumPy's settings are a part
                worker.switch(function, thread)
            now.thread = None
            ready = _released(threads)
        memory.end_block()
    except Exception as error:
        who = f"thread {tuple(now.thread.threadIdx)} of " if now.thread else ""
        error.add_note(f"In {who}block {tuple(int(b) for b in block)} of {kernel.__qualname__}, simulated.")
        raise
    finally:
        now.thread = None
        for thread in threads:
            if thread.waits != ENDED:
                at_work[thread.number].throw()


def _released(threads: list[Thread]) -> list[Thread]:
    """All threads wait or have ended: those that can go on."""
    whats = {t.waits for t in threads}
    if EXCHANGE in whats:
        found: list[Thread] = []
        for first in range(0, len(threads), WARP):
            lanes = threads[first : first + WARP]
            site = next((t.site for t in lanes if t.waits is EXCHANGE), None)
            if site is None:
                continue
            if len(lanes) < WARP or any(t.waits is not EXCHANGE or t.site != site for t in lanes):
                few = f"it has {len(lanes)} lanes; " if len(lanes) < WARP else ""
                raise SimulatedError(f"warp {first // WARP} does not exchange as a whole: {few}{_standing(lanes)}")
            values = _Values(t.offered for t in lanes)
            for t in lanes:
                t.received = values
            found += lanes
        return found
    memory.barrier()
    if whats == {ENDED}:
        return []
    site = threads[0].site
    if len(whats) > 1 or any(t.site != site for t in threads):
        raise SimulatedError(f"threads do not meet at one barrier: {_standing(threads)}")
    offered = [t.offered for t in threads]
    for t in threads:
        t.received = offered
    return threads


def _standing(threads: list[Thread]) -> str:
    """Who waits where."""
    groups: dict[tuple[str, Any], list[int]] = {}
    for t in threads:
        groups.setdefault((t.waits, None if t.waits == ENDED else t.site), []).append(t.number)
    return "; ".join(
        f"{len(numbers)} threads, {numbers[0]} … {numbers[-1]}, "
        + ("have ended" if what == ENDED else f"wait at the {what} in {_line(site)}")
        for (what, site), numbers in groups.items()
    )


class _Threading:
    """In place of ``threading`` in Numba's simulator."""

    @staticmethod
    def current_thread() -> Any:
        return now.thread


# ---- memory --------------------------------------------------------------------------------------------------------


class _Region:
    """Bytes from an address on: an array in device memory, or a block's shared memory."""

    def __init__(self, address: int, size: int, is_shared: bool = False) -> None:
        self.address = address
        self.size = size
        self.is_shared = is_shared
        self.owner: Any = None
        self._views: dict[type, tuple[np.ndarray, int]] = {}

    def view(self, kind: type) -> tuple[np.ndarray, int]:
        """All elements of one dtype that have their place in it, and the address of the first."""
        found = self._views.get(kind)
        if found is None:
            item = np.dtype(kind).itemsize
            first = -(-self.address // item) * item
            count = max(0, self.address + self.size - first) // item
            memory: Any = (ctypes.c_char * (count * item)).from_address(first)
            found = self._views[kind] = np.frombuffer(memory, kind), first
        return found

    def __str__(self) -> str:
        return f"{'shared memory' if self.is_shared else 'an array'} of {self.size} bytes"


class Memory:
    """All that kernels may reach: arrays that were registered, and the block's shared memory."""

    def __init__(self) -> None:
        self.shared: _Region | None = None
        self._starts: list[int] = []
        self._regions: list[_Region] = []
        # what at() has found, for addresses in global memory
        self.found: dict[tuple[int, type], tuple[Any, ...]] = {}
        self._many_blocks = False
        self._block: Sequence[int] = ()
        self._reads: set[int] = set()  # of this block
        self._writes: set[int] = set()
        self._blocks: list[tuple[Sequence[int], set[int], set[int]]] = []  # of this launch before
        self._launch: tuple[set[int], set[int]] = set(), set()  # reads and writes of these

    # ---- what is there

    def register(self, array: np.ndarray) -> None:
        """Let kernels reach an array, until the memory that it is a part of is given back, or it is forgotten."""
        low, high = np.lib.array_utils.byte_bounds(array)
        if not array.size:
            return
        for old in self._overlapping(low, high):
            if old.address <= low and high <= old.address + old.size:
                return
            if not (low <= old.address and old.address + old.size <= high):
                raise SimulatedError(f"the array at {low:#x} … {high:#x} overlaps {old} at {old.address:#x}")
            self._drop(old)
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        region = _Region(low, high - low)
        region.owner = weakref.ref(owner, lambda _: self._drop(region))
        at = bisect.bisect_left(self._starts, low)
        self._starts.insert(at, low)
        self._regions.insert(at, region)
        self.found.clear()

    def forget(self, address: int) -> None:
        """The array that begins there can no longer be reached."""
        for region in self._overlapping(address, address + 1):
            if region.address == address:
                self._drop(region)

    def _overlapping(self, low: int, high: int) -> list[_Region]:
        at = bisect.bisect_left(self._starts, low)
        if at and self._regions[at - 1].address + self._regions[at - 1].size > low:
            at -= 1
        return self._regions[at : bisect.bisect_left(self._starts, high)]

    def _drop(self, region: _Region) -> None:
        at = bisect.bisect_left(self._starts, region.address)
        if at < len(self._regions) and self._regions[at] is region:
            del self._starts[at], self._regions[at]
            self.found.clear()

    def find(self, address: int, may_be_shared: bool) -> _Region | None:
        """The array that has this address, or none."""
        shared = self.shared
        if shared is not None and shared.address <= address < shared.address + max(1, shared.size):
            if not may_be_shared:
                raise SimulatedError(f"address {address:#x} is in shared memory, but is taken for a global one")
            return shared
        within = self._overlapping(address, address + 1)
        return within[0] if within else None

    def at(self, address: int, kind: type, may_be_shared: bool) -> tuple[Any, ...]:
        """What a pointer needs: its array, size of an element, all elements, address of the first, its own."""
        region, size = self.find(address, may_be_shared), np.dtype(kind).itemsize
        if region is None:
            return None, size, np.empty(0, kind), address, 0
        items, base = region.view(kind) if address % size == 0 else (np.empty(0, kind), address)
        found = region, size, items, base, (address - base) // size
        if not region.is_shared:
            self.found[address, kind] = found
        return found

    # ---- what happens to it

    def begin_launch(self, shared_bytes: int, many_blocks: bool) -> None:
        """Make the shared memory of a launch's blocks, one after the other."""
        self._whole = np.empty(shared_bytes + 32, np.uint8)
        begin = self._whole.ctypes.data
        address = begin + (16 - begin) % 32  # a multiple of 16, but not of 32: nobody promises more
        self.shared = _Region(address, shared_bytes, True)
        self._many_blocks = many_blocks
        self._blocks = []
        self._launch = set(), set()

    def begin_block(self, block: Sequence[int], threads: list[Thread]) -> None:
        """Shared memory holds NaN."""
        self._block = tuple(int(b) for b in block)
        self._threads = threads
        self._global_logs = [(t.reads, t.writes) for t in threads]
        self._shared_logs = [(t.shared_reads, t.shared_writes) for t in threads]
        self._reads, self._writes = set(), set()
        self._whole.fill(0xFF)

    def barrier(self) -> None:
        """Look for races since the last barrier, and begin anew."""
        if not races:
            return
        self._compare(self._shared_logs)
        self._compare(self._global_logs)
        if self._many_blocks:
            self._reads.update(*[reads for reads, _ in self._global_logs])
            self._writes.update(*[writes for _, writes in self._global_logs])
        for logs in (self._shared_logs, self._global_logs):
            for reads, writes in logs:
                reads.clear()
                writes.clear()

    def _compare(self, logs: list[tuple[set[int], set[int]]]) -> None:
        all_writes = [writes for _, writes in logs if writes]
        if not all_writes:
            return
        written: set[int] = set().union(*all_writes)
        if len(written) < sum(map(len, all_writes)):
            seen: dict[int, Thread] = {}
            for t, (_, writes) in zip(self._threads, logs, strict=True):
                for address in writes:
                    if address in seen:
                        raise self._race(address, (seen[address], "wrote"), (t, "wrote"))
                    seen[address] = t
        for t, (reads, writes) in zip(self._threads, logs, strict=True):
            if reads and not reads.isdisjoint(written):
                for address in (reads & written) - writes:
                    other = next(k for k, (_, theirs) in enumerate(logs) if address in theirs)
                    raise self._race(address, (self._threads[other], "wrote"), (t, "read"))

    def _race(self, address: int, *sides: tuple[Thread, str]) -> SimulatedError:
        said = []
        for t, did in sides:
            names = ("shared_writes", "writes") if did == "wrote" else ("shared_reads", "reads")
            places = [getattr(t, name).lines.get(address) for name in names] if lines else []
            place = next((f" in {p}" for p in places if p), "")
            said.append(f"thread {tuple(t.threadIdx)} {did} it{place}")
        t = sides[0][0]
        until = f"the {t.waits} in {_line(t.site)}" if t.site and t.waits != ENDED else "the end"
        return SimulatedError(
            f"{self._place(address)}: {' and '.join(said)}, with no barrier in between, before {until}"
        )

    def _place(self, address: int) -> str:
        region = self.find(address, True)
        return f"address {address:#x}" if region is None else f"byte {address - region.address} of {region}"

    def end_block(self) -> None:
        """Look for races with the launch's blocks before."""
        if not (races and self._many_blocks):
            return
        read, written = self._launch
        for mine, theirs, did, they in (
            (self._writes, written, "writes", "wrote"),
            (self._reads, written, "reads", "wrote"),
            (self._writes, read, "writes", "read"),
        ):
            if not mine.isdisjoint(theirs):
                address = min(mine & theirs)
                other = next(
                    b for b, reads, writes in self._blocks if address in (writes if they == "wrote" else reads)
                )
                raise SimulatedError(
                    f"{self._place(address)}: block {other} {they} it and block {self._block} {did} it in one launch"
                )
        read |= self._reads
        written |= self._writes
        self._blocks.append((self._block, self._reads, self._writes))


memory = Memory()
_UNSEEN: set[int] = set()


class Pointer:
    """A pointer to elements of one dtype; every access is checked.

    It may point anywhere, as on hardware: only what is accessed has to be there.
    """

    __slots__ = ("base", "first", "items", "kind", "reads", "region", "size", "writes")

    def __init__(self, address: int, kind: type, may_be_shared: bool) -> None:
        self.kind = kind
        found = memory.found.get((address, kind)) or memory.at(address, kind, may_be_shared)
        self.region, self.size, self.items, self.base, self.first = found
        thread = now.thread
        if thread is None or not races:
            self.reads = self.writes = _UNSEEN
        elif self.region is memory.shared:
            self.reads, self.writes = thread.shared_reads, thread.shared_writes
        else:
            self.reads, self.writes = thread.reads, thread.writes

    def __getitem__(self, index: Any) -> Any:
        i = as_index(index)
        k = self.first + i
        if i < 0 or k < 0:
            raise self._outside(i)
        self.reads.add(self.base + k * self.size)
        try:
            return self.items[k]
        except IndexError:
            raise self._outside(i) from None

    def __setitem__(self, index: Any, value: Any) -> None:
        i = as_index(index)
        k = self.first + i
        if i < 0 or k < 0:
            raise self._outside(i)
        self.writes.add(self.base + k * self.size)
        try:
            self.items[k] = value
        except IndexError:
            raise self._outside(i) from None

    def load(self, index: Any, count: int, alignment: int) -> tuple[Any, ...]:
        """``count`` elements in one access."""
        k, address = self._several(index, count, alignment)
        self.reads.update(range(address, address + count * self.size, self.size))
        items = self.items
        return tuple([items[e] for e in range(k, k + count)])

    def store(self, index: Any, values: Sequence[Any], alignment: int) -> None:
        """Several elements in one access."""
        count = len(values)
        k, address = self._several(index, count, alignment)
        self.writes.update(range(address, address + count * self.size, self.size))
        self.items[k : k + count] = values

    def _several(self, index: Any, count: int, alignment: int) -> tuple[int, int]:
        i = as_index(index)
        k = self.first + i
        if i < 0 or k < 0 or k + count > self.items.size:
            raise self._outside(i, count)
        address = self.base + k * self.size
        if address % alignment:
            raise SimulatedError(
                f"{count} {np.dtype(self.kind)} at once, from element {i} on, at address {address:#x}, "
                f"which is no multiple of {alignment}"
            )
        return k, address

    @property
    def address(self) -> int:
        """Of the element that it points to."""
        address: int = self.base + self.first * self.size
        return address

    def shifted(self, count: Any) -> Pointer:
        """The pointer so many elements on."""
        new = Pointer.__new__(Pointer)
        new.kind, new.size, new.region = self.kind, self.size, self.region
        new.items, new.base, new.first = self.items, self.base, self.first + as_index(count)
        new.reads, new.writes = self.reads, self.writes
        return new

    def _outside(self, index: int, count: int = 1) -> OutOfBoundsError:
        name = np.dtype(self.kind).name
        what = f"element {index} of a pointer to {name}" if count == 1 else f"elements {index} … {index + count - 1}"
        if self.region is None:
            return OutOfBoundsError(f"{what}: address {self.address:#x} is in no array")
        if self.items.size == 0 and self.address % self.size:
            return OutOfBoundsError(f"{what}: address {self.address:#x} is no place for a {name}")
        if index < 0:
            return OutOfBoundsError(f"{what}: the index is negative")
        return OutOfBoundsError(
            f"{what}, which points to element {self.first} of {self.items.size} in {self.region}: outside"
        )


# ---- installing ----------------------------------------------------------------------------------------------------


@contextmanager
def _launch(fake: Any) -> Iterator[None]:
    """In place of Numba's _push_kernel_context: a launch begins."""
    assert now.launch is None, "one launch at a time"
    memory.begin_launch(fake._shared._dynshared_size, max(fake.gridDim) > 1)
    numba_kernel._kernel_context = now.launch = fake
    now.threads32 = np.int32(fake.blockDim.x)
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        numba_kernel._kernel_context = now.launch = None
        memory.shared = None


@contextmanager
def _as_it_is(function: Any, fake: Any) -> Iterator[None]:
    """In place of swapped_cuda_module: functions find what runs through the module ``cuda`` itself."""
    yield


def _of_the_launch(name: str) -> Any:
    """``cuda.threadIdx`` and the like, which Numba's module lacks in the simulator."""
    if now.launch is None:
        raise AttributeError(f"module 'numba.cuda' has no attribute {name!r} outside of a simulated kernel")
    return getattr(now.launch, name)


def _local_array(_: Any, shape: Any, dtype: Any, alignment: Any = None) -> np.ndarray:
    """In place of cuda.local.array; what was not written is NaN, or all ones."""
    kind = np.dtype(str(dtype)) if not isinstance(dtype, type) else np.dtype(dtype)
    whole = np.empty(shape, kind)
    whole.view(np.uint8).fill(0xFF)
    return whole


def install() -> None:
    """Make Numba's simulator run blocks in this way."""
    numba_kernel.BlockManager.run = _run_block
    numba_kernel._push_kernel_context = _launch
    numba_kernel.swapped_cuda_module = _as_it_is
    kernelapi.threading = _Threading
    kernelapi.FakeCUDALocal.array = _local_array
    cuda.__getattr__ = _of_the_launch
