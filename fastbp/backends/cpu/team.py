"""A team of threads that share the pieces of an instruction, without a threading layer to install.

The caller publishes an instruction by giving every thread a range of its pieces: a word ``end | next piece``.
Whoever wants work adds 1 to a word and so claims the piece that stood there: of its own range first, so that a core
finds in its cache what it wrote one instruction earlier, then of the others'. The caller claims too, and goes on when
all pieces are done. A thread that is late, or never comes, costs nothing: the others do its pieces. What a piece
computes depends on its number alone, so results do not depend on who did it.

Everything that a claimed piece needs (row of the table, addresses) stands in the control block and cannot change
before the piece is done, since the caller waits for it. A word read too early is harmless: the addition that claims
returns the word as it is then, and that says which piece of the present instruction was claimed.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastbp.backends.cpu.compiling import kernel
from fastbp.backends.cpu.simd import I64, get_int, set_int
from fastbp.backends.threads import MAX_THREADS

# Words of the control block; those that different threads write lie in cache lines of their own. OPEN is the number of
# threads that may claim, RUNS whether a run is going on.
DONE, ROW, BASES, OPEN, RUNS = 0, 16, 17, 32, 33
RANGES = 48  # a line a thread: its word, and the number of pieces that it has done
LINE = 16
WORDS = RANGES + LINE * MAX_THREADS
FIELD = 20  # bits of the piece number and of the number of pieces
MASK = (1 << FIELD) - 1
MAX_PIECES = MASK - MAX_THREADS  # each thread may claim once too often
SPINS_BEFORE_YIELD = 2000
YIELDS_BEFORE_PARK = 400
# A helper waits for the next run for some 0.2 ms after the last, which is how long the calls of a loop in Python are
# apart: waking one that sleeps took 0.1 to 0.3 ms on a machine with other tenants, as long as many a call.
YIELDS_BETWEEN_RUNS = 5
EXIT_SECONDS = 0.5  # for helpers to fall asleep in, when the process ends

sched_yield = types.ExternalFunction("sched_yield", types.int32())


@intrinsic
def atomic_add(typingctx: Any, address: Any, index: Any, value: Any) -> Any:
    """Add to the int64 at address + 8 index and return what was there."""

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        place = builder.gep(builder.inttoptr(arguments[0], I64.as_pointer()), [arguments[1]])
        return builder.atomic_rmw("add", place, arguments[2], "acq_rel")

    return types.int64(types.int64, types.int64, types.int64), codegen


@intrinsic
def atomic_load(typingctx: Any, address: Any, index: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        place = builder.gep(builder.inttoptr(arguments[0], I64.as_pointer()), [arguments[1]])
        return builder.load_atomic(place, "acquire", 8)

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def atomic_store(typingctx: Any, address: Any, index: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        place = builder.gep(builder.inttoptr(arguments[0], I64.as_pointer()), [arguments[1]])
        builder.store_atomic(arguments[2], place, "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def pause(typingctx: Any) -> Any:
    """Tell the core that this is a spin loop."""

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        if context.codegen().magic_tuple()[0].startswith("x86_64"):
            nothing = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, nothing, "llvm.x86.sse2.pause"), [])
        elif context.codegen().magic_tuple()[0].startswith(("aarch64", "arm64")):
            builder.asm(ir.FunctionType(ir.VoidType(), []), "yield", "", [], True)
        return context.get_dummy_value()

    return types.void(), codegen


@kernel
def spin(count):
    """One turn of waiting: pause, and let another thread run every so often, for cores are shared."""
    if count % SPINS_BEFORE_YIELD == SPINS_BEFORE_YIELD - 1:
        sched_yield()
    else:
        pause()
    return count + 1


@kernel
def publish(control, row, bases, pieces):
    """Offer an instruction to the team. The caller has waited for the previous one."""
    set_int(control, ROW, row)
    set_int(control, BASES, bases)
    atomic_store(control, DONE, 0)
    threads = get_int(control, OPEN)
    for t in range(threads):
        first, end = pieces * t // threads, pieces * (t + 1) // threads
        atomic_store(control, RANGES + LINE * t, (end << FIELD) | first)


@kernel
def claim(control, thread):
    """The number of a piece that is now this thread's to do, or -1 if there is none."""
    threads = atomic_load(control, OPEN)
    for k in range(threads):
        place = RANGES + LINE * ((thread + k) % threads)
        word = atomic_load(control, place)
        if (word & MASK) < (word >> FIELD):
            word = atomic_add(control, place, 1)
            piece = word & MASK
            if piece < (word >> FIELD):
                return piece
    return -1


