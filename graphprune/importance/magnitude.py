"""Magnitude of all weights of a unit, over all sites of its group: ``S(u) = (Σ_e ‖T_e[π_e(u)]‖_p^p)^(1/p)``.

Li et al. 2016 for one layer; over the coupled group as in DepGraph and OTO (methods.md §1.2). Only parameters count:
the running statistics of a batch normalisation are no weights, and ONNX files are read the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.analysis.groups import Group
from graphprune.importance.evidence import Evidence
from graphprune.ir.dims import Dim, Factor, Product, Sum

_BLOCK = 1 << 20
"""Weights that are summed in their own type, while they are in the cache; sums of blocks are added in float64."""


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
    sums: dict[Dim, NDArray[Any]] = {}  # of all axes that hold the same units in the same way
    for tensor, used in axes.items():
        for axis, values in zip(used, _marginals(read(tensor), used, p), strict=True):
            dim = sites[tensor, axis]
            known = sums.get(dim)
            sums[dim] = values if known is None else known + values
    for dim, values in sums.items():
        _scatter(dim, values, totals)
    return {group.name: totals[group.factor] for group in groups}


def _marginals(weights: NDArray[Any], axes: list[int], p: int) -> list[NDArray[np.float64]]:
    """``Σ |w|^p`` over all axes but one, for each of ``axes``.

    The weights are read as rows (the first axis) of all other axes, at most twice, without a copy of their size.
    """
    if weights.dtype not in (np.float32, np.float64):
        weights = weights.astype(np.float32)
    if weights.ndim == 1:
        values = weights.astype(np.float64)
        return [np.square(values) if p == 2 else np.abs(values)]
    shape = weights.shape
    table = weights.reshape(shape[0], -1)
    rows, columns = np.zeros(shape[0]), np.zeros(table.shape[1])
    n = max(1, _BLOCK // max(1, table.shape[1]))
    for start in range(0, len(table), n):
        block = table[start : start + n]
        if 0 in axes:
            rows[start : start + n] = np.vecdot(block, block) if p == 2 else np.abs(block).sum(axis=1)
        if axes != [0]:
            columns += np.einsum("ij,ij->j", block, block) if p == 2 else np.abs(block).sum(axis=0)
    rest = columns.reshape(shape[1:])
    return [rows if axis == 0 else rest.sum(axis=tuple(i for i in range(rest.ndim) if i != axis - 1)) for axis in axes]


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
