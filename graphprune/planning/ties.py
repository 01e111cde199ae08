"""Sharing a budget among groups of which some must keep the same fraction.

Tied groups are planned as one: unit ``i`` of the joint group stands for the units of every member that come ``i``-th by
their scores. Every allocation then works as it does on groups that are free, and cannot break a tie.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import reduce
from math import ceil, gcd, lcm

import numpy as np
from numpy.typing import NDArray

from graphprune.analysis.groups import Group, Site, multiplicity
from graphprune.analysis.ties import Tie
from graphprune.ir.dims import Factor, product
from graphprune.planning.allocation import Counts
from graphprune.planning.cost import CostFunction, CostModel
from graphprune.planning.problem import Problem
from graphprune.planning.share import METHODS, share

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Joint:
    """A cost model in which tied groups are one, and the way back.

    Attributes:
        model: The cost model; a joint group has the name of its first member.
        members: For each of its groups, the groups that it stands for; one that is free stands for itself.
        places: For each group of the original model, the group of :attr:`model` that stands for it.
        weights: For each group of the original model, how many of its units a unit of that one is.
        held: Names of groups that must stay whole.
    """

    model: CostModel
    members: tuple[tuple[Group, ...], ...]
    places: NDArray[np.int64]
    weights: Floats
    held: frozenset[str]

    def expanded(self, counts: Counts) -> Counts:
        """The counts of the original groups."""
        found: Counts = counts[self.places] * self.weights
        return found

    def joined(self, counts: Counts) -> Counts:
        """The counts of the joint groups, of counts that keep the ties."""
        found: Counts = np.zeros(len(self.model.groups))
        found[self.places] = counts / self.weights
        return found

    def allowed(self, names: frozenset[str]) -> frozenset[str]:
        """The names of the groups that may be pruned if those in ``names`` may: a joint one if all its members may."""
        return frozenset(
            group.name
            for group, members in zip(self.model.groups, self.members, strict=True)
            if all(member.name in names and member.name not in self.held for member in members)
        )

    def scores(self, scores: Mapping[str, Floats], *, mean: bool) -> dict[str, Floats]:
        """The scores of the joint units: the sum (or mean) of those that they stand for."""
        found = {}
        for group, members in zip(self.model.groups, self.members, strict=True):
            if all(member.name in scores for member in members):
                ranked = [np.sort(scores[member.name]).reshape(group.size, -1) for member in members]
                together = np.concatenate(ranked, axis=1)
                joint = together.mean(1) if mean else together.sum(1)
                found[group.name] = scores[group.name] if len(members) == 1 else joint
        return found

    def curves(self, curves: Mapping[str, Floats]) -> dict[str, Floats]:
        """Curves of losses by kept joint units: the sum of what the members lose, each alone."""
        found = {}
        for group, members in zip(self.model.groups, self.members, strict=True):
            if all(member.name in curves for member in members):
                found[group.name] = np.sum([curves[each.name][:: each.size // group.size] for each in members], axis=0)
        return found


def join(model: CostModel, ties: Sequence[Tie]) -> Joint:
    """The cost model of an analysis with tied groups as one."""
    tie_of = {group.name: tie for tie in ties if not tie.whole for group in tie.groups}
    groups: list[Group] = []
    members: list[tuple[Group, ...]] = []
    at: dict[str, int] = {}
    for group in model.groups:
        if group.name in at:
            continue
        tie = tie_of.get(group.name)
        alike = (group,) if tie is None else tie.groups
        at.update((each.name, len(groups)) for each in alike)
        groups.append(group if tie is None else _joint(tie))
        members.append(alike)
    places = np.array([at[group.name] for group in model.groups], dtype=np.int64)
    sizes = np.array([group.size for group in groups], dtype=np.float64)
    weights = model.full / sizes[places] if len(sizes) else np.zeros(0)
    costs = {metric: _OfJoint(cost, places, weights) for metric, cost in model.functions.items()}
    held = frozenset(group.name for tie in ties if tie.whole for group in tie.groups)
    return Joint(CostModel(tuple(groups), costs), tuple(members), places, weights, held)


def tied_still(ties: Iterable[Tie], gone: AbstractSet[str]) -> tuple[Tie, ...]:
    """What is left of ties when some stored tensors go with blocks that are left out."""
    left = (replace(tie, groups=tuple(g for g in tie.groups if not gone >= set(g.tensors))) for tie in ties)
    return tuple(tie for tie in left if tie.groups and (tie.whole or len(tie.groups) > 1))


def share_tied(problem: Problem, ties: Sequence[Tie], allocation: str) -> Counts:
    """As :func:`graphprune.planning.share.share`, where of tied groups the same fraction is kept.

    Raises:
        OptionError: As for ``share``.
        TargetError: A target cannot be met within the limits and the ties.
    """
    joint, fitness = join(problem.model, ties), problem.fitness
    counts = share(
        replace(
            problem,
            model=joint.model,
            scores=joint.scores(problem.scores, mean=METHODS.find(allocation).ranks),
            allowed=joint.allowed(problem.allowed),
            finer=joint.allowed(problem.finer),
            original=problem.whole,
            fitness=None if fitness is None else lambda counts: fitness(joint.expanded(counts)),
            losses=joint.curves(problem.losses),
        ),
        allocation,
    )
    return joint.expanded(counts)


def _joint(tie: Tie) -> Group:
    """One group for those of a tie. Its sites are theirs, so that it is as wide as all its members together."""
    first, size = tie.groups[0], tie.size
    factor = Factor(first.factor.name, size)
    weights = [group.size // size for group in tie.groups]
    sites = [
        Site(site.tensor, site.axis, product(factor, Factor("each", n)), site.parameter)
        for group, weight in zip(tie.groups, weights, strict=True)
        for site in group.sites
        if (n := weight * multiplicity(site.dim, group.factor))
    ]
    normalized = next((group.normalized for group in tie.groups if group.normalized is not None), None)
    ordered = next((group.ordered for group in tie.groups if group.ordered is not None), None)
    minimum = max(ceil(group.minimum / weight) for group, weight in zip(tie.groups, weights, strict=True))
    multiple = reduce(
        lcm, (group.multiple // gcd(group.multiple, weight) for group, weight in zip(tie.groups, weights, strict=True))
    )
    return Group(first.name, first.kind, factor, tuple(sites), normalized, ordered, minimum, multiple)


@dataclass(frozen=True)
class _OfJoint:
    """A cost as a function of the counts of joint groups."""

    cost: CostFunction
    places: NDArray[np.int64]
    weights: Floats

    def __call__(self, counts: Counts) -> float:
        return self.cost(counts[self.places] * self.weights)

    def share(self, index: int, counts: Counts) -> float:
        """Of all members together, each counted alone."""
        full = counts[self.places] * self.weights
        return sum(self.cost.share(int(i), full) for i in np.flatnonzero(self.places == index))
