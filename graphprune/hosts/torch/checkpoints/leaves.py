"""The values of a config that may say a size, and what they may have become.

A *leaf* is a number, a list or nothing at a place of a config's dictionary, parts of it included. A *move* changes one
or a few of them. What a number became is guessed from sizes that have changed: it was one of them, or is in proportion.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

Leaf = tuple[str | int, ...]
"""Keys and places that lead to a value."""
Move = dict[Leaf, Any]
"""New values by leaf."""
Pair = tuple[int, int]
"""A size and what became of it."""

_APART = frozenset({"transformers_version", "_name_or_path", "id2label", "label2id", "dtype", "architectures"})
"""Keys of a config that say nothing of shapes."""


def leaves(data: Mapping[str, Any]) -> Iterator[tuple[Leaf, Any]]:
    """All values of a config that are no dictionaries; a list itself, then what it holds."""
    stack: list[tuple[Leaf, Any]] = [
        ((key,), value) for key, value in reversed(list(data.items())) if key not in _APART
    ]
    while stack:
        leaf, value = stack.pop()
        if isinstance(value, Mapping):
            stack.extend(((*leaf, key), each) for key, each in reversed(list(value.items())) if key not in _APART)
            continue
        yield leaf, value
        if type(value) in (list, tuple):
            stack.extend(((*leaf, i), each) for i, each in reversed(tuple(enumerate(value))))


def changed(data: Mapping[str, Any], move: Move) -> dict[str, Any]:
    """A copy of a config's dictionary with other values; whole lists are set before what they hold."""
    found = copy.deepcopy(dict(data))
    for leaf in sorted(move, key=len):
        keeper: Any = found
        for key in leaf[:-1]:
            if type(keeper[key]) is tuple:
                keeper[key] = list(keeper[key])
            keeper = keeper[key]
        keeper[leaf[-1]] = copy.deepcopy(move[leaf])
    return found


def exact_moves(data: Mapping[str, Any], pairs: Sequence[Pair]) -> list[Move]:
    """Each whole number that equals a size that has changed becomes what that became."""
    return _distinct(
        {leaf: new} for leaf, value in leaves(data) if type(value) is int for old, new in pairs if old == value
    )


