"""Units taken out where they are made, for trials of groups that something reads which no trial refits.

Without the columns of its consumers a unit is as good as gone where nothing else reads it. Where something does (a
recurrence, a product of two activations, a sum without weights), it is only gone if the weights that make it are zero:
then whatever reads it reads zero, as in the cut model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphprune.analysis.groups import Analysis, Group
from graphprune.hosts.host import Runnable
from graphprune.ir.dims import Factor, unit_of
from graphprune.ir.graph import Graph
from graphprune.statistics.consumers import Consumer

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Entry:
    """Where the units of a group begin to matter.

    Attributes:
        at: The number of the node.
        values: The computed values that it reads.
        masked: Whether the units must be taken out there, since not all of their readers are consumers.
    """

    at: int
    values: tuple[str, ...]
    masked: bool


def entry_of(
    analysis: Analysis, group: Group, consumers: Iterable[Consumer], read_by: Mapping[str, Collection[Factor]]
) -> Entry | None:
    """Where a trial of a group starts; ``None`` where it has neither weights nor consumers.

    Args:
        analysis: Of the model.
        group: The group.
        consumers: Its consumers.
        read_by: From :func:`graphprune.statistics.readers.summed`.
    """
    graph = analysis.graph
    order = {node.name: i for i, node in enumerate(graph.nodes)}
    found = sorted(consumers, key=lambda each: order[each.node])
    if found and {each.node for each in found}.issuperset(n for n, read in read_by.items() if group.factor in read):
        return Entry(order[found[0].node], (found[0].value,), masked=False)
    names = _weights(graph, group)
    for i, node in enumerate(graph.nodes):
        if names.isdisjoint(node.operands):
            continue
        values = tuple(
            name for name in dict.fromkeys(node.operands)
            if name is not None and name not in names and not graph.values[name].stored
        )  # fmt: skip
        if values:
            return Entry(i, values, masked=True)
        names.update(name for name in node.results if name is not None)  # a weight that is put together
    return Entry(order[found[0].node], (found[0].value,), masked=False) if found else None


def _weights(graph: Graph, group: Group) -> set[str]:
    """The real weights in which units occur; zero is another number in others."""
    sites = (site.tensor for site in group.sites if site.parameter)
    return {name for name in sites if "float" in graph.values[name].dtype}


def taken_out(
    host: Runnable,
    analysis: Analysis,
    group: Group,
    gone: NDArray[np.int64],
    changes: Mapping[str, Float],
    refitted: Iterable[Consumer],
) -> dict[str, Float]:
    """Stored tensors without some units of a group, on top of other changes.

    Args:
        host: The model.
        analysis: Its analysis.
        group: The group.
        gone: Indices of units.
        changes: Tensors that have changed already, which are written to: they may be of a vocabulary.
        refitted: The consumers that these are of, whose biases may be new.
    """
    result, weights = dict(changes), _weights(analysis.graph, group)
    for site in group.sites:
        if site.tensor in weights:
            table = result[site.tensor] if site.tensor in result else np.array(host.read(site.tensor))
            lost = np.isin(unit_of(site.dim, group.factor), gone)
            np.moveaxis(table, site.axis, 0)[lost] = 0.0
            result[site.tensor] = table
    for use in refitted:
        layout = analysis.layouts.get(use.result, analysis.layouts.get(use.target))
        if use.bias is not None and use.bias in result and use.channel is not None and layout is not None:
            lost = np.isin(unit_of(layout[use.channel], group.factor), gone)
            table = np.array(result[use.bias])
            if table.size == len(lost):
                table.reshape(-1)[lost] = 0.0
                result[use.bias] = table
    return result
