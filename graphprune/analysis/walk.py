"""The walk over the nodes of a graph: couples axes by the rules, and follows elements that are positions of an axis."""

from __future__ import annotations

from collections.abc import Collection
from itertools import zip_longest
from math import ceil, gcd, lcm

import numpy as np

from graphprune.analysis.adapters import Adapter
from graphprune.analysis.index_maps import regular
from graphprune.analysis.solver import Reason, Solver
from graphprune.errors import RuleError
from graphprune.ir.dims import ONE, Dim, Factor, Layout, Product, Sum, concat, factors_of, product
from graphprune.ir.graph import Graph, Node, Value
from graphprune.ir.rule import Rule


def axis_of(value: Value, axis: int) -> Dim:
    """A fresh dimension for an axis of a value."""
    size = value.shape[axis]
    return ONE if size == 1 else Factor(f"{value.name}[{axis}]", size)


class Match(dict[Factor, Dim]):
    """What the factors of a rule are at one node. A rule is shared by all nodes with equal calls."""

    def of(self, dim: Dim) -> Dim:
        """A dimension of the rule in the graph's factors; what met nothing yet gets a factor of its own."""
        if isinstance(dim, Factor):
            known = self.get(dim)
            if known is None:
                known = self[dim] = Factor(dim.name, dim.size)
            return known
        if not dim.parts:
            return dim
        parts = [self.of(part) for part in dim.parts]
        return product(*parts) if isinstance(dim, Product) else concat(*parts)


MOST_FACTORS = 4096
"""More factors than this no axis of a model is built from: a file that doubles an axis again and again would be."""


