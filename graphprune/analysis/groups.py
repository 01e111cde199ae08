"""The analysis of a graph: walk the nodes, unify, and read the groups and what stays whole off the solver.

A factor that is not fixed and occurs in a parameter is one :class:`Group`; its indices are the units; its sites are
the stored tensors' axes that it occurs in. Everything here works on names and shapes alone and touches no weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from math import prod

from graphprune.analysis import adapters
from graphprune.analysis.adapters import find_adapters
from graphprune.analysis.blocks import Block, Branches
from graphprune.analysis.solver import Reason, Solver
from graphprune.errors import RuleError
from graphprune.ir.dims import ONE, Dim, Factor, Layout, Product, Sum, factors_of
from graphprune.ir.graph import Graph, Node, Value

KINDS = {
    "query-head": "query heads of each key-value group",
    "kv-group": "key-value heads, each with its query heads",
    "head": "whole attention heads",
    "rotary-pair": "rotary pairs of query-key dimensions",
    "qk-dim": "query-key dimensions, the same in every head",
    "value-dim": "value dimensions, the same in every head",
    "norm-group": "whole groups of a group normalisation",
    "width": "channels over which a normalisation takes its statistics (residual width)",
    "channel": "channels of convolutions",
    "neuron": "neurons of linear layers",
    "unit": "units of another kind",
    "block": "residual branches that can be bypassed as a whole",
    "layer": "layers made of several such branches",
}
"""The kinds of unit, for ``only`` selectors and reports."""


@dataclass(frozen=True, slots=True)
class Site:
    """An axis of a stored tensor in which a group occurs, and how (in terms of the merged factors).

    Attributes:
        tensor: The stored tensor.
        axis: The axis, from 0.
        dim: Its dimension.
        parameter: Whether the tensor is a weight (and not a buffer or table, which says nothing of importance).
    """

    tensor: str
    axis: int
    dim: Dim
    parameter: bool = True


@dataclass(frozen=True, eq=False)
class Group:
    """Units that must be removed together.

    Attributes:
        name: ``tensor[axis]`` of the first site, with a suffix where an axis holds several groups.
        kind: One of :data:`KINDS`.
        factor: The merged factor.
        sites: Where the units are stored.
        normalized: Why removing a unit shifts a statistic that other units see, or ``None``: removal is exact.
    """

    name: str
    kind: str
    factor: Factor
    sites: tuple[Site, ...]
    normalized: Reason | None = None

    @property
    def size(self) -> int:
        """How many units there are."""
        return self.factor.size

    @property
    def exact(self) -> bool:
        """Whether removing a unit leaves the values of all others as they are."""
        return self.normalized is None

    @cached_property
    def tensors(self) -> tuple[str, ...]:
        """The stored tensors that hold the units, without repetition."""
        return tuple(dict.fromkeys(site.tensor for site in self.sites))


@dataclass(frozen=True)
class Analysis:
    """What is coupled in a graph, and what stays whole.

    Attributes:
        graph: The graph.
        groups: The prunable groups, in the order of their first site.
        layouts: The layout of every value, in terms of the merged factors.
        fixed: The reason of every factor that stays whole and occurs in a stored tensor.
    """

    graph: Graph
    groups: tuple[Group, ...]
    layouts: Mapping[str, Layout]
    fixed: Mapping[Factor, Reason]
    solver: Solver = field(repr=False)

    @cached_property
    def branches(self) -> Branches:
        """The residual branches of the graph that can be bypassed."""
        return Branches(self.graph)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Residual branches, and layers made of them, that can be left out as a whole."""
        return self.branches.blocks

    @cached_property
    def group_of(self) -> Mapping[Factor, Group]:
        """The group of each prunable factor."""
        return {group.factor: group for group in self.groups}

    def resolve(self, dim: Dim) -> Dim:
        """A rule's dimension in terms of the merged factors."""
        return self.solver.resolve(dim)

    def site_reasons(self, tensor: str, axis: int) -> tuple[Reason, ...]:
        """Why (parts of) an axis of a tensor stay whole, without repetition."""
        reasons = (self.fixed.get(factor) for factor in factors_of(self.layouts[tensor][axis]))
        return tuple(dict.fromkeys(reason for reason in reasons if reason is not None))


