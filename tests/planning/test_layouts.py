"""What can be said is asked class by class; a budget is met with the numbers that can be said."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
from configured_nets import IDS, net

import graphprune as gp
from graphprune.analysis.groups import Group, Site
from graphprune.analysis.ties import Tie
from graphprune.errors import OptionError
from graphprune.ir.dims import Factor
from graphprune.planning.allocation import Limits, levels_of
from graphprune.planning.layouts import asked_of, is_bound, sayable, sizes_of

Sizes = dict[int, int]


class Asked:
    """Answers by the numbers of units that change: from each size to a new one."""

    reason = ""

    def __init__(self, says: Callable[[list[tuple[int, int]]], bool]) -> None:
        self.says, self.memo, self.n = says, dict[Any, Any](), 0

    def why_not(
        self, shapes: Mapping[str, Any], gone: Iterable[str] = (), sizes: Iterable[tuple[int, int]] = ()
    ) -> str:
        self.n += 1
        return "" if self.says(sorted(sizes)) else "not said"


@pytest.fixture(scope="module")
def analysis() -> Any:
    return gp.analyze(net(hidden=16, inner=24, heads=4, head=3), (IDS,))


def found(analysis: Any, says: Callable[[list[tuple[int, int]]], bool]) -> Any:
    return sayable(Asked(says), analysis, analysis.groups, ())


def test_alike_places_of_all_layers_are_one_class(analysis: Any) -> None:
    made = found(analysis, lambda sizes: len(sizes) == 3 and {a for a, _ in sizes} in ({24}, {4}))
    assert {(tie.groups[0].kind, len(tie.groups)) for tie in made.ties} == {("neuron", 3), ("head", 3)}
    assert made.levels == {}
    reasons = {group.kind: made.refused.get(group.name) for group in analysis.groups}
    assert reasons["qk-dim"] == "its class would scale scores by the new width of a head"
    assert reasons["width"] == "not said"
    assert reasons["head"] is None


def test_only_some_numbers_can_be_said(analysis: Any) -> None:
    made = found(analysis, lambda sizes: {a for a, _ in sizes} == {24} and all(n % 6 == 0 for _, n in sizes))
    (tie,) = made.ties
    assert {made.levels[group.name] for group in tie.groups} == {(24, 18, 12, 6)}


def test_kinds_that_shrink_in_proportion(analysis: Any) -> None:
    def says(sizes: list[tuple[int, int]]) -> bool:
        return {a for a, _ in sizes} == {4, 16} and len({n / a for a, n in sizes}) == 1

    (tie,) = found(analysis, says).ties
    assert {group.kind for group in tie.groups} == {"head", "width"}
    assert tie.size == 4
    assert set(sizes_of(tie, 3).values()) == {3, 12}


def test_groups_of_one_class_that_cannot_be_said_alone_are_asked_about_with_others_like_them(analysis: Any) -> None:
    groups = analysis.groups
    asked = Asked(lambda sizes: [a for a, _ in sizes] == [3, 3, 3])
    made = sayable(asked, analysis, groups, ())
    assert [tie.groups[0].kind for tie in made.ties] == ["value-dim"]
    n = asked.n
    assert sayable(asked, analysis, groups, ()) is made
    assert asked.n == n


def test_what_code_splits_evenly_stays_whole(analysis: Any) -> None:
    neurons = tuple(group for group in analysis.groups if group.kind == "neuron")
    made = sayable(Asked(lambda sizes: True), analysis, neurons, [Tie(neurons[:1], whole=True)])
    assert made.refused == {neurons[0].name: "the model's code splits it evenly"}
    assert [len(tie.groups) for tie in made.ties] == [2]


@pytest.mark.parametrize(
    ("align", "only", "levels"),
    [
        (1, (24, 18, 12, 6), [24, 18, 12, 6]),
        (6, (24, 18, 12, 5), [24, 18, 12]),
        (8, (24, 18, 12), [24, 18, 12]),
        (1, (24, 2, 1), [24]),
    ],
)
def test_levels_are_those_that_can_be_said(align: int, only: tuple[int, ...], levels: list[int]) -> None:
    factor = Factor("w", 24)
    group = Group("w[0]", "neuron", factor, (Site("w", 0, factor),))
    limits = Limits(align=align, levels={"w[0]": only})
    assert levels_of(group, limits) == levels


def test_layouts() -> None:
    assert [is_bound(each) for each in ("free", "stock", "per-layer", None)] == [False, True, False, False]
    with pytest.raises(OptionError, match="and an ONNX file has no config; leave it out"):
        asked_of(object())
