"""When units go, and how much has gone by when: the schedules of gradual pruning as functions of the step.

``linear``: the same amount at each time. ``cubic``: much early, little late (Zhu and Gupta 2017; TF-MOT's polynomial
decay of power 3). ``geometric``: the same fraction of what is left at each time (iterative magnitude pruning).
``once``: all at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphprune.errors import OptionError
from graphprune.suggest import meant

KINDS = ("cubic", "linear", "geometric", "once")


@dataclass(frozen=True)
class Schedule:
    """The steps of a loop in which something is removed.

    Attributes:
        steps: Of the whole loop: how often ``optimizer.step()`` runs.
        kind: One of :data:`KINDS`.
        begin: The fraction of the steps before anything is removed.
        end: The fraction of the steps after which the target is met, and what is left trains on.
        every: Steps from one removal to the next; 0 for a twentieth of the time between ``begin`` and ``end``.
    """

    steps: int
    kind: str = "cubic"
    begin: float = 0.1
    end: float = 0.6
    every: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise OptionError(f"steps is {self.steps}; expected how often the loop calls optimizer.step()")
        if self.kind not in KINDS:
            raise OptionError(f"unknown schedule {meant(self.kind, KINDS)}; expected one of {', '.join(KINDS)}")
        if not 0 <= self.begin <= self.end <= 1:
            raise OptionError(
                f"begin is {self.begin:g} and end is {self.end:g}; expected fractions of the steps, 0 to 1, begin first"
            )
        if self.every < 0:
            raise OptionError(f"every is {self.every}; expected a number of steps, or 0")

    @property
    def first(self) -> int:
        """The step after which something is removed for the first time."""
        return min(max(1, round(self.begin * self.steps)), self.last)

    @property
    def last(self) -> int:
        """The step after which the target is met."""
        return min(max(1, round(self.end * self.steps)), self.steps)

    @property
    def period(self) -> int:
        """Steps from one removal to the next."""
        return self.every or max(1, (self.last - self.first) // 20)

    def due(self, step: int) -> bool:
        """Whether something is removed after so many steps."""
        if self.kind == "once" or step == self.last:
            return step == self.last
        return self.first <= step < self.last and (step - self.first) % self.period == 0

    def passed(self, step: int) -> float:
        """How much of the time between ``begin`` and ``end`` has passed, from 0 to 1; the first removal counts."""
        begin = self.first - self.period
        return min(1.0, max(0.0, (step - begin) / max(1, self.last - begin)))

    def remaining(self, step: int, target: float) -> float:
        """The fraction of a cost that may remain after so many steps, on the way from 1 to ``target``."""
        passed = self.passed(step)
        if self.kind == "once":
            return target if step >= self.last else 1.0
        if self.kind == "geometric":
            return float(target**passed)
        power = 3 if self.kind == "cubic" else 1
        return target + (1 - target) * (1 - passed) ** power
