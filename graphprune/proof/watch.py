"""Which values inside a graph the proof looks at, and which units can be told apart in them.

A wrong rule that does not reach the outputs (a branch behind a convolution of zeros, a score behind a sigmoid that is
saturated) is still visible where units meet: at what contracts them, and at what joins them with something else. There
each value is compared at its own scale.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.analysis.groups import Analysis
from graphprune.hosts.host import Array
from graphprune.ir.dims import Factor, Index, Layout, factors_of, positions, unit_of
from graphprune.ir.graph import Graph, Node
from graphprune.ir.liveness import live_values

APART = 1e-3
"""Units that differ by less, relative to the largest of them, are not told apart."""
SAMPLE = 64
"""So many numbers of each unit are looked at to tell it from others."""


@dataclass(frozen=True, slots=True)
class Watched:
    """A value that is compared.

    Attributes:
        name: Its name.
        taken: For each axis that loses positions, those that stay.
        units: For each group that it tells apart: the axis, and the position of one number of each unit that stays.
    """

    name: str
    taken: Mapping[int, Index] = field(default_factory=dict)
    units: Mapping[Factor, tuple[int, Index]] = field(default_factory=dict)

    def restricted(self, value: Array) -> Array:
        """What is left of the original's value."""
        for axis, index in self.taken.items():
            value = value.take(index, axis=axis)
        return value

    def blind(self, value: Array) -> frozenset[Factor]:
        """The groups whose units cannot be told apart in the original's value."""
        return frozenset(factor for factor, (axis, index) in self.units.items() if not _apart(value, axis, index))


def _apart(value: Array, axis: int, index: Index) -> bool:
    """Whether the units along an axis differ, in a sample of what there is of each."""
    some = [slice(None)] * value.ndim
    left = value.size // value.shape[axis]
    for other, n in enumerate(value.shape):
        if other != axis and left > SAMPLE:
            step = min(n, left // SAMPLE)
            some[other] = slice(None, None, step)
            left = left // n * -(-n // step)
    rows = np.moveaxis(value[tuple(some)].take(index, axis=axis), axis, 0).reshape(len(index), -1).astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        rows = rows[:, np.isfinite(rows).all(axis=0) & (np.abs(rows) < 1e30).all(axis=0)]
    if rows.size == 0:
        return False
    largest = float(np.abs(rows).max())
    if len(index) == 1:  # there is nothing to tell it from
        return largest > 0
    return largest > 0 and float(np.ptp(rows, axis=0).max()) > APART * largest


def watched(
    analysis: Analysis,
    kept: Mapping[Factor, Index],
    left: Graph,
    adjusted: Collection[str] = (),
) -> tuple[Watched, ...]:
    """What is compared inside: values with cut axes where units are contracted or joined, and what comes out there.

    Args:
        analysis: The analysis of the original.
        kept: The units that stay.
        left: The graph of the pruned model; what it no longer needs is not compared.
        adjusted: Stored tensors that a cut gives other values; what is made of them and of weights alone is compared
            where an input meets it.
    """
    alive = live_values(left)
    telling = _telling(analysis)
    names: dict[str, None] = {}
    for node in analysis.graph.nodes:
        if not node.optional:
            names.update(dict.fromkeys(_of_interest(analysis, node, kept)))
    graph, outputs = analysis.graph, {*analysis.graph.outputs}
    found = []
    made = {name for node in graph.nodes if not node.optional for name in node.results if name is not None}
    made -= _made_of(graph, adjusted)
    for name in names:
        value = graph.values[name]
        if name not in alive or name in outputs or name not in made or "float" not in value.dtype:
            continue
        if 0 in value.shape or value.dtype.startswith("float8"):
            continue
        layout = analysis.layouts[name]
        taken = {axis: positions(dim, kept) for axis, dim in enumerate(layout) if _touched(dim, kept)}
        found.append(Watched(name, taken, _units(layout, kept, telling.get(name, frozenset()))))
    return tuple(found)


def _made_of(graph: Graph, adjusted: Collection[str]) -> set[str]:
    """The values that are made of adjusted tensors, and of stored tensors alone."""
    constant = {value.name for value in graph.stored}
    found = {*adjusted}
    for node in graph.nodes if adjusted else ():
        operands = {name for name in node.operands if name is not None}
        if operands <= constant:
            results = {name for name in node.results if name is not None}
            constant |= results
            found |= results if operands & found else set()
    return found


def _touched(dim: Any, kept: Mapping[Factor, Index]) -> bool:
    return not kept.keys().isdisjoint(factors_of(dim))


def _of_interest(analysis: Analysis, node: Node, kept: Mapping[Factor, Index]) -> list[str]:
    """The cut operands of a node that contracts cut units or joins several values, and the results of the former."""
    graph = analysis.graph
    operands = [name for name in node.operands if name is not None]
    results = [name for name in node.results if name is not None and name in analysis.layouts]
    before = {
        factor for name in operands for dim in analysis.layouts.get(name, ()) for factor in factors_of(dim)
    } & kept.keys()
    if not before:
        return []
    after = {factor for name in results for dim in analysis.layouts[name] for factor in factors_of(dim)}
    computed = [name for name in operands if not graph.values[name].stored]
    contracts = not before <= after
    found: list[str] = []
    if contracts or sum("float" in graph.values[name].dtype for name in computed) > 1:
        found.extend(n for n in computed if any(_touched(dim, kept) for dim in analysis.layouts.get(n, ())))
    if contracts:
        found.extend(results)
    return found


def _telling(analysis: Analysis) -> Mapping[str, frozenset[Factor]]:
    """For each value the factors whose units it can tell apart: where a stored tensor of theirs has been read.

    What is only repeated along an axis (a mask for all heads) is the same for all units and says nothing of them.
    """
    found: dict[str, frozenset[Factor]] = {}
    for value in analysis.graph.stored:
        found[value.name] = frozenset(f for dim in analysis.layouts[value.name] for f in factors_of(dim))
    for node in analysis.graph.nodes:
        told = frozenset().union(*(found.get(name, frozenset()) for name in node.operands if name is not None))
        for name in node.results:
            if name is not None:
                layout = analysis.layouts.get(name, ())
                found[name] = told.intersection(f for dim in layout for f in factors_of(dim))
    return found


def _units(layout: Layout, kept: Mapping[Factor, Index], telling: frozenset[Factor]) -> dict[Factor, tuple[int, Index]]:
    found: dict[Factor, tuple[int, NDArray[Any]]] = {}
    for axis, dim in enumerate(layout):
        for factor in dict.fromkeys(factors_of(dim)):
            if factor in kept and factor in telling:
                places = positions(dim, kept)  # those that are left of other factors of the axis, too
                units = unit_of(dim, factor)[places]
                _, first = np.unique(units[units >= 0], return_index=True)
                found[factor] = axis, places[units >= 0][first]
    return found
