"""Sizes by the names of a config: how many units each group keeps so that a config of the model's class says them.

The class says which shapes its tensors have then (:mod:`graphprune.hosts.torch.checkpoints.aiming`). Every axis of a
tensor is an equation: the dimension of the analysis, with other numbers of units, is as long as the class makes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from graphprune.analysis.groups import Analysis, Group
from graphprune.errors import OptionError
from graphprune.ir.dims import Dim, Factor, factors_of, resized
from graphprune.planning.layouts import HEADS, SCALED
from graphprune.planning.whole import PARTS_OF_HEADS

Equation = tuple[str, int, Dim, int]
"""A stored tensor, its axis, what the axis is made of, and how long it is to be."""


@dataclass(frozen=True)
class Depth:
    """How many elements a list of modules has, and is to have.

    Attributes:
        path: Of the list.
        before: How many it has.
        after: How many are left.
    """

    path: str
    before: int
    after: int


@dataclass(frozen=True)
class Aim:
    """What a config makes of a model.

    Attributes:
        shapes: By name of a stored tensor: its shape, with all layers still there.
        depths: Lists of layers that become shorter.
        values: What the config is to say, by its full names.
    """

    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    depths: tuple[Depth, ...]
    values: Mapping[str, int]


def shape_texts(given: Any) -> tuple[str, ...]:
    """Sizes in their written form, ``hidden_size=2048``, from texts (several in one, behind commas) or a mapping.

    Raises:
        OptionError: They cannot be read.
    """
    if isinstance(given, Mapping):
        pairs = [(name, value) for name, value in given.items()]
    else:
        listed = [given] if isinstance(given, str) else list(given) if isinstance(given, Iterable) else [given]
        if not all(isinstance(text, str) for text in listed):
            raise OptionError(f"shape_target is {given!r:.60}; expected a text like 'hidden_size=2048', or a mapping")
        pairs = []
        for text in (part for each in listed for part in each.split(",")):
            name, equals, value = text.partition("=")
            number = value.strip().replace("_", "")
            if not equals or not name.strip() or not number.isdecimal():
                raise OptionError(f"cannot read shape target '{text}'; expected one like 'hidden_size=2048'")
            pairs.append((name.strip(), int(number)))
    found: dict[str, int] = {}
    for name, value in pairs:
        if not isinstance(name, str) or not name or isinstance(value, bool) or not isinstance(value, Integral):
            raise OptionError(f"shape target {name!r:.40} is {value!r:.40}; expected a name and a whole number")
        if value < 1:
            raise OptionError(f"shape target '{name}={value}' leaves nothing; expected 1 or more")
        if found.setdefault(name, int(value)) != value:
            raise OptionError(f"shape target '{name}' is {found[name]} and {value}; leave one of them out")
    return tuple(f"{name}={value}" for name, value in found.items())


def read_shape(texts: Iterable[str]) -> dict[str, int]:
    """The sizes of written ones, by name."""
    return {name: int(value) for name, _, value in (text.rpartition("=") for text in texts)}


def counts_of(analysis: Analysis, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, int], str]:
    """How many units groups keep where stored tensors have other shapes, by name, for those that lose some.

    Where several groups share an axis and its length does not say which loses units, whole units do, before parts of
    heads.

    Returns:
        Also why there are no such numbers, or nothing.
    """
    equations: list[Equation] = []
    for name, shape in shapes.items():
        layout = analysis.layouts.get(name)
        if layout is None or len(layout) != len(shape):
            continue
        for axis, (dim, length) in enumerate(zip(layout, shape, strict=True)):
            if length > dim.size:
                return {}, f"'{name}' would grow from {dim.size} to {length} along axis {axis}"
            equations.append((name, axis, dim, length))
    known: dict[Factor, int] = {}
    for part in _components(analysis, equations):
        solved, reason = _Solving(analysis, part).solved({})
        if solved is None:
            return {}, reason
        known.update(solved)
    counts = {g.name: known[g.factor] for g in analysis.groups if known.get(g.factor, g.size) < g.size}
    for group in analysis.groups:
        if group.name in counts and (reason := _refused(group, counts[group.name])):
            return {}, reason
    return counts, ""


def _refused(group: Group, n: int) -> str:
    """Why a group cannot keep so many units."""
    title = f"group '{group.name}' ({group.kind}) would keep {n} of {group.size} units"
    if group.kind in SCALED:
        return f"{title}, and {HEADS}"
    if group.kind == "unit" and len(group.sites) == 1:
        return f"{title}, and it may be a table of places, of which the first ones only could stay"
    if n < 1 or group.at_least(n) != n:
        return f"{title}, of which at least {group.minimum} must stay, in multiples of {group.multiple}"
    return ""


def _components(analysis: Analysis, equations: Sequence[Equation]) -> Iterator[list[Equation]]:
    """Sets of equations that have no group in common."""
    root: dict[Factor, Factor] = {}

    def find(factor: Factor) -> Factor:
        while root.setdefault(factor, factor) is not factor:
            factor = root[factor]
        return factor

    apart: list[Equation] = []
    own: list[tuple[Factor, Equation]] = []
    for equation in equations:
        factors = [factor for factor in dict.fromkeys(factors_of(equation[2])) if factor in analysis.group_of]
        for other in factors[1:]:
            root[find(other)] = find(factors[0])
        if factors:
            own.append((factors[0], equation))
        else:
            apart.append(equation)
    sets: dict[Factor, list[Equation]] = {}
    for factor, equation in own:
        sets.setdefault(find(factor), []).append(equation)
    yield from ([equation] for equation in apart)
    yield from sets.values()


@dataclass(frozen=True)
class _Solving:
    """Equations that hang together."""

    analysis: Analysis
    equations: Sequence[Equation]

    def solved(self, known: Mapping[Factor, int]) -> tuple[dict[Factor, int] | None, str]:
        """Numbers of units that meet all equations, or why there are none."""
        found, open_ = dict(known), list(self.equations)
        while True:
            left: list[Equation] = []
            before = len(found)
            for equation in open_:
                reason = self._step(equation, found)
                if reason is None:
                    left.append(equation)
                elif reason:
                    return None, reason
            open_ = left
            if not open_:
                return found, ""
            if len(found) == before:
                break
        failure = ""
        unknown = [factor for factor in dict.fromkeys(factors_of(open_[0][2])) if self._free(factor, found)]
        for changing in sorted(unknown, key=lambda factor: self.analysis.group_of[factor].kind in PARTS_OF_HEADS):
            whole = {factor: factor.size for factor in unknown if factor is not changing}
            solved, reason = self.solved({**found, **whole})
            if solved is not None:
                return solved, ""
            failure = failure or reason
        return None, failure

    def _free(self, factor: Factor, found: Mapping[Factor, int]) -> bool:
        return factor in self.analysis.group_of and factor not in found

    def _step(self, equation: Equation, found: dict[Factor, int]) -> str | None:
        """Learns what an equation says; empty if it holds then, ``None`` if it does not say enough yet."""
        name, axis, dim, length = equation
        unknown = [factor for factor in dict.fromkeys(factors_of(dim)) if self._free(factor, found)]
        if length == dim.size and unknown:  # nothing of it goes
            found.update((factor, factor.size) for factor in unknown)
            unknown = []
        if len(unknown) > 1:
            return None
        if unknown:
            (factor,) = unknown
            zero, one = (resized(dim, {**found, factor: n}) for n in (0, 1))
            n, rest = divmod(length - zero, one - zero)
            if rest or not 0 <= n <= factor.size:
                group = self.analysis.group_of[factor]
                return (
                    f"'{name}' would be {length} along axis {axis}, which is no whole number of units of group "
                    f"'{group.name}' ({group.kind}, {group.size} units of {dim.size // group.size})"
                )
            found[factor] = n
        if resized(dim, found) == length:
            return ""
        reasons = [str(reason) for reason in self.analysis.site_reasons(name, axis)]
        why = f": {reasons[0]} keeps it whole" if reasons else f", and what it shares is {resized(dim, found)}"
        return f"'{name}' would be {length} along axis {axis} in place of {dim.size}{why}"
