"""The sizes of the CPU's caches, as the system reports them. Speed depends on them, results never do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from math import gcd
from pathlib import Path

LINE, WAYS = 64, 8  # bytes, and lines that a set holds where nothing is reported
FIRST, SECOND = 32 << 10, 512 << 10  # bytes, where nothing is reported: what small cores have


@cache
def first_level() -> int:
    """Bytes of a core's first-level data cache."""
    return _reported(1) or FIRST


@cache
def second_level() -> int:
    """Bytes of a core's second-level cache."""
    return _reported(2) or SECOND


@cache
def ways(level: int) -> int:
    """Lines that share a set of a core's first- or second-level cache."""
    return next((int(text) for text in _entries(level, "ways_of_associativity") if text.isdigit() and int(text)), WAYS)


def rows_that_stay(level: int, stride: int) -> int:
    """How many rows of one line each, ``stride`` bytes apart, half of a cache holds.

    Rows a power of two apart share few sets: of rows 512 bytes apart 32 KB of 8 ways hold 64, and half of them 32.
    """
    way = (first_level() if level == 1 else second_level()) // ways(level)
    sets = min(way // gcd(stride, way), way // LINE)
    return max(1, sets * ways(level) // 2)


def _reported(level: int) -> int:
    """Bytes according to Linux's sysfs, else to sysconf; 0 if neither knows."""
    for size in _entries(level, "size"):
        if size[:-1].isdigit() and size[-1] in "KM":
            return int(size[:-1]) << {"K": 10, "M": 20}[size[-1]]
    try:
        return max(0, os.sysconf("SC_LEVEL1_DCACHE_SIZE" if level == 1 else "SC_LEVEL2_CACHE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return 0


def _entries(level: int, name: str) -> Iterator[str]:
    """What Linux's sysfs says of the data caches of a level."""
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            if int((folder / "level").read_text()) == level and (folder / "type").read_text().strip() != "Instruction":
                yield (folder / name).read_text().strip()
        except (OSError, ValueError):
            continue
