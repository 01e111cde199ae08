"""The stage of recovery: which data, which rate, how long, and whether what was trained is taken at all.

Three sets of inputs are kept apart. The student is trained on the first. By the second a rate and the best state are
chosen. The third is only asked at the end, whether the student is better than it was; if not, nothing has changed.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphprune.data.batches import Batches
from graphprune.errors import OptionError
from graphprune.files import replaced
from graphprune.hosts.host import Host
from graphprune.importance.judge import Asked, judges_of
from graphprune.importance.loss import Run, Standard
from graphprune.importance.outcome import Spread, Tally, add, output_loss
from graphprune.observer import SILENT, Observer
from graphprune.recovery.distance import Distance
from graphprune.recovery.feeds import Fed, are_pictures, feeds_of, mirrored, mixed
from graphprune.recovery.options import Recovering
from graphprune.recovery.run import Course, Lesson, Losses, Plan, trained
from graphprune.recovery.student import Learner, Student, arrays_of, taught, training
from graphprune.recovery.teacher import Answers, Remembered
from graphprune.report.data import RecoveryRow
from graphprune.statistics.holdout import split_batches

LEAST_STEPS, MOST_STEPS, WORK = 300, 1500, 1e12
"""Steps where nothing else is said: as many as compute so many MACs of the original, but not fewer, and not more."""
RATES = (1e-4, 3e-4, 1e-3)
"""Learning rates that are tried, and others beyond where the outermost is the best."""
LEAST_RATE, MOST_RATE = 1e-6, 3e-2
LOW_RANK_RATE = 10.0
"""Low-rank additions take rates so many times as high."""
TRIAL = 10
"""One step in so many is spent on each rate that is tried."""
MOST_JUDGED = 64
"""Samples that the student is judged by, at most, for each of the two judgements."""
MIXTURES = 3
"""Mixtures of each sample that the student is judged by, where samples are mixed: a few samples alone say little."""
PIECE = 8
"""Samples that are judged at a time, where models take any number: several judgements say how sure they are."""
ENOUGH = 128
"""With fewer samples that are kept apart, all of them serve to choose a rate, and to decide at the end."""
LARGE = 2e7
"""Numbers in the weights of a model that is trained in bfloat16, where the machine does that fast."""
MIRRORED = 0.2
"""Pictures are mirrored where that loses at most so much of what answering always the mean would."""
NAME = "recover"


@dataclass(frozen=True, kw_only=True)
class Task:
    """Who learns what of whom.

    Attributes:
        learner: What is trained, which is changed.
        teacher: The original.
        batches: What it is trained on.
        held: Samples that nothing has read, if there are some.
        macs: Of the original on one sample.
        asked: How the user wants outputs compared.
    """

    learner: Learner
    teacher: Host
    batches: Batches
    held: Batches | None = None
    macs: float = 0.0
    asked: tuple[Asked, ...] = ()


@dataclass(frozen=True)
class Sets:
    """The inputs of a recovery.

    Attributes:
        train: What the student is trained on.
        choose: What rates and states are chosen by.
        accept: What decides at the end.
    """

    train: Batches
    choose: Batches
    accept: Batches


def sets_of(batches: Batches, held: Batches | None, *, single: bool = False) -> Sets:
    """What is trained on, chosen by, and asked at the end.

    Args:
        batches: What may be trained on.
        held: Samples that nothing has read, if some were kept; else one of four is kept now.
        single: Whether models take any number of samples, so that single ones may be kept; else whole batches.

    Raises:
        OptionError: There are too few samples to keep any apart.
    """
    train = batches
    if held is None:
        n = train.samples if single else len(train)
        if n < 2:
            raise OptionError(
                f"{train.source} has {train.samples} samples in one batch, and recovery keeps some apart to judge by; "
                "give more"
            )
        fit, kept = split_batches(n)
        some = (lambda numbers: batches.some(np.array(numbers))) if single else batches.part
        train, held = some(fit), some(kept)
    if single:
        train, held = train.distinct(train.batch_size), held.distinct(PIECE)
    if held.samples < ENOUGH or len(held) < 2:
        return Sets(train, held, held)
    return Sets(train, held.part(range(0, len(held), 2)), held.part(range(1, len(held), 2)))


def recovered(
    task: Task,
    how: Recovering,
    *,
    seed: int = 0,
    observer: Observer = SILENT,
    folder: Path | None = None,
) -> RecoveryRow:
    """Trains a model towards what the original computes; it is never worse than before on inputs held apart.

    Args:
        task: Who learns what of whom.
        how: For how long, how fast, which weights.
        seed: Of the samples of each step.
        observer: Told the steps.
        folder: Where a run is noted, and taken up again after a stop.

    Raises:
        OptionError: Nothing can be compared, or nothing trained.
    """
    learner, teacher, asked = task.learner, task.teacher, task.asked
    with taught(teacher) as (answers, module), training(learner, how) as student:
        stacked = _stacks(student, answers, task.batches)
        sets = sets_of(task.batches, task.held, single=stacked and task.batches.unit == 1)
        feeds = feeds_of(sets.train, task.macs, seed=seed, stacked=stacked)
        feeds = replace(feeds, flip=feeds.mix and _mirrors(teacher, answers, sets.train, asked))
        chosen, accepted = (
            _judged(teacher, answers, each, asked, mix=mix)
            for each, mix in ((sets.choose, feeds.mix), (sets.accept, False))
        )
        distance = _distance(teacher, answers, sets.train, asked)
        taught_by = answers if feeds.mix else Remembered(answers, module, stacked, sets.train.shared)
        lesson = Lesson(taught_by, distance, feeds, narrow=_narrow(student, how.precision))
        usual = int(np.clip(WORK / max(1.0, task.macs * feeds.samples), LEAST_STEPS, MOST_STEPS))
        stage = _Stage(student, lesson, chosen, observer, folder, usual)
        before = float(accepted(student.run).mean())
        first = student.state()
        start = chosen(student.run)
        steps = stage.steps(how, first)
        rates = {} if how.rate else stage.rates(max(8, steps // TRIAL), first, start, how.weights)
        rate = how.rate or min(rates, key=lambda each: rates[each])
        course = stage.run(Plan(steps, rate), first, start)
        if course.state is not None:
            student.load(course.state)
        after = math.inf if course.diverged and course.state is None else float(accepted(student.run).mean())
        taken = course.state is not None and math.isfinite(after) and after < before
        if not taken:
            student.load(first)
    return RecoveryRow(
        before, after, taken, len(course.losses), course.at, rate, feeds.samples, sets.train.samples,
        tuple(sorted(rates.items())), tuple(course.held), tuple(course.losses),
    )  # fmt: skip


@dataclass(frozen=True)
class _Stage:
    student: Student
    lesson: Lesson
    chosen: Callable[[Run], Losses]
    observer: Observer
    folder: Path | None
    usual: int

    def run(self, plan: Plan, first: dict[str, Tensor], start: Any, *, name: str = NAME) -> Course:
        """One run from the start, noted in the folder."""
        self.student.load(first)
        file = None if self.folder is None else self.folder / f"{name}-{plan.rate:.3g}-{plan.steps}.pt"
        judge = lambda: self.chosen(self.student.run)  # noqa: E731
        count = self.observer.counter(name)
        return trained(self.student, self.lesson, plan, judge, start, file=file, count=count)

    def rates(self, steps: int, first: dict[str, Tensor], start: Any, weights: str) -> dict[float, float]:
        """What short runs with several rates lose; beyond the outermost ones where these are best."""
        found: dict[float, float] = {}
        scale = LOW_RANK_RATE if weights == "lora" else 1.0

        def lost(rate: float) -> None:
            course = self.run(Plan(steps, rate, 1), first, start, name=f"{NAME}-rate")
            ends = course.held[-1][1] if len(course.held) > 1 and not course.diverged else math.inf
            found[rate] = ends if math.isfinite(ends) else math.inf

        for rate in RATES:
            lost(rate * scale)
        while (best := min(found, key=lambda each: found[each])) in (least := min(found), most := max(found)):
            beyond = least / 3 if best == least else most * 3
            if not LEAST_RATE * scale <= beyond <= MOST_RATE * scale:
                break
            lost(beyond)
        return found

    def steps(self, how: Recovering, first: dict[str, Tensor]) -> int:
        """How many steps the last run has; a run that goes on has as many as the one that was stopped."""
        if not how.minutes:
            return how.steps or self.usual
        file = None if self.folder is None else self.folder / f"{NAME}-steps-{how.minutes:g}-{how.steps}.json"
        if file is not None and file.exists():
            return int(json.loads(file.read_text(encoding="utf-8")))
        found = self._affordable(how, first)
        found = min(how.steps, found) if how.steps else found
        if file is not None:
            with replaced(file) as beside:
                beside.write_text(json.dumps(found), encoding="utf-8")
        return found

    def _affordable(self, how: Recovering, first: dict[str, Tensor]) -> int:
        """How many steps the time is enough for, rates and looks included, by the time of a few."""
        few, nothing = 3, np.array([0.0])
        began = time.monotonic()
        trained(self.student, self.lesson, Plan(few, 0.0, 1), lambda: nothing, nothing)
        each = (time.monotonic() - began) / few
        self.student.load(first)
        began = time.monotonic()
        self.chosen(self.student.run)
        looks = (time.monotonic() - began) * (Plan(1, 0.0).looks + len(RATES) + 2)
        share = 1.0 if how.rate else 1 + (len(RATES) + 1) / TRIAL
        return max(10, int((60 * how.minutes - looks) / each / share))


def _narrow(student: Student, precision: str) -> bool:
    """Whether the student is trained in bfloat16: as is asked for, or where it is large and that is fast."""
    if precision != "auto":
        return precision == "bfloat16"
    on_gpu = next(iter(student.trained.values())).is_cuda
    fast = torch.cuda.is_bf16_supported() if on_gpu else bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return fast and student.size >= LARGE


def _stacks(student: Student, answers: Answers, batches: Batches) -> bool:
    """Whether student and teacher take any number of samples: two batches at once give what each gives alone."""
    n = batches.batch_size
    if batches.samples < 2 * n:
        return False
    both = batches.take(np.arange(2 * n))
    halves = [batches.take(np.arange(n)), batches.take(np.arange(n, 2 * n))]
    try:
        with torch.no_grad():
            for run in (student.answers, answers):
                apart = [run(each) for each in halves]
                for whole, *parts in zip(run(both), *apart, strict=True):
                    alone = torch.cat(parts) if whole.ndim else parts[0]
                    size = float(alone.abs().max()) if alone.numel() else 0.0
                    if whole.shape != alone.shape or not torch.allclose(whole, alone, rtol=1e-3, atol=1e-3 * size):
                        return False
    except Exception:  # noqa: BLE001  # a user's code may refuse other sizes in any way
        return False
    return True


def _mirrors(teacher: Host, answers: Answers, batches: Batches, asked: tuple[Asked, ...]) -> bool:
    """Whether the teacher sees the same in pictures that are mirrored."""
    tallies, run = [Tally(each) for each in judges_of(teacher.graph(), asked)], arrays_of(answers)
    for i in range(min(4, len(batches))):
        inputs = batches[i]
        if not are_pictures(inputs, batches.shared):
            return False
        n = next(len(each) for name, each in inputs.items() if name not in batches.shared)
        add(tallies, run(inputs), run(mirrored(inputs, batches.shared, np.ones(n, np.bool_))))
    return output_loss(each.outcome() for each in tallies if each.rows) <= MIRRORED


def _judged(
    teacher: Host, answers: Answers, batches: Batches, asked: tuple[Asked, ...], *, mix: bool
) -> Callable[[Run], Losses]:
    """What students lose on each of some batches; where inputs may be mixed, with mixtures of each as well.

    Where there are labels, the mean of that and of the loss against them.
    """
    n = max(1, MOST_JUDGED // max(1, batches.batch_size))
    standards: list[tuple[Standard, ...]] = []
    graph, size = teacher.graph(), batches.batch_size
    for i in range(min(n, len(batches))):
        own = batches[i]
        rngs = [np.random.default_rng((1, i, k)) for k in range(MIXTURES if mix else 0)]
        feeds = [own, *(mixed(Fed(own), batches.shared, rng).inputs for rng in rngs)]
        learned = Standard(arrays_of(answers), [(each, None) for each in feeds], graph, asked)
        labels = None if batches.labels is None else batches.labels[i * size : i * size + size]
        right = () if labels is None else (Standard(arrays_of(answers), [(own, labels)], graph, asked),)
        standards.append((learned, *right))
    return lambda run: np.array([np.mean([each.loss(run) for each in some]) for some in standards])


def _distance(teacher: Host, answers: Answers, batches: Batches, asked: tuple[Asked, ...]) -> Distance:
    """The loss, each output relative to what answering always its mean would lose."""
    judges = judges_of(teacher.graph(), asked)
    spreads = [Spread(each) for each in judges]
    for i in range(min(4, len(batches))):
        outputs = arrays_of(answers)(batches[i])
        for spread in spreads:
            spread.add(spread.judge.prepared(outputs))
    scales = [
        (each.variance if each.judge.kind == "mse" else each.loss if len(judges) > 1 else 1.0) or 1.0
        for each in spreads
    ]
    return Distance(judges, scales)
