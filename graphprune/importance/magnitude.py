"""Magnitude of all weights of a unit, over all sites of its group: ``S(u) = (Σ_e ‖T_e[π_e(u)]‖_p^p)^(1/p)``.

Li et al. 2016 for one layer; over the coupled group as in DepGraph and OTO (methods.md §1.2). Only parameters count:
the running statistics of a batch normalisation are no weights, and ONNX files are read the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.analysis.groups import Group
from graphprune.importance.evidence import Evidence
from graphprune.ir.dims import Dim, Factor, Product, Sum

_LETTERS = "abcdefghijklmnop"


def l1(evidence: Evidence) -> dict[str, NDArray[np.float64]]:
    """Sum of absolute weights of each unit."""
    return _norms(evidence.groups, evidence.read, 1)


def l2(evidence: Evidence) -> dict[str, NDArray[np.float64]]:
    """Euclidean norm of the weights of each unit."""
    return {name: np.sqrt(values) for name, values in _norms(evidence.groups, evidence.read, 2).items()}


def _norms(groups: Iterable[Group], read: Callable[[str], NDArray[Any]], p: int) -> dict[str, NDArray[np.float64]]:
    groups = tuple(groups)
    totals = {group.factor: np.zeros(group.size) for group in groups}
    sites = {(site.tensor, site.axis): site.dim for group in groups for site in group.sites if site.parameter}
    axes: dict[str, list[int]] = {}
    for tensor, axis in sites:
        axes.setdefault(tensor, []).append(axis)
    for tensor, used in axes.items():
        sums = _marginals(read(tensor), used, p)
        for axis, values in zip(used, sums, strict=True):
            _scatter(sites[tensor, axis], values, totals)
    return {group.name: totals[group.factor] for group in groups}


def _marginals(weights: NDArray[Any], axes: list[int], p: int) -> list[NDArray[Any]]:
    """``Σ |w|^p`` over all axes but one, for each of ``axes``."""
    if weights.dtype not in (np.float32, np.float64):
        weights = weights.astype(np.float32)
    rank = max(axes) + 1
    minor = prod(weights.shape[rank:])
    if minor > 1:  # kernel positions: one pass over all weights, then small sums
        powers = np.square(weights) if p == 2 else np.abs(weights)
        table, power = powers.reshape(-1, minor) @ np.ones(minor, weights.dtype), 1
    else:
        table, power = (weights, 2) if p == 2 else (np.abs(weights), 1)
    table = table.reshape(weights.shape[:rank])
    letters = _LETTERS[:rank]
    operands = ",".join([letters] * power)
    return [np.einsum(f"{operands}->{letters[axis]}", *[table] * power) for axis in axes]


def _scatter(dim: Dim, values: NDArray[Any], totals: Mapping[Factor, NDArray[np.float64]]) -> None:
    """Adds the values of an axis' positions to the units that they belong to."""
    match dim:
        case Factor():
            if dim in totals:
                totals[dim] += values
        case Product():
            table = values.reshape([part.size for part in dim.parts])
            for i, part in enumerate(dim.parts):
                _scatter(part, table.sum(axis=tuple(j for j in range(table.ndim) if j != i)), totals)
        case Sum():
            offset = 0
            for part in dim.parts:
                _scatter(part, values[offset : offset + part.size], totals)
                offset += part.size
