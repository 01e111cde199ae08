"""LoRAPrune (Zhang et al. 2023, arXiv 2305.18403): importance from the gradients of low-rank additions alone.

At each step the score of a unit is ``Σ |Ĝ ⊙ (W + s B A)|`` with ``Ĝ = ∇B A + B ∇A - ∇B ∇A`` (no gradient of W is ever
formed), over the norm of its matrix, summed over the matrices of the group; a running mean keeps nine tenths of itself.
Units go by a cubic schedule, every ten steps, after a tenth of warm-up, and none in the last tenth. Only the additions
are trained, and merged at the end.

Proof: where B is zero, Ĝ is ``s G Aᵀ A``, G being the gradient of W; to prune and merge is to merge and prune
(tests/training).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from graphprune.errors import OptionError
from graphprune.training.adapters import LowRank, importance
from graphprune.training.method import Loop


@dataclass(kw_only=True, repr=False)
class LoraTaylor(LowRank):
    """Units go step by step, by scores from the additions.

    Attributes:
        keep: The part of itself that the running mean of scores keeps at each step.
    """

    name: ClassVar[str] = "lora-taylor"
    schedule: ClassVar[Mapping[str, Any]] = {"kind": "cubic", "begin": 0.1, "end": 0.9, "every": 10}
    keep: float = 0.9

    def check(self) -> None:
        """Refuses numbers that mean nothing."""
        super().check()
        if not 0 <= self.keep < 1:
            raise OptionError(f"keep is {self.keep:g}; expected a fraction below 1")

    def begin(self, loop: Loop) -> None:
        """Nothing goes before there are gradients."""
        self.tensors["scores"] = loop.units.zeros()

    def before_step(self, loop: Loop) -> None:
        """The running mean follows."""
        self.tensors["scores"] = self.keep * self.tensors["scores"] + (1 - self.keep) * importance(
            self.adapters, loop.units
        )

    def scores(self, loop: Loop) -> Tensor:
        """The running mean."""
        return self.tensors["scores"]
