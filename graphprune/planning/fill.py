"""Meeting a budget from below by the finest mix of units at hand.

Units differ in what they cost: a head of four is a quarter of a layer, a neuron a thousandth. Where the units that an
allocation takes first are coarse, its last step can fall far below the target while finer units stay whole. Then one
step of a coarse group is given back for good, and the allocation is made again without it, so that others pay for it
in the order that the allocation has for them. This goes on as long as it brings the cost closer to the target. Where
that ends far below, finer units that are otherwise left whole pay too (parts of heads), no more than they need to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from graphprune.analysis.groups import Group
from graphprune.errors import TargetError
from graphprune.planning.allocation import Counts, Limits, levels_of, signature, step_of
from graphprune.planning.cost import METRICS, CostModel
from graphprune.planning.problem import Problem
from graphprune.planning.target import Target

FINE = 0.025
"""This much less than the target allows is close enough."""
LARGE = 0.05
"""This much less is explained to the user."""
FAR = 0.25
"""This much less is worth ragged heads, which cost a module its class."""
MOST_TRIES = 12
"""How many groups are tried for a step that is given back, those with the largest steps."""
MOST_STEPS = 8
"""How many steps are given back at most."""

Allocation = Callable[[Limits, frozenset[str]], Counts]
"""An allocation, given its limits and the names of the groups that may be pruned."""


def fill(
    problem: Problem,
    allocation: Allocation,
    *,
    alike: bool = False,
    lost: Callable[[Counts], float] | None = None,
    enough: float = FINE,
) -> Counts:
    """What an allocation finds, brought closer to the targets from below.

    Args:
        problem: The budget, and what it is shared among. Of several ways to come close, the one is taken that loses
            small shares of the scores everywhere; where the result is :data:`FAR` below the targets, finer groups may
            be pruned, too.
        allocation: The allocation.
        alike: Whether groups that are alike must keep equally many units.
        lost: What the allocation makes small, and may not become larger; absent, it only orders units.
        enough: How far below the target needs no filling, as a fraction of it.

    Raises:
        TargetError: A target cannot be met.
    """
    model, scores, targets, original = problem.model, problem.scores, problem.targets, problem.whole
    limits, allowed, finer = problem.limits, problem.allowed, problem.finer
    best = allocation(limits, allowed)
    if any(target.metric == "latency" for target in targets):  # a staircase that is measured again anyway
        return best

    def closer(best: Counts, limits: Limits, names: frozenset[str], steps: int) -> Counts:
        gap = slack(model, best, targets, original)
        found: list[tuple[float, float, Limits, Counts]] = []
        for floors in _tries(model, best, limits, names, alike=alike) if gap > enough and steps else ():
            tried = replace(limits, floors={**limits.floors, **floors})
            try:
                counts = allocation(tried, names)
            except TargetError:
                continue
            left = slack(model, counts, targets, original)
            if left < gap - 1e-9 and (lost is None or lost(counts) <= lost(best)):
                found.append((left, _shares(model, scores, counts), tried, counts))
        if not found:
            return best
        close = max(enough, min(left for left, *_ in found))
        _, _, limits, counts = min((each for each in found if each[0] <= close), key=lambda each: each[1])
        return closer(counts, limits, names, steps - 1)

    best = closer(best, limits, allowed, MOST_STEPS)
    if finer and slack(model, best, targets, original) > FAR:
        floors = {g.name: int(n) for g, n in zip(model.groups, best, strict=True) if g.name in allowed}
        best = closer(best, replace(limits, floors=floors), allowed | finer, MOST_STEPS)
    return best


def slack(model: CostModel, counts: Counts, targets: Iterable[Target], original: CostModel) -> float:
    """How much more the targets allow, as a fraction of what they allow; of several, the least."""
    return min(1 - model.cost(t.metric, counts) / t.limit(original.cost(t.metric)) for t in targets)


def _tries(
    model: CostModel, counts: Counts, limits: Limits, allowed: frozenset[str], *, alike: bool
) -> list[dict[str, int]]:
    """Groups one step up, by name; those whose step costs most first."""
    found: dict[object, dict[str, int]] = {}
    step: dict[object, float] = {}
    for i, group in enumerate(model.groups):
        above = _above(group, counts[i], limits) if group.name in allowed else None
        if above is None:
            continue
        # of groups that are alike and keep equally many, one tells of the others
        key = (signature(group), above)
        if key in found and not alike:
            continue
        found.setdefault(key, {})[group.name] = above
        more = counts.copy()
        more[i] = above
        step[key] = sum(
            (model.cost(metric, more) - model.cost(metric, counts)) / max(model.cost(metric), 1e-30)
            for metric in ("macs", "params", "bytes")
        )
    return [found[key] for key in sorted(found, key=lambda key: -step[key])[:MOST_TRIES]]


def _above(group: Group, count: float, limits: Limits) -> int | None:
    """The next larger number of units that a group may keep, if it keeps fewer than all."""
    return min((n for n in levels_of(group, limits) if n > count), default=None)


def _shares(model: CostModel, scores: Mapping[str, NDArray[np.float64]], counts: Counts) -> float:
    """The sum over groups of the squared fraction of their scores that goes: large where a group loses nearly all."""
    total = 0.0
    for group, n in zip(model.groups, counts, strict=True):
        if n < group.size:
            rising = np.sort(scores[group.name])
            total += float(rising[: group.size - int(n)].sum() / max(rising.sum(), 1e-30)) ** 2
    return total


def undershoot(
    model: CostModel,
    counts: Counts,
    targets: Sequence[Target],
    *,
    limits: Limits,
    allowed: frozenset[str],
    original: CostModel,
    groups: Iterable[Group],
) -> str | None:
    """Why much less remains than the targets allow, and what to allow for a closer result; ``None`` if it is close.

    Args:
        model: The cost model.
        counts: The units kept.
        targets: What must remain at most.
        limits: What the allocation kept to.
        allowed: The names of the groups that the allocation used.
        original: The costs that fractions are of.
        groups: Those that stay whole.
    """
    if not targets or slack(model, counts, targets, original) <= LARGE:
        return None
    target = max(targets, key=lambda t: model.cost(t.metric, counts) / t.limit(original.cost(t.metric)))
    full = original.cost(target.metric)
    steps = []
    for i, group in enumerate(model.groups):
        above = _above(group, counts[i], limits) if group.name in allowed else None
        if above is not None:
            more = counts.copy()
            more[i] = above
            steps.append((model.cost(target.metric, more) / full, group, int(counts[i]), above))
    if not steps:
        return None
    remains, group, below, above = min(steps, key=lambda step: step[0])
    said = (
        f"{model.cost(target.metric, counts) / full:.1%} of the {METRICS[target.metric]} remain, where target "
        f"'{target}' allows {target.limit(full) / full:.1%}: "
    )
    if remains * full <= target.limit(full):  # an allocation by losses leaves it at that
        return f"{said}more units were found to lose no less"
    advice = []
    if any(step_of(each, limits.align) > each.multiple for each in model.groups if each.name in allowed):
        advice.append("align=1, for smaller steps")
    if whole := list(dict.fromkeys(each.kind for each in groups)):
        advice.append(f"groups that stay whole now, by their kinds in only ({', '.join(whole)})")
    return (
        f"{said}the next step, {above} units of '{group.name}' (kind {group.kind}, {group.size} units) in place of "
        f"{below}, would leave {remains:.1%}"
        + (f"; to come closer, allow {' or '.join(advice)}" if advice else "; no finer units can be pruned")
    )
