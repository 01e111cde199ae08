"""Sharing a budget among groups.

Every allocation is an order of *moves*. A move takes one group one alignment step down, always removing its least
important units first. The order says which move comes first, the budget says how many are made: the shortest prefix
that meets the target, after which the last moves are taken back as long as the target still holds. The result is
therefore within one alignment step of the target, whatever the order; where that is a large one,
:mod:`graphprune.planning.fill` looks for a finer mix.

- ``uniform``: the move that leaves its group with the largest fraction goes first, so that all shrink alike. Groups of
  the same signature make their moves together, and so keep equally many units.
- ``global``: the move that removes the least important units goes first (scores normalised by the group's mean).
- ``zscore``: as ``global``, with scores as distances from the group's mean in standard deviations, so that groups whose
  units are alike are left alone (FLAP; docs/methods.md, Ranking across groups).
- ``log-ramp``: as ``uniform``, but the l-th of L groups of a kind loses ``1 + log(1+l)/log(L)`` times as much of its
  units as the first (l = 0), since early errors accumulate (after SlimGPT; docs/methods.md, Allocation).
- ``isomorphic``: groups of the same signature (kind, size, roles) form a class; classes shrink alike, and inside a
  class the least important units go first (Isomorphic Pruning, ECCV 2024; docs/methods.md, Ranking across groups).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, gcd, lcm, log, log1p

import numpy as np
from numpy.typing import NDArray

from graphprune.analysis.groups import Group, multiplicity
from graphprune.defaults import ALIGN, MAX_RATIO, MIN_UNITS
from graphprune.errors import OptionError, TargetError
from graphprune.planning.cost import METRICS, CostModel
from graphprune.planning.target import Target

Counts = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Limits:
    """What allocation may do to a group.

    Attributes:
        align: Widths (positions on an axis) stay multiples of this where the width allows.
        min_units: At least so many units stay in every group.
        max_ratio: At most this fraction of a group's units is removed.
        floors: By name of a group, at least so many units stay in it.
        levels: By name of a group, the only numbers of units that may stay in it.
    """

    align: int = ALIGN
    min_units: int = MIN_UNITS
    max_ratio: float = MAX_RATIO
    floors: Mapping[str, int] = field(default_factory=dict)
    levels: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.align < 1:
            raise OptionError(f"align is {self.align}; expected 1 or more")
        if self.min_units < 1:
            raise OptionError(f"min_units is {self.min_units}; expected 1 or more")
        if not 0 < self.max_ratio <= 1:
            raise OptionError(f"max_ratio is {self.max_ratio}; expected a fraction above 0 and at most 1")


@dataclass(frozen=True, eq=False)
class _Moves:
    """All moves of some groups, first to last: for each, its group and how many units it removes.

    Attributes:
        group: The index of the group.
        removed: How many units go.
        turn: Counts up from 0; moves of the same turn are made together. Of each group there is one at most.
    """

    group: NDArray[np.int64]
    removed: NDArray[np.int64]
    turn: NDArray[np.int64]

    @property
    def n_turns(self) -> int:
        """How many turns there are."""
        return int(self.turn[-1]) + 1 if len(self.turn) else 0

    def counts(self, full: Counts, n: int) -> Counts:
        """The units kept after the first ``n`` turns."""
        counts = full.copy()
        end = int(np.searchsorted(self.turn, n))
        np.subtract.at(counts, self.group[:end], self.removed[:end])
        return counts


def step_of(group: Group, align: int) -> int:
    """How many units are removed together so that every axis stays a multiple of ``align`` where the width allows.

    A head of 64 positions is aligned by itself; 24 channels go in steps of 8; 12 channels in steps of 4, since two
    steps must fit.
    """
    widths = {multiplicity(dim, group.factor) for dim in {site.dim for site in group.sites}}
    step = align // gcd(align, gcd(*widths))
    while step > 1 and group.size < 2 * step:
        step = step // 2 if step % 2 == 0 else 1
    return lcm(step, group.multiple)


def levels_of(group: Group, limits: Limits) -> list[int]:
    """The numbers of units that a group may keep, falling from all of them."""
    step = step_of(group, limits.align)
    least = ceil(group.size * (1 - limits.max_ratio) - 1e-9)
    floor = max(limits.min_units, group.minimum, least, limits.floors.get(group.name, 1), 1)
    if (only := limits.levels.get(group.name)) is not None:
        whole = [n for n in only if floor <= n < group.size]  # of these, aligned ones where there are any
        return [group.size, *sorted([n for n in whole if n % step == 0] or whole, reverse=True)]
    first = (group.size - 1) // step * step if group.multiple == 1 else group.size - step
    return [group.size, *range(first, max(floor, step) - 1, -step)] if floor < group.size else [group.size]


def allocate(
    model: CostModel,
    scores: Mapping[str, NDArray[np.float64]],
    targets: Sequence[Target],
    *,
    allocation: str,
    limits: Limits,
    allowed: frozenset[str],
    original: CostModel | None = None,
) -> Counts:
    """How many units of each group are kept so that every target is met.

    Args:
        model: The cost model; its groups order the result.
        scores: Normalised scores of every allowed group, by name.
        targets: What must remain at most.
        allocation: One of :data:`ORDERS`.
        limits: Alignment, floors and ceilings.
        allowed: The names of the groups that may be pruned.
        original: The costs that fractions are of, where ``model`` has lost blocks already.

    Returns:
        One count for each group of the model.

    Raises:
        OptionError: The allocation is unknown.
        TargetError: A target cannot be met with the allowed groups within the limits.
    """
    original = original or model
    bounds = [(target, target.limit(original.cost(target.metric))) for target in targets]

    def met(counts: Counts) -> bool:
        return all(model.cost(target.metric, counts) <= limit * (1 + 1e-9) for target, limit in bounds)

    moves = ORDERS[allocation](_schedules(model, scores, limits, allowed))
    if not met(moves.counts(model.full, moves.n_turns)):
        raise TargetError(shortfall(model, bounds, moves.counts(model.full, moves.n_turns), original))
    low, high = 0, moves.n_turns
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if met(moves.counts(model.full, middle)) else (middle + 1, high)
    return _give_back(moves, moves.counts(model.full, low), low, met)


def _give_back(moves: _Moves, counts: Counts, n: int, met: Callable[[Counts], bool]) -> Counts:
    """Takes back the latest turns that are not needed; of each group only its last moves can be."""
    closed: set[int] = set()
    starts = np.searchsorted(moves.turn, np.arange(n + 1))
    for first, end in zip(starts[:-1][::-1], starts[1:][::-1], strict=True):
        groups, removed = moves.group[first:end], moves.removed[first:end]
        if not closed.isdisjoint(groups.tolist()):
            continue
        counts[groups] += removed
        if not met(counts):
            counts[groups] -= removed
            closed.update(groups.tolist())
    return counts


def shortfall(
    model: CostModel, bounds: Sequence[tuple[Target, float]], lowest: Counts, original: CostModel | None = None
) -> str:
    """Says which bounds the lowest possible counts do not meet, of what ``original`` costs (or ``model``)."""
    original = original or model
    parts = []
    for target, limit in bounds:
        reached, full = model.cost(target.metric, lowest), original.cost(target.metric)
        if reached > limit:
            parts.append(
                f"target '{target}' cannot be met: at least {_number(reached)} of {_number(full)} "
                f"{METRICS[target.metric]} ({reached / full:.1%}) remain, {_number(limit)} are allowed"
            )
    return "; ".join(parts)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 or value == round(value) else f"{value:,.3g}"


@dataclass(frozen=True, eq=False)
class _Schedule:
    """The moves of one group, first to last."""

    index: int
    group: Group
    removed: NDArray[np.int64]
    fraction: NDArray[np.float64]
    score: NDArray[np.float64]
    zscore: NDArray[np.float64]


def _schedules(
    model: CostModel, scores: Mapping[str, NDArray[np.float64]], limits: Limits, allowed: frozenset[str]
) -> list[_Schedule]:
    schedules = []
    for index, group in enumerate(model.groups):
        levels = np.array(levels_of(group, limits)) if group.name in allowed else np.array([group.size])
        if len(levels) < 2:
            continue
        totals = np.concatenate([[0.0], np.cumsum(np.sort(scores[group.name]))])
        gone = group.size - levels
        removed = np.diff(gone)
        mean = np.diff(totals[gone]) / removed
        own = scores[group.name]
        zscore = (mean - own.mean()) / max(float(own.std()), 1e-12 * max(1.0, float(np.abs(own).max())))
        schedules.append(_Schedule(index, group, removed, gone[1:] / group.size, mean, zscore))
    return schedules


def _ordered(
    schedules: Sequence[_Schedule], keys: Sequence[NDArray[np.float64]], classes: Sequence[int] | None = None
) -> _Moves:
    """The moves of all schedules in the order of their keys, which rise within each schedule.

    Args:
        schedules: The schedules.
        keys: For each schedule, the keys of its moves.
        classes: For each schedule, its class: moves of one class with the same key are made together.
    """
    if not schedules:
        return _Moves(*(np.zeros(0, np.int64) for _ in range(3)))
    lengths = [len(schedule.removed) for schedule in schedules]
    group = np.repeat([schedule.index for schedule in schedules], lengths)
    removed = np.concatenate([schedule.removed for schedule in schedules])
    key = np.concatenate(keys)
    if classes is None:
        order = np.argsort(key, kind="stable")
        return _Moves(group[order], removed[order], np.arange(len(order)))
    family = np.repeat(classes, lengths)
    order = np.lexsort((family, key))
    new = (np.diff(key[order]) > 0) | (np.diff(family[order]) != 0)
    return _Moves(group[order], removed[order], np.concatenate([[0], np.cumsum(new)]))


def _uniform(schedules: Sequence[_Schedule]) -> _Moves:
    numbers: dict[object, int] = {}
    classes = [numbers.setdefault(signature(schedule.group), len(numbers)) for schedule in schedules]
    return _ordered(schedules, [schedule.fraction for schedule in schedules], classes)


def _global(schedules: Sequence[_Schedule]) -> _Moves:
    return _ordered(schedules, [schedule.score for schedule in schedules])


def _zscore(schedules: Sequence[_Schedule]) -> _Moves:
    return _ordered(schedules, [schedule.zscore for schedule in schedules])


def _log_ramp(schedules: Sequence[_Schedule]) -> _Moves:
    kinds: dict[str, list[_Schedule]] = defaultdict(list)
    for schedule in schedules:
        kinds[schedule.group.kind].append(schedule)
    ordered = [schedule for members in kinds.values() for schedule in members]
    ramps = [1 + log1p(i) / log(max(2, len(members))) for members in kinds.values() for i in range(len(members))]
    return _ordered(ordered, [schedule.fraction / ramp for schedule, ramp in zip(ordered, ramps, strict=True)])


def _isomorphic(schedules: Sequence[_Schedule]) -> _Moves:
    classes: dict[tuple[object, ...], list[_Schedule]] = defaultdict(list)
    for schedule in schedules:
        classes[signature(schedule.group)].append(schedule)
    result: list[_Schedule] = []
    keys: list[NDArray[np.float64]] = []
    for members in classes.values():
        inside = _ordered(members, [schedule.score for schedule in members])
        share = np.cumsum(inside.removed) / sum(schedule.group.size for schedule in members)
        for schedule in members:
            result.append(schedule)
            keys.append(share[inside.group == schedule.index])
    return _ordered(result, keys)


def signature(group: Group) -> tuple[object, ...]:
    """What makes two groups isomorphic: the same kind, size, and multiset of (rank, axis, place) of their sites."""
    roles = sorted((site.axis, multiplicity(site.dim, group.factor), site.parameter) for site in group.sites)
    return (group.kind, group.size, tuple(roles))


ORDERS: dict[str, Callable[[Sequence[_Schedule]], _Moves]] = {
    "isomorphic": _isomorphic,
    "global": _global,
    "uniform": _uniform,
    "zscore": _zscore,
    "log-ramp": _log_ramp,
}
"""The orders of moves; see the module's docstring. All allocations are in :mod:`graphprune.planning.share`."""
