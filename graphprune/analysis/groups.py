"""The analysis of a graph: walk the nodes, unify, and read the groups and what stays whole off the solver.

A factor that is not fixed and occurs in a parameter is one :class:`Group`; its indices are the units; its sites are
the stored tensors' axes that it occurs in. Everything here works on names and shapes alone and touches no weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from math import ceil, gcd, lcm, prod

import numpy as np

from graphprune.analysis.index_maps import regular
from graphprune.analysis.solver import Reason, Solver
from graphprune.errors import RuleError
from graphprune.ir.dims import ONE, Dim, Factor, Layout, Product, Sum, factors_of
from graphprune.ir.graph import Graph, Node, Value
from graphprune.ir.rule import Rule

KINDS = {
    "expert": "whole experts, with their place in the router",
    "expert-group": "whole groups of experts, of routers that choose groups first",
    "expert-width": "hidden neurons of experts, the same in every expert",
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
        ordered: Why units may not change places (only be removed), or ``None``.
        minimum: How many units must stay, for an operator that chooses so many.
        multiple: Units are removed in multiples of this, for an operator that wants sizes so.
    """

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
    """

    graph: Graph
    groups: tuple[Group, ...]
    layouts: Mapping[str, Layout]
    fixed: Mapping[Factor, Reason]
    positions: Mapping[str, Dim]
    solver: Solver = field(repr=False)

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
    walk = _Walk(graph, solver, layouts)
    for node in graph.nodes:
        walk.visit(node)
    for name in graph.outputs:
        for dim in (*layouts[name], *walk.positions_of(name)):
            solver.fix(dim, Reason(f"axis of the model's output '{name}'", kind="interface"))
    walk.finish()
    return _collect(graph, layouts, walk)


def _axis(value: Value, axis: int) -> Dim:
    size = value.shape[axis]
    return ONE if size == 1 else Factor(f"{value.name}[{axis}]", size)


class _Walk:
    """The walk over the nodes: couples axes, and follows the values whose elements are positions of an axis.

    Attributes:
        layouts: Of every value so far.
        points: For values whose elements are positions: of which dimension.
        numbers: Values whose elements are used as numbers.
        contracted: Factors that products of queries and keys contract.
        least: Dimensions of which so many positions must stay.
        multiples: Dimensions whose size must stay a multiple of a number.
    """

    def __init__(self, graph: Graph, solver: Solver, layouts: dict[str, Layout]) -> None:
        self.graph, self.solver, self.layouts = graph, solver, layouts
        self.points: dict[str, Dim] = {}
        self.numbers: dict[str, Reason] = {}
        self.contracted: list[Factor] = []
        self.least: list[tuple[Dim, int]] = []
        self.multiples: list[tuple[Dim, int]] = []

    def positions_of(self, name: str) -> tuple[Dim, ...]:
        """The dimension of which a value's elements are positions, if they are."""
        return (self.points[name],) if name in self.points else ()

    def visit(self, node: Node) -> None:
        """Couples the operands of a node and lays out its results."""
        rule, solver, layouts = node.rule, self.solver, self.layouts
        if rule is None:
            text = node.reason or f"no coupling rule for '{node.op}'"
            reason = Reason(text, node.name, "barrier")
            for operand in filter(None, node.operands):
                for dim in (*layouts[operand], *self.positions_of(operand)):
                    solver.fix(dim, reason)
                self.numbers.setdefault(operand, reason)
            for result in node.results:
                if result is not None:
                    layouts[result] = self._whole(result, reason)
            return
        for factor, text in rule.fixed.items():
            solver.fix(factor, Reason(text, node.name))
        for factor in rule.normalized:
            solver.normalize(factor, Reason(f"'{node.op}' takes a statistic over this axis", node.name))
        for factor, text in rule.choices.items():
            solver.choose(factor, Reason(text, node.name))
        for factor in rule.ordered:
            solver.order(factor, Reason(f"'{node.op}' depends on the order along this axis", node.name))
        for factor, label in rule.labels.items():
            solver.label(factor, label)
            if label == "qk-dim":
                self.contracted.append(factor)
        self.least.extend(rule.least)
        self.multiples.extend(rule.multiples)
        for operand, layout in zip(node.operands, rule.operands, strict=False):
            if operand is not None and layout is not None:
                self._couple(node, operand, layout)
        for result, layout in zip_longest(node.results, rule.results):
            if result is None:
                continue
            if layout is None:
                layouts[result] = self._whole(result, Reason(f"result of '{node.op}'", node.name))
            else:
                layouts[result] = layout
        self._follow(node, rule)

    def _couple(self, node: Node, operand: str, layout: Layout) -> None:
        known = self.layouts[operand]
        if len(known) != len(layout):
            raise RuleError(
                f"the rule of '{node.op}' (node '{node.name}') gives operand '{operand}' {len(layout)} axes, "
                f"it has {len(known)}; mend the rule's builder"
            )
        for ours, theirs in zip(layout, known, strict=True):
            self.solver.unify(theirs, ours, node.name)

    def _whole(self, name: str, reason: Reason) -> Layout:
        value = self.graph.values[name]
        layout = tuple(_axis(value, axis) for axis in range(len(value.shape)))
        for dim in layout:
            self.solver.fix(dim, reason)
        return layout

    def _follow(self, node: Node, rule: Rule) -> None:
        """What becomes of elements that are positions: looked up, carried on, compared; as numbers they are fixed."""
        if rule.compares and any(operand in self.points for operand in node.operands):
            self._compare(node)
        else:
            computed = Reason(f"'{node.op}' computes with positions of this axis", node.name)
            for i, operand in enumerate(node.operands):
                if operand is None:
                    continue
                if i in rule.reads:
                    if not self._look_up(operand, rule.reads[i], node):
                        for dim in rule.writes:
                            self.solver.fix(dim, Reason("every position of this axis writes something", node.name))
                elif i not in rule.carries:
                    self.numbers.setdefault(operand, computed)
                    for dim in self.positions_of(operand):
                        self.solver.fix(dim, computed)
        carried = [node.operands[i] for i in rule.carries if i < len(node.operands)]
        pointed = [self.points[operand] for operand in carried if operand in self.points]
        for dim in pointed:
            if rule.ranks:
                self.solver.order(dim, Reason(f"'{node.op}' puts positions of this axis in order", node.name))
            if len(pointed) < len(carried):
                self.solver.fix(dim, Reason(f"'{node.op}' joins positions of this axis with numbers", node.name))
            self._same(pointed[0], dim, node)
        for j, result in enumerate(node.results):
            if result is not None and (dim_ := rule.makes.get(j, pointed[0] if pointed else None)) is not None:
                self.points[result] = dim_

    def _same(self, a: Dim, b: Dim, node: Node) -> None:
        """Unifies two dimensions that the same positions belong to, if they are equally long."""
        if a.size == b.size:
            self.solver.unify(a, b, node.name)
            return
        for dim in (a, b):
            self.solver.fix(dim, Reason("the same positions are used for this axis and for a longer one", node.name))

    def _look_up(self, operand: str, dim: Dim, node: Node) -> bool:
        """Couples the axis that is looked up; says whether the indices are constants that go with their positions."""
        known = self.points.get(operand)
        if known is not None:
            self._same(known, dim, node)
            return self.graph.values[operand].stored
        value = self.graph.values[operand]
        if value.elements is not None and self._map(value, dim, node):
            self.points[operand] = dim
            return True
        if value.elements is not None:
            text = "a constant index takes positions of this axis in no regular order"
        else:
            source = f", from the model's input '{operand}'," if operand in self.graph.inputs else ""
            text = f"an index{source} looks up positions of this axis"
        self.solver.fix(dim, Reason(text, node.name))
        return False

    def _map(self, value: Value, dim: Dim, node: Node) -> bool:
        """Lays a constant index out as the parts of ``dim`` that it takes, in its order, if it is regular."""
        assert value.elements is not None
        (own, *others) = [own for own in self.layouts[value.name] if own.size > 1] or [ONE]
        positions = value.elements.ravel() % dim.size
        if others or len(np.unique(positions)) < len(positions):
            return False
        parts = regular(positions, dim, self.solver, node.name)
        if parts is None:
            return False
        self.solver.unify(own, parts, node.name)
        return True

    def _compare(self, node: Node) -> None:
        operands = [operand for operand in node.operands if operand is not None]
        (first, *others) = (self.points[operand] for operand in operands if operand in self.points)
        for dim in others:
            self._same(first, dim, node)
        for operand in operands:
            if operand in self.points:
                continue
            if self._enumerates(operand, first, node):
                self.points[operand] = first
            else:
                self.solver.fix(first, Reason(f"'{node.op}' compares positions of this axis with numbers", node.name))

    def _enumerates(self, name: str, dim: Dim, node: Node) -> bool:
        """Whether a stored tensor counts the positions of ``dim`` along an axis of its own, which is ``dim`` then."""
        value = self.graph.values[name]
        if value.elements is None or not np.array_equal(value.elements.ravel(), np.arange(dim.size)):
            return False
        return self._map(value, dim, node)

    def finish(self) -> None:
        """Fixes what may not be cut after all, once everything is known."""
        for name, dim in self.points.items():
            if name in self.numbers and self.graph.values[name].stored:
                self.solver.fix(dim, self.numbers[name])
        for factor, reason in tuple(self.solver.choices.items()):
            if "chosen" in self.solver.labels.get(factor, ()):
                self.solver.normalize(factor, reason)
            else:
                self.solver.fix(factor, reason)

    def minimums(self) -> dict[Factor, int]:
        """How many units of each factor must stay so that every dimension keeps its least positions.

        Where a dimension is a product of several free factors, each may shrink by the same fraction.
        """
        found: dict[Factor, int] = {}
        for dim, least in self.least:
            resolved = self.solver.resolve(dim)
            free = {factor for factor in factors_of(resolved) if factor not in self.solver.fixed}
            depth = _depth(resolved, free)
            for factor in free:
                share = (least / resolved.size) ** (1 / depth)
                found[factor] = max(found.get(factor, 1), ceil(factor.size * share - 1e-9))
        return found


    def steps(self) -> dict[Factor, int]:
        """In which multiples the units of each factor are removed so that every dimension keeps its divisor."""
        found: dict[Factor, int] = {}
        for dim, of in self.multiples:
            resolved = self.solver.resolve(dim)
            for factor in set(factors_of(resolved)):
                found[factor] = lcm(found.get(factor, 1), of // gcd(of, _least_multiplicity(resolved, factor)))
        return found


def _least_multiplicity(dim: Dim, factor: Factor) -> int:
    """What divides the number of positions that a unit of ``factor`` takes, whatever is cut beside it."""
    match dim:
        case Factor():
            return 1
        case Product():
            return next((_least_multiplicity(part, factor) for part in dim.parts if factor in factors_of(part)), 1)
        case Sum():
            return gcd(*(_least_multiplicity(part, factor) for part in dim.parts if factor in factors_of(part)))


def _depth(dim: Dim, free: Collection[Factor]) -> int:
    """How many free factors are multiplied in ``dim``, at most."""
    match dim:
        case Factor():
            return int(dim in free)
        case Product():
            return sum(_depth(part, free) for part in dim.parts)
        case Sum():
            return max(_depth(part, free) for part in dim.parts)


def _collect(graph: Graph, found: Mapping[str, Layout], walk: _Walk) -> Analysis:
    solver = walk.solver
    layouts = {name: tuple(map(solver.resolve, layout)) for name, layout in found.items()}
    sites: dict[Factor, list[Site]] = {}
    prunable: set[Factor] = set()
    for value in graph.stored:
        for axis, dim in enumerate(layouts[value.name]):
            for factor in dict.fromkeys(factors_of(dim)):
                sites.setdefault(factor, []).append(Site(value.name, axis, dim, value.kind == "parameter"))
                if value.kind == "parameter" and factor not in solver.fixed:
                    prunable.add(factor)
    kind_of = _Kinds(layouts, solver, walk.contracted)
    minimums, steps = walk.minimums(), walk.steps()
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
                kind_of(factor, where),
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
    return Analysis(graph, tuple(groups), layouts, fixed, stored, solver)


_ATTENTION = ("head", "qk-dim", "value-dim", "norm-group")


class _Kinds:
    """What the units of a factor are to a user, from the labels that rules gave and from where it occurs."""

    def __init__(self, layouts: Mapping[str, Layout], solver: Solver, contracted: Iterable[Factor]) -> None:
        self.layouts, self.labels, self.normalized = layouts, solver.labels, solver.normalized
        self.paired = {pair for factor in contracted for pair in _pairs(solver.resolve(factor), solver.fixed)}
        self.repeated = _majors(layouts, {f for f, labels in self.labels.items() if _repeats_heads(labels)})
        chosen = {factor for factor, labels in self.labels.items() if "chosen" in labels}
        self.chosen_groups = _majors(layouts, chosen) & chosen

    def __call__(self, factor: Factor, sites: Sequence[Site]) -> str:
        labels = self.labels.get(factor, set())
        if "chosen" in labels and any(site.parameter and len(self.layouts[site.tensor]) > 2 for site in sites):
            return "channel" if "channel" in labels else "expert-group" if factor in self.chosen_groups else "expert"
        if _repeats_heads(labels):
            return "query-head"
        if "neuron" in labels and all(self._of_experts(site) for site in sites if site.parameter):
            return "expert-width"
        for label in _ATTENTION:
            if label in labels:
                if label == "head" and factor in self.repeated:
                    return "kv-group"
                return "rotary-pair" if label == "qk-dim" and factor in self.paired else label
        if factor in self.normalized:
            return "width"
        return next((label for label in ("channel", "neuron") if label in labels), "unit")

    def _of_experts(self, site: Site) -> bool:
        """Whether the tensor holds the weights of several experts, along another axis."""
        others = (dim for axis, dim in enumerate(self.layouts[site.tensor]) if axis != site.axis)
        return any("chosen" in self.labels.get(factor, ()) for dim in others for factor in factors_of(dim))


def _majors(layouts: Mapping[str, Layout], minors: Collection[Factor]) -> set[Factor]:
    """The factors that stand before one of ``minors`` in a product: key-value heads before their query heads."""
    found: set[Factor] = set()

    def walk(dim: Dim) -> None:
        if isinstance(dim, Product):
            for major, minor in zip(dim.parts, dim.parts[1:], strict=False):
                if minor in minors:
                    found.update(factors_of(major))
        if not isinstance(dim, Factor):
            for part in dim.parts:
                walk(part)

    for layout in layouts.values() if minors else ():
        for dim in layout:
            walk(dim)
    return found


def _repeats_heads(labels: set[str]) -> bool:
    """Whether units repeat key-value heads: attention says so, or they are expanded and end up among its heads."""
    return "query-head" in labels or {"repeat", "head"} <= labels


def _pairs(dim: Dim, fixed: Collection[Factor]) -> set[Factor]:
    """The factors whose units are two dimensions of a head: they occur twice in it, or before a fixed two."""
    counts = Counter(factors_of(dim))
    found = {factor for factor, n in counts.items() if n > 1}

    def walk(part: Dim) -> None:
        if isinstance(part, Product) and len(part.parts) > 1:
            (pair, two) = part.parts[-2:]
            if isinstance(pair, Factor) and two.size == 2 and two in fixed:
                found.add(pair)
        for inner in () if isinstance(part, Factor) else part.parts:
            walk(inner)

    walk(dim)
    return found


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
