"""Criteria that look at what a unit contributes to the outputs of its consumers: activations times weights."""

from __future__ import annotations

import numpy as np

from graphprune.importance.context import Evidence, Float
from graphprune.importance.fallback import from_columns


def wanda(evidence: Evidence) -> dict[str, Float]:
    """``mean_i |W_iu| · rms(x_u)`` over the consumers of a unit (Wanda, arXiv 2306.11695; structured as Wanda-sp)."""
    return from_columns(
        evidence,
        "wanda",
        lambda r: (
            r.summed(lambda rows, _: np.abs(rows).sum(axis=0))
            / r.table.shape[1]
            * np.sqrt(r.moments.square / max(1, r.moments.count))
        ),
        mean=True,
    )


def wifv(evidence: Evidence) -> dict[str, Float]:
    """``Var(x_u) · ‖W_:u‖²``, the energy that is lost where the mean is made good (FLAP, arXiv 2312.11983).

    Summed over columns and consumers, each relative to the variance of the consumer's output.
    """

    def energy(rows: Float, scale: Float) -> Float:
        found: Float = np.square(rows * scale[:, None]).sum(axis=0)
        return found

    return from_columns(evidence, "wifv", lambda r: r.moments.variance * r.summed(energy), mean=False)
