"""Layouts: what a class's own config can say of a smaller model, and so which groups have to keep equal parts.

With the layout ``stock`` only that is cut. Groups of alike places in all layers are asked about together, since a
config has one number for them; where that cannot be said either, with groups of other places, or of another kind that
has to shrink in proportion (heads and the width of the model, where a class divides one by the other). What is found
are ties, so that a budget is met under them, and the numbers of units that can be said, where not all can.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd, lcm
from typing import Any, Protocol

from graphprune.analysis.branch import Block
from graphprune.analysis.groups import Analysis, Group
from graphprune.analysis.ties import Tie
from graphprune.defaults import LAYOUT, LAYOUTS, STOCK
from graphprune.errors import OptionError, TargetError
from graphprune.ir.dims import Factor, resized
from graphprune.suggest import meant

FREE = LAYOUT
"""Every group keeps what is best for it, as with ``per-layer``; with ``stock``, what the class's config can say."""
SCALED = frozenset({"qk-dim", "rotary-pair"})
"""Kinds whose number scales the scores of an attention, in every class that computes it from the width of a head."""
HEADS = "its class would scale scores by the new width of a head"

_SAMPLED, _MOST_LEVELS = 5, 32
_STEPS = (1, 8, *(8 << i for i in range(1, 32)))
"""How many numbers of units are asked about to see whether all can be said; how many, or somewhat more, where they
cannot: then only multiples of a step."""

Sizes = Mapping[Factor, int]


class Asked(Protocol):
    """Says which shapes a config can say (:class:`graphprune.hosts.torch.checkpoints.asking.Asking`)."""

    reason: str
    """Why nothing can be said at all; empty if something can."""
    memo: dict[Any, Any]
    """What was found out by asking."""

    def why_not(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        gone: Iterable[str] = (),
        sizes: Iterable[tuple[int, int]] = (),
    ) -> str:
        """Why no config says such shapes; empty if one does."""

    def aims(self, wanted: Mapping[str, int]) -> Iterator[Any]:
        """What stored tensors become where the config says other values, as
        :class:`graphprune.planning.shape_target.Aim`.
        """


@dataclass(frozen=True)
class Sayable:
    """What can be said.

    Attributes:
        ties: The groups that must keep the same fraction.
        levels: By name of a group of a tie: the only numbers of units in common that may be left, from all.
        refused: By name of a group: why it stays whole.
    """

    ties: tuple[Tie, ...] = ()
    levels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def reason(self) -> str:
        """Why nothing can be cut, of one group; empty if there is none."""
        return next((f"'{name}': {reason}" for name, reason in self.refused.items()), "")


def is_bound(layout: str | None) -> bool:
    """Whether only what a config can say may be left."""
    return layout == STOCK


def require_layout(layout: str) -> None:
    """Refuses what is no layout.

    Raises:
        OptionError: There is none of this name.
    """
    if layout not in LAYOUTS:
        raise OptionError(f"unknown layout {meant(layout, LAYOUTS)}; expected one of {', '.join(LAYOUTS)}")


def asked_of(host: object) -> Asked:
    """What says which shapes a config of a model's class can say.

    Raises:
        OptionError: The model is no module with a config.
    """
    asked: Asked | None = getattr(host, "asking", None)
    reason = "an ONNX file has no config" if asked is None else asked.reason
    if asked is None or reason:
        raise OptionError(
            f"layout 'stock' keeps to what a config of the model's class can say, and {reason}; leave it out, or give "
            "the module of transformers itself"
        )
    return asked


