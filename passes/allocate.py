"""Share the budget and choose the units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from graphprune.analysis.groups import Analysis, Group
from graphprune.errors import OptionError, TargetError
from graphprune.ir.dims import Factor, Index
from graphprune.pipeline.passes import Pass
from graphprune.pipeline.state import State
from graphprune.planning.allocation import Limits, allocate
from graphprune.planning.blockers import blockers
from graphprune.planning.cost import build_cost_model
from graphprune.planning.plan import make_plan
from graphprune.planning.select import chosen_groups
from graphprune.planning.target import parse_targets


@dataclass(frozen=True)
class Allocate(Pass):
    """Decides how many units each group keeps, keeps the most important ones, and writes the plan.

    Whole channels, neurons, heads and key-value groups are used first. Parts of heads (query-key and value dims, query
    heads of a group), which leave ragged heads that few runtimes and no module class expect, then groups that shift a
    normalizer (residual width), and at last whole experts are added when ``only`` names them or when the targets cannot
    be met without them.

    Attributes:
        targets: What may remain, as text (``macs=0.5``).
        allocation: ``isomorphic``, ``global``, ``uniform``, ``zscore`` or ``log-ramp``.
        align: Widths stay multiples of this where the width allows.
        min_units: At least so many units stay in every group.
        max_ratio: At most this fraction of a group's units is removed.
        only: Selectors of the groups that may be pruned; empty means all.
        protect: Kinds of group that may not be pruned (patterns of tensors are the business of ``analyze``).
        criterion: Noted in the plan.
    """

    name: ClassVar[str] = "allocate"
    targets: tuple[str, ...] = ()
    allocation: str = "isomorphic"
    align: int = 8
    min_units: int = 1
    max_ratio: float = 0.9
    only: tuple[str, ...] = ()
    protect: tuple[str, ...] = ()
    criterion: str = ""

    def run(self, state: State) -> State:
        """The state with kept units and a plan."""
        analysis = state.analyzed(self.name)
        targets = parse_targets(self.targets)
        limits = Limits(self.align, self.min_units, self.max_ratio)
        if state.latency is None and any(target.metric == "latency" for target in targets):
            raise OptionError("a latency target needs a profile; prune with graphprune.prune, or give State.latency")
        model = build_cost_model(analysis, state.latency)
        chosen = chosen_groups(analysis, self.only, self.protect)
        chosen = tuple(group for group in chosen if group.name not in state.protected)
        if not chosen:
            raise TargetError(
                "no group of this model can be pruned; "
                + ("protect_ratio keeps all of them whole" if state.protected else blockers(analysis))
            )
        if missing := [group.name for group in chosen if group.name not in state.scores]:
            raise OptionError(f"group '{missing[0]}' has no scores; put 'score' before 'allocate' in the pipeline")
        tries = tiers(chosen, asked=bool(self.only))
        for attempt in tries:
            try:
                counts = allocate(
                    model, state.scores, targets, allocation=self.allocation, limits=limits, allowed=attempt
                )
                break
            except TargetError as error:
                if attempt is tries[-1]:
                    raise TargetError(
                        f"{error}. What stands in the way: {self._obstacles(analysis, len(state.protected))}"
                    ) from None
        kept = keep_counts(
            analysis.groups, state.scores, {g.name: int(n) for g, n in zip(model.groups, counts, strict=True)}
        )
        options = {
            "targets": [str(target) for target in targets],
            "allocation": self.allocation,
            "align": self.align,
            **({"criterion": self.criterion} if self.criterion else {}),
            **({"only": list(self.only)} if self.only else {}),
            **({"protected": list(state.protected)} if state.protected else {}),
        }
        return replace(state, kept=kept, plan=make_plan(analysis, kept, options))

    def _obstacles(self, analysis: Analysis, n_protected: int) -> str:
        limits = f"max_ratio={self.max_ratio:g} and min_units={self.min_units}"
        selected = f", only={'|'.join(self.only)}" if self.only else ""
        selected += f", protect_ratio ({n_protected} groups)" if n_protected else ""
        return (
            f"{blockers(analysis)}; the limits {limits}{selected} keep part of every group. "
            "Raise the target or relax these"
        )


PARTS_OF_HEADS = frozenset({"query-head", "qk-dim", "rotary-pair", "value-dim"})
"""Kinds that are left whole as long as the targets can be met without them."""


EXPERTS = frozenset({"expert", "expert-group"})
"""Kinds that change which units a router chooses: the last resort."""


def tiers(groups: Iterable[Group], *, asked: bool) -> list[frozenset[str]]:
    """Names of the groups to try to meet the targets with, the preferred ones first."""
    chosen = tuple(groups)
    everything = frozenset(group.name for group in chosen)
    exact = frozenset(group.name for group in chosen if group.exact)
    whole = frozenset(group.name for group in chosen if group.exact and group.kind not in PARTS_OF_HEADS)
    kept_experts = frozenset(group.name for group in chosen if group.kind not in EXPERTS)
    found = [everything] if asked else [whole, exact, kept_experts, everything]
    return list(dict.fromkeys(tier for tier in found if tier))


def keep_counts(
    groups: Iterable[Group], scores: Mapping[str, NDArray[np.float64]], counts: Mapping[str, int]
) -> dict[Factor, Index]:
    """So many units of each group with the highest scores, for groups that lose some; ties go to the lower index."""

    def top(group: Group) -> Index:
        order = np.argsort(-scores[group.name], kind="stable")
        return np.sort(order[: counts[group.name]]).astype(np.int64)

    return {group.factor: top(group) for group in groups if counts[group.name] < group.size}
