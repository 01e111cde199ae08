"""Which groups a budget can reach: those that lose units first, and others only where it cannot be met without them.

What lies beyond is neither measured nor scored on data: the readers of a residual stream are all readers of a model,
and a tied table of tokens alone may be most of its weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from graphprune.analysis.groups import Group
from graphprune.planning.allocation import Limits, levels_of
from graphprune.planning.cost import CostModel
from graphprune.planning.target import Target
from graphprune.planning.whole import EXPERTS, tiers


def within_reach(
    chosen: Iterable[Group], model: CostModel, targets: Sequence[Target], limits: Limits, *, asked: bool
) -> frozenset[str]:
    """The names of the groups that an allocation may cut.

    Args:
        chosen: The groups that selectors allow.
        model: What the whole model costs.
        targets: What must remain at most; of latencies it is not known what they take.
        limits: Alignment, floors and ceilings.
        asked: Whether ``only`` was given: then all that is named may be cut.
    """
    groups = tuple(chosen)
    everything = frozenset(group.name for group in groups)
    if asked or not targets or any(target.metric == "latency" for target in targets):
        return everything
    # what fills up a budget that whole units leave too much of
    reached = frozenset(group.name for group in groups if group.exact and group.kind not in EXPERTS)
    for tier in tiers(groups, asked=False):
        reached |= tier
        if _met(model, targets, limits, reached):
            return reached
    return everything


def _met(model: CostModel, targets: Sequence[Target], limits: Limits, allowed: frozenset[str]) -> bool:
    """Whether the targets are met where these groups keep as little as they may."""
    least = np.array(
        [levels_of(group, limits)[-1] if group.name in allowed else group.size for group in model.groups], np.float64
    )
    return all(
        model.cost(target.metric, least) <= target.limit(model.cost(target.metric, model.full)) for target in targets
    )
