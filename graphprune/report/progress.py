"""The progress bar: steps of a compilation on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from graphprune.observer import SILENT, Observer, Step


@dataclass(frozen=True)
class Bar(Observer):
    """Shows the present step, and how far it has come where it is counted.

    Attributes:
        progress: The display.
        task: Its line.
    """

    progress: Progress
    task: TaskID

    def step(self, step: Step) -> None:
        """Shows it."""
        if step.total is None:  # "no total" means to rich that it stays as it was
            for task in self.progress.tasks:
                task.total = None
        self.progress.update(self.task, description=f"{escape(str(step))} ...", completed=step.done, total=step.total)


@contextmanager
def progress_bar(console: Console, *, quiet: bool = False) -> Iterator[Observer]:
    """An observer that shows steps on a console while the context lasts; none where that is no terminal."""
    if quiet or not console.is_terminal:
        yield SILENT
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=30), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bar(progress, progress.add_task("", total=None))
