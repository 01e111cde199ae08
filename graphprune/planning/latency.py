"""Latency as a cost: a table of measured operators, and what a model is predicted to take by it. Pure; no runtime.

A model is cut into *segments* (``graphprune.profiling.segments``): one operator that multiplies, and what a runtime
fuses with it. Every segment has up to three *coordinates*, fractions of width that vary independently (the input and
the output channels of a convolution). The table holds milliseconds on a grid of aligned widths; between them it is
multilinear, and made monotone, since noise must not reward width (docs/methods.md, Latency).

A coordinate is ``Σ_g weight_g · kept_g``, where one unit of group g weighs its part of the width: 1 is the whole width.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.analysis.groups import Group
from graphprune.brief import brief
from graphprune.errors import OptionError
from graphprune.files import read_json, write_text
from graphprune.planning.reading import MALFORMED, number, texts, whole

FORMAT = 1
"""The version of the JSON form."""
MOST_COORDINATES = 3
"""Widths of one segment that vary independently; more are tied together."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a profile was measured.

    Attributes:
        cpu: The processor, as the system names it.
        cores: How many it has.
        threads: Threads within an operator that were used.
        provider: onnxruntime's execution provider.
        runtime: onnxruntime's version.
    """

    cpu: str
    cores: int
    threads: int
    provider: str
    runtime: str

    def __str__(self) -> str:
        return f"{self.cpu}, {self.threads} of {self.cores} cores, {self.provider} of onnxruntime {self.runtime}"


@dataclass(frozen=True, slots=True)
class Entry:
    """Measured milliseconds of one operator shape on a grid of widths.

    Attributes:
        label: The operators and the sizes of the largest tensors, for the reader.
        axes: For each coordinate the measured fractions, rising, the last one is 1.
        milliseconds: In row-major order of the axes.
    """

    __repr__ = brief

    label: str
    axes: tuple[tuple[float, ...], ...]
    milliseconds: tuple[float, ...]

    def table(self) -> Floats:
        """The milliseconds, monotone along every axis: the mean of the running maximum and of the running minimum."""
        grid = np.array(self.milliseconds, dtype=np.float64).reshape([len(axis) for axis in self.axes])
        for axis in range(grid.ndim):
            rising = np.maximum.accumulate(grid, axis)
            falling = np.flip(np.minimum.accumulate(np.flip(grid, axis), axis), axis)
            grid = (rising + falling) / 2
        return np.asarray(grid, dtype=np.float64)


@dataclass(frozen=True)
class Profile:
    """A table of measured latencies: JSON that can be made on the target device and brought back.

    Attributes:
        machine: Where it was measured.
        align: Widths were measured at multiples of this where possible.
        entries: By the signature of an operator shape.
        whole: Milliseconds of the whole model, measured.
        summed: Milliseconds of all its segments by the table; ``whole / summed`` corrects for fusion and caches.
        skipped: Segments that onnxruntime could not run alone; they count as constant.
    """

    __repr__ = brief

    machine: Machine
    align: int
    entries: Mapping[str, Entry]
    whole: float
    summed: float
    skipped: tuple[str, ...] = ()

    @property
    def correction(self) -> float:
        """By what the sum of the segments is multiplied to give the whole model's latency."""
        return self.whole / self.summed if self.summed > 0 else 1.0

    def to_dict(self) -> dict[str, Any]:
        """The profile as JSON data."""
        return {"format": FORMAT, **asdict(self), "correction": self.correction}

    def save(self, path: str | Path) -> None:
        """Writes the profile as JSON, whole or not at all.

        Raises:
            OutputError: It cannot be written.
        """
        write_text(Path(path), json.dumps(self.to_dict(), indent=1) + "\n")

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Profile:
        """Reads JSON data.

        Raises:
            OptionError: It is no profile, or of another version.
        """
        try:
            if data["format"] != FORMAT:
                raise OptionError(
                    f"the profile has format {data['format']}, expected {FORMAT}; make it anew with graphprune profile"
                )
            entries = {
                str(key): Entry(
                    str(entry["label"]),
                    tuple(tuple(map(number, axis)) for axis in entry["axes"]),
                    tuple(map(number, entry["milliseconds"])),
                )
                for key, entry in data["entries"].items()
            }
            profile = Profile(
                _machine(**data["machine"]),
                whole(data["align"]),
                entries,
                number(data["whole"]),
                number(data["summed"]),
                texts(data["skipped"]),
            )
        except MALFORMED as error:
            raise OptionError(f"not a profile: {error!r}; make one with graphprune profile MODEL -o FILE") from error
        for entry in entries.values():
            _require_grid(entry)
        return profile

    @staticmethod
    def load(path: str | Path) -> Profile:
        """Reads the JSON that :meth:`save` wrote.

        Raises:
            OptionError: The file cannot be read or is no profile.
        """
        data = read_json(Path(path), OptionError, "profile", "make one with graphprune profile")
        return Profile.from_dict(data)