def scaled_moves(data: Mapping[str, Any], pairs: Sequence[Pair]) -> list[Move]:
    """Each whole number changes in proportion to a size that has changed, where it stays whole."""
    return _distinct(
        {leaf: value * new // old}
        for leaf, value in leaves(data)
        if type(value) is int
        for old, new in pairs
        if old != value and value * new % old == 0 and value * new
    )


def distant_moves(data: Mapping[str, Any], pairs: Sequence[Pair], common: Collection[str] = ()) -> list[Move]:
    """What is less likely: numbers that are not given, ratios, and differences.

    Args:
        data: The config's dictionary.
        pairs: Sizes that have changed.
        common: Keys that the configs of all models have, which say no sizes.
    """
    sizes = list(dict.fromkeys(new for _, new in pairs))
    found: list[Move] = []
    for leaf, value in leaves(data):
        if leaf[-1] in common or str(leaf[-1]).endswith("_token_id"):
            continue
        if value is None:
            found.extend({leaf: size} for size in sizes)
        elif type(value) is float and value:
            ratios = [value * one / other for a, b in pairs for one, other in ((b, a), (a, b))]
            found.extend({leaf: ratio} for ratio in dict.fromkeys(ratios) if ratio != value)
        elif type(value) is int:
            found.extend({leaf: value + b - a} for a, b in pairs if a > value > a - b and value + b - a > 0)
    return _distinct(found)


def switch_moves(data: Mapping[str, Any]) -> list[Move]:
    """What is there or is not: each switch turned."""
    return [{leaf: not value} for leaf, value in leaves(data) if type(value) is bool]


def depth_moves(data: Mapping[str, Any], gone: Sequence[int], depth: int) -> list[Move]:
    """What a config may say where some of its layers are gone: their number, with all that lists them.

    Args:
        data: The config's dictionary.
        gone: The places of the layers that are gone.
        depth: How many there were.
    """
    held = dict(leaves(data))
    left = [i for i in range(depth) if i not in gone]
    counts = [leaf for leaf, value in held.items() if type(value) is int and value == depth and type(leaf[-1]) is str]
    found: list[Move] = []
    for count in counts:
        beside = {leaf: value for leaf, value in held.items() if leaf[:-1] == count[:-1] and type(value) is list}
        told = {leaf: [value[i] for i in left] for leaf, value in beside.items() if len(value) == depth}
        runs = {leaf: written for leaf, value in beside.items() if (written := _runs_without(value, left, depth))}
        places = {leaf: _renumbered(value, left) for leaf, value in beside.items() if _are_places(value, depth)}
        ends = {leaf: written for leaf, value in beside.items() if (written := _ending(value, len(left), depth))}
        for more in ({**told, **runs, **places}, {**told, **runs}, {**told, **places}, told, {**told, **ends}, {}):
            found.append({count: len(left), **more})
    for leaf, value in held.items():  # how many of the first or last layers are of a kind
        if type(value) is int and 0 < value <= depth and type(leaf[-1]) is str:
            first, last = sum(i < value for i in left), sum(i >= depth - value for i in left)
            found.extend({leaf: n} for n in dict.fromkeys((first, last)) if n != value)
        elif type(value) is list and len(value) == depth:
            found.append({leaf: [value[i] for i in left]})
        elif _are_places(value, depth):
            found.append({leaf: _renumbered(value, left)})
    return _distinct(found)


def _ending(value: Any, left: int, depth: int) -> list[Any] | None:
    """A list that counts layers from one, or names the last one: without what lies behind the new last one.

    Example:
        >>> _ending(["stem", "stage1", "stage2", "stage3"], 2, 3), _ending(["stage3"], 2, 3), _ending([3], 2, 3)
        (['stem', 'stage1', 'stage2'], ['stage2'], [2])
    """
    if type(value) is not list or not value or _last(value[-1]) != depth:
        return None
    if len(value) > depth:
        return value[: len(value) - depth + left]
    last = str(value[-1])
    ended = f"{last[: len(last) - len(str(depth))]}{left}"
    return [*value[:-1], int(ended) if type(value[-1]) is int else ended]


def _last(value: Any) -> int:
    """The number that a text ends in, or a number itself; -1 where there is none."""
    digits = re.search(r"\d+$", str(value)) if type(value) in (int, str) else None
    return int(digits[0]) if digits else -1


def _are_places(value: Any, depth: int) -> bool:
    """Whether a list may name layers by their places."""
    whole = type(value) is list and bool(value) and all(type(each) is int for each in value)
    return whole and len(set(value)) == len(value) and all(0 <= each < depth for each in value)


def _renumbered(places: Sequence[int], left: Sequence[int]) -> list[int]:
    """Places of layers once only some are left."""
    return [left.index(each) for each in places if each in left]


def _runs_without(value: Any, left: Sequence[int], depth: int) -> list[Any] | None:
    """Pairs of a pattern and how often it is repeated, written out for the layers that are left.

    Example:
        >>> _runs_without([[["global", "local"], 2]], [0, 1, 3], 4)
        [[['global'], 1], [['local'], 1], [['local'], 1]]
    """
    runs = (
        type(value) is list
        and value
        and all(
            type(each) is list and len(each) == 2 and type(each[0]) is list and type(each[1]) is int for each in value
        )
    )
    if not runs:
        return None
    every = [each for pattern, times in value for _ in range(times) for each in pattern]
    return [[[every[i]], 1] for i in left] if len(every) == depth else None


def _distinct(moves: Iterable[Move]) -> list[Move]:
    found: list[Move] = []
    for move in moves:
        if move not in found:
            found.append(move)
    return found
