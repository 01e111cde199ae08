"""The graph of a module that was given another element type since it was pruned, by ``half()`` or ``bfloat16()``.

Types are written in a traced graph (casts, tensors made from nothing), so that the module is traced anew, on the
example of its graph with floating-point inputs of the types that the weights have now.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from graphprune.errors import GraphpruneError, OutputError, first_line
from graphprune.hosts.torch.host import TorchHost
from graphprune.hosts.torch.stored import named_tensors
from graphprune.hosts.torch.trace import Example, inference


def as_it_is(host: TorchHost, module: torch.nn.Module, former: Callable[[str], str] = str) -> tuple[TorchHost, bool]:
    """The graph of a module that was made of a host, with the values and types that it has now.

    Args:
        host: The host.
        module: The module, which may have been trained or changed its type since.
        former: From names in the module to those in the host, where they differ.

    Returns:
        The host with the module's values, and whether types have changed.

    Raises:
        OutputError: The module was rebuilt since, or it does not run with the types that it has.
    """
    named = {former(name): tensor for name, tensor in named_tensors(module).items()}
    types = _types(host, named)
    if all(new == {old} for old, new in types.items()):
        return host.with_values_of(named), False
    host.with_values_of(named)  # says what else has changed
    reason = ""
    for example in _examples(host.example, types):
        try:
            with inference(module):
                module(*example[0], **example[1])
            given = as_one(module, example)
            return TorchHost.trace(module, given, host.dynamic_shapes).folded().without_dead_nodes(), True
        except Exception as error:  # noqa: BLE001  (operators raise what they like about types)
            reason = reason or (str(error) if isinstance(error, GraphpruneError) else first_line(error))
    now = sorted({_named(new) for each in types.values() for new in each})
    raise OutputError(
        f"the module's weights are of type {' and '.join(now)} now, and so it cannot be traced: {reason}; convert all "
        "of it (module.half()), or let its forward cast between layers of several types"
    )


def _types(host: TorchHost, now: Mapping[str, torch.Tensor]) -> dict[torch.dtype, set[torch.dtype]]:
    """For each floating-point type of the host's tensors: what has become of it in the module."""
    found: dict[torch.dtype, set[torch.dtype]] = {}
    for name in host.tied:
        old, new = host.tensor(name), now.get(name)
        if new is not None and old.is_floating_point():
            found.setdefault(old.dtype, set()).add(new.dtype)
    return found


def _examples(example: Example, types: dict[torch.dtype, set[torch.dtype]]) -> list[Example]:
    """The example in the types of the weights; where those have become several: as it was, then in each of them."""
    if all(len(new) == 1 for new in types.values()):
        return [_cast(example, {old: next(iter(new)) for old, new in types.items()})]
    ways = sorted({new for each in types.values() for new in each}, key=_named)
    return [example, *(_cast(example, dict.fromkeys(types, new)) for new in ways)]


def _cast(example: Example, types: dict[torch.dtype, torch.dtype]) -> Example:
    def cast(leaf: Any) -> Any:
        return leaf.to(types.get(leaf.dtype, leaf.dtype)) if isinstance(leaf, torch.Tensor) else leaf

    args, kwargs = pytree.tree_map(cast, example)
    return args, kwargs


def as_one(module: torch.nn.Module, example: Example) -> tuple[Any, ...] | dict[str, Any]:
    """Arguments as :meth:`TorchHost.trace` takes them: all by position, or all by name."""
    args, kwargs = example
    if not kwargs:
        return args
    return dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments) if args else dict(kwargs)


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
