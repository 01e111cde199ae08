"""The cost model: multiply-accumulates, parameters and bytes of any plan, from layouts alone, without rewriting.

Such a cost is a polynomial in the numbers of units kept: an axis ``q+(h d)`` contributes ``|q| + |h|·|d|``, a
convolution ``n g co ci kh kw oh ow``. The polynomials are expanded once and evaluated with numpy, so that an allocator
can ask thousands of times. Latency, where a profile gives it, is one more function of the same numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from graphprune.analysis.branch import Unneeded
from graphprune.analysis.groups import Analysis, Group
from graphprune.brief import brief
from graphprune.errors import TargetError
from graphprune.ir.dims import Dim, Factor, Product
from graphprune.ir.graph import Value
from graphprune.planning.latency import LatencyModel
from graphprune.planning.serving import ABSENT, SERVING, cached, chosen_experts, routed

METRICS = {
    "macs": "multiply-accumulates",
    "params": "parameters",
    "bytes": "bytes of stored tensors",
    "latency": "milliseconds in onnxruntime",
    **SERVING,
}
"""What a target can be about, with units."""

EVERYTHING_NEEDED = Unneeded()
"""Nothing is left out."""


class CostFunction(Protocol):
    """A cost as a function of how many units of each group are kept; it never falls when units are added."""

    def __call__(self, counts: NDArray[np.float64], /) -> float:
        """The cost at ``counts``, one number of kept units for each group."""

    def share(self, group: int, counts: NDArray[np.float64]) -> float:
        """How much of the cost at ``counts`` disappears with all units of ``group``."""


_NO_ROWS = np.zeros(0, np.int64)
_Terms = dict[tuple[int, ...], float]


@dataclass(frozen=True, eq=False)
class Polynomial:
    """``Σ_t coefficients[t] · Π_j counts[powers[t, j]]``, where index ``-1`` stands for the number one."""

    coefficients: NDArray[np.float64]
    powers: NDArray[np.int64]

    def __call__(self, counts: NDArray[np.float64]) -> float:
        """The value at ``counts``, one number of kept units for each group."""
        return float(self.coefficients @ np.append(counts, 1.0)[self.powers].prod(axis=1))

    @cached_property
    def _touched(self) -> dict[int, NDArray[np.int64]]:
        """For each group, the terms that it occurs in; found once for all, since models have thousands of both."""
        flat = self.powers.ravel()
        order = np.argsort(flat, kind="stable")
        groups, begins = np.unique(flat[order], return_index=True)
        rows = np.split(order // self.powers.shape[1], begins[1:])
        return {int(group): np.unique(each) for group, each in zip(groups, rows, strict=True)}

    def shares(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """:meth:`share` of every group, at once."""
        n_terms = len(self.powers)
        held = self.powers * n_terms + np.arange(n_terms)[:, None]  # a group may be twice in a term
        pairs = np.unique(held[self.powers >= 0])
        group, term = np.divmod(pairs, max(n_terms, 1))
        return np.bincount(group, self.terms(counts)[term], len(counts)).astype(np.float64)

    def terms(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """The terms at ``counts``, one by one."""
        found: NDArray[np.float64] = self.coefficients * np.append(counts, 1.0)[self.powers].prod(axis=1)
        return found

    def share(self, group: int, counts: NDArray[np.float64]) -> float:
        """How much of the value at ``counts`` disappears with all units of ``group``."""
        touched = self._touched.get(group, _NO_ROWS)
        values = np.append(counts, 1.0)[self.powers[touched]].prod(axis=1)
        return float(self.coefficients[touched] @ values)


@dataclass(frozen=True, eq=False)
class Stored:
    """What stored tensors cost: a polynomial, and copies that are stored once as long as they are of equal sizes.

    Attributes:
        own: The tensors that are stored anyway.
        sizes: The terms of the sizes of all axes of all copies, one after the other.
        terms: Where the terms of each axis begin.
        axes: Where the axes of each copy begin.
        radix: For each axis, what its size counts in a number that tells the sizes of copies of one tensor apart.
        tensor: For each copy, a number that tells its tensor from the others, whatever the sizes.
        scale: For each copy, what one element costs.
    """

    own: Polynomial
    sizes: Polynomial
    terms: NDArray[np.int64]
    axes: NDArray[np.int64]
    radix: NDArray[np.float64]
    tensor: NDArray[np.float64]
    scale: NDArray[np.float64]

    def __call__(self, counts: NDArray[np.float64]) -> float:
        """The cost at ``counts``, one number of kept units for each group."""
        sizes = np.add.reduceat(self.sizes.terms(counts), self.terms)
        _, different = np.unique(self.tensor + np.add.reduceat(sizes * self.radix, self.axes), return_index=True)
        costs = self.scale * np.multiply.reduceat(sizes, self.axes)
        return self.own(counts) + float(costs[different].sum())

    def share(self, group: int, counts: NDArray[np.float64]) -> float:
        """How much of the cost at ``counts`` disappears with all units of ``group``."""
        without = counts.copy()
        without[group] = 0
        return max(0.0, self(counts) - self(without))


@dataclass(frozen=True, eq=False)
class Capped:
    """A cost where no more than some units of each group are there."""

    cost: CostFunction
    most: NDArray[np.float64]

    def __call__(self, counts: NDArray[np.float64]) -> float:
        """The cost at ``counts``, one number of kept units for each group."""
        return self.cost(np.minimum(counts, self.most))

    def share(self, group: int, counts: NDArray[np.float64]) -> float:
        """How much of the cost at ``counts`` disappears with all units of ``group``."""
        return self.cost.share(group, np.minimum(counts, self.most))


@dataclass(frozen=True, eq=False)
class CostModel:
    """What a model costs as a function of how many units of each group are kept.

    Attributes:
        groups: The groups, in the order of the ``counts`` that the methods take.
        functions: One for each metric that is known, of :data:`METRICS`.
        stated: What the unpruned model costs, where that is not what the functions say: a file may hold tensors that
            nothing uses.
    """

    __repr__ = brief

    groups: tuple[Group, ...]
    functions: Mapping[str, CostFunction]
    stated: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def full(self) -> NDArray[np.float64]:
        """The counts of the unpruned model."""
        return np.array([group.size for group in self.groups], dtype=np.float64)

    def by_name(self, counts: NDArray[np.float64]) -> dict[str, int]:
        """Counts by the names of the groups."""
        return {group.name: int(n) for group, n in zip(self.groups, counts, strict=True)}

    def cost(self, metric: str, counts: NDArray[np.float64] | None = None) -> float:
        """The cost of keeping ``counts`` units of each group (absent: of the unpruned model).

        Raises:
            TargetError: The model has no such cost.
        """
        if counts is None and metric in self.stated:
            return self.stated[metric]
        if metric in ABSENT and metric not in self.functions:
            raise TargetError(f"target '{metric}' means nothing here: {ABSENT[metric]}; take another metric")
        return self.functions[metric](self.full if counts is None else counts)

    def capped(self, most: NDArray[np.float64]) -> CostModel:
        """The same model where no more than so many units of each group are there, whatever is asked."""
        return replace(self, functions={metric: Capped(cost, most) for metric, cost in self.functions.items()})

    def costs(self, counts: NDArray[np.float64] | None = None) -> dict[str, float]:
        """All costs at once, by metric."""
        return {metric: self.cost(metric, counts) for metric in self.functions}

    def shares(self, metric: str) -> dict[str, float]:
        """For each group the fraction of the whole cost that all its units together are part of."""
        total, function = max(self.cost(metric), 1e-30), self.functions[metric]
        if isinstance(function, Polynomial):
            gone = function.shares(self.full).tolist()
        else:
            gone = [function.share(i, self.full) for i in range(len(self.groups))]
        return {group.name: each / total for group, each in zip(self.groups, gone, strict=True)}


def build_cost_model(
    analysis: Analysis,
    latency: LatencyModel | None = None,
    *,
    without: Unneeded = EVERYTHING_NEEDED,
    stated: Mapping[str, float] | None = None,
    besides: Mapping[str, float] | None = None,
) -> CostModel:
    """The cost model of an analysed graph. MACs count sums of products at the shapes of the example input.

    Args:
        analysis: The analysed graph.
        latency: What the model takes by a profile, if latency is to be one of the costs.
        without: Nodes and stored tensors that go with the blocks that are left out, and cost nothing.
        stated: What the unpruned model costs, by metric, where it is known better than from the graph.
        besides: What is stored outside the graph and stays whatever is cut, by metric.

    Raises:
        OptionError: Latency is to be a cost, nodes are left out, and the profile's segments have other names.
    """
    index = {group.factor: i for i, group in enumerate(analysis.groups)}
    macs: _Terms = defaultdict(float)
    for node in analysis.graph.nodes:
        for monomial in node.rule.macs if node.rule is not None and node.name not in without.nodes else ():
            _accumulate(macs, [analysis.resolve(node, dim) for dim in monomial], index, 1.0)
    stored = [value for value in analysis.graph.stored if value.name not in without.tensors]
    functions: dict[str, CostFunction] = {
        "macs": _pack(macs.items()),
        "params": _stored(analysis, index, stored, lambda value: float(value.weighs), (besides or {}).get("params", 0)),
        "bytes": _stored(analysis, index, stored, lambda value: value.itemsize, (besides or {}).get("bytes", 0)),
    }
    if experts := chosen_experts(analysis):
        functions["active_params"] = _active(analysis, index, stored, experts)
    kept: _Terms = defaultdict(float)
    for dims, each in cached(analysis, without.nodes):
        _accumulate(kept, dims, index, each)
    if kept or (without.nodes and any(True for _ in cached(analysis))):
        functions["kv_cache"] = _pack(kept.items())
    if latency is not None:
        functions["latency"] = (latency.without(without.nodes) if without.nodes else latency).over(analysis.groups)
    return CostModel(analysis.groups, functions, stated or {})


def _active(
    analysis: Analysis, index: Mapping[Factor, int], values: Iterable[Value], experts: Iterable[Group]
) -> CostFunction:
    """The parameters that a token reads: of experts as many as a router chooses."""
    chosen = {name: group for group in experts for name in routed(analysis, group)}
    terms: _Terms = defaultdict(float)
    for value in values:
        own: _Terms = defaultdict(float)
        _accumulate(own, analysis.layouts[value.name], index, float(value.weighs))
        group = chosen.get(value.name)
        at = -1 if group is None else index[group.factor]
        for powers, coefficient in own.items():
            few = group.minimum if group is not None and at in powers else 1
            terms[tuple(i for i in powers if i != at or group is None)] += coefficient * few
    return _pack(terms.items())


def _stored(
    analysis: Analysis,
    index: Mapping[Factor, int],
    values: Iterable[Value],
    scale: Callable[[Value], float],
    besides: float,
) -> CostFunction:
    """What stored tensors cost; those that are copies of one, once for each size that they come to have."""
    terms: _Terms = defaultdict(float)
    terms[()] += besides
    copies: dict[tuple[str, float, tuple[Dim, ...]], None] = {}
    for value in values:
        layout = analysis.layouts[value.name]
        each = scale(value)
        if value.use is None:
            _accumulate(terms, layout, index, each)
        elif each:
            copies[value.use.tensor, each, tuple(layout)] = None
    own = _pack(terms.items())
    if not copies:
        return own
    return _with_copies(own, copies, index)


def _with_copies(
    own: Polynomial, copies: Iterable[tuple[str, float, tuple[Dim, ...]]], index: Mapping[Factor, int]
) -> Stored:
    """The cost with copies: for each its tensor, what an element costs, and its layout."""
    listed = list(copies)
    number = {name: i for i, name in enumerate(dict.fromkeys(name for name, *_ in listed))}
    expanded = [_expand(dim, index) for *_, layout in listed for dim in layout]
    radices = [np.cumprod([1.0, *(dim.size + 1 for dim in layout)]) for *_, layout in listed]
    apart = max(radix[-1] for radix in radices)
    return Stored(
        own,
        _pack([term for terms in expanded for term in terms.items()]),
        _starts(map(len, expanded)),
        _starts(len(layout) for *_, layout in listed),
        np.concatenate([radix[:-1] for radix in radices]),
        np.array([number[name] * apart for name, *_ in listed]),
        np.array([each for _, each, _ in listed]),
    )


def _starts(lengths: Iterable[int]) -> NDArray[np.int64]:
    """Where each of several parts begins that lie one after the other."""
    return np.concatenate([[0], np.cumsum(list(lengths))[:-1]]).astype(np.int64)


def costs_of(analysis: Analysis, parts: Iterable[Unneeded]) -> Iterator[dict[str, float]]:
    """What some nodes and stored tensors of the unpruned model cost, by metric; for each of several parts of it."""
    graph = analysis.graph
    rules = {node.name: node.rule for node in graph.nodes if node.rule is not None and node.rule.macs}
    copies: dict[str, list[str]] = defaultdict(list)
    for value in graph.stored:
        if value.use is not None:
            copies[value.use.tensor].append(value.name)
    for part in parts:
        gone = {(v.use.tensor if v.use else name): v for name in part.tensors for v in [graph.values[name]]}
        stored = [
            value for name, value in gone.items() if part.tensors.issuperset(copies.get(name, ()))
        ]  # for no others
        monomials = (monomial for name in part.nodes if name in rules for monomial in rules[name].macs)
        yield {
            "macs": float(sum(prod(dim.size for dim in monomial) for monomial in monomials)),
            "params": float(sum(value.n_elements for value in stored if value.weighs)),
            "bytes": float(sum(value.n_elements * value.itemsize for value in stored)),
        }


def prunable_share(analysis: Analysis) -> float:
    """The fraction of all parameters that are stored in at least one prunable group."""
    held = {site.tensor for group in analysis.groups for site in group.sites}
    parameters = [value for value in analysis.graph.stored if value.kind == "parameter"]
    total = sum(value.n_elements for value in parameters)
    return sum(value.n_elements for value in parameters if value.name in held) / total if total else 0.0


def _accumulate(into: _Terms, dims: Iterable[Dim], index: Mapping[Factor, int], scale: float) -> None:
    powers, compound = [], []
    for dim in dims:
        if not isinstance(dim, Factor):
            compound.append(dim)
        elif (i := index.get(dim)) is None:
            scale *= dim.size
        else:
            powers.append(i)
    terms: _Terms = {tuple(sorted(powers)): scale}
    for dim in compound:
        terms = _times(terms, _expand(dim, index))
    for each, coefficient in terms.items():
        into[each] += coefficient


def _expand(dim: Dim, index: Mapping[Factor, int]) -> _Terms:
    if isinstance(dim, Factor):
        i = index.get(dim)
        return {(): float(dim.size)} if i is None else {(i,): 1.0}
    if isinstance(dim, Product):
        terms: _Terms = {(): 1.0}
        for part in dim.parts:
            terms = _times(terms, _expand(part, index))
        return terms
    total: _Terms = defaultdict(float)
    for part in dim.parts:
        for powers, coefficient in _expand(part, index).items():
            total[powers] += coefficient
    return total


def _times(a: _Terms, b: _Terms) -> _Terms:
    if len(b) == 1 and () in b:
        scale = b[()]
        return {powers: coefficient * scale for powers, coefficient in a.items()}
    result: _Terms = defaultdict(float)
    for left, x in a.items():
        for right, y in b.items():
            result[tuple(sorted(left + right))] += x * y
    return result


def _pack(terms: Collection[tuple[tuple[int, ...], float]]) -> Polynomial:
    width = max((len(powers) for powers, _ in terms), default=0) or 1
    powers = np.full((len(terms), width), -1, dtype=np.int64)
    for row, (key, _) in enumerate(terms):
        powers[row, : len(key)] = key
    return Polynomial(np.array([coefficient for _, coefficient in terms], dtype=np.float64), powers)
