"""Units that contribute nothing to a model's outputs, whatever its inputs are: those that pruning left as zeros.

A unit ends where an operator sums over it, chooses among it, or takes a statistic. It is dead if at each of these
places it is zero, or is multiplied by zeros; or a constant that a weighted sum adds to its bias. That is read off what
is the same for all inputs (:mod:`graphprune.importance.constants`), and nothing is guessed from data. Where removal
shifts what others see (a norm's statistic), or makes a router choose others, a unit that is zero is not dead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from graphprune.analysis.groups import Analysis, Group
from graphprune.errors import GraphpruneError
from graphprune.hosts.host import Array, Host
from graphprune.importance.constants import Constants, units_where
from graphprune.ir.dims import Dim, Factor, Index, factors_of, positions, unit_of
from graphprune.ir.graph import Node
from graphprune.planning.whole import EXPERTS
from graphprune.statistics.consumers import Consumer, find_consumers

Flags = NDArray[np.bool_]
NEVER = -1e30
"""A router's score below this is never chosen."""
_EVEN = 1e-5
"""What a constant adds to a weighted sum may differ by this fraction from place to place: by rounding."""


@dataclass(frozen=True)
class _End:
    """An axis of an operand of a node along which a factor ends: no result has it."""

    node: Node
    operand: str
    axis: int
    dim: Dim
    summed: bool


@dataclass(frozen=True, eq=False)
class Dead:
    """What is dead.

    Attributes:
        units: By name of a group: its dead units.
        added: By node: what the constants among them add to its result, one number for each channel.
    """

    units: Mapping[str, Index]
    added: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


def dead_units(host: Host, analysis: Analysis, constants: Constants, *, biases: bool = True) -> Dead:
    """The dead units of all groups.

    Args:
        host: The model.
        analysis: Of its graph.
        constants: What is the same for all inputs.
        biases: Whether a layer may get a bias that it does not have.
    """
    ends = _ends(analysis)
    readers = {each.node: each for each in find_consumers(host, analysis.graph)}
    takes = {node for node, reader in readers.items() if _takes(host, reader, biases=biases)}
    units: dict[str, Flags] = {}
    for group in analysis.groups:
        dead = _never_chosen(analysis, group, constants) if group.kind in EXPERTS else None
        if dead is None and group.exact:
            dead = np.ones(group.size, bool)
            for at in ends.get(group.factor, {}).values():
                dead &= _nothing_at(host, at, group.factor, constants, constant=at[0].node.name in takes)
            if group.factor not in ends:
                dead[:] = False
        if dead is not None and dead.any():
            units[group.name] = dead
    added: dict[str, NDArray[np.float64]] = {}
    while True:
        gone = {g.factor: np.flatnonzero(units[g.name]) for g in analysis.groups if g.name in units}
        added = {}
        uneven = None
        for name in (n for n in takes if _touches(ends, gone, n)):
            found = constant_part(host, analysis, readers[name], constants, gone)
            if found is None:
                uneven = name
                break
            if found.any():
                added[name] = found
        if uneven is None:
            break
        takes.discard(uneven)  # a constant beside the padding of a convolution is none behind it
        for group in analysis.groups:
            if group.name in units:
                for node, at in ends.get(group.factor, {}).items():
                    if node == uneven:
                        units[group.name] &= _nothing_at(host, at, group.factor, constants, constant=False)
        units = {name: dead for name, dead in units.items() if dead.any()}
    return Dead({name: np.flatnonzero(dead).astype(np.int64) for name, dead in units.items()}, added)


def constant_part(
    host: Host, analysis: Analysis, reader: Consumer, constants: Constants, gone: Mapping[Factor, Index]
) -> NDArray[np.float64] | None:
    """What the units that go add to a weighted sum, one number for each channel; ``None`` if it differs by place.

    Args:
        host: The model, with all its units.
        analysis: Of its graph.
        reader: The weighted sum.
        constants: What is the same for all inputs.
        gone: The units that go, by factor.
    """
    value, dim = analysis.graph.values[reader.value], analysis.layouts[reader.value][reader.axis]
    node = next(each for each in analysis.graph.nodes if each.name == reader.node)
    known = constants.get(reader.value)
    taken = np.zeros(dim.size, bool)
    for factor in dict.fromkeys(factors_of(dim)):
        if factor in gone:
            taken |= np.isin(unit_of(dim, factor), gone[factor])
    shape = [-1 if i == reader.axis else 1 for i in range(len(value.shape))]
    here = np.broadcast_to(taken.reshape(shape), value.shape)
    if known is None or not (known.mask & here & (known.value != 0)).any():
        return np.zeros(1 if reader.channel is None else analysis.graph.values[reader.result].shape[reader.channel])
    computed = [n for n in dict.fromkeys(node.operands) if n is not None and not analysis.graph.values[n].stored]
    try:
        run = host.partial_run(computed, [reader.result])
        nothing = np.zeros(value.shape, value.dtype)
        with_it = np.where(here & known.mask, known.value, nothing).astype(value.dtype)
        one, none = (run({reader.value: each})[1][reader.result].astype(np.float64) for each in (with_it, nothing))
    except (GraphpruneError, KeyError, RuntimeError, TypeError, ValueError):
        return None
    table = one - none
    table = table.reshape(1, -1) if reader.channel is None else np.moveaxis(table, reader.channel, 0)
    table = table.reshape(len(table), -1)
    size = float(np.abs(table).max(initial=0.0))
    if np.ptp(table, axis=1).max(initial=0.0) > _EVEN * size:
        return None
    found: NDArray[np.float64] = table.mean(1)
    return found


