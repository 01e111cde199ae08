"""Soft filter pruning (He et al. 2018, arXiv 1808.06866): units are set to zero and may come back until the end.

At each time of the schedule the units with the lowest scores are chosen anew, and the filters (rows of weights) that
make them are set to zero once; what carries and reads them stays, so that gradients reach the filters and they grow
again. What is chosen at the end of the schedule goes for good.

Proof: a unit that was set to zero and is useful stays in the end (tests/training).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from graphprune.training.method import Loop, Method


@dataclass(kw_only=True, repr=False)
class Soft(Method):
    """Units are zero for a while.

    Attributes:
        whole: Whether as many as in the end are set to zero from the first time on (He et al.); else as the schedule
            has it.
    """

    name: ClassVar[str] = "soft"
    schedule: ClassVar[Mapping[str, Any]] = {"kind": "cubic", "begin": 0.05, "end": 0.6}
    whole: bool = False

    def remove(self, loop: Loop) -> None:
        """Sets units to zero; at the end for good."""
        if loop.step >= loop.schedule.last:
            super().remove(loop)
            return
        fraction = loop.chooser.fraction if self.whole else None
        alive = loop.choose(self.scores(loop), fraction, anew=True)
        filters = [place for place in loop.units.making if not place.carries and place.parameter.ndim > 1]
        loop.units.multiply_(filters, alive.to(loop.units.dtype))
