"""What the oracles do to units: masks of what is kept, and permutations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from graphprune.analysis.branch import Block
from graphprune.analysis.groups import Analysis
from graphprune.hosts.edits import Edits
from graphprune.hosts.host import Host
from graphprune.ir.dims import Factor, Index, factors_of, positions


def permutations(analysis: Analysis, seed: int) -> dict[Factor, Index]:
    """A random order of the units of every group whose units may change places."""
    rng = np.random.default_rng(seed)
    return {group.factor: rng.permutation(group.size) for group in analysis.groups if group.ordered is None}


def bypassed(original: Host, removed: Iterable[Block]) -> Host:
    """The original, in which what stands for a whole node that is left out has its place; nothing else is gone.

    No mask says that: behind the norm of a post-norm layer, zeros are no longer what was added.
    """
    whole = {each.result: each.skip for block in removed for each in block.bypasses if not each.branch}

    def end(name: str) -> str:
        return end(whole[name]) if name in whole else name

    return original.edited(Edits(bypasses={result: end(skip) for result, skip in whole.items()})) if whole else original


def masks(
    analysis: Analysis, kept: Mapping[Factor, Index], removed: Iterable[Block] = ()
) -> dict[str, dict[int, NDArray[np.bool_]]]:
    """For every value and axis that loses positions, which ones stay; none of a branch that is left out.

    Constants that are positions are left as they are: they point to what is removed, where there is nothing. So are
    indices that count what they belong to as well: zeros would point at the first element.
    """
    found: dict[str, dict[int, NDArray[np.bool_]]] = {}
    touched = frozenset(kept)
    natural = analysis.positions.keys() | analysis.inside
    for name, layout in analysis.layouts.items():
        for axis, dim in enumerate(layout if name not in natural else ()):
            if touched.isdisjoint(factors_of(dim)):
                continue
            mask = np.zeros(dim.size, dtype=np.bool_)
            mask[positions(dim, kept)] = True
            found.setdefault(name, {})[axis] = mask
    for bypass in (bypass for block in removed for bypass in block.bypasses if bypass.branch):
        size = analysis.layouts[bypass.branch][0].size
        found.setdefault(bypass.branch, {})[0] = np.zeros(size, dtype=np.bool_)
    return found
