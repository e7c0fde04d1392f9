"""Nested structures: taken apart, put together, shown."""

from __future__ import annotations

from collections import OrderedDict, namedtuple

import pytest

from fastbp import trees
from fastbp.errors import InputError

Pair = namedtuple("Pair", "a b")
TREES = [1.0, None, [], (), {}, [1, (2, 3)], {"b": [1, {"a": 2}], "a": (3,)}, Pair(1, [2]), ("x", None, [True])]


@pytest.mark.parametrize("tree", TREES, ids=str)
def test_there_and_back(tree):
    leaves, structure = trees.flatten(tree)
    assert trees.unflatten(structure, leaves) == tree
    assert type(trees.unflatten(structure, leaves)) is type(tree)
    assert len(trees.paths(structure)) == len(leaves)
    hash(structure)


def test_leaves_keep_their_order():
    assert trees.flatten({"b": [1, {"a": 2}], "a": (3, None)})[0] == [1, 2, 3, None]
    assert trees.unflatten(trees.flatten(OrderedDict(x=1, y=2))[1], [3, 4]) == {"x": 3, "y": 4}


def test_structures_differ_in_kind_and_keys():
    structures = [trees.flatten(t)[1] for t in ([1, 2], (1, 2), {"a": 1, "b": 2}, {"b": 1, "a": 2}, Pair(1, 2), [1], 1)]
    assert len(set(structures)) == len(structures)


def test_map():
    assert trees.map(lambda x, y: x + y, {"a": [1, 2]}, {"a": [10, 20]}) == {"a": [11, 22]}
    with pytest.raises(InputError, match=r"structures differ: \{'a': \[\*, \*\]\} and \[\*\]"):
        trees.map(lambda x, y: x + y, {"a": [1, 2]}, [1])


def test_dicts_are_equal_in_any_order():
    structure = trees.flatten({"a": 1, "b": [2, {"c": 3, "d": ()}]})[1]
    assert trees.leaves_in(structure, OrderedDict(b=[20, {"d": (), "c": 30}], a=10)) == [10, 20, 30]
    assert trees.map(lambda x, y: x - y, {"a": 1, "b": 2}, {"b": 20, "a": 10}) == {"a": -9, "b": -18}


@pytest.mark.parametrize(
    "other",
    [[1, [2]], {"a": 1}, {"a": 1, "b": [2], "c": 3}, {"a": 1, "b": (2,)}, {"a": [], "b": [2]}, {"a": 1, "b": 2}],
)
def test_leaves_of_another_structure(other):
    assert trees.leaves_in(trees.flatten({"a": 1, "b": [2]})[1], other) is None


def test_shown():
    structure = trees.flatten({"W": [1, 2], "b": (3,), "p": Pair(4, 5)})[1]
    assert trees.show(structure) == "{'W': [*, *], 'b': (*,), 'p': Pair(*, *)}"
    assert trees.paths(structure, "params")[:3] == ["params['W'][0]", "params['W'][1]", "params['b'][0]"]
