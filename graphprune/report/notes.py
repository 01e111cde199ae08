"""Sentences of a report that follow from its numbers."""

from __future__ import annotations

from collections.abc import Sequence

from graphprune.planning.cost import METRICS
from graphprune.planning.target import Target
from graphprune.report.data import Cost


def already_met(targets: Sequence[Target], costs: Sequence[Cost]) -> str | None:
    """What to tell a user whose targets the whole model meets, so that nothing was pruned; ``None`` if it does not."""
    before = {cost.metric: cost.before for cost in costs}
    if not targets or any(before[target.metric] > target.limit(before[target.metric]) for target in targets):
        return None
    said = " and ".join(f"'{target}' ({_amount(target.metric, before[target.metric])})" for target in targets)
    return f"the model already meets {said}; nothing was pruned"


def _amount(metric: str, value: float) -> str:
    if metric == "latency":
        return f"it takes {value:.3g} ms"
    return f"it has {value:,.0f} {METRICS[metric]}"