def analyze_graph(graph: Graph, protect: Iterable[tuple[str, int | None, str]] = ()) -> Analysis:
    """Finds the groups of a graph.

    Args:
        graph: The graph, with a rule (or none) at each node.
        protect: ``(tensor, axis, reason)`` of dimensions that the user keeps whole; axis ``None`` means all axes.

    Returns:
        The analysis. Every group of the result can be pruned at will, independently of all others.

    Raises:
        RuleError: A rule does not fit the shapes of its node.
    """
    solver = Solver()
    layouts: dict[str, Layout] = {}
    for value in graph.values.values():
        if value.stored:
            layouts[value.name] = tuple(_axis(value, axis) for axis in range(len(value.shape)))
    for name in graph.inputs:
        value = graph.values[name]
        layouts[name] = tuple(_axis(value, axis) for axis in range(len(value.shape)))
        for dim in layouts[name]:
            solver.fix(dim, Reason(f"axis of the model's input '{name}'", kind="interface"))
    for name, axis, reason in protect:
        for i, dim in enumerate(layouts[name]):
            if axis is None or i == axis:
                solver.fix(dim, Reason(reason, kind="user"))
    for node in graph.nodes:
        _visit(node, graph, layouts, solver)
    for adapter in find_adapters(graph):
        for dim in adapter.rank:
            solver.fix(dim, Reason(adapters.REASON, adapter.node))
    for name in graph.outputs:
        for dim in layouts[name]:
            solver.fix(dim, Reason(f"axis of the model's output '{name}'", kind="interface"))
    resolved = {name: tuple(map(solver.resolve, layout)) for name, layout in layouts.items()}
    return _collect(graph, resolved, solver)


def _axis(value: Value, axis: int) -> Dim:
    size = value.shape[axis]
    return ONE if size == 1 else Factor(f"{value.name}[{axis}]", size)


def _fresh(value: Value, solver: Solver, reason: Reason) -> Layout:
    layout = tuple(_axis(value, axis) for axis in range(len(value.shape)))
    for dim in layout:
        solver.fix(dim, reason)
    return layout


def _visit(node: Node, graph: Graph, layouts: dict[str, Layout], solver: Solver) -> None:
    """Couples the operands of a node and lays out its results."""
    rule = node.rule
    if rule is None:
        text = node.reason or f"no coupling rule for '{node.op}'"
        reason = Reason(text, node.name, "barrier")
        for operand in node.operands:
            for dim in layouts[operand] if operand is not None else ():
                solver.fix(dim, reason)
        for result in node.results:
            if result is not None:
                layouts[result] = _fresh(graph.values[result], solver, reason)
        return
    for factor, text in rule.fixed.items():
        solver.fix(factor, Reason(text, node.name))
    for factor in rule.normalized:
        solver.normalize(factor, Reason(f"'{node.op}' takes a statistic over this axis", node.name))
    for factor, label in rule.labels.items():
        solver.label(factor, label)
    for operand, layout in zip(node.operands, rule.operands, strict=False):
        if operand is None or layout is None:
            continue
        known = layouts[operand]
        if len(known) != len(layout):
            raise RuleError(
                f"the rule of '{node.op}' (node '{node.name}') gives operand '{operand}' {len(layout)} axes, "
                f"it has {len(known)}; mend the rule's builder"
            )
        for ours, theirs in zip(layout, known, strict=True):
            solver.unify(theirs, ours, node.name)
    for result, layout in zip_longest(node.results, rule.results):
        if result is None:
            continue
        if layout is None:
            layouts[result] = _fresh(graph.values[result], solver, Reason(f"result of '{node.op}'", node.name))
        else:
            layouts[result] = layout


