"""Nested dicts, lists and tuples as a flat list of leaves and a structure, and back.

Everything that is no dict, list or tuple is a leaf. A structure is hashable, so that it can be part of a key, and says
what it is in an error. Dicts keep the order of their keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fastbp.errors import InputError

# A container's type, its keys (of a dict, else how many there are), and the structures inside; None is a leaf.
Structure = Any


def flatten(tree: Any) -> tuple[list[Any], Structure]:
    """The leaves from left to right, and the structure around them."""
    leaves: list[Any] = []
    return leaves, _flatten(tree, leaves)


def _flatten(tree: Any, leaves: list[Any]) -> Structure:
    kind = type(tree)
    if kind is dict:
        inside: Iterable[Any] = tree.values()
        keys: Any = tuple(tree)
    elif kind is tuple or kind is list or isinstance(tree, (tuple, list)):
        inside, keys = tree, len(tree)
    elif isinstance(tree, dict):
        inside, keys = tree.values(), tuple(tree)
    else:
        leaves.append(tree)
        return None
    found = []
    for item in inside:
        if isinstance(item, (tuple, list, dict)):
            found.append(_flatten(item, leaves))
        else:  # the same without a call: most are leaves
            leaves.append(item)
            found.append(None)
    return kind, keys, tuple(found)


def unflatten(structure: Structure, leaves: Iterable[Any]) -> Any:
    """What :func:`flatten` took apart, with other leaves; dicts come back as plain dicts, namedtuples as themselves."""
    return _unflatten(structure, iter(leaves))


def _unflatten(structure: Structure, leaves: Iterator[Any]) -> Any:
    if structure is None:
        return next(leaves)
    kind, keys, inside = structure
    items = [next(leaves) if s is None else _unflatten(s, leaves) for s in inside]
    if issubclass(kind, dict):
        return dict(zip(keys, items, strict=True))
    if issubclass(kind, list):
        return items
    return kind(*items) if hasattr(kind, "_fields") else tuple(items)


def leaves_in(structure: Structure, tree: Any) -> list[Any] | None:
    """The leaves of a tree in the structure's order, None if its structure is another; dicts are equal in any order."""
    leaves: list[Any] = []
    return leaves if _collected(structure, tree, leaves) else None


def _collected(structure: Structure, tree: Any, leaves: list[Any]) -> bool:
    if structure is None:
        leaves.append(tree)
        return not isinstance(tree, (tuple, list, dict))
    kind, keys, inside = structure
    if issubclass(kind, dict):
        if not isinstance(tree, dict) or tree.keys() != set(keys):
            return False
        items: Iterable[Any] = (tree[key] for key in keys)
    elif type(tree) is kind and len(tree) == keys:
        items = tree
    else:
        return False
    return all(_collected(s, item, leaves) for s, item in zip(inside, items, strict=True))


def map(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """The tree with every leaf replaced by function(leaf, *leaves of the other trees in that place).

    Raises:
        InputError: another tree has another structure.
    """
    leaves, structure = flatten(tree)
    rest = []
    for other in others:
        found = leaves_in(structure, other)
        if found is None:
            raise InputError(f"trees.map: the structures differ: {show(structure)} and {show(flatten(other)[1])}")
        rest.append(found)
    return unflatten(structure, [function(*group) for group in zip(leaves, *rest, strict=True)])


def paths(structure: Structure, root: str = "") -> list[str]:
    """For every leaf how to reach it from ``root``: ``params['W'][0]``."""
    if structure is None:
        return [root]
    _, keys, inside = structure
    return [
        path
        for key, child in zip(keys if isinstance(keys, tuple) else range(keys), inside, strict=True)
        for path in paths(child, f"{root}[{key!r}]")
    ]


def show(structure: Structure) -> str:
    """The structure as people write it, a leaf as ``*``: ``{'W': [*, *], 'b': *}``."""
    if structure is None:
        return "*"
    kind, keys, inside = structure
    items = [show(s) for s in inside]
    if issubclass(kind, dict):
        return "{" + ", ".join(f"{key!r}: {item}" for key, item in zip(keys, items, strict=True)) + "}"
    if issubclass(kind, list):
        return f"[{', '.join(items)}]"
    name = kind.__name__ if kind is not tuple else ""
    return f"{name}({', '.join(items)}{',' * (len(items) == 1 and not name)})"
