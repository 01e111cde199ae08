"""Cutting stored tensors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from graphprune.arrays import cut, cut_shape
from graphprune.ir.dims import Index

_PLAIN = frozenset(
    {
        torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
        torch.bool,
    }
)  # fmt: skip
"""The types that NumPy knows."""

_BITS = {1: torch.uint8, 2: torch.int16}
"""What stands for the others, by their size: bfloat16 and 8-bit floats."""


def sliced(tensors: Mapping[str, torch.Tensor], slices: Mapping[str, Mapping[int, Index]]) -> dict[str, torch.Tensor]:
    """The positions of tensors that are taken, in the order given, as tensors of their own; parameters stay parameters.

    Args:
        tensors: The tensors before, by name.
        slices: For some of them and their axes, the positions.
    """
    found: dict[str, torch.Tensor] = {}
    for name, axes in slices.items():
        old = tensors[name].detach()
        bits = old.dtype if old.dtype in _PLAIN else _BITS.get(old.itemsize)
        if old.device.type != "cpu" or bits is None:
            found[name] = _selected(old, axes)
            continue
        array = (old if old.dtype is bits else old.view(bits)).numpy()
        new = found[name] = torch.empty(cut_shape(array.shape, axes), dtype=bits)
        cut(array, axes, new.numpy())
    for name, new in found.items():
        old = tensors[name]
        if new.dtype is not old.dtype:
            new = new.view(old.dtype)
        for layout in (torch.channels_last, torch.channels_last_3d):
            if _laid_out(old, layout) and not old.is_contiguous():
                new = new.contiguous(memory_format=layout)
        found[name] = torch.nn.Parameter(new, old.requires_grad) if isinstance(old, torch.nn.Parameter) else new
    return found


def _laid_out(tensor: torch.Tensor, layout: torch.memory_format) -> bool:
    """Whether a tensor has the axes that a layout in memory is for, and lies so."""
    return tensor.dim() == (4 if layout is torch.channels_last else 5) and tensor.is_contiguous(memory_format=layout)


def _selected(tensor: torch.Tensor, axes: Mapping[int, Index]) -> torch.Tensor:
    """By torch's own means, wherever the tensor lies."""
    for axis in sorted(axes):  # whole rows go first: they are copied fastest
        tensor = tensor.index_select(axis, torch.from_numpy(np.ascontiguousarray(axes[axis])).to(tensor.device))
    return tensor