class Walk:
    """The walk over the nodes: couples axes, and follows the values whose elements are positions of an axis.

    Attributes:
        layouts: Of every value so far.
        matches: What the factors of the rule of every node are.
        points: For values whose elements are positions: of which dimension.
        listed: Values whose elements are known.
        numbers: Stored whole numbers that are used as numbers.
        contracted: Dimensions that products of queries and keys contract.
        least: Dimensions of which so many positions must stay.
        multiples: Dimensions whose size must stay a multiple of a number.
        adapters: The low-rank adapters of the graph, once they are looked for.
    """

    def __init__(self, graph: Graph, solver: Solver, layouts: dict[str, Layout]) -> None:
        self.graph, self.solver, self.layouts = graph, solver, layouts
        self.matches: dict[str, Match] = {}
        self.points: dict[str, Dim] = {}
        self.listed = frozenset([name for name, value in graph.values.items() if value.elements is not None])
        self.numbers: dict[str, Reason] = {}
        self.contracted: list[Dim] = []
        self.least: list[tuple[Dim, int]] = []
        self.multiples: list[tuple[Dim, int]] = []
        self.adapters: tuple[Adapter, ...] = ()

    def positions_of(self, name: str) -> tuple[Dim, ...]:
        """The dimension of which a value's elements are positions, if they are."""
        return (self.points[name],) if name in self.points else ()

    def visit(self, node: Node) -> None:
        """Couples the operands of a node and lays out its results."""
        rule, solver, layouts = node.rule, self.solver, self.layouts
        if rule is None:
            text = node.reason or f"no coupling rule for '{node.op}'"
            reason = Reason(text, node.name, "barrier")
            for taken in filter(None, node.operands):
                for dim in (*layouts[taken], *self.positions_of(taken)):
                    solver.fix(dim, reason)
                self.numbers.setdefault(taken, reason)
            for result in node.results:
                if result is not None:
                    layouts[result] = self._whole(result, reason)
            return
        match = self.matches[node.name] = Match()
        for operand, layout in zip(node.operands, rule.operands, strict=False):
            if operand is not None and layout is not None:
                self._couple(node, operand, layout, match)
        self._note(node, rule, match)
        for result, layout in zip_longest(node.results, rule.results):
            if result is None:
                continue
            if layout is None:
                layouts[result] = self._whole(result, Reason(f"result of '{node.op}'", node.name))
            else:
                layouts[result] = tuple([match.of(dim) for dim in layout])
                if any(len(factors_of(dim)) > MOST_FACTORS for dim in layouts[result]):
                    layouts[result] = self._simplified(result, node)
        self._follow(node, rule, match)

    def _note(self, node: Node, rule: Rule, match: Match) -> None:
        """Notes what the rule says of its factors."""
        solver = self.solver
        for factor, text in rule.fixed.items():
            dim = match.of(factor)
            if dim not in solver.fixed:
                solver.fix(dim, Reason(text, node.name))
        for factor in rule.normalized:
            solver.normalize(match.of(factor), Reason(f"'{node.op}' takes a statistic over this axis", node.name))
        for factor, text in rule.choices.items():
            if factor in rule.normalized:
                continue
            solver.choose(match.of(factor), Reason(text, node.name))
        for factor in rule.ordered:
            reason = Reason(f"'{node.op}' depends on the order along this axis", node.name)
            solver.order(match.of(factor), reason)
        for factor, label in rule.labels.items():
            solver.label(match.of(factor), label)
            if label == "qk-dim":
                self.contracted.append(match.of(factor))
        self.least.extend([(match.of(dim), n) for dim, n in rule.least])
        self.multiples.extend([(match.of(dim), n) for dim, n in rule.multiples])

    def _couple(self, node: Node, operand: str, layout: Layout, match: Match) -> None:
        """A factor of the rule is what it meets first; what it meets later, and what expressions meet, is unified."""
        known = self.layouts[operand]
        if len(known) != len(layout):
            raise RuleError(
                f"the rule of '{node.op}' (node '{node.name}') gives operand '{operand}' {len(layout)} axes, "
                f"it has {len(known)}; mend the rule's builder"
            )
        for ours, theirs in zip(layout, known, strict=True):
            if ours is theirs:
                continue
            if type(ours) is Factor and ours not in match and ours.size == theirs.size:
                match[ours] = theirs
            else:
                self.solver.unify(theirs, match.of(ours), node.name)

    def _whole(self, name: str, reason: Reason) -> Layout:
        value = self.graph.values[name]
        layout = tuple(axis_of(value, axis) for axis in range(len(value.shape)))
        for dim in layout:
            self.solver.fix(dim, reason)
        return layout

    def _simplified(self, name: str, node: Node) -> Layout:
        """A layout with fixed axes in place of those that are built from too many factors."""
        value, layout = self.graph.values[name], list(self.layouts[name])
        reason = Reason(f"the axis is put together of more than {MOST_FACTORS} parts", node.name)
        for axis, dim in enumerate(layout):
            if len(factors_of(dim)) > MOST_FACTORS:
                self.solver.fix(dim, reason)
                layout[axis] = axis_of(value, axis)
                self.solver.fix(layout[axis], reason)
        return tuple(layout)

    def _follow(self, node: Node, rule: Rule, match: Match) -> None:
        """What becomes of elements that are positions: looked up, carried on, compared; as numbers they are fixed."""
        whole_numbers = any(name in self.points or name in self.listed for name in node.operands)
        if node.role == "sizes" or (not whole_numbers and not rule.reads and not rule.makes):
            return
        if rule.compares and any(operand in self.points for operand in node.operands):
            self._compare(node)
        else:
            computed = Reason(f"'{node.op}' computes with positions of this axis", node.name)
            for i, operand in enumerate(node.operands):
                if operand is None:
                    continue
                if i in rule.reads:
                    if not self._look_up(operand, match.of(rule.reads[i]), node):
                        for dim in rule.writes:
                            self.solver.fix(
                                match.of(dim), Reason("every position of this axis writes something", node.name)
                            )
                elif i not in rule.carries:
                    if operand in self.listed:
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
            dims = [match.of(rule.makes[j])] if j in rule.makes else pointed
            if result is not None and dims:
                self.points[result] = dims[0]

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