def blocks_said(
    asked: Asked, analysis: Analysis, removed: Sequence[Block], ranked: Sequence[Block], count: int
) -> list[Block]:
    """Of blocks in order: the first so many that can go beside those that go already, so that a config says it."""
    found: list[Block] = []
    for block in ranked:
        if len(found) == count:
            break
        gone = analysis.branches.unneeded((*removed, *found, block)).tensors
        if not why_not(asked, analysis, {}, gone):
            found.append(block)
    if len(found) < min(count, len(ranked)) and ranked:
        gone = analysis.branches.unneeded((*removed, ranked[0])).tensors
        reason = why_not(asked, analysis, {}, gone) or "no more of them can be left out together"
        raise TargetError(
            f"layout 'stock' can leave out {len(found)} of the {count} {ranked[0].kind}s that are to go: {reason}; ask "
            "for layers in place of blocks, for fewer, or leave the layout out"
        )
    return found


def require_said(asked: Asked, analysis: Analysis, sizes: Sizes, removed: Sequence[Block]) -> None:
    """Refuses a plan of which no config says what is left.

    Raises:
        TargetError: There is none.
    """
    gone = analysis.branches.unneeded(removed).tensors if removed else ()
    if reason := why_not(asked, analysis, sizes, gone):
        raise TargetError(
            f"layout 'stock' cannot say what would be left: {reason}; take another target, or leave the layout out"
        )


def why_not(asked: Asked, analysis: Analysis, sizes: Sizes, gone: Iterable[str] = ()) -> str:
    """Why no config says what is left when factors keep so many units; empty if one does."""
    names = frozenset(gone)
    sizes = {factor: n for factor, n in sizes.items() if n != factor.size}
    shapes = {
        value.name: tuple(resized(dim, sizes) for dim in analysis.layouts[value.name])
        for value in analysis.graph.stored
        if value.name not in names
    }
    old = {value.name: value.shape for value in analysis.graph.stored}
    changed = {name: shape for name, shape in shapes.items() if shape != tuple(old[name])}
    return asked.why_not(changed, names, [(factor.size, n) for factor, n in sizes.items()])


def sayable(asked: Asked, analysis: Analysis, groups: Sequence[Group], ties: Sequence[Tie]) -> Sayable:
    """Which of some groups can be cut so that a config says what is left, and how.

    Args:
        asked: Answers what a config can say.
        analysis: The analysed model.
        groups: Those that may be cut.
        ties: Groups that must keep the same fraction anyway.
    """
    key = ("sayable", tuple(group.name for group in groups), tuple(group.name for tie in ties for group in tie.groups))
    if (before := asked.memo.get(key)) is not None:  # several allocations ask the same of one model
        made: Sayable = before
        return made
    found = _Classes(asked, analysis)
    chosen = {group.name for group in groups}
    found.refuse((group for tie in ties if tie.whole for group in tie.groups), "the model's code splits it evenly")
    classes: dict[object, list[Group]] = {}
    for item in _items(groups, ties):
        if any(group.name not in chosen for group in item):
            found.refuse(item, "what must keep as much of it may not be cut")
        elif any(group.kind == "unit" and len(group.sites) == 1 for group in item):
            found.refuse(item, "it may be a table of places, of which a longer input reads more")
        elif any(group.kind in SCALED for group in item):
            found.refuse(item, HEADS)
        else:
            classes.setdefault(_place(item), []).extend(item)
    rest = [each for each in map(tuple, classes.values()) if not found.add(each)]
    for alike in (lambda group: (group.kind, group.size), lambda group: group.kind):
        rest = found.together(rest, alike)
    found.proportional(rest)
    asked.memo[key] = Sayable(tuple(found.ties), found.levels, found.refused)
    return sayable(asked, analysis, groups, ties)


def _items(groups: Sequence[Group], ties: Sequence[Tie]) -> list[tuple[Group, ...]]:
    """Sets of groups that must keep the same fraction: those of ties, and single ones; held ones are left out."""
    held = {group.name for tie in ties if tie.whole for group in tie.groups}
    tied = {group.name: tie.groups for tie in ties if not tie.whole for group in tie.groups}
    found = dict.fromkeys(tied.get(group.name, (group,)) for group in groups if group.name not in held)
    return [item for item in found if held.isdisjoint(group.name for group in item)]


def _place(item: tuple[Group, ...]) -> object:
    """What alike places of all layers have in common."""
    return tuple((re.sub(r"\d+", "*", group.name), group.kind, group.size) for group in item)


