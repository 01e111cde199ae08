"""Magnitude of all weights of a unit, over all sites of its group: ``S(u) = (Σ_e ‖T_e[π_e(u)]‖_p^p)^(1/p)``.

Li et al. 2016 for one layer; over the coupled group as in DepGraph and OTO (methods.md §1.2). Only parameters count:
the running statistics of a batch normalisation are no weights, and ONNX files are read the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.analysis.groups import Group
from graphprune.ir.dims import Factor, unit_of

_LETTERS = "abcdefghijklmnop"


def l1(groups: Iterable[Group], read: Callable[[str], NDArray[Any]], seed: int = 0) -> dict[str, NDArray[np.float64]]:
    """Sum of absolute weights of each unit."""
    return _norms(groups, read, 1)


def l2(groups: Iterable[Group], read: Callable[[str], NDArray[Any]], seed: int = 0) -> dict[str, NDArray[np.float64]]:
    """Euclidean norm of the weights of each unit."""
    return {name: np.sqrt(values) for name, values in _norms(groups, read, 2).items()}


def _norms(groups: Iterable[Group], read: Callable[[str], NDArray[Any]], p: int) -> dict[str, NDArray[np.float64]]:
    marginals: dict[tuple[str, int], NDArray[np.float64]] = {}
    tensors: dict[str, NDArray[Any]] = {}

    def marginal(tensor: str, axis: int) -> NDArray[np.float64]:
        """``Σ |w|^p`` over all axes but one; computed once for each axis, without a temporary of the tensor's size."""
        key = (tensor, axis)
        if key not in marginals:
            if tensor not in tensors:
                tensors[tensor] = _floating(read(tensor))
            weights = tensors[tensor]
            letters = _LETTERS[: weights.ndim]
            if p == 2:
                sums = np.einsum(f"{letters},{letters}->{letters[axis]}", weights, weights)
            else:
                sums = np.einsum(f"{letters}->{letters[axis]}", np.abs(weights))
            marginals[key] = sums.astype(np.float64)
        return marginals[key]

    scores = {}
    for group in groups:
        total = np.zeros(group.size)
        for site in group.sites:
            if not site.parameter:
                continue
            sums = marginal(site.tensor, site.axis)
            if isinstance(site.dim, Factor):
                total += sums
            else:
                unit = unit_of(site.dim, group.factor)
                ours = unit >= 0
                total += np.bincount(unit[ours], weights=sums[ours], minlength=group.size)
        scores[group.name] = total
    return scores


def _floating(array: NDArray[Any]) -> NDArray[Any]:
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)
