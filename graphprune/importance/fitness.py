"""What the loss of units does to the outputs, with gates in place of cuts: no model is built on trial."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from graphprune.importance.context import Evidence
from graphprune.importance.loss import Objective, gates_of
from graphprune.planning.cost import CostModel
from graphprune.planning.problem import Fitness


def fitness_of(
    evidence: Evidence, allocation: str, model: CostModel, scores: Mapping[str, NDArray[np.float64]]
) -> Fitness:
    """The fitness of counts of the groups of a cost model, where the least important units of each group go.

    Args:
        evidence: With data to run the model on.
        allocation: Who asks, for messages.
        model: Orders the counts.
        scores: Of all groups, by name.
    """
    gates = gates_of(evidence, allocation)
    objective = Objective(gates)
    orders = {name: np.argsort(each, kind="stable") for name, each in scores.items()}

    def fitness(counts: NDArray[np.float64]) -> float:
        gone = {
            group.name: orders[group.name][: group.size - int(n)]
            for group, n in zip(model.groups, counts, strict=True)
            if n < group.size and group.name in gates.by_group
        }
        return objective(gates.factors(gone))

    return fitness
