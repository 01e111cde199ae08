"""Rows of normalisations and of what is taken along axes: softmax, reductions, cumulative sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch.nn import functional

from graphprune.executor.ops.call import Call, RefusedError, along, listed, size_to
from graphprune.executor.tensors import TYPES

Tensor = torch.Tensor


def batch_norm(c: Call) -> Tensor:
    """``BatchNormalization`` by its statistics, which have no gradients, as in PyTorch."""
    if c.get("training_mode", 0) or c.n_results > 1:
        raise RefusedError("a batch normalisation in training mode takes statistics over the batch")
    scale, bias, mean, variance = (c.need(i) for i in (1, 2, 3, 4))
    if mean.dtype != c.x.dtype or c.x.ndim < 2:
        spread = [along(each, max(2, c.x.ndim), 1).float() for each in (scale, bias, mean.detach(), variance.detach())]
        x = (c.x.float() - spread[2]) / torch.sqrt(spread[3] + c.get("epsilon", 1e-5))
        return (x * spread[0] + spread[1]).reshape(c.x.shape).to(c.x.dtype)
    given = (mean.detach(), variance.detach(), scale.to(mean.dtype), bias.to(mean.dtype))
    return functional.batch_norm(c.x, *given, eps=c.get("epsilon", 1e-5))


def centred(x: Tensor, axes: Sequence[int], epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """What is normalised over axes, its mean and its inverse deviation."""
    mean = x.mean(tuple(axes), keepdim=True)
    apart = x - mean
    inverse = torch.rsqrt(apart.square().mean(tuple(axes), keepdim=True) + epsilon)
    return apart * inverse, mean, inverse


def _precise(x: Tensor, c: Call) -> Tensor:
    """The operand in the type that a normalisation computes in: float32 for narrower ones."""
    stash = TYPES.get(c.get("stash_type", 1), torch.float32)
    return x.to(stash) if x.element_size() < 4 else x


def layer_norm(c: Call) -> tuple[Tensor, ...]:
    """``LayerNormalization``, with mean and inverse deviation."""
    axis, x = c.axis(-1), _precise(c.x, c)
    bias, epsilon = c.at(2), c.get("epsilon", 1e-5)
    if c.n_results == 1:
        y = functional.layer_norm(x, x.shape[axis:], eps=epsilon).to(c.x.dtype) * c.need(1)
        return (y if bias is None else y + bias,)
    y, mean, inverse = centred(x, range(axis, x.ndim), epsilon)
    y = y.to(c.x.dtype) * c.need(1)
    return y if bias is None else y + bias, mean, inverse


def rms_norm(c: Call) -> tuple[Tensor, ...]:
    """``RMSNormalization``, and onnxruntime's ``SimplifiedLayerNormalization`` of the default domain."""
    axis, x = c.axis(-1), _precise(c.x, c)
    inverse = torch.rsqrt(x.square().mean(tuple(range(axis, x.ndim)), keepdim=True) + c.get("epsilon", 1e-5))
    return (x * inverse).to(c.x.dtype) * c.need(1), inverse


def skip_norm(c: Call) -> tuple[Tensor, ...]:
    """``SkipLayerNormalization``: the last result is the sum that is normalised."""
    total, bias, shift = c.x + c.need(1), c.at(4), c.at(3)
    total = total if bias is None else total + bias
    y, mean, inverse = centred(total, (total.ndim - 1,), c.get("epsilon", 1e-12))
    y = y * c.need(2)
    return y if shift is None else y + shift, mean, inverse, total


def skip_rms_norm(c: Call) -> tuple[Tensor, ...]:
    """``SkipSimplifiedLayerNormalization``: the last result is the sum that is normalised."""
    total = c.x + c.need(1) if c.at(3) is None else c.x + c.need(1) + c.need(3)
    inverse = torch.rsqrt(total.square().mean(-1, keepdim=True) + c.get("epsilon", 1e-5))
    return total * inverse * c.need(2), inverse, inverse, total


