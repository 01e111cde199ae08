"""Masked forms of the torch host: what takes a statistic, counting kept positions only.

Each takes a call, one for each kept element of the first operand and zero for the others, and the shape of the result.
Which operator has which form is said by its row in :mod:`graphprune.hosts.torch.ops.table`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import fx

from graphprune.hosts.torch.ops.own import facts_of
from graphprune.hosts.torch.ops.table import ROWS
from graphprune.hosts.torch.signatures import argument, argument_position
from graphprune.rules.call import EXACT, facts, stated_form

_ATEN = torch.ops.aten


def form_of(op: str) -> Form | None:
    """The masked form of an operator; the operator itself has ``exact``; ``None``: none is known.

    Raises:
        RuleError: Its row, which somebody has registered, states one that there is not.
    """
    name = facts_of(op).masked
    forms = {facts(row).masked for row in ROWS.values()} - {"", EXACT}
    return None if name in ("", EXACT) else cast("Form", globals()[stated_form(op, name, forms)])


def is_exact(op: str) -> bool:
    """Whether an operator's statistic does not see zeros."""
    return facts_of(op).masked == EXACT


def by_expert(x: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """A grouped matrix product, expert by expert."""
    ends = [0, *offsets.tolist()]
    rows = [x[a:b] @ weight[i] for i, (a, b) in enumerate(pairwise(ends))]
    return torch.cat([*rows, x.new_zeros(x.shape[0] - ends[-1], weight.shape[2])])


class Call:
    """The arguments of a call by name."""

    def __init__(self, node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.node, self.args, self.kwargs = node, args, kwargs

    @property
    def operator(self) -> Callable[..., Any]:
        """The operator itself."""
        return cast("Callable[..., Any]", self.node.target)

    def __getitem__(self, name: str) -> Any:
        if name in self.kwargs:
            return self.kwargs[name]
        at = argument_position(self.node, name)
        if at is not None and at < len(self.args):
            return self.args[at]
        return argument(self.node, name)


Form = Callable[[Call, torch.Tensor, tuple[int, ...] | None], Any]


def _moments(
    x: torch.Tensor, weights: torch.Tensor, dims: list[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Count, mean and sum of squared deviations of the kept elements; reduced axes stay with size one."""
    x = x.to(weights.dtype) * weights
    count = weights.sum(dims, keepdim=True)
    mean = x.sum(dims, keepdim=True) / count
    return count, mean, ((x - mean).square() * weights).sum(dims, keepdim=True)


def _dims(call: Call) -> list[int]:
    named = call["dim"] if argument_position(call.node, "dim") is not None else None
    rank = call["self"].dim()
    return list(range(rank)) if named is None or named == [] else [named] if isinstance(named, int) else list(named)


def mean(call: Call, weights: torch.Tensor, shape: tuple[int, ...] | None) -> torch.Tensor:
    """The mean."""
    _, mean, _ = _moments(call["self"], weights, _dims(call))
    return mean.reshape(shape or ())


def _variance(call: Call, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if argument_position(call.node, "correction") is not None:
        correction = 1 if call["correction"] is None else call["correction"]
    else:
        correction = int(call["unbiased"])
    count, mean, squares = _moments(call["self"], weights, _dims(call))
    return squares / (count - correction).clamp_min(0), mean


def var(call: Call, weights: torch.Tensor, shape: tuple[int, ...] | None) -> torch.Tensor:
    """The variance."""
    return _variance(call, weights)[0].reshape(shape or ())


def std(call: Call, weights: torch.Tensor, shape: tuple[int, ...] | None) -> torch.Tensor:
    """The standard deviation."""
    return _variance(call, weights)[0].sqrt().reshape(shape or ())


def var_mean(call: Call, weights: torch.Tensor, _shape: tuple[int, ...] | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Variance and mean."""
    variance, mean = _variance(call, weights)
    return _squeezed(call, variance), _squeezed(call, mean)


def std_mean(call: Call, weights: torch.Tensor, _shape: tuple[int, ...] | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Standard deviation and mean."""
    variance, mean = _variance(call, weights)
    return _squeezed(call, variance.sqrt()), _squeezed(call, mean)


def _squeezed(call: Call, tensor: torch.Tensor) -> torch.Tensor:
    keep = argument_position(call.node, "keepdim") is not None and call["keepdim"]
    return tensor if keep else tensor.squeeze(_dims(call))


def _affine(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def layer_norm(call: Call, weights: torch.Tensor, _shape: tuple[int, ...] | None) -> torch.Tensor:
    """A layer normalisation."""
    x = call["input"]
    dims = list(range(-len(call["normalized_shape"]), 0))
    count, mean, squares = _moments(x, weights, dims)
    return _affine((x - mean) * torch.rsqrt(squares / count + call["eps"]), call["weight"], call["bias"])


def native_layer_norm(call: Call, weights: torch.Tensor, _shape: tuple[int, ...] | None) -> tuple[torch.Tensor, ...]:
    """The same, with the mean and the reciprocal of the deviation."""
    x = call["input"]
    dims = list(range(-len(call["normalized_shape"]), 0))
    count, mean, squares = _moments(x, weights, dims)
    rstd = torch.rsqrt(squares / count + call["eps"])
    return _affine((x - mean) * rstd, call["weight"], call["bias"]), mean, rstd


def rms_norm(call: Call, weights: torch.Tensor, _shape: tuple[int, ...] | None) -> torch.Tensor:
    """A normalisation by the root mean square."""
    x = call["input"].to(weights.dtype)
    dims = list(range(-len(call["normalized_shape"]), 0))
    eps = torch.finfo(call["input"].dtype).eps if call["eps"] is None else call["eps"]
    square = (x.square() * weights).sum(dims, keepdim=True) / weights.sum(dims, keepdim=True)
    return _affine(x * torch.rsqrt(square + eps), call["weight"], None)


def fused_rms_norm(call: Call, weights: torch.Tensor, _shape: tuple[int, ...] | None) -> tuple[torch.Tensor, ...]:
    """The same, with a second result that nothing reads."""
    y = rms_norm(call, weights, None)
    return y, y.new_zeros(y.shape[: -len(call["normalized_shape"])])


def _grouped(x: torch.Tensor, weights: torch.Tensor, groups: int, eps: float) -> torch.Tensor:
    shape = x.shape
    x, weights = x.reshape(shape[0], groups, -1), weights.reshape(shape[0], groups, -1)
    count, mean, squares = _moments(x, weights, [2])
    return ((x - mean) * torch.rsqrt(squares / count + eps)).reshape(shape)


def _per_channel(vector: torch.Tensor | None, rank: int) -> torch.Tensor | None:
    return None if vector is None else vector.reshape(1, -1, *[1] * (rank - 2))


def group_norm(call: Call, weights: torch.Tensor, _shape: tuple[int, ...] | None) -> torch.Tensor:
    """A group normalisation."""
    x = call["input"]
    y = _grouped(x, weights, call["num_groups"], call["eps"])
    return _affine(y, _per_channel(call["weight"], x.dim()), _per_channel(call["bias"], x.dim()))


def native_group_norm(call: Call, weights: torch.Tensor, _shape: tuple[int, ...] | None) -> tuple[torch.Tensor, ...]:
    """The same, with the mean and the reciprocal of the deviation of each group."""
    x, groups = call["input"], call["group"]
    shape = (x.shape[0], groups, -1)
    count, mean, squares = _moments(x.reshape(shape), weights.reshape(shape), [2])
    y = _grouped(x, weights, groups, call["eps"])
    y = _affine(y, _per_channel(call["weight"], x.dim()), _per_channel(call["bias"], x.dim()))
    return y, mean.squeeze(2), torch.rsqrt(squares / count + call["eps"]).squeeze(2)


def instance_norm(call: Call, weights: torch.Tensor, _shape: tuple[int, ...] | None) -> torch.Tensor:
    """An instance normalisation."""
    x = call["input"]
    y = _grouped(x, weights, x.shape[1], call["eps"])
    return _affine(y, _per_channel(call["weight"], x.dim()), _per_channel(call["bias"], x.dim()))


def choice(call: Call, weights: torch.Tensor, _shape: tuple[int, ...] | None) -> Any:
    """The operator itself, on numbers that it cannot choose where units are removed."""
    return _chosen(call, weights, least=False)


def choice_of_least(call: Call, weights: torch.Tensor, _shape: tuple[int, ...] | None) -> Any:
    """As :func:`choice`, of an operator that chooses the smallest."""
    return _chosen(call, weights, least=True)


def _chosen(call: Call, weights: torch.Tensor, *, least: bool) -> Any:
    x = call.args[0]
    limits = torch.finfo(x.dtype) if x.is_floating_point() else torch.iinfo(x.dtype)
    worst = float("inf" if least else "-inf") if x.is_floating_point() else limits.max if least else limits.min
    return call.operator(torch.where(weights > 0, x, worst), *call.args[1:], **call.kwargs)


def topk(call: Call, weights: torch.Tensor, shape: tuple[int, ...] | None) -> Any:
    """The largest, or the smallest."""
    return _chosen(call, weights, least=not call["largest"])


def grouped_mm(call: Call, _weights: torch.Tensor, _shape: tuple[int, ...] | None) -> torch.Tensor:
    """The offsets of experts that are not there are those of the expert before: they get no rows."""
    operands = [operand.cummax(0).values if operand is call["offs"] else operand for operand in call.args]
    kwargs = {k: v.cummax(0).values if k == "offs" and v is not None else v for k, v in call.kwargs.items()}
    if call.node.target is _ATEN._grouped_mm.default and call.args[0].dtype is torch.float64:
        return by_expert(operands[0], operands[1], kwargs["offs"] if "offs" in kwargs else operands[2])
    result: torch.Tensor = call.operator(*operands, **kwargs)
    return result


def batch_norm(call: Call, weights: torch.Tensor, _shape: tuple[int, ...] | None) -> tuple[torch.Tensor, ...]:
    """A batch normalisation by the statistics of the batch."""
    x = call["input"]
    count, mean, squares = _moments(x, weights, [0, *range(2, x.dim())])
    rstd = torch.rsqrt(squares / count + call["eps"])
    y = _affine((x - mean) * rstd, _per_channel(call["weight"], x.dim()), _per_channel(call["bias"], x.dim()))
    return y, mean.flatten(), rstd.flatten()
