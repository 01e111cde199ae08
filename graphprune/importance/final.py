"""What makes an output what it is, found on the graph: probabilities, unit vectors, scores of tokens or classes.

A model that ends in a softmax gives probabilities, which are no logits: the softmax of them is nearly flat, and hides
what a cut does. Their logarithms are logits, up to a shift that no softmax sees. So are those of a sigmoid, for each
element on its own. What comes after (casts, transposes, joins) is followed with the axis of the classes. Names say
nothing here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.ir.dims import factors_of
from graphprune.ir.graph import Graph, Node

Array = NDArray[Any]
Makers = Mapping[str, Node]
"""By value: the node that it is a result of."""
Known = dict[str, "list[Final]"]
"""By value: what makes it what it is."""

_PROBABLE = frozenset({"softmax", "log-softmax", "sigmoid"})
_SAME = frozenset({"copy", "dropout", "quantize"})
_MOVED = frozenset({"view", "turn"})
_BOUNDED = frozenset({"bound", *_SAME, *_MOVED})
"""Roles of what stands between a norm and the division by it, beside a sum with a small number."""
_MOST_PARTS = 256
"""An output of more parts is taken as one."""
_DEEPEST = 64
"""So many nodes from the end are looked at, at most."""
_MANY = 4
"""A last layer with so many times more rows than inputs gives scores of classes: values would follow from each other.
"""


@dataclass(frozen=True)
class Final:
    """What makes an output, or a part of it, what it is.

    Attributes:
        output: The output.
        node: The node that makes it so.
        kind: ``softmax``, ``log-softmax``, ``sigmoid``, ``unit`` (vectors of length one), ``tokens`` (as many scores as
            the model looks tokens up in), ``many`` (many more rows of a last layer than it has inputs, at each step),
            ``scores`` (one row of a last layer for each sample), or empty: unknown.
        axis: The axis of the output along which probabilities sum to one, or vectors lie; -1 for a sigmoid.
        part: The axis and the first and last-but-one position of the part that this is about; ``None``: all of it.
    """

    output: str
    node: str
    kind: str
    axis: int = -1
    part: tuple[int, int, int] | None = None

    @property
    def binary(self) -> bool:
        """Whether each element is a probability on its own."""
        return self.kind == "sigmoid"

    @property
    def probable(self) -> bool:
        """Whether a node makes probabilities of logits."""
        return self.kind in _PROBABLE

    def before(self, output: Array) -> Array:
        """The logits, in the precision of the output, with the classes along the last axis."""
        if self.kind not in ("softmax", "sigmoid"):
            logs: Array = np.moveaxis(output, self.axis, -1)
            return logs
        least = np.finfo(output.dtype).tiny
        logs = np.log(np.maximum(output, least))
        if self.binary:
            return np.asarray(logs - np.log(np.maximum(1 - output, np.finfo(output.dtype).epsneg)))
        return np.moveaxis(logs, self.axis, -1)


def floating(graph: Graph) -> list[str]:
    """The floating-point outputs, in order."""
    return [name for name in dict.fromkeys(graph.outputs) if "float" in graph.values[name].dtype]


def finals_of(graph: Graph, output: str) -> tuple[Final, ...]:
    """What makes an output what it is: one for all of it, or one for each part that was joined."""
    makers = {name: node for node in graph.nodes for name in node.results if name is not None}
    found = _ending(graph, makers, output, _DEEPEST, {})
    if len(found) == 1 and not found[0].kind:
        shape = graph.values[output].shape
        if len(shape) >= 2 and shape[-1] in vocabularies(graph):
            found = [Final(output, "", "tokens", len(shape) - 1)]
        elif len(shape) == 2 and shape[1] > 1 and _last_layer(graph, makers, output) is not None:
            found = [Final(output, "", "scores", 1)]
        elif len(shape) > 2 and (axis := _axis_of_many(graph, makers, output)) is not None:
            found = [Final(output, "", "many", axis)]
    return tuple(replace(each, output=output) for each in found)


def on_the_way(graph: Graph) -> frozenset[str]:
    """Outputs that other outputs are computed of: hidden states, keys and values of a decoder."""
    outputs, behind = set(graph.outputs), set[str]()
    needed: set[str] = set()
    for node in reversed(graph.nodes):
        results = {name for name in node.results if name is not None}
        if not needed.isdisjoint(results) or not outputs.isdisjoint(results):
            operands = {name for name in node.operands if name is not None}
            behind |= operands & outputs
            needed |= operands
    return frozenset(behind)


def vocabularies(graph: Graph) -> set[int]:
    """How many rows the tables have that whole numbers among the inputs are looked up in."""
    tokens = {name for name in graph.inputs if "int" in graph.values[name].dtype}
    for node in graph.nodes:  # casts and the like of tokens
        if len(node.operands) == 1 and node.operands[0] in tokens:
            tokens.update(name for name in node.results if name)
    return {
        graph.values[name].shape[0]
        for node in graph.nodes
        if tokens.intersection(node.operands)
        for name in node.operands
        if name and graph.values[name].stored and len(graph.values[name].shape) == 2
    }


def _ending(graph: Graph, makers: Makers, name: str, depth: int, known: Known) -> list[Final]:
    """What makes a value what it is, with axes of this value.

    Args:
        graph: The graph.
        makers: Its nodes by what they make.
        name: The value.
        depth: So many nodes before it are looked at.
        known: What was found of other values: joins of joins lead to the same ones over and over.
    """
    if name not in known:
        known[name] = _found_ending(graph, makers, name, depth, known)
    return known[name]


def _found_ending(graph: Graph, makers: Makers, name: str, depth: int, known: Known) -> list[Final]:
    unknown = [Final(name, "", "")]
    node = makers.get(name)
    if node is None or not depth:
        return unknown
    if node.role in _PROBABLE:
        axis = -1 if node.role == "sigmoid" else _axis(node)
        return unknown if axis is None else [Final(name, node.name, node.role, axis)]
    if node.role == "unit" or (node.multiple == "quotient" and _norm_under(makers, node)):
        axis = _unit_axis(makers, node)
        return unknown if axis is None else [Final(name, node.name, "unit", axis)]
    if node.role == "join":
        return _joined(graph, makers, node, name, depth, known) or unknown
    first = node.operands[0] if node.operands else None
    if first is None or node.role not in _SAME | _MOVED:
        return unknown
    found = _ending(graph, makers, first, depth - 1, known)
    if node.role in _SAME:
        return found
    moved = [_carried(node, each, node.results.index(name)) for each in found]
    return unknown if None in moved else [each for each in moved if each is not None]


def _carried(node: Node, final: Final, result: int) -> Final | None:
    """What is known of an operand, with the axes of a result; ``None`` where an axis is not one there."""
    if node.rule is None or (before := node.rule.operands[0]) is None or (after := node.rule.results[result]) is None:
        return final if final.binary and final.part is None else None

    def at(axis: int) -> int | None:
        found = [i for i, dim in enumerate(after) if dim == before[axis]]
        return found[0] if len(found) == 1 else None

    axis = final.axis if final.binary or not final.kind else at(final.axis)
    part = None if final.part is None else at(final.part[0])
    if axis is None or (final.part is not None and part is None):
        return None
    moved = None if final.part is None or part is None else (part, *final.part[1:])
    return replace(final, axis=axis, part=moved)


def _joined(graph: Graph, makers: Makers, node: Node, name: str, depth: int, known: Known) -> list[Final] | None:
    """Parts that end alike as one, others each with its place; ``None`` where places are not known."""
    operands = [each for each in node.operands if each is not None]
    shape, shapes = graph.values[name].shape, [graph.values[each].shape for each in operands]
    axes = [i for i, size in enumerate(shape) if size != shapes[0][i]] if len(shape) == len(shapes[0]) else []
    if len(axes) != 1:
        return None
    axis, start, found = axes[0], 0, list[Final]()
    for operand, its in zip(operands, shapes, strict=True):
        for each in _ending(graph, makers, operand, depth - 1, known):
            if each.part is not None and each.part[0] != axis:
                return None
            first, last = each.part[1:] if each.part is not None else (0, its[axis])
            found.append(replace(each, part=(axis, start + first, start + last)))
        start += its[axis]
        if len(found) > _MOST_PARTS:
            return None
    kinds = {(each.kind, each.axis) for each in found}
    if len(kinds) == 1 and (found[0].binary or not found[0].kind or found[0].axis != axis):
        return [replace(found[0], part=None)]
    fixed = axis not in graph.values[name].dynamic and all(its[axis] for its in shapes)
    return _merged(found) if fixed else None


def _merged(found: Iterable[Final]) -> list[Final]:
    """Neighbours that nothing is known of, and neighbouring probabilities, as one."""
    result = list[Final]()
    for each in found:
        last = result[-1] if result else None
        alike = last is not None and (last.kind, last.axis) == (each.kind, each.axis) and each.kind in ("", "sigmoid")
        if alike and last is not None and last.part is not None and each.part is not None:
            result[-1] = replace(last, part=(*last.part[:2], each.part[2]))
        else:
            result.append(each)
    return result


def _axis(node: Node) -> int | None:
    """The axis that a softmax runs over."""
    layout = node.rule.operands[0] if node.rule is not None else None
    if node.rule is None or layout is None:
        return None
    axes = [i for i, dim in enumerate(layout) if not node.rule.choices.keys().isdisjoint(factors_of(dim))]
    if not axes and len(layout) == 2:  # of opsets in which it ran over all axes from one on
        return 1
    return axes[0] if len(axes) == 1 else None


def _norm_under(makers: Makers, node: Node) -> Node | None:
    """The norm of its own dividend that a division is by."""
    above, name = node.operands[0], node.operands[1] if len(node.operands) > 1 else None
    for _ in range(_DEEPEST):
        maker = makers.get(name) if name is not None else None
        if maker is None:
            return None
        if maker.role == "norm" or (maker.role == "sum" and _squared(makers, maker, above)):
            return maker if maker.role == "sum" or maker.operands[0] == above else None
        if maker.role not in _BOUNDED and not maker.addends:
            return None
        name = next((each for each in maker.operands if each in makers), None)
    return None


def _squared(makers: Makers, total: Node, above: str | None) -> bool:
    """Whether a sum is that of the squares of a value."""
    square = makers.get(total.operands[0] or "")
    if square is None or not (square.role == "square" or square.multiple == "product"):
        return False
    operands = [each for each in square.operands if each is not None]
    return operands[:1] == [above] and (square.role == "square" or operands == [above, above])


def _unit_axis(makers: Makers, node: Node) -> int | None:
    """The one axis along which vectors are brought to length one."""
    summed = node if node.role == "unit" else _norm_under(makers, node)
    rule = None if summed is None else summed.rule
    if rule is None or (before := rule.operands[0]) is None:
        return None
    if summed is node:
        axes = [i for i, dim in enumerate(before) if not rule.normalized.isdisjoint(factors_of(dim))]
    else:
        kept = {factor for dim in rule.results[0] or () for factor in factors_of(dim)}
        lost = [i for i, dim in enumerate(before) if kept.isdisjoint(factors_of(dim))]
        axes = [i for i in lost if any(factor.size > 1 for factor in factors_of(before[i]))]
    return axes[0] if len(axes) == 1 else None


def _last_layer(graph: Graph, makers: Makers, name: str) -> Node | None:
    """The last layer with weights that a value comes from: a product with a stored tensor, shifted and scaled."""
    for node in _back(graph, makers, name):
        if node.rule is not None and node.rule.macs:
            stored = any(each is not None and _is_stored(graph, makers, each) for each in node.operands)
            return node if stored else None
    return None


def _axis_of_many(graph: Graph, makers: Makers, name: str) -> int | None:
    """The axis of an output along which a last layer's rows lie, if it has many times more of them than inputs."""
    node = _last_layer(graph, makers, name)
    if node is None or node.rule is None or node.rule.results[0] is None:
        return None
    made = {factor for dim in node.rule.results[0] for factor in factors_of(dim)}
    for layout, operand in zip(node.rule.operands, node.operands, strict=False):
        if layout is None or operand is None or not _is_stored(graph, makers, operand):
            continue
        factors = [factor for dim in layout for factor in factors_of(dim)]
        n_rows = prod(factor.size for factor in factors if factor in made)
        inputs = [factor.size for factor in factors if factor not in made]
        axes = [i for i, size in enumerate(graph.values[name].shape) if size == n_rows]
        if inputs and n_rows >= _MANY * prod(inputs) and len(axes) == 1:
            return axes[0]
    return None


