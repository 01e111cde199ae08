"""Probabilities at the end of a model: found on the graph, and judged as what they were made of.

A model that ends in a softmax gives probabilities, which are no logits: the softmax of them is nearly flat, and hides
what a cut does. Their logarithms are logits, up to a shift that no softmax sees. So are those of a sigmoid, for each
element on its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.ir.dims import factors_of
from graphprune.ir.graph import Graph, Node

Array = NDArray[Any]

_KINDS = {"softmax": "softmax", "safesoftmax": "softmax", "logsoftmax": "logsoftmax", "sigmoid": "sigmoid"}
_SAME = frozenset({"identity", "cast", "clone", "tocopy", "to", "alias", "contiguous", "detach"})
_MOVED = frozenset({"reshape", "squeeze", "unsqueeze", "flatten", "view", "transpose", "permute"})


@dataclass(frozen=True)
class Final:
    """What makes an output a probability.

    Attributes:
        output: The output.
        node: The node that makes it one.
        kind: ``softmax``, ``logsoftmax`` or ``sigmoid``.
        axis: The axis of the output along which probabilities sum to one; -1 for a sigmoid.
    """

    output: str
    node: str
    kind: str
    axis: int = -1

    @property
    def binary(self) -> bool:
        """Whether each element is a probability on its own."""
        return self.kind == "sigmoid"

    def before(self, output: Array) -> Array:
        """The logits, in the precision of the output, with the classes along the last axis."""
        if self.kind == "logsoftmax":
            logs: Array = np.moveaxis(output, self.axis, -1)
            return logs
        least = np.finfo(output.dtype).tiny
        logs = np.log(np.maximum(output, least))
        if self.binary:
            return np.asarray(logs - np.log(np.maximum(1 - output, np.finfo(output.dtype).epsneg)))
        return np.moveaxis(logs, self.axis, -1)


def final_of(graph: Graph) -> Final | None:
    """What makes the first floating-point output a probability, if anything does."""
    output = next((name for name in graph.outputs if "float" in graph.values[name].dtype), None)
    makers = {name: node for node in graph.nodes for name in node.results if name is not None}
    name, moved = output, False
    while output is not None and name is not None and (node := makers.get(name)) is not None:
        called = _called(node)
        if kind := _KINDS.get(called):
            axis = -1 if kind == "sigmoid" else _axis(node)
            return None if axis is None or (moved and kind != "sigmoid") else Final(output, node.name, kind, axis)
        if called not in _SAME | _MOVED:
            return None
        moved = moved or called in _MOVED
        name = node.operands[0]
    return None


def _called(node: Node) -> str:
    """The operator's name without its namespace, overload and underscores, in lower case."""
    op = node.op.rpartition("::")[2]
    return (op.split(".")[1] if op.startswith("aten.") else op).lower().replace("_", "")


def _axis(node: Node) -> int | None:
    """The axis that a softmax runs over."""
    layout = node.rule.operands[0] if node.rule is not None else None
    if node.rule is None or layout is None:
        return None
    axes = [i for i, dim in enumerate(layout) if not node.rule.choices.keys().isdisjoint(factors_of(dim))]
    if not axes and len(layout) == 2:  # of opsets in which it ran over all axes from one on
        return 1
    return axes[0] if len(axes) == 1 else None


def binary_divergence(wanted: Array, found: Array) -> float:
    """The mean Kullback-Leibler divergence of Bernoulli distributions, from logits, in float64."""
    a, b = (each.astype(np.float64) for each in (wanted, found))
    p = 0.5 * (1 + np.tanh(0.5 * a))
    return float(np.mean(p * (a - b) + np.logaddexp(0, b) - np.logaddexp(0, a)))
