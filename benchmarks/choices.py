"""Which value of a constant is best over many shapes, from times measured with several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def mean_loss(pairs: Sequence[tuple[float, float]]) -> float:
    """Of (time, best time): how much longer it takes than the best, as a geometric mean."""
    return math.exp(sum(math.log(time / best) for time, best in pairs) / len(pairs)) - 1.0


def loss_of(limit: int, found: Sequence[tuple[int, float, float]]) -> float:
    """What is lost by large tiles from ``limit`` tiles on, of (tiles, µs by small ones, µs by large ones)."""
    return mean_loss([(large if n >= limit else small, min(small, large)) for n, small, large in found])


def threshold(found: Sequence[tuple[int, float, float]]) -> int:
    """From how many tiles on large ones lose least, see :func:`loss_of`."""
    counts = {count for count, _, _ in found}
    return min([*sorted(counts), max(counts) + 1], key=lambda limit: loss_of(limit, found))


def first_worth(us: Mapping[int, Mapping[str, float]]) -> int | None:
    """The least number of steps from which on, for all larger ones, a "graph" takes less than "launches"; or None."""
    found = None
    for count in sorted(us, reverse=True):
        if us[count]["graph"] > us[count]["launches"]:
            break
        found = count
    return found


def choice_for_all(times: Mapping[str, Mapping[str, float]]) -> tuple[str, dict[str, float]]:
    """Shape -> choice -> µs: the choice that loses least over all shapes, and what each loses."""
    names = next(iter(times.values()))
    losses = {c: mean_loss([(here[c], min(here.values())) for here in times.values()]) for c in names}
    return min(losses, key=losses.__getitem__), losses
