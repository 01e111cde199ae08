"""What is being done, as data: steps for whoever watches (a progress bar, a log, timing, dumps of the graph).

Code that takes long says a :class:`Step`; nobody reads numbers out of a sentence. A function below the passes, which
does not know for whom it works, is given a :data:`Count` and tells how much of its part is done.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

LOGGER = logging.getLogger("graphprune")

Count = Callable[[int, int], None]
"""Told how many parts of how many are done."""


def uncounted(done: int, total: int) -> None:
    """A :data:`Count` for whoever does not want to know."""


@dataclass(frozen=True, slots=True)
class Step:
    """What is done now.

    Attributes:
        name: Of the step: that of a pass, or what a command does beside passes (``open``, ``export``).
        done: How many of its parts are done.
        total: How many parts it has; ``None`` where it is not counted.
        detail: Which part is next, in words: the name of a group.
        within: What the step is a part of, the outermost first: the point of a sweep.
    """

    name: str
    done: int = 0
    total: int | None = None
    detail: str = ""
    within: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line for a reader: ``calibrate 3 of 20`` while the third part is being done."""
        counted = "" if self.total is None else f" {min(self.done + 1, self.total)} of {self.total}"
        detail = f": {self.detail}" if self.detail else ""
        return ": ".join((*self.within, f"{self.name}{counted}{detail}"))


class Observer:
    """Watches a compilation. Does nothing itself: subclasses say what they want to know."""

    def step(self, step: Step) -> None:
        """Told each step before it begins, and how far one that is counted has come."""

    def finished(self, name: str, seconds: float, state: Any) -> None:
        """Told the name of a pass that has run, how long it took, and the compiler's state after it."""

    def expected(self, names: Sequence[str]) -> None:
        """Told the names of the steps that are to come, in order, as far as they are known: again where more are."""

    def begin(self, name: str) -> None:
        """Tells that a step begins that is not counted."""
        self.step(Step(name))

    def counter(self, name: str) -> Count:
        """What a long part of a step tells how far it has come."""
        return lambda done, total: self.step(Step(name, done, total))


SILENT = Observer()
"""Watches nothing."""


@dataclass(frozen=True)
class Told(Observer):
    """For callers that take a sentence for each step: ``progress=print``."""

    tell: Callable[[str], object]

    def step(self, step: Step) -> None:
        """Tells the step as one line."""
        self.tell(str(step))


@dataclass(frozen=True)
class Several(Observer):
    """Several observers, told in order."""

    observers: tuple[Observer, ...]

    def step(self, step: Step) -> None:
        """Tells all."""
        for each in self.observers:
            each.step(step)

    def finished(self, name: str, seconds: float, state: Any) -> None:
        """Tells all."""
        for each in self.observers:
            each.finished(name, seconds, state)

    def expected(self, names: Sequence[str]) -> None:
        """Tells all."""
        for each in self.observers:
            each.expected(names)


@dataclass(frozen=True)
class Within(Observer):
    """Steps that are parts of something larger: ``macs=0.8 (2 of 5)``.

    Attributes:
        observer: Is told of them.
        what: What they are parts of.
        behind: How many such parts come after this one, of steps like its own.
    """

    observer: Observer
    what: str
    behind: int = 0

    def step(self, step: Step) -> None:
        """Tells the step as a part of it."""
        self.observer.step(replace(step, within=(self.what, *step.within)))

    def finished(self, name: str, seconds: float, state: Any) -> None:
        """Hands it on."""
        self.observer.finished(name, seconds, state)

    def expected(self, names: Sequence[str]) -> None:
        """Hands it on, with the same steps once more for each part that comes behind."""
        self.observer.expected([*names] * (1 + self.behind))


class Logged(Observer):
    """Steps and times in the log ``graphprune``: steps as information, what is counted and times for debugging."""

    def step(self, step: Step) -> None:
        """Logs the step."""
        LOGGER.log(logging.INFO if step.total is None else logging.DEBUG, "%s", step)

    def finished(self, name: str, seconds: float, state: Any) -> None:
        """Logs the time."""
        LOGGER.debug("%s took %.3f s", name, seconds)


class Timed(Observer):
    """Seconds of each pass that has run, in order, those inside of other passes before the pass that holds them."""

    def __init__(self) -> None:
        self.seconds: list[tuple[str, float]] = []

    def finished(self, name: str, seconds: float, state: Any) -> None:
        """Notes it."""
        self.seconds.append((name, seconds))


def observing(progress: Observer | Callable[[str], object] | None) -> Observer:
    """What ``progress`` of a public function means: an observer, or a function that takes a sentence for each step.

    Everything is logged besides, once.
    """
    if progress is None:
        return Logged()
    seen = progress if isinstance(progress, Observer) else Told(progress)
    return seen if _logs(seen) else Several((Logged(), seen))


def _logs(observer: Observer) -> bool:
    """Whether an observer logs already: what is a part of something larger is handed on."""
    match observer:
        case Logged():
            return True
        case Within():
            return _logs(observer.observer)
        case Several():
            return any(map(_logs, observer.observers))
    return False
