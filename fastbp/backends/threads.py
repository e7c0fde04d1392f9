"""How many threads the CPU machine may use."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from fastbp.errors import InputError

MAX_THREADS = 256
_threads: int | None = None
_own = threading.local()


def get_num_threads() -> int:
    """Threads that the cpu backend uses for work that is worth sharing.

    FASTBP_NUM_THREADS if it is set; else the cores that the process may use, by affinity and by the cgroup's quota.
    Results do not depend on it.
    """
    global _threads
    if _threads is None:
        _threads = _available()
    return _threads


def set_num_threads(threads: int) -> None:
    """Use ``threads`` threads, 1 to 256, from the next call on."""
    global _threads
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS:
        raise InputError(f"set_num_threads: threads must be an integer from 1 to {MAX_THREADS}, got {threads!r}")
    _threads = threads


@contextmanager
def alone() -> Iterator[None]:
    """Within it no run of the calling Python thread uses others: there are as many of its kind as cores."""
    _own.alone = True
    try:
        yield
    finally:
        _own.alone = False


def threads_of_a_run() -> int:
    """Threads that a run of the calling Python thread may use."""
    return 1 if getattr(_own, "alone", False) else get_num_threads()


def _available() -> int:
    asked = os.environ.get("FASTBP_NUM_THREADS")
    if asked is not None:
        if not (asked.isascii() and asked.isdigit()) or not 1 <= int(asked) <= MAX_THREADS:
            raise InputError(f"FASTBP_NUM_THREADS={asked!r} must be an integer from 1 to {MAX_THREADS}")
        return int(asked)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _quota(cores), MAX_THREADS))


def _quota(cores: int) -> int:
    """Cores that the cgroup's CPU quota amounts to."""
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()[:2]
        return cores if quota == "max" else round(int(quota) / int(period))
    except (OSError, ValueError):
        return cores
