"""Rows that arrange elements anew, take parts, join, and make tensors of sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
import torch
from torch.nn import functional

from graphprune.executor.ops.call import Call, RefusedError, listed, size_to
from graphprune.executor.tensors import TYPES, tensor_of

Tensor = torch.Tensor


def reshape(c: Call) -> Tensor:
    """``Reshape``: a zero copies a size unless it is allowed to be one."""
    shape = [int(size) for size in c.numbers("shape", 1) or ()]
    if not c.get("allowzero", 0):
        shape = [c.x.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    if -1 in shape and c.x.numel() == 0:
        at = shape.index(-1)
        rest = prod(size for size in shape if size != -1)
        shape[at] = 0 if rest == 0 else c.x.numel() // rest
    return c.x.reshape(shape)


def squeeze(c: Call) -> Tensor:
    """``Squeeze``."""
    axes = c.numbers("axes", 1)
    return c.x.squeeze() if axes is None else c.x.squeeze(tuple(int(axis) for axis in axes))


def unsqueeze(c: Call) -> Tensor:
    """``Unsqueeze``, whose axes are those of the result."""
    axes = [int(axis) for axis in c.numbers("axes", 1) or ()]
    rank = c.x.ndim + len(axes)
    x = c.x
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def transpose(c: Call) -> Tensor:
    """``Transpose``; without an order of axes it is turned round."""
    return c.x.permute(tuple(c.get("perm", range(c.x.ndim)[::-1])))


def expand(c: Call) -> Tensor:
    """``Expand``, in both directions."""
    return c.x.expand(np.broadcast_shapes(c.x.shape, tuple(listed(c.need(1)))))


def tile(c: Call) -> Tensor:
    """``Tile``."""
    return c.x.repeat(tuple(listed(c.need(1)))) if c.x.ndim else c.x


def depth_to_space(c: Call) -> Tensor:
    """``DepthToSpace``: the blocks before the channels, or behind them (``CRD``)."""
    n, depth, height, width = c.x.shape
    b = c.get("blocksize")
    rest = depth // (b * b)
    if c.get("mode", "DCR") == "DCR":
        y = c.x.reshape(n, b, b, rest, height, width).permute(0, 3, 4, 1, 5, 2)
    else:
        y = c.x.reshape(n, rest, b, b, height, width).permute(0, 1, 4, 2, 5, 3)
    return y.reshape(n, rest, height * b, width * b)


def space_to_depth(c: Call) -> Tensor:
    """``SpaceToDepth``: the blocks before the channels, or behind them (``CRD``)."""
    n, depth, height, width = c.x.shape
    b = c.get("blocksize")
    order = (0, 3, 5, 1, 2, 4) if c.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    y = c.x.reshape(n, depth, height // b, b, width // b, b).permute(order)
    return y.reshape(n, depth * b * b, height // b, width // b)


def split(c: Call) -> tuple[Tensor, ...]:
    """``Split`` in given sizes, or in parts of which the last may be smaller."""
    axis, sizes = c.axis(0), c.numbers("split", 1)
    if sizes is None:
        each = -(-c.x.shape[axis] // c.get("num_outputs", c.n_results))
        n = c.get("num_outputs", c.n_results)
        sizes = [max(0, min(each, c.x.shape[axis] - i * each)) for i in range(n)]
    return tuple(c.x.split_with_sizes([int(size) for size in sizes], axis))


def sliced(c: Call) -> Tensor:
    """``Slice``, backwards too."""
    starts, ends = c.numbers("starts", 1) or [], c.numbers("ends", 2) or []
    axes = c.numbers("axes", 3) or range(len(starts))
    steps = (None if c.at(4) is None else listed(c.need(4))) or [1] * len(starts)
    x = c.x
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        at, size = int(axis) % x.ndim, x.shape[int(axis)]
        first, last, by = slice(int(start), int(end), int(step)).indices(size)
        if by > 0:
            x = x[(*[slice(None)] * at, slice(first, max(first, last), by))]
        else:
            x = x.index_select(at, torch.tensor(range(first, last, by), dtype=torch.int64, device=x.device))
    return x


def padded(c: Call) -> Tensor:
    """``Pad`` along any axes: by a value, by what is mirrored, at the edge, or at the other end."""
    pads = [int(n) for n in c.numbers("pads", 1) or ()]
    axes = listed(c.need(3)) if c.at(3) is not None else range(c.x.ndim)
    before, after = [0] * c.x.ndim, [0] * c.x.ndim
    for i, axis in enumerate(axes):
        before[int(axis)], after[int(axis)] = pads[i], pads[len(axes) + i]
    mode = c.get("mode", "constant")
    if mode == "constant":
        value = c.get("value", 0.0) if c.at(2) is None else listed(c.need(2))[0]
        flat = [n for i in reversed(range(c.x.ndim)) for n in (before[i], after[i])]
        return functional.pad(c.x, flat, value=value) if c.x.ndim else c.x
    x = c.x
    for axis in range(x.ndim):
        if before[axis] or after[axis]:
            places = np.pad(
                np.arange(x.shape[axis])[max(0, -before[axis]) : x.shape[axis] - max(0, -after[axis])],
                (max(0, before[axis]), max(0, after[axis])),
                mode=mode,
            )
            x = x.index_select(axis, torch.from_numpy(places).to(x.device))
    return x


def center_crop_pad(c: Call) -> Tensor:
    """``CenterCropPad``: the middle of an axis, or zeros around it."""
    x, shape = c.x, listed(c.need(1))
    for axis, size in zip(c.get("axes", range(x.ndim)), shape, strict=True):
        missing = size - x.shape[axis]
        before = missing // 2 if missing > 0 else -(-missing // 2)
        flat = [0] * (2 * x.ndim)
        place = 2 * (x.ndim - 1 - int(axis) % x.ndim)
        flat[place : place + 2] = [before, missing - before]
        x = functional.pad(x, flat)
    return x


def reversed_sequence(c: Call) -> Tensor:
    """``ReverseSequence``: the first elements of each sequence the other way round."""
    time, batch = c.get("time_axis", 0), c.get("batch_axis", 1)
    x = c.x.movedim((batch, time), (0, 1))
    lengths, steps = c.need(1).long()[:, None], torch.arange(x.shape[1], device=x.device)[None]
    places = torch.where(steps < lengths, lengths - 1 - steps, steps)
    y = x[torch.arange(len(x), device=x.device)[:, None], places]
    return y.movedim((0, 1), (batch, time))


def triangle(c: Call) -> Tensor:
    """``Trilu``."""
    k = 0 if c.at(1) is None else int(listed(c.need(1))[0])
    return torch.triu(c.x, k) if c.get("upper", 1) else torch.tril(c.x, k)


# -- made from sizes ------------------------------------------------------------------------------------------------


def shape(c: Call) -> Tensor:
    """``Shape``, or a part of it."""
    return torch.tensor(tuple(c.x.shape)[slice(c.get("start", 0), c.get("end"))], dtype=torch.int64, device=c.x.device)


def filled(c: Call) -> Tensor:
    """``ConstantOfShape``."""
    value = c.get("value")
    one = torch.zeros(1) if value is None else tensor_of(onnx.numpy_helper.to_array(value), "value")
    return one.to(c.x.device).reshape(1).expand(tuple(listed(c.x))).clone()


def constant(c: Call) -> Tensor:
    """``Constant`` of any attribute but text."""
    for name, kind in (("value_float", np.float32), ("value_floats", np.float32), ("value_int", np.int64)):
        if name in c.attributes:
            return tensor_of(np.asarray(c.attributes[name], kind), "constant")
    if "value_ints" in c.attributes:
        return tensor_of(np.asarray(c.attributes["value_ints"], np.int64), "constant")
    if "value" not in c.attributes:
        raise RefusedError("a constant of text")
    return tensor_of(onnx.numpy_helper.to_array(c.attributes["value"]), "constant")


def ranged(c: Call) -> Tensor:
    """``Range``."""
    start, limit, delta = (listed(c.need(i))[0] for i in range(3))
    n = max(0, int(np.ceil((limit - start) / delta)))
    kind = c.x.dtype
    steps = torch.arange(n, dtype=kind if kind.is_floating_point else torch.int64, device=c.x.device)
    return torch.add(steps * delta, start).to(kind)


def diagonal(c: Call) -> Tensor:
    """``EyeLike``."""
    kind = TYPES.get(c.get("dtype", 0), c.x.dtype)
    ones = torch.ones(tuple(c.x.shape), dtype=torch.int64, device=c.x.device)
    k = c.get("k", 0)
    return (torch.triu(ones, k) - torch.triu(ones, k + 1)).to(kind)


def window(*coefficients: float) -> Callable[[Call], Tensor]:
    """A row of a window of cosines."""

    def row(c: Call) -> Tensor:
        (size,) = listed(c.x)
        at = torch.arange(size, dtype=torch.float64) / (size if c.get("periodic", 1) else max(1, size - 1))
        parts = [a * (-1) ** k * torch.cos(2 * torch.pi * k * at) for k, a in enumerate(coefficients)]
        return torch.stack(parts).sum(0).to(TYPES[c.get("output_datatype", 1)])

    return row


# -- sequences and optional values ----------------------------------------------------------------------------------


def _place(c: Call, n: int, size: int) -> int:
    at = c.at(n)
    place = size if at is None else int(at)
    return place + size if place < 0 else place


def inserted(c: Call) -> tuple[tuple[Tensor, ...]]:
    """``SequenceInsert``."""
    sequence = list(c.operands[0])
    sequence.insert(_place(c, 2, len(sequence)), c.need(1))
    return (tuple(sequence),)


def erased(c: Call) -> tuple[tuple[Tensor, ...]]:
    """``SequenceErase``; the last one, if nothing is said."""
    sequence = list(c.operands[0])
    del sequence[-1 if c.at(1) is None else _place(c, 1, len(sequence))]
    return (tuple(sequence),)


def split_to_sequence(c: Call) -> tuple[tuple[Tensor, ...]]:
    """``SplitToSequence``, in parts of a size or of given sizes; alone without their axis if asked."""
    axis, sizes = c.axis(0), c.at(1)
    if sizes is None:
        parts: Sequence[Tensor] = c.x.tensor_split(c.x.shape[axis], axis)
        return (tuple(parts if c.get("keepdims", 1) else (part.squeeze(axis) for part in parts)),)
    if sizes.ndim == 0:
        each, size = int(sizes), c.x.shape[axis]
        return (tuple(c.x.narrow(axis, i, min(each, size - i)) for i in range(0, size, each)),)
    return (tuple(c.x.split_with_sizes([int(n) for n in sizes.tolist()], axis)),)


def joined(c: Call) -> Tensor:
    """``ConcatFromSequence``."""
    sequence, axis = c.operands[0], c.get("axis")
    return torch.stack(sequence, axis) if c.get("new_axis", 0) else torch.cat(sequence, axis)


def optional_element(c: Call) -> tuple[Any]:
    """``OptionalGetElement``."""
    if c.operands[0] is None:
        raise RefusedError("an optional value that is absent is read")
    return (c.operands[0],)


LAYOUT: Mapping[str, Callable[[Call], Any]] = {
    "Reshape": reshape,
    "Flatten": lambda c: c.x.reshape(size_to(c.x.shape, c.axis(1))),
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "com.microsoft::ExpandDims": lambda c: c.x.unsqueeze(int(listed(c.need(1))[0])),
    "Transpose": transpose,
    "Expand": expand,
    "Tile": tile,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Concat": lambda c: torch.cat(tuple(c.operands), c.get("axis")),
    "Split": split,
    "Slice": sliced,
    "Pad": padded,
    "CenterCropPad": center_crop_pad,
    "ReverseSequence": reversed_sequence,
    "Trilu": triangle,
    "com.microsoft::Trilu": triangle,
    "BitCast": lambda c: c.x.view(TYPES[c.get("to")]),
    "Shape": shape,
    "Size": lambda c: torch.tensor(c.x.numel(), device=c.x.device),
    "ConstantOfShape": filled,
    "Constant": constant,
    "Range": ranged,
    "EyeLike": diagonal,
    "HannWindow": window(0.5, 0.5),
    "HammingWindow": window(25 / 46, 21 / 46),
    "BlackmanWindow": window(0.42, 0.5, 0.08),
    "SequenceConstruct": lambda c: (tuple(c.operands),),
    "SequenceEmpty": lambda c: ((),),
    "SequenceInsert": inserted,
    "SequenceErase": erased,
    "SequenceAt": lambda c: c.operands[0][int(c.need(1))],
    "SequenceLength": lambda c: torch.tensor(len(c.operands[0])),
    "SplitToSequence": split_to_sequence,
    "ConcatFromSequence": joined,
    "Optional": lambda c: (c.at(0),),
    "OptionalHasElement": lambda c: torch.tensor(c.at(0) is not None),
    "OptionalGetElement": optional_element,
}
