"""Biases for nodes that have none, where a refit asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from graphprune.hosts.host import bias_shape
from graphprune.hosts.torch.lazy_graph import copied, set_argument
from graphprune.hosts.torch.signatures import argument
from graphprune.hosts.torch.specs import SPEC, spec_of
from graphprune.hosts.torch.steps import BIASED


def biased(
    graph: fx.Graph, tensors: Mapping[str, Any], biases: Mapping[str, int | None]
) -> tuple[fx.Graph, dict[str, Any]]:
    """A copy of a graph in which the results of some nodes get a bias of zeros, and its stored tensors.

    Args:
        graph: The graph.
        tensors: What its ``get_attr`` nodes stand for.
        biases: For a node, the axis of its result along which the bias lies; ``None``: one number for all of it.
    """
    program, copies = copied(graph)
    stored = dict(tensors)
    nodes = {node.name: node for node in copies.values()}
    for name, axis in biases.items():
        node = nodes[name]
        operands = [str(each.target) for each in node.all_input_nodes if str(each.target) in stored]
        weight = max(reversed(operands), key=lambda name: stored[name].ndim)
        spec, like = node.meta[SPEC], stored[weight]
        own = node.target in BIASED and argument(node, "bias") is None
        shape = bias_shape(spec.shape, axis)[: 1 if own else None]
        bias = torch.nn.Parameter(torch.zeros(shape, dtype=like.dtype, device=like.device), like.requires_grad)
        new = _bias_name(weight, stored)
        stored[new] = bias
        with program.inserting_before(node):
            constant = program.create_node("get_attr", new)
        constant.meta = {SPEC: spec_of(bias)}
        if own:
            set_argument(node, "bias", constant)
            continue
        with program.inserting_after(node):
            total = program.create_node("call_function", torch.ops.aten.add.Tensor)
        total.meta = dict(node.meta)
        node.replace_all_uses_with(total)
        total.args = (node, constant)
    return program, stored


def _bias_name(weight: str, tensors: Mapping[str, Any]) -> str:
    """The name of the bias that goes with a weight, as torch's own layers call it, or a free one like it."""
    name = f"{weight.removesuffix('.weight')}.bias" if weight.endswith(".weight") else f"{weight}_bias"
    base, n = name, 0
    while name in tensors:
        n += 1
        name = f"{base}_{n}"
    return name
