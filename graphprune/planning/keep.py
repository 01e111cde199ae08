"""Which units stay once it is known how many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from graphprune.analysis.groups import Group
from graphprune.ir.dims import Factor, Index


def keep_counts(
    groups: Iterable[Group],
    scores: Mapping[str, NDArray[np.float64]],
    counts: Mapping[str, int],
    given: Mapping[str, Index] | None = None,
) -> dict[Factor, Index]:
    """So many units of each group with the highest scores, for groups that lose some; ties go to the lower index.

    Args:
        groups: The groups.
        scores: By name, of groups that lose some.
        counts: By name: how many units stay.
        given: By name: the units that stay, whatever the scores, where so many stay.
    """

    def top(group: Group) -> Index:
        if given and len(given.get(group.name, ())) == counts[group.name]:
            return given[group.name]
        order = np.argsort(-scores[group.name], kind="stable")
        return np.sort(order[: counts[group.name]]).astype(np.int64)

    return {group.factor: top(group) for group in groups if counts[group.name] < group.size}
