"""The sizes of the CPU's caches, as the system reports them. Speed depends on them, results never do."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

FIRST, SECOND = 32 << 10, 512 << 10  # bytes, where nothing is reported: what small cores have


@cache
def first_level() -> int:
    """Bytes of a core's first-level data cache."""
    return _reported(1) or FIRST


@cache
def second_level() -> int:
    """Bytes of a core's second-level cache."""
    return _reported(2) or SECOND


def _reported(level: int) -> int:
    """Bytes according to Linux's sysfs, else to sysconf; 0 if neither knows."""
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            if int((folder / "level").read_text()) == level and (folder / "type").read_text().strip() != "Instruction":
                size = (folder / "size").read_text().strip()
                return int(size[:-1]) << {"K": 10, "M": 20}[size[-1]]
        except (OSError, ValueError, KeyError):
            continue
    try:
        return max(0, os.sysconf("SC_LEVEL1_DCACHE_SIZE" if level == 1 else "SC_LEVEL2_CACHE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return 0
