"""HESSO of OTO (Chen et al. 2024, arXiv 2409.09085): redundant units decay to exactly zero, in periods.

The time of the schedule is divided into ``periods``. At the first step of each, units are scored by five saliencies of
their zero-invariant group x (what makes a unit: rows, biases, norms' scales and shifts) and its gradient g: ``‖x‖``,
``‖x‖/√|x|``, ``1 - cos(x, g)``, ``|<x, g>|``, ``<x, g>²/2``, each over its norm over all units. The lowest become
redundant; in the T steps of the period their x is multiplied by ``(T - t - 1)/(T - t)``, which telescopes to zero in a
line, while the others train on. The sign of the cosine is that of DHSPG: where the descent leads to zero, less is lost.

Proof: x falls in a line to exact zero; the number of units is that of the target (tests/training).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from graphprune.errors import OptionError
from graphprune.training.method import Loop, Method


@dataclass(kw_only=True, repr=False)
class Hesso(Method):
    """Units decay in periods.

    Attributes:
        periods: How often units are scored.
    """

    name: ClassVar[str] = "hesso"
    periods: int = 5

    def check(self) -> None:
        """Refuses numbers that mean nothing."""
        if self.periods < 1:
            raise OptionError(f"periods is {self.periods}; expected 1 or more")

    def before_step(self, loop: Loop) -> None:
        """At the begin of a period: which units become redundant."""
        begin = self._period(loop, loop.step)[0]
        if loop.over or loop.step < loop.schedule.first or (loop.step != begin and "staying" in self.tensors):
            return
        number = 1 + sum(loop.step >= each for each in self._begins(loop)[1:])
        remaining = 1 - (1 - loop.chooser.fraction) * number / self.periods
        last = number == self.periods
        self.tensors["staying"] = loop.choose(saliency(loop), loop.chooser.fraction if last else remaining)

    def after_step(self, loop: Loop) -> None:
        """Redundant units come closer to zero; at the end of a period they are there."""
        if loop.over or "staying" not in self.tensors:
            return
        end = self._period(loop, loop.step - 1)[1]
        staying, left = self.tensors["staying"], end - loop.step
        if left > 0:
            going = (loop.alive & ~staying).to(loop.units.dtype)
            loop.units.multiply_(loop.units.making, 1 - going / (left + 1))
        else:
            loop.remove(staying & loop.alive, over=end == loop.schedule.last)
            del self.tensors["staying"]

    def last(self, loop: Loop) -> Tensor:
        """By the saliencies, or by the criterion of the recipe where there are no gradients any more."""
        return loop.choose(None, loop.chooser.fraction)

    def _begins(self, loop: Loop) -> list[int]:
        first, last = loop.schedule.first, loop.schedule.last
        return sorted({first + round(i * (last - first) / self.periods) for i in range(self.periods)})

    def _period(self, loop: Loop, step: int) -> tuple[int, int]:
        """The period that a step is in: its first step, and that after its last one."""
        begins = [*self._begins(loop), loop.schedule.last]
        begin = max((each for each in begins[:-1] if each <= step), default=begins[0])
        return begin, next((each for each in begins if each > begin), begin + 1)


def saliency(loop: Loop) -> Tensor:
    """The mix of five, ``[n]``, equally weighted."""
    units, places = loop.units, loop.units.making
    with torch.no_grad():
        norm = units.squares(places).sqrt()
        inner = units.sums(
            places, lambda p: None if p.parameter.grad is None else p.parameter.detach() * p.parameter.grad
        )
        slope = units.sums(places, lambda p: None if p.parameter.grad is None else p.parameter.grad.square()).sqrt()
        cosine = 1 - inner / (norm * slope).clamp_min(1e-30)
        each = (norm, norm / units.elements(places).clamp_min(1.0).sqrt(), cosine, inner.abs(), inner.square() / 2)
        return torch.stack([one / one.norm().clamp_min(1e-30) for one in each]).mean(0)
