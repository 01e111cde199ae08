"""The analysis of a graph: walk the nodes, unify, and read the groups and what stays whole off the solver.

A factor that is not fixed and occurs in a parameter is one :class:`Group`; its indices are the units; its sites are
the stored tensors' axes that it occurs in. Everything here works on names and shapes alone and touches no weight.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import lcm, prod

from graphprune.analysis import adapters
from graphprune.analysis.adapters import Adapter, find_adapters
from graphprune.analysis.blocks import Branches
from graphprune.analysis.branch import Block
from graphprune.analysis.kinds import Kinds
from graphprune.analysis.normalizers import find_normalizers
from graphprune.analysis.solver import Reason, Solver
from graphprune.analysis.walk import Match, Walk, axis_of
from graphprune.brief import brief
from graphprune.ir.dims import Dim, Factor, Layout, Product, Sum, factors_of
from graphprune.ir.graph import Graph, Node


@dataclass(frozen=True, slots=True)
class Site:
    """An axis of a stored tensor in which a group occurs, and how (in terms of the merged factors).

    Attributes:
        tensor: The stored tensor.
        axis: The axis, from 0.
        dim: Its dimension.
        parameter: Whether the tensor is a weight (and not a buffer or table, which says nothing of importance).
    """

    __repr__ = brief

    tensor: str
    axis: int
    dim: Dim
    parameter: bool = True


@dataclass(frozen=True, eq=False)
class Group:
    """Units that must be removed together.

    Attributes:
        name: ``tensor[axis]`` of the first site, with a suffix where an axis holds several groups.
        kind: One of :data:`graphprune.analysis.kinds.KINDS`.
        factor: The merged factor.
        sites: Where the units are stored.
        normalized: Why removing a unit shifts a statistic that other units see, or ``None``: removal is exact.
        ordered: Why units may not change places (only be removed), or ``None``.
        minimum: How many units must stay, for an operator that chooses so many.
        multiple: Units are removed in multiples of this, for an operator that wants sizes so.
    """

    __repr__ = brief

    name: str
    kind: str
    factor: Factor
    sites: tuple[Site, ...]
    normalized: Reason | None = None
    ordered: Reason | None = None
    minimum: int = 1
    multiple: int = 1

    def at_least(self, n: int) -> int:
        """The smallest number of units that may be kept and is not below ``n``."""
        return self.size - (self.size - max(n, self.minimum)) // self.multiple * self.multiple

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
        positions: Stored tensors whose elements are positions of a dimension: they are numbered anew when it is cut.
        inside: Computed values whose elements are positions of a dimension that has their own axes in it (what a
            pooling took, counted over the whole tensor): what is removed points at what is removed.
        others: Of the same model run in other ways, in terms of the same factors and without groups of their own.
        adapters: The low-rank adapters of the graph, where they were looked for.
        resizable: Axes of inputs and outputs that may be cut.
    """

    __repr__ = brief

    graph: Graph
    groups: tuple[Group, ...]
    layouts: Mapping[str, Layout]
    fixed: Mapping[Factor, Reason]
    positions: Mapping[str, Dim]
    inside: frozenset[str]
    solver: Solver = field(repr=False)
    matches: Mapping[str, Match] = field(repr=False)
    others: tuple[Analysis, ...] = ()
    adapters: tuple[Adapter, ...] | None = field(default=None, repr=False)
    resizable: frozenset[tuple[str, int]] = frozenset()

    @cached_property
    def branches(self) -> Branches:
        """The residual branches of the graph that can be bypassed."""
        return Branches(self.graph, self.adapters)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Residual branches, and layers made of them, that can be left out as a whole."""
        return self.branches.blocks

    @cached_property
    def group_of(self) -> Mapping[Factor, Group]:
        """The group of each prunable factor."""
        return {group.factor: group for group in self.groups}

    def resolve(self, node: Node, dim: Dim) -> Dim:
        """A dimension of the rule of a node in terms of the merged factors."""
        return self.solver.resolve(self.matches[node.name].of(dim))

    def site_reasons(self, tensor: str, axis: int) -> tuple[Reason, ...]:
        """Why (parts of) an axis of a tensor stay whole, without repetition."""
        reasons = (self.fixed.get(factor) for factor in factors_of(self.layouts[tensor][axis]))
        return tuple(dict.fromkeys(reason for reason in reasons if reason is not None))


def analyze_graph(
    graph: Graph,
    protect: Iterable[tuple[str, int | None, str]] = (),
    resizable: Iterable[tuple[str, int]] = (),
    pointing: Mapping[str, int] | None = None,
) -> Analysis:
    """Finds the groups of a graph.

    Args:
        graph: The graph, with a rule (or none) at each node.
        protect: ``(tensor, axis, reason)`` of dimensions that the user keeps whole; axis ``None`` means all axes.
        resizable: Axes of inputs and outputs that may be cut, since the user says so.
        pointing: Inputs whose elements are numbered anew when what they point at is cut, since the user says so, and
            how many positions there are.

    Returns:
        The analysis. Every group of the result can be pruned at will, independently of all others.

    Raises:
        RuleError: A rule does not fit the shapes of its node.
    """
    free = frozenset(resizable)
    solver = Solver()
    layouts: dict[str, Layout] = {}
    for value in graph.values.values():
        if value.stored:
            layouts[value.name] = tuple(axis_of(value, axis) for axis in range(len(value.shape)))
    for name in graph.inputs:
        value = graph.values[name]
        layouts[name] = tuple(axis_of(value, axis) for axis in range(len(value.shape)))
        for i, dim in enumerate(layouts[name]):
            if (name, i) not in free:
                solver.fix(dim, Reason(f"axis of the model's input '{name}'", kind="interface"))
    for name, axis, reason in protect:
        for i, dim in enumerate(layouts[name]):
            if axis is None or i == axis:
                solver.fix(dim, Reason(reason, kind="user"))
    walk = _walked(graph, solver, layouts, free, pointing or {})
    walk.finish()
    others = tuple(_walk_other(other, walk) for other in graph.others)
    if others:
        walk.finish()
    return replace(_collect(graph, layouts, walk, others), resizable=free)


def _walked(
    graph: Graph,
    solver: Solver,
    layouts: dict[str, Layout],
    free: Collection[tuple[str, int]] = (),
    pointing: Mapping[str, int] | None = None,
) -> Walk:
    """Visits all nodes of a graph, and fixes what adapters and outputs keep whole."""
    walk = Walk(graph, solver, layouts)
    walk.points.update((name, Factor(f"{name}:positions", n)) for name, n in (pointing or {}).items())
    for node in graph.nodes:
        walk.visit(node)
    walk.adapters = find_adapters(graph)
    for adapter in walk.adapters:
        for dim in adapter.rank:
            solver.fix(walk.matches[adapter.node].of(dim), Reason(adapters.REASON, adapter.node))
    for name in graph.outputs:
        fixed = [dim for axis, dim in enumerate(layouts[name]) if (name, axis) not in free]
        for dim in (*fixed, *walk.positions_of(name)):
            solver.fix(dim, Reason(f"axis of the model's output '{name}'", kind="interface"))
    return walk


def _walk_other(graph: Graph, main: Walk) -> Walk:
    """Couples what the same model couples where it is run in another way; new reasons say in which."""
    solver = main.solver
    known, statistics = dict(solver.fixed), {id(reason) for reason in solver.normalized.values()}
    layouts: dict[str, Layout] = {}
    for value in graph.values.values():
        shared = graph.shared.get(value.name, "")
        if value.stored:
            fresh = tuple(axis_of(value, axis) for axis in range(len(value.shape)))
            layouts[value.name] = main.layouts.get(shared, fresh)
    for name in graph.inputs:
        value = graph.values[name]
        layouts[name] = tuple(axis_of(value, axis) for axis in range(len(value.shape)))
        for dim in layouts[name]:
            solver.fix(dim, Reason(f"axis of the model's input '{name}'", kind="interface"))
    walk = _walked(graph, solver, layouts)
    walk.finish()
    for name, shared in graph.shared.items():
        if name in walk.numbers:
            main.numbers.setdefault(shared, walk.numbers[name])
        if name in walk.points and shared in main.layouts:
            solver.unify(main.points.setdefault(shared, walk.points[name]), walk.points[name], shared)
    before = {factor: reason for whole, reason in known.items() for factor in factors_of(solver.resolve(whole))}
    for factor, reason in solver.fixed.items():  # the first reason stays
        text = f"{reason.text} {graph.label}".rstrip()
        solver.fixed[factor] = before.get(factor) or replace(reason, text=text)
    for factor, reason in tuple(solver.normalized.items()):  # what is exact is said of the main graph
        if id(reason) not in statistics:
            del solver.normalized[factor]
    return walk


def _collect(graph: Graph, found: Mapping[str, Layout], walk: Walk, others: tuple[Walk, ...] = ()) -> Analysis:
    solver = walk.solver
    layouts = solver.resolved(found)
    for factor, reason in find_normalizers(graph, layouts, solver, walk.matches).items():
        solver.normalize(factor, reason)
    sites: dict[Factor, list[Site]] = {}
    prunable: set[Factor] = set()
    for value in graph.stored:
        for axis, dim in enumerate(layouts[value.name]):
            site = Site(value.name, axis, dim, value.kind == "parameter")
            for factor in dict.fromkeys(factors_of(dim)):
                sites.setdefault(factor, []).append(site)
                if site.parameter and factor not in solver.fixed:
                    prunable.add(factor)
    kinds = Kinds(layouts, solver, walk.contracted)
    minimums, steps = walk.minimums(), walk.steps()
    for other in others:
        for factor, n in other.minimums().items():
            minimums[factor] = max(n, minimums.get(factor, 1))
        for factor, n in other.steps().items():
            steps[factor] = lcm(n, steps.get(factor, 1))
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
        groups.append(
            Group(
                name,
                kinds.of(factor, [(site.tensor, site.axis) for site in where if site.parameter]),
                factor,
                tuple(where),
                solver.normalized.get(factor),
                solver.ordered.get(factor),
                minimums.get(factor, 1),
                steps.get(factor, 1),
            )
        )
    fixed = {factor: solver.fixed[factor] for factor in sites if factor in solver.fixed}
    stored = {name: solver.resolve(dim) for name, dim in walk.points.items() if graph.values[name].stored}
    inside = _inside(walk, layouts)
    rest = tuple(_without_groups(other) for other in others)
    return Analysis(graph, tuple(groups), layouts, fixed, stored, inside, solver, walk.matches, rest, walk.adapters)


def _inside(walk: Walk, layouts: Mapping[str, Layout]) -> frozenset[str]:
    return frozenset(
        name
        for name, dim in walk.points.items()
        if not walk.graph.values[name].stored
        and not {*factors_of(walk.solver.resolve(dim))}.isdisjoint(f for own in layouts[name] for f in factors_of(own))
    )


def _without_groups(walk: Walk) -> Analysis:
    solver, values, layouts = walk.solver, walk.graph.values, walk.solver.resolved(walk.layouts)
    stored = {name: solver.resolve(dim) for name, dim in walk.points.items() if values[name].stored}
    return Analysis(walk.graph, (), layouts, {}, stored, _inside(walk, layouts), solver, walk.matches)


def multiplicity(dim: Dim, factor: Factor) -> int:
    """How many positions of the axis one unit of ``factor`` takes."""
    match dim:
        case Factor():
            return int(dim is factor)
        case Product():
            counts = [multiplicity(part, factor) for part in dim.parts]
            return prod(count or part.size for count, part in zip(counts, dim.parts, strict=True)) if any(counts) else 0
        case Sum():
            if dim.parts is dim.factors:
                return dim.parts.count(factor)
            return sum(multiplicity(part, factor) for part in dim.parts)
