"""Layouts of graphs: nothing lies on anything else."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastbp import layout
from fastbp.layout import Layout, Point, layered

Box = tuple[float, float, float, float]
SLACK = 1e-6


@st.composite
def graphs(draw) -> tuple[list[Point], list[tuple[int, int]], list[Point | None], list[bool]]:
    """Boxes, edges (some twice), labels or none, and who wants its inputs in order."""
    n = draw(st.integers(1, 14))
    length = st.floats(5.0, 90.0)
    sizes = draw(st.lists(st.tuples(length, length), min_size=n, max_size=n))
    pairs = list(itertools.combinations(range(n), 2))
    edges = draw(st.lists(st.sampled_from(pairs), max_size=2 * n)) if pairs else []
    edges = sorted(edges, key=lambda edge: edge[1])
    label = st.none() | st.tuples(length, length) if draw(st.booleans()) else st.none()
    labels = draw(st.lists(label, min_size=len(edges), max_size=len(edges)))
    in_order = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    names = draw(st.permutations(range(n)))  # the numbers of the boxes say nothing about their order
    return sizes, [(names[a], names[b]) for a, b in edges], labels, in_order


def boxes(placed: Layout, sizes: list[Point], labels: list[Point | None]) -> tuple[list[Box], list[Box | None]]:
    """Left, right, top and bottom of nodes and labels; a label begins where it is placed."""
    nodes = [(x - w / 2, x + w / 2, y - h / 2, y + h / 2) for (x, y), (w, h) in zip(placed.nodes, sizes, strict=True)]
    texts: list[Box | None] = []
    for place, size in zip(placed.labels, labels, strict=True):
        assert (place is None) == (size is None)
        if place is None or size is None:
            texts.append(None)
        else:
            texts.append((place[0], place[0] + size[0], place[1] - size[1] / 2, place[1] + size[1] / 2))
    return nodes, texts


def overlap(a: Box, b: Box) -> bool:
    return min(a[1], b[1]) - max(a[0], b[0]) > SLACK and min(a[3], b[3]) - max(a[2], b[2]) > SLACK


def curve(route: list[Point]) -> np.ndarray:
    """Points along an edge as it is drawn."""
    t = np.linspace(0.0, 1.0, 33)[:, None]
    pieces = []
    for k, (a, b) in enumerate(itertools.pairwise(np.array(route))):
        half = (a[1] + b[1]) / 2
        first, second = np.array([a[0], half]), np.array([b[0], half])
        bent = (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * first + 3 * (1 - t) * t**2 * second + t**3 * b
        pieces.append(a + t * (b - a) if k % 2 == 0 else bent)
    return np.vstack(pieces)


def enters(points: np.ndarray, box: Box) -> bool:
    x, y = points.T
    return bool(((x > box[0] + SLACK) & (x < box[1] - SLACK) & (y > box[2] + SLACK) & (y < box[3] - SLACK)).any())


@settings(max_examples=200, deadline=None)
@given(graphs())
def test_nothing_lies_on_anything_else(graph) -> None:
    sizes, edges, labels, in_order = graph
    placed = layered(sizes, edges, labels, in_order=in_order)
    nodes, texts = boxes(placed, sizes, labels)
    every = [*nodes, *(text for text in texts if text)]
    assert not any(overlap(a, b) for a, b in itertools.combinations(every, 2))
    assert min(box[0] for box in every) >= -SLACK
    assert max(box[1] for box in every) <= placed.extent[0] + SLACK
    assert max(box[3] for box in every) <= placed.extent[1] + SLACK
    for number, ((source, target), route) in enumerate(zip(edges, placed.routes, strict=True)):
        points = curve(route)
        assert (np.diff(points[:, 1]) >= -SLACK).all()  # never back
        assert points[0, 1] == pytest.approx(nodes[source][3])
        assert points[-1, 1] == pytest.approx(nodes[target][2])
        assert nodes[source][0] <= points[0, 0] <= nodes[source][1]
        assert nodes[target][0] <= points[-1, 0] <= nodes[target][1]
        for aside in (-4.0, 4.0):  # the two arrows of an edge, within its lane
            moved = points[33:-33] + np.array([aside, 0.0])  # without the straight ends at its own boxes
            assert not any(enters(moved, box) for k, box in enumerate(nodes) if k not in (source, target))
            assert not any(text and enters(moved, text) for text in texts)
        assert not any(enters(points, box) for box in nodes), number


@settings(max_examples=50, deadline=None)
@given(graphs())
def test_inputs_in_order_arrive_in_it(graph) -> None:
    sizes, edges, labels, in_order = graph
    placed = layered(sizes, edges, labels, in_order=in_order)
    for k in np.flatnonzero(in_order):
        ends = [route[-1][0] for (_, target), route in zip(edges, placed.routes, strict=True) if target == k]
        assert ends == sorted(ends)


def test_an_input_stands_beside_its_first_consumer() -> None:
    edges = [(0, 1), (1, 2), (3, 2), (3, 4), (2, 4)]
    assert layout._ranks(5, edges) == [0, 1, 2, 1, 3]


def test_a_cycle_is_refused() -> None:
    with pytest.raises(ValueError, match="cycle"):
        layered([(1.0, 1.0)] * 2, [(0, 1), (1, 0)], [None, None])


def test_a_chain_is_straight() -> None:
    placed = layered([(20.0 + k, 10.0) for k in range(20)], [(k, k + 1) for k in range(19)], [(30.0, 8.0)] * 19)
    assert np.ptp([x for x, _ in placed.nodes]) < 1.0


@pytest.mark.parametrize(
    ("edges", "crossings"),
    [
        ([(0, 3), (1, 2)], 0),
        ([(0, 2), (0, 3), (1, 2), (1, 3)], 1),  # K₂,₂ cannot do without
        ([(0, 4), (1, 5), (2, 4), (3, 5), (4, 6), (5, 6)], 0),
    ],
)
def test_crossings_are_avoided(edges: list[tuple[int, int]], crossings: int) -> None:
    n = max(itertools.chain(*edges)) + 1
    placed = layered([(20.0, 10.0)] * n, edges, [None] * len(edges))
    middles = [(placed.nodes[a], placed.nodes[b]) for a, b in edges]
    found = sum(
        (a[0] - c[0]) * (b[0] - d[0]) < 0 for (a, b), (c, d) in itertools.combinations(middles, 2) if a[1] == c[1]
    )
    assert found == crossings


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(0.1, 10)), min_size=1, max_size=12))
def test_rising_is_isotonic_regression(pairs) -> None:
    isotonic = pytest.importorskip("sklearn.isotonic")
    wanted, weights = np.array(pairs).T
    expected = isotonic.isotonic_regression(wanted, sample_weight=weights)
    np.testing.assert_allclose(layout._rising(list(wanted), list(weights)), expected, atol=1e-6)
