"""The sizes of every stored weight before and after, and what was left whole although it could be pruned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graphprune.analysis.groups import Analysis, Group
from graphprune.planning.plan import PruningPlan


@dataclass(frozen=True)
class WidthRow:
    """A stored weight before and after.

    Attributes:
        name: As in the model.
        title: What a reader may know it by, where the name says nothing.
        before: Sizes of its axes in the original.
        after: The same in the pruned model; ``None`` if it went with a block that was left out.
    """

    name: str
    title: str
    before: tuple[int, ...]
    after: tuple[int, ...] | None

    @property
    def changed(self) -> bool:
        """Whether it became smaller, or went."""
        return self.before != self.after


@dataclass(frozen=True)
class WholeRow:
    """Groups of one kind that could have lost units and were not allowed to.

    Attributes:
        kind: Of their units.
        groups: How many there are.
        params_share: The fraction of the original's parameters that lies in tensors they could make smaller.
        reason: Why they stayed whole.
    """

    kind: str
    groups: int
    params_share: float
    reason: str


def width_rows(analysis: Analysis, plan: PruningPlan, gone: frozenset[str] = frozenset()) -> tuple[WidthRow, ...]:
    """All weights, and all other stored tensors that were cut, in the model's order.

    Args:
        analysis: Of the original.
        plan: What stays.
        gone: Stored tensors that nothing reads any more.
    """
    rows = []
    for value in analysis.graph.stored:
        cut = plan.parameters.get(value.name, {})
        if value.kind == "parameter" or cut:
            after = tuple(len(cut[axis]) if axis in cut else size for axis, size in enumerate(value.shape))
            rows.append(WidthRow(value.name, value.title, value.shape, None if value.name in gone else after))
    return tuple(rows)


def whole_rows(analysis: Analysis, left_out: Mapping[str, str]) -> tuple[WholeRow, ...]:
    """What was left out, by kind and reason, the largest share first.

    Args:
        analysis: Of the original.
        left_out: By the name of a group, why it was not to lose units.
    """
    alike: dict[tuple[str, str], list[Group]] = {}
    for group in analysis.groups:
        if group.name in left_out:
            alike.setdefault((group.kind, left_out[group.name]), []).append(group)
    sizes = {value.name: value.n_elements for value in analysis.graph.stored if value.weighs}
    total = sum(sizes.values()) or 1
    rows = [
        WholeRow(kind, len(groups), _held(groups, sizes) / total, reason) for (kind, reason), groups in alike.items()
    ]
    return tuple(sorted(rows, key=lambda row: -row.params_share))


def _held(groups: Sequence[Group], sizes: Mapping[str, int]) -> int:
    """How many parameters lie in tensors that groups occur in; each tensor counts once."""
    return sum(sizes.get(name, 0) for name in {site.tensor for group in groups for site in group.sites})
