"""Re-score, remove, train on: iterative pruning with any criterion of the project, or by the gradients of the loop.

Han et al. 2015 (arXiv 1506.02626), Li et al. 2016 (1608.08710), Molchanov et al. 2016 (1611.06440); the cubic schedule
is that of Zhu and Gupta 2017 (1710.01878) and of TF-MOT's polynomial decay. At each time of the schedule the units that
are left are scored on the weights as they are; those with the lowest scores go for good. With ``gradients``, scores are
``mean_t (∂L_t/∂m(u))²`` with ``∂L_t/∂m(u) = Σ W · ∂L_t/∂W`` over what reads the unit, a moving mean over the steps of
the loop (Molchanov et al. 2019, 1906.10771): no calibration data, no further backward.

Proof: two rounds are one with the union of what they remove; gradients are those of autograd; the masked net is the
dense one (tests/training).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from graphprune.errors import OptionError
from graphprune.training.gates import Gates
from graphprune.training.method import Loop, Method


@dataclass(kw_only=True, repr=False)
class Iterative(Method):
    """Units go for good, some at each time of the schedule, by the criterion of the recipe.

    Attributes:
        gradients: Whether units are scored by the gradients of the loop instead.
        memory: How much of the mean of squared gradients is kept at each step.
    """

    name: ClassVar[str] = "iterative"
    schedule: ClassVar[Mapping[str, Any]] = {}
    gradients: bool = False
    memory: float = 0.95

    def check(self) -> None:
        """Refuses numbers that mean nothing."""
        if not 0 <= self.memory < 1:
            raise OptionError(f"memory is {self.memory:g}; expected 0 or more, below 1")

    def before_step(self, loop: Loop) -> None:
        """Gradients are gathered."""
        if self.gradients and not loop.over:
            found = Gates(loop.units).gradient().square()
            mean = self.tensors.setdefault("mean", loop.units.zeros())
            mean.mul_(self.memory).add_(found, alpha=1 - self.memory)
            self.numbers["weight"] = self.numbers.get("weight", 0.0) * self.memory + 1 - self.memory

    def scores(self, loop: Loop) -> Tensor | None:
        """The mean of squared gradients, where these are asked for."""
        return self.tensors["mean"] / self.numbers["weight"] if self.gradients and "mean" in self.tensors else None
