"""The ``dp`` allocation: the least total error within a budget, from error curves (SPDY, ZipLM).

See docs/methods.md, Allocation.

Each group chooses one of its levels; errors add up. Where costs add up too, :class:`Frontier` is an exact
multiple-choice knapsack, for all budgets at once. MACs, parameters and latency are products of widths:
:func:`allocate_by_error` linearises them about the present choice, solves, and repeats, and what it returns is judged
by the true costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import OptionError, TargetError
from graphprune.planning.allocation import Counts, Limits, levels_of, shortfall
from graphprune.planning.cost import CostModel
from graphprune.planning.target import Target

Floats = NDArray[np.float64]

BUCKETS = 4096
"""Partial choices that are kept at most; fewer than this are all kept, and the result is exact."""
ROUNDS, HALVINGS = 4, 20


class Frontier:
    """The choices of one level for each group that no other choice beats both in cost and in error.

    Partial choices are carried from group to group. Where they become more than :data:`BUCKETS`, the best of each of so
    many ranges of cost stays; budgets hold in any case.

    Args:
        costs: For each group, the cost of each of its levels.
        errors: For each group, the error of each of its levels.
        budget: The largest sum of costs that will be asked for.
    """

    def __init__(self, costs: Sequence[Floats], errors: Sequence[Floats], budget: float) -> None:
        self._slack = 1e-12 * max(1.0, abs(budget))
        rest = np.append(np.cumsum([float(np.min(c)) for c in reversed(costs)])[::-1], 0.0)
        spent, lost = np.zeros(1), np.zeros(1)
        self._trail: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        for i, (cost, error) in enumerate(zip(costs, errors, strict=True)):
            all_spent = (spent[:, None] + cost[None, :]).ravel()
            all_lost = (lost[:, None] + error[None, :]).ravel()
            order = np.flatnonzero(all_spent + rest[i + 1] <= budget + self._slack)
            order = order[np.lexsort((all_lost[order], all_spent[order]))]
            if len(order):
                best = np.minimum.accumulate(all_lost[order])
                first = np.concatenate([[True], all_lost[order][1:] < best[:-1]])
                order = _thinned(order[first], all_spent)
            self._trail.append((order // len(cost), order % len(cost)))
            spent, lost = all_spent[order], all_lost[order]
        self._spent = spent

    def within(self, budget: float) -> tuple[int, ...] | None:
        """The choice of the least error within a budget: an index of a level for each group, if there is one."""
        at = int(np.searchsorted(self._spent, budget + self._slack, side="right")) - 1
        if at < 0:
            return None
        chosen = []
        for before, level in reversed(self._trail):
            chosen.append(int(level[at]))
            at = int(before[at])
        return tuple(reversed(chosen))


def _thinned(order: NDArray[np.int64], spent: Floats) -> NDArray[np.int64]:
    """The last choice, which has the least error, of each range of cost."""
    if len(order) <= BUCKETS:
        return order
    costs = spent[order]
    bucket = ((costs - costs[0]) / (costs[-1] - costs[0]) * (BUCKETS - 1)).astype(np.int64)
    last: NDArray[np.bool_] = np.append(bucket[1:] != bucket[:-1], True)
    return order[last]


def allocate_by_error(
    model: CostModel,
    errors: Mapping[str, Floats],
    targets: Sequence[Target],
    *,
    limits: Limits,
    allowed: frozenset[str],
    original: CostModel | None = None,
) -> Counts:
    """How many units of each group are kept so that every target is met and the total error is small.

    Args:
        model: The cost model; its groups order the result.
        errors: For each allowed group, the error of keeping ``0, 1, ..., size`` units.
        targets: What must remain at most.
        limits: Alignment, floors and ceilings.
        allowed: The names of the groups that may be pruned.
        original: The costs that fractions are of, where ``model`` has lost blocks already.

    Returns:
        One count for each group of the model.

    Raises:
        OptionError: A group has no error curve, or one of another length.
        TargetError: A target cannot be met with the allowed groups within the limits.
    """
    levels: list[NDArray[np.int64]] = []
    curves: list[Floats] = []
    for group in model.groups:
        kept = np.array(levels_of(group, limits) if group.name in allowed else [group.size])
        levels.append(kept)
        curve = errors.get(group.name)
        if len(kept) > 1 and (curve is None or len(curve) != group.size + 1):
            got = "none" if curve is None else f"one of {len(curve)} values"
            raise OptionError(
                f"group '{group.name}' of {group.size} units needs an error curve of {group.size + 1} values, got {got}"
            )
        curves.append(np.zeros(1) if curve is None or len(kept) == 1 else np.asarray(curve, dtype=np.float64)[kept])
    original = original or model
    bounds = [(target, target.limit(original.cost(target.metric))) for target in targets]

    def excess(counts: Counts) -> float:
        return max(model.cost(target.metric, counts) / limit for target, limit in bounds)

    lowest = np.array([kept[-1] for kept in levels], dtype=np.float64)
    if excess(lowest) > 1 + 1e-9:
        raise TargetError(shortfall(model, bounds, lowest, original))
    best, least, centre = lowest, _error(curves, [len(kept) - 1 for kept in levels]), model.full
    for _ in range(ROUNDS):
        found = _about(model, levels, curves, bounds, centre)
        if found is None:
            break
        chosen = _improved(levels, curves, list(found), excess)
        counts = np.array([kept[i] for kept, i in zip(levels, chosen, strict=True)], dtype=np.float64)
        error = _error(curves, chosen)
        if error < least:
            best, least = counts, error
        if np.array_equal(counts, centre):
            break
        centre = counts
    return best


def _error(curves: Sequence[Floats], chosen: Sequence[int]) -> float:
    return float(sum(curve[i] for curve, i in zip(curves, chosen, strict=True)))


def _about(
    model: CostModel,
    levels: Sequence[NDArray[np.int64]],
    curves: Sequence[Floats],
    bounds: Sequence[tuple[Target, float]],
    centre: Counts,
) -> tuple[int, ...] | None:
    """The best choice by costs linearised about ``centre``, at the largest linear budget whose true costs are met."""
    costs = []
    for i, kept in enumerate(levels):
        row = np.zeros(len(kept))
        for j, units in enumerate(kept):
            counts = centre.copy()
            counts[i] = units
            row[j] = max(model.cost(target.metric, counts) / limit for target, limit in bounds)
        costs.append(row - row.min())
    low, high = 0.0, float(sum(row.max() for row in costs))
    frontier = Frontier(costs, curves, high)
    best = None
    for _ in range(HALVINGS):
        budget = (low + high) / 2
        chosen = frontier.within(budget)
        if chosen is None:
            low = budget
            continue
        counts = np.array([kept[i] for kept, i in zip(levels, chosen, strict=True)], dtype=np.float64)
        met = all(model.cost(target.metric, counts) <= limit * (1 + 1e-9) for target, limit in bounds)
        low, high = (budget, high) if met else (low, budget)
        best = chosen if met else best
    return best


def _improved(
    levels: Sequence[NDArray[np.int64]],
    curves: Sequence[Floats],
    chosen: list[int],
    excess: Callable[[Counts], float],
) -> list[int]:
    """Single steps up, those first that save most error, as long as the true costs are met."""
    counts = np.array([kept[i] for kept, i in zip(levels, chosen, strict=True)], dtype=np.float64)
    while True:
        saved = [curve[i] - curve[i - 1] if i else -np.inf for curve, i in zip(curves, chosen, strict=True)]
        for i in np.argsort(-np.array(saved), kind="stable"):
            if saved[i] < 0 or not chosen[i]:
                continue
            before = counts[i]
            counts[i] = levels[i][chosen[i] - 1]
            if excess(counts) <= 1 + 1e-9:
                chosen[i] -= 1
                break
            counts[i] = before
        else:
            return chosen
