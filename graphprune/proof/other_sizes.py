"""The same units at other sizes of the inputs: what their masks are there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from graphprune.analysis.branch import Block
from graphprune.analysis.groups import Analysis, analyze_graph
from graphprune.hosts.host import Host, Masks
from graphprune.ir.dims import Factor, Index
from graphprune.proof.masks import bypassed, masks


def at_other_sizes(
    original: Host, kept: Mapping[Factor, Index], analysis: Analysis, removed: Iterable[Block]
) -> tuple[Host, Masks] | None:
    """The original at other sizes along its dynamic axes, and the same units' masks there, if it has such axes."""
    other = original.at_other_sizes()
    there = None if other is None else masks_at(other, kept, analysis, removed)
    return None if other is None or there is None else (bypassed(other, removed), there)


def masks_at(other: Host, kept: Mapping[Factor, Index], analysis: Analysis, removed: Iterable[Block]) -> Masks | None:
    """The masks of the same units in the original at other sizes; ``None`` if the sizes couple what is free here."""
    again = analyze_graph(other.graph(), resizable=analysis.resizable)
    groups = {group.name: group for group in again.groups}
    there: dict[Factor, Index] = {}
    for factor, index in kept.items():
        group = groups.get(analysis.group_of[factor].name)
        if group is None or group.size != factor.size:
            return None
        there[group.factor] = index
    return masks(again, there, removed)
