"""Rows of poolings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch.nn import functional

from graphprune.executor.ops.call import Call, RefusedError
from graphprune.executor.ops.windows import Windows, windows_of

Tensor = torch.Tensor
_MAXIMA = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
_MEANS = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)


def _spatial(c: Call) -> int:
    n = c.x.ndim - 2
    if not 1 <= n <= 3:
        raise RefusedError(f"a pooling over {n} axes")
    return n


def max_pool(c: Call) -> tuple[Tensor, ...]:
    """``MaxPool``, with the positions of what is found in the flattened operand."""
    n, x = _spatial(c), c.x if c.x.dtype.is_floating_point else c.x.double()
    if c.get("storage_order", 0) and c.n_results > 1:
        raise RefusedError("positions counted by columns")
    found = windows_of(c, c.get("kernel_shape"), x.shape[2:])
    padded = found.padded(x, float("-inf"))
    function: Callable[..., Any] = _MAXIMA[n - 1]
    given = (tuple(found.kernel), tuple(found.strides), 0, tuple(found.dilations))
    if c.n_results == 1:
        return (function(padded, *given).to(c.x.dtype),)
    y, positions = function(padded, *given, return_indices=True)
    return y.to(c.x.dtype), _positions(positions, padded.shape, x, found)


def _positions(flat: Tensor, padded: torch.Size, x: Tensor, found: Windows) -> Tensor:
    """Positions in a padded plane as positions in the flattened operand."""
    sizes, result, rest = x.shape[2:], torch.zeros_like(flat), flat
    for i in reversed(range(len(sizes))):
        result = result + (rest % padded[2 + i] - found.before[i]) * prod(sizes[i + 1 :])
        rest = torch.div(rest, padded[2 + i], rounding_mode="floor")
    planes = torch.arange(x.shape[0] * x.shape[1], device=x.device) * prod(sizes)
    return result + planes.reshape(*x.shape[:2], *[1] * len(sizes))


def average_pool(c: Call) -> Tensor:
    """``AveragePool``: padding counts if it is to, and what ``ceil_mode`` adds never does."""
    n, x = _spatial(c), c.x
    found = windows_of(c, c.get("kernel_shape"), x.shape[2:])
    if not any((*found.before, *found.after, *found.beyond)) and set(found.dilations) == {1}:
        function: Callable[..., Tensor] = _MEANS[n - 1]
        return function(x, tuple(found.kernel), tuple(found.strides))
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    counted = found.padded(ones, 1.0 if c.get("count_include_pad", 0) else 0.0, beyond=0.0)
    return found.summed(found.padded(x)) / found.summed(counted)


def lp_pool(c: Call) -> Tensor:
    """``LpPool``."""
    found, p = windows_of(c, c.get("kernel_shape"), c.x.shape[2:]), c.get("p", 2)
    return torch.pow(found.summed(found.padded(c.x.abs() ** p)), 1 / p)


def unpooled(c: Call) -> Tensor:
    """``MaxUnpool``: values at the positions that a pooling found, zeros elsewhere."""
    n = _spatial(c)
    kernel, strides = c.get("kernel_shape"), c.get("strides") or (1,) * n
    pads = c.get("pads") or (0,) * (2 * n)
    own = [(size - 1) * strides[i] - pads[i] - pads[n + i] + kernel[i] for i, size in enumerate(c.x.shape[2:])]
    asked = c.at(2)
    sizes = own if asked is None else [int(size) for size in asked.tolist()][-n:]
    plane = prod(own)  # the positions are those of the operand of the pooling
    where = c.need(1).long().reshape(*c.x.shape[:2], -1) % plane
    if sizes != own:
        spread = torch.zeros_like(where)
        rest = where
        for i in reversed(range(n)):
            spread = spread + rest % own[i] * prod(sizes[i + 1 :])
            rest = torch.div(rest, own[i], rounding_mode="floor")
        where = spread
    zeros = torch.zeros((*c.x.shape[:2], prod(sizes)), dtype=c.x.dtype, device=c.x.device)
    return zeros.scatter(2, where, c.x.reshape(*c.x.shape[:2], -1)).reshape(*c.x.shape[:2], *sizes)


def channels_last(c: Call) -> Tensor:
    """``NhwcMaxPool``: a pooling whose channels lie last."""
    inner = Call(c.op, (c.x.movedim(-1, 1),), c.attributes, c.opset)
    return max_pool(inner)[0].movedim(1, -1)


def _over(function: Callable[[Tensor, tuple[int, ...]], Tensor]) -> Callable[[Call], Tensor]:
    return lambda c: function(c.x, tuple(range(2, c.x.ndim)))


POOLS: Mapping[str, Callable[[Call], Any]] = {
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "LpPool": lp_pool,
    "MaxUnpool": unpooled,
    "GlobalAveragePool": _over(lambda x, axes: x.mean(axes, keepdim=True)),
    "GlobalMaxPool": _over(lambda x, axes: x.amax(axes, keepdim=True)),
    "GlobalLpPool": lambda c: torch.linalg.vector_norm(c.x, c.get("p", 2), tuple(range(2, c.x.ndim)), keepdim=True),
    "com.microsoft::NhwcMaxPool": channels_last,
}
