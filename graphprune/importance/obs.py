"""Structured optimal brain surgeon: what the outputs of consumers lose although the other weights are refitted.

Removing the columns ``P`` of a consumer ``y = W x`` and refitting the others costs ``tr(W_P [(Σ⁻¹)_PP]⁻¹ W_Pᵀ)``
(docs/methods.md, Optimal brain surgeon on structures). Units go greedily, a few at a time; after each round the weights
and the inverse are brought up to date, without which the scores mislead. Consumers count relative to the variance of
their targets and add up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphprune.compensation.methods import damped
from graphprune.importance.context import Evidence, Float, Reading
from graphprune.importance.fallback import with_fallback
from graphprune.importance.gates import all_readings
from graphprune.statistics.consumers import Source

ROUNDS = 32
"""In how many rounds the units of a group are removed."""
RIDGE = 1e-2
"""Damping of the covariance: the least that refits try."""


SHRINK = 0.8
"""What is gone is dropped from the matrices when only this fraction of the units is left."""
BLOCK = 512
"""Rows of the inverse that are brought up to date at a time, so that no copy of it is made."""


@dataclass
class Problem:
    """One group of columns of one consumer: ``W: [rows, c]`` and the inverse of the covariance ``H: [c, c]``.

    Attributes:
        weight: What is left of the weight, refitted; relative to the root of the target's variance.
        inverse: What is left of the inverse.
        columns: For each unit its columns, ``[units, m]``; -1 where a unit has fewer.
    """

    weight: Float
    inverse: Float
    columns: NDArray[np.int64]

    def losses(self, units: NDArray[np.int64]) -> Float:
        """What the removal of each unit alone costs."""
        columns = self.columns[units]
        if columns.shape[1] == 1:
            c = columns[:, 0]
            alone: Float = np.square(self.weight[:, c]).sum(axis=0) / self.inverse[c, c]
            return alone
        blocks = self.inverse[columns[:, :, None], columns[:, None, :]]
        weights = self.weight[:, columns].transpose(1, 2, 0)  # [units, m, rows]
        found: Float = np.einsum("umr,umr->u", weights, np.linalg.solve(blocks, weights))
        return found

    def remove(self, units: NDArray[np.int64]) -> float:
        """Removes units together, refits the others, and says what that has cost."""
        gone = self.columns[units].ravel()
        strip = self.inverse[gone]  # [p, c]
        pivot = strip[:, gone]
        gain = np.linalg.solve(pivot, strip)
        lost = self.weight[:, gone]
        cost = float(np.einsum("rp,pr->", lost, np.linalg.solve(pivot, lost.T)))
        self.weight -= lost @ gain
        for start in range(0, len(self.inverse), BLOCK):
            self.inverse[start : start + BLOCK] -= strip[:, start : start + BLOCK].T @ gain
        self.weight[:, gone] = 0.0
        # rows and columns that are gone must not come back by rounding
        self.inverse[gone, :] = 0.0
        self.inverse[:, gone] = 0.0
        self.inverse[gone, gone] = 1.0
        return cost

    def compact(self, left: NDArray[np.int64]) -> None:
        """Drops the columns of all units but those that are left."""
        stay = self.columns[left].ravel()
        self.inverse = self.inverse[np.ix_(stay, stay)]
        self.weight = self.weight[:, stay]
        columns = np.full_like(self.columns, -1)
        columns[left] = np.arange(len(stay)).reshape(len(left), -1)
        self.columns = columns


def obs(evidence: Evidence) -> dict[str, Float]:
    """Scores whose running sum, lowest first, is the error of the refitted consumers."""
    statistics = evidence.measured("obs")
    scores: dict[str, Float] = {}
    for group in evidence.groups:
        found = problems(list(all_readings(evidence, statistics, group)), group.size)
        if found:
            scores[group.name] = eliminate(found, group.size)
    return with_fallback(scores, evidence)


def systems(
    found: Sequence[Reading], size: int, ridge: float = RIDGE
) -> Iterator[tuple[Float, list[tuple[int, Float, NDArray[np.int64]]]]]:
    """The least squares of a group: one for each activation and group of columns in which its units are read.

    Consumers that read the same activation are one problem with the rows of all of them. Where there are more rows than
    columns, the triangular factor stands for them: losses are norms of columns, which a rotation of rows leaves alone.

    Yields:
        For each activation the damped covariance ``[g, c, c]``, and for each group of columns that holds units: its
        number, the weights, relative to the root of the target's variance, and the columns of each unit.
    """
    by_source: dict[Source, list[Reading]] = {}
    for reading in found:
        if reading.moments.product is not None:
            by_source.setdefault(reading.consumer.source, []).append(reading)
    for same in by_source.values():
        parts = [(g, _columns(units, size)) for g, units in enumerate(same[0].units)]
        read = [(g, _condensed(same, g), columns) for g, columns in parts if columns is not None]
        if read:
            yield damped(same[0].moments.covariance, ridge), read


def problems(found: Sequence[Reading], size: int, ridge: float = RIDGE) -> list[Problem]:
    """The problems of a group, with nothing removed yet."""
    result = []
    for covariance, read in systems(found, size, ridge):
        inverse = np.linalg.inv(covariance)
        result += [Problem(weight, inverse[g], columns) for g, weight, columns in read]
    return result


def _condensed(same: Sequence[Reading], g: int) -> Float:
    """All rows of some weights, relative to their targets, or as many as there are columns, with the same products."""
    rows: Float = np.zeros((0, same[0].table.shape[2]))
    for reading in sorted(same, key=lambda reading: reading.table.shape[1]):
        for piece, scale in reading.pieces(g):
            rows = np.concatenate([rows, piece * scale[:, None]])
            if len(rows) > 2 * rows.shape[1]:
                rows = np.asarray(np.linalg.qr(rows, mode="r"))
    return rows


def _columns(units: NDArray[np.int64], size: int) -> NDArray[np.int64] | None:
    """The columns of each unit, ``[units, m]``; ``None`` where units have different numbers of columns."""
    counts = np.bincount(units[units >= 0], minlength=size)
    if not len(counts) or counts.min() != counts.max() or counts.max() == 0:
        return None
    order = np.argsort(units, kind="stable")
    return order[np.count_nonzero(units < 0) :].reshape(size, -1)


def eliminate(found: Sequence[Problem], size: int, rounds: int = ROUNDS) -> Float:
    """Removes all units but one in rounds, the cheapest first, and returns what each has cost."""
    left = np.arange(size)
    scores = np.zeros(size)
    step = max(1, -(-size // rounds))
    highest, whole = 0.0, size
    while len(left):
        if len(left) < SHRINK * whole:
            for problem in found:
                problem.compact(left)
            whole = len(left)
        losses = np.sum([problem.losses(left) for problem in found], axis=0)
        order = np.argsort(losses, kind="stable")
        if len(left) <= step:
            cost, chosen = float(losses.sum()), order
        else:
            chosen = order[:step]
            cost = sum(problem.remove(left[chosen]) for problem in found)
        share = losses[chosen] / max(float(losses[chosen].sum()), 1e-300)
        scores[left[chosen]] = np.maximum(share * cost, highest)
        highest = max(highest, float(scores[left[chosen]].max()))
        left = np.delete(left, chosen)
    return scores
