"""Rows that look elements up by index, write at indices, or find them; and losses of classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from graphprune.executor.ops.call import Call, RefusedError, listed, positive
from graphprune.executor.tensors import array_of

Tensor = torch.Tensor
_REDUCTIONS: Mapping[str, Any] = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def gather(c: Call) -> Tensor:
    """``Gather``."""
    axis, indices = c.axis(0), c.need(1)
    places = positive(indices, c.x.shape[axis])
    if axis == 0 and c.x.ndim == 2:
        return functional.embedding(places, c.x) if c.x.dtype.is_floating_point else c.x[places]
    found = c.x.index_select(axis, places.reshape(-1))
    return found.reshape((*c.x.shape[:axis], *indices.shape, *c.x.shape[axis + 1 :]))


def gather_elements(c: Call) -> Tensor:
    """``GatherElements``."""
    axis = c.axis(0)
    return torch.gather(c.x, axis, positive(c.need(1), c.x.shape[axis]))


def _rows(indices: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Indices of several axes as positions along them flattened."""
    place = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=indices.device)
    for i, size in enumerate(shape):
        place = place * size + positive(indices[..., i], size)
    return place


def gather_nd(c: Call) -> Tensor:
    """``GatherND``, also with leading axes that both operands share."""
    n, indices, x = c.get("batch_dims", 0), c.need(1), c.x
    depth = indices.shape[-1]
    batch, looked, rest = x.shape[:n], x.shape[n : n + depth], x.shape[n + depth :]
    table = x.reshape(prod(batch), prod(looked), *rest)
    places = _rows(indices, tuple(looked)).reshape(prod(batch), -1)
    found = table[torch.arange(len(table), device=x.device)[:, None], places]
    return found.reshape((*indices.shape[:-1], *rest))


def scatter_elements(c: Call) -> Tensor:
    """``ScatterElements``."""
    axis, how = c.axis(0), c.get("reduction", "none")
    places = positive(c.need(1), c.x.shape[axis])
    if how == "none":
        return c.x.scatter(axis, places, c.need(2))
    return c.x.scatter_reduce(axis, places, c.need(2), _REDUCTIONS[how])


def scatter_nd(c: Call) -> Tensor:
    """``ScatterND``."""
    indices, updates, how = c.need(1), c.need(2), c.get("reduction", "none")
    depth = indices.shape[-1]
    looked, rest = c.x.shape[:depth], prod(c.x.shape[depth:])
    places = _rows(indices, tuple(looked)).reshape(-1, 1).expand(-1, rest)
    table, written = c.x.reshape(prod(looked), rest), updates.reshape(-1, rest)
    if how == "none":
        return table.scatter(0, places, written).reshape(c.x.shape)
    return table.scatter_reduce(0, places, written, _REDUCTIONS[how]).reshape(c.x.shape)


def tensor_scatter(c: Call) -> Tensor:
    """``TensorScatter``: rows written into a cache from some position on, or round a ring."""
    axis, update = c.axis(-2), c.need(1)
    size, steps = c.x.shape[axis], update.shape[axis]
    start = torch.zeros(len(c.x), dtype=torch.int64) if c.at(2) is None else c.need(2).long()
    places = start.to(c.x.device)[:, None] + torch.arange(steps, device=c.x.device)[None]
    if c.get("mode", "linear") == "circular":
        places = places % size
    shape = [1] * c.x.ndim
    shape[0], shape[axis] = len(c.x), steps
    return c.x.scatter(axis, places.reshape(shape).expand(update.shape), update)


def one_hot(c: Call) -> Tensor:
    """``OneHot``; indices outside are off everywhere."""
    depth, (off, on) = int(listed(c.need(1))[0]), c.need(2)
    axis = c.get("axis", -1) % (c.x.ndim + 1)
    places = c.x.long()
    places = torch.where(places < 0, places + depth, places).unsqueeze(axis)
    shape = [1] * (c.x.ndim + 1)
    shape[axis] = depth
    return torch.where(places == torch.arange(depth, device=c.x.device).reshape(shape), on, off)


def compress(c: Call) -> Tensor:
    """``Compress``."""
    places = c.need(1).nonzero().reshape(-1)
    return c.x.reshape(-1)[places] if c.get("axis") is None else c.x.index_select(c.axis(), places)


