"""All allocations by name: orders of moves, and searches for the choice that costs least.

``kwon`` splits the budget between heads and neurons exactly; ``dp`` minimises the sum of predicted errors,
``measured`` that of losses measured on trial; ``spdy`` and
``evolution`` judge choices by running the model, starting from what ``dp`` finds (methods.md §7).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import OptionError, TargetError
from graphprune.planning.allocation import ORDERS, Counts, Limits, allocate, levels_of
from graphprune.planning.cost import CostFunction, CostModel
from graphprune.planning.fill import LARGE, fill
from graphprune.planning.knapsack import allocate_by_error
from graphprune.planning.target import Target
from graphprune.suggest import meant

Fitness = Callable[[Counts], float]
"""What a choice does to the model: smaller is better."""

SEARCHES = ("spdy", "evolution")
"""Allocations that run the model."""
MEASURED = "measured"
"""The allocation that needs curves of losses."""
ALLOCATIONS = (*ORDERS, "kwon", "dp", MEASURED, *SEARCHES)
"""How a budget is shared."""

UNMEASURED = (
    "allocation 'measured' shares the budget by losses on calibration data; give some (calibration=..., "
    "--calibration DATA), and put 'measure-losses' before 'allocate' in a pipeline"
)
"""What is wrong where there are no such curves."""

TRIALS = 60
"""How many choices a search tries."""
HEADS = frozenset({"head", "kv-group", "query-head", "expert", "expert-group"})
"""Kinds whose units are few and dear: one side of what ``kwon`` splits."""


def require_allocation(allocation: str) -> None:
    """Refuses what is no allocation.

    Raises:
        OptionError: There is none of this name.
    """
    if allocation not in ALLOCATIONS:
        raise OptionError(
            f"unknown allocation {meant(allocation, ALLOCATIONS)}; expected one of {', '.join(ALLOCATIONS)}"
        )


def share(
    model: CostModel,
    scores: Mapping[str, NDArray[np.float64]],
    targets: Sequence[Target],
    *,
    allocation: str,
    limits: Limits,
    allowed: frozenset[str],
    finer: frozenset[str] = frozenset(),
    original: CostModel | None = None,
    fitness: Fitness | None = None,
    seed: int = 0,
    losses: Mapping[str, NDArray[np.float64]] | None = None,
) -> Counts:
    """How many units of each group are kept so that every target is met.

    Args:
        model: The cost model; its groups order the result.
        scores: Scores of every allowed group, by name; their sum over removed units is taken for the error.
        targets: What must remain at most.
        allocation: One of :data:`ALLOCATIONS`.
        limits: Alignment, floors and ceilings.
        allowed: The names of the groups that may be pruned.
        finer: Those that may be pruned, too, where the result is far below the targets without them.
        original: The costs that fractions are of, where ``model`` has lost blocks already.
        fitness: For :data:`SEARCHES`: what a choice does to the model.
        seed: For :data:`SEARCHES`.
        losses: For :data:`MEASURED`: for every allowed group the loss when ``0, 1, ..., size`` units are kept.

    Raises:
        OptionError: The allocation is unknown, there is no fitness for a search, or no loss was measured.
        TargetError: A target cannot be met with the allowed groups within the limits.
    """
    require_allocation(allocation)
    original = original or model

    def filled(found: Callable[[Limits, frozenset[str]], Counts], **options: Any) -> Counts:
        return fill(
            found, model, scores, targets, limits=limits, allowed=allowed, finer=finer, original=original, **options
        )

    if allocation in ORDERS:
        return filled(
            lambda limits, names: allocate(
                model, scores, targets, allocation=allocation, limits=limits, allowed=names, original=original
            ),
            alike=allocation == "uniform",
        )
    if allocation == "kwon":
        return filled(
            lambda limits, names: _kwon(model, scores, targets, limits=limits, allowed=names, original=original)
        )
    if allocation == MEASURED and not losses:
        raise OptionError(UNMEASURED)
    curves = {
        name: losses[name] if allocation == MEASURED and losses else error_curve(scores[name])
        for name in allowed | finer
    }

    def dp(weights: Mapping[str, float], limits: Limits = limits, names: frozenset[str] = allowed) -> Counts:
        weighted = {name: curve * weights.get(name, 1.0) for name, curve in curves.items()}
        return allocate_by_error(model, weighted, targets, limits=limits, allowed=names, original=original)

    def error(counts: Counts) -> float:
        kept = zip(model.groups, counts, strict=True)
        return float(sum(curves[group.name][int(n)] for group, n in kept if group.name in curves))

    if allocation in ("dp", MEASURED):  # of two choices within the budget the one that loses less may be the smaller
        return filled(lambda limits, names: dp({}, limits, names), lost=error, enough=LARGE)
    if fitness is None:
        raise OptionError(
            f"allocation '{allocation}' runs the model and needs calibration data; give some (calibration=..., "
            "--calibration DATA)"
        )
    rng = np.random.default_rng(seed)
    if allocation == "spdy":
        best = _spdy(dp, sorted(allowed), fitness, rng)
    else:
        best = _evolution(model, dp({}), targets, limits, allowed, original, fitness, rng)
    # a second search would take as long as the first: what pays for a step that is given back is found by dp
    return filled(lambda tried, names: best if tried is limits else dp({}, tried, names), lost=fitness, enough=LARGE)


def error_curve(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The error of keeping ``0, 1, ..., size`` units: what the removed ones, lowest first, cost together."""
    return np.concatenate([[0.0], np.cumsum(np.sort(scores))])[::-1]


