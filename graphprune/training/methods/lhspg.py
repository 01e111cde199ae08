"""LoRAShear's LHSPG (Chen et al. 2023, arXiv 2310.18356, algorithms 3 and 4): knowledge moves before units go.

1. Knowledge distribution: part of each group is removed on trial; the groups that cost most stay whole (``protect``).
2. Warm-up: low-rank additions alone are trained, and their gradients say how important units are (``lora-taylor``).
3. ``periods`` times some units become redundant, and go to zero in the T steps of the period. At each step, with x all
   that makes a unit (rows, biases, scales of norms: OTO's zero-invariant group) and D the additions to it,

       x̃ = x + D - λ x/‖x‖,   x = 0 if <x̃, x> < ε ‖x‖², else x̃,   rows of B = 0,

   with λ the norm at the begin over T; ``decay`` multiplies ``x + D`` by ``(T - t - 1)/(T - t)`` instead, as the code
   of OTO does. The others learn on through the additions, and take over what is lost. The last step ends at zero in any
   case, and the additions of the others are merged.

Dynamic recovery comes after that: :mod:`graphprune.recovery.sources`.

Proof: redundant rows are zero after T steps, others ``W + s B A``; units that the descent leads through zero are
projected, others are not; with a duplicated input the other unit takes all over (tests/training).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from graphprune.errors import OptionError
from graphprune.training.adapters import importance
from graphprune.training.method import Loop
from graphprune.training.methods.llm_pruner import importance as of_elements
from graphprune.training.methods.lora_taylor import LoraTaylor

PROJECTIONS = ("half-space", "decay")
SCORES = ("additions", "weights")


@dataclass(kw_only=True, repr=False)
class Lhspg(LoraTaylor):
    """Units go to zero in periods, while low-rank additions are trained.

    Attributes:
        periods: How often units become redundant.
        protect: This fraction of the groups stays whole: those whose units cost most on trial; 0: none.
        projection: ``half-space`` or ``decay``.
        scores_of: What says how important units are: ``additions``, their gradients over time; or ``weights``, those of
            all weights in the one step that begins a period (``Σ |w · g|``, as ``llm-pruner``), which take memory then.
        epsilon: A unit is zero where less than this part of it would be left along what it is.
    """

    name: ClassVar[str] = "lhspg"
    schedule: ClassVar[Mapping[str, Any]] = {"kind": "linear", "begin": 0.1, "end": 0.6}
    periods: int = 5
    protect: float = 0.1
    projection: str = "half-space"
    scores_of: str = "additions"
    epsilon: float = 0.0

    def check(self) -> None:
        """Refuses what means nothing."""
        super().check()
        if self.projection not in PROJECTIONS:
            raise OptionError(f"unknown projection '{self.projection}'; expected one of {', '.join(PROJECTIONS)}")
        if self.scores_of not in SCORES:
            raise OptionError(f"unknown scores_of '{self.scores_of}'; expected one of {', '.join(SCORES)}")
        if self.periods < 1 or not 0 <= self.protect < 1 or not 0 <= self.epsilon < 1:
            raise OptionError(
                f"periods is {self.periods}, protect {self.protect:g} and epsilon {self.epsilon:g}; expected 1 or "
                "more, and fractions below 1"
            )

    def begin(self, loop: Loop) -> None:
        """Looks where knowledge lies."""
        super().begin(loop)
        if self.protect:
            loop.chooser.protect_sensitive(self.protect)

    def before_step(self, loop: Loop) -> None:
        """The running mean follows; at the begin of a period it says which units become redundant."""
        keep = self.keep if loop.step else 0.0
        begins = self._begins(loop)
        if self.scores_of == "additions":
            self.tensors["scores"] = keep * self.tensors["scores"] + (1 - keep) * importance(self.adapters, loop.units)
        elif not loop.over and loop.step in begins[:-1]:
            self.tensors["scores"] = of_elements(loop)
            self.adapters.freeze()
        if loop.over or loop.step not in begins[:-1]:
            return
        part = (begins.index(loop.step) + 1) / (len(begins) - 1)
        remaining = loop.chooser.fraction if part == 1 else 1 - (1 - loop.chooser.fraction) * part
        self.tensors["staying"] = loop.choose(self.tensors["scores"], remaining)
        self.tensors["norms"] = loop.units.squares(loop.units.making).sqrt()

    def after_step(self, loop: Loop) -> None:
        """Redundant units come closer to zero; at the end of a period they are there, and additions are merged."""
        if not loop.over and "staying" in self.tensors:
            begins = self._begins(loop)
            end = next(each for each in begins if each >= loop.step)
            length = end - max(each for each in begins if each < loop.step)
            staying = self.tensors["staying"]
            self.shrink(loop, loop.alive & ~staying, end - loop.step, length)
            if loop.step == end:
                del self.tensors["staying"]
                loop.remove(staying & loop.alive, over=end == begins[-1])
                self.adapters.hold(loop.units, loop.alive)
                self.adapters.merge()
        self.adapters.hold(loop.units, loop.alive)
        self._look(loop)

    def _look(self, loop: Loop) -> None:
        """All weights get gradients in the next step, if units are chosen by them then."""
        if self.scores_of == "weights" and not loop.over and loop.step in self._begins(loop)[:-1]:
            self.adapters.thaw()

    def load(self, state: Mapping[str, Any], loop: Loop) -> None:
        """Takes up what was left."""
        super().load(state, loop)
        self._look(loop)

    def start(self, loop: Loop) -> None:
        """Puts the additions in."""
        super().start(loop)
        self._look(loop)

    def shrink(self, loop: Loop, going: Tensor, left: int, length: int) -> None:
        """A step of units towards zero.

        Args:
            loop: The loop.
            going: Which units, ``[n]`` of booleans.
            left: Steps of the period that come after this one.
            length: Of the period.
        """
        units = loop.units
        with torch.no_grad():
            squared = units.squares(units.making)
            moved = self._absorbed(loop, going)
            if self.projection == "decay":
                factor = going * (1.0 / (left + 1))
                units.multiply_(units.making, 1 - factor.to(units.dtype))
                return
            norm = squared.sqrt().clamp_min(1e-30)
            penalty = self.tensors["norms"] / max(1, length)
            inner = squared + moved - penalty * norm
            zero = going & ((inner <= self.epsilon * squared) | (left == 0))
            # x̃ = (x + D) - λ x/‖x‖; x is what it was before D came to it
            self._step_back(loop, torch.where(going, penalty / norm, torch.zeros_like(norm)))
            units.multiply_(units.making, (~zero).to(units.dtype))

    def _absorbed(self, loop: Loop, going: Tensor) -> Tensor:
        """Moves the additions of units into their rows; gives ``<D, x>`` of each, ``[n]``."""
        units, mask = loop.units, going.to(loop.units.dtype)
        total = units.zeros()
        self._before = {}
        rows = {place.name: place.axis for place in units.making}
        for name, axis in rows.items():
            parameter = units.parameters[name]
            self._before[name] = parameter.detach().clone()
            pair = self.adapters.pairs.get(name)
            if pair is None or axis != 0:
                continue
            which = torch.zeros_like(parameter[:, :1])
            for place in units.making:
                if place.name == name and place.axis == 0:
                    which = torch.maximum(which, units.at(place, mask, 0.0))
            moved = which * pair.product()
            found = [place for place in units.making if place.name == name and place.axis == 0]
            product = moved * parameter.detach()
            total += units.sums(found, lambda _, product=product: product)  # type: ignore[misc]
            parameter.add_(moved)
            pair.b.mul_(1 - which)
        return total

    def _step_back(self, loop: Loop, share: Tensor) -> None:
        """Takes a share of what units were from what they are."""
        units = loop.units
        for name, before in self._before.items():
            for place in units.making:
                if place.name == name:
                    units.parameters[name].sub_(before * units.at(place, share, 0.0))
        self._before = {}

    def _begins(self, loop: Loop) -> list[int]:
        """The first steps of the periods, and that after the last one."""
        first, last = min(loop.schedule.first, loop.schedule.last - 1), loop.schedule.last
        return sorted({first + round(i * (last - first) / self.periods) for i in range(self.periods + 1)})