class _Classes:
    """What has been found so far."""

    def __init__(self, asked: Asked, analysis: Analysis) -> None:
        self.asked, self.analysis = asked, analysis
        self.ties: list[Tie] = []
        self.levels: dict[str, tuple[int, ...]] = {}
        self.refused: dict[str, str] = {}

    def refuse(self, groups: Iterable[Group], reason: str) -> None:
        """Notes why groups stay whole."""
        for group in groups:
            self.refused.setdefault(group.name, reason)  # what is true of it alone is said first

    def add(self, groups: tuple[Group, ...]) -> bool:
        """Takes groups as one class, if what is left of them can be said."""
        tie = Tie(groups)
        every = _levels(tie)
        if not every:
            self.refuse(groups, "its groups have no common fraction")
            return False
        half = min(every, key=lambda n: abs(n - tie.size / 2))
        whole = self._multiples(tie, every)
        said = {n: self._reason(tie, n) for n in dict.fromkeys((half, every[0], *whole[:1]))}
        if not all(said.values()):
            sampled = [every[i * (len(every) - 1) // (_SAMPLED - 1)] for i in range(_SAMPLED)]
            said.update({n: self._reason(tie, n) for n in sampled if n not in said})
        if all(said.values()):
            self.refuse(groups, said[half])
            return False
        for group in groups:
            self.refused.pop(group.name, None)
        self.ties.append(tie)
        if any(said.values()):
            step = next(step for step in _STEPS if len(every) // step <= _MOST_LEVELS)
            near = [n for n in every if n % step == 0 or n in whole]
            right = [n for n in near if not (said[n] if n in said else self._reason(tie, n))]
            self.levels.update(dict.fromkeys((group.name for group in groups), (tie.size, *right)))
        return True

    def _multiples(self, tie: Tie, every: Sequence[int]) -> list[int]:
        """The numbers that are a multiple of what lies across: a config may say a ratio, and a whole one only."""
        values = self.analysis.graph.values
        across = {
            size for site in tie.groups[0].sites for i, size in enumerate(values[site.tensor].shape) if i != site.axis
        }
        return [n for n in every if any(1 < size <= n and n % size == 0 for size in across)]

    def _reason(self, tie: Tie, n: int) -> str:
        return why_not(self.asked, self.analysis, sizes_of(tie, n))

    def together(
        self, classes: Sequence[tuple[Group, ...]], alike: Callable[[Group], object]
    ) -> list[tuple[Group, ...]]:
        """Takes classes that cannot be said alone together where they are alike; returns what still cannot be said."""
        by_key: dict[object, list[tuple[Group, ...]]] = {}
        for each in classes:
            by_key.setdefault(alike(each[0]), []).append(each)
        left = []
        for members in by_key.values():
            if len(members) == 1 or not self.add(tuple(group for each in members for group in each)):
                left.extend(members)
        return left

    def proportional(self, classes: Sequence[tuple[Group, ...]]) -> None:
        """Takes two classes that can only be said with each other, in proportion."""
        left = list(classes)
        while left:
            first = left.pop(0)
            others = [
                each for each in left if each[0].kind != first[0].kind and "width" in (first[0].kind, each[0].kind)
            ]
            partner = next((each for each in others if self.add((*first, *each))), None)
            if partner is not None:
                left.remove(partner)


def sizes_of(tie: Tie, n: int) -> dict[Factor, int]:
    """The units that the groups of a tie keep where ``n`` in common are left."""
    return {group.factor: group.size // tie.size * n for group in tie.groups}


def _levels(tie: Tie) -> list[int]:
    """The numbers of units in common that may be left of a tie, falling."""
    step = 1
    least = 1
    for group in tie.groups:
        weight = group.size // tie.size
        step = lcm(step, group.multiple // gcd(group.multiple, weight))
        least = max(least, -(-group.minimum // weight))
    return list(range(tie.size - step, least - 1, -step))
