"""From what a user wants to stay or to go to groups and units.

A name is that of a group, a kind of unit (``head``: all groups of the kind), an axis (``*.up_proj.weight[0]``), or a
module's path, with ``*`` and ``?``; ``layers.3.mlp`` means ``model.layers.3.mlp`` where nothing else ends so. What the
units of a module are is read off the graph: the groups that lie in it as a whole (the neurons of an MLP, the heads of
an attention), else those that its weights give (the channels of a convolution). Whole units go before parts of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from graphprune.analysis.branch import Block
from graphprune.analysis.groups import Analysis, Group
from graphprune.analysis.kinds import KINDS
from graphprune.errors import OptionError
from graphprune.ir.dims import Index, factors_of
from graphprune.planning.cost import CostModel
from graphprune.planning.demands import Demand
from graphprune.planning.selectors import parts, scopes
from graphprune.planning.whole import PARTS_OF_HEADS
from graphprune.suggest import meant

_MOST_NAMES = 3


@dataclass(frozen=True, eq=False)
class Held:
    """A group of which the user says what stays.

    Attributes:
        group: The group.
        n_kept: How many units stay.
        kept: Which ones; ``None`` where importance says so.
        by: The demands, as they were written.
    """

    group: Group
    n_kept: int
    kept: Index | None
    by: tuple[str, ...]


def demanded(analysis: Analysis, demands: Sequence[Demand], protected: Iterable[str] = ()) -> tuple[Held, ...]:
    """What becomes of the groups that demands name, in the order of the analysis.

    Args:
        analysis: The analysed model.
        demands: What the user wants; ``remove`` of several demands adds up.
        protected: Names of groups that stay whole.

    Raises:
        OptionError: A name means nothing, or several things; an index is out of range; two demands contradict each
            other; or a group cannot be cut, or not so.
    """
    if not demands:
        return ()
    names = _Names(analysis)
    by_group: dict[str, list[Demand]] = {}
    for demand in demands:
        for group in names.groups(demand):
            by_group.setdefault(group.name, []).append(demand)
    whole = {*protected}
    return tuple(
        _held(group, by_group[group.name], protected=group.name in whole)
        for group in analysis.groups
        if group.name in by_group
    )


def kept_of(held: Held, scores: Mapping[str, NDArray[np.float64]]) -> Index:
    """The units that stay, by importance where the user says only how many.

    Raises:
        OptionError: There are no scores to choose by.
    """
    if held.kept is not None:
        return held.kept
    if held.group.name not in scores:
        raise OptionError(
            f"'{held.by[0]}' leaves the choice of units to scores, and '{held.group.name}' has none; put 'score' "
            "before 'allocate' in the pipeline"
        )
    order = np.argsort(-scores[held.group.name], kind="stable")
    return np.sort(order[: held.n_kept]).astype(np.int64)


def most_of(model: CostModel, given: Mapping[str, Index]) -> NDArray[np.float64]:
    """For each group of a cost model how many units stay at most, where units that stay are given by name."""
    return np.array([len(given.get(group.name, range(group.size))) for group in model.groups], dtype=np.float64)


def kept_first(scores: Mapping[str, NDArray[np.float64]], given: Mapping[str, Index]) -> dict[str, NDArray[np.float64]]:
    """Scores by which units that stay in any case go last, in their order."""
    found = dict(scores)
    for name, kept in given.items():
        if name in found:
            found[name] = found[name].copy()
            found[name][kept] += 1 + np.ptp(found[name])
    return found


def gone_last(scores: Mapping[str, NDArray[np.float64]], given: Mapping[str, Index]) -> dict[str, NDArray[np.float64]]:
    """Scores by which units that are gone already go first, and count for nothing."""
    found = dict(scores)
    for name, kept in given.items():
        if name in found:
            low = min(0.0, float(found[name].min()))
            lowest = np.full_like(found[name], low - 1e-9 * (1 + abs(low)))
            lowest[kept] = found[name][kept]
            found[name] = lowest
    return found


def gone_with(held: Iterable[Held], analysis: Analysis, blocks: Sequence[Block]) -> list[Held]:
    """Of groups of which the user says what stays: those of which nothing stays without some blocks."""
    gone = analysis.branches.unneeded(blocks).tensors if blocks else frozenset()
    return [each for each in held if gone and gone.issuperset(each.group.tensors)]


def require_there(held: Iterable[Held], analysis: Analysis, blocks: Sequence[Block]) -> None:
    """Refuses to leave out blocks with groups of which the user says what stays.

    Raises:
        OptionError: There is such a group.
    """
    for each in gone_with(held, analysis, blocks):
        names = ", ".join(f"'{block.name}'" for block in blocks)
        raise OptionError(
            f"'{each.by[0]}' is about group '{each.group.name}', which goes as a whole with {names}; leave one of them "
            "out"
        )


def _held(group: Group, demands: Sequence[Demand], *, protected: bool) -> Held:
    """What demands on one group come to."""
    title = f"group '{group.name}' ({group.kind}, {group.size} units)"
    by = tuple(dict.fromkeys(each.title for each in demands))
    if protected:
        raise OptionError(f"'{by[0]}' is about {title}, which 'protect' keeps whole; leave one of them out")
    for each in demands:
        top = max(each.units, default=(each.count or 1) - 1)
        if top >= group.size:
            what = f"{each.count} units" if each.count is not None else f"unit {top}"
            raise OptionError(
                f"'{each.title}' asks for {what}, and {title} counts from 0 to {group.size - 1}: {KINDS[group.kind]}"
            )
    kept: Index | None = None
    gone = sorted({u for each in demands if each.option == "remove" for u in each.units})
    if gone:
        kept = np.setdiff1d(np.arange(group.size, dtype=np.int64), gone)
    for each in demands:
        if each.option == "keep" and each.count is None:
            mine = np.array(sorted(each.units), dtype=np.int64)
            if kept is not None and not np.array_equal(kept, mine):
                raise _contradiction(title, by)
            kept = mine
    counts = [each.count if each.option == "keep" else group.size - each.count for each in demands if each.count]
    numbers = {*counts, *([len(kept)] if kept is not None else [])}
    if len(numbers) > 1:
        raise _contradiction(title, by)
    n_kept = numbers.pop()
    if n_kept < 1 or group.at_least(n_kept) != n_kept:
        need = f"at least {group.minimum} must stay"
        if group.multiple > 1:
            need += f", and units go in multiples of {group.multiple}"
        more = "; 'remove_blocks' leaves out a whole branch" if n_kept < 1 else ""
        raise OptionError(f"'{by[0]}' leaves {n_kept} units of {title}: {need}{more}")
    return Held(group, n_kept, kept, by)


def _contradiction(title: str, by: Sequence[str]) -> OptionError:
    listed = " and ".join(f"'{each}'" for each in by)
    return OptionError(f"{listed} contradict each other: both say what stays of {title}; leave one of them out")


@dataclass(frozen=True)
class _Names:
    """What names mean in a model."""

    analysis: Analysis

    def groups(self, demand: Demand) -> list[Group]:
        """The groups that a demand is about.

        Raises:
            OptionError: There is none, or it is not clear which.
        """
        groups, word, reading = self.analysis.groups, demand.word, demand.reading
        if reading == "group" or (not reading and any(group.name == word for group in groups)):
            found = [group for group in groups if group.name == word]
            if not found:
                raise self._unknown(demand)
            return found
        if reading == "kind" or (not reading and word in KINDS and any(group.kind == word for group in groups)):
            found = [group for group in groups if group.kind == word]
            if not found:
                raise self._unknown(demand)
            return found
        kind = reading if reading in KINDS else ""
        pattern, axis = parts(word)
        hit = self._scopes(demand, pattern)
        if not hit:
            raise self._unknown(demand)
        chosen: dict[str, Group] = {}
        for scope, tensors in hit.items():
            one = self._of_axis(tensors, axis, kind) if axis is not None else self._of_module(tensors, kind)
            if len(one) > 1 and not kind:
                raise self._several(demand, scope, one)
            chosen.update((group.name, group) for group in one)
        if not chosen:
            raise self._whole(demand, {name for tensors in hit.values() for name in tensors}, axis, kind)
        return [group for group in groups if group.name in chosen]

    def _of_axis(self, tensors: set[str], axis: int, kind: str) -> list[Group]:
        """The groups along an axis of some tensors."""
        found = [
            group for group in self.analysis.groups if any(s.tensor in tensors and s.axis == axis for s in group.sites)
        ]
        return [group for group in found if group.kind == kind] if kind else _whole_units(found)

    def _of_module(self, tensors: set[str], kind: str) -> list[Group]:
        """The units of a module that holds some tensors."""
        groups = [group for group in self.analysis.groups if not kind or group.kind == kind]
        touched = [group for group in groups if not tensors.isdisjoint(group.tensors)]
        inside = [group for group in touched if all(site.tensor in tensors for site in group.sites if site.parameter)]
        given = [
            group
            for group in touched
            if any(site.tensor in tensors and (site.tensor, site.axis) in self._given for site in group.sites)
        ]
        if kind:
            return inside or given or touched
        return _whole_units(inside) or _whole_units(given)

    @cached_property
    def _given(self) -> set[tuple[str, int]]:
        """The axes of stored tensors over which nobody sums: what a layer gives, not what it reads."""
        found: set[tuple[str, int]] = set()
        for node in self.analysis.graph.nodes:
            rule = node.rule
            if rule is None:
                continue
            results = {
                factor for result in rule.results if result is not None for d in result for factor in factors_of(d)
            }
            for name, operand in zip(node.operands, rule.operands, strict=False):
                if name is None or operand is None or not self.analysis.graph.values[name].stored:
                    continue
                found.update((name, i) for i, d in enumerate(operand) if not results.isdisjoint(factors_of(d)))
        return found

    @cached_property
    def _aliases(self) -> dict[str, tuple[str, ...]]:
        """By name of a stored tensor: that, and what a reader may know it by."""
        return {
            value.name: (value.name, *([value.title.partition(" (")[0]] if value.title else []))
            for value in self.analysis.graph.stored
        }

    def _scopes(self, demand: Demand, pattern: str) -> dict[str, set[str]]:
        """The shortest scopes of stored tensors that match a pattern, with the tensors in them.

        Raises:
            OptionError: The pattern is the end of several.
        """
        found = self._matching(lambda scope: fnmatchcase(scope, pattern))
        if found:
            return found
        found = self._matching(lambda scope: any(fnmatchcase(scope, f"*{at}{pattern}") for at in "./"))
        ends = sorted(found)
        if len(ends) > 1 and "*" not in pattern and "?" not in pattern:
            shown = ", ".join(f"'{end}'" for end in ends[:4])
            raise OptionError(
                f"'{demand.word}' of {demand.option} may be any of {shown}; write the whole name, or "
                f"'*.{demand.word}' for all of them"
            )
        return found

    def _matching(self, is_meant: Callable[[str], bool]) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for name, aliases in self._aliases.items():
            hits = sorted((scope for alias in aliases for scope in scopes(alias) if is_meant(scope)), key=len)
            if hits:
                found.setdefault(hits[0], set()).add(name)
        return found

    def _unknown(self, demand: Demand) -> OptionError:
        names = [group.name for group in self.analysis.groups]
        known = [*KINDS, *names, *dict.fromkeys(s for each in self._aliases.values() for a in each for s in scopes(a))]
        kinds = ", ".join(dict.fromkeys(group.kind for group in self.analysis.groups)) or "none"
        near = ", ".join(f"'{name}'" for name in names[:_MOST_NAMES]) or "none"
        return OptionError(
            f"{meant(demand.word, known)} of {demand.option} names no module, group or kind of unit of this model; "
            f"groups are called {near}, the kinds are: {kinds} ('graphprune inspect' lists all)"
        )

    def _several(self, demand: Demand, scope: str, groups: Sequence[Group]) -> OptionError:
        kinds = list(dict.fromkeys(group.kind for group in groups))
        if len(kinds) > 1:
            ways = " or ".join(f"'{kind}:{demand.word}'" for kind in kinds)
        else:
            ways = ", ".join(f"'{group.name}'" for group in groups[:_MOST_NAMES])
            ways += f", or '{kinds[0]}:{demand.word}' for all {len(groups)}"
        return OptionError(
            f"'{demand.word}' of {demand.option} may be any of {len(groups)} groups of '{scope}'; write {ways}"
        )

    def _whole(self, demand: Demand, tensors: set[str], axis: int | None, kind: str) -> OptionError:
        """Why what is named cannot be cut, in the words of the analysis."""
        layouts, listed = self.analysis.layouts, sorted(tensors)
        if kind:
            present = [g.kind for g in self.analysis.groups if not tensors.isdisjoint(g.tensors)]
            kinds = ", ".join(dict.fromkeys(present)) or "none"
            return OptionError(
                f"'{demand.word}' of {demand.option} has no units of kind '{kind}'; the kinds there are: {kinds}"
            )
        if axis is not None and all(axis >= len(layouts[name]) for name in listed):
            rank = max(len(layouts[name]) for name in listed)
            return OptionError(
                f"'{demand.word}' of {demand.option} names axis {axis}, '{listed[0]}' has {rank} axes, from 0"
            )
        axes = [(n, i) for n in listed for i in range(len(layouts[n])) if (n, i) in self._given and axis in (None, i)]
        axes = axes or [(n, i) for n in listed for i in range(len(layouts[n])) if axis in (None, i)]
        for name, i in axes:
            for reason in self.analysis.site_reasons(name, i):
                return OptionError(
                    f"'{demand.word}' of {demand.option} cannot be cut: {reason} keeps {name}[{i}] whole"
                )
        reading = [g.name for g in self.analysis.groups if not tensors.isdisjoint(g.tensors)]
        more = f"; did you mean what it reads, '{reading[0]}'?" if reading else ""
        return OptionError(f"'{demand.word}' of {demand.option} holds no units that could be cut{more}")


def _whole_units(groups: Sequence[Group]) -> list[Group]:
    """Groups without parts of heads, where there are whole ones; without the residual width, where there are others."""
    found = [group for group in groups if group.kind not in PARTS_OF_HEADS] or list(groups)
    return [group for group in found if group.kind != "width"] or found
