"""What a finished model has lost at its outputs, end to end, on inputs that nothing was fitted to.

Each output is compared as its judge says (``judge.py``), and held against two things that need no labels: answering
always the mean of the original's outputs, and answering by chance. A model that does no better than these is ruined.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from graphprune.hosts.host import Arrays, Runnable
from graphprune.importance.judge import CHUNK, Judge, unit

Array: TypeAlias = NDArray[Any]
Float: TypeAlias = NDArray[np.float64]

LEAST_ROWS = 32
"""Agreement is held against chance where there are at least so many rows."""
CHANCE = 0.1
"""Cohen's kappa, up to which agreement is near chance."""
EACH = 8
"""The mean of each element over samples is taken where there are so many samples, else that of all elements."""


@dataclass(frozen=True)
class Outcome:
    """What one output, or a part of it, has lost.

    Attributes:
        output: The output.
        judged: How it is compared, in words.
        kind: ``kl``, ``bce``, ``mse`` or ``cosine``.
        loss: The mean loss: nats for ``kl`` (of a row) and ``bce`` (of an element), a fraction of the variance for
            ``mse``, ``1 - cos`` for ``cosine``; infinite where the model gives what is no number.
        mean_answer: What a model would lose that always answers the mean of the original's outputs; zero where these
            do not vary.
        agreement: The fraction of rows with the same class, for ``kl``.
        by_chance: What it would be if the same answers came in any order.
        rows: How many rows (``kl``, ``cosine``) or elements were compared.
    """

    output: str
    judged: str
    kind: str
    loss: float
    mean_answer: float
    agreement: float | None = None
    by_chance: float | None = None
    rows: int = 0

    @property
    def relative(self) -> float:
        """The loss as a fraction of what answering the mean loses; an output that does not vary can lose nothing."""
        if self.mean_answer > 0:
            return self.loss / self.mean_answer
        return self.loss if self.kind == "mse" or not isfinite(self.loss) else 0.0

    @property
    def ruin(self) -> str:
        """In what the output is ruined, in words; empty where it is not."""
        if not isfinite(self.loss):
            return "gives numbers that are not finite"
        if self.mean_answer > 0 and self.loss >= self.mean_answer:
            return "is no better than answering always the mean of the original's outputs"
        if self.agreement is None or self.by_chance is None or self.rows < LEAST_ROWS or self.by_chance >= 1:
            return ""
        kappa = (self.agreement - self.by_chance) / (1 - self.by_chance)
        if kappa <= CHANCE and 2 * self.loss >= self.mean_answer > 0:
            return (
                f"agrees with the original in {self.agreement:.0%} of the rows, and by chance in {self.by_chance:.0%}"
            )
        return ""


def tried(dense: Runnable, pruned: Runnable, inputs: Iterable[Arrays], judges: Sequence[Judge]) -> tuple[Outcome, ...]:
    """What a model has lost, output by output.

    Args:
        dense: The original.
        pruned: The model, whose outputs come in the same order.
        inputs: What to run, batch by batch: held out of all that was fitted. The first that cannot be read or run ends
            it: what is only told may cost no result.
        judges: From :func:`graphprune.importance.judge.judges_of`.
    """
    tallies = [Tally(judge) for judge in judges]
    with suppress(Exception):  # executors raise whatever an operator raises
        for batch in inputs:
            add(tallies, dense.run(batch), pruned.run(batch))
    return tuple(tally.outcome() for tally in tallies if tally.rows)


def output_loss(found: Iterable[Outcome]) -> float:
    """One number to choose among models by: the mean over outputs of the loss relative to answering the mean.

    Zero is the original, one and more is ruined, infinite is no number.
    """
    values = [each.relative for each in found]
    return float(np.mean(values)) if values else 0.0


def add(tallies: Iterable[Tally], wanted: Arrays, found: Arrays) -> None:
    """Counts the outputs of both models for one batch in."""
    for tally in tallies:
        a, b = (tally.judge.prepared(each) for each in (wanted, found))
        if a.shape == b.shape and a.size:
            tally.add(a, b)


