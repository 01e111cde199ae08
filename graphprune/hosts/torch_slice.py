"""Cutting stored tensors.

All that one edit cuts goes into one block of memory, which NumPy asks the system to map in large pages: to touch new
memory in small pages takes longer than to copy the weights into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
import torch

from graphprune.ir.dims import Index

_ALIGNMENT = 64
"""Bytes, as for torch's own tensors."""

Cuts = list[tuple[int, torch.Tensor, tuple[int, ...]]]
"""The cuts of one tensor: axis, positions, and the shape after it."""


def sliced(tensors: Mapping[str, torch.Tensor], slices: Mapping[str, Mapping[int, Index]]) -> dict[str, torch.Tensor]:
    """The positions of tensors that are taken, in the order given, as tensors of their own; parameters stay parameters.

    Args:
        tensors: The tensors before, by name.
        slices: For some of them and their axes, the positions.
    """
    taken = {id(index): index for axes in slices.values() for index in axes.values()}
    indices = {key: torch.from_numpy(np.ascontiguousarray(index)) for key, index in taken.items()}
    total = largest = 0
    cuts: dict[str, Cuts] = {}
    for name, axes in slices.items():
        shape = list(tensors[name].shape)
        cuts[name] = steps = []
        for axis in sorted(axes):  # whole rows go first: they are copied fastest
            shape[axis] = len(axes[axis])
            steps.append((axis, indices[id(axes[axis])], tuple(shape)))
        if tensors[name].device.type == "cpu":
            itemsize = tensors[name].itemsize
            total += _rounded(prod(shape) * itemsize)
            if len(steps) > 1:
                largest = max(largest, prod(steps[0][2]) * itemsize)
    block, scratch = _Block(total), _Block(largest)
    return {name: _cut(tensors[name], steps, block, scratch) for name, steps in cuts.items()}


def _cut(old: torch.Tensor, steps: Cuts, block: _Block, scratch: _Block) -> torch.Tensor:
    new, scratch.used = old.detach(), 0
    for i, (axis, index, shape) in enumerate(steps):
        if old.device.type != "cpu":
            new = new.index_select(axis, index.to(new.device))
        elif i == len(steps) - 1:
            new = torch.index_select(new, axis, index, out=block.empty(shape, new.dtype))
        elif i == 0:
            new = torch.index_select(new, axis, index, out=scratch.empty(shape, new.dtype))
        else:
            new = new.index_select(axis, index)
    return torch.nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, torch.nn.Parameter) else new


def _rounded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


class _Block:
    """Memory from which tensors are taken one after the other; each has a storage of its own, which keeps the block."""

    def __init__(self, size: int) -> None:
        raw = np.empty(size + _ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % _ALIGNMENT
        self.bytes = raw[start : start + size]
        self.used = 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """The next tensor."""
        end = self.used + prod(shape) * dtype.itemsize
        taken = torch.from_numpy(self.bytes[self.used : end])
        self.used = _rounded(end)
        return taken.view(dtype).view(shape)
