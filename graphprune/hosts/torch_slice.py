"""Cutting stored tensors.

All that one edit cuts goes into one block of memory, which NumPy asks the system to map in large pages: to touch new
memory in small pages takes longer than to copy the weights into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch

from graphprune.ir.dims import Index

_ALIGNMENT = 64
"""Bytes, as for torch's own tensors."""

_SMALL = 1 << 18
"""Bytes up to which NumPy cuts faster than torch, whose calls take longer to begin."""


@dataclass(frozen=True, slots=True)
class _Cut:
    """How one tensor is cut: axes in order, with the positions that are taken, and the shape after each."""

    old: torch.Tensor
    axes: tuple[int, ...]
    taken: tuple[Index, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        """Bytes of the result."""
        return prod(self.shapes[-1]) * self.old.itemsize

    @property
    def scratch(self) -> int:
        """Bytes on the way to it."""
        return prod(self.shapes[0]) * self.old.itemsize if len(self.shapes) > 1 else 0


def sliced(tensors: Mapping[str, torch.Tensor], slices: Mapping[str, Mapping[int, Index]]) -> dict[str, torch.Tensor]:
    """The positions of tensors that are taken, in the order given, as tensors of their own; parameters stay parameters.

    Args:
        tensors: The tensors before, by name.
        slices: For some of them and their axes, the positions.
    """
    cuts = {name: _plan(tensors[name], axes) for name, axes in slices.items()}
    here = [cut for cut in cuts.values() if cut.old.device.type == "cpu"]
    block = _Block(sum(_rounded(cut.size) for cut in here))
    scratch = _Block(max((cut.scratch for cut in here), default=0))
    indices: dict[int, torch.Tensor] = {}
    found = {}
    for name, cut in cuts.items():
        scratch.used = 0
        new = _cut(cut, block, scratch, indices)
        if isinstance(cut.old, torch.nn.Parameter):
            new = torch.nn.Parameter(new, requires_grad=cut.old.requires_grad)
        found[name] = new
    return found


def _plan(old: torch.Tensor, axes: Mapping[int, Index]) -> _Cut:
    shape, shapes = list(old.shape), []
    order = tuple(axes) if len(axes) == 1 else tuple(sorted(axes))  # whole rows go first: they are copied fastest
    for axis in order:
        shape[axis] = len(axes[axis])
        shapes.append(tuple(shape))
    return _Cut(old, order, tuple([axes[axis] for axis in order]), tuple(shapes))


def _cut(cut: _Cut, block: _Block, scratch: _Block, indices: dict[int, torch.Tensor]) -> torch.Tensor:
    """Takes the positions; the result lies in ``block``. ``indices`` are positions as tensors, by identity."""
    new = cut.old.detach()
    small = _NUMPY.get(new.dtype) if new.nbytes <= _SMALL else None
    if new.device.type == "cpu" and small is not None:
        array = new.numpy()
        *first, (axis, taken) = zip(cut.axes, cut.taken, strict=True)
        for other, positions in first:
            array = array.take(positions, other)
        result = block.array(cut.shapes[-1], small)
        array.take(taken, axis, out=result, mode="clip")  # no position is out of bounds, and this mode needs no copy
        return torch.from_numpy(result)
    for i, (axis, taken, shape) in enumerate(zip(cut.axes, cut.taken, cut.shapes, strict=True)):
        index = indices.get(id(taken))
        if index is None:
            index = indices[id(taken)] = torch.from_numpy(np.ascontiguousarray(taken))
        if new.device.type != "cpu":
            new = new.index_select(axis, index.to(new.device))
        elif i == len(cut.axes) - 1:
            new = torch.index_select(new, axis, index, out=block.empty(shape, new.dtype))
        elif i == 0:
            new = torch.index_select(new, axis, index, out=scratch.empty(shape, new.dtype))
        else:
            new = new.index_select(axis, index)
    return new


_NUMPY: Mapping[torch.dtype, Any] = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.float16: np.float16,
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.int8: np.int8,
    torch.uint8: np.uint8,
    torch.bool: np.bool_,
}
"""The types that NumPy knows."""


def _rounded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


class _Block:
    """Memory from which tensors are taken one after the other; each has a storage of its own, which keeps the block."""

    def __init__(self, size: int) -> None:
        raw = np.empty(size + _ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % _ALIGNMENT
        self.bytes = raw[start : start + size]
        self.used = 0

    def array(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
        """The next array."""
        taken = np.ndarray(shape, dtype, self.bytes, self.used)
        self.used = _rounded(self.used + taken.nbytes)
        return taken

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """The next tensor."""
        if (known := _NUMPY.get(dtype)) is not None:
            return torch.from_numpy(self.array(shape, known))
        return torch.from_numpy(self.array((prod(shape) * dtype.itemsize,), np.uint8)).view(dtype).view(shape)
