"""Which config builds a pruned module: found by trying, from the sizes that have changed.

Coordinate by coordinate: of all moves of one value the one that leaves the fewest tensors of another shape is taken,
two at once where one alone is refused or does not help, until none is left that differs. A constant that the class
would compute anew (the scale of scores, a table of frequencies) counts as a difference as well. What the shapes do not
tell (of which kind a layer is) is told by plain attributes of what was built, which are to be those of the original's
parts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, NamedTuple

from torch import nn

from graphprune.hosts.torch.checkpoints.implied import implied_values
from graphprune.hosts.torch.checkpoints.leaves import (
    Leaf,
    Move,
    Pair,
    changed,
    depth_moves,
    distant_moves,
    exact_moves,
    leaves,
    scaled_moves,
    switch_moves,
)
from graphprune.hosts.torch.checkpoints.renumber import Renumbering
from graphprune.hosts.torch.checkpoints.twins import Shapes, Twin, common_keys, facts_of, shapes_of

MOST_BUILDS = 600
"""Configs that are tried for one module."""
_FAR = 4
"""What counts as much as so many axes of other sizes: a tensor too many, a constant or table that is computed anew."""
_TORN = 4
"""So many widths in alike places are counted against the numbers that could say them."""
_MOST_PAIRS = 24
"""Moves that are tried two at once."""


@dataclass(frozen=True)
class Statement:
    """A config that says a module's shape.

    Attributes:
        data: The config as a dictionary.
        changes: For each value that differs: what it was, and is now.
        before: The class built from the original's config.
        after: The class built from this one.
    """

    data: Mapping[str, Any] = field(repr=False)
    changes: Mapping[Leaf, tuple[Any, Any]]
    before: Twin = field(repr=False)
    after: Twin = field(repr=False)


class Rate(NamedTuple):
    """How far a config is from what is wanted; smaller is better.

    Attributes:
        shapes: Axes of tensors that differ, and what counts like them.
        facts: Plain attributes that differ from those of the original's parts.
    """

    shapes: int
    facts: int


@dataclass(frozen=True)
class Wanted:
    """What is to be built.

    Attributes:
        shapes: Of the state dict.
        pairs: Sizes that have changed, the most frequent first.
        renumbering: What became of modules in lists.
    """

    shapes: Shapes
    pairs: tuple[Pair, ...]
    renumbering: Renumbering = field(default=Renumbering())


def pairs_of(old: Shapes, new: Shapes, more: Iterable[Pair] = ()) -> tuple[Pair, ...]:
    """Sizes that differ between tensors of the same names, and others; the most frequent first."""
    found = Counter(
        (a, b)
        for name, shape in old.items()
        if name in new and len(new[name]) == len(shape)
        for a, b in zip(shape, new[name], strict=True)
        if a != b
    )
    found.update(pair for pair in more if pair[0] != pair[1])
    return tuple(pair for pair, _ in found.most_common())


@dataclass(frozen=True)
class Base:
    """A configured module as it is before it is pruned.

    Attributes:
        source: The module.
        data: Its config as a dictionary.
        twin: The class built from it.
        shapes: Of the module's state dict.
        common: Keys that the configs of all models have.
    """

    source: nn.Module
    data: dict[str, Any] = field(repr=False)
    twin: Twin = field(repr=False)
    shapes: Shapes = field(repr=False)
    common: frozenset[str] = frozenset()

    @classmethod
    def of(cls, source: nn.Module) -> tuple[Base | None, str]:
        """What a module is, or why its config does not even say what it is now."""
        config: Any = vars(source)["config"]
        data = dict(config.to_dict())
        twin, shapes = Twin.of(type(source), data, config), shapes_of(source)
        if twin is None:
            return None, f"'{type(source).__name__}' cannot be built from its config"
        if off := _unlike(shapes, twin.shapes):
            return None, f"'{type(source).__name__}' is not what its config says even before it is pruned: {off}"
        for key, value in implied_values(data).items():
            other = Twin.of(type(source), {**data, key: 2 * value}, config)
            stated = Twin.of(type(source), {**data, key: value}, config)
            if other is not None and other.shapes != shapes and stated is not None and stated.shapes == shapes:
                data, twin = {**data, key: value}, stated  # the class reads it, and it stays what it is
        return cls(source, data, twin, shapes, common_keys(config)), ""


def torn(base: Base, old: Shapes, new: Shapes) -> str:
    """Why no config can say some shapes, where counting tells; else empty.

    Tensors in alike places (``layers.*.mlp.up.weight``) that were equal and have more widths now than there are numbers
    in the config on which these widths depend, as trying each of them shows.

    Args:
        base: The module before.
        old: The shapes before, under the names that their tensors have now.
        new: Those that are wanted.
    """
    alike: dict[tuple[str, int, int], dict[int, str]] = {}
    for name, shape in old.items():
        for axis, (a, b) in enumerate(zip(shape, new.get(name, ()), strict=False)):
            alike.setdefault((re.sub(r"\d+", "*", name), axis, a), {}).setdefault(b, name)
    if not alike:
        return ""
    (pattern, axis, size), widths = max(alike.items(), key=lambda item: len(item[1]))
    if len(widths) < _TORN:
        return ""
    depends = 0
    for leaf, value in leaves(base.data):
        if type(value) is int and value > 1 and (size % value == 0 or value % size == 0):
            twin = Twin.of(type(base.source), changed(base.data, {leaf: 2 * value}), vars(base.source)["config"])
            shapes = {} if twin is None else twin.shapes
            same = any(re.sub(r"\d+", "*", name) == pattern and shape[axis] == size for name, shape in shapes.items())
            depends += not same
    if len(widths) <= depends:
        return ""
    (b, one), (c, other), *_ = widths.items()
    return f"'{one}' and '{other}' had {size} units and have {b} and {c}, which no number of its config says apart"


def find_statement(
    base: Base,
    wanted: Wanted,
    *,
    most: int = MOST_BUILDS,
    twice: bool = True,
    among: frozenset[Leaf] | None = None,
) -> tuple[Statement | None, str]:
    """The config with which a module's class builds what is wanted.

    Args:
        base: The module before.
        wanted: What is to be built.
        most: How many configs are tried.
        twice: Whether two values are tried at once.
        among: The only values that may change, if they are known.

    Returns:
        Also why there is none, or nothing.
    """
    return _Search(base, wanted, most, twice, among).run()


@dataclass
class _Search:
    base: Base
    wanted: Wanted
    left: int
    twice: bool
    among: frozenset[Leaf] | None

    def __post_init__(self) -> None:
        self.facts = {  # of what stays, under the names that it has then
            (self.wanted.renumbering.new(path), name): value
            for (path, name), value in facts_of(self.base.twin.module).items()
            if not self.wanted.renumbering.is_gone(path)
        }
        self.passing = {
            self.wanted.renumbering.new(name): shape
            for name, shape in self.base.twin.passing.items()
            if not self.wanted.renumbering.is_gone(name)
        }
        self.rates: dict[str, Rate | None] = {}

    def run(self) -> tuple[Statement | None, str]:
        """The statement, or why there is none."""
        renumbering, pairs = self.wanted.renumbering, self.wanted.pairs
        deep = [move for gone, depth in renumbering.lists for move in depth_moves(self.base.data, gone, depth)]
        move: Move = {}
        rate, moves = self.rate(move), self.sought(deep)
        for tier in (exact_moves, scaled_moves, self.distant):  # the likelier ones first
            moves = [*moves, *self.sought(tier(self.base.data, pairs))]
            move, rate = self.descend(move, rate, moves)
            if rate is not None and rate.shapes == 0:
                break
        if rate is None or rate.shapes:
            return None, self.off(move)
        if deep:
            move, rate = self.descend(move, rate, self.sought(deep))
            assert rate is not None
        move = self.shrunk(move, rate)
        after = self.built(move)
        if after is None:
            return None, self.off(move)
        held = dict(leaves(self.base.data))
        whole = [leaf for leaf in move if not any(leaf[: len(other)] == other for other in move if other != leaf)]
        return Statement(
            changed(self.base.data, move), {leaf: (held[leaf], move[leaf]) for leaf in whole}, self.base.twin, after
        ), ""

    def distant(self, data: Mapping[str, Any], pairs: Sequence[Pair]) -> list[Move]:
        """What is less likely; switches only where there are other tensors than there were."""
        others = self.wanted.shapes.keys() != self.base.shapes.keys()
        return [*distant_moves(data, pairs, self.base.common), *(switch_moves(data) if others else ())]

    def sought(self, moves: list[Move]) -> list[Move]:
        """Those moves that may be made."""
        return moves if self.among is None else [move for move in moves if self.among.issuperset(move)]

    def built(self, move: Move) -> Twin | None:
        """What the class makes of the config with a move made."""
        return Twin.of(type(self.base.source), changed(self.base.data, move), vars(self.base.source)["config"])

    def rate(self, move: Move) -> Rate | None:
        """How far what is built is from what is wanted; ``None`` where nothing can be built."""
        key = repr(sorted(move.items(), key=repr))
        if key not in self.rates:
            self.left -= 1
            twin = self.built(move) if self.left >= 0 else None
            self.rates[key] = None if twin is None else self._rate(twin, move)
        return self.rates[key]

    def _rate(self, twin: Twin, move: Move) -> Rate:
        old, new = self.wanted.shapes, twin.shapes
        off = len(old.keys() ^ new.keys()) * _FAR
        off += sum(_differing(shape, new[name]) for name, shape in old.items() if name in new)
        facts, said = facts_of(twin.module), [value for value in move.values() if type(value) is float]
        differing = [key for key, value in self.facts.items() if key in facts and facts[key] != value]
        constants = [key for key in differing if type(facts[key]) is float and facts[key] not in said]
        tables = sum(twin.passing.get(name, shape) != shape for name, shape in self.passing.items())
        return Rate(off + _FAR * (len(constants) + tables), len(differing))

    def descend(self, move: Move, rate: Rate | None, moves: Sequence[Move]) -> tuple[Move, Rate | None]:
        """The best that is reached by one move after the other, or by two at once."""
        while self.left > 0 and (rate is None or rate > (0, 0)):
            rated = [(self.rate({**move, **each}), {**move, **each}) for each in moves]
            better = [(found, each) for found, each in rated if found is not None and (rate is None or found < rate)]
            if not better and (rate is None or (rate.shapes and self.twice)):
                few = moves[:_MOST_PAIRS]
                tried = ({**move, **one, **other} for one, other in combinations(few, 2) if one.keys() != other.keys())
                better = [
                    (found, each)
                    for each in tried
                    if (found := self.rate(each)) is not None and (rate is None or found < rate)
                ]
            if not better:
                break
            rate, move = min(better, key=lambda pair: (pair[0], len(pair[1])))
        return move, rate

    def shrunk(self, move: Move, rate: Rate) -> Move:
        """What is left of a move when all that changes nothing is taken back."""
        for leaf in tuple(move):
            smaller = {other: value for other, value in move.items() if other != leaf}
            found = self.rate(smaller)
            if found is not None and found <= rate:
                move = smaller
        return move

    def computed(self, twin: Twin, move: Move) -> str:
        """A constant that the class computes anew, and which would not be what it was; empty if there is none."""
        facts, said = facts_of(twin.module), [value for value in move.values() if type(value) is float]
        for (path, name), value in self.facts.items():
            now = facts.get((path, name), value)
            if now != value and type(now) is float and now not in said:
                return f"its class computes '{path}.{name}' from sizes, and {value:.4g} would become {now:.4g}"
        return ""

    def off(self, move: Move) -> str:
        """A sentence on what no config was found to say."""
        twin = self.built(move)
        off = "" if twin is None else _unlike(self.wanted.shapes, twin.shapes) or self.computed(twin, move)
        return (
            f"no config of '{type(self.base.source).__name__}' was found that says its shape{f': {off}' if off else ''}"
        )


def _differing(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """On how many axes two shapes differ."""
    if len(one) != len(other):
        return _FAR
    return sum(a != b for a, b in zip(one, other, strict=True))


def _unlike(wanted: Shapes, got: Shapes) -> str:
    """The first tensor whose shape is not what is wanted, in words; empty if there is none."""
    for name, shape in wanted.items():
        if name not in got:
            return f"it would have no '{name}'"
        if got[name] != shape:
            return f"'{name}' would be {list(got[name])}, not {list(shape)}"
    return next((f"it would have a '{name}', too" for name in got if name not in wanted), "")
