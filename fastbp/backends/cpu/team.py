"""A team of threads that share the pieces of an instruction, without a threading layer to install; see claims.py."""

from __future__ import annotations

import atexit
import os
import threading
import time
from array import array
from collections.abc import Callable
from functools import cache

import numpy as np

from fastbp.backends.cpu import loading, words
from fastbp.backends.cpu.words import CONTROL_LINE, CONTROL_WORDS, OPEN, RANGES, RUNS

EXIT_SECONDS = 0.5  # for helpers to fall asleep in, when the process ends


class Team:
    """Helper threads of one dtype. They sleep in Python, and work inside ``enter`` without the GIL.

    One run at a time has the team; a run that comes from another Python thread meanwhile goes on alone.
    """

    def __init__(self, enter: Callable[[int], None]) -> None:
        self._enter = enter
        self._busy = threading.Lock()
        self._control = np.zeros(CONTROL_WORDS + 16, np.int64)
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
        return [int(self._words()[RANGES + CONTROL_LINE * t + 1]) for t in range(len(self._bells) + 1)]

    def run(self, threads: int, prepared: Callable[[int], array[int]]) -> None:
        """Run the steps of a call with up to ``threads`` threads.

        ``prepared(count)`` gives the words of the call, with memory for ``count`` threads of their own: for all that
        were ever hired, since one that is late from an earlier run with more of them may still claim a piece.
        """
        if threads < 2 or not self._busy.acquire(blocking=False):
            call = prepared(1)
            self._enter(call.buffer_info()[0])
            return
        try:
            while len(self._bells) < threads - 1 and self._hire():
                pass
            call = prepared(len(self._bells) + 1)
            call[words.CONTROL] = self.control
            self._words()[[OPEN, RUNS]] = min(threads, len(self._bells) + 1), 1
            self._run += 1  # before looking who sleeps: see _hire
            for helper, bell in enumerate(self._bells[: threads - 1]):
                if self._asleep[helper]:
                    self._asleep[helper] = False
                    bell.release()
            self._enter(call.buffer_info()[0])
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

        call = array("q", [0] * words.CALL)
        call[words.THREAD], call[words.CONTROL] = helper + 1, self.control

        def help_when_called() -> None:
            seen, address = 0, call.buffer_info()[0]
            while True:
                asleep[helper] = True  # before looking for a run that has begun: it is seen here, or rings the bell
                if seen == self._run:
                    bell.acquire()
                asleep[helper] = False
                seen = self._run
                self._enter(address)

        try:
            threading.Thread(target=help_when_called, name=f"fastbp-{helper + 1}", daemon=True).start()
        except RuntimeError:
            asleep.pop()
            return False
        self._bells.append(bell)
        return True


@cache
def team(dtype: str) -> Team:
    """The machine of one dtype, compiled or taken from the disk on first use."""

    def make() -> Callable[..., None]:
        from fastbp.backends.cpu import machine

        function: Callable[..., None] = machine.make_enter(dtype)
        return function

    return Team(loading.entry(f"{dtype} kernels", make, kernels=dtype))
