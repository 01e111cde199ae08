"""Sizes that a model computes with: read off a tensor at run time, and not used as a size.

Where the size of an axis reaches data (a mean that is written as a sum over a size, an index, an output), cutting the
axis would change the number that everything else is computed with. Such axes stay whole. What becomes the size of
another tensor is rewritten by the editor, and what is known before run time is folded.

Which element of a small tensor depends on which size is found by trying: the sizes are changed, all small values are
computed again, and those that reach data are compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx

from graphprune.hosts.messages import operands_of
from graphprune.hosts.onnx.ops.values import Partial
from graphprune.hosts.onnx.shape_values import Dynamic, Shapes, evaluate_graph

_SIZES: Mapping[str, frozenset[int]] = {
    "Reshape": frozenset({1}),
    "Expand": frozenset({1}),
    "ConstantOfShape": frozenset({0}),
    "Resize": frozenset({3}),
    "Split": frozenset({1}),
}
"""Operands that hold sizes, which the editor rewrites."""


def sizes_in_data(
    graph: onnx.GraphProto, shapes: Shapes, dynamic: Dynamic, values: Mapping[str, Partial]
) -> dict[str, frozenset[int]]:
    """For each value, the static axes whose size reaches data."""
    sources = [node for node in graph.node if node.op_type in ("Shape", "Size") and node.input[0] in shapes]
    axes = {
        node.input[0]: [
            axis
            for axis, size in enumerate(shapes[node.input[0]])
            if size > 1 and axis not in dynamic.get(node.input[0], frozenset())
        ]
        for node in sources
    }
    if not any(axes.values()):
        return {}
    used = _data_uses(graph, {name for node in sources for name in node.output if axes[node.input[0]]}, values)
    if not used:
        return {}
    pairs = [(name, axis) for name, each in axes.items() for axis in each]
    if not _moved(graph, shapes, dynamic, values, used, pairs):
        return {}
    found: dict[str, set[int]] = {}
    for name, axis in pairs:
        if _moved(graph, shapes, dynamic, values, used, [(name, axis)]):
            found.setdefault(name, set()).add(axis)
    return {name: frozenset(each) for name, each in found.items()}


def _data_uses(graph: onnx.GraphProto, sizes: set[str], values: Mapping[str, Partial]) -> set[str]:
    """The small values that follow from sizes and are used as data."""
    used = {value.name for value in graph.output if value.name in sizes}
    for node in graph.node:
        operands = operands_of(node)
        if not any(name in sizes for name in operands):
            continue
        if node.output and node.output[0] in values:
            sizes.update(node.output)
            used.update(value.name for value in graph.output if value.name in node.output)
            continue
        safe = _SIZES.get(node.op_type, frozenset()) if not node.domain else frozenset()
        used.update(name for i, name in enumerate(operands) if name in sizes and i not in safe)
    return used


def _moved(
    graph: onnx.GraphProto,
    shapes: Shapes,
    dynamic: Dynamic,
    values: Mapping[str, Partial],
    used: set[str],
    pairs: Iterable[tuple[str, int]],
) -> bool:
    """Whether a value that is used changes with some sizes."""
    changed = dict(shapes)
    for n, (name, axis) in enumerate(pairs):
        shape = list(changed[name])
        shape[axis] += 1 + 2 * n  # each by another amount, so that ratios change too
        changed[name] = tuple(shape)
    again = evaluate_graph(graph, changed, dynamic)
    return any(name not in again or not np.array_equal(again[name].values, values[name].values) for name in used)