@kernel
def finish(control, thread):
    """Count a piece as done."""
    count = RANGES + LINE * thread + 1
    set_int(control, count, get_int(control, count) + 1)
    atomic_add(control, DONE, 1)


class Team:
    """Helper threads of one dtype. They sleep in Python, and work inside ``enter`` without the GIL.

    One run at a time has the team; a run that comes from another Python thread meanwhile goes on alone.

    Attributes:
        compiled: the dispatcher of the machine's entry.
    """

    def __init__(self, enter: Any, one: Any) -> None:
        self.compiled = enter
        self._one = one
        self._busy = threading.Lock()
        self._control = np.zeros(WORDS + 16, np.int64)
        address = self._control.ctypes.data
        self.control = address + -address % 128
        self._bells: list[threading.Semaphore] = []
        self._asleep: list[bool] = []  # of each helper
        self._run = 0  # number of the latest
        atexit.register(self._send_to_sleep)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """After a fork the threads are gone, and whoever held the team is in the other process."""
        self._busy = threading.Lock()
        self._bells, self._asleep = [], []
        self._control[:] = 0

    def pieces_done(self) -> list[int]:
        """Pieces that each thread has done so far, the calling thread first."""
        return [int(self._words()[RANGES + LINE * t + 1]) for t in range(len(self._bells) + 1)]

    def run(self, threads: int, arguments: Callable[[int], tuple[int, ...]]) -> None:
        """Run the steps with up to ``threads`` threads.

        ``arguments(count)`` gives the arguments of ``enter``, with memory for ``count`` threads of their own: for all
        that were ever hired, since one that is late from an earlier run with more of them may still claim a piece.
        """
        if threads < 2 or not self._busy.acquire(blocking=False):
            self.compiled(0, *arguments(1), 0, self._one)
            return
        try:
            while len(self._bells) < threads - 1 and self._hire():
                pass
            steps = arguments(len(self._bells) + 1)
            self._words()[[OPEN, RUNS]] = min(threads, len(self._bells) + 1), 1
            self._run += 1  # before looking who sleeps: see _hire
            for helper, bell in enumerate(self._bells[: threads - 1]):
                if self._asleep[helper]:
                    self._asleep[helper] = False
                    bell.release()
            self.compiled(0, *steps, self.control, self._one)
        finally:
            self._words()[RUNS] = 0
            self._busy.release()

    def _send_to_sleep(self) -> None:
        """A thread that comes back to Python from compiled code when Python is gone would end in the middle of it."""
        if not self._busy.acquire(timeout=EXIT_SECONDS):
            return  # a daemon thread's run, which ends with the process
        self._words()[OPEN] = 0
        end = time.monotonic() + EXIT_SECONDS
        while not all(self._asleep) and time.monotonic() < end:
            time.sleep(1e-4)
        self._busy.release()

    def _words(self) -> np.ndarray:
        """The control block, from its first aligned word on."""
        return self._control[(self.control - self._control.ctypes.data) // 8 :]

    def _hire(self) -> bool:
        """One helper more; False if the system has no thread to give."""
        bell = threading.Semaphore(0)
        helper = len(self._bells)
        asleep = self._asleep
        asleep.append(False)

        def help_when_called() -> None:
            seen = 0
            while True:
                asleep[helper] = True  # before looking for a run that has begun: it is seen here, or rings the bell
                if seen == self._run:
                    bell.acquire()
                asleep[helper] = False
                seen = self._run
                self.compiled(helper + 1, 0, 0, 0, 0, 0, 0, self.control, self._one)

        try:
            threading.Thread(target=help_when_called, name=f"fastbp-{helper + 1}", daemon=True).start()
        except RuntimeError:
            asleep.pop()
            return False
        self._bells.append(bell)
        return True
