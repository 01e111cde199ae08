"""Network slimming (Liu et al. 2017, arXiv 1708.06519): the L1 norm of the scales of batch normalisations is penalised.

``strength · sign(γ)`` is added to the gradients of the scales; at the end of the schedule the units with the smallest
``|γ|`` go (the mean where a unit has several). Groups without batch normalisation are ranked by their norms, in
proportion.

Proof: gradients are those of ``strength · Σ |γ|`` by autograd (tests/training).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from graphprune.errors import OptionError
from graphprune.training.method import Loop, Method
from graphprune.training.units import Place, Units


@dataclass(kw_only=True, repr=False)
class Slimming(Method):
    """An L1 penalty on the scales of batch normalisations.

    Attributes:
        strength: Of the penalty.
    """

    name: ClassVar[str] = "slimming"
    strength: float = 1e-3

    def check(self) -> None:
        """Refuses numbers that mean nothing."""
        if self.strength < 0:
            raise OptionError(f"strength is {self.strength:g}; expected at least 0")

    def start(self, loop: Loop) -> None:
        """Refuses models without batch normalisations."""
        if not scales(loop.units):
            raise OptionError(
                "method 'slimming' needs batch normalisations whose channels can be pruned, and the model has none; "
                "take 'group-norm'"
            )

    def before_step(self, loop: Loop) -> None:
        """Adds the gradients of the penalty."""
        if loop.over:
            return
        with torch.no_grad():
            for parameter in {id(place.parameter): place.parameter for place in scales(loop.units)}.values():
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.detach().sign(), alpha=self.strength)

    def scores(self, loop: Loop) -> Tensor | None:
        """The mean ``|γ|`` of each unit."""
        units, places = loop.units, scales(loop.units)
        counts = units.elements(places)
        found = units.sums(places, lambda place: place.parameter.detach().abs()) / counts.clamp_min(1.0)
        norms = units.relative(units.squares(units.places).sqrt())
        return torch.where(counts > 0, found, norms * found[counts > 0].mean())


def scales(units: Units) -> Sequence[Place]:
    """Where units have scales of batch normalisations."""
    nodes = units.analysis.graph.nodes
    named = {node.operands[1] for node in nodes if node.role == "batch-norm" and len(node.operands) > 1}
    return [place for place in units.places if place.name in named]
