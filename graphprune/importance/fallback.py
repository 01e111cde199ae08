"""Scores of units from scores of the columns that read them, and of groups that nothing reads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from graphprune.importance.context import Evidence, Float, Reading, per_unit
from graphprune.importance.gates import all_readings
from graphprune.importance.magnitude import l2


def from_columns(
    evidence: Evidence, criterion: str, column: Callable[[Reading], Float], *, mean: bool
) -> dict[str, Float]:
    """Scores from a score of each column: of a unit's columns the sum or the mean, and likewise over its consumers.

    Groups that no weight reads (the dimensions in which queries meet keys) are scored by the norm of their weights,
    brought to the mean of the others.
    """
    statistics = evidence.measured(criterion)
    scores: dict[str, Float] = {}
    for group in evidence.groups:
        found = [
            per_unit(column(reading), reading.units, group.size, mean=mean)
            for reading in all_readings(evidence, statistics, group)
        ]
        if found:
            scores[group.name] = np.sum(found, axis=0) / (len(found) if mean else 1)
    return with_fallback(scores, evidence)


def with_fallback(scores: dict[str, Float], evidence: Evidence) -> dict[str, Float]:
    """Scores for groups that have none: the norms of their weights, scaled to the median unit of those that have."""
    typical = float(np.median(np.concatenate(list(scores.values())))) if scores else 1.0
    for name, values in l2(evidence).items():
        if name not in scores:
            scores[name] = values * (typical / max(float(np.mean(values)), 1e-30))
    return scores