def embed_norm(c: Call) -> tuple[Tensor, ...]:
    """``EmbedLayerNormalization``: three look-ups, their sum, and its normalisation."""
    ids, segments, words, places, kinds, scale = c.x, c.at(1), c.need(2), c.need(3), c.at(4), c.need(5)
    shift, mask, positions = c.at(6), c.at(7), c.at(8)
    total = words[ids.long()] + (places[: ids.shape[1]] if positions is None else places[positions.long()])
    if segments is not None and kinds is not None:
        total = total + kinds[segments.long()]
    counted = torch.zeros(len(ids), dtype=torch.int32) if mask is None else mask.sum(1).int()
    y = centred(total, (total.ndim - 1,), c.get("epsilon", 1e-12))[0] * scale
    return y if shift is None else y + shift, counted, total


def group_norm(c: Call) -> Tensor:
    """``GroupNormalization``: scales of groups before opset 21, then of channels."""
    n, x = c.get("num_groups"), _precise(c.x, c)
    y = functional.group_norm(x, n, eps=c.get("epsilon", 1e-5)).to(c.x.dtype)
    scale, bias = c.need(1), c.need(2)
    if c.opset < 21:
        scale, bias = (each.repeat_interleave(y.shape[1] // n) for each in (scale, bias))
    return y * along(scale, y.ndim, 1) + along(bias, y.ndim, 1)


def instance_norm(c: Call) -> Tensor:
    """``InstanceNormalization``, over the spatial axes of each channel."""
    y, _, _ = centred(c.x, range(2, c.x.ndim), c.get("epsilon", 1e-5))
    return y * along(c.need(1), y.ndim, 1) + along(c.need(2), y.ndim, 1)


def mean_variance(c: Call) -> Tensor:
    """``MeanVarianceNormalization``; its small number is added to the deviation."""
    axes = tuple(c.get("axes", (0, 2, 3)))
    apart = c.x - c.x.mean(axes, keepdim=True)
    return apart / (torch.sqrt(apart.square().mean(axes, keepdim=True)) + 1e-9)


def lp_norm(c: Call) -> Tensor:
    """``LpNormalization``; zeros stay zero."""
    norm = torch.linalg.vector_norm(c.x, c.get("p", 2), dim=c.get("axis", -1), keepdim=True)
    return c.x / torch.where(norm == 0, torch.ones_like(norm), norm)


def response_norm(c: Call) -> Tensor:
    """``LRN``: squares are summed over neighbouring channels, of which there is one more behind for even sizes."""
    size = c.get("size")
    squares = functional.pad(c.x.square().movedim(1, -1), ((size - 1) // 2, size // 2))
    total = squares.unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    alpha, beta, bias = float(c.get("alpha", 1e-4)), float(c.get("beta", 0.75)), float(c.get("bias", 1.0))
    return c.x / torch.pow(bias + alpha / size * total, beta)


# -- along an axis --------------------------------------------------------------------------------------------------


def softmax(function: Callable[..., Tensor]) -> Callable[[Call], Tensor]:
    """A row of a softmax: before opset 13 over all axes from one on."""

    def row(c: Call) -> Tensor:
        if c.opset >= 13:
            return function(c.x, dim=c.get("axis", -1))
        return function(c.x.reshape(size_to(c.x.shape, c.axis(1))), dim=-1).reshape(c.x.shape)

    return row


def _hardmax(x: Tensor, dim: int) -> Tensor:
    return torch.zeros_like(x).scatter(dim, x.argmax(dim, keepdim=True), 1)


def reduction(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Callable[[Call], Tensor]:
    """A row of a reduction; axes are an attribute in old opsets and an operand in new ones."""

    def row(c: Call) -> Tensor:
        axes, keep = c.numbers("axes", 1) or (), bool(c.get("keepdims", 1))
        given = tuple(sorted(int(axis) % c.x.ndim for axis in axes))
        if not given and not c.get("noop_with_empty_axes", 0):
            given = tuple(range(c.x.ndim))
        if not given:  # each element on its own
            return function(c.x.unsqueeze(-1), (c.x.ndim,), keep).reshape(c.x.shape).to(c.x.dtype)
        return function(c.x, given, keep).to(c.x.dtype)

    return row


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return reduce(lambda y, axis: y.prod(axis, keepdim=keep), reversed(axes), x)


def _extreme(function: Callable[..., Tensor], least: bool) -> Callable[[Tensor, tuple[int, ...], bool], Tensor]:
    """A largest or smallest element; of none, what no element is beyond."""

    def reduced(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
        if all(x.shape[axis] for axis in axes):
            return function(x, axes, keepdim=keep)
        shape = [1 if i in axes else size for i, size in enumerate(x.shape) if keep or i not in axes]
        limits: Any = torch.finfo(x.dtype) if x.dtype.is_floating_point else None
        if x.dtype == torch.bool:
            return torch.full(shape, least, dtype=torch.bool)
        if limits is not None:
            return torch.full(shape, float("inf") if least else float("-inf"), dtype=x.dtype)
        whole = torch.iinfo(x.dtype)
        return torch.full(shape, whole.max if least else whole.min, dtype=x.dtype)

    return reduced


def chosen(function: Callable[..., Tensor]) -> Callable[[Call], Tensor]:
    """A row of the position of an extreme element, the first or the last one."""

    def row(c: Call) -> Tensor:
        axis, keep = c.axis(0), bool(c.get("keepdims", 1))
        if c.get("select_last_index", 0):
            return c.x.shape[axis] - 1 - function(c.x.flip(axis), axis, keepdim=keep)
        return function(c.x, axis, keepdim=keep)

    return row


def cumulative(function: Callable[..., Tensor], neutral: int) -> Callable[[Call], Tensor]:
    """A row of a cumulative sum or product."""

    def row(c: Call) -> Tensor:
        (axis,) = listed(c.need(1))
        x = c.x.flip(axis) if c.get("reverse", 0) else c.x
        if c.get("exclusive", 0):
            start = torch.full_like(x.narrow(axis, 0, 1), neutral)
            x = torch.cat([start, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
        y = function(x, axis).to(c.x.dtype)
        return y.flip(axis) if c.get("reverse", 0) else y

    return row


def largest(c: Call) -> tuple[Tensor, Tensor]:
    """``TopK``: of equal elements the first ones."""
    k, axis = int((c.numbers("k", 1) or [0])[0]), c.axis(-1)
    values, indices = torch.sort(c.x, dim=axis, descending=bool(c.get("largest", 1)), stable=True)
    return values.narrow(axis, 0, k), indices.narrow(axis, 0, k)


NORMS: Mapping[str, Callable[[Call], Any]] = {
    "BatchNormalization": batch_norm,
    "LayerNormalization": layer_norm,
    "RMSNormalization": rms_norm,
    "SimplifiedLayerNormalization": rms_norm,
    "GroupNormalization": group_norm,
    "InstanceNormalization": instance_norm,
    "MeanVarianceNormalization": mean_variance,
    "LpNormalization": lp_norm,
    "LRN": response_norm,
    "com.microsoft::SkipLayerNormalization": skip_norm,
    "com.microsoft::SkipSimplifiedLayerNormalization": skip_rms_norm,
    "com.microsoft::EmbedLayerNormalization": embed_norm,
    "Softmax": softmax(torch.softmax),
    "LogSoftmax": softmax(torch.log_softmax),
    "Hardmax": softmax(_hardmax),
    "ReduceSum": reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "ReduceMean": reduction(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "ReduceProd": reduction(_product),
    "ReduceMax": reduction(_extreme(torch.amax, least=False)),
    "ReduceMin": reduction(_extreme(torch.amin, least=True)),
    "ReduceL1": reduction(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "ReduceL2": reduction(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep)),
    "ReduceSumSquare": reduction(lambda x, axes, keep: x.square().sum(axes, keepdim=keep)),
    "ReduceLogSum": reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep).log()),
    "ReduceLogSumExp": reduction(lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep)),
    "ArgMax": chosen(torch.argmax),
    "ArgMin": chosen(torch.argmin),
    "CumSum": cumulative(torch.cumsum, 0),
    "CumProd": cumulative(torch.cumprod, 1),
    "TopK": largest,
}