@dataclass
class Spread:
    """How much outputs vary: what answering always their mean loses, by a judge.

    Sums in float64, over the batches of a process.
    """

    judge: Judge
    n: int = 0
    samples: int = 0
    total: Any = 0.0
    alone: float = 0.0
    whole: Float = field(default_factory=lambda: np.zeros(2))
    shape: tuple[int, ...] | None = None
    regular: bool = True

    def add(self, wanted: Array) -> None:
        """Counts a batch of what is prepared in; rows that are not finite are left out of distributions."""
        if self.judge.kind in ("mse", "bce"):
            self._add_elements(wanted)
            return
        flat = wanted.reshape(-1, wanted.shape[-1])
        step = max(1, CHUNK // max(1, flat.shape[-1]))
        for start in range(0, len(flat), step):
            rows = flat[start : start + step]
            if self.judge.kind == "cosine":
                self.total = self.total + unit(rows).sum(0)
            else:
                p, logs = _distributions(rows)
                self.total = self.total + p.sum(0)
                self.alone += float(np.einsum("nc,nc->", p, logs))
        self.n += len(flat)

    def _add_elements(self, wanted: Array) -> None:
        values = wanted.astype(np.float64)
        if self.judge.kind == "bce":
            values = 0.5 * (1 + np.tanh(0.5 * values))
            self.alone += float(np.sum(_negative_entropy(values)))
        else:
            self.alone += float(np.square(values).sum())
        rows = values[None] if values.ndim == 0 else values
        self.regular = self.regular and self.shape in (None, rows.shape[1:])
        self.shape = rows.shape[1:]
        if self.regular:
            self.total = self.total + rows.sum(0)
        self.whole = self.whole + np.array([float(values.sum()), values.size])
        self.n += values.size
        self.samples += len(rows)

    @property
    def variance(self) -> float:
        """Of all elements, for ``mse``."""
        return max(0.0, self.alone / self.n - (self.whole[0] / self.whole[1]) ** 2) if self.n else 0.0

    @property
    def loss(self) -> float:
        """What the mean loses, in the judge's loss; of ``mse`` relative to the variance of all elements."""
        if not self.n:
            return 0.0
        if self.judge.kind == "cosine":
            return max(0.0, 1.0 - float(np.linalg.norm(self.total)) / self.n)
        if self.judge.kind == "kl":
            return _noticed(
                self.alone / self.n - float(_negative_entropy_of_classes(self.total / self.n)), self.alone / self.n
            )
        each = self.regular and self.samples >= EACH
        if self.judge.kind == "bce":
            mean = self.total / self.samples if each else self.whole[0] / self.whole[1]
            return _noticed(self.alone / self.n - float(np.mean(_negative_entropy(mean))), self.alone / self.n)
        if self.variance <= 1e-12 * self.alone / self.n:
            return 0.0
        if not each:
            return 1.0
        mean = self.total / self.samples
        unbiased = self.samples / (self.samples - 1)
        within = unbiased * max(0.0, self.alone / self.n - float(np.mean(np.square(mean))))
        return _noticed(min(1.0, within / self.variance), self.alone / self.n / self.variance)


@dataclass
class Tally:
    """Sums of one output's comparison over batches."""

    judge: Judge
    spread: Spread = field(init=False)
    lost: float = 0.0
    rows: int = 0
    same: int = 0
    classes: Float = field(default_factory=lambda: np.zeros((2, 0)))

    def __post_init__(self) -> None:
        """Begins with no spread."""
        self.spread = Spread(self.judge)

    def add(self, wanted: Array, found: Array) -> None:
        """Counts a batch of what is prepared of both models in; what is not finite in the original does not count."""
        along = self.judge.kind in ("kl", "cosine")
        if along:
            wanted, found = (each.reshape(-1, each.shape[-1]) for each in (wanted, found))
        finite = np.isfinite(wanted).all(-1) if along else np.isfinite(wanted)
        if not finite.all():
            wanted, found = wanted[finite], found[finite]
        if not wanted.size:
            return
        self.spread.add(wanted)
        n = len(wanted) if along else wanted.size
        self.rows += n
        if not np.isfinite(found).all():
            self.lost = inf
        else:
            self.lost += n * self.judge.loss(wanted, found)
        if self.judge.kind == "kl":
            a, b = (_classes(each) for each in (wanted, found))
            self.same += int((a == b).sum())
            counts = np.stack([np.bincount(each, minlength=wanted.shape[-1]) for each in (a, b)]).astype(np.float64)
            self.classes = counts if not self.classes.size else self.classes + counts

    def outcome(self) -> Outcome:
        """What was lost, over all batches."""
        n, judge = max(1, self.rows), self.judge
        loss = self.lost / n
        if judge.kind == "mse":
            variance = self.spread.variance
            loss = loss / variance if variance > 0 else 0.0 if loss == 0 else inf
        agreement = by_chance = None
        if judge.kind == "kl" and self.rows:
            agreement, by_chance = self.same / n, float((self.classes[0] / n) @ (self.classes[1] / n))
        mean = float(self.spread.loss)
        name = judge.name or judge.output
        return Outcome(name, str(judge), judge.kind, float(loss), mean, agreement, by_chance, self.rows)


def _classes(rows: Array) -> NDArray[np.int64]:
    """The class of each row ``[n, c]``, some rows at a time: a vocabulary is not copied as a whole."""
    step = max(1, CHUNK // max(1, rows.shape[-1]))
    parts = (rows[start : start + step] for start in range(0, len(rows), step))
    return np.concatenate([np.nan_to_num(part, nan=-inf).argmax(-1) for part in parts])


def _distributions(rows: Array) -> tuple[Float, Float]:
    """The softmax of logits and its logarithm, ``[n, c]``."""
    logs = rows.astype(np.float64)
    logs = logs - logs.max(axis=-1, keepdims=True)
    logs = logs - np.log(np.exp(logs).sum(axis=-1, keepdims=True))
    return np.exp(logs), logs


def _negative_entropy(p: Any) -> Float:
    """``p log p + (1 - p) log (1 - p)``, of each element."""
    p = np.asarray(p, np.float64)
    q = 1 - p
    result: Float = p * np.log(np.where(p > 0, p, 1)) + q * np.log(np.where(q > 0, q, 1))
    return result


def _negative_entropy_of_classes(p: Float) -> float:
    return float(np.sum(p * np.log(np.where(p > 0, p, 1))))


def _noticed(value: float, scale: float) -> float:
    """A difference of large numbers, or zero where it is rounding."""
    return value if value > 1e-12 * max(abs(scale), 1e-300) and value > 0 else 0.0
