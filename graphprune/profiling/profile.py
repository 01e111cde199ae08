"""Making a profile of a model, and reading off one what the model takes at any widths."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from graphprune.analysis.groups import Analysis, Group, analyze_graph
from graphprune.errors import GraphpruneError, OptionError
from graphprune.hosts.host import Arrays, Host
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.planning.allocation import Limits, levels_of
from graphprune.planning.latency import Entry, LatencyModel, Profile, Usage
from graphprune.profiling.matching import matching_groups
from graphprune.profiling.measure import Measure, clock_of, kernels, machine
from graphprune.profiling.segments import Segment, at_widths, feed, segments_of
from graphprune.runtime import sessions as runtime

Advance = Callable[[int, int], None]
"""Told how many segments are measured, of how many."""

POINTS = {0: 1, 1: 9, 2: 5, 3: 3}
QUICK_POINTS = {0: 1, 1: 4, 2: 3, 3: 2}
"""Widths along each coordinate of a segment, by the number of its coordinates."""
SECONDS, QUICK_SECONDS = 120.0, 20.0
MOST_BYTES = 1 << 29
"""Weights of the sessions that run interleaved; more are run one after the other."""


@dataclass(frozen=True)
class Cut:
    """A model cut into segments.

    Attributes:
        host: The ONNX model that is measured: the model itself, or an export of it.
        segments: Its segments.
        names: For each group of the ONNX model, the group of the user's model.
        exported: Whether the ONNX model is an export, whose nodes are not those of the user's model.
    """

    host: OnnxHost
    segments: tuple[Segment, ...]
    names: Mapping[str, str]
    exported: bool = False

    @property
    def usages(self) -> tuple[Usage, ...]:
        """The segments by the names of the user's groups; what has no counterpart is constant."""
        return tuple(replace(s.usage, coordinates=tuple(map(self._ours, s.usage.coordinates))) for s in self.segments)

    def _ours(self, coordinate: Mapping[str, float]) -> dict[str, float]:
        weights: dict[str, float] = defaultdict(float)
        for name, weight in coordinate.items():
            if name in self.names:
                weights[self.names[name]] += weight
        return dict(weights)


def cut(host: Host, analysis: Analysis | None = None) -> Cut:
    """Cuts a model into segments; a PyTorch model is exported first.

    Args:
        host: The model, not folded.
        analysis: That of the folded model, if it is known.
    """
    if analysis is None:
        analysis = analyze_graph(host.folded().graph())
    if isinstance(host, OnnxHost):
        folded = host.folded()
        own = analyze_graph(folded.graph())  # nothing is protected: a profile serves every selection of groups
        present = {group.name for group in analysis.groups}
        return Cut(folded, segments_of(folded, own), {g.name: g.name for g in own.groups if g.name in present})
    with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
        path = Path(folder) / "model.onnx"
        host.save_onnx(path)
        shapes = {name: tuple(array.shape) for name, array in host.example_inputs().items()}
        exported = OnnxHost.load(path)
        exported = OnnxHost.load(path, {name: shapes[name] for name in exported.bound if name in shapes}).folded()
        own = analyze_graph(exported.graph())
        names = matching_groups(host, analysis, exported, own)
        segments = segments_of(exported, own)
        return Cut(exported, segments, names, exported=True)


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """How segments are measured.

    Attributes:
        threads: Threads within an operator; 0 means all cores.
        provider: onnxruntime's execution provider.
        align: Widths are multiples of this where possible.
        quick: Fewer widths and less time.
        seconds: About how long the runs may take in all; loading the models comes on top.

    Raises:
        OptionError: The provider is unknown, or a number means nothing.
    """

    threads: int = 1
    provider: str = runtime.CPU
    align: int = 8
    quick: bool = False
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.seconds is not None and self.seconds <= 0:
            raise OptionError(f"seconds is {self.seconds:g}; expected a positive number")
        if self.threads < 0:
            raise OptionError(f"threads is {self.threads}; expected 1 or more, or 0 for all cores")
        Limits(align=self.align)
        machine(self.threads, self.provider)

    def share(self, n: int) -> float:
        """Seconds for each of some distinct segments."""
        return (self.seconds or (QUICK_SECONDS if self.quick else SECONDS)) / max(1, n)


