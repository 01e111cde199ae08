"""Growing regularisation (GReg-1: Wang et al. 2021, arXiv 2012.09243): what is to go is pushed to zero, ever harder.

At the begin of the schedule the units to go are chosen by the criterion of the recipe. Until its end ``λ(t) · w`` is
added to the gradients of all their weights, with ``λ`` rising from 0 to ``most`` in equal steps, so that the others can
take over what they do. Then they go.

Proof: gradients are those of ``λ/2 · Σ ‖w(u)‖²`` by autograd; at the end the units have shrunk (tests/training).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from graphprune.errors import OptionError
from graphprune.training.method import Loop, Method


@dataclass(kw_only=True, repr=False)
class Growing(Method):
    """A penalty on the weights of the units to go, which grows.

    Attributes:
        most: The penalty at the end of the schedule; with a learning rate ``r`` weights shrink by ``r · most`` a step.
        every: Steps from one rise to the next.
    """

    name: ClassVar[str] = "growing"
    most: float = 1.0
    every: int = 5

    def check(self) -> None:
        """Refuses numbers that mean nothing."""
        if self.most <= 0 or self.every < 1:
            raise OptionError(f"most is {self.most:g} and every {self.every}; expected above 0, and 1 or more")

    def before_step(self, loop: Loop) -> None:
        """Adds the gradients of the penalty."""
        first, last = loop.schedule.first, loop.schedule.last
        if loop.over or loop.step < first:
            return
        if "going" not in self.tensors:
            alive = loop.choose(None, loop.chooser.fraction)
            self.tensors["going"] = (~alive).to(loop.units.dtype)
        risen = (loop.step - first) // self.every * self.every + self.every
        strength = self.most * min(1.0, risen / max(1, last - first))
        loop.units.add_gradients_(loop.units.places, strength * self.tensors["going"])

    def last(self, loop: Loop) -> Tensor:
        """What was not chosen to go."""
        return super().last(loop) if "going" not in self.tensors else self.tensors["going"] == 0