def removable(analysis: Analysis, units: Mapping[str, Index]) -> dict[str, Index]:
    """Of dead units those that can go: so many stay as operators need, and at least one."""
    found: dict[str, Index] = {}
    for group in analysis.groups:
        dead = units.get(group.name)
        if dead is not None and len(dead):
            n_kept = group.at_least(max(group.size - len(dead), 1))
            if n_kept < group.size:
                found[group.name] = dead[len(dead) - (group.size - n_kept) :]
    return found


def left_over(
    host: Host, analysis: Analysis, constants: Constants, kept: Mapping[Factor, Index], *, biases: bool = True
) -> tuple[dict[str, NDArray[np.float64]], str]:
    """What units that go add to weighted sums, and the group of which one that goes is not dead; empty if all are.

    Args:
        host: The model, with all its units.
        analysis: Of its graph.
        constants: What is the same for all inputs.
        kept: The units that stay.
        biases: Whether a layer may get a bias that it does not have.
    """
    dead = dead_units(host, analysis, constants, biases=biases)
    gone = {f: np.setdiff1d(np.arange(f.size, dtype=np.int64), index) for f, index in kept.items()}
    for group in analysis.groups:
        if group.factor in gone and not {*gone[group.factor].tolist()} <= {*dead.units.get(group.name, ())}:
            return {}, group.name
    added = {}
    for reader in find_consumers(host, analysis.graph):
        if reader.node in dead.added:
            part = constant_part(host, analysis, reader, constants, gone)
            if part is not None and part.any():
                channel = reader.channel
                index = slice(None) if channel is None else positions(analysis.layouts[reader.result][channel], kept)
                added[reader.node] = part[index]
    return added, ""


def _ends(analysis: Analysis) -> dict[Factor, dict[str, list[_End]]]:
    """Where factors end, by factor and node."""
    found: dict[Factor, dict[str, list[_End]]] = {}
    for node in analysis.graph.nodes:
        rule = node.rule
        if rule is None:
            continue
        results = {f for result in rule.results if result is not None for dim in result for f in factors_of(dim)}
        products = {f for monomial in rule.macs for dim in monomial for f in factors_of(dim)}
        for name, layout in zip(node.operands, rule.operands, strict=False):
            for axis, dim in enumerate(layout or ()):
                own = {*factors_of(dim)}
                if name is None or not own or not results.isdisjoint(own):
                    continue
                resolved = analysis.layouts[name][axis] if name in analysis.layouts else analysis.resolve(node, dim)
                for factor in dict.fromkeys(factors_of(resolved)):
                    end = _End(node, name, axis, resolved, own <= products)
                    found.setdefault(factor, {}).setdefault(node.name, []).append(end)
    return found


def _touches(ends: Mapping[Factor, Mapping[str, list[_End]]], gone: Mapping[Factor, Index], node: str) -> bool:
    return any(node in ends.get(factor, {}) for factor in gone)


def _nothing_at(host: Host, at: list[_End], factor: Factor, constants: Constants, *, constant: bool) -> Flags:
    """Which units contribute nothing at the place where they end, or a constant."""
    zeros = []
    even = np.zeros(factor.size, bool)
    for end in at:
        zero, known = _flags(host, end, factor, constants)
        zeros.append(zero)
        if constant and end.summed:
            even |= known
    product = all(end.summed for end in at)
    found: Flags = np.array(zeros).max(axis=0) if product else np.array(zeros).min(axis=0)
    return found | even


def _flags(host: Host, end: _End, factor: Factor, constants: Constants) -> tuple[Flags, Flags]:
    """Which units of an operand are zero, and which are known and computed."""
    nothing = np.zeros(factor.size, bool)
    known = constants.get(end.operand)
    if known is not None:
        zero = units_where(known.mask & (known.value == 0), end.axis, end.dim, factor)
        return zero, units_where(known.mask & np.isfinite(known.value), end.axis, end.dim, factor)
    try:
        array: Array = host.read(end.operand)
    except (GraphpruneError, KeyError):  # it is computed
        return nothing, nothing
    return units_where(array == 0, end.axis, end.dim, factor), nothing


def _takes(host: Host, reader: Consumer, *, biases: bool) -> bool:
    """Whether a weighted sum can take a constant into its bias."""
    if reader.scale != 1 or not reader.plain:
        return False
    if reader.bias is None:
        return biases and reader.channel is not None
    return reader.bias_uses == 1 and host.scales(reader.node)[1] == 1


def _never_chosen(analysis: Analysis, group: Group, constants: Constants) -> Flags | None:
    """Experts that a router never chooses: their score is the least that there is, whatever the inputs."""
    found = np.zeros(group.size, bool)
    for name, axis, dim in _scores(analysis, group, constants):
        known = constants[name]
        found |= units_where(known.mask & (known.value <= NEVER), axis, dim, group.factor)
    return found if found.any() else None


def _scores(analysis: Analysis, group: Group, constants: Constants) -> Iterator[tuple[str, int, Dim]]:
    for name in constants:
        for axis, dim in enumerate(analysis.layouts.get(name, ())):
            if group.factor in factors_of(dim):
                yield name, axis, dim
