"""The regulariser of DepGraph on whole groups (Fang et al. 2023, arXiv 2301.12900; docs/methods.md).

``I(u) = sqrt(mean_e ‖w_e[u]‖²)`` over the members of a unit, ``γ(u) = α^((I_max - I(u)) / (I_max - I_min))`` in each
group, and ``strength · γ(u) · w`` is added to the gradient of every member: unimportant units shrink up to α times as
fast. At the end of the schedule the smallest units go.

Proof: gradients are those of ``strength/2 · Σ γ(u) ‖w(u)‖²`` by autograd (tests/training).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from graphprune.errors import OptionError
from graphprune.training.method import Loop, Method


@dataclass(kw_only=True, repr=False)
class GroupNorm(Method):
    """A penalty on all weights of a unit together, larger for small units.

    Attributes:
        strength: Of the penalty.
        reach: How much more the least important unit of a group is penalised than the most important one (α).
        every: Steps from one update of importances to the next.
    """

    name: ClassVar[str] = "group-norm"
    strength: float = 1e-4
    reach: float = 16.0
    every: int = 50

    def check(self) -> None:
        """Refuses numbers that mean nothing."""
        if self.strength < 0 or self.reach < 1 or self.every < 1:
            raise OptionError(
                f"strength is {self.strength:g}, reach {self.reach:g}, every {self.every}; expected at least 0, 1 and 1"
            )

    def before_step(self, loop: Loop) -> None:
        """Adds the gradients of the penalty."""
        if loop.over:
            return
        if loop.step % self.every == 0 or "weights" not in self.tensors:
            self.tensors["weights"] = self.weights(loop)
        loop.units.add_gradients_(loop.units.places, self.strength * self.tensors["weights"])

    def weights(self, loop: Loop) -> Tensor:
        """``γ(u)``."""
        norms = importance(loop)
        most, least = loop.units.largest(norms), -loop.units.largest(-norms)
        return torch.pow(self.reach, (most - norms) / (most - least).clamp_min(1e-12))

    def scores(self, loop: Loop) -> Tensor | None:
        """The group norm, relative to the mean of the group."""
        return loop.units.relative(importance(loop))


def importance(loop: Loop) -> Tensor:
    """``sqrt(mean_e ‖w_e[u]‖²)``, ``[n]``."""
    units = loop.units
    return torch.sqrt(units.squares(units.places) / units.members.to(units.device))
