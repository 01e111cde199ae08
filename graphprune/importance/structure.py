"""Criteria of weights other than their norm: scales of normalisations, distances between units, ranks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graphprune.analysis.groups import Group
from graphprune.errors import OptionError
from graphprune.importance.context import Evidence, Float
from graphprune.importance.fallback import with_fallback
from graphprune.importance.magnitude import l2
from graphprune.ir.dims import unit_of


def bn_gamma(evidence: Evidence) -> dict[str, Float]:
    """``|γ|`` of the batch normalisations of a unit (network slimming, Liu et al. 2017); the mean where it has several.

    Groups without batch normalisation are scored by the norm of their weights, scaled to the others.

    Raises:
        OptionError: The model has no batch normalisation.
    """
    scales = {
        node.operands[1]
        for node in evidence.analysis.graph.nodes
        if node.role == "batch-norm" and len(node.operands) > 1
    }
    scores: dict[str, Float] = {}
    for group in evidence.groups:
        found = [
            _sums(np.abs(evidence.read(site.tensor)), unit_of(site.dim, group.factor), group.size)
            for site in group.sites
            if site.tensor in scales
        ]
        if found:
            scores[group.name] = np.mean(found, axis=0)
    if not scores:
        raise OptionError(
            "criterion 'bn-gamma' needs batch normalisations and the model has none (they may be folded into "
            "convolutions); use l2 or a criterion with calibration data"
        )
    return with_fallback(scores, evidence)


def _sums(values: NDArray[np.float64], units: NDArray[np.int64], size: int) -> Float:
    inside = units >= 0
    return np.bincount(units[inside], np.asarray(values)[inside], minlength=size).astype(np.float64)


def lamp(evidence: Evidence) -> dict[str, Float]:
    """Layer-adaptive magnitude: ``S_(k) / Σ_{j≥k} S_(j)`` with ``S`` the squared norms, rising (Lee et al. 2021)."""
    scores: dict[str, Float] = {}
    for name, norms in l2(evidence).items():
        squares = norms**2
        order = np.argsort(squares, kind="stable")
        rising = squares[order]
        rest = np.cumsum(rising[::-1])[::-1]
        scores[name] = np.empty_like(squares)
        scores[name][order] = rising / np.maximum(rest, 1e-300)
    return scores


def fpgm(evidence: Evidence) -> dict[str, Float]:
    """Sum of the distances of a unit's weights to those of all others (FPGM, He et al. 2019): what lies at the
    geometric median can be made up by the others. Over all sites of the group.
    """
    return {group.name: np.sqrt(_distances(evidence, group)).sum(axis=1) for group in evidence.groups}


def _distances(evidence: Evidence, group: Group) -> Float:
    """Squared distances between the weights of units, ``[U, U]``."""
    gram = np.zeros((group.size, group.size))
    for site in group.sites:
        if not site.parameter:
            continue
        weight = np.moveaxis(np.asarray(evidence.read(site.tensor), np.float64), site.axis, 0)
        units = unit_of(site.dim, group.factor)
        inside = np.flatnonzero(units >= 0)
        order = inside[np.argsort(units[inside], kind="stable")]
        rows = weight[order].reshape(group.size, -1)
        gram += rows @ rows.T
    norms = np.diag(gram)
    return np.maximum(norms[:, None] + norms[None, :] - 2 * gram, 0.0)
