"""What the gates of recurrent layers read, measured: moments of inputs and states together, for each cell.

A cell's gates are a weighted sum of its input and of the state before, ``z_t = [W R] [x_t; h_(t-1)] + b``, and so they
are a reader of both like any other: units can be scored by what their loss costs them, and trials can refit them. What
they see is computed from the weights (:func:`graphprune.hosts.recurrent.run_cell`), since no value of the graph
holds the states before each step. The reset of a GRU's candidate is left out here: it scales what the state gives.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from graphprune.analysis.groups import Analysis
from graphprune.compensation.moved import is_own, value_of
from graphprune.hosts.host import Arrays, Host, PartialRun
from graphprune.hosts.recurrent import Cell, Float, Recurrent, run_cell
from graphprune.ir.dims import Dim, factors_of
from graphprune.statistics.collect import Masks, Statistics, positions_to_count, reduce_over_processes
from graphprune.statistics.consumers import Source
from graphprune.statistics.moments import Moments


@dataclass(frozen=True)
class Gates:
    """The gates of one cell as a reader.

    Attributes:
        node: The recurrent node.
        layer: The layer that the cell is of.
        cell: The cell.
    """

    node: str
    layer: Recurrent
    cell: Cell

    @property
    def source(self) -> Source:
        """What its moments are kept under: no value of the graph, but the cell's inputs and states side by side."""
        return Source(f"{self.node}[{self.layer.cells.index(self.cell)}]", -1)

    def columns(self, analysis: Analysis) -> tuple[Dim, Dim]:
        """What the inputs and the states are made of."""
        return analysis.layouts[self.cell.w.tensor][-1], analysis.layouts[self.cell.r.tensor][-1]

    def matrix(self, host: Host) -> Float:
        """``[W R]``, ``[(gate h), i + h]``."""
        parts = [part.of(value_of(host, part.tensor)) for part in (self.cell.w, self.cell.r)]
        return np.concatenate(parts, axis=1).astype(np.float64)


def find_gates(host: Host, analysis: Analysis, groups: Collection[str] | None = None) -> dict[str, list[Gates]]:
    """For each group that some gates read, by name: the cells, whose weights nothing else reads.

    Args:
        host: The model.
        analysis: Its analysis.
        groups: Names of the groups that matter; ``None``: all.
    """
    names = {group.factor: group.name for group in analysis.groups if groups is None or group.name in groups}
    found: dict[str, list[Gates]] = {}
    for node in analysis.graph.nodes:
        layer = host.recurrent(node.name)
        if not isinstance(layer, Recurrent):
            continue
        parts = [p for cell in layer.cells for p in (cell.w, cell.r, cell.w_bias, cell.r_bias) if p is not None]
        if not is_own(analysis.graph, node, [part.tensor for part in parts]):
            continue
        for cell in layer.cells:
            gates = Gates(node.name, layer, cell)
            inside = dict.fromkeys(factor for dim in gates.columns(analysis) for factor in factors_of(dim))
            for factor in inside:
                if factor in names:
                    found.setdefault(names[factor], []).append(gates)
    return found


def widths(found: Mapping[str, Sequence[Gates]], analysis: Analysis) -> dict[Source, int]:
    """How many columns the moments of each cell have."""
    return {each.source: sum(dim.size for dim in each.columns(analysis)) for cells in found.values() for each in cells}


def with_gates(
    statistics: Statistics, host: Host, analysis: Analysis, batches: Iterable[Arrays], *, full: bool
) -> Statistics:
    """Statistics with the moments of what gates read, in one more walk where there are any.

    Args:
        statistics: Of the other readers.
        host: The model.
        analysis: Its analysis.
        batches: The same inputs.
        full: Whether to take products.
    """
    found = find_gates(host, analysis, statistics.groups)
    sizes = widths(found, analysis)
    if not sizes:
        return statistics
    moments = {source: Moments.zeros(1, size, full=full) for source, size in sizes.items()}
    batches = list(batches) if not hasattr(batches, "__len__") else batches
    n_batches = len(batches)  # type: ignore[arg-type]
    layers = {each.node: each.layer for cells in found.values() for each in cells}
    stored = analysis.graph.values
    read = {
        node: [n for n in dict.fromkeys((layer.value, *layer.states)) if n is not None and not stored[n].stored]
        for node, layer in layers.items()
    }
    run: PartialRun = host.partial_run(None, list(dict.fromkeys(name for names in read.values() for name in names)))
    rng, masks = np.random.default_rng(0), Masks(analysis)
    for batch in batches:
        values = run(batch)[1]
        for node, layer in layers.items():
            mask = masks.of(batch, layer.value, 2)
            for cell, seen in _seen(host, layer, values):
                source = Gates(node, layer, cell).source
                if source in moments:
                    rows = np.moveaxis(seen, 0, 1) if layer.batch_first else seen
                    flat = rows.reshape(-1, 1, rows.shape[2])
                    pick = positions_to_count(len(flat), flat.shape[2] if full else 1, n_batches, mask, rng)
                    moments[source].add(flat if pick is None else flat[pick])
    reduce_over_processes(moments.values(), 0)
    return replace(statistics, moments={**statistics.moments, **moments}, gates=found)


def _seen(host: Host, layer: Recurrent, values: Arrays) -> Iterable[tuple[Cell, Float]]:
    """Each cell with its inputs and the states before, side by side, ``t b (i + h)``."""
    x: Float = layer.steps(values[layer.value]).astype(np.float64)
    states: list[Float | None] = []
    for name in layer.states:
        state = None if name is None else values[name] if name in values else host.read(name)
        if state is not None:
            state = (np.moveaxis(state, 0, 1) if layer.states_first else state).astype(np.float64)
        states.append(state)
    for depth in range(max(cell.layer for cell in layer.cells) + 1):
        after = []
        for at, cell in enumerate(layer.cells):
            if cell.layer == depth:
                own = tuple(None if state is None else state[at] for state in states)
                seen = run_cell(
                    layer, cell, lambda part: part.of(value_of(host, part.tensor)).astype(np.float64), x, own
                )
                after.append(seen.after)
                yield cell, np.concatenate([seen.x, seen.before], axis=2)
        x = np.concatenate(after, axis=2)
