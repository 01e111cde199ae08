"""What an allocation is given, and what it is: a budget to be shared among groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import OptionError, TargetError
from graphprune.planning.allocation import Counts, Limits
from graphprune.planning.cost import CostModel
from graphprune.planning.target import Target

Fitness = Callable[[Counts], float]
"""What a choice does to the model: smaller is better."""


@dataclass(frozen=True)
class Problem:
    """A budget and what it is to be shared among. The groups of the model order counts.

    Attributes:
        model: What counts cost.
        scores: Scores of every allowed group, by name.
        targets: What must remain at most.
        limits: Alignment, floors and ceilings.
        allowed: The names of the groups that may be pruned.
        finer: Those that may be pruned, too, where the result is far below the targets without them.
        original: The costs that fractions are of, where ``model`` has lost blocks already.
        fitness: For allocations that run the model: what counts do to its outputs.
        seed: For those that draw random numbers.
        losses: For those that need them: for every allowed group the loss when ``0, 1, ..., size`` units are kept.
    """

    model: CostModel
    scores: Mapping[str, NDArray[np.float64]]
    targets: Sequence[Target]
    limits: Limits
    allowed: frozenset[str]
    finer: frozenset[str] = frozenset()
    original: CostModel | None = None
    fitness: Fitness | None = None
    seed: int = 0
    losses: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def whole(self) -> CostModel:
        """The costs that fractions are of: the model's own, where nothing else is said."""
        return self.original or self.model

    def met(self, counts: Counts) -> bool:
        """Whether counts meet all targets."""
        bounds = [(target.metric, target.limit(self.whole.cost(target.metric))) for target in self.targets]
        return all(self.model.cost(metric, counts) <= limit * (1 + 1e-9) for metric, limit in bounds)


Needs = Literal["scores", "losses", "runs"]


@dataclass(frozen=True)
class Allocation:
    """How a budget is shared.

    Attributes:
        share: From a problem to the number of units that each group of its model keeps; it raises
            :class:`graphprune.errors.TargetError` where the targets cannot be met.
        needs: What it looks at beside costs: ``scores``, ``losses`` that were measured on trial, or ``runs`` of the
            model (:attr:`Problem.fitness`).
        ranks: Whether it compares scores of units only, and does not add them up: of tied groups it takes their mean.
    """

    share: Callable[[Problem], Counts]
    needs: Needs = "scores"
    ranks: bool = False


def checked(name: str, allocation: Allocation) -> Allocation:
    """An allocation of others, which is refused where its counts are none or do not meet the targets."""

    def share(problem: Problem) -> Counts:
        counts = np.asarray(allocation.share(problem), np.float64)
        full = problem.model.full
        held = np.array([group.name not in problem.allowed | problem.finer for group in problem.model.groups], bool)
        if counts.shape != full.shape or not np.array_equal(counts, np.round(counts)):
            raise OptionError(f"allocation '{name}' gives no whole number of units for each group; mend it")
        if ((counts < 1) | (counts > full)).any() or (counts[held] != full[held]).any():
            raise OptionError(
                f"allocation '{name}' keeps fewer than 1 unit or more than all of a group, or prunes one that may not "
                "be pruned; mend it"
            )
        if not problem.met(counts):
            targets = ", ".join(f"'{target}'" for target in problem.targets)
            raise TargetError(f"what allocation '{name}' keeps does not meet the target {targets}; take another one")
        return counts

    return replace(allocation, share=share)


def needs_losses(allocation: str) -> str:
    """What is wrong where an allocation goes by losses, and none were measured."""
    return (
        f"allocation '{allocation}' shares the budget by losses on calibration data; give some (calibration=..., "
        "--calibration DATA), and put 'measure-losses' before 'allocate' in a pipeline"
    )


def needs_runs(allocation: str) -> str:
    """What is wrong where an allocation runs the model, and there is nothing to run it on."""
    return (
        f"allocation '{allocation}' runs the model and needs calibration data; give some (calibration=..., "
        "--calibration DATA)"
    )
