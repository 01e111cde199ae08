"""All allocations by name: orders of moves, and searches for the choice that costs least.

``kwon`` splits the budget between heads and neurons exactly; ``dp`` minimises the sum of predicted errors,
``measured`` that of losses measured on trial; ``spdy`` and
``evolution`` judge choices by running the model, starting from what ``dp`` finds (docs/methods.md, Allocation).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import OptionError, TargetError
from graphprune.planning.allocation import ORDERS, Counts, Limits, allocate, levels_of
from graphprune.planning.cost import CostModel
from graphprune.planning.fill import LARGE, fill
from graphprune.planning.knapsack import allocate_by_error
from graphprune.planning.problem import Allocation, Fitness, Needs, Problem, checked, needs_losses, needs_runs
from graphprune.planning.target import Target
from graphprune.registry import Registry

SEARCHES = ("spdy", "evolution")
"""Allocations that run the model."""
MEASURED = "measured"
"""The allocation that needs curves of losses."""
ALLOCATIONS = (*ORDERS, "kwon", "dp", MEASURED, *SEARCHES)
"""How a budget is shared."""

TRIALS = 60
"""How many choices a search tries."""
HEADS = frozenset({"head", "kv-group", "query-head", "expert", "expert-group"})
"""Kinds whose units are few and dear: one side of what ``kwon`` splits."""


def require_allocation(allocation: str) -> None:
    """Refuses what is no allocation.

    Raises:
        OptionError: There is none of this name.
    """
    METHODS.find(allocation)


def share(problem: Problem, allocation: str) -> Counts:
    """How many units of each group are kept so that every target is met.

    Args:
        problem: The budget, and what it is shared among; the groups of its model order the result.
        allocation: One of :data:`METHODS`.

    Raises:
        OptionError: The allocation is unknown, there is no fitness for a search, or no loss was measured.
        TargetError: A target cannot be met with the allowed groups within the limits.
    """
    return METHODS.find(allocation).share(problem)


def _in_order(problem: Problem, allocation: str) -> Counts:
    return fill(
        problem,
        lambda limits, names: allocate(
            problem.model,
            problem.scores,
            problem.targets,
            allocation=allocation,
            limits=limits,
            allowed=names,
            original=problem.whole,
        ),
        alike=allocation == "uniform",
    )


def _split(problem: Problem) -> Counts:
    return fill(
        problem,
        lambda limits, names: _kwon(
            problem.model, problem.scores, problem.targets, limits=limits, allowed=names, original=problem.whole
        ),
    )


@dataclass(frozen=True)
class _ByError:
    """Counts whose predicted errors are the smallest: the sum of one curve for each group."""

    problem: Problem
    curves: Mapping[str, NDArray[np.float64]]

    def __call__(self, weights: Mapping[str, float], limits: Limits | None = None, names: Any = None) -> Counts:
        problem = self.problem
        weighted = {name: curve * weights.get(name, 1.0) for name, curve in self.curves.items()}
        return allocate_by_error(
            problem.model,
            weighted,
            problem.targets,
            limits=limits or problem.limits,
            allowed=problem.allowed if names is None else names,
            original=problem.whole,
        )

    def error(self, counts: Counts) -> float:
        kept = zip(self.problem.model.groups, counts, strict=True)
        return float(sum(self.curves[group.name][int(n)] for group, n in kept if group.name in self.curves))

    def filled(self) -> Counts:
        # of two choices within the budget the one that loses less may be the smaller
        return fill(self.problem, lambda limits, names: self({}, limits, names), lost=self.error, enough=LARGE)


def _by_scores(problem: Problem) -> _ByError:
    return _ByError(problem, {name: error_curve(problem.scores[name]) for name in problem.allowed | problem.finer})


def _by_losses(problem: Problem) -> Counts:
    if not problem.losses:
        raise OptionError(needs_losses(MEASURED))
    return _ByError(problem, {name: problem.losses[name] for name in problem.allowed | problem.finer}).filled()


def _searched(problem: Problem, allocation: str) -> Counts:
    if problem.fitness is None:
        raise OptionError(needs_runs(allocation))
    dp, rng = _by_scores(problem), np.random.default_rng(problem.seed)
    if allocation == "spdy":
        best = _spdy(dp, sorted(problem.allowed), problem.fitness, rng)
    else:
        best = _evolution(problem, dp({}), problem.fitness, rng)
    # a second search would take as long as the first: what pays for a step that is given back is found by dp
    return fill(
        problem,
        lambda tried, names: best if tried is problem.limits else dp({}, tried, names),
        lost=problem.fitness,
        enough=LARGE,
    )


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
                model.capped(few),
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


def _evolution(problem: Problem, start: Counts, fitness: Fitness, rng: np.random.Generator) -> Counts:
    """Swaps of steps between groups, kept where the model gets better and the target is still met (EvoPress)."""
    model, limits, allowed, met = problem.model, problem.limits, problem.allowed, problem.met
    levels = {i: levels_of(group, limits) for i, group in enumerate(model.groups) if group.name in allowed}
    levels = {i: found for i, found in levels.items() if len(found) > 1}

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


# -- the table -----------------------------------------------------------------------------------------------------


def _plugin(name: str, found: Any) -> Allocation:
    """What an entry point names, with what it finds checked."""
    if not isinstance(found, Allocation) and not callable(found):
        raise TypeError(f"a '{type(found).__name__}' is neither a function nor an Allocation")
    return checked(name, found if isinstance(found, Allocation) else Allocation(found))


def _builtin(name: str) -> Allocation:
    match name:
        case "kwon":
            return Allocation(_split, ranks=True)
        case "dp":
            return Allocation(lambda problem: _by_scores(problem).filled())
        case "measured":
            return Allocation(_by_losses, "losses")
        case "spdy" | "evolution":
            return Allocation(lambda problem: _searched(problem, name), "runs")
        case _:
            return Allocation(lambda problem: _in_order(problem, name), ranks=True)


METHODS = Registry(
    "allocation",
    {name: _builtin(name) for name in ALLOCATIONS},
    group="graphprune.allocations",
    plugin=_plugin,
    ordered=True,
)
"""The allocations by name; :func:`register` adds to them, and so does the entry point group
``graphprune.allocations``."""


def register(
    name: str,
    share: Callable[[Problem], Counts],
    *,
    needs: Needs = "scores",
    ranks: bool = False,
    replace: bool = False,
) -> None:
    """Adds an allocation of the user's, for ``--allocation NAME`` and ``allocation="name"``.

    Args:
        name: Its name.
        share: As of :class:`Allocation`, and so the others.
        needs: What it looks at beside costs.
        ranks: Whether it compares scores only.
        replace: Whether it may take the place of one that was registered before.

    Raises:
        OptionError: The name is taken.
    """
    METHODS.register(name, checked(name, Allocation(share, needs, ranks)), replace=replace)
