"""Names of dynamic sizes: ``Dim("batch")`` is ``batch`` in the exported file, too, and not a number of the tracer's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

_Axes = Mapping[int, str]


def name_sizes(model: ir.Model, program: ExportedProgram, dynamic_shapes: Any) -> None:
    """Gives the symbols of an exported model the names that the user gave the sizes that they stand for.

    Args:
        model: The exported model; its shapes are changed.
        program: What it was exported from.
        dynamic_shapes: As for ``torch.export``.
    """
    names = _symbols(program, dynamic_shapes)
    names = {symbol: name for symbol, name in names.items() if symbol != name}
    if not names:
        return
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    values = [*model.graph.inputs, *model.graph.outputs, *(value for node in model.graph for value in node.outputs)]
    for value in values:
        for axis, size in enumerate(value.shape or ()):
            if isinstance(size, ir.SymbolicDim) and size.value and value.shape is not None:
                renamed = pattern.sub(lambda found: names[found[0]], size.value)
                if renamed != size.value:
                    value.shape[axis] = renamed


def _symbols(program: ExportedProgram, dynamic_shapes: Any) -> dict[str, str]:
    """By the tracer's symbol of a size: the name of the ``Dim`` that the user wrote there."""
    args, kwargs = program.example_inputs or ((), {})
    wanted = set(program.graph_signature.user_inputs)
    nodes = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in wanted]
    if isinstance(dynamic_shapes, Mapping):
        keys = [*dynamic_shapes]
        specs: list[Any] = [dynamic_shapes[key] for key in keys]
        values = [*args, *kwargs.values()]
        if len(values) != len(specs):
            return {}
        if kwargs:  # keyword arguments may be named in another order
            specs = [*specs[: len(args)], *(dynamic_shapes.get(key) for key in kwargs)]
    elif isinstance(dynamic_shapes, Sequence):
        specs, values = [*dynamic_shapes], [*args, *kwargs.values()]
    else:
        return {}
    found: dict[str, str] = {}
    axes = [each for value, spec in zip(values, specs, strict=False) for each in _axes(value, spec)]
    for node, named in zip(nodes, axes, strict=False):
        shape = getattr(node.meta.get("val"), "shape", ())
        for axis, name in named.items():
            symbol = str(shape[axis]) if axis < len(shape) else ""
            if symbol.isidentifier():
                found.setdefault(symbol, name)
    return found


def _axes(value: Any, spec: Any) -> Iterator[_Axes]:
    """For each leaf of an argument: the names of its axes."""
    if isinstance(value, torch.Tensor):
        pairs = spec.items() if isinstance(spec, Mapping) else enumerate(spec or ())
        names = ((axis, getattr(dim, "__name__", "")) for axis, dim in pairs)
        yield {axis: name for axis, name in names if isinstance(name, str) and name.isidentifier()}
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _axes(item, spec.get(key) if isinstance(spec, Mapping) else None)
    elif isinstance(value, list | tuple):
        specs = spec if isinstance(spec, list | tuple) and len(spec) == len(value) else [None] * len(value)
        for item, each in zip(value, specs, strict=True):
            yield from _axes(item, each)
    else:
        yield from ({} for _ in pytree.tree_leaves(value))
