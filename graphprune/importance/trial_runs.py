"""The trials of one group: prepared once, run at some widths and on some batches, stopped where more would tell little.

Trials of different groups know nothing of each other, so that as many run beside each other as there are cores and
memory; what comes out does not depend on how many.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from graphprune.hosts.host import Arrays, Carried, Host
from graphprune.hosts.trying import Asked, Rest, Trial, trials
from graphprune.importance.loss import Standard
from graphprune.ir.graph import Graph
from graphprune.statistics.distributed import alone

Result = TypeVar("Result")
FEWEST = 3
"""So many batches are run in any case, where there are so many."""
COPIES = 2
"""A prepared model holds each weight that it needs so many times at the most: as it is, and laid out to run fast."""
BUSY = 4
"""So many of the largest values may be there at one time while a model runs."""


def cores() -> int:
    """How many threads to use: the cores that this process may run on, or fewer if ``OMP_NUM_THREADS`` says so."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(allowed, int(asked)) if asked.isdecimal() and int(asked) else allowed


@dataclass(frozen=True)
class Sparing:
    """What trials leave out where more would tell little: nothing unless it is said.

    Attributes:
        smooth: Where the logarithm of the loss grows by what that of the scores does, up to this, between two widths
            that are far apart, no others are tried; 0: all are.
        precise: A trial has seen enough batches when the standard error of its mean loss is below this fraction of it.
        pooled: Whether batches are of so few samples that squared errors are relative to the variance of all of them.
    """

    smooth: float = 0.0
    precise: float = 0.0
    pooled: bool = False


NOTHING = Sparing()
USUAL = Sparing(0.5, 0.4, pooled=True)
"""Curves that follow the scores up to a factor of 1.6, and errors that are small beside what tells groups apart."""


class Start(NamedTuple):
    """Where trials begin.

    Attributes:
        have: The names of the values that are there.
        n_batches: Of how many batches.
        values: Gives those of a batch.
    """

    have: Sequence[str]
    n_batches: int
    values: Callable[[int], Carried]


@dataclass(frozen=True)
class Runs:
    """How trials run.

    Attributes:
        host: The model.
        outputs: Names of what is compared.
        standard: What outputs are compared with.
        threads: Threads within an operator; 0: all cores.
        precise: As for :class:`Sparing`.
    """

    host: Host
    outputs: Sequence[str]
    standard: Standard
    threads: int = 0
    precise: float = 0.0

    def of(self, start: Start, changing: Iterable[str]) -> Callable[[Arrays], float]:
        """A function from values of some stored tensors, always the same ones, to the loss."""
        prepared: Trial = trials(self.host, Asked(start.have, self.outputs, tuple(changing), self.threads))

        def loss(tensors: Arrays) -> float:
            return self._loss(prepared(tensors), start)

        return loss

    def _loss(self, rest: Rest, start: Start) -> float:
        """The mean over batches, of all processes where there are several."""
        if not alone():
            return self.standard.loss_of(rest(start.values(i)) for i in range(start.n_batches))
        found: list[float] = []
        for i in range(start.n_batches):
            found.append(self.standard.loss_on(i, rest(start.values(i))))
            if enough(found, self.precise):
                break
        return float(np.mean(found))


def enough(losses: Sequence[float], precise: float) -> bool:
    """Whether the mean of losses on some batches is known well enough that more would change no order."""
    if not precise or len(losses) < FEWEST or not np.isfinite(losses).all():
        return False
    mean, error = float(np.mean(losses)), float(np.std(losses, ddof=1)) / len(losses) ** 0.5
    return bool(error <= precise * mean)


def beside(graph: Graph, memory: int, rows: int) -> int:
    """How many groups may be tried at a time: as many as there are cores, and memory to run the model in.

    Args:
        graph: Of the model.
        memory: Bytes that they may take in all.
        rows: Samples of a batch, of which the example of the graph may have fewer.
    """
    if not alone():  # processes ask each other in one order
        return 1
    example = max(1, next((graph.values[name].shape[0] for name in graph.inputs if graph.values[name].shape), 1))
    stored = sum(value.n_elements * value.itemsize for value in graph.stored)
    sizes = sorted(value.n_elements * value.itemsize for value in graph.values.values() if not value.stored)
    each = COPIES * stored + sum(sizes[-BUSY:]) * max(1.0, rows / example)
    return int(max(1, min(cores(), memory // max(1.0, each))))


def in_order(tasks: Iterable[Callable[[], Result]], n: int) -> Iterator[Result]:
    """The results of tasks, in their order; so many run at a time, and no more are made than that and one.

    An error of a task is raised here, and tasks that have not begun are dropped.
    """
    if n <= 1:
        for task in tasks:
            yield task()
        return
    running: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(n, thread_name_prefix="graphprune-trial") as pool:
        try:
            for task in tasks:
                running.append(pool.submit(copy_context().run, task))
                if len(running) > n:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for each in running:
                each.cancel()
