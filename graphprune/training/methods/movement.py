"""Movement pruning (Sanh et al. 2020, arXiv 2005.07683) of units: scores are learned by the gradients of gates.

Each unit has a score ``S`` and a gate ``m`` that is 0 or 1. The gradient of the gate goes straight through to the
score: ``S ← S - rate · ∂L/∂m``, with ``∂L/∂m(u) = Σ W · ∂L/∂(W m)`` over what reads the unit (block movement: Lagunas
et al. 2021). Units that move away from zero stay, whatever their size; a closed gate may open again. ``top``: as many
gates are open as the schedule says, those of the highest scores. ``soft``: gates are open where ``sigmoid(S)`` is above
``threshold``, and ``penalty · mean sigmoid(S)``, rising with the schedule, closes them; scores move in units of
their gradients' size then. In both, what is closed at the end of the schedule goes for good, exactly to the target.

Proof: where a large weight is of no use and a small one is, the large one goes; gradients of gates are those of
autograd (tests/training).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from graphprune.errors import OptionError
from graphprune.training.gates import Gates
from graphprune.training.method import Loop, Method


@dataclass(kw_only=True, repr=False)
class Movement(Method):
    """Gates that are 0 or 1, by scores that are learned.

    Attributes:
        mode: ``top`` or ``soft``.
        rate: Of the scores.
        threshold: Above which a gate is open, in ``soft``.
        penalty: On open gates at the end of the schedule, in ``soft``.
    """

    name: ClassVar[str] = "movement"
    schedule: ClassVar[Mapping[str, Any]] = {"kind": "cubic", "begin": 0.1, "end": 0.6}
    mode: str = "top"
    rate: float = 0.01
    threshold: float = 0.5
    penalty: float = 1.0

    def check(self) -> None:
        """Refuses options that mean nothing."""
        if self.mode not in ("top", "soft"):
            raise OptionError(f"mode is '{self.mode}'; expected 'top' or 'soft'")
        if self.rate <= 0 or not 0 < self.threshold < 1 or self.penalty < 0:
            raise OptionError(
                f"rate is {self.rate:g}, threshold {self.threshold:g}, penalty {self.penalty:g}; expected above 0, "
                "between 0 and 1, and at least 0"
            )

    def start(self, loop: Loop) -> None:
        """All gates are open."""
        self.gates = Gates(loop.units)
        self.tensors["scores"] = loop.units.zeros()
        if self.mode == "soft":
            self.tensors["scores"] += 1.0
            self.tensors["size"] = loop.units.zeros()

    def before_step(self, loop: Loop) -> None:
        """Scores move."""
        if loop.over:
            return
        slope = self.gates.gradient()
        self.gates.release()
        if self.mode == "soft":
            open_ones = torch.sigmoid(self.tensors["scores"])
            size = self.tensors["size"].mul_(0.99).add_(slope.square(), alpha=0.01)
            typical = (size.mean() / (1 - 0.99 ** (loop.step + 1))).sqrt().clamp_min(1e-30)
            weight = self.penalty * loop.schedule.passed(loop.step) if loop.step >= loop.schedule.first else 0.0
            slope = slope / typical + weight * open_ones * (1 - open_ones)
        self.tensors["scores"] -= self.rate * slope

    def after_step(self, loop: Loop) -> None:
        """Gates open and close."""
        if loop.over:
            return
        if loop.due and loop.step >= loop.schedule.last:
            loop.remove(self.last(loop), over=True)
            return
        values = self.gates.values
        if self.mode == "soft":
            values = (torch.sigmoid(self.tensors["scores"]) > self.threshold).to(values.dtype)
        elif loop.due:
            values = loop.choose(self.tensors["scores"], anew=True).to(values.dtype)
        self.gates.apply(values)

    def scores(self, loop: Loop) -> Tensor | None:
        """What was learned."""
        return self.tensors["scores"]

    def finish(self, loop: Loop) -> None:
        """What is closed goes."""
        self.gates.release()
        super().finish(loop)

    def state(self) -> dict[str, Any]:
        """The scores and what is behind closed gates."""
        found = super().state()
        return {**found, "gates": self.gates.state()}

    def load(self, state: Mapping[str, Any], loop: Loop) -> None:
        """Takes up what :meth:`state` gave."""
        super().load(state, loop)
        self.gates.load(state["gates"])
