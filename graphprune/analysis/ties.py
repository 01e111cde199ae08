"""Groups that must keep equal parts: the pieces of an axis that the user's code takes apart evenly.

A graph has the size of every piece written down, so the pieces of a split may lose different numbers of units. Code as
``x.chunk(2, 1)`` or ``x[:, : x.shape[1] // 2]`` takes equal pieces whatever the axis: a module can be pruned in place
only if the pieces stay equal. This is read off the rules: an operand's axis that is a sum, of which results are parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import reduce
from math import gcd

from graphprune.analysis.groups import Analysis, Group
from graphprune.ir.dims import Dim, Factor, Product, Sum, factors_of
from graphprune.ir.graph import Node

FEW = 4
"""A lone slice is taken for a piece of an even split if it is at least this part (one in so many) of its axis."""


@dataclass(frozen=True, eq=False)
class Tie:
    """Groups of which the same fraction must be kept.

    Attributes:
        groups: The groups, in the order of the analysis.
        whole: Whether they must stay whole: their counterpart does, or their sizes have no common divisor.
    """

    groups: tuple[Group, ...]
    whole: bool = False

    @property
    def size(self) -> int:
        """How many units there are in common: each stands for as many of every group as its size is a multiple."""
        return reduce(gcd, (group.size for group in self.groups))


def find_ties(analysis: Analysis, made: AbstractSet[str] = frozenset()) -> tuple[Tie, ...]:
    """The ties of a graph: for each set of pieces that are equal in size, of which the groups must keep as much.

    Args:
        analysis: The analysed graph.
        made: Names of stored tensors that the code makes anew, of a size that is written in it; they stay whole.
    """
    pairs = _Pairs()
    for name in made & analysis.layouts.keys():
        for dim in analysis.layouts[name]:
            pairs.hold(factors_of(dim))
    for node in analysis.graph.nodes:
        for pieces in _pieces(node):
            first, *others = (analysis.resolve(node, piece) for piece in pieces)
            for other in others:
                pairs.align(first, other)
    found = []
    for members in pairs.classes():
        groups = tuple(group for group in analysis.groups if group.factor in members)
        whole = len(groups) < len(members) or bool(pairs.held & members) or Tie(groups).size == 1
        if groups and (whole or len(groups) > 1):
            found.append(Tie(groups, whole))
    return tuple(found)


def _pieces(node: Node) -> Iterator[Sequence[Dim]]:
    """Sets of pieces that a node takes off an axis and that should stay as they are in proportion."""
    rule = node.rule
    if rule is None:
        return
    taken = {dim for result in rule.results if result is not None for dim in result}
    for operand in rule.operands:
        for dim in operand or ():
            if not isinstance(dim, Sum) or not taken.intersection(dim.parts):
                continue
            if len(rule.results) > 1:
                by_size: dict[int, list[Dim]] = {}
                for part in dict.fromkeys(dim.parts):
                    by_size.setdefault(part.size, []).append(part)
                yield from (parts for parts in by_size.values() if len(parts) > 1)
                continue
            piece = next(part for part in dim.parts if part in taken)
            if dim.size <= FEW * piece.size and all(part.size % piece.size == 0 for part in dim.parts):
                yield tuple(dict.fromkeys(dim.parts))


class _Pairs:
    """Sets of factors that are tied, grown pair by pair; ``held`` are those that must stay whole."""

    def __init__(self) -> None:
        self._class: dict[Factor, set[Factor]] = {}
        self.held: set[Factor] = set()

    def classes(self) -> Iterator[set[Factor]]:
        """The sets, without repetition."""
        return iter({id(members): members for members in self._class.values()}.values())

    def hold(self, factors: Iterable[Factor]) -> None:
        """Notes factors that must stay whole."""
        for factor in factors:
            self.held.add(factor)
            self._class.setdefault(factor, {factor})

    def align(self, a: Dim, b: Dim) -> None:
        """Ties what lies at the same places of two dimensions, or all of them where they are built differently."""
        if a is b or a == b:
            return
        if isinstance(a, Product) and isinstance(b, Product) and _sizes(a.parts) == _sizes(b.parts):
            for x, y in zip(a.parts, b.parts, strict=True):
                self.align(x, y)
            return
        segments = list(_segments(_parts(a), _parts(b)))
        if a.size == b.size and len(segments) > 1:
            for left, right in segments:
                if len(left) == len(right) == 1:
                    self.align(left[0], right[0])
                else:
                    self._join((*left, *right))
            return
        self._join((*_parts(a), *_parts(b)))

    def _join(self, dims: Iterable[Dim]) -> None:
        """Ties the major factors of some dimensions; minor ones must stay whole, which keeps sizes in proportion."""
        members: set[Factor] = set()
        for dim in dims:
            major, *minors = dim.parts if isinstance(dim, Product) and dim.parts else (dim,)
            members.update(factors_of(major))
            self.hold(factor for part in minors for factor in factors_of(part))
        for factor in tuple(members):
            members |= self._class.get(factor, set())
        for factor in members:
            self._class[factor] = members


def _parts(dim: Dim) -> tuple[Dim, ...]:
    return dim.parts if isinstance(dim, Sum) else (dim,)


def _sizes(dims: Iterable[Dim]) -> list[int]:
    return [dim.size for dim in dims]


def _segments(a: Sequence[Dim], b: Sequence[Dim]) -> Iterator[tuple[list[Dim], list[Dim]]]:
    """The shortest runs of parts of both sides that end at a common boundary."""
    x: list[Dim] = []
    y: list[Dim] = []
    left, right = list(reversed(a)), list(reversed(b))
    while left or right:
        if left and (sum(_sizes(x)) <= sum(_sizes(y)) or not right):
            x.append(left.pop())
        else:
            y.append(right.pop())
        if sum(_sizes(x)) == sum(_sizes(y)):
            yield x, y
            x, y = [], []
    if x or y:
        yield x, y
