"""Magnitude of all weights of a unit, over all sites of its group: ``S(u) = (Σ_e ‖T_e[π_e(u)]‖_p^p)^(1/p)``.

Li et al. 2016 for one layer; over the coupled group as in DepGraph and OTO (docs/methods.md, Norms of coupled groups).
Only parameters count: the running statistics of a batch normalisation are no weights, and ONNX files are read the same
way.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.arrays import widened
from graphprune.importance.context import Evidence
from graphprune.ir.dims import Dim, Factor, Product, Sum

BLOCK = 1 << 17
"""Elements of a block, of which alone a copy is made: a table may have a row for each word of a vocabulary."""


def l1(evidence: Evidence) -> dict[str, NDArray[np.float64]]:
    """Sum of absolute weights of each unit."""
    return _norms(evidence, 1)


def l2(evidence: Evidence) -> dict[str, NDArray[np.float64]]:
    """Euclidean norm of the weights of each unit."""
    return {name: np.sqrt(values) for name, values in _norms(evidence, 2).items()}


def _norms(evidence: Evidence, p: int) -> dict[str, NDArray[np.float64]]:
    groups = evidence.groups
    totals = {group.factor: np.zeros(group.size) for group in groups}
    sites = {(site.tensor, site.axis): site.dim for group in groups for site in group.sites if site.parameter}
    axes: dict[str, list[int]] = {}
    for tensor, axis in sites:
        axes.setdefault(tensor, []).append(axis)
    sums: dict[Dim, NDArray[Any]] = {}  # of all axes that hold the same units in the same way
    for tensor, used in axes.items():
        for axis, marginal in zip(used, _marginals(evidence.stored(tensor), used, p), strict=True):
            dim = sites[tensor, axis]
            known = sums.get(dim)
            sums[dim] = marginal if known is None else known + marginal
    for dim, total in sums.items():
        _scatter(dim, total, totals)
    return {group.name: totals[group.factor] for group in groups}


@cache
def _ones(dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.ones(BLOCK, dtype)


def _marginals(weights: NDArray[Any], axes: list[int], p: int) -> list[NDArray[np.float64]]:
    """``Σ |w|^p`` over all axes but one, for each of ``axes``.

    The weights are read once, as rows (the first axis) of all other axes, without a copy of their size. A block is
    summed in single precision, the sums of blocks are added in double precision.
    """
    power = np.square if p == 2 else np.abs
    if weights.ndim == 1:
        return [power(weights.astype(np.float64))]
    single = np.dtype(np.float64 if weights.dtype == np.float64 else np.float32)
    shape = weights.shape
    table = weights.reshape(shape[0], -1)
    rows, columns = np.zeros(shape[0]), np.zeros(table.shape[1])
    ones = _ones(single)
    for left in range(0, table.shape[1], BLOCK):
        part = slice(left, left + BLOCK)
        width = min(table.shape[1] - left, BLOCK)
        n = BLOCK // width
        for start in range(0, len(table), n):
            block = table[start : start + n, part]
            found = power(block if block.dtype == single else widened(block))
            if 0 in axes:
                rows[start : start + n] += found @ ones[:width]  # a product with ones is a faster sum
            if axes != [0]:
                columns[part] += ones[: len(block)] @ found
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
