"""Sentences of a report that follow from its numbers."""

from __future__ import annotations

from collections.abc import Sequence

from graphprune.planning.cost import METRICS
from graphprune.planning.target import Target
from graphprune.report.data import Cost
from graphprune.report.terminal import amount


def already_met(targets: Sequence[Target], costs: Sequence[Cost]) -> str | None:
    """What to tell a user whose targets the whole model meets, so that nothing was pruned; ``None`` if it does not."""
    before = {cost.metric: cost.before for cost in costs}
    if not targets or any(before[target.metric] > target.limit(before[target.metric]) for target in targets):
        return None
    said = " and ".join(f"{_written(target)} ({_had(target.metric, before[target.metric])})" for target in targets)
    return f"the model already meets {said}; nothing was pruned"


def _written(target: Target) -> str:
    if target.relative or target.metric == "latency":
        return f"'{target}'"
    return f"'{target.metric}={amount(target.value)}'"


def _had(metric: str, value: float) -> str:
    return f"it takes {value:.3g} ms" if metric == "latency" else f"it has {amount(value)} {METRICS[metric]}"