def _back(graph: Graph, makers: Makers, name: str) -> Iterator[Node]:
    """The nodes from a value back, up to the first that is no cast, move, pooling, shift or scale."""
    for _ in range(_DEEPEST):
        node = makers.get(name)
        if node is None:
            return
        yield node
        computed = [each for each in node.operands if each is not None and not _is_stored(graph, makers, each)]
        if not computed or not (
            node.role in _SAME | _MOVED | {"pool"} or ((node.addends or node.multiple) and len(computed) == 1)
        ):
            return
        name = computed[0]


def _is_stored(graph: Graph, makers: Makers, name: str) -> bool:
    """Whether a value is stored, or made of stored ones alone."""
    for _ in range(_DEEPEST):
        if graph.values[name].stored:
            return True
        node = makers.get(name)
        operands = [] if node is None else [each for each in node.operands if each is not None]
        if not operands or not all(graph.values[each].stored for each in operands[1:]):
            return False
        name = operands[0]
    return False


def binary_divergence(wanted: Array, found: Array) -> float:
    """The mean Kullback-Leibler divergence of Bernoulli distributions, from logits, in float64."""
    a, b = (each.astype(np.float64) for each in (wanted, found))
    p = 0.5 * (1 + np.tanh(0.5 * a))
    return float(np.mean(p * (a - b) + np.logaddexp(0, b) - np.logaddexp(0, a)))
