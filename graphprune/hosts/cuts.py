"""Inputs and outputs of a model that have become smaller: what is handed in and compared is still the original's.

A cut of the interface happens only where a user has asked for it (``resize_io``). All that is measured, proven and
calibrated speaks of the original's inputs; a host that is cut takes of these what it still has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from graphprune.brief import brief
from graphprune.ir.dims import Index

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class Cut:
    """What is left of an axis of an input or output.

    Attributes:
        size: Of the axis in the original.
        index: The positions of the original, in the order that they have now.
    """

    __repr__ = brief

    size: int
    index: Index

    def then(self, index: Index) -> Cut:
        """This cut and one more behind it."""
        return Cut(self.size, self.index[index])


Cuts: TypeAlias = Mapping[str, Mapping[int, Cut]]
"""By input or output, and axis."""


def cuts_of(host: Any) -> Cuts:
    """What has become smaller of the interface of a host; most hosts keep theirs and say nothing of it."""
    found: Cuts = getattr(host, "cuts", {})
    return found


def left_of(cuts: Cuts, values: Mapping[str, Array]) -> dict[str, Array]:
    """The original's inputs or outputs as the host that is cut has them; what has another size already stays."""
    found = dict(values)
    for name, axes in cuts.items():
        for axis, cut in axes.items() if name in found else ():
            if np.ndim(found[name]) > axis and found[name].shape[axis] == cut.size:
                found[name] = np.take(found[name], cut.index, axis=axis)
    return found


def joined(cuts: Cuts, interface: Mapping[str, Mapping[int, Cut]]) -> Cuts:
    """The cuts of a host that is cut again."""
    found = {name: dict(axes) for name, axes in cuts.items()}
    for name, axes in interface.items():
        own = found.setdefault(name, {})
        for axis, cut in axes.items():
            own[axis] = own[axis].then(cut.index) if axis in own else cut
    return found
