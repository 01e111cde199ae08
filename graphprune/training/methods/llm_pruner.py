"""LLM-Pruner (Ma et al. 2023, arXiv 2305.11627): units go once by their elements' gradients, then additions recover.

In the first step the gradients of all weights are there: the score of a unit is ``Σ |w · g|`` over all its elements
(what the criterion ``taylor-elem`` is on calibration inputs). Units go by it once; from then on low-rank additions
alone are trained. The recipe ``llm-pruner`` has ``uniform`` shares with it.

Proof: the score is that of a loop over elements; to prune and merge is to merge and prune (tests/training).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from graphprune.training.adapters import LowRank
from graphprune.training.method import Loop


@dataclass(kw_only=True, repr=False)
class LlmPruner(LowRank):
    """Units go once, by first-order importance of their elements."""

    name: ClassVar[str] = "llm-pruner"

    def start(self, loop: Loop) -> None:
        """All weights have gradients until units are chosen."""
        super().start(loop)
        self.adapters.thaw()

    def begin(self, loop: Loop) -> None:
        """Nothing goes before there are gradients."""

    def before_step(self, loop: Loop) -> None:
        """In the first step, chooses; weights themselves do not move."""
        if loop.over:
            return
        loop.remove(loop.choose(importance(loop), loop.chooser.fraction), over=True)
        self.adapters.freeze()

    def load(self, state: Mapping[str, Any], loop: Loop) -> None:
        """Takes up what was left; weights are frozen once units have gone."""
        super().load(state, loop)
        if loop.over:
            self.adapters.freeze()


def importance(loop: Loop) -> Tensor:
    """``Σ |w · g|`` over all elements of a unit, ``[n]``."""
    with torch.no_grad():
        return loop.units.sums(
            loop.units.places,
            lambda p: None if p.parameter.grad is None else (p.parameter.detach() * p.parameter.grad).abs(),
        )
