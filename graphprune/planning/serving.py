"""What a model costs whoever serves it, token by token: keys and values that are kept, parameters that are read.

*Cache*: a causal attention keeps the keys and values of each token; query heads that share a key-value head keep one
copy. *Active parameters*: of experts of which a router chooses some, each token reads so many, and all other weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from graphprune.analysis.groups import Analysis, Group
from graphprune.ir.dims import Dim, Factor, Product, factors_of, product
from graphprune.ir.graph import Node

SERVING = {
    "active_params": "parameters that a token reads",
    "kv_cache": "bytes of keys and values for each token",
}
"""Metrics that only some models have, with units."""
ABSENT = {
    "active_params": "no router of this model chooses among experts that can be told apart",
    "kv_cache": "no causal attention was found in this model",
}
"""Why a model has none of a metric."""

_INNER = frozenset({"head", "qk-dim", "value-dim"})
_CAUSAL = ("is_causal=True", "is_causal=1")
_CACHING = "caching"
"""What operators are that always look back."""


def cached(analysis: Analysis, without: Collection[str] = ()) -> Iterator[tuple[list[Dim], float]]:
    """The sizes of what is kept for each token, and how many bytes an element of it has.

    Args:
        analysis: The analysed graph.
        without: Names of nodes that are left out.
    """
    for node in analysis.graph.nodes:
        if node.name in without or not _is_causal(node):
            continue
        rule = node.rule
        assert rule is not None
        for name, layout in list(zip(node.operands, rule.operands, strict=False))[1:3]:
            if name is not None and layout is not None:
                inner = [d for d in layout if any(rule.labels.get(f) in _INNER for f in factors_of(d))]
                dims = [_once(analysis, analysis.resolve(node, dim)) for dim in inner]
                yield dims, float(analysis.graph.values[name].itemsize)


def _is_causal(node: Node) -> bool:
    labels = {*node.rule.labels.values()} if node.rule is not None else set()
    looks_back = any(text in node.options for text in _CAUSAL) or node.role == _CACHING
    return looks_back and {"qk-dim", "value-dim"} <= labels and len(node.operands) > 2


def _once(analysis: Analysis, dim: Dim) -> Dim:
    """A dimension without the query heads of a key-value head, which share what is kept."""
    if isinstance(dim, Product):
        return product(*(part for part in dim.parts if not (isinstance(part, Factor) and _repeats(analysis, part))))
    return dim


def _repeats(analysis: Analysis, factor: Factor) -> bool:
    """Whether the units of a factor repeat key-value heads."""
    group = analysis.group_of.get(factor)
    labels = analysis.solver.labels.get(factor, set())
    return group.kind == "query-head" if group is not None else "query-head" in labels or {"repeat", "head"} <= labels


def chosen_experts(analysis: Analysis) -> tuple[Group, ...]:
    """The groups of experts of which a router chooses fewer than there are."""
    return tuple(g for g in analysis.groups if g.kind == "expert" and 0 < g.minimum < g.size)


def routed(analysis: Analysis, group: Group) -> frozenset[str]:
    """The stored tensors that hold experts, each of which a token reads only where it is chosen; not the router's."""
    found = set()
    for tensor in group.tensors:
        for node in analysis.graph.readers(tensor):
            rule = node.rule
            if rule is None:
                continue
            results = {f for result in rule.results if result is not None for d in result for f in factors_of(d)}
            for name, layout in zip(node.operands, rule.operands, strict=False):
                if name != tensor or layout is None:
                    continue
                others = [d for d in layout if group.factor not in factors_of(analysis.resolve(node, d))]
                if any(not results.isdisjoint(factors_of(d)) for d in others):
                    found.add(tensor)
    return frozenset(found)
