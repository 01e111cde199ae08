"""Consumers: the nodes that read the units of a group through a stored weight, and their weighted sums as matrices.

A consumer contracts an axis of an activation with an axis of a weight. Removing units removes columns of that weight,
which is where their loss is felt, where it is measured, and where it can be made good. Consumers are read off the
rules of the nodes: an axis that occurs in the activation and in the weight and not in the result, whatever the sizes of
the others. What contracts an axis and is no consumer has a reason, which ``readers.py`` hands on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from graphprune.analysis.adapters import find_adapters
from graphprune.analysis.groups import Analysis, Group
from graphprune.hosts.host import AnyRefittable, Array, Refittable
from graphprune.hosts.windows import Window
from graphprune.ir.dims import ONE, Dim, Factor, Layout, factors_of
from graphprune.ir.graph import Graph, Node
from graphprune.statistics.products import real


class Source(NamedTuple):
    """What moments are taken of; consumers of one activation share them.

    Attributes:
        value: A value.
        axis: Its axis; ``None``: one number at each position.
        groups: In how many groups.
        window: Through which window.
    """

    value: str
    axis: int | None
    groups: int = 1
    window: Window | None = None


@dataclass(frozen=True)
class Consumer:
    """A weighted sum over an axis of an activation: ``y[.., (g r)] = Σ_c x[.., (g c)] a w[(g r), c] + b``.

    Attributes:
        node: The node.
        value: The activation.
        axis: Its axis that is summed over.
        weight: The stored weight.
        column_axis: The weight's axis that is summed over.
        row_axis: The weight's axis that stays; ``None`` for a vector, which has one row.
        result: The node's result.
        channel: The axis of the result along which the rows lie; ``None`` where the one row has no axis.
        groups: How many groups a grouped convolution has; one otherwise.
        window: Of a convolution: what it sees at each position.
        bias: The stored bias that is added to the result, wherever the graph does it, if there is one.
        target: What a refit should restore: the result, or, where nothing else reads it, the sum of a residual
            branch that it is added to.
        skip: What the result is added to there.
        uses: How many nodes read the weight.
        bias_uses: How many nodes read the bias.
        scale: What the node multiplies the sum by (``a``); :meth:`matrix` has it in.
    """

    node: str
    value: str
    axis: int
    weight: str
    column_axis: int
    row_axis: int | None
    result: str
    channel: int | None
    groups: int = 1
    window: Window | None = None
    bias: str | None = None
    target: str = ""
    skip: str | None = None
    uses: int = 1
    bias_uses: int = 1
    scale: float = 1.0

    @property
    def source(self) -> Source:
        """What its moments are taken of; consumers of one activation share them."""
        return Source(self.value, self.axis, self.groups, self.window)

    @property
    def plain(self) -> bool:
        """Whether the weight is read by this node only."""
        return self.uses == 1

    @property
    def _turned(self) -> bool:
        """Whether the weight is one of a transposed convolution: ``(g c) r *kernel``, the kernel back to front."""
        return self.window is not None and bool(self.window.spread)

    def matrix(self, weight: Array) -> NDArray[np.float64]:
        """The weight as ``[g, rows, columns]``; columns run over channels first, then positions of the window."""
        return self.table(weight).astype(np.float64) * self.scale

    def table(self, weight: Array) -> Array:
        """The weight as it is stored, laid out as in :meth:`matrix`: a view of it where there can be one."""
        table: Array
        if self._turned:
            kernel = weight.shape[2:]
            table = weight.reshape(self.groups, -1, weight.shape[1], *kernel)
            table = np.flip(table, tuple(range(3, table.ndim))).swapaxes(1, 2)
            table = table.reshape(self.groups, weight.shape[1], -1)
        elif self.row_axis is None:
            table = weight.reshape(1, 1, -1)
        else:
            table = np.moveaxis(weight, (self.row_axis, self.column_axis), (0, 1))
            table = table.reshape(self.groups, table.shape[0] // self.groups, -1)
        return table

    def weight_of(self, matrix: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
        """The weight of this shape whose :meth:`matrix` it is."""
        matrix = matrix if self.scale == 1 else matrix / self.scale
        if self._turned:
            table = matrix.reshape(self.groups, shape[1], -1, *shape[2:]).swapaxes(1, 2)
            found: NDArray[np.float64] = np.flip(table, tuple(range(3, table.ndim))).reshape(shape)
            return found
        if self.row_axis is None:
            return matrix.reshape(shape)
        moved = np.moveaxis(np.empty(shape, np.bool_), (self.row_axis, self.column_axis), (0, 1)).shape
        return np.moveaxis(matrix.reshape(moved), (0, 1), (self.row_axis, self.column_axis))

    def rows_of(self, result: Array, pick: NDArray[np.int64] | None) -> Array:
        """Some positions of the result (or the target) as ``[n, (g r)]``."""
        return _positions(result, self.channel, pick)


def _positions(x: Array, axis: int | None, pick: NDArray[np.int64] | None) -> Array:
    """Some positions of a value as ``[n, d]``, where ``d`` lies along an axis; nothing else is copied."""
    table = x[..., None] if axis is None else np.moveaxis(x, axis, -1)
    if pick is None or table.flags.c_contiguous:
        table = table.reshape(-1, table.shape[-1])
        return real(table if pick is None else table[pick])
    return real(table[np.unravel_index(pick, table.shape[:-1])])


def inputs_of(source: Source, activation: Array, pick: NDArray[np.int64] | None) -> Array:
    """Some positions of an activation as ``[n, g, columns]``, the order of columns as in :meth:`Consumer.matrix`."""
    _, axis, groups, window = source
    if window is None:
        table = _positions(activation, axis, pick)
        return table.reshape(len(table), groups, -1)
    seen = window.view(activation)
    places = seen.shape[:1] + seen.shape[2 : 2 + len(window.kernel)]
    index = np.unravel_index(np.arange(prod(places)) if pick is None else pick, places)
    table = np.moveaxis(seen, 1, -1 - len(window.kernel))[tuple(index)]
    return real(table).reshape(len(table), groups, -1)


def count_of(source: Source, activation: Array) -> int:
    """How many positions :func:`inputs_of` can pick from."""
    if source.window is None:
        return int(activation.size // (1 if source.axis is None else activation.shape[source.axis]))
    return source.window.places(activation.shape)


def find_consumers(host: Refittable, graph: Graph, values: Iterable[str] | None = None) -> tuple[Consumer, ...]:
    """All consumers of a graph in order, or those that read ``values``."""
    wanted = None if values is None else frozenset(values)
    found = (each for each in look(host, graph).values() if isinstance(each, Consumer))
    return tuple(each for each in found if wanted is None or each.value in wanted)


def look(host: Refittable, graph: Graph) -> dict[str, Consumer | str]:
    """For each node, by name and in order: the consumer that it is, or why it is none, as part of a sentence."""
    return {node.name: _consumer(host, graph, node) for node in graph.nodes}


def with_biases(host: AnyRefittable, nodes: Collection[str]) -> tuple[AnyRefittable, list[Consumer]]:
    """A copy in which consumers that can have a bias of their own have one (zeros), and its consumers at some nodes.

    The inner product of an adapter gets none: merging the adapter, which knows two matrices only, would forget it.
    """
    inner = {adapter.inner for adapter in find_adapters(host.graph())}
    found = [each for each in find_consumers(host, host.graph()) if each.node in nodes]
    bare = {each.node: each.channel for each in found if each.bias is None and each.plain and each.node not in inner}
    if bare:
        host = host.biased(bare)
        found = [each for each in find_consumers(host, host.graph()) if each.node in nodes]
    return host, found


_MOVES = ("turn", "copy")
"""Roles of operators through which exporters hand a stored weight to the node that uses it."""


def _origin(graph: Graph, name: str, layout: Layout) -> tuple[str, Layout, int]:
    """The stored tensor that an operand is a turned or cast copy of, as it lies there; and how often it is read."""
    uses = len(graph.readers(name))
    while (maker := graph.producer(name)) is not None and maker.rule is not None:
        source = maker.operands[0] if maker.operands else None
        if source is None or maker.role not in _MOVES or maker.results[0] != name:
            break
        before, after = maker.rule.operands[0], maker.rule.results[0]
        if before is None or after is None or (len(before) > 2 and before != after):
            break  # the axes of a kernel have an order
        layout = tuple(layout[after.index(dim)] for dim in before)
        name = source
        uses = max(uses, len(graph.readers(name)))
    return name, layout, uses


def _consumer(host: Refittable, graph: Graph, node: Node) -> Consumer | str:
    rule = node.rule
    if rule is None:
        return "its operator has no rule"
    if node.optional:
        return "it lies in a branch that need not run"
    if any(_quantized(graph, name) for name in node.operands):
        return "its weights are whole numbers"
    if rule.reads:
        return "it looks positions up"
    laid_out = [
        (name, layout)
        for name, layout in zip(node.operands, rule.operands, strict=False)
        if name is not None and layout is not None
    ]
    origins = [_origin(graph, name, layout) for name, layout in laid_out]
    computed = sum(graph.values[origin].kind in ("computed", "input") for origin, _, _ in origins)
    stored = [each for each in origins if graph.values[each[0]].kind == "parameter" and each[1]]
    if not stored or not rule.macs:
        return "it multiplies what is computed" if rule.macs and computed > 1 else "it is no sum with weights"
    if len(node.results) != 1 or node.results[0] is None or rule.results[0] is None:
        return "it has several results"
    result, kept = node.results[0], {f for dim in rule.results[0] for f in factors_of(dim)}
    weights = [each for each in stored if not kept.issuperset(f for dim in each[1] for f in factors_of(dim))]
    others = [
        each
        for each, (origin, _, _) in zip(laid_out, origins, strict=True)
        if graph.values[each[0]].kind in ("computed", "input") and not graph.values[origin].stored
    ]
    if len(weights) != 1 or len(others) != 1:
        return "it is no product with one weight"
    (weight, of_weight, uses), (value, of_value) = weights[0], others[0]
    in_weight = {f for dim in of_weight for f in factors_of(dim)}
    summed = {f for dim in of_value for f in factors_of(dim)} & in_weight - kept
    if not summed:
        return "it sums over nothing that its weight has"
    axis = _only(of_value, summed)
    column_axis = _only(of_weight, summed)
    in_value = {f for dim in of_value for f in factors_of(dim)}
    rows = (kept & in_weight) - in_value
    scale, bias_scale = host.scales(node.name)
    window = host.window(node.name)
    if axis is None or column_axis is None or scale == 0:
        return "it sums over several axes at once"
    if rows:
        row_axis, channel = _only(of_weight, rows), _only(rule.results[0], rows)
    elif window is not None:
        row_axis, channel = 1 - column_axis, axis  # the kernel's first two axes, and where channels lie
    else:
        row_axis, channel = _row_of_one(of_weight, rule.results[0])
    if (row_axis is None) != (len(of_weight) == 1) or (channel is None) != (row_axis is None):
        return "its weight is no matrix"
    shared = [f for f in factors_of(of_value[axis]) if f not in summed]
    groups = prod(f.size for f in shared)
    lengths = () if row_axis is None or channel is None else (of_weight[row_axis].size, rule.results[0][channel].size)
    if window is None and len(set(lengths)) > 1:
        return "its weight has rows that are not in the result"
    if window is None and any(dim.size > 1 for i, dim in enumerate(of_weight) if i not in (row_axis, column_axis)):
        return "its weight is neither a matrix nor the kernel of a convolution"
    rest = [] if bias_scale != 1 else [(n, layout) for n, layout in laid_out if n not in (value, weight)]
    along = [n for n, layout in rest if _lies_along(layout, ONE if channel is None else rule.results[0][channel])]
    bias, after = _bias(graph, along, result, channel, uses)
    target, skip = _target(graph, after)
    return Consumer(
        node=node.name,
        value=value,
        axis=axis,
        weight=weight,
        column_axis=column_axis,
        row_axis=row_axis,
        result=result,
        channel=channel,
        groups=groups,
        window=window,
        bias=bias,
        target=target,
        skip=skip,
        uses=uses,
        bias_uses=len(graph.readers(bias)) if bias is not None else 0,
        scale=scale,
    )


def _only(layout: Iterable[Dim], factors: set[Factor]) -> int | None:
    """The one axis in which all of these factors lie."""
    axes = [i for i, dim in enumerate(layout) if not factors.isdisjoint(factors_of(dim))]
    return axes[0] if len(axes) == 1 else None


def _row_of_one(of_weight: Layout, result: Layout) -> tuple[int | None, int | None]:
    """The axis of a weight with one row that holds this row, and the axis of the result that does."""
    pairs = [(i, j) for i, one in enumerate(of_weight) for j, other in enumerate(result) if one is other is not ONE]
    pairs = [(i, j) for i, j in pairs if of_weight[i].size == 1]
    return pairs[0] if len(pairs) == 1 else (None, None)


def _lies_along(layout: Iterable[Dim], channel: Dim) -> bool:
    """Whether a tensor has one number for each position of an axis, and no other axis."""
    sized = [dim for dim in layout if dim.size > 1]
    return [list(factors_of(dim)) for dim in sized] == [list(factors_of(channel))] or channel.size == 1 > len(sized)


def _bias(
    graph: Graph,
    along: Iterable[str],
    result: str,
    channel: int | None,
    uses: int,
) -> tuple[str | None, str]:
    """The bias of a node, an operand ``along`` its rows or added to its result by the only reader; and the sum's name.

    Where several nodes read the weight, as many may read the bias.
    """

    def own(name: str | None) -> bool:
        return name is not None and graph.values[name].kind == "parameter" and len(graph.readers(name)) in (1, uses)

    if (mine := next(filter(own, along), None)) is not None:
        return mine, result
    shape = graph.values[result].shape
    rows = 1 if channel is None else shape[channel]
    behind = 0 if channel is None else len(shape) - 1 - channel
    users = graph.readers(result)
    if len(users) == 1 and result not in graph.outputs and users[0].plain_sum:
        total = users[0].results[0]
        for name in filter(own, users[0].operands):
            assert name is not None
            addend = graph.values[name].shape
            alone = rows == 1 == prod(addend) and len(addend) <= len(shape)
            if (addend == (rows, *[1] * behind) or alone) and total is not None:
                return name, total
    return None, result


def _quantized(graph: Graph, name: str | None) -> bool:
    """Whether an operand is a weight of whole numbers, which a refit in real numbers and its scales would spoil."""
    value = graph.values.get(name or "")
    return value is not None and value.stored and len(value.shape) > 1 and "float" not in value.dtype


def _target(graph: Graph, result: str) -> tuple[str, str | None]:
    """The residual sum that a result is added to, and what it is added to; or the result."""
    users = graph.readers(result)
    if len(users) != 1 or result in graph.outputs or not users[0].plain_sum:
        return result, None
    others = [name for name in users[0].operands if name is not None and name != result]
    total = users[0].results[0]
    if len(others) != 1 or total is None or graph.values[others[0]].stored:
        return result, None
    same = graph.values[others[0]].shape == graph.values[result].shape == graph.values[total].shape
    return (total, others[0]) if same else (result, None)


def consumers_of(analysis: Analysis, consumers: Iterable[Consumer]) -> dict[str, list[Consumer]]:
    """For each group that has some, by name: the consumers of its units."""
    by_factor: dict[Factor, Group] = {group.factor: group for group in analysis.groups}
    found: dict[str, list[Consumer]] = {}
    for consumer in consumers:
        dim = analysis.layouts[consumer.value][consumer.axis]
        for factor in dict.fromkeys(factors_of(dim)):
            if factor in by_factor:
                found.setdefault(by_factor[factor].name, []).append(consumer)
    return found


def columns_of(consumer: Consumer, units: NDArray[np.int64], columns: int) -> NDArray[np.int64]:
    """For each column ``[g, columns]`` of the matrix the unit of the activation's position that it belongs to.

    Args:
        consumer: The consumer.
        units: The unit of each position of the activation's axis, or -1.
        columns: Columns of the matrix in each group.
    """
    per_group = units.reshape(consumer.groups, -1)
    return np.repeat(per_group, columns // per_group.shape[1], axis=1)
