"""Collecting statistics: one walk over the calibration batches, tapping what consumers read."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.analysis.groups import Analysis
from graphprune.brief import brief
from graphprune.files import replaced
from graphprune.hosts.host import Array, Arrays, Host
from graphprune.ir.dims import factors_of
from graphprune.observer import Count, uncounted
from graphprune.planning.plan import fingerprint
from graphprune.statistics.consumers import Consumer, Source, consumers_of, count_of, find_consumers, inputs_of
from graphprune.statistics.distributed import summed
from graphprune.statistics.moments import Moments
from graphprune.statistics.origin import Origin
from graphprune.statistics.store import read_statistics

MEMORY = 2 << 30
"""Bytes that products of moments may take at a time; what does not fit is collected in further walks."""
TAPPED = 256 << 20
"""Bytes of activations that are tapped at a time: a batch goes through the model in stretches of about so many."""
ROWS_PER_COLUMN = 8
"""Positions that are counted for each column of a product: more of them say little more and take as much longer."""
LEAST_ROWS = 8192
"""Positions that are counted at least, where the data has them."""
GATHERED = 512
"""Rows of one activation that are gathered from batches before their products are taken."""


@dataclass(frozen=True)
class Statistics:
    """Moments of what the consumers of prunable groups read, on the dense model.

    Attributes:
        consumers: For each group, by name, the consumers of its units.
        moments: By source (see :attr:`Consumer.source`).
        spreads: By node: the variance of each channel of the consumer's target.
        samples: How many samples were seen.
        fingerprint: Of the model's structure.
        origin: What they were taken of; ``None`` where nobody has said so.
        groups: The names of the groups that were measured; ``None``: all of the model.
        gates: For each group, by name, the gates of recurrent layers that read its units
            (:class:`graphprune.compensation.gates.Gates`), whose moments are among the others.
    """

    __repr__ = brief

    consumers: Mapping[str, Sequence[Consumer]]
    moments: Mapping[Source, Moments]
    spreads: Mapping[str, NDArray[np.float64]]
    samples: int = 0
    fingerprint: str = ""
    origin: Origin | None = None
    groups: frozenset[str] | None = None
    gates: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def fits(self, analysis: Analysis, *, full: bool, groups: Collection[str] | None = None) -> bool:
        """Whether these are of some groups of an analysed model (``None``: all), with products where ``full``."""
        names = {group.name for group in analysis.groups}
        complete = not full or all(each.product is not None for each in self.moments.values())
        measured = self.groups is None or self.groups.issuperset(names if groups is None else groups)
        return (
            complete and measured and self.fingerprint == fingerprint(analysis.graph) and names >= set(self.consumers)
        )

    @property
    def n_bytes(self) -> int:
        """What the moments take."""
        arrays = (array for moments in self.moments.values() for array in moments.arrays().values())
        return sum(np.asarray(array).nbytes for array in arrays)

    def save(self, path: str | Path) -> None:
        """Writes an ``.npz`` file, whole or not at all.

        Raises:
            OutputError: It cannot be written.
        """
        arrays: dict[str, NDArray[Any]] = {}
        for i, moments in enumerate(self.moments.values()):
            arrays.update({f"{i}.{name}": array for name, array in moments.arrays().items()})
        about = {
            "samples": self.samples,
            "fingerprint": self.fingerprint,
            "sources": [_text(source) for source in self.moments],
            "spreads": {node: each.tolist() for node, each in self.spreads.items()},
            "origin": None if self.origin is None else self.origin.to_dict(),
        }
        with replaced(Path(path)) as temporary, temporary.open("wb") as file:
            np.savez(file, about=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]

    @staticmethod
    def load(
        path: str | Path,
        host: Host,
        analysis: Analysis,
        origin: Origin | None = None,
        others: Mapping[Source, int] | None = None,
    ) -> Statistics:
        """Reads what :meth:`save` wrote, for the same model.

        Args:
            path: The file.
            host: The model.
            analysis: Its analysis.
            origin: What they have to be of: these weights, these data, this part of them; ``None``: whatever.
            others: Columns of other sources that have to be there, such as the gates of recurrent layers.

        Raises:
            OptionError: The file is no such file, or belongs to another model, or to other weights or data.
        """
        consumers = consumers_of(analysis, find_consumers(host, analysis.graph))
        widths = {c.source: _width(c.source, analysis) for each in consumers.values() for c in each}
        widths |= others or {}
        about, moments = read_statistics(
            Path(path),
            fingerprint(analysis.graph),
            {_text(s): (s[2], width // s[2]) for s, width in widths.items()},
            origin,
        )
        spreads = {}
        for consumer in (c for each in consumers.values() for c in each):
            shape, channel = analysis.graph.values[consumer.target].shape, consumer.channel
            size = 1 if channel is None else shape[channel]
            spreads[consumer.node] = about.spread(consumer.node, size)
        return Statistics(
            consumers,
            {source: moments[_text(source)] for source in widths},
            spreads,
            about.samples,
            about.fingerprint,
            about.origin,
        )


def _text(source: Source) -> str:
    return repr(tuple(source))


def collect(
    host: Host,
    analysis: Analysis,
    batches: Iterable[Arrays],
    *,
    full: bool = True,
    groups: Collection[str] | None = None,
    memory: int = MEMORY,
    progress: Count = uncounted,
) -> Statistics:
    """Walks over the data and takes the moments of everything that prunable units flow into.

    Args:
        host: The model.
        analysis: Its analysis.
        batches: Inputs by name; walked over once for each chunk of what fits into memory.
        full: Whether to take all products (for least squares), or the diagonal only.
        groups: The names of the groups whose consumers are measured; ``None``: all.
        memory: Bytes that products may take at a time.
        progress: Told how many batches of how many are done.

    Returns:
        The statistics; summed over the processes of ``torch.distributed`` where it is initialised.
    """
    by_group = consumers_of(analysis, find_consumers(host, analysis.graph))
    if groups is not None:
        by_group = {name: found for name, found in by_group.items() if name in groups}
    sources = list(dict.fromkeys(consumer.source for each in by_group.values() for consumer in each))
    widths = {source: _width(source, analysis) for source in sources}
    chunks = list(_chunks(sources, widths, memory if full else 1 << 62))
    batches = list(batches) if not hasattr(batches, "__len__") else batches
    n_batches = len(batches)  # type: ignore[arg-type]
    moments: dict[Source, Moments] = {}
    targets: dict[str, Source] = {c.node: Source(c.target, c.channel) for each in by_group.values() for c in each}
    sizes = {s: _width(s, analysis) for s in targets.values() if s not in widths}
    spread = {source: Moments.zeros(1, size, full=False) for source, size in sizes.items()}
    for n, chunk in enumerate(chunks):
        taken = {s: Moments.zeros(s[2], widths[s] // s[2], full=full) for s in chunk}
        walk(
            host,
            analysis,
            batches,
            {**taken, **spread} if n == 0 else taken,
            n_batches,
            progress=lambda done, n=n: progress(n * n_batches + done, len(chunks) * n_batches),  # type: ignore[misc]
        )
        moments.update(taken)
    samples = reduce_over_processes([*moments.values(), *spread.values()], _samples(batches))
    everything = {**moments, **spread}
    spreads = {node: everything[source].variance.ravel() for node, source in targets.items()}
    measured = None if groups is None else frozenset(groups)
    return Statistics(by_group, moments, spreads, samples, fingerprint(analysis.graph), groups=measured)


def walk(
    host: Host,
    analysis: Analysis,
    batches: Iterable[Arrays],
    taken: Mapping[Source, Moments],
    n_batches: int,
    *,
    progress: Callable[[int], None] = lambda done: None,
    seed: int = 0,
) -> None:
    """One walk over the batches, adding to the moments of some sources."""
    order = analysis.graph.producers
    sources = sorted(taken, key=lambda source: order.get(source.value, -1))
    stretches = list(_stretches([source.value for source in sources], analysis))
    runs: list[Any] = []
    rng = np.random.default_rng(seed)
    masks = Masks(analysis)
    gathered: dict[Source, list[Array]] = {source: [] for source in sources}
    for done, batch in enumerate(batches):
        values: Any = batch
        for n, names in enumerate(stretches):
            if len(runs) == n:
                later = [name for other in stretches[n + 1 :] for name in other]
                runs.append(host.partial_run(None if n == 0 else list(values), names, later))
            values, arrays = runs[n](values)
            for source in sources:
                if source.value in arrays:
                    moments, mask = taken[source], masks.of(batch, source.value, source.axis)
                    count = count_of(source, arrays[source.value])
                    columns = moments.total.shape[1] if moments.product is not None else 1
                    pick = positions_to_count(count, columns, n_batches, mask, rng)
                    _gather(gathered[source], moments, inputs_of(source, arrays[source.value], pick))
        progress(done + 1)
    for source in sources:
        _gather(gathered[source], taken[source], None)


def _gather(rows: list[Array], moments: Moments, more: Array | None) -> None:
    """Counts rows in as soon as there are enough of them for fast products; ``None``: those that are left."""
    if moments.product is None and more is not None:  # nothing is gained, and rows may be as wide as a vocabulary
        moments.add(more)
    elif more is not None:
        rows.append(more)
    if rows and (more is None or sum(map(len, rows)) >= GATHERED):
        moments.add(rows[0] if len(rows) == 1 else np.concatenate(rows))
        rows.clear()


def _stretches(names: Iterable[str], analysis: Analysis) -> Iterator[list[str]]:
    """The values that are tapped, in order, in stretches whose values take no more than :data:`TAPPED` bytes."""
    part: list[str] = []
    used = 0
    for name in dict.fromkeys(names):
        size = 4 * prod(analysis.graph.values[name].shape)
        if part and used + size > TAPPED:
            yield part
            part, used = [], 0
        part.append(name)
        used += size
    if part:
        yield part


def positions_to_count(
    n: int, columns: int, n_batches: int, mask: NDArray[np.int64] | None, rng: np.random.Generator
) -> NDArray[np.int64] | None:
    """Which positions of a batch are counted: all of them (``None``), or a random choice where they are many.

    Args:
        n: How many positions there are.
        columns: Of the product that is taken; more columns need more positions.
        n_batches: How many batches there are.
        mask: The positions that count at all; ``None``: all.
        rng: Draws them.
    """
    quota = -(-max(LEAST_ROWS, ROWS_PER_COLUMN * columns) // max(1, n_batches))
    n = n if mask is None else len(mask)
    if n <= quota:
        return mask
    chosen = np.sort(rng.choice(n, quota, replace=False)).astype(np.int64)
    return chosen if mask is None else mask[chosen]


MASK = "attention_mask"
"""The input that says which positions of a sequence are padding, by the name that models of transformers give it."""


class Masks:
    """Which positions of activations hold something: those that an attention mask does not mark as padding.

    A value is masked where its positions are those of the mask, which the analysis of dimensions says.

    Args:
        analysis: Of the model.
    """

    def __init__(self, analysis: Analysis) -> None:
        self._layouts = analysis.layouts
        layout = analysis.layouts.get(MASK, ()) if MASK in analysis.graph.values else ()
        self._places = [factor for dim in layout for factor in factors_of(dim)] if len(layout) > 1 else []

    def of(self, batch: Arrays, value: str, axis: int | None) -> NDArray[np.int64] | None:
        """The positions that count, in the order of the value's axes without ``axis``; ``None``: all."""
        if not self._places or MASK not in batch or value not in self._layouts:
            return None
        places = [f for i, dim in enumerate(self._layouts[value]) if i != axis for f in factors_of(dim)]
        if places != self._places:
            return None
        found = np.flatnonzero(np.asarray(batch[MASK]))
        return None if len(found) in (0, batch[MASK].size) else found.astype(np.int64)


def _width(source: Source, analysis: Analysis) -> int:
    value, axis, _, window = source
    kernel = int(np.prod(window.kernel)) if window is not None else 1
    return 1 if axis is None else analysis.graph.values[value].shape[axis] * kernel


def _chunks(sources: Sequence[Source], widths: Mapping[Source, int], memory: int) -> Iterator[list[Source]]:
    chunk: list[Source] = []
    used = 0
    for source in sources:
        size = 8 * widths[source] ** 2 // source.groups
        if chunk and used + size > memory:
            yield chunk
            chunk, used = [], 0
        chunk.append(source)
        used += size
    if chunk:
        yield chunk


def _samples(batches: Iterable[Arrays]) -> int:
    known = getattr(batches, "samples", None)
    return int(known) if known is not None else sum(len(next(iter(batch.values()))) for batch in batches)


def reduce_over_processes(moments: Iterable[Moments], samples: int) -> int:
    """Sums moments over the processes of ``torch.distributed``, if there are several; returns all samples."""
    for each in moments:
        for name, array in each.arrays().items():
            total = summed(array)
            setattr(each, name, int(total) if name == "count" else total.reshape(array.shape))
    return int(summed(np.array(samples)))
