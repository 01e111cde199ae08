"""Criteria that look at activations only, at the inputs of the consumers of a unit."""

from __future__ import annotations

import numpy as np

from graphprune.importance.context import Evidence, Float
from graphprune.importance.fallback import from_columns


def act_rms(evidence: Evidence) -> dict[str, Float]:
    """Root mean square of a unit's activations (Minitron's choice for neurons)."""
    return from_columns(evidence, "act-rms", lambda r: np.sqrt(r.moments.square / max(1, r.moments.count)), mean=True)


def act_var(evidence: Evidence) -> dict[str, Float]:
    """Variance of a unit's activations (VBP, arXiv 2507.12988): its mean can be folded into a bias."""
    return from_columns(evidence, "act-var", lambda r: r.moments.variance, mean=True)


def apoz(evidence: Evidence) -> dict[str, Float]:
    """How often a unit's activations are positive: one minus the average percentage of zeros (Hu et al. 2016)."""
    return from_columns(evidence, "apoz", lambda r: r.moments.positive / max(1, r.moments.count), mean=True)
