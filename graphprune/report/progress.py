"""The progress bar: steps of a compilation on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from graphprune.observer import SILENT, Observer, Step
from graphprune.report.remaining import Remaining, roughly


@dataclass(frozen=True)
class Bar(Observer):
    """Shows the present step, how far it has come where it is counted, and how long the whole will take.

    Attributes:
        progress: The display.
        task: Its line.
        remaining: Says how long.
    """

    progress: Progress
    task: TaskID
    remaining: Remaining = field(default_factory=Remaining)

    def expected(self, names: Sequence[str]) -> None:
        """Told what is to come."""
        self.remaining.expected(names)

    def finished(self, name: str, seconds: float, state: Any) -> None:
        """Told that a pass has run."""
        self.remaining.finished(name, seconds, state)

    def step(self, step: Step) -> None:
        """Shows it."""
        if step.total is None:  # "no total" means to rich that it stays as it was
            for task in self.progress.tasks:
                task.total = None
        self.remaining.step(step)
        words = f"{escape(str(step))} ..."
        self.progress.update(self.task, description=words, completed=step.done, total=step.total)


class TimeLeftColumn(ProgressColumn):
    """How long the whole command will take, as far as that is known."""

    max_refresh = 1.0

    def __init__(self, remaining: Remaining) -> None:
        super().__init__()
        self._remaining = remaining

    def render(self, task: Task) -> Text:
        """The text."""
        seconds = self._remaining.seconds()
        return Text("" if seconds is None else roughly(seconds), style="progress.remaining")


@contextmanager
def progress_bar(console: Console, *, quiet: bool = False, after: Sequence[str] = ()) -> Iterator[Observer]:
    """An observer that shows steps on a console while the context lasts; none where that is no terminal.

    Args:
        console: Where.
        quiet: Show nothing.
        after: Names of steps that come behind those that the observer is told to expect.
    """
    if quiet or not console.is_terminal:
        yield SILENT
        return
    remaining = Remaining(after)
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=30), TimeElapsedColumn(),
        TimeLeftColumn(remaining),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bar(progress, progress.add_task("", total=None), remaining)
