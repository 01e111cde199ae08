"""The control: random scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.analysis.groups import Group


def random_scores(
    groups: Iterable[Group], read: Callable[[str], NDArray[Any]], seed: int = 0
) -> dict[str, NDArray[np.float64]]:
    """Uniform random numbers from (0, 1), the same for the same seed and order of groups."""
    rng = np.random.default_rng(seed)
    return {group.name: rng.uniform(size=group.size) for group in groups}