def _collect(graph: Graph, layouts: Mapping[str, Layout], solver: Solver) -> Analysis:
    sites: dict[Factor, list[Site]] = {}
    prunable: set[Factor] = set()
    for value in graph.stored:
        for axis, dim in enumerate(layouts[value.name]):
            for factor in dict.fromkeys(factors_of(dim)):
                sites.setdefault(factor, []).append(Site(value.name, axis, dim, value.kind == "parameter"))
                if value.kind == "parameter" and factor not in solver.fixed:
                    prunable.add(factor)
    repeated = _majors(layouts.values(), {f for f, labels in solver.labels.items() if _repeats_heads(labels)})
    blocked = _majors(layouts.values(), solver.normalized.keys() - solver.fixed.keys())
    groups, taken = [], set[str]()
    for factor, where in sites.items():
        if factor not in prunable:
            continue
        name = base = f"{where[0].tensor}[{where[0].axis}]"
        n = 1
        while name in taken:
            n += 1
            name = f"{base}#{n}"
        taken.add(name)
        kind = _kind(factor, where, solver, factor in repeated, factor in blocked)
        groups.append(Group(name, kind, factor, tuple(where), solver.normalized.get(factor)))
    fixed = {factor: solver.fixed[factor] for factor in sites if factor in solver.fixed}
    return Analysis(graph, tuple(groups), layouts, fixed, solver)


def _majors(layouts: Iterable[Layout], minors: AbstractSet[Factor]) -> set[Factor]:
    """The factors that stand before one of ``minors`` in a product: key-value heads before their query heads."""
    found: set[Factor] = set()
    if not minors:
        return found

    def walk(dim: Dim) -> None:
        if isinstance(dim, Product):
            for major, minor in zip(dim.parts, dim.parts[1:], strict=False):
                if minor in minors:
                    found.update(factors_of(major))
        if not isinstance(dim, Factor):
            for part in dim.parts:
                walk(part)

    for layout in layouts:
        for dim in layout:
            walk(dim)
    return found


_ATTENTION = ("head", "qk-dim", "value-dim", "norm-group")


def _kind(factor: Factor, sites: Sequence[Site], solver: Solver, repeated: bool, blocked: bool) -> str:
    labels = solver.labels.get(factor, set())
    if _repeats_heads(labels):
        return "query-head"
    for label in _ATTENTION:
        if label in labels:
            if label == "head" and repeated:
                return "kv-group"
            if label == "qk-dim" and any(_occurs_twice(site.dim, factor) for site in sites):
                return "rotary-pair"
            return label
    if factor in solver.normalized:
        return "width"
    if blocked and "channel" in labels:  # exporters write a group norm as an instance norm of blocks of channels
        return "norm-group"
    return next((label for label in ("channel", "neuron") if label in labels), "unit")


def _repeats_heads(labels: set[str]) -> bool:
    """Whether units repeat key-value heads: attention says so, or they are expanded and end up among its heads."""
    return "query-head" in labels or {"repeat", "head"} <= labels


def _occurs_twice(dim: Dim, factor: Factor) -> bool:
    """Whether a head is a sum that holds the factor twice (rotary halves); twice in a packed qkv does not count."""
    match dim:
        case Factor():
            return False
        case Sum():
            if any(type(part) is not Factor for part in dim.parts):
                return any(_occurs_twice(part, factor) for part in dim.parts)
            return len(dim.parts) > 1 and all(part is factor for part in dim.parts)
        case Product():
            halves = (part for part in dim.parts if type(part) is Sum)
            return any(sum(found is factor for found in factors_of(half)) > 1 for half in halves)


def multiplicity(dim: Dim, factor: Factor) -> int:
    """How many positions of the axis one unit of ``factor`` takes."""
    match dim:
        case Factor():
            return int(dim is factor)
        case Product():
            counts = [multiplicity(part, factor) for part in dim.parts]
            return prod(count or part.size for count, part in zip(counts, dim.parts, strict=True)) if any(counts) else 0
        case Sum():
            return sum(multiplicity(part, factor) for part in dim.parts)
