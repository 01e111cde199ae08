"""Other weights for a proof: rules hold for all weights, and some weights (zeros, ones) hide what is wrong."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from graphprune.analysis.groups import Analysis
from graphprune.hosts.host import Array, Model
from graphprune.ir.dims import Factor, Index, factors_of, positions

TINY = 1e-2
"""Weights that are all below this scale what they multiply away."""
LARGEST = 1e3
"""Larger numbers are no weights: what masks add, for one."""


def redrawn(
    host: Model, analysis: Analysis, kept: Mapping[Factor, Index], only: Collection[Factor] | None = None
) -> dict[str, tuple[Array, Array]]:
    """New values of weights, and what is kept of them.

    Args:
        host: The original model.
        analysis: Its analysis.
        kept: The units that stay.
        only: Groups all of whose weights are drawn; ``None``: weights that are constant or tiny, of any group.

    Returns:
        By name: the whole tensor, and what the pruned model holds of it.
    """
    rng = np.random.default_rng(0)
    found: dict[str, tuple[Array, Array]] = {}
    adjusted = frozenset(host.adjusted).union(*host.adjusted.values())
    for value in analysis.graph.stored:
        layout = analysis.layouts[value.name]
        factors = {factor for dim in layout for factor in factors_of(dim)}
        if value.name in adjusted or value.kind != "parameter" or value.n_elements < 2 or "float" not in value.dtype:
            continue
        if only is not None and factors.isdisjoint(only):
            continue
        old = host.read(value.name)
        largest = float(np.abs(old).max(initial=0.0))
        if old.dtype.kind != "f" or not largest < LARGEST:
            continue
        if only is None and np.ptp(old) > 0 and largest > TINY:
            continue
        new = rng.standard_normal(old.shape)
        if old.ndim > 1:
            new /= np.sqrt(max(1, old.size // max(old.shape)))
        elif old.min() > 0:
            new = rng.uniform(0.5, 1.5, old.shape)
        whole = new.astype(old.dtype)
        cut = whole
        for axis, dim in enumerate(layout):
            if not kept.keys().isdisjoint(factors_of(dim)):
                cut = cut.take(positions(dim, kept), axis=axis)
        found[value.name] = whole, cut
    return found
