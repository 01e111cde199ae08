"""Results of many trials as data: how sensitive each group is, and what each of several targets costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from graphprune.brief import brief
from graphprune.planning.select import most_sensitive

OUTPUT_ERROR = "output error"
"""The measure where the user gives none."""


def finite(value: float) -> float | None:
    """A number as JSON can hold it."""
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class SensitivityRow:
    """What removing part of one group does.

    Attributes:
        group: The group's name.
        kind: Its kind.
        units: Its size.
        ratio: The fraction of the units that was asked for.
        removed: How many units were removed.
        value: The measure without them.
    """

    __repr__ = brief

    group: str
    kind: str
    units: int
    ratio: float
    removed: int
    value: float


@dataclass(frozen=True)
class Sensitivity:
    """How much the model depends on each group (Li 2016; knowledge distribution in LoRAShear).

    Attributes:
        measure: What was measured: ``output error`` (relative), or the name of the user's metric.
        baseline: The measure of the original.
        rows: One for each group and ratio, groups in the order of the model.
        random: Whether the inputs were made up.
        notes: Sentences for the user.
    """

    __repr__ = brief

    measure: str
    baseline: float
    rows: tuple[SensitivityRow, ...]
    random: bool = False
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The table of ``graphprune sensitivity``, as text."""
        from graphprune.report.terminal import as_text, render_sensitivity

        return as_text(render_sensitivity(self, title="sensitivity"))

    @property
    def deviations(self) -> dict[str, float]:
        """By group: the mean over the ratios of the distance from the baseline."""
        found: dict[str, list[float]] = {}
        for row in self.rows:
            found.setdefault(row.group, []).append(abs(row.value - self.baseline))
        return {name: sum(values) / len(values) for name, values in found.items()}

    def most_sensitive(self, ratio: float) -> tuple[str, ...]:
        """The names of the ⌈ratio · groups⌉ most sensitive groups, the worst first."""
        return most_sensitive(self.deviations, ratio)

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON data; numbers that are not finite are null."""
        return {
            "measure": self.measure,
            "baseline": finite(self.baseline),
            "random": self.random,
            "rows": [{**asdict(row), "value": finite(row.value)} for row in self.rows],
            "deviations": {name: finite(value) for name, value in self.deviations.items()},
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class FrontPoint:
    """What one target gave.

    Attributes:
        target: The target as text; ``original`` for the model as it came.
        costs: MACs, parameters and bytes.
        latency: Median milliseconds in onnxruntime, by number of threads.
        latency_kept: The same as a fraction of the original's, which was measured in turns with it.
        metrics: What the user's evaluation gives.
        error: Why there is no result, or nothing.
        files: What was written for it.
        intervals: Where each metric of labelled data lies, 95 times of 100.
        samples: Of how many samples it is the mean.
    """

    __repr__ = brief

    target: str
    costs: Mapping[str, float]
    latency: Mapping[int, float]
    latency_kept: Mapping[int, float]
    metrics: Mapping[str, float]
    error: str = ""
    files: tuple[str, ...] = ()
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    samples: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Front:
    """What is left of metric, latency and size at each of several targets.

    Attributes:
        points: The original first, then the targets from the largest to the smallest result.
        notes: Sentences for the user.
    """

    __repr__ = brief

    points: tuple[FrontPoint, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The table of ``graphprune sweep``, as text."""
        from graphprune.report.terminal import as_text, render_front

        return as_text(render_front(self, title="sweep"))

    def to_dict(self) -> dict[str, Any]:
        """The front as JSON data; numbers that are not finite are null."""
        points = [
            {**asdict(point), "metrics": {name: finite(value) for name, value in point.metrics.items()}}
            for point in self.points
        ]
        return {"points": points, "notes": list(self.notes)}
