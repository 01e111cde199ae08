"""Numbers that are means over samples, and how sure they are: intervals, also of the difference of two on one sample.

A sample (an image, a sequence) is what was drawn independently; what is inside one (pixels, tokens) is not, so errors
are those of a ratio of sums over samples. Fractions of single hits have Wilson's interval, which holds for few samples
and near 0 and 1 (Wilson 1927), and their difference the one of Agresti and Min (2005) for matched pairs; all others are
taken for normal.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, isfinite, sqrt
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
Z = 1.959964
"""Of an interval that holds the truth 95 times of 100."""


class Measured(float):
    """A number, and what it is the mean of; a float, so that it goes wherever numbers of the user's functions go.

    Attributes:
        sums: For each sample the sum of what is averaged.
        counts: For each sample how many terms that has.
        scale: ``fraction`` where each term is 0 or 1, ``mean``, or ``exp`` where the number is ``exp`` of the mean.
    """

    sums: NDArray[np.float64]
    counts: NDArray[np.float64]
    scale: Literal["fraction", "mean", "exp"]

    def __new__(cls, sums: NDArray[Any], counts: NDArray[Any], scale: Literal["fraction", "mean", "exp"]) -> Self:
        """The number, from what it is the mean of."""
        sums, counts = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
        mean = sums.sum() / max(1.0, counts.sum())
        with np.errstate(over="ignore"):
            made = super().__new__(cls, float(np.exp(mean)) if scale == "exp" else float(mean))
        made.sums, made.counts, made.scale = sums, counts, scale
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        """What it is made of again where it is copied or sent to another process."""
        return self.sums, self.counts, self.scale

    @property
    def n(self) -> int:
        """How many samples count."""
        return int(np.count_nonzero(self.counts))

    @property
    def mean(self) -> float:
        """The mean of the terms."""
        return float(self.sums.sum() / max(1.0, self.counts.sum()))

    @property
    def deviations(self) -> NDArray[np.float64]:
        """For each sample how far it moves the mean, which they do in sum by nothing."""
        return np.asarray((self.sums - self.mean * self.counts) / max(1.0, self.counts.sum()))

    @property
    def interval(self) -> Interval | None:
        """Where the number of all that the samples were drawn from lies, 95 times of 100; ``None`` of one sample."""
        if self.n < 2 or not isfinite(self):
            return None
        if self._single_hits:
            return _wilson(self.mean, self.n)
        error = Z * _error(self.deviations, self.n)
        low, high = self.mean - error, self.mean + error
        if self.scale == "exp":
            return exp(low), exp(min(high, 700.0))
        return (max(0.0, low), min(1.0, high)) if self.scale == "fraction" else (low, high)

    @property
    def _single_hits(self) -> bool:
        return self.scale == "fraction" and bool((self.counts <= 1).all())


@dataclass(frozen=True)
class Difference:
    """What lies between two numbers of the same samples.

    Attributes:
        interval: Where the true difference lies, 95 times of 100.
    """

    interval: Interval

    @property
    def by_chance(self) -> bool:
        """Whether there may be none: the interval holds zero."""
        return self.interval[0] <= 0 <= self.interval[1]


def difference(before: float, after: float) -> Difference | None:
    """The difference of two numbers, sample by sample; ``None`` where they are not means over the same samples."""
    if not isinstance(before, Measured) or not isinstance(after, Measured):
        return None
    same = before.scale == after.scale and np.array_equal(before.counts, after.counts)
    if not same or before.n < 2 or not (isfinite(before) and isfinite(after)):
        return None
    if before._single_hits:
        lost = float(((before.sums > after.sums) & (before.counts > 0)).sum())
        won = float((after.sums > before.sums).sum())
        return Difference(_matched(lost, won, before.n))
    middle = after.mean - before.mean
    error = Z * _error(after.deviations - before.deviations, before.n)
    low, high = middle - error, middle + error
    if before.scale == "exp":
        low, high = (float(before) * (exp(min(each, 700.0)) - 1) for each in (low, high))
    return Difference((low, high))


def _error(deviations: NDArray[np.float64], n: int) -> float:
    """The standard error of a ratio of sums."""
    return sqrt(float(deviations @ deviations) * n / (n - 1))


def _wilson(p: float, n: int) -> Interval:
    middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def _matched(lost: float, won: float, n: int) -> Interval:
    """Of the fraction that is won less the one that is lost, with half a pair more in each cell of the table."""
    lost, won, total = lost + 0.5, won + 0.5, n + 2.0
    middle = (won - lost) / total
    half = Z * sqrt(won + lost - (won - lost) ** 2 / total) / total
    return max(-1.0, middle - half), min(1.0, middle + half)
