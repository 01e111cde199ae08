"""Weight normalisation, ``g * v / norm(v)``: the gains of a cut model keep what is left of a weight as it was.

The norm of a row falls with every input that it loses. The gain falls with it, so that removing units of a normalised
weight is as exact as of any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx

from graphprune.errors import PlanError
from graphprune.frontends.torch_graph import argument
from graphprune.hosts.torch_slice import sliced
from graphprune.ir.dims import Index

_OPERATOR = torch.ops.aten._weight_norm.default


def stored_operands(node: fx.Node) -> tuple[str, str, int] | None:
    """Names of ``v`` and ``g`` and the axis that each gain is for, of a weight normalisation of stored tensors."""
    if node.target is not _OPERATOR:
        return None
    v, g, dim = (argument(node, name) for name in ("v", "g", "dim"))
    if not all(isinstance(each, fx.Node) and each.op == "get_attr" for each in (v, g)):
        return None
    return str(v.target), str(g.target), dim


def rescaled(
    graph: fx.Graph,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    slices: Mapping[str, Mapping[int, Index]],
    names: Mapping[str, str],
) -> Iterator[tuple[str, torch.Tensor]]:
    """The gains that must change, by the name of the tensor.

    Args:
        graph: The graph before the cut.
        before: Its tensors.
        after: Those that the cut has left.
        slices: What was taken, by name and axis.
        names: By name of a tensor: the one that ``slices`` knows it by.

    Raises:
        PlanError: Several weights share gains, so that no gain is right for all.
    """
    pairs = {pair for node in graph.nodes if (pair := stored_operands(node)) is not None}
    weights: dict[str, str] = {}
    for v, g, dim in sorted(pairs):
        lost = [axis for axis in slices.get(names.get(v, v), {}) if axis != dim]
        if weights.setdefault(names.get(g, g), v) != v and lost:
            raise PlanError(
                f"weights '{v}' and '{weights[names.get(g, g)]}' share the gains '{g}'; protect their inputs"
            )
        if not lost:
            continue
        old = torch.norm_except_dim(before[v].detach().double(), 2, dim).reshape(before[g].shape)
        if taken := slices.get(names.get(g, g)):
            old = sliced({g: old}, {g: taken})[g]
        new = torch.norm_except_dim(after[v].detach().double(), 2, dim).reshape(after[g].shape)
        gains = after[g].detach().double() * torch.where(old > 0, new / old, 1.0)
        gains = gains.to(after[g].dtype)
        is_parameter = isinstance(after[g], torch.nn.Parameter)
        yield g, torch.nn.Parameter(gains, after[g].requires_grad) if is_parameter else gains
