"""The units of all groups as one row of numbers, and the parameters of a module that hold them.

What a method keeps of units (scores, gates, masks) is one tensor ``[n]`` over all of them; what it reads off
parameters, or does to them, is a few fused calls, however many groups there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from graphprune.analysis.groups import Analysis, Group
from graphprune.ir.dims import Factor, Index, factors_of, unit_of
from graphprune.ir.graph import Graph

_MOVES = ("turn", "copy")
"""Roles of operators that hand a stored weight on as it is, but for the order of its axes."""


@dataclass(frozen=True, eq=False)
class Place:
    """An axis of a parameter along which units of a group lie.

    Attributes:
        name: Of the parameter.
        parameter: It itself.
        axis: The axis.
        group: The position of the group among :attr:`Units.groups`.
        index: For each position of the axis its unit, ``[axis size]``; ``n`` where it is none of the group's.
        reads: Whether units are only read here (columns of what consumes them), not made or carried.
        carries: Whether units are carried on here, element by element: scales of norms, filters of depthwise layers.
    """

    name: str
    parameter: nn.Parameter
    axis: int
    group: int
    index: Tensor
    reads: bool
    carries: bool = False


class Units:
    """The units of the groups of a module.

    Args:
        analysis: The groups, by the names of the module's tensors.
        module: The module.

    Attributes:
        groups: Those of which all weights are parameters of the module.
        others: Those with a weight that is made by code: nothing can hold it at zero, and they stay whole.
        offsets: Where the units of each group begin; the last one is how many there are.
        n: How many units there are.
        parameters: All of the module, by name.
        stored: These and buffers.
        places: Where they are held.
        ends: For each group, whether every way out of its units is through columns of weights (``reads``).
    """

    def __init__(self, analysis: Analysis, module: nn.Module) -> None:
        self.analysis = analysis
        self.parameters = dict(module.named_parameters(remove_duplicate=False))
        self.stored: dict[str, Tensor] = {**self.parameters, **dict(module.named_buffers(remove_duplicate=False))}
        held = [
            all(site.tensor in self.parameters for site in group.sites if site.parameter) for group in analysis.groups
        ]
        self.groups: tuple[Group, ...] = tuple(g for g, own in zip(analysis.groups, held, strict=True) if own)
        self.others: tuple[Group, ...] = tuple(g for g, own in zip(analysis.groups, held, strict=True) if not own)
        self.offsets = np.cumsum([0, *(group.size for group in self.groups)])
        self.n = int(self.offsets[-1])
        read, carried, leaks = _readings(analysis)
        self.ends = tuple(group.factor not in leaks for group in self.groups)
        self.places = tuple(
            Place(
                site.tensor,
                self.parameters[site.tensor],
                site.axis,
                i,
                _index(site.dim, group, int(self.offsets[i]), self.n),
                (site.tensor, site.axis, group.factor) in read,
                (site.tensor, site.axis, group.factor) in carried,
            )
            for i, group in enumerate(self.groups)
            for site in group.sites
            if site.parameter
        )

    @cached_property
    def making(self) -> tuple[Place, ...]:
        """Where units are made and carried: rows, biases, scales and shifts of norms (OTO's zero-invariant groups)."""
        return tuple(place for place in self.places if not place.reads)

    @cached_property
    def gated(self) -> tuple[Place, ...]:
        """One cut through all ways of each unit: the columns that read it; where it has other ways, what makes it."""
        return tuple(place for place in self.places if place.reads == self.ends[place.group])

    @property
    def device(self) -> torch.device:
        """Where tensors over units lie."""
        return self.places[0].parameter.device if self.places else torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of tensors over units: double precision where weights are, else single."""
        double = any(place.parameter.dtype == torch.float64 for place in self.places)
        return torch.float64 if double else torch.float32

    def zeros(self) -> Tensor:
        """A number for each unit."""
        return torch.zeros(self.n, dtype=self.dtype, device=self.device)

    @cached_property
    def group(self) -> Tensor:
        """For each unit the position of its group, ``[n]``."""
        sizes = torch.from_numpy(np.diff(self.offsets))
        return torch.repeat_interleave(torch.arange(len(self.groups)), sizes)

    @cached_property
    def members(self) -> Tensor:
        """For each unit at how many places it is held, ``[n]``."""
        counts = np.bincount([place.group for place in self.places], minlength=len(self.groups))
        return torch.from_numpy(counts).to(self.dtype)[self.group]

    def relative(self, values: Tensor) -> Tensor:
        """Numbers over their mean in the group."""
        totals, sizes = (values.new_zeros(len(self.groups)) for _ in range(2))
        group = self.group.to(values.device)
        totals.index_add_(0, group, values)
        sizes.index_add_(0, group, torch.ones_like(values))
        return values / (totals / sizes).clamp_min(1e-30)[group]

    def largest(self, values: Tensor) -> Tensor:
        """For each unit the largest number in its group."""
        most = values.new_full((len(self.groups),), -torch.inf)
        group = self.group.to(values.device)
        return most.scatter_reduce(0, group, values, "amax")[group]

    # -- from parameters to units ------------------------------------------------------------------------------------

    def sums(
        self, places: Sequence[Place], elements: Callable[[Place], Tensor | None], *, alike: bool = True
    ) -> Tensor:
        """For each unit the sum of some numbers over all its elements.

        Args:
            places: Where to look.
            elements: Gives numbers of the shape of the parameter at a place; ``None`` for nothing there.
            alike: Whether they are the same for all groups along one axis.

        Returns:
            ``[n]``.
        """
        rows, where = [], []
        made: dict[tuple[str, int, int], Tensor] = {}
        for place in places:  # an axis of heads and of their parts is looked at once
            key = place.name, place.axis, -1 if alike else place.group
            if key not in made:
                found = elements(place)
                if found is None:
                    continue
                others = [axis for axis in range(found.ndim) if axis != place.axis]
                row = found.sum(dim=others, dtype=self.dtype) if others else found.to(self.dtype)
                made[key] = row.to(self.device)
            rows.append(made[key])
            where.append(place.index)
        total = torch.zeros(self.n + 1, dtype=self.dtype, device=self.device)
        if rows:
            total.index_add_(0, torch.cat(where).to(self.device), torch.cat(rows))
        return total[: self.n]

    def elements(self, places: Sequence[Place]) -> Tensor:
        """How many elements each unit has, ``[n]``."""
        return self.sums(places, lambda place: torch.ones_like(place.parameter))

    def squares(self, places: Sequence[Place]) -> Tensor:
        """The squared norm of each unit, ``[n]``."""
        with torch.no_grad():
            return self.sums(places, lambda place: place.parameter.detach().square())

    # -- from units to parameters ------------------------------------------------------------------------------------

    def at(self, place: Place, values: Tensor, other: float = 1.0) -> Tensor:
        """Numbers of units as they multiply the parameter at a place; ``other`` where no unit of the group is."""
        parameter = place.parameter
        rest = torch.full((1,), other, dtype=values.dtype, device=values.device)
        row = torch.cat([values, rest])[place.index.to(values.device)].to(parameter.device, parameter.dtype)
        return row.view([-1 if axis == place.axis else 1 for axis in range(parameter.ndim)])

    def factors(self, places: Iterable[Place], values: Tensor) -> dict[str, Tensor]:
        """What parameters are multiplied by, by name: numbers of all their units. Only those with one that is not 1."""
        found: dict[str, Tensor] = {}
        touched = self._touched(values != 1)
        for place in places:
            if touched[place.group]:
                factor = self.at(place, values)
                found[place.name] = found[place.name] * factor if place.name in found else factor
        return found

    def multiply_(self, places: Sequence[Place], values: Tensor) -> None:
        """Multiplies parameters by the numbers of their units, in place."""
        factors = self.factors(places, values)
        if factors:
            with torch.no_grad():
                torch._foreach_mul_([self.parameters[name].data for name in factors], list(factors.values()))

    def add_gradients_(self, places: Sequence[Place], strength: Tensor) -> None:
        """Adds ``strength · w`` to the gradients of the parameters at some places: a penalty on squares of units."""
        with torch.no_grad():
            for place in places:
                if place.parameter.grad is not None:
                    place.parameter.grad.addcmul_(place.parameter.detach(), self.at(place, strength, 0.0))

    def _touched(self, units: Tensor) -> list[bool]:
        """For each group, whether it has one of some units."""
        counted = torch.cat([torch.zeros(1), units.cpu().cumsum(0)])
        bounds = counted[torch.from_numpy(self.offsets)]
        found: list[bool] = (bounds[1:] > bounds[:-1]).tolist()
        return found

    # -- between one row and groups ----------------------------------------------------------------------------------

    def by_group(self, values: Tensor) -> dict[str, NDArray[np.float64]]:
        """Numbers of units by the name of their group, as planning takes them."""
        flat = values.detach().to("cpu", torch.float64).numpy()
        return {g.name: flat[a:b] for g, a, b in zip(self.groups, self.offsets, self.offsets[1:], strict=False)}

    def of_groups(self, found: Mapping[str, NDArray[np.float64]]) -> Tensor:
        """Numbers by the name of their group as one row; groups that are not there have zeros."""
        rows = [np.asarray(found.get(group.name, np.zeros(group.size))) for group in self.groups]
        return torch.from_numpy(np.concatenate([*rows, np.zeros(0)])).to(self.device, self.dtype)

    def mask(self, kept: Mapping[Factor, Index]) -> Tensor:
        """Which units stay, ``[n]`` of booleans."""
        found = np.ones(self.n, np.bool_)
        for group, start in zip(self.groups, self.offsets, strict=False):
            if group.factor in kept:
                found[start : start + group.size] = False
                found[start + kept[group.factor]] = True
        return torch.from_numpy(found).to(self.device)

    def kept(self, mask: Tensor) -> dict[Factor, Index]:
        """The units that stay, for the groups that lose some."""
        flat = mask.cpu().numpy()
        parts = ((g, flat[a:b]) for g, a, b in zip(self.groups, self.offsets, self.offsets[1:], strict=False))
        return {group.factor: np.flatnonzero(part).astype(np.int64) for group, part in parts if not part.all()}


def _index(dim: Any, group: Group, start: int, n: int) -> Tensor:
    units = unit_of(dim, group.factor)
    return torch.from_numpy(np.where(units < 0, n, units + start))


_Where = set[tuple[str, int, Factor]]


def _readings(analysis: Analysis) -> tuple[_Where, _Where, set[Factor]]:
    """Where units are read by a weighted sum: its weight and axis; where they are carried on; and the factors that end
    in another way than through weights as well.

    A unit ends at a node if it is in an operand of the node's rule and not in its results.
    """
    graph, wanted = analysis.graph, analysis.group_of
    read: _Where = set()
    made: _Where = set()
    carried: _Where = set()
    leaks: set[Factor] = set()
    for node in graph.nodes:
        if node.rule is None or (node.role in _MOVES and _origin(graph, node.operands[0] or "") is not None):
            continue
        going = {factor for layout in node.rule.results for dim in layout or () for factor in factors_of(dim)}
        operands = [
            (name, layout, _origin(graph, name))
            for name, layout in zip(node.operands, node.rule.operands, strict=False)
            if name is not None and layout is not None
        ]
        coming = {f for _, layout, stored in operands if stored is None for dim in layout for f in factors_of(dim)}
        by_weight: dict[Factor, bool] = {}
        for _, layout, stored in operands:
            for axis, dim in enumerate(layout):
                for each in factors_of(dim):
                    found = wanted.keys() & factors_of(analysis.resolve(node, each))
                    if stored is not None:
                        where = read if each not in going else made
                        where.update((stored[0], stored[1][axis], factor) for factor in found)
                        if each in going and each in coming:
                            carried.update((stored[0], stored[1][axis], factor) for factor in found)
                    for factor in found if each not in going else ():
                        by_weight[factor] = by_weight.get(factor, False) or stored is not None
        leaks.update(factor for factor, weighed in by_weight.items() if not weighed)
    both = read & made  # tied tables: looked up in one place, read in another
    leaks.update(factor for _, _, factor in both)
    leaks.update(wanted.keys() - {factor for _, _, factor in read - both})
    return read - both, carried - read, leaks


def _origin(graph: Graph, name: str) -> tuple[str, Sequence[int]] | None:
    """The parameter that an operand is a turned or cast copy of, if it is, and which of its axes lies where."""
    if name not in graph.values:
        return None
    axes: Sequence[int] = range(len(graph.values[name].shape))
    while graph.values[name].kind == "computed":
        maker = graph.producer(name)
        if maker is None or maker.role not in _MOVES or maker.rule is None or not maker.operands:
            return None
        before, after, source = maker.rule.operands[0], maker.rule.results[0], maker.operands[0]
        if before is None or after is None or source is None:
            return None
        name, axes = source, [before.index(after[axis]) for axis in axes]
    return (name, axes) if graph.values[name].kind == "parameter" else None
