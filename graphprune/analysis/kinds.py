"""What the units of a group are to a user: from the labels that rules gave, and from where the units occur."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from graphprune.analysis.solver import Solver
from graphprune.ir.dims import Dim, Factor, Layout, Product, Sum, factors_of

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
    "recurrent": "hidden units of recurrent layers, common to all layers and directions of one call",
    "unit": "units of another kind",
    "block": "residual branches that can be bypassed as a whole",
    "layer": "layers made of several such branches",
}
"""The kinds of unit, for ``only`` selectors and reports."""

_ATTENTION = ("head", "qk-dim", "value-dim", "norm-group")


class Kinds:
    """What the units of a factor are to a user, from the labels that rules gave and from where it occurs."""

    def __init__(self, layouts: Mapping[str, Layout], solver: Solver, contracted: Iterable[Dim]) -> None:
        self.layouts, self.labels, self.normalized = layouts, solver.labels, solver.normalized
        self.paired = {pair for dim in contracted for pair in _pairs(solver.resolve(dim), solver.fixed)}
        self.fixed = solver.fixed
        self.repeated = _majors(layouts, {f for f, labels in self.labels.items() if _repeats_heads(labels)})
        self.blocked = _majors(layouts, self.normalized.keys() - solver.fixed.keys())
        chosen = {factor for factor, labels in self.labels.items() if "chosen" in labels}
        self.chosen_groups = _majors(layouts, chosen) & chosen

    def of(self, factor: Factor, sites: Sequence[tuple[str, int]]) -> str:
        """The kind of a factor that occurs on these axes of weights.

        Args:
            factor: The merged factor.
            sites: Names of parameters, with an axis.
        """
        labels = self.labels.get(factor, set())
        if "chosen" in labels and any(len(self.layouts[tensor]) > 2 for tensor, _ in sites):
            return "channel" if "channel" in labels else "expert-group" if factor in self.chosen_groups else "expert"
        if _repeats_heads(labels) and not ("query-head" not in labels and self._of_keys(factor, sites)):
            return "query-head"
        if "neuron" in labels and all(self._of_experts(*site) for site in sites):
            return "expert-width"
        for label in _ATTENTION:
            if label in labels:
                if label == "head" and factor in self.repeated:
                    return "kv-group"
                return "rotary-pair" if label == "qk-dim" and factor in self.paired else label
        if factor in self.normalized:
            return "width"
        if factor in self.blocked and "channel" in labels:  # a group norm, exported as an instance norm of blocks
            return "norm-group"
        return next((label for label in ("recurrent", "channel", "neuron") if label in labels), "unit")

    def _of_keys(self, factor: Factor, sites: Sequence[tuple[str, int]]) -> bool:
        """Whether heads are those of keys and values, too, and what was expanded over them is a mask.

        Such heads stand first in the weights of queries, keys, values and what follows. Query heads stand behind the
        heads that they repeat, or first in the weights of queries and of what follows alone.
        """
        n = 0
        for tensor, axis in sites:
            for term in _terms(self.layouts[tensor][axis]) if len(self.layouts[tensor]) > 1 else ():
                before = 1
                for part in factors_of(term):
                    if part not in self.fixed:
                        n += before * (part is factor)
                        break
                    before *= part.size
        return n >= 3

    def _of_experts(self, tensor: str, axis: int) -> bool:
        """Whether the tensor holds the weights of several experts, along another axis."""
        others = (dim for i, dim in enumerate(self.layouts[tensor]) if i != axis)
        return any("chosen" in self.labels.get(factor, ()) for dim in others for factor in factors_of(dim))


def _majors(layouts: Mapping[str, Layout], minors: Collection[Factor]) -> set[Factor]:
    """The factors that stand before one of ``minors`` in a product: key-value heads before their query heads."""
    found: set[Factor] = set()

    wanted = frozenset(minors)

    def walk(dim: Dim) -> None:
        if isinstance(dim, Factor) or wanted.isdisjoint(dim.factors):
            return
        if isinstance(dim, Product):
            for major, minor in zip(dim.parts, dim.parts[1:], strict=False):
                if minor in wanted:
                    found.update(factors_of(major))
        for part in dim.parts:
            walk(part)

    for layout in layouts.values() if minors else ():
        for dim in layout:
            walk(dim)
    return found


def _repeats_heads(labels: set[str]) -> bool:
    """Whether units repeat key-value heads: attention says so, or they are expanded and end up among its heads."""
    return "query-head" in labels or {"repeat", "head"} <= labels


def _terms(dim: Dim) -> tuple[Dim, ...]:
    """The parts that lie one after the other along an axis."""
    return tuple(term for part in dim.parts for term in _terms(part)) if isinstance(dim, Sum) else (dim,)


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
