"""Iterative magnitude pruning with rewinding (Frankle and Carbin 2019, 1803.03635; Frankle et al. 2020, 1912.05671).

Train, remove the units with the lowest scores, set the others back to what they were after ``rewind`` of the steps, and
train again: ``rounds`` times, in each the same fraction of what is left. What was removed is known by the units of the
model that was first, so that all rounds are one plan, which can be replayed on the earlier weights. The optimiser keeps
its momenta; learning rates are the loop's own business.

Proof: after a rewinding, the module is the plan of all rounds on the earlier weights; two rounds are one with the union
(tests/training).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from graphprune.errors import OptionError
from graphprune.training.method import Loop, Method

_AT = "at "


@dataclass(kw_only=True, repr=False)
class Imp(Method):
    """Rounds of training, each from the same early weights.

    Attributes:
        rounds: How often units are removed, evenly between ``begin`` and ``end``.
        rewind: After which fraction of the steps weights are noted that rounds begin with.
    """

    name: ClassVar[str] = "imp"
    schedule: ClassVar[Mapping[str, Any]] = {"kind": "geometric", "begin": 0.25, "end": 0.75}
    rounds: int = 3
    rewind: float = 0.02

    def check(self) -> None:
        """Refuses numbers that mean nothing."""
        if self.rounds < 1 or not 0 <= self.rewind <= 1:
            raise OptionError(
                f"rounds is {self.rounds} and rewind {self.rewind:g}; expected 1 or more, and a fraction of the steps"
            )

    def start(self, loop: Loop) -> None:
        """Notes the weights if rounds begin with these."""
        if round(self.rewind * loop.schedule.steps) == 0:
            self._note(loop.module)

    def after_step(self, loop: Loop) -> None:
        """Removes, and rewinds, at the end of a round."""
        if loop.step == min(round(self.rewind * loop.schedule.steps), loop.schedule.first - 1):
            self._note(loop.module)
        times = self.times(loop)
        if loop.over or loop.step not in times:
            return
        part, last = (times.index(loop.step) + 1) / len(times), loop.step == times[-1]
        remaining = loop.chooser.fraction**part if not last else loop.chooser.fraction
        loop.remove(loop.choose(self.scores(loop), remaining), over=last)
        self._rewind(loop.module)
        loop.hold()

    def times(self, loop: Loop) -> list[int]:
        """After which steps rounds end."""
        first, last = loop.schedule.first, loop.schedule.last
        if self.rounds == 1:
            return [last]
        return sorted({first + round(i * (last - first) / (self.rounds - 1)) for i in range(self.rounds)})

    def _note(self, module: nn.Module) -> None:
        self.tensors.update({_AT + name: each.detach().clone() for name, each in _tensors(module).items()})

    def _rewind(self, module: nn.Module) -> None:
        with torch.no_grad():
            for name, each in _tensors(module).items():
                if (noted := self.tensors.get(_AT + name)) is not None:
                    each.copy_(noted)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers: statistics of norms belong to weights."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
