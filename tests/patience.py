"""How often a test tries what does not happen every time."""

from __future__ import annotations

import time
from collections.abc import Iterator


def attempts(fewest: int = 200, seconds: float = 30.0) -> Iterator[int]:
    """0, 1, 2, … for that long at least: helper threads come late to short runs, later where cores are busy."""
    end, k = time.monotonic() + seconds, 0
    while k < fewest or time.monotonic() < end:
        yield k
        k += 1
