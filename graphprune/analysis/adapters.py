"""Low-rank adapters (LoRA) found on the algebra: ``W x + s B A x``, a dense product beside a product through a rank.

Nothing but multiples (casts, scales, dropout in evaluation mode, stored addends) may stand between the operators: the
two paths are then one linear map of ``x``, which merging would make one weight. The solver alone already couples the
rows of ``W`` and ``B`` and the columns of ``W`` and ``A``. The factor between ``A`` and ``B`` would be a group like
any other hidden width; it is the rank of an update, whose directions mean nothing to the rest of the model, and stays
whole (LoRAShear, arXiv 2310.18356, §3.1 keeps it too).

What makes it an update, and not a layer or a residual branch that happens to be linear, is that its rank is below both
widths and that nothing else uses its two factors or what is between them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

from graphprune.ir.dims import Dim, factors_of
from graphprune.ir.graph import Graph, Node

REASON = "rank of a low-rank adapter (a sum of products beside a dense weight)"


@dataclass(frozen=True, slots=True)
class Adapter:
    """A low-rank path beside a dense one.

    Attributes:
        sum: The node that adds the two.
        node: The operator that contracts the rank (``B``).
        inner: The operator that makes it (``A``).
        rank: The dimensions of that operator's rule that it contracts.
    """

    sum: str
    node: str
    inner: str
    rank: tuple[Dim, ...]


def find_adapters(graph: Graph) -> tuple[Adapter, ...]:
    """Every adapter of a graph, in the order of execution; several beside one weight are found one by one."""
    maps = _Maps(graph)
    found = tuple(maps.adapters())
    if not found:
        return ()
    inside = {name for adapter in found for name in (adapter.node, adapter.inner)}
    return tuple(adapter for adapter in found if maps.readers(adapter) <= inside)


class _Maps:
    """Which values are linear maps of which others."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.stored = {value.name for value in graph.stored}
        self.producer: dict[str, Node] = {}
        self.ends = Counter(graph.outputs)
        self._origins: dict[str, str] = {}
        self.sums: dict[str, str] = {}  # by result of an adapter's sum: what it is a linear map of
        stored = self.stored
        for node in graph.nodes:
            names = [name for name in node.operands if name is not None]
            results = [name for name in node.results if name is not None]
            if names and stored.issuperset(names):
                stored.update(results)  # a transposed weight is a weight
            self.producer.update(dict.fromkeys(results, node))

    @cached_property
    def nodes(self) -> Mapping[str, Node]:
        """By name."""
        return {node.name: node for node in self.graph.nodes}

    @cached_property
    def roots(self) -> Mapping[str, frozenset[str]]:
        """By value that is computed from stored ones alone: the tensors that it is made of."""
        found: dict[str, frozenset[str]] = {}
        for node in self.graph.nodes:
            if self._of_stored(node):
                found.update(dict.fromkeys((name for name in node.results if name), self._made_of(node, found)))
        return found

    @cached_property
    def read_by(self) -> Mapping[str, set[str]]:
        """By stored tensor: the operators that use it, however turned."""
        found: dict[str, set[str]] = {}
        for node in self.graph.nodes:
            if not self._of_stored(node):
                for root in self.roots_of(node):
                    found.setdefault(root, set()).add(node.name)
        return found

    def _of_stored(self, node: Node) -> bool:
        """Whether a node computes from stored values alone."""
        names = [name for name in node.operands if name is not None]
        return bool(names) and self.stored.issuperset(names)

    def uses(self, name: str) -> int:
        """How often a value is read, by nodes or as an output."""
        return self.graph.n_uses(name) + self.ends[name]

    def roots_of(self, node: Node) -> frozenset[str]:
        """The stored tensors that the stored operands of a node are made of."""
        return self._made_of(node, self.roots)

    def _made_of(self, node: Node, roots: Mapping[str, frozenset[str]]) -> frozenset[str]:
        names = [name for name in node.operands if name is not None and name in self.stored]
        return frozenset().union(*(roots.get(name, frozenset((name,))) for name in names))

    def readers(self, adapter: Adapter) -> set[str]:
        """The operators that use a factor of an adapter."""
        found: set[str] = set()
        for name in (adapter.node, adapter.inner):
            weights = [root for root in self.roots_of(self.nodes[name]) if len(self.graph.values[root].shape) > 1]
            found.update(*(self.read_by[root] for root in weights))
        return found

    def adapters(self) -> Iterator[Adapter]:
        for node in self.graph.nodes:
            if len(node.addends) == 0 or len(node.operands) != 2 or node.results[0] is None:
                continue
            for dense, low in (node.operands, node.operands[::-1]):
                source, outer = self.dense_source(dense), self.contraction(low)
                if source is None or outer is None:
                    continue
                inner = self.contraction(outer[1])
                if inner is None or self.origin(inner[1]) != source or not self.alone(outer[1], inner[0]):
                    continue
                (rank, width), (source_width, _) = _widths(*outer), _widths(*inner)
                if rank and _size(rank) < min(_size(source_width), _size(width)):
                    self.sums[node.results[0]] = source
                    yield Adapter(node.name, outer[0].name, inner[0].name, rank)
                    break

    def alone(self, name: str, inner: Node) -> bool:
        """Whether all that is between the two factors, from a value back to the inner one's result, is used once."""
        while self.uses(name) == 1 and name not in inner.results:
            before = self.computed(self.producer[name])
            if before is None:
                return False
            name = before
        return self.uses(name) == 1

    def computed(self, node: Node) -> str | None:
        """The one operand that is not stored."""
        names = [name for name in node.operands if name is not None and name not in self.stored]
        return names[0] if len(names) == 1 else None

    def origin(self, name: str) -> str:
        """The value that another is a multiple of (plus something stored)."""
        passed = []
        while (known := self._origins.get(name)) is None:
            passed.append(name)
            node = None if name in self.sums else self.producer.get(name)
            operand = self.computed(node) if node is not None and (node.addends or node.multiple) else None
            if operand is None:
                known = name
                break
            name = operand
        self._origins.update(dict.fromkeys(passed, known))
        return known

    def contraction(self, name: str | None) -> tuple[Node, str] | None:
        """The operator with a stored weight that a value comes from, and its other operand."""
        node = self.producer.get(self.origin(name or ""))
        operand = self.computed(node) if node is not None else None
        if node is None or operand is None or node.rule is None:
            return None
        weighted = any(other in self.stored for other in node.operands)
        lookup = self.graph.values[operand].dtype.startswith(("int", "uint"))
        return (node, operand) if weighted and (node.rule.macs or lookup) else None

    def dense_source(self, name: str | None) -> str | None:
        """What a value is a product of with one weight, or with one weight and adapters beside it."""
        start = self.origin(name or "")
        if start in self.sums:
            return self.sums[start]
        found = self.contraction(start)
        return None if found is None else self.origin(found[1])


def _widths(node: Node, operand: str) -> tuple[tuple[Dim, ...], tuple[Dim, ...]]:
    """The dimensions of an operator's weight over which it sums (or looks up), and those that its result has."""
    rule = node.rule
    if rule is None:
        return (), ()
    made = {factor for result in rule.results for dim in result or () for factor in factors_of(dim)}
    layouts = zip(node.operands, rule.operands, strict=False)
    weights = [layout for name, layout in layouts if name != operand and layout is not None and len(layout) > 1]
    dims = tuple(dict.fromkeys(dim for layout in weights for dim in layout))
    summed = tuple(dim for dim in dims if made.isdisjoint(factors_of(dim)))
    return summed, tuple(dim for dim in dims if not made.isdisjoint(factors_of(dim)))


def _size(dims: tuple[Dim, ...]) -> int:
    return prod(dim.size for dim in dims)
