"""The control: random scores."""

from __future__ import annotations

import numpy as np

from graphprune.importance.context import Evidence, Float


def random_scores(evidence: Evidence) -> dict[str, Float]:
    """Uniform random numbers from (0, 1), the same for the same seed and order of groups."""
    rng = np.random.default_rng(evidence.seed)
    return {group.name: rng.uniform(size=group.size) for group in evidence.groups}
