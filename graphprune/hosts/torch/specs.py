"""What the graph needs to know of tensors: shapes, types and dynamic axes, read once and kept with the nodes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import fx

from graphprune.ir.rule import Shape

SPEC, LOCATION = "graphprune_spec", "graphprune_location"
_NO_HINT = 7  # stands for a size without example, such as the number of nonzero elements


class Spec(NamedTuple):
    """What the graph needs to know of a tensor.

    Attributes:
        shape: Sizes; of a dynamic axis the size in the example.
        dtype: The element type (``float32``).
        itemsize: Bytes of one element.
        dynamic: The dynamic axes, each with the static factor of its size: ``12`` for ``batch * 12``, or 0 where the
            size is no such product.
    """

    shape: Shape
    dtype: str
    itemsize: float
    dynamic: tuple[tuple[int, int], ...] = ()


Specs: TypeAlias = "Spec | tuple[Spec | None, ...] | None"


def spec_of(tensor: torch.Tensor, seen: Shape | None = None) -> Spec:
    """The spec of a real, fake or meta tensor; ``seen`` is the shape that a run of the example found."""
    shape: list[int] = []
    dynamic: list[tuple[int, int]] = []
    for axis, size in enumerate(tensor.shape):
        if isinstance(size, int):
            shape.append(size)
            continue
        hint, static = _symbolic(size, None if seen is None else seen[axis])
        shape.append(hint)
        dynamic.append((axis, static))
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Spec(tuple(shape), dtype, tensor.element_size(), tuple(dynamic))


def has_example(tensor: torch.Tensor) -> bool:
    """Whether all sizes of a tensor are known of the example; those that depend on values are not."""
    return all(isinstance(size, int) or size.node.has_hint() for size in tensor.shape)


def _symbolic(size: torch.SymInt, seen: int | None) -> tuple[int, int]:
    """The example value of a symbolic size and the static factor in it."""
    node = size.node
    hint = node.hint if node.has_hint() else seen
    if hint is None:  # every size of the graph that follows from it must fit
        hint = node.expr.xreplace(dict.fromkeys(node.expr.free_symbols, _NO_HINT))
    try:
        value = int(hint)
    except TypeError:
        value = _NO_HINT
    try:
        static = int(node.expr.as_coeff_Mul()[0])
    except (TypeError, ValueError, AttributeError):
        static = 0
    return value, static if static > 0 and value % static == 0 else 0


def annotate(graph: fx.Graph, tensors: Mapping[str, Any], seen: Mapping[fx.Node, Any] | None = None) -> None:
    """Notes the spec of every value at its node and drops the exporter's fake tensors.

    Args:
        graph: The graph.
        tensors: What its ``get_attr`` nodes stand for.
        seen: Shapes of values that a run of the example found, where sizes depend on values.
    """
    for node in graph.nodes:
        if node.op == "get_attr":
            value = tensors[str(node.target)]
        else:
            value = node.meta.get("val")
        trace, stack = node.meta.get("stack_trace"), node.meta.get("nn_module_stack")
        node.meta = {SPEC: _specs(value, (seen or {}).get(node))}
        if trace:
            node.meta |= {"stack_trace": trace, LOCATION: _user_line(trace)}
        if stack:
            node.meta["nn_module_stack"] = stack


def _specs(value: object, seen: Any) -> Specs:
    if isinstance(value, torch.Tensor):
        return spec_of(value, seen)
    if isinstance(value, list | tuple):
        shapes = seen or (None,) * len(value)
        return tuple(
            spec_of(item, shape) if isinstance(item, torch.Tensor) else None
            for item, shape in zip(value, shapes, strict=True)
        )
    return None


def attribute(module: torch.nn.Module, name: str) -> Any:
    """What a dotted name stands for in a module."""
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part)
    return found


_TORCH = str(Path(torch.__file__).parent) + os.sep


_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


@lru_cache(maxsize=4096)
def _user_line(trace: str) -> str:
    """The last frame of a stack trace that is not torch's own: ``model.py line 41``."""
    frames = _FRAME.findall(trace)
    users = [frame for frame in frames if not frame[0].startswith(_TORCH)] or frames
    return f"{PurePath(users[-1][0]).name} line {users[-1][1]}" if users else ""


def storage_key(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are the same memory seen in the same way: tied parameters."""
    try:
        storage = tensor.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):
        return (id(tensor),)
    return (storage, tensor.storage_offset(), tensor.shape, tensor.stride())


def output_nodes(graph: fx.Graph) -> Iterator[fx.Node | None]:
    """The nodes of the outputs, in order; ``None`` where an output is no tensor."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    returned = output.args[0]
    for item in returned if isinstance(returned, list | tuple) else (returned,):
        yield item if isinstance(item, fx.Node) and isinstance(item.meta[SPEC], Spec) else None
