"""How long a command will take from now on, from what its steps have taken so far.

What is to come is told as data (:meth:`Observer.expected`). A step that is counted says itself how far it is; for the
others there are the shares that they had in measured compilations, scaled by what this one has taken for the steps that
are done. A step that has run before (another point of a sweep) will take what it took.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from graphprune.observer import Observer, Step

SHARES: Mapping[str, float] = {
    "fold-constants": 0.03,
    "analyze": 0.3,
    "fit-shape": 0.3,
    "find-dead": 1.0,
    "fold-dead": 0.1,
    "calibrate": 1.0,
    "score": 0.7,
    "protect-sensitive": 4.0,
    "measure-losses": 4.0,
    "allocate": 0.1,
    "choose-allocation": 8.0,
    "exchange-units": 0.5,
    "meet-latency": 8.0,
    "slice-groups": 0.03,
    "remove-blocks": 0.01,
    "remove-dead-nodes": 0.03,
    "verify": 1.5,
    "compensate": 2.8,
    "check-export": 0.8,
    "measure-latency": 1.5,
    "rebuild-module": 0.5,
    "recover": 20.0,
    "evaluate": 1.0,
    "write": 0.3,
}
"""Seconds of steps, in those of a walk over the calibration data: medians over a detector, two classifiers and a
recognizer of file types (docs/benchmarks.md, Losses on trial)."""
UNKNOWN = 0.3
"""The share of a step that is not among them."""
ENOUGH = 0.05
"""Nothing is said before this fraction of all is done."""
COUNTED = 0.05
"""A step that is counted says itself how long it takes once this fraction of it is done."""
SHORTEST = 2.0
"""Seconds that a command has to have taken before anything is said."""
SLOWLY = 0.3
"""The part of a change of the estimate that is followed at each look."""


@dataclass
class Remaining(Observer):
    """Watches steps, and says how many seconds are left.

    Attributes:
        after: Names of steps that the command takes behind those that it is told of.
        clock: Gives seconds.
    """

    after: Sequence[str] = ()
    clock: Callable[[], float] = time.monotonic
    _to_come: list[str] = field(default_factory=list)
    _taken: dict[str, float] = field(default_factory=dict)
    _done: list[tuple[float, float]] = field(default_factory=list)
    _now: Step | None = None
    _begun: float = 0.0
    _shown: tuple[float, float] | None = None

    def expected(self, names: Sequence[str]) -> None:
        """Told the names of the steps that are to come, in order."""
        self._end()
        self._now, self._to_come = None, [*names, *self.after]

    def step(self, step: Step) -> None:
        """Notes how far the present step is, or that another one begins; parts of a step are not steps of their own."""
        if self._now is not None and step.name == self._now.name and step.name not in self._to_come[:1]:
            self._now = step
        elif step.name in self._to_come:
            self._end()
            del self._to_come[: self._to_come.index(step.name) + 1]
            self._now, self._begun = step, self.clock()

    def finished(self, name: str, seconds: float, state: Any) -> None:
        """Notes what a step has taken."""
        if self._now is not None and name == self._now.name:
            self._end()
            self._now = None

    def _end(self) -> None:
        if self._now is not None:
            seconds = self.clock() - self._begun
            self._done.append((self._share(self._now.name), seconds))
            self._taken[self._now.name] = seconds

    @staticmethod
    def _share(name: str) -> float:
        return SHARES.get(name, UNKNOWN)

    def seconds(self) -> float | None:
        """How many seconds are left; ``None`` while too little is done to tell."""
        estimate = self._estimate()
        if estimate is None:
            return None
        now = self.clock()
        if self._shown is not None:  # what was said, less the time since, and some of what is known better
            said = max(0.0, self._shown[0] - (now - self._shown[1]))
            estimate = said + SLOWLY * (estimate - said)
        self._shown = estimate, now
        return estimate

    def _estimate(self) -> float | None:
        now, done, to_come = self._now, [*self._done], [*self._to_come]  # another thread looks
        share, taken = sum(each for each, _ in done), sum(seconds for _, seconds in done)
        own, part, spent = 0.0, 0.0, 0.0
        if now is not None:
            own, spent = self._share(now.name), self.clock() - self._begun
            part = now.done / now.total if now.total else 0.0
        counted = part >= COUNTED
        known = share + (own * part if counted else 0.0)
        total = share + own + sum(map(self._share, to_come))
        if not total or known / total < ENOUGH or taken + spent < SHORTEST:
            return None
        scale = (taken + (spent if counted else 0.0)) / known
        if counted:
            rest = spent * (1 - part) / part
        else:
            before = self._taken.get(now.name) if now is not None else None
            rest = max(0.0, (own * scale if before is None else before) - spent)
        return rest + sum(self._taken.get(name, self._share(name) * scale) for name in to_come)


def roughly(seconds: float) -> str:
    """A time that is left, no finer than it is known."""
    if seconds < 10:
        return "a few seconds left"
    if seconds < 95:
        return f"about {round(seconds, -1):.0f} s left"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} min left"
    return f"about {seconds / 3600:.1f} h left"