def unique(c: Call) -> tuple[Tensor, ...]:
    """``Unique``, sorted or in the order of what comes first."""
    axis = c.get("axis")
    array = array_of(c.x.double() if c.x.dtype == torch.bfloat16 else c.x)
    _, first, inverse, counts = np.unique(array, return_index=True, return_inverse=True, return_counts=True, axis=axis)
    if not c.get("sorted", 1):
        order = np.argsort(first)
        inverse, first, counts = np.argsort(order)[inverse.reshape(-1)], first[order], counts[order]
    places = torch.from_numpy(first).to(c.x.device)
    found = c.x.reshape(-1)[places] if axis is None else c.x.index_select(axis, places)
    return found, *(torch.from_numpy(np.asarray(each).reshape(-1)) for each in (first, inverse, counts))


def suppressed(c: Call) -> Tensor:
    """``NonMaxSuppression``: of boxes that overlap the one with the best score; indices without gradients."""
    boxes, scores = c.x.detach(), c.need(1).detach()
    most, overlap, least = (None if c.at(i) is None else listed(c.need(i))[0] for i in (2, 3, 4))
    if c.get("center_point_box", 0):
        middle, half = boxes[..., :2], boxes[..., 2:] / 2
        corners = torch.cat([middle - half, middle + half], -1)
    else:
        corners = torch.cat([torch.minimum(boxes[..., :2], boxes[..., 2:]), boxes[..., :2].maximum(boxes[..., 2:])], -1)
    areas = (corners[..., 2] - corners[..., 0]) * (corners[..., 3] - corners[..., 1])
    found: list[list[int]] = []
    for b in range(scores.shape[0]):
        for k in range(scores.shape[1]):
            row = scores[b, k]
            order = torch.sort(row, descending=True, stable=True).indices
            left = order if least is None else order[row[order] > least]
            for _ in range(int(most or 0)):
                if not len(left):
                    break
                best, left = left[0], left[1:]
                found.append([b, k, int(best)])
                low = torch.maximum(corners[b, left, :2], corners[b, best, :2])
                high = torch.minimum(corners[b, left, 2:], corners[b, best, 2:])
                common = (high - low).clamp_min(0).prod(-1)
                left = left[common / (areas[b, left] + areas[b, best] - common) <= (overlap or 0.0)]
    return torch.tensor(found, dtype=torch.int64).reshape(-1, 3)


def likelihood(c: Call) -> Tensor:
    """``NegativeLogLikelihoodLoss``."""
    return _loss(c, c.x)


def cross_entropy(c: Call) -> tuple[Tensor, ...]:
    """``SoftmaxCrossEntropyLoss``, with the logarithms of the probabilities."""
    logs = functional.log_softmax(c.x, 1)
    return _loss(c, logs), logs


def _loss(c: Call, logs: Tensor) -> Tensor:
    ignored, classes = c.get("ignore_index"), c.need(1).long()
    counted = torch.ones_like(classes, dtype=torch.bool) if ignored is None else classes != ignored
    safe = torch.where(counted, classes, torch.zeros_like(classes))
    weights = torch.ones(logs.shape[1], dtype=logs.dtype, device=logs.device) if c.at(2) is None else c.need(2)
    each = weights[safe] * counted
    losses = -torch.gather(logs, 1, safe.unsqueeze(1)).squeeze(1) * each
    how = c.get("reduction", "mean")
    if how not in ("none", "sum", "mean"):
        raise RefusedError(f"the reduction '{how}'")
    return losses if how == "none" else losses.sum() if how == "sum" else losses.sum() / each.sum()


LOOKUPS: Mapping[str, Callable[[Call], Any]] = {
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "com.microsoft::GatherND": gather_nd,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "TensorScatter": tensor_scatter,
    "OneHot": one_hot,
    "Compress": compress,
    "Unique": unique,
    "NonZero": lambda c: c.x.nonzero().mT if c.x.ndim else c.x.reshape(1).nonzero().mT,
    "NonMaxSuppression": suppressed,
    "NegativeLogLikelihoodLoss": likelihood,
    "SoftmaxCrossEntropyLoss": cross_entropy,
}
