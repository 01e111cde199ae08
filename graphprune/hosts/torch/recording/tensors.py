"""What recording asks of a tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from graphprune.hosts.torch.specs import Spec

PLAIN = (torch.Tensor, nn.Parameter, nn.Buffer)
"""Classes of tensors that are what they seem."""


def spec_of(tensor: torch.Tensor) -> Spec:
    """The spec of a tensor of known sizes."""
    dtype = tensor.dtype
    return Spec(tuple(tensor.shape), type_name(dtype), dtype.itemsize)


_NAMES: dict[torch.dtype, str] = {}


def type_name(dtype: torch.dtype) -> str:
    """The name of an element type as specs have it."""
    found = _NAMES.get(dtype)
    if found is None:
        found = _NAMES[dtype] = str(dtype).removeprefix("torch.")
    return found


def memory_key(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are the same elements in the same order."""
    return (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)


def holds_node(value: Any) -> bool:
    """Whether an argument holds a value of the graph."""
    return isinstance(value, fx.Node) or (isinstance(value, list | tuple) and any(map(holds_node, value)))


PROMOTED = frozenset(
    (
        "add", "sub", "mul", "div", "pow", "atan2", "fmod", "remainder", "true_divide", "floor_divide", "addcmul",
        "addcdiv", "lerp", "hypot", "copysign", "bitwise_and", "bitwise_or", "bitwise_xor", "multiply", "subtract",
        "divide", "logical_and", "logical_or", "logical_xor",
    )
)  # fmt: skip
"""Operators whose result has the wider type of their operands', written to something narrower or not."""


def promoted_type(first: torch.dtype, others: set[torch.dtype]) -> torch.dtype:
    """The type of a result of operands of several types."""
    found = first
    for each in others:
        found = torch.promote_types(found, each)
    return found