def _machine(cpu: str, cores: int, threads: int, provider: str, runtime: str) -> Machine:
    """A machine out of a file.

    Raises:
        TypeError: Something is of another type.
    """
    cpu, provider, runtime = texts([cpu, provider, runtime])
    return Machine(cpu, whole(cores), whole(threads), provider, runtime)


def _require_grid(entry: Entry) -> None:
    rising = all(axis and axis[-1] == 1 and list(axis) == sorted(set(axis)) and axis[0] >= 0 for axis in entry.axes)
    fits = len(entry.milliseconds) == prod(len(axis) for axis in entry.axes) and len(entry.axes) <= MOST_COORDINATES
    if not rising or not fits or not all(np.isfinite(ms) and ms >= 0 for ms in entry.milliseconds):
        raise OptionError(
            f"entry '{entry.label}' of the profile holds no grid of latencies: its axes must rise to 1 and give "
            f"{prod(len(axis) for axis in entry.axes)} numbers, it has {len(entry.milliseconds)}; make the profile anew"
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """One segment of a model: which entry of a table it is, and by which groups its widths vary.

    Attributes:
        signature: The key of its :class:`Entry`.
        coordinates: For each coordinate, by name of group, the fraction of the width that one unit is.
        nodes: The names of its nodes.
    """

    signature: str
    coordinates: tuple[Mapping[str, float], ...]
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class LatencyCost:
    """Milliseconds as a function of the numbers of units kept, evaluated for all segments at once.

    Attributes:
        weights: ``[segments * 3, groups]``, the coordinates as linear functions of the counts.
        offset: ``[segments * 3]``, added to them: 1 for absent coordinates.
        axes: ``[segments, 3, points]``, filled up with infinity.
        tables: ``[segments, points, points, points]``, filled up with the last values.
        full: The counts of the unpruned model.
        whole: Milliseconds of the model at these counts.
        scale: Milliseconds of the whole model for one millisecond of the table.
    """

    weights: Floats
    offset: Floats
    axes: Floats
    tables: Floats
    full: Floats
    whole: float
    scale: float

    def __call__(self, counts: Floats) -> float:
        """Milliseconds at ``counts``, one number of kept units for each group."""
        return self.whole - self.scale * (self._sum(self.full) - self._sum(counts))

    def _sum(self, counts: Floats) -> float:
        n = len(self.tables)
        if not n:
            return 0.0
        x = (self.weights @ counts + self.offset).reshape(n, MOST_COORDINATES)
        # rounding must not move a measured width into the interval before it
        at = np.maximum((self.axes <= x[:, :, None] + 1e-9).sum(axis=2) - 1, 0)
        low = np.take_along_axis(self.axes, at[:, :, None], 2)[:, :, 0]
        high = np.take_along_axis(self.axes, at[:, :, None] + 1, 2)[:, :, 0]
        t = np.clip((x - low) / (high - low), 0.0, 1.0)
        rows, total = np.arange(n), 0.0
        for corner in np.ndindex(*(2,) * MOST_COORDINATES):
            share = np.where(np.array(corner, dtype=bool), t, 1 - t).prod(axis=1)
            i, j, k = (at + corner).T
            total += float(share @ self.tables[rows, i, j, k])
        return total

    def share(self, group: int, counts: Floats) -> float:
        """How many milliseconds of those at ``counts`` disappear when ``group`` has the smallest measured width."""
        without = counts.copy()
        without[group] = 0
        return self(counts) - self(without)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One allocation, as fractions of the original's latency; ``measured`` is ``None`` for a profile from elsewhere."""

    requested: float
    predicted: float
    measured: float | None

    @property
    def meets(self) -> bool:
        """Whether the bound is met, as measured where it was measured."""
        return (self.predicted if self.measured is None else self.measured) <= self.requested * (1 + 1e-9)


@dataclass(frozen=True)
class LatencyModel:
    """What a model takes, by a profile.

    Attributes:
        profile: The table.
        usages: The segments of the model.
        scale: By what the table's savings are multiplied beyond the profile's correction; learnt from results.
        local: Whether the profile was measured on this machine, so that a result can be measured here too.
        exported: Whether the segments are those of an export, whose nodes are not those of the model's graph.
        gone: The segments that are left out.
    """

    __repr__ = brief

    profile: Profile
    usages: tuple[Usage, ...]
    scale: float = 1.0
    local: bool = True
    exported: bool = False
    gone: tuple[Usage, ...] = ()

    def __post_init__(self) -> None:
        missing = [u for u in self.usages if u.signature not in self.profile.entries]
        skipped = set(self.profile.skipped)
        if absent := [u for u in missing if u.signature not in skipped]:
            raise OptionError(
                f"the profile is of another model: it has no entry for {len(absent)} of {len(self.usages)} segments, "
                f"such as the one with node '{absent[0].nodes[-1] if absent[0].nodes else '?'}'; make it for this "
                "model, at these input shapes, with graphprune profile MODEL -o FILE"
            )
        for usage in self.usages:
            entry = self.profile.entries.get(usage.signature)
            if entry is not None and len(entry.axes) != len(usage.coordinates):
                raise OptionError(
                    f"entry '{entry.label}' of the profile has {len(entry.axes)} axes, the segment has "
                    f"{len(usage.coordinates)}; make the profile anew"
                )

    def scaled(self, factor: float) -> LatencyModel:
        """The model with the predicted savings multiplied by ``factor``."""
        return replace(self, scale=self.scale * factor)

    def without(self, nodes: Iterable[str]) -> LatencyModel:
        """The model without the segments whose first node, the operator that multiplies, is left out.

        What follows that operator (the sum of a residual branch, a norm) is taken to cost nothing on its own.

        Raises:
            OptionError: The segments are those of an export, and cannot be found by the names of the model's nodes.
        """
        if self.exported:
            raise OptionError(
                "latency cannot be predicted for a PyTorch model that loses whole branches; export it (graphprune "
                "export) and prune the ONNX file, or give another target"
            )
        names = frozenset(nodes)
        gone = tuple(u for u in self.usages if u.nodes and u.nodes[0] in names)
        left = tuple(u for u in self.usages if u not in gone)
        return replace(self, usages=left, gone=(*self.gone, *gone))

    def over(self, groups: Sequence[Group]) -> LatencyCost:
        """The cost function of these groups, in their order. Groups that the segments name and that are absent stay."""
        index = {group.name: i for i, group in enumerate(groups)}
        full = np.array([group.size for group in groups], dtype=np.float64)
        used = [(u, self.profile.entries[u.signature]) for u in self.usages if u.signature in self.profile.entries]
        points = max((len(axis) for _, entry in used for axis in entry.axes), default=1)
        weights = np.zeros((len(used) * MOST_COORDINATES, len(groups)))
        offset = np.ones(len(used) * MOST_COORDINATES)
        axes = np.full((len(used), MOST_COORDINATES, points + 1), np.inf)
        axes[:, :, 0] = 1.0
        tables = np.zeros((len(used), *(points + 1,) * MOST_COORDINATES))
        for row, (usage, entry) in enumerate(used):
            for c, (coordinate, axis) in enumerate(zip(usage.coordinates, entry.axes, strict=True)):
                axes[row, c, : len(axis)] = axis
                _linear(coordinate, index, full, weights, offset, row * MOST_COORDINATES + c)
            grid = entry.table()
            shape = (*grid.shape, *(1,) * (MOST_COORDINATES - grid.ndim))
            index_of = np.ix_(*[np.minimum(np.arange(points + 1), n - 1) for n in shape])
            tables[row] = grid.reshape(shape)[index_of]
        scale = self.profile.correction * self.scale
        entries = (self.profile.entries.get(usage.signature) for usage in self.gone)
        saved = sum(float(entry.table().flat[-1]) for entry in entries if entry is not None)
        return LatencyCost(weights, offset, axes, tables, full, self.profile.whole - scale * saved, scale)


def _linear(
    coordinate: Mapping[str, float], index: Mapping[str, int], full: Floats, weights: Floats, offset: Floats, row: int
) -> None:
    for name, weight in coordinate.items():
        i = index.get(name)
        if i is not None:  # a group that may not be pruned keeps its part of the width
            weights[row, i] = weight
            offset[row] -= weight * full[i]
