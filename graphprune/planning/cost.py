"""The cost model: multiply-accumulates, parameters and bytes of any plan, from layouts alone, without rewriting.

Such a cost is a polynomial in the numbers of units kept: an axis ``q+(h d)`` contributes ``|q| + |h|·|d|``, a
convolution ``n g co ci kh kw oh ow``. The polynomials are expanded once and evaluated with numpy, so that an allocator
can ask thousands of times. Latency, where a profile gives it, is one more function of the same numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from graphprune.analysis.blocks import Unneeded
from graphprune.analysis.groups import Analysis, Group
from graphprune.ir.dims import Dim, Factor, Product
from graphprune.planning.latency import LatencyModel

METRICS = {
    "macs": "multiply-accumulates",
    "params": "parameters",
    "bytes": "bytes of stored tensors",
    "latency": "milliseconds in onnxruntime",
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

    def share(self, group: int, counts: NDArray[np.float64]) -> float:
        """How much of the value at ``counts`` disappears with all units of ``group``."""
        touched = self._touched.get(group, _NO_ROWS)
        values = np.append(counts, 1.0)[self.powers[touched]].prod(axis=1)
        return float(self.coefficients[touched] @ values)


@dataclass(frozen=True, eq=False)
class CostModel:
    """What a model costs as a function of how many units of each group are kept.

    Attributes:
        groups: The groups, in the order of the ``counts`` that the methods take.
        functions: One for each metric that is known, of :data:`METRICS`.
    """

    groups: tuple[Group, ...]
    functions: Mapping[str, CostFunction]

    @cached_property
    def full(self) -> NDArray[np.float64]:
        """The counts of the unpruned model."""
        return np.array([group.size for group in self.groups], dtype=np.float64)

    def cost(self, metric: str, counts: NDArray[np.float64] | None = None) -> float:
        """The cost of keeping ``counts`` units of each group (absent: all)."""
        return self.functions[metric](self.full if counts is None else counts)

    def costs(self, counts: NDArray[np.float64] | None = None) -> dict[str, float]:
        """All costs at once, by metric."""
        return {metric: self.cost(metric, counts) for metric in self.functions}

    def shares(self, metric: str) -> dict[str, float]:
        """For each group the fraction of the whole cost that all its units together are part of."""
        total = max(self.cost(metric), 1e-30)
        return {g.name: self.functions[metric].share(i, self.full) / total for i, g in enumerate(self.groups)}


def build_cost_model(
    analysis: Analysis, latency: LatencyModel | None = None, *, without: Unneeded = EVERYTHING_NEEDED
) -> CostModel:
    """The cost model of an analysed graph. MACs count sums of products at the shapes of the example input.

    Args:
        analysis: The analysed graph.
        latency: What the model takes by a profile, if latency is to be one of the costs.
        without: Nodes and stored tensors that go with the blocks that are left out, and cost nothing.

    Raises:
        OptionError: Latency is to be a cost, nodes are left out, and the profile's segments have other names.
    """
    index = {group.factor: i for i, group in enumerate(analysis.groups)}
    macs: _Terms = defaultdict(float)
    for node in analysis.graph.nodes:
        for monomial in node.rule.macs if node.rule is not None and node.name not in without.nodes else ():
            _accumulate(macs, [analysis.resolve(node, dim) for dim in monomial], index, 1.0)
    params: _Terms = defaultdict(float)
    size: _Terms = defaultdict(float)
    for value in analysis.graph.stored:
        if value.name in without.tensors:
            continue
        layout = analysis.layouts[value.name]
        _accumulate(size, layout, index, value.itemsize)
        if value.kind == "parameter":
            _accumulate(params, layout, index, 1.0)
    functions: dict[str, CostFunction] = {"macs": _pack(macs), "params": _pack(params), "bytes": _pack(size)}
    if latency is not None:
        functions["latency"] = (latency.without(without.nodes) if without.nodes else latency).over(analysis.groups)
    return CostModel(analysis.groups, functions)


def costs_of(analysis: Analysis, part: Unneeded) -> dict[str, float]:
    """What some nodes and stored tensors of the unpruned model cost, by metric."""
    graph = analysis.graph
    stored = [graph.values[name] for name in part.tensors]
    monomials = (
        monomial
        for node in graph.nodes
        if node.name in part.nodes and node.rule is not None
        for monomial in node.rule.macs
    )
    return {
        "macs": float(sum(prod(dim.size for dim in monomial) for monomial in monomials)),
        "params": float(sum(value.n_elements for value in stored if value.kind == "parameter")),
        "bytes": float(sum(value.n_elements * value.itemsize for value in stored)),
    }


def prunable_share(analysis: Analysis) -> float:
    """The fraction of all parameters that are stored in at least one prunable group."""
    held = {site.tensor for group in analysis.groups for site in group.sites}
    parameters = [value for value in analysis.graph.stored if value.kind == "parameter"]
    total = sum(value.n_elements for value in parameters)
    return sum(value.n_elements for value in parameters if value.name in held) / total if total else 0.0


def _accumulate(into: _Terms, dims: Iterable[Dim], index: Mapping[Factor, int], scale: float) -> None:
    terms: _Terms = {(): scale}
    for dim in dims:
        terms = _times(terms, _expand(dim, index))
    for powers, coefficient in terms.items():
        into[powers] += coefficient


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


def _pack(terms: _Terms) -> Polynomial:
    width = max((len(powers) for powers in terms), default=0) or 1
    powers = np.full((len(terms), width), -1, dtype=np.int64)
    for row, key in enumerate(terms):
        powers[row, : len(key)] = key
    return Polynomial(np.array(list(terms.values()), dtype=np.float64), powers)
