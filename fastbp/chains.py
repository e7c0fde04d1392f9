"""Which elementwise work is done in one pass over memory.

Nodes over the same rows and columns (a *domain*) are computed together, a cache-sized block at a time, so that values
that nobody else reads never leave the cache. Two nodes may be if no way from one to the other leads through anything
that is done apart: a product, a sum, another domain. Levels make sure of it: a node's level is the largest of its
sources', and one more for every source that it cannot be computed with. Nodes of one domain and level that read each
other, or the same matrix, are a chain.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from fastbp.ops import Shape


@dataclass(frozen=True)
class Item:
    """A node as this module sees it.

    Attributes:
        domain: the shape that its elementwise work is done in, None if it is no such work.
        reduces: whether the result has another shape: a sum, a maximum.
        sources: ids of the nodes that it reads, leaves left out.
        whole: ids of what it reads, leaves included, that has the domain's shape.
    """

    id: int
    domain: Shape | None
    reduces: bool
    sources: Sequence[int]
    whole: Collection[int]


def chains(items: Sequence[Item], kept: Collection[int]) -> Iterator[list[int]]:
    """The chains of at least two nodes, each in the items' order; ``kept`` are ids whose values go out.

    Args:
        items: in an order in which sources come first.
    """
    by_id = {item.id: item for item in items}
    levels = _levels(items, by_id)
    _sink(items, by_id, levels, kept)
    leader = {item.id: item.id for item in items}

    def find(a: int) -> int:
        while leader[a] != a:
            leader[a] = leader[leader[a]]
            a = leader[a]
        return a

    first_reader: dict[tuple[Shape, int, int], int] = {}
    for item in items:
        if item.domain is None:
            continue
        partners = [s for s in item.sources if levels[s] == levels[item.id] and _joins(by_id[s], item)]
        partners += [first_reader.setdefault((item.domain, levels[item.id], x), item.id) for x in item.whole]
        for partner in partners:
            leader[find(item.id)] = find(partner)
    groups: dict[int, list[int]] = {}
    for item in items:
        if item.domain is not None:
            groups.setdefault(find(item.id), []).append(item.id)
    yield from (group for group in groups.values() if len(group) > 1)


def _joins(source: Item, item: Item) -> bool:
    return item.domain is not None and source.domain == item.domain and not source.reduces


def _levels(items: Sequence[Item], by_id: dict[int, Item]) -> dict[int, int]:
    levels: dict[int, int] = {}
    for item in items:
        levels[item.id] = max(
            (levels[s] + (not _joins(by_id[s], item)) for s in item.sources if s in levels), default=0
        )
    return levels


def _sink(items: Sequence[Item], by_id: dict[int, Item], levels: dict[int, int], kept: Collection[int]) -> None:
    """Compute what only a later chain reads there, if all it is made of is in memory anyway."""
    readers: dict[int, list[Item]] = {}
    for item in items:
        for s in item.sources:
            readers.setdefault(s, []).append(item)
    for item in reversed(items):
        if item.domain is None or item.reduces or item.id in kept:
            continue
        after = {levels[r.id] for r in readers.get(item.id, [])}
        together = all(_joins(item, r) for r in readers.get(item.id, []))
        level = levels[item.id]
        stored = all(s not in by_id or levels[s] < level or not _joins(by_id[s], item) for s in item.sources)
        if together and len(after) == 1 and stored and after != {level}:
            (levels[item.id],) = after
