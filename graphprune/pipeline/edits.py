"""From kept units and blocks that go to the edits of a host that leave the others out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from graphprune.analysis.branch import Block
from graphprune.analysis.groups import Analysis
from graphprune.hosts.cuts import Cut
from graphprune.hosts.edits import Edits, PinEdit, SizeEdit
from graphprune.hosts.host import AnyModel, Model
from graphprune.ir.dims import Dim, Factor, Index, factors_of, positions, resized
from graphprune.ir.graph import Node


def smaller(
    host: AnyModel, analysis: Analysis, kept: Mapping[Factor, Index], removed: Iterable[Block] = ()
) -> AnyModel:
    """The host without some units and blocks, and without what nothing needs then: all edits of a plan in one."""
    cut = host.edited(slice_edits(analysis, kept))
    if removed:
        cut = cut.edited(Edits(bypasses=analysis.branches.skips(removed)))
    return cut.without_dead_nodes()


def realised_costs(
    host: Model, analysis: Analysis, kept: Mapping[Factor, Index], removed: Iterable[Block] = ()
) -> Mapping[str, float]:
    """What the host would be written as holds without some units and blocks; empty where the graph says."""
    return smaller(host, analysis, kept, removed).stored_costs()


def slice_edits(analysis: Analysis, kept: Mapping[Factor, Index]) -> Edits:
    """The edits that leave ``kept`` units, in the order given.

    The order matters: a permutation of all units gives the edits of the permutation oracle, which change no size.
    """
    sizes = {factor: len(index) for factor, index in kept.items()}
    taken: dict[Dim, Index] = {}  # by dimension: many axes hold the same units in the same way
    lengths: dict[Dim, int] = {}

    slices: dict[str, dict[int, Index]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    outside = {*analysis.graph.inputs, *analysis.graph.outputs}
    interface: dict[str, dict[int, Cut]] = {}
    for name, layout in analysis.layouts.items():
        axes = [axis for axis, dim in enumerate(layout) if not sizes.keys().isdisjoint(factors_of(dim))]
        if not axes:
            continue
        value = analysis.graph.values[name]
        shape = list(value.shape)
        for axis in axes:
            dim = layout[axis]
            if dim not in lengths:
                lengths[dim] = resized(dim, sizes)
            shape[axis] = lengths[dim]
        if tuple(shape) != value.shape:
            shapes[name] = tuple(shape)
        if value.stored or name in outside:
            for axis in axes:
                if layout[axis] not in taken:
                    taken[layout[axis]] = positions(layout[axis], kept)
        if value.stored:
            slices[name] = {axis: taken[layout[axis]] for axis in axes}
        elif name in outside:
            interface[name] = {axis: Cut(value.shape[axis], taken[layout[axis]]) for axis in axes}
    size_edits: list[SizeEdit] = []
    pins: list[PinEdit] = []
    for node in analysis.graph.nodes:
        rule = node.rule
        if rule is None:
            continue
        for slot in rule.sizes:
            dim = analysis.resolve(node, slot.dim)
            old, new = slot.value(dim, {}), slot.value(dim, sizes)
            if new != old:
                size_edits.append(SizeEdit(node.name, slot.attribute, slot.index, old, new))
        if rule.pinned and _reshaped(node, shapes):
            pins.extend(PinEdit(node.name, attribute, value) for attribute, value in rule.pinned)
    others = tuple(slice_edits(other, kept) for other in analysis.others)
    return Edits(
        slices, tuple(size_edits), tuple(pins), shapes, renumbered=_renumbered(analysis, kept), interface=interface,
        others=others,
    )  # fmt: skip


def _renumbered(analysis: Analysis, kept: Mapping[Factor, Index]) -> dict[str, Index]:
    """The new positions of old ones, for stored positions of axes that are cut; -1 for those that are gone."""
    tables: dict[str, Index] = {}
    for name, dim in analysis.positions.items():
        if not kept.keys().isdisjoint(factors_of(dim)):
            places = positions(dim, kept)
            tables[name] = np.full(dim.size, -1, dtype=np.int64)
            tables[name][places] = np.arange(len(places))
    return tables


def _reshaped(node: Node, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return any(name in shapes for name in (*node.operands, *node.results) if name is not None)
