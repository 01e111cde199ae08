"""Normalisers that are made of several operators: what is summed over an axis scales the units of that axis.

``x / norm(x)``, ``w * rsqrt((w * w).sum())``, ``exp(x) / exp(x).sum()``, a weight divided by its spectral norm: a
removed unit adds nothing to the sum, so that a cut model equals the masked one, and yet the units that stay are scaled
by something else than before. That is what a normalisation does to them, and they are called so.

A sum that goes through a weight before it comes back (a squeeze-and-excitation gate) is a layer like any other. A
parametrised weight is computed from stored tensors alone; there everything counts, products with stored vectors too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from graphprune.analysis.solver import Reason, Solver
from graphprune.analysis.walk import Match
from graphprune.ir.dims import Factor, Layout, factors_of
from graphprune.ir.graph import Graph, Node
from graphprune.ir.rule import Rule

_Sums = dict[tuple[Factor, str], str]
"""By factor that was summed over, and a value that was: the node that summed."""


def find_normalizers(
    graph: Graph, layouts: Mapping[str, Layout], solver: Solver, matches: Mapping[str, Match]
) -> dict[Factor, Reason]:
    """The factors over which a sum is taken that scales what it was taken of, each with the reason that a user reads.

    Args:
        graph: The graph.
        layouts: Of every value, in terms of the merged factors.
        solver: Which factors are fixed.
        matches: What the factors of each node's rule are.
    """
    return dict(_Flow(graph, layouts, solver, matches).found())


class _Flow:
    """What every value comes from, and what was summed on the way, in the order of execution."""

    def __init__(
        self, graph: Graph, layouts: Mapping[str, Layout], solver: Solver, matches: Mapping[str, Match]
    ) -> None:
        self.graph, self.layouts, self.solver, self.matches = graph, layouts, solver, matches
        self.stored = {value.name for value in graph.stored}
        self.operands: dict[str, list[str]] = {}
        self._origins: dict[str, Mapping[str, None]] = {}
        self.sums: dict[str, _Sums] = {}
        self.ops = {node.name: node.op for node in graph.nodes}
        self._axes: dict[tuple[int, tuple[bool, ...]], list[tuple[int, int]]] = {}  # by rule, which the graph keeps

    def found(self) -> Iterator[tuple[Factor, Reason]]:
        for node in self.graph.nodes:
            operands = [name for name in node.operands if name is not None]
            results = [name for name in node.results if name is not None]
            alone = bool(operands) and all(name in self.stored for name in operands)
            if alone:
                self.stored.update(results)
            rule = node.rule
            if rule is None or not operands:
                continue
            weighted = bool(rule.macs) and not alone
            if not weighted:
                yield from self._scaled(node, operands)
            mixed = any(name in self.stored for name in operands)
            counted = operands if alone else [name for name in operands if name not in self.stored]
            sums: _Sums = {} if weighted else self._carried(operands)
            if not (weighted and mixed):
                for factor in self._reduced(node):
                    sums.update({(factor, source): node.name for name in counted for source in self.origins(name)})
            for name in results:
                if not weighted:
                    self.operands[name] = counted
                if sums and not node.kept:
                    self.sums[name] = sums

    def origins(self, name: str) -> Mapping[str, None]:
        """What a value comes from: inputs, stored tensors if nothing else, and results of layers.

        Found on demand: each sum of a residual stream comes from all branches before it, and few are ever asked for.
        """
        known = self._origins.get(name)
        if known is None:
            found: dict[str, None] = {}
            pending, seen = [name], {name}
            while pending:
                here = pending.pop()
                held = self._origins.get(here)
                if held is not None:
                    found.update(held)
                    continue
                operands = self.operands.get(here)
                if operands is None:
                    found[here] = None
                    continue
                fresh = [each for each in operands if each not in seen]
                seen.update(fresh)
                pending.extend(fresh)
            known = self._origins[name] = found
        return known

    def _carried(self, operands: list[str]) -> _Sums:
        held = [self.sums[name] for name in operands if name in self.sums]
        return held[0] if len(held) == 1 else {key: node for each in held for key, node in each.items()}

    def _scaled(self, node: Node, operands: list[str]) -> Iterator[tuple[Factor, Reason]]:
        """Factors of one operand over which another operand was summed, from the same source."""
        for name in operands:
            for (factor, source), summed in self.sums.get(name, {}).items():
                for other in operands:
                    if other == name or source not in self.origins(other):
                        continue
                    if any(factor in factors_of(dim) for dim in self.layouts[other]):
                        op = self.ops[summed]
                        yield factor, Reason(f"'{op}' sums over this axis what then scales its other units", summed)

    def _gone(self, rule: Rule, results: Sequence[str | None]) -> list[tuple[int, int]]:
        """The axes of operands that share no factor with a result by the rule itself, found once for all its nodes."""
        key = id(rule), tuple([name is not None for name in results])
        known = self._axes.get(key)
        if known is None:
            there = [layout for name, layout in zip(results, rule.results, strict=False) if name is not None]
            made = {factor for layout in there for dim in layout or () for factor in factors_of(dim)}
            known = self._axes[key] = [
                (i, axis)
                for i, layout in enumerate(rule.operands)
                for axis, dim in enumerate(layout or ())
                if made.isdisjoint(factors_of(dim))
            ]
        return known

    def _reduced(self, node: Node) -> set[Factor]:
        """The free factors of axes that a node sums over: none of theirs is in a result."""
        rule = node.rule
        if rule is None or node.name not in self.matches:
            return set()
        gone = self._gone(rule, node.results)
        if not gone:
            return set()
        made = {factor for name in node.results if name for dim in self.layouts[name] for factor in factors_of(dim)}
        match = self.matches[node.name]
        found: set[Factor] = set()
        for i, axis in gone:
            name = node.operands[i] if i < len(node.operands) else None
            if name is not None and made.isdisjoint(factors := factors_of(self.layouts[name][axis])):
                found.update(factors)
        found = {f for f in found if f not in self.solver.fixed and f not in self.solver.normalized}
        if found:
            found -= {f for dim in rule.reads.values() for f in factors_of(self.solver.resolve(match.of(dim)))}
        return found