def make_profile(
    host: Host,
    pieces: Cut,
    how: Measuring = Measuring(),
    *,
    advance: Advance = lambda done, total: None,
    measure: Measure | None = None,
    whole: Callable[[], float] | None = None,
) -> Profile:
    """Measures every distinct segment on a grid of aligned widths.

    Args:
        host: The model, whose whole latency is measured too.
        pieces: Its segments.
        how: How they are measured.
        advance: Told the progress.
        measure: Another way to measure segments, for tests.
        whole: Another way to measure the model, for tests.

    Raises:
        ModelError: onnxruntime cannot run the model.
    """
    limits = Limits(align=how.align)
    where = machine(how.threads, how.provider)
    measure = measure or kernels(how.threads, how.provider)
    whole_ms = whole() if whole else measure_host(host, threads=how.threads, provider=how.provider)
    distinct = {segment.usage.signature: segment for segment in pieces.segments}
    points, each = QUICK_POINTS if how.quick else POINTS, how.share(len(distinct))
    example = pieces.host.example_inputs()
    entries: dict[str, Entry] = {}
    skipped = []
    for done, (signature, segment) in enumerate(distinct.items()):
        advance(done, len(distinct))
        axes, grid = widths_of(segment, limits, points[len(segment.usage.coordinates)])
        try:
            models = [at_widths(segment, counts) for counts in grid]
            taken = [
                ms
                for batch in _batches([(model, feed(segment, model, example)) for model in models])
                for ms in measure(batch, each * len(batch) / len(grid))
            ]
        except GraphpruneError:  # what cannot stand alone counts as constant
            skipped.append(signature)
            continue
        entries[signature] = Entry(segment.label, axes, tuple(taken))
    advance(len(distinct), len(distinct))
    summed = sum(entries[s.usage.signature].milliseconds[-1] for s in pieces.segments if s.usage.signature in entries)
    return Profile(where, how.align, entries, whole_ms, summed, tuple(skipped))


def _batches(pieces: Sequence[tuple[OnnxHost, Arrays]]) -> Iterator[list[tuple[OnnxHost, Arrays]]]:
    """Pieces that are in memory together."""
    batch: list[tuple[OnnxHost, Arrays]] = []
    held = 0
    for piece in pieces:
        size = sum(int(np.prod(stored.shape)) * 4 for stored in piece[0].store.values())
        if batch and held + size > MOST_BYTES:
            yield batch
            batch, held = [], 0
        batch.append(piece)
        held += size
    yield batch


def widths_of(
    segment: Segment, limits: Limits, points: int
) -> tuple[tuple[tuple[float, ...], ...], list[dict[str, int]]]:
    """The axes of a segment's grid, and the kept units of each group at every point, in row-major order."""
    groups = {group.name: group for group in segment.groups}
    axes: list[list[float]] = []
    choices: list[list[dict[str, int]]] = []
    for coordinate in segment.usage.coordinates:
        steps: dict[float, dict[str, int]] = {}
        for share in np.linspace(0, 1, points):
            counts = {name: _level(groups[name], limits, share) for name in coordinate}
            fraction = sum(weight * counts[name] for name, weight in coordinate.items())
            steps[1.0 if share == 1 else round(float(fraction), 9)] = counts
        axes.append(sorted(steps))
        choices.append([steps[fraction] for fraction in axes[-1]])
    grid = [{name: n for part in parts for name, n in part.items()} for parts in product(*choices)]
    return tuple(map(tuple, axes)), grid


def _level(group: Group, limits: Limits, share: float) -> int:
    """The level nearest to a share of the way from the smallest to the whole group."""
    levels = levels_of(group, limits)
    wanted = levels[-1] + share * (levels[0] - levels[-1])
    return min(levels, key=lambda level: abs(level - wanted))


def measure_host(host: Host, *, threads: int, provider: str, seconds: float = 2.0) -> float:
    """Milliseconds of a whole model in onnxruntime."""
    with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
        path = Path(folder) / "model.onnx"
        host.save_onnx(path)
        (latency,) = runtime.measure(
            [path], [host.example_inputs()], threads=(threads,), provider=provider, seconds=seconds,
            most_runs=1000, quantile=0.25, clock=clock_of(threads),
        )  # fmt: skip
    return latency.milliseconds[0]


def latency_model(profile: Profile, pieces: Cut) -> LatencyModel:
    """What the model takes, by a profile.

    Raises:
        OptionError: The profile is of another model.
    """
    try:
        local = profile.machine == machine(profile.machine.threads, profile.machine.provider)
    except OptionError:
        local = False
    return LatencyModel(profile, pieces.usages, local=local, exported=pieces.exported)
