"""Both oracles on a traced model, for the tests of the torch host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from graphprune.analysis.groups import Analysis, Group, analyze_graph
from graphprune.hosts.torch.host import TorchHost
from graphprune.ir.dims import Factor, Index
from graphprune.passes.slice_groups import slice_edits
from graphprune.proof.findings import Pair
from graphprune.proof.masks import masks, permutations
from graphprune.proof.oracles import masked, permuted_alike, precision_of
from graphprune.proof.watch import watched


@dataclass(frozen=True)
class Proof:
    """A model, its analysis, and the model with about half of the units of every group removed at random."""

    host: TorchHost
    analysis: Analysis
    kept: Mapping[Factor, Index]
    pruned: TorchHost

    @property
    def groups(self) -> tuple[Group, ...]:
        return self.analysis.groups

    def group(self, site: str) -> Group:
        """The group that holds a ``tensor[axis]``; there must be one only."""
        tensor, axis = site.rstrip("]").rsplit("[", 1)
        (found,) = (
            group for group in self.groups if any((s.tensor, s.axis) == (tensor, int(axis)) for s in group.sites)
        )
        return found

    def reasons(self, site: str) -> list[str]:
        """Why a ``tensor[axis]`` stays whole."""
        tensor, axis = site.rstrip("]").rsplit("[", 1)
        return [reason.text for reason in self.analysis.site_reasons(tensor, int(axis))]


def prove(model: torch.nn.Module, example: Any, dynamic_shapes: Any = None, *, seed: int = 0, n: int = 2) -> Proof:
    """Traces, prunes at random, and asserts that both oracles hold; the last random pruning is returned."""
    host = TorchHost.trace(model, example, dynamic_shapes).folded()
    analysis = analyze_graph(host.graph())
    rng = np.random.default_rng(seed)
    inputs = host.example_inputs()
    for _ in range(n):
        kept = {
            group.factor: np.sort(rng.choice(group.size, group.at_least(group.size // 2), replace=False))
            for group in analysis.groups
        }
        pruned = host.edited(slice_edits(analysis, kept))
        inside = watched(analysis, kept, pruned.graph(), adjusted=host.adjusted)
        pair = Pair(host, pruned, masks(analysis, kept), inside)
        check, _ = masked(pair, inputs, precision_of(analysis), note="")
        assert check.difference <= check.tolerance, check
        for name, value in pruned.graph().values.items():  # the shapes that the edits left are the true ones
            if value.stored:
                assert value.shape == tuple(pruned.tensor(name).shape)
    permuted = host.edited(slice_edits(analysis, permutations(analysis, seed)))
    permutation, _ = permuted_alike(host, permuted, inputs, precision_of(analysis))
    assert permutation.difference <= permutation.tolerance, permutation
    return Proof(host, analysis, kept, pruned)
