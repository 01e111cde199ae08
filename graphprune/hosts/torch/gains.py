"""Normalised weights of a cut model: what is left of them is what it was, so that removing units is exact.

Weight normalisation, ``g * v / norm(v)``: the norm of a row falls with every input that it loses, and its gain with it.
Spectral normalisation, ``w / (u w v)``: the vector ``u`` becomes longer by as much as the product falls.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx

from graphprune.errors import PlanError
from graphprune.hosts.torch.kept import kept_number, sources
from graphprune.hosts.torch.signatures import argument
from graphprune.hosts.torch.slice import sliced
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


def adjusted(graph: fx.Graph) -> dict[str, frozenset[str]]:
    """The stored tensors that a cut may give other values (gains, vectors), and those that they follow."""
    found: dict[str, frozenset[str]] = {}
    for node in graph.nodes:
        if (operands := stored_operands(node)) is not None:
            found[operands[1]] = frozenset({operands[0]})
        elif (vector := kept_number(node)) is not None:
            found[str(vector.target)] = frozenset(str(each.target) for each in sources(node) if each.op == "get_attr")
    return found


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


def lengthened(
    graph: fx.Graph,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    slices: Mapping[str, Mapping[int, Index]],
    names: Mapping[str, str],
) -> Iterator[tuple[str, torch.Tensor]]:
    """The vectors that must change so that numbers stay what they were; arguments as of :func:`rescaled`."""
    for node in graph.nodes:
        vector = kept_number(node)
        if vector is None:
            continue
        made_of = sources(node)
        stored = {str(each.target) for each in made_of if each.op == "get_attr"}
        cut = any(names.get(name, name) in slices for name in stored)
        if not cut or any(before[name].is_meta for name in stored):
            continue
        whole = {name: before[name].detach().double() for name in stored}
        left = {name: _zeroed(tensor, slices.get(names.get(name, name), {})) for name, tensor in whole.items()}
        old, new = (_value(made_of, tensors) for tensors in (whole, left))
        name = str(vector.target)
        if float(new) == 0.0:
            raise PlanError(f"nothing is left of the norm that '{name}' is for; keep other units of its weight")
        longer = (after[name].detach().double() * (old / new)).to(after[name].dtype)
        is_parameter = isinstance(after[name], torch.nn.Parameter)
        yield name, torch.nn.Parameter(longer, after[name].requires_grad) if is_parameter else longer


def _zeroed(tensor: torch.Tensor, taken: Mapping[int, Index]) -> torch.Tensor:
    """A tensor with zeros where it is cut."""
    for axis, index in taken.items():
        kept = torch.zeros(tensor.shape[axis], dtype=torch.bool)
        kept[torch.from_numpy(index)] = True
        shape = [-1 if i == axis else 1 for i in range(tensor.dim())]
        tensor = tensor * kept.reshape(shape).to(tensor.device)
    return tensor


def _value(made_of: tuple[fx.Node, ...], tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    values: dict[fx.Node, Any] = {}
    for each in made_of:
        if each.op == "get_attr":
            values[each] = tensors[str(each.target)]
        else:
            args, kwargs = fx.map_arg((each.args, each.kwargs), values.__getitem__)
            values[each] = each.target(*args, **kwargs)  # type: ignore[operator]
    result: torch.Tensor = values[made_of[-1]]
    return result
