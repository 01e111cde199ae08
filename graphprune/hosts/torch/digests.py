"""Digests of tensors and of traced graphs, by which what was measured on one model is told from what is of others."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from graphprune.arrays import digest_of


def digest_of_tensor(tensor: torch.Tensor) -> str:
    """The digest of a tensor with values; see :func:`graphprune.arrays.digest_of`."""
    held = tensor.detach().cpu().contiguous().reshape(-1)
    data = held.view(torch.uint8).numpy().data if held.numel() else b""  # where it lies: it may be large
    return digest_of(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), data)


def digest_of_graph(graph: fx.Graph, tensors: Mapping[str, Any]) -> str:
    """The digest of the operators of a graph, their arguments and connections, and of all tensors and bodies."""
    found = {name: digest_of_tensor(each) for name, each in tensors.items() if isinstance(each, torch.Tensor)}
    for name, body in tensors.items():
        if isinstance(body, fx.GraphModule):
            inside = {**dict(body.named_parameters()), **dict(body.named_buffers()), **dict(body.named_children())}
            found[name] = digest_of_graph(body.graph, inside)
    whole = hashlib.sha256(repr(sorted(found.items())).encode())
    for node in graph.nodes:
        whole.update(f"{node.op} {node.name} {_target(node.target)} {node.args} {node.kwargs};".encode())
    return whole.hexdigest()


def _target(target: Any) -> str:
    """What a node calls, without the address of a function."""
    name = getattr(target, "__qualname__", None)
    return f"{target.__module__}.{name}" if name is not None else str(target)


def versions_of(tensors: Mapping[str, Any]) -> tuple[int, ...]:
    """The version counters of tensors, which in-place operators count up; those of inference have none."""
    stored = (tensor for tensor in tensors.values() if isinstance(tensor, torch.Tensor))
    return tuple(tensor._version for tensor in stored if not tensor.is_inference())
