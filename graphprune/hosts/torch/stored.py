"""Stored tensors of a traced model: their values, their names in the user's module, and modules made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import fx

from graphprune.errors import ModelError
from graphprune.hosts.host import Array, Arrays
from graphprune.hosts.torch.specs import storage_key

_AS_FLOAT32 = frozenset(
    getattr(torch, name)
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
    if hasattr(torch, name)
)
WITHOUT_VALUES = (
    "the model is on the meta device, where weights have no values to read or to run with; load its weights, or make a "
    "plan by criterion='random' with verify=False"
)


def to_numpy(tensor: torch.Tensor) -> Array:
    """A tensor's values; types that NumPy lacks come as float32."""
    found: Array = (tensor.float() if tensor.dtype in _AS_FLOAT32 else tensor).numpy(force=True)
    return found


def named_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The parameters and buffers of a module under all their names."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def shared_names(tensors: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """For each stored tensor of the graph, the other names under which the user's module has it."""
    names: dict[tuple[Any, ...], list[str]] = {}
    for name, tensor in state.items():
        if isinstance(tensor, torch.Tensor) and tensor.numel():
            names.setdefault(storage_key(tensor), []).append(name)
    found = {}
    for target, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor):
            others = tuple(name for name in names.get(storage_key(tensor), ()) if name != target)
            if others:
                found[target] = others
    return found


def tied_names(tensors: Mapping[str, Any], shared: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """For each stored value, all names in the module that are the same tensor."""
    found: dict[str, list[str]] = {}
    keys: dict[tuple[Any, ...], str] = {}
    for target, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor):
            first = keys.setdefault(storage_key(tensor), target)
            for name in (target, *shared.get(target, ())):
                if name not in found.setdefault(first, []):
                    found[first].append(name)
    return {name: tuple(names) for name, names in found.items()}


def owners(tied: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """The stored value that each name stands for."""
    return {alias: owner for owner, aliases in tied.items() for alias in aliases}


def with_values(tensors: Mapping[str, Any], tied: Mapping[str, tuple[str, ...]], values: Arrays) -> dict[str, Any]:
    """The tensors, some of them with other values of the same shapes and types, in all names that they have."""
    changed = dict(tensors)
    for name, array in values.items():
        old = tensors[name]
        given = torch.from_numpy(np.require(array, requirements=["C", "W"]))
        new = given.to(old.device, old.dtype, copy=True).reshape(old.shape)
        if isinstance(old, torch.nn.Parameter):
            new = torch.nn.Parameter(new, requires_grad=old.requires_grad)
        changed.update((alias, new) for alias in tied[name] if alias in changed)
    return changed


def module_of(graph: fx.Graph, tensors: Mapping[str, Any], shared: Mapping[str, tuple[str, ...]]) -> fx.GraphModule:
    """A graph as a module, trainable, with the user's parameter names."""
    root = torch.nn.Module()
    for name, tensor in tensors.items():
        _assign(root, name, tensor)
    module = fx.GraphModule(root, graph, class_name="PrunedModule")
    for target, others in shared.items():  # fx drops tied names that the graph does not use
        for name in others if target in tensors else ():
            if name not in tensors:
                _assign(module, name, tensors[target])
    return module


def _assign(module: torch.nn.Module, name: str, tensor: Any) -> None:
    *path, last = name.split(".")
    owner = module
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, torch.nn.Module())
        owner = cast("torch.nn.Module", owner._modules[part])
    if isinstance(tensor, torch.nn.Module):
        owner.add_module(last, tensor)
    elif isinstance(tensor, torch.nn.Parameter):
        owner._parameters[last] = tensor  # a plain setattr refuses to change a buffer
    else:
        owner._buffers[last] = tensor


def valued(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that has values.

    Raises:
        ModelError: It is on the meta device.
    """
    if tensor.is_meta:
        raise ModelError(WITHOUT_VALUES)
    return tensor
