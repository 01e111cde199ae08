"""The stage of recovery: which data, which rate, how long, and whether what was trained is taken at all.

Three sets of inputs are kept apart. The student is trained on the first. By the second a rate and the best state are
chosen. The third is only asked at the end, whether the student is better than it was; if not, nothing has changed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphprune.data.batches import Batches
from graphprune.errors import OptionError
from graphprune.hosts.host import Host
from graphprune.importance.judge import Asked, judges_of
from graphprune.importance.loss import Run, Standard
from graphprune.importance.outcome import Spread
from graphprune.observer import SILENT, Observer
from graphprune.recovery.distance import Distance
from graphprune.recovery.feeds import feeds_of, mixed
from graphprune.recovery.run import Course, Lesson, Losses, Plan, trained
from graphprune.recovery.student import Answers, Learner, Student, arrays_of, taught, training
from graphprune.report.data import RecoveryRow
from graphprune.statistics.holdout import split_batches

STEPS = 600
"""Steps where nothing else is said."""
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
ENOUGH = 128
"""With fewer samples that are kept apart, all of them serve to choose a rate, and to decide at the end."""
NAME = "recover"


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a student is trained.

    Attributes:
        steps: How many steps the last run has; 0: :data:`STEPS`.
        minutes: How long all of it may take, where there is a limit: then there are fewer steps.
        rate: The learning rate; 0: that which inputs that are held apart like best.
        weights: One of :data:`graphprune.defaults.TRAINED`.
        rank: Of low-rank additions.
        seed: Of the samples of each step.
    """

    steps: int = 0
    minutes: float = 0.0
    rate: float = 0.0
    weights: str = "all"
    rank: int = 16
    seed: int = 0


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
    if held.samples < ENOUGH or len(held) < 2:
        return Sets(train, held, held)
    return Sets(train, held.part(range(0, len(held), 2)), held.part(range(1, len(held), 2)))


def recovered(
    learner: Learner,
    teacher: Host,
    data: tuple[Batches, Batches | None],
    options: Options,
    *,
    macs: float,
    asked: tuple[Asked, ...] = (),
    observer: Observer = SILENT,
    folder: Path | None = None,
) -> RecoveryRow:
    """Trains a model towards what the original computes; it is never worse than before on inputs held apart.

    Args:
        learner: What is trained, which is changed.
        teacher: The original.
        data: What it is trained on, and samples that nothing has read, if there are some.
        options: How.
        macs: Of the original on one sample.
        asked: How the user wants outputs compared.
        observer: Told the steps.
        folder: Where a run is noted, and taken up again after a stop.

    Raises:
        OptionError: Nothing can be compared, or nothing trained.
    """
    with taught(teacher) as answers, training(learner, options.weights, options.rank) as student:
        stacked = _stacks(student, answers, data[0])
        sets = sets_of(*data, single=stacked and data[0].unit == 1)
        feeds = feeds_of(sets.train, macs, seed=options.seed, stacked=stacked)
        chosen, accepted = (
            _judged(teacher, answers, each, asked, mix=mix)
            for each, mix in ((sets.choose, feeds.mix), (sets.accept, False))
        )
        distance = _distance(teacher, answers, sets.train, asked)
        stage = _Stage(student, Lesson(answers, distance, feeds), chosen, observer, folder)
        before = float(accepted(student.run).mean())
        first = student.state()
        start = chosen(student.run)
        steps = options.steps or STEPS
        if options.minutes:
            steps = min(steps, stage.affordable(options, first)) if options.steps else stage.affordable(options, first)
        rates = {} if options.rate else stage.rates(max(8, steps // TRIAL), first, start, options.weights)
        rate = options.rate or min(rates, key=lambda each: rates[each])
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

    def affordable(self, options: Options, first: dict[str, Tensor]) -> int:
        """How many steps the time is enough for, rates included, by the time of a few."""
        began = time.monotonic()
        few = 3
        trained(
            self.student, self.lesson, Plan(few, 0.0, 1), lambda: np.array([0.0]),
            np.array([0.0]),
        )  # fmt: skip
        each = (time.monotonic() - began) / few
        self.student.load(first)
        share = 1.0 if options.rate else 1 + (len(RATES) + 1) / TRIAL
        return max(10, int(60 * options.minutes / each / share))


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


def _judged(
    teacher: Host, answers: Answers, batches: Batches, asked: tuple[Asked, ...], *, mix: bool
) -> Callable[[Run], Losses]:
    """What students lose on each of some batches; where inputs may be mixed, with mixtures of each as well."""
    n = max(1, MOST_JUDGED // max(1, batches.batch_size))
    standards, graph = [], teacher.graph()
    for i in range(min(n, len(batches))):
        rngs = [np.random.default_rng((1, i, k)) for k in range(MIXTURES if mix else 0)]
        feeds = [batches[i], *(mixed(batches[i], batches.shared, rng) for rng in rngs)]
        standards.append(Standard(arrays_of(answers), [(each, None) for each in feeds], graph, asked))
    return lambda run: np.array([standard.loss(run) for standard in standards])


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
