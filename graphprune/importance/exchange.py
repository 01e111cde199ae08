"""Local search after a choice of units: those that stay and those that go change places while the loss falls.

Greedy elimination never looks back. Here the kept unit that costs least is taken out, and the removed unit that helps
most is put in its place (OSSCAR, arXiv 2403.12983), by the loss after the refit of all that stay. Both follow from the
covariance swept on the columns that stay: blocks of one matrix hold the inverse for those, their regression on the
others, and the covariance that is left of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from graphprune.importance.context import Float

Index = NDArray[np.int64]

ROUNDS = 20
"""At most so many exchanges are made in a group."""
CANDIDATES = 8
"""So many of the cheapest kept units are tried before the search ends."""
SHARE = 32
"""The search begins with exchanges of this part of the units at once, and halves it when that does not help."""
PROGRESS = 1e-6
"""An exchange must lower the loss by this fraction."""


@dataclass
class Swept:
    """A consumer's least squares with some columns in and the others out.

    Attributes:
        covariance: Of the inputs, damped, ``[c, c]``.
        weight: The weight before anything was removed, ``[rows, c]``.
        columns: For each unit its columns, ``[units, m]``.
        table: The covariance, swept on the columns that are in.
        outside: Which columns are out.
    """

    covariance: Float
    weight: Float
    columns: Index
    table: Float = field(init=False)
    outside: NDArray[np.bool_] = field(init=False)

    def start(self, kept: Index) -> None:
        """Takes the units ``kept`` in, and whatever belongs to no unit."""
        inside = np.ones(len(self.covariance), np.bool_)
        inside[self.columns.ravel()] = False
        inside[self.columns[kept].ravel()] = True
        k, p = np.flatnonzero(inside), np.flatnonzero(~inside)
        inverse = np.linalg.inv(self.covariance[np.ix_(k, k)])
        across = self.covariance[np.ix_(k, p)]
        effect = inverse @ across
        table = np.empty_like(self.covariance)
        table[np.ix_(k, k)] = -inverse
        table[np.ix_(k, p)] = effect
        table[np.ix_(p, k)] = effect.T
        table[np.ix_(p, p)] = self.covariance[np.ix_(p, p)] - across.T @ effect
        self.table, self.outside = table, ~inside

    def _sweep(self, units: Index, sign: float) -> None:
        at = self.columns[units].ravel()
        strip = self.table[at]
        solved = np.linalg.solve(strip[:, at], strip)
        self.table -= strip.T @ solved
        self.table[at] = sign * solved
        self.table[:, at] = sign * solved.T
        self.table[np.ix_(at, at)] = -np.linalg.inv(strip[:, at])
        self.outside[at] = sign < 0

    def put_in(self, units: Index) -> None:
        """Takes units in that were out."""
        self._sweep(units, 1.0)

    def take_out(self, units: Index) -> None:
        """Takes units out that were in."""
        self._sweep(units, -1.0)

    def _fitted(self) -> Float:
        """What the columns that are out add to those that are in; and, for those out, their product with the error."""
        out = np.flatnonzero(self.outside)
        found: Float = self.weight[:, out] @ self.table[out]
        return found

    def loss(self) -> float:
        """The error after the refit."""
        out = np.flatnonzero(self.outside)
        lost = self.weight[:, out]
        return float(np.sum((lost @ self.table[np.ix_(out, out)]) * lost))

    def costs(self, units: Index) -> Float:
        """By how much the loss grows without each of some units that are in."""
        return -self._weighed(units, self.weight + self._fitted())

    def gains(self, units: Index) -> Float:
        """By how much the loss falls with each of some units that are out."""
        return self._weighed(units, self._fitted())

    def _weighed(self, units: Index, rows: Float) -> Float:
        columns = self.columns[units]
        blocks = self.table[columns[:, :, None], columns[:, None, :]]
        parts = rows[:, columns].transpose(1, 2, 0)
        found: Float = np.einsum("umr,umr->u", parts, np.linalg.solve(blocks, parts))
        return found


def exchange(found: Sequence[Swept], kept: Index, size: int, rounds: int = ROUNDS) -> Index:
    """As many units as are kept, with a loss that is not larger.

    Args:
        found: The consumers of the units; their losses add up.
        kept: The units that stay, ascending.
        size: How many units there are.
        rounds: How many exchanges are made at most.
    """
    inside = np.zeros(size, np.bool_)
    inside[kept] = True
    for each in found:
        each.start(kept)
    at_once = min(max(1, size // SHARE), len(kept) - 1, size - len(kept))
    loss = sum(each.loss() for each in found)
    while rounds and at_once > 0:
        rounds -= 1
        units = np.flatnonzero(inside)
        costs = np.sum([each.costs(units) for each in found], axis=0)
        order = units[np.argsort(costs, kind="stable")]
        tries = [order[:at_once]] if at_once > 1 else [order[i : i + 1] for i in range(min(CANDIDATES, len(order)))]
        for going in tries:
            coming = _swapped(found, inside, going)
            new = sum(each.loss() for each in found)
            if new < (1 - PROGRESS) * loss:
                inside[going], inside[coming] = False, True
                loss = new
                break
            for each in found:
                each.take_out(coming)
                each.put_in(going)
        else:
            at_once //= 2
    return np.flatnonzero(inside)


def _swapped(found: Sequence[Swept], inside: NDArray[np.bool_], going: Index) -> Index:
    """Takes some units out and puts as many in that help most; returns these."""
    for each in found:
        each.take_out(going)
    out = np.concatenate([np.flatnonzero(~inside), going])
    gains = np.sum([each.gains(out) for each in found], axis=0)
    coming = out[np.argsort(-gains, kind="stable")[: len(going)]]
    for each in found:
        each.put_in(coming)
    return coming
