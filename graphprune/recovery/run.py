"""A run of training: AdamW, a warm-up and a cosine, clipped gradients; the state that unseen inputs like best stays."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphprune.errors import OptionError
from graphprune.files import replaced
from graphprune.observer import Count, uncounted
from graphprune.recovery.distance import Distance
from graphprune.recovery.feeds import Fed, Feeds
from graphprune.recovery.student import Student
from graphprune.recovery.teacher import Answers

WARM_UP = 0.05
"""The fraction of the steps in which the rate rises."""
CLIP = 1.0
"""The norm that gradients have at most."""
DECAY = 0.0
"""Of weights: a student that starts from a refit is not to shrink."""

Losses: TypeAlias = NDArray[np.float64]
Judge = Callable[[], Losses]
"""What the student loses on each of the inputs that it is judged by."""


@dataclass(frozen=True)
class Lesson:
    """What a student learns.

    Attributes:
        answers: The teacher's outputs.
        distance: The loss.
        feeds: The inputs of each step.
        narrow: Whether the student is trained in bfloat16.
    """

    answers: Answers
    distance: Distance
    feeds: Feeds
    narrow: bool = False


@dataclass(frozen=True)
class Plan:
    """What a run does.

    Attributes:
        steps: How many.
        rate: The highest learning rate.
        looks: How often the student is judged, evenly.
    """

    steps: int
    rate: float
    looks: int = 10

    def factor(self, step: int) -> float:
        """Of the rate at a step: a linear warm-up, then half a cosine to zero."""
        warm = max(1, round(WARM_UP * self.steps))
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))

    def look(self, done: int) -> bool:
        """Whether the student is judged after so many steps."""
        each = max(1, self.steps // max(1, self.looks))
        return done == self.steps or done % each == 0


@dataclass
class Course:
    """What a run has come to.

    Attributes:
        best: What the best state loses on each of the inputs that it is judged by. The last state is the best one,
            unless an earlier one is better by more than chance explains: rates fall towards the end.
        now: What the last state loses on each of them.
        state: The best state; ``None`` for that at the start.
        at: After how many steps it was reached.
        losses: The training loss of each step.
        held: What was lost by the inputs that it is judged by, after how many steps.
        diverged: Whether a loss was no number.
    """

    best: Losses
    now: Losses
    state: dict[str, Tensor] | None = None
    at: int = 0
    losses: list[float] = field(default_factory=list)
    held: list[tuple[int, float]] = field(default_factory=list)
    diverged: bool = False


def trained(
    student: Student,
    lesson: Lesson,
    plan: Plan,
    judge: Judge,
    start: Losses,
    *,
    file: Path | None = None,
    count: Count = uncounted,
) -> Course:
    """Trains a student; it has the values of its last step then.

    Args:
        student: The model.
        lesson: What it learns.
        plan: How many steps, how fast.
        judge: What the student loses on inputs that it is not trained on.
        start: The same, before.
        file: Where the run is noted after each look, and taken up again.
        count: Told the steps.
    """
    course = Course(start, start, held=[(0, float(start.mean()))])
    optimizer = torch.optim.AdamW(student.trained.values(), lr=plan.rate, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, plan.factor)
    first = _resumed(file, student, optimizer, schedule, course)
    for step in range(first, plan.steps):
        count(step, plan.steps)
        loss = _step(student, lesson, lesson.feeds.fed(step), optimizer)
        schedule.step()
        course.losses.append(loss)
        course.diverged = not math.isfinite(loss)
        if course.diverged:
            break
        if plan.look(step + 1):
            found = judge()
            course.held.append((step + 1, float(found.mean())))
            course.now = found
            if np.isfinite(found).all() and found.mean() < course.best.mean():
                course.best, course.state, course.at = found, student.state(), step + 1
            _noted(file, student, optimizer, schedule, course, step + 1)
    if course.state is not None and not course.diverged and not _clearly(course.now - course.best):
        course.best, course.state, course.at = course.now, student.state(), plan.steps
    return course


def _clearly(ahead: Losses) -> bool:
    """Whether a mean of differences is above what chance explains: twice its standard error."""
    return (
        bool(ahead.mean() > 2 * ahead.std(ddof=1) / np.sqrt(len(ahead))) if len(ahead) > 1 else bool(ahead.mean() > 0)
    )


def _step(student: Student, lesson: Lesson, runs: list[Fed], optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    device = next(iter(student.trained.values())).device.type
    for fed in runs:
        with torch.no_grad():
            wanted = lesson.answers(fed.inputs)
        with torch.autocast(device, torch.bfloat16, enabled=lesson.narrow):
            outputs = student.answers(fed.inputs)
        loss = lesson.distance(outputs, wanted, fed.labels) / len(runs)
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    if not math.isfinite(total):
        return total
    torch.nn.utils.clip_grad_norm_(student.trained.values(), CLIP)
    optimizer.step()
    return total


# -- going on after a stop -------------------------------------------------------------------------------------------


def _noted(file: Path | None, student: Student, optimizer: Any, schedule: Any, course: Course, step: int) -> None:
    """Writes where a run stands, whole or not at all."""
    if file is None:
        return
    data = {
        "step": step,
        "now": student.state(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "best": torch.from_numpy(course.best),
        "last": torch.from_numpy(course.now),
        "state": course.state,
        "at": course.at,
        "losses": course.losses,
        "held": course.held,
    }
    with replaced(file) as beside:
        torch.save(data, beside)


def _resumed(file: Path | None, student: Student, optimizer: Any, schedule: Any, course: Course) -> int:
    """Takes a run up where it was stopped; the number of its next step.

    Raises:
        OptionError: The file is of another run.
    """
    if file is None or not file.exists():
        return 0
    try:
        data = torch.load(file, weights_only=True)
        if data["now"].keys() != student.trained.keys() or any(
            value.shape != student.trained[name].shape for name, value in data["now"].items()
        ):
            raise ValueError("its weights are others")
        student.load(data["now"])
        optimizer.load_state_dict(data["optimizer"])
        schedule.load_state_dict(data["schedule"])
        course.best, course.now = data["best"].numpy(), data["last"].numpy()
        course.state, course.at = data["state"], data["at"]
        course.losses, course.held = list(data["losses"]), [tuple(each) for each in data["held"]]
    except Exception as error:
        raise OptionError(f"'{file}' is not of this recovery: {error}; remove it, or give another folder") from error
    return int(data["step"])