def _kwon(
    model: CostModel,
    scores: Mapping[str, NDArray[np.float64]],
    targets: Sequence[Target],
    *,
    limits: Limits,
    allowed: frozenset[str],
    original: CostModel | None,
) -> Counts:
    """Every number of heads with as few other units as the target asks for; the choice that loses least (Kwon 2022).

    Heads are ranked among heads and the others among the others, each over all layers.
    """
    kinds = {group.name: group.kind for group in model.groups}
    heads = frozenset(name for name in allowed if kinds[name] in HEADS)
    best: Counts | None = None
    least, failure = np.inf, None
    totals = {name: error_curve(scores[name]) for name in allowed}
    for few in _prefixes(model, scores, limits, heads):
        try:
            counts = allocate(
                replace(model, functions={metric: _Capped(cost, few) for metric, cost in model.functions.items()}),
                scores,
                targets,
                allocation="global",
                limits=limits,
                allowed=allowed - heads,
                original=original or model,
            )
        except TargetError as error:
            failure = failure or error
            continue
        counts = np.minimum(counts, few)
        lost = sum(
            totals[group.name][int(n)] for group, n in zip(model.groups, counts, strict=True) if group.name in totals
        )
        if lost < least:
            best, least = counts, lost
    if best is None:
        assert failure is not None
        raise failure
    return best


@dataclass(frozen=True)
class _Capped:
    """A cost where no more than some units of each group are there."""

    cost: CostFunction
    most: Counts

    def __call__(self, counts: Counts) -> float:
        return self.cost(np.minimum(counts, self.most))

    def share(self, index: int, counts: Counts) -> float:
        return self.cost.share(index, np.minimum(counts, self.most))


def _prefixes(
    model: CostModel, scores: Mapping[str, NDArray[np.float64]], limits: Limits, names: frozenset[str]
) -> list[Counts]:
    """Counts after the first 0, 1, 2, ... moves of some groups, the least important units first."""
    counts = model.full.copy()
    found = [counts.copy()]
    steps = []
    for i, group in enumerate(model.groups):
        if group.name in names:
            levels = levels_of(group, limits)
            curve = error_curve(scores[group.name])
            steps += [((curve[low] - curve[high]) / (high - low), i, low) for high, low in pairwise(levels)]
    for _, i, low in sorted(steps):
        counts[i] = min(counts[i], low)
        found.append(counts.copy())
    return found


def _spdy(
    dp: Callable[[Mapping[str, float]], Counts], names: Sequence[str], fitness: Fitness, rng: np.random.Generator
) -> Counts:
    """``dp`` with a coefficient for each group: random ones first, then changes of the best (SPDY, ICML 2022)."""
    best = dp({})
    least = fitness(best)
    weights = np.ones(len(names))
    for trial in range(TRIALS):
        spread = 1.0 if trial < TRIALS // 2 else 0.3
        base = np.ones(len(names)) if trial < TRIALS // 2 else weights
        tried = base * np.exp(spread * rng.standard_normal(len(names)))
        counts = dp(dict(zip(names, tried, strict=True)))
        found = fitness(counts)
        if found < least:
            best, least, weights = counts, found, tried
    return best


def _evolution(
    model: CostModel,
    start: Counts,
    targets: Sequence[Target],
    limits: Limits,
    allowed: frozenset[str],
    original: CostModel,
    fitness: Fitness,
    rng: np.random.Generator,
) -> Counts:
    """Swaps of steps between groups, kept where the model gets better and the target is still met (EvoPress)."""
    levels = {i: levels_of(group, limits) for i, group in enumerate(model.groups) if group.name in allowed}
    levels = {i: found for i, found in levels.items() if len(found) > 1}
    bounds = [(target, target.limit(original.cost(target.metric))) for target in targets]

    def met(counts: Counts) -> bool:
        return all(model.cost(target.metric, counts) <= limit * (1 + 1e-9) for target, limit in bounds)

    def stepped(counts: Counts, i: int, by: int) -> bool:
        at = levels[i].index(int(counts[i])) + by
        if not 0 <= at < len(levels[i]):
            return False
        counts[i] = levels[i][at]
        return True

    best, least, tried = start, fitness(start), {start.tobytes()}
    for _ in range(TRIALS):
        counts = best.copy()
        for _ in range(1 + rng.integers(3)):
            stepped(counts, int(rng.choice(list(levels))), -1)
        for i in rng.permutation(list(levels)):  # pay for it
            while not met(counts) and stepped(counts, int(i), +1) and rng.random() < 0.5:
                pass
            if met(counts):
                break
        if not met(counts) or counts.tobytes() in tried:
            continue
        tried.add(counts.tobytes())
        found = fitness(counts)
        if found < least:
            best, least = counts, found
    return best
