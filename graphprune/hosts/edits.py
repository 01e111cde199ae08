"""Edits of a host as data, so that they can be printed, tested and replayed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from graphprune.brief import brief
from graphprune.hosts.cuts import Cuts
from graphprune.ir.dims import Index


@dataclass(frozen=True, slots=True)
class SizeEdit:
    """Writes ``new`` into an attribute (or into element ``index`` of one) of a node, where ``old`` stood."""

    node: str
    attribute: str
    index: int | None
    old: int
    new: int

    def __str__(self) -> str:
        index = "" if self.index is None else f"[{self.index}]"
        return f"set {self.node}.{self.attribute}{index} = {self.new} (was {self.old})"


@dataclass(frozen=True, slots=True)
class PinEdit:
    """Makes the value of an attribute explicit that the operator would otherwise derive from a size."""

    node: str
    attribute: str
    value: float

    def __str__(self) -> str:
        return f"pin {self.node}.{self.attribute} = {self.value!r}"


@dataclass(frozen=True, slots=True)
class Edits:
    """All that must change in a host for some units to go (or to change places).

    Attributes:
        slices: For each stored tensor and axis, the positions to take, in order.
        sizes: Attributes to rewrite.
        pins: Attributes to make explicit.
        shapes: The new shape of every value whose shape changes.
        bypasses: Values that give their place to another one, by the value that takes it in all their uses.
        renumbered: For each stored tensor whose elements are positions of a cut axis: the new position of each old
            one, -1 where it is gone (no element that stays is one of those).
        interface: For each input and output and axis that is cut, the positions that are left, in order.
        others: What must change where the same model is run in other ways, in the order of ``Graph.others``.
    """

    __repr__ = brief

    slices: Mapping[str, Mapping[int, Index]] = field(default_factory=dict)
    sizes: tuple[SizeEdit, ...] = ()
    pins: tuple[PinEdit, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    bypasses: Mapping[str, str] = field(default_factory=dict)
    renumbered: Mapping[str, Index] = field(default_factory=dict)
    interface: Cuts = field(default_factory=dict)
    others: tuple[Edits, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"take {tensor} axis {axis}: {np.array2string(index, threshold=12, separator=', ')}"
            for tensor, axes in self.slices.items()
            for axis, index in axes.items()
        ]
        lines.extend(f"number {tensor} anew" for tensor in self.renumbered)
        lines.extend(
            f"take input or output {name} axis {axis}: {np.array2string(cut.index, threshold=12, separator=', ')}"
            for name, axes in self.interface.items()
            for axis, cut in axes.items()
        )
        bypassed = [f"put {new} for {old}" for old, new in self.bypasses.items()]
        return "\n".join([*lines, *map(str, self.sizes), *map(str, self.pins), *bypassed])
