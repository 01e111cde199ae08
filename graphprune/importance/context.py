"""What a criterion may look at, and how scores of columns become scores of units."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from graphprune.analysis.groups import Analysis, Group
from graphprune.brief import brief
from graphprune.errors import OptionError
from graphprune.hosts.host import Arrays, Host, Mapped
from graphprune.importance.judge import Asked
from graphprune.ir.dims import unit_of
from graphprune.statistics.collect import Statistics
from graphprune.statistics.consumers import Consumer, columns_of
from graphprune.statistics.moments import Moments

Float: TypeAlias = NDArray[np.float64]
Read: TypeAlias = Callable[[str], NDArray[Any]]
Scores: TypeAlias = Mapping[str, Float]
"""By the name of the group: one score for each unit."""


CELLS = 1 << 22
"""Numbers of a weight that are turned into double precision at a time."""
FLOOR = 0.1
"""The least variance of a channel that errors are relative to, as a fraction of the median channel's."""


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at.

    Attributes:
        analysis: The analysis of the model.
        read: Gives the values of a stored tensor by name.
        seed: For criteria that draw random numbers.
        statistics: Moments of what consumers read on calibration data, if they were collected.
        host: The model, for criteria that run it.
        batches: Calibration data, for criteria that run the model; its ``labels`` are used if it has some.
        asked: How the user wants outputs compared, where the graph should not say.
    """

    __repr__ = brief

    analysis: Analysis
    read: Read
    seed: int = 0
    statistics: Statistics | None = None
    host: Host | None = None
    batches: Iterable[Arrays] | None = None
    asked: Sequence[Asked] = ()

    @property
    def groups(self) -> Sequence[Group]:
        """The groups to be scored."""
        return self.analysis.groups

    def stored(self, tensor: str) -> NDArray[Any]:
        """The values of a stored tensor where they lie, for criteria that look at some at a time; of any type."""
        return self.host.mapped(tensor) if isinstance(self.host, Mapped) else self.read(tensor)

    def measured(self, criterion: str) -> Statistics:
        """The statistics.

        Raises:
            OptionError: There are none.
        """
        if self.statistics is None:
            raise OptionError(
                f"criterion '{criterion}' needs calibration data; give some (calibration=..., --calibration PATH)"
            )
        return self.statistics


@dataclass(frozen=True)
class Reading:
    """How one consumer reads the units of one group.

    Attributes:
        consumer: The consumer.
        moments: Of its inputs.
        units: For each column ``[g, c]`` the unit that it belongs to, or -1.
        table: Its weight as it is stored, ``[g, rows, c]``.
        scale: What errors of its rows are relative to, ``[g, rows]``: the inverse of the standard deviation of each
            channel of its target, over the root of their number. A few channels of large values, as residual streams
            of language models have them, then do not hide the others.
    """

    consumer: Consumer
    moments: Moments
    units: NDArray[np.int64]
    table: NDArray[Any]
    scale: Float

    @property
    def matrix(self) -> Float:
        """Its weight, ``[g, rows, c]``."""
        return self.table.astype(np.float64) * self.consumer.scale

    def pieces(self, g: int) -> Iterator[tuple[Float, Float]]:
        """Rows of one group of the weight ``[n, c]``, some at a time, and their scale ``[n]``.

        A head may have a row for each word of a vocabulary, of which no copy in double precision is made.
        """
        step = max(1, CELLS // max(1, self.table.shape[2]))
        for start in range(0, self.table.shape[1], step):
            part = slice(start, start + step)
            yield self.table[g, part].astype(np.float64) * self.consumer.scale, self.scale[g, part]

    def summed(self, of_rows: Callable[[Float, Float], Float]) -> Float:
        """What a function makes of rows and their scale, summed over all rows of each group."""
        groups = range(len(self.table))
        return np.stack([np.sum([of_rows(*piece) for piece in self.pieces(g)], axis=0) for g in groups])

    @property
    def scaled(self) -> Float:
        """The weight in units of its target, ``[g, rows, c]``: squared errors are means over channels."""
        return self.matrix * self.scale[:, :, None]


def readings(evidence: Evidence, statistics: Statistics, group: Group) -> Iterator[Reading]:
    """How the consumers of a group read its units."""
    for consumer in statistics.consumers.get(group.name, ()):
        moments = statistics.moments[consumer.source]
        dim = evidence.analysis.layouts[consumer.value][consumer.axis]
        units = columns_of(consumer, unit_of(dim, group.factor), moments.total.shape[1])
        table = consumer.table(evidence.read(consumer.weight))
        variance = statistics.spreads[consumer.node]
        floor = max(FLOOR * float(np.median(variance)), float(np.finfo(np.float64).tiny))
        scale = 1 / np.sqrt(len(variance) * np.maximum(variance, floor))
        rows = np.repeat(scale, table[..., 0].size // len(scale)).reshape(table.shape[:2])
        yield Reading(consumer, moments, units, table, rows)


def per_unit(columns: Float, units: NDArray[np.int64], size: int, *, mean: bool = False) -> Float:
    """Sums (or means) over the columns ``[g, c]`` of each unit."""
    inside = units >= 0
    total: Float = np.bincount(units[inside], columns[inside], minlength=size).astype(np.float64)
    return total / np.maximum(np.bincount(units[inside], minlength=size), 1) if mean else total
