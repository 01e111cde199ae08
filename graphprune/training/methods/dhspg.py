"""DHSPG of OTOv2 (Chen et al. 2023, arXiv 2303.06862): dual half-space projected gradient on zero-invariant groups.

At the begin of the schedule the units to go are chosen: those where the descent leads to zero, and small ones,
``½ cos(x, g)/norm + ½ (√|x| / ‖x‖)/norm`` high. For each of them ``λ x/‖x‖`` is added to the gradient g, with λ such
that the step leads downhill for the loss and for ``‖x‖`` at once. Where ``<x, g> < 0``:
``-<x, g>/‖x‖ <= λ <= -‖g‖² ‖x‖ / <x, g>``. After the step of the optimiser to x̂, a unit becomes zero for good if
``<x̂, x> < ε ‖x‖²``. ε rises to one over the schedule, at the end of which all that was chosen is zero.

Proof: both inner products are not negative for random x and g; on ``½‖x - x*‖²`` units with ``<x*, x> < 0`` are
projected and others are not (tests/training).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from graphprune.errors import OptionError
from graphprune.training.method import Loop, Method


@dataclass(kw_only=True, repr=False)
class Dhspg(Method):
    """Units to go are projected to zero where a step takes them out of their half-space.

    Attributes:
        penalty: The least λ.
        amplify: How much more than the least λ that leads to zero is taken.
        epsilon: Of the half-space, at the begin.
    """

    name: ClassVar[str] = "dhspg"
    penalty: float = 1e-2
    amplify: float = 2.0
    epsilon: float = 0.0

    def check(self) -> None:
        """Refuses numbers that mean nothing."""
        self.before: dict[str, Tensor] = {}  # the step of the optimiser
        self.size = torch.zeros(0)
        if self.penalty < 0 or self.amplify < 1 or not 0 <= self.epsilon < 1:
            raise OptionError(
                f"penalty is {self.penalty:g}, amplify {self.amplify:g}, epsilon {self.epsilon:g}; expected at least "
                "0, at least 1, and 0 or more but below 1"
            )

    def before_step(self, loop: Loop) -> None:
        """Chooses the units to go, and penalises them."""
        if loop.over or loop.step < loop.schedule.first:
            return
        units, places = loop.units, loop.units.making
        with torch.no_grad():
            size = units.squares(places)
            inner = units.sums(places, lambda p: None if (g := p.parameter.grad) is None else p.parameter.detach() * g)
            slope = units.sums(places, lambda p: None if (g := p.parameter.grad) is None else g.square())
            if "going" not in self.tensors:
                scores = importance(size.sqrt(), slope.sqrt(), inner, units.elements(places))
                self.tensors["going"] = ~loop.choose(scores, loop.chooser.fraction)
            going = self.tensors["going"] & loop.alive
            strength = penalties(size.sqrt(), slope.sqrt(), inner, self.penalty, self.amplify)
            factor = torch.where(going, strength / size.sqrt().clamp_min(1e-30), torch.zeros_like(size))
            units.add_gradients_(places, factor)
        self.before = {place.name: place.parameter.detach().clone() for place in places}
        self.size = size

    def after_step(self, loop: Loop) -> None:
        """Projects units that have left their half-space."""
        if loop.over or "going" not in self.tensors:
            return
        if loop.step >= loop.schedule.last:
            loop.remove(self.last(loop), over=True)
            return
        units, before = loop.units, self.before
        with torch.no_grad():
            inner = units.sums(units.making, lambda p: before[p.name] * p.parameter.detach())
        epsilon = self.epsilon + (0.999 - self.epsilon) * loop.schedule.passed(loop.step) ** 2
        out = self.tensors["going"] & loop.alive & (inner < epsilon * self.size)
        if bool(out.any()):
            loop.remove(loop.alive & ~out)

    def last(self, loop: Loop) -> Tensor:
        """What was not chosen to go."""
        return super().last(loop) if "going" not in self.tensors else self.tensors["going"].logical_not()


def importance(norm: Tensor, slope: Tensor, inner: Tensor, elements: Tensor) -> Tensor:
    """Low for units that may go, ``[n]``."""
    cosine = inner / (norm * slope).clamp_min(1e-30)
    small = 1 / (norm / elements.clamp_min(1.0).sqrt() + 1e-6)
    parts: list[Tensor] = [each / each.norm().clamp_min(1e-30) for each in (cosine, small)]
    return 1 - 0.5 * (parts[0] + parts[1])


def penalties(norm: Tensor, slope: Tensor, inner: Tensor, least: float, amplify: float) -> Tensor:
    """λ of each unit: the direction ``g + λ x/‖x‖`` leads downhill for the loss and for ``‖x‖``, ``[n]``."""
    against = inner < 0
    lower = torch.where(against, -inner / norm.clamp_min(1e-30), torch.zeros_like(inner))
    upper = torch.where(against, -slope.square() * norm / inner.clamp_max(-1e-30), torch.full_like(inner, torch.inf))
    wanted = (amplify * lower).clamp_min(least)
    return torch.where(wanted < upper, wanted, (lower + upper) / 2)
