"""Layered drawings of directed acyclic graphs: where boxes, edges and their labels go.

After Sugiyama, Tagawa and Toda (1981) and Gansner, Koutsofios, North and Vo (1993):

1. Layers by the longest path to a sink, so that an input stands beside its first consumer.
2. An edge over several layers passes through one dummy item a layer; one of them carries its label.
3. The order in a layer by the mean place of the neighbours, swept down and up; the order with fewest crossings is kept.
4. Places by minimising Σ w (x_i - x_j)² over the links under the order and its distances: layer by layer, each exactly
   (isotonic regression), which tends to the minimum of all because the constraints of different layers are separate.
   Then edges over several layers are straightened up to their last bend.

Edges bend only between layers, where there are no boxes; inside a layer they run straight in a lane of their own.
So no edge meets a box that is not its end.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]
_ROUNDS = 12  # of ordering, down and up; later ones change little
_SWEEPS = 150  # of placing
_STILL = 0.05  # a sweep that moves nothing farther ends it
_WEIGHTS = (1.0, 2.0, 8.0)  # of a link with so many dummy ends: long edges become straight (Gansner et al. 1993)
_SLANT = 0.1  # how much wider a gap is for an edge that goes far across it


@dataclass(frozen=True)
class Layout:
    """Places; all (across, along): across a layer, and along the direction of the edges.

    Attributes:
        nodes: the centres of the boxes.
        labels: of each edge, the middle of the label's side that faces the edge; None without a label.
        routes: of each edge p₀, p₁, p₂, …, from the border of one box to that of the other, straight from p₀ to p₁,
            a curve that begins and ends along the direction from p₁ to p₂, and so on in turns.
        extent: everything lies between (0, 0) and this.
    """

    nodes: list[Point]
    labels: list[Point | None]
    routes: list[list[Point]]
    extent: Point


@dataclass
class _Item:
    """A box or a dummy: it takes the lane from x - low to x + high of its layer."""

    layer: int
    low: float
    high: float
    along: float = 0.0
    dummy: bool = False


@dataclass(frozen=True)
class _Link:
    """A piece of an edge between neighbouring layers; ports are where it leaves and meets its ends, from their x."""

    upper: int
    lower: int
    ports: Point = (0.0, 0.0)


def layered(
    sizes: Sequence[Point],
    edges: Sequence[tuple[int, int]],
    labels: Sequence[Point | None],
    *,
    in_order: Sequence[bool] = (),
    apart: Point = (14.0, 16.0),
    lane: float = 5.0,
    port: float = 14.0,
    stub: float = 8.0,
) -> Layout:
    """Lay out an acyclic graph.

    Args:
        sizes: (across, along) of each box.
        edges: (from, to), numbers of boxes; the same pair may come twice.
        labels: the size of each edge's label, or None.
        in_order: of each box, whether the edges to it must meet it in the order in which they are given.
        apart: least distance of neighbours in a layer, and of layers.
        lane: half the width that an edge takes beside labels and boxes.
        port: distance of the places at which edges meet a box, less where the box is too narrow.
        stub: how far edges are straight at least where they meet a box: room for the head of an arrow.
    """
    stride = 2 if any(labels) else 1  # labels have layers of their own
    ranks = _ranks(len(sizes), edges)
    items = [_Item(stride * r, w / 2, w / 2, h) for r, (w, h) in zip(ranks, sizes, strict=True)]
    chains = []
    for (source, target), label in zip(edges, labels, strict=True):
        layers = range(items[source].layer + 1, items[target].layer)
        chains.append([source, *range(len(items), len(items) + len(layers)), target])
        items += [_Item(layer, lane, lane, 0.0, dummy=True) for layer in layers]
        if label:
            carrier = items[chains[-1][-2]]  # beside the consumer, whose derivative it is
            carrier.high, carrier.along = lane + label[0], label[1]
    pieces = [list(itertools.pairwise(chain)) for chain in chains]
    order = _ordered(items, [pair for pairs in pieces for pair in pairs], len(sizes))
    links = _with_ports(pieces, order, items, port, in_order or [False] * len(sizes))
    flat = [link for chain in links for link in chain]
    x = _placed(items, order, flat, apart[0])
    begin, end = _bands(items, order, flat, x, apart[1], stub)

    middle = [(begin[i.layer] + end[i.layer]) / 2 for i in items]
    routes = []
    for chain in links:
        first, last = items[chain[0].upper], items[chain[-1].lower]
        route = [(x[chain[0].upper] + chain[0].ports[0], middle[chain[0].upper] + first.along / 2)]
        for link in chain:
            route.append((x[link.upper] + link.ports[0], end[items[link.upper].layer]))
            route.append((x[link.lower] + link.ports[1], begin[items[link.lower].layer]))
        routes.append([*route, (route[-1][0], middle[chain[-1].lower] - last.along / 2)])
    places = [(x[chain[-2]] + lane, middle[chain[-2]]) if any(labels) else None for chain in chains]
    lowest = max((at + item.along / 2 for at, item in zip(middle, items, strict=True)), default=0.0)
    extent = (max((at + item.high for at, item in zip(x, items, strict=True)), default=0.0), lowest)
    return Layout(
        list(zip(x, middle, strict=True))[: len(sizes)],
        [place if label else None for place, label in zip(places, labels, strict=True)],
        routes,
        extent,
    )


def _ranks(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """The layer of each box: the length of the longest path of all, less that from the box to a sink."""
    after: list[list[int]] = [[] for _ in range(count)]
    waiting = [0] * count
    for source, target in edges:
        after[source].append(target)
        waiting[target] += 1
    sorted_ = [k for k in range(count) if not waiting[k]]
    for k in sorted_:  # grows meanwhile: a topological order (Kahn 1962)
        for target in after[k]:
            waiting[target] -= 1
            if not waiting[target]:
                sorted_.append(target)
    if len(sorted_) < count:
        raise ValueError("the graph has a cycle")
    to_sink = [0] * count
    for k in reversed(sorted_):
        to_sink[k] = max((to_sink[target] + 1 for target in after[k]), default=0)
    longest = max(to_sink, default=0)
    return [longest - length for length in to_sink]


# ---- order -----------------------------------------------------------------------------------------------------------


def _ordered(items: Sequence[_Item], pairs: Sequence[tuple[int, int]], nodes: int) -> list[list[int]]:
    """The items of each layer, in the order with the fewest crossings that was found."""
    above: list[list[int]] = [[] for _ in items]
    below: list[list[int]] = [[] for _ in items]
    for upper, lower in pairs:
        above[lower].append(upper)
        below[upper].append(lower)
    order: list[list[int]] = [[] for _ in range(max((i.layer for i in items), default=-1) + 1)]
    seen = [False] * len(items)
    stack = [k for k in range(nodes) if not below[k]][::-1]
    while stack:  # depth first from the sinks: a tree comes out without crossings
        k = stack.pop()
        if not seen[k]:
            seen[k] = True
            order[items[k].layer].append(k)
            stack += above[k][::-1]

    best, fewest = [list(layer) for layer in order], _crossings(order, below)
    for turn in range(2 * _ROUNDS):
        if not fewest:
            break
        layers, neighbours = (order, above) if turn % 2 == 0 else (order[::-1], below)
        for fixed, layer in itertools.pairwise(layers):
            place = {k: at for at, k in enumerate(fixed)}
            means = {k: sum(place[n] for n in neighbours[k]) / len(neighbours[k]) for k in layer if neighbours[k]}
            moved = iter(sorted(means, key=lambda k: means[k]))  # stable: equal ones stay as they are
            layer[:] = [next(moved) if k in means else k for k in layer]
        crossings = _crossings(order, below)
        if crossings < fewest:
            best, fewest = [list(layer) for layer in order], crossings
    return best


def _crossings(order: Sequence[Sequence[int]], below: Sequence[Sequence[int]]) -> int:
    """How many pairs of links cross: inversions of their lower ends, taken in the order of the upper ones."""
    count = 0
    for upper, lower in itertools.pairwise(order):
        place = {k: at for at, k in enumerate(lower)}
        met: list[int] = []
        for k in upper:
            ends = sorted(place[n] for n in below[k])
            count += sum(len(met) - bisect.bisect_right(met, end) for end in ends)
            for end in ends:
                bisect.insort(met, end)
    return count


def _with_ports(
    pieces: Sequence[Sequence[tuple[int, int]]],
    order: Sequence[Sequence[int]],
    items: Sequence[_Item],
    port: float,
    in_order: Sequence[bool],
) -> list[list[_Link]]:
    """The links of each edge, spread over the sides of their boxes in the order of the other ends."""
    place = {k: at for layer in order for at, k in enumerate(layer)}
    flat = [pair for pairs in pieces for pair in pairs]
    ports = [[0.0, 0.0] for _ in flat]
    for side in (0, 1):
        meeting: dict[int, list[int]] = {}
        for number, pair in enumerate(flat):
            meeting.setdefault(pair[side], []).append(number)
        for k, numbers in meeting.items():
            if side == 0 or items[k].dummy or not in_order[k]:
                numbers.sort(key=lambda number: place[flat[number][1 - side]])
            step = min(port, 2 * items[k].low / len(numbers))
            for at, number in enumerate(numbers):
                ports[number][side] = (at - (len(numbers) - 1) / 2) * step
    every = iter(_Link(*pair, (first, second)) for pair, (first, second) in zip(flat, ports, strict=True))
    return [[next(every) for _ in pairs] for pairs in pieces]


# ---- places ----------------------------------------------------------------------------------------------------------


def _placed(
    items: Sequence[_Item], order: Sequence[Sequence[int]], links: Sequence[_Link], apart: float
) -> list[float]:
    """X of every item, the leftmost lane beginning at 0."""
    wishes: list[list[tuple[int, float, float]]] = [[] for _ in items]  # other end, offset, weight
    for link in links:
        weight = _WEIGHTS[items[link.upper].dummy + items[link.lower].dummy]
        bend = link.ports[0] - link.ports[1]
        wishes[link.lower].append((link.upper, bend, weight))
        wishes[link.upper].append((link.lower, -bend, weight))
    offsets = []  # of each layer, where its items are when they touch
    for layer in order:
        at = itertools.accumulate(
            (items[a].high + apart + items[b].low for a, b in itertools.pairwise(layer)), initial=0.0
        )
        offsets.append(list(at))
    x = [0.0] * len(items)
    for layer, touching in zip(order, offsets, strict=True):
        for k, offset in zip(layer, touching, strict=True):
            x[k] = offset - touching[-1] / 2
    sweep = [*range(len(order)), *range(len(order) - 2, 0, -1)]
    for _ in range(_SWEEPS):
        farthest = 0.0
        for number in sweep:
            layer, touching = order[number], offsets[number]
            weights = [sum(w for *_, w in wishes[k]) for k in layer]
            wanted = [
                sum(w * (x[other] + bend) for other, bend, w in wishes[k]) / weight if weight else x[k]
                for k, weight in zip(layer, weights, strict=True)
            ]
            free = [wish - offset for wish, offset in zip(wanted, touching, strict=True)]
            for k, value, offset in zip(layer, _rising(free, weights), touching, strict=True):
                farthest = max(farthest, abs(value + offset - x[k]))
                x[k] = value + offset
        if farthest < _STILL:
            break
    # The minimum spreads the bends of an edge over all its length: let it go straight on from where it comes and bend
    # once, before it arrives. The boxes stay.
    for layer, touching in zip(order, offsets, strict=True):
        wanted = []
        for k in layer:
            other, bend, _ = wishes[k][0] if items[k].dummy else (k, 0.0, 0.0)
            wanted.append(x[other] + bend)
        weights = [1.0 if items[k].dummy else 1e9 for k in layer]
        free = [wish - offset for wish, offset in zip(wanted, touching, strict=True)]
        for k, value, offset in zip(layer, _rising(free, weights), touching, strict=True):
            x[k] = value + offset
    least = min((at - i.low for at, i in zip(x, items, strict=True)), default=0.0)
    return [at - least for at in x]


def _rising(wanted: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The y₁ ≤ y₂ ≤ … with the least Σ w (y - wanted)²: neighbours out of order are pooled to their mean."""
    pools: list[tuple[float, float, int]] = []  # mean, weight, how many
    for mean, weight in zip(wanted, weights, strict=True):
        weight, count = weight or 1e-9, 1
        while pools and pools[-1][0] >= mean:
            before, other, more = pools.pop()
            mean = (before * other + mean * weight) / (other + weight)
            weight, count = weight + other, count + more
        pools.append((mean, weight, count))
    return [mean for mean, _, count in pools for _ in range(count)]


def _bands(
    items: Sequence[_Item],
    order: Sequence[Sequence[int]],
    links: Sequence[_Link],
    x: Sequence[float],
    apart: float,
    stub: float,
) -> tuple[list[float], list[float]]:
    """Where edges begin and end to be straight in each layer; the gaps between grow with how far edges go across."""
    across = [0.0] * len(order)  # below each layer
    for link in links:
        far = abs(x[link.upper] + link.ports[0] - x[link.lower] - link.ports[1])
        across[items[link.upper].layer] = max(across[items[link.upper].layer], far)
    begin, end, at = [], [], 0.0
    for number, (layer, far) in enumerate(zip(order, across, strict=True)):
        more = 0.0 if all(items[k].dummy for k in layer) else stub
        begin.append(at - more * (not number))  # the first boxes are at 0
        end.append(at + max(items[k].along for k in layer) + more * (1 + bool(number)))
        at = end[-1] + apart + _SLANT * far
    return begin, end
