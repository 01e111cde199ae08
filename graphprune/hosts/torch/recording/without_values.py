"""What code asks of tensors on the meta device that follow from nothing: ranges, masks, positions.

Weights have no values there, but much that decides what a forward does hangs on none: whether positions rise, whether a
mask is all ones. The recorded nodes say how such a number comes about; it is computed from them, on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import fx

from graphprune.hosts.torch.specs import SPEC, Spec

_MOST = 1 << 24
"""Elements of a value on the way."""


def number(func: Any, args: Any, kwargs: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Any:
    """What an operator that reads a number gives, computed from where its operands come from.

    Args:
        func: The operator.
        args: Its arguments, nodes for tensors.
        kwargs: Likewise.
        tensors: What ``get_attr`` nodes stand for.

    Returns:
        ``None`` where it follows from what has no values.
    """
    values: dict[fx.Node, Any] = {}
    order = _ancestors([node for node in (*args, *kwargs.values()) if isinstance(node, fx.Node)])
    try:
        for node in order:
            found = tensors[str(node.target)] if node.op == "get_attr" else None
            spec = node.meta.get(SPEC)
            if node.op == "placeholder" or (found is not None and found.is_meta):
                return None
            if isinstance(spec, Spec) and prod(spec.shape) > _MOST:
                return None
            values[node] = found if found is not None else _called(node.target, node.args, node.kwargs, values)
        return _called(func, args, kwargs, values)
    except (RuntimeError, TypeError, ValueError, NotImplementedError):  # an operator that knows no such way
        return None


def _called(func: Any, args: Any, kwargs: Any, values: Mapping[fx.Node, Any]) -> Any:
    args, kwargs = fx.map_arg((args, dict(kwargs)), values.__getitem__)
    if "device" in kwargs:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    return func(*args, **kwargs)


def _ancestors(roots: list[fx.Node]) -> list[fx.Node]:
    """Nodes and all that they need, in the order of the graph."""
    seen: set[fx.Node] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack.extend(node.all_input_nodes)
    return sorted(seen)
