"""Pieces of an axis that the user's code takes apart evenly keep the same fraction of their units."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.analysis.groups import Analysis, analyze_graph
from graphprune.analysis.ties import find_ties
from graphprune.importance import Evidence, criterion
from graphprune.importance.criteria import normalized
from graphprune.ir.text import parse_graph
from graphprune.planning.allocation import Limits
from graphprune.planning.cost import build_cost_model
from graphprune.planning.problem import Problem
from graphprune.planning.share import ALLOCATIONS
from graphprune.planning.target import parse_targets
from graphprune.planning.ties import join, share_tied

HEAD = """
input x float32 2x4
parameter w float32 24x4
parameter a float32 3x{a}
parameter b float32 3x{b}
computed s float32 2x24
computed p float32 2x{a}
computed q float32 2x{b}
computed y float32 2x3
computed z float32 2x3
linear: s = linear(x, w) : n:2 ci:4, co:24 ci -> n co; macs n co ci
{apart}
first: y = linear(p, a) : n:2 ci:{a}, co:3 ci -> n co; macs n co ci
second: z = linear(q, b) : n:2 ci:{b}, co:3 ci -> n co; macs n co ci
output y
output z
{more}
"""

BOTH = "split: p, q = split(s) : n:2 (u:12+v:12) -> n u, n v"
ROWS = {
    "split": (BOTH, 12, 12, "", [("w[0] w[0]#2", False)]),
    "uneven split": ("split: p, q = split(s) : n:2 (u:8+v:16) -> n u, n v", 8, 16, "", []),
    "slices": (
        "one: p = slice(s) : n:2 (u:12+v:12) -> n u\ntwo: q = slice(s) : n:2 (u:12+v:12) -> n v", 12, 12, "",
        [("w[0] w[0]#2", False)],
    ),
    "a slice of a third": (
        "one: p = slice(s) : n:2 (u:8+v:16) -> n u\ntwo: q = slice(s) : n:2 (u:8+v:16) -> n v", 8, 16, "",
        [("w[0] w[0]#2", False)],
    ),
    "a slice of a few": (
        "one: p = slice(s) : n:2 (u:4+v:20) -> n u\ntwo: q = slice(s) : n:2 (u:4+v:20) -> n v", 4, 20, "", []
    ),
    "a half that is an output": (BOTH, 12, 12, "output q", [("w[0]", True)]),
    "halves that are parts": (
        BOTH + "\ncut: r, t = split(p) : n:2 (u:4+v:8) -> n u, n v", 12, 12,
        "computed r float32 2x4\ncomputed t float32 2x8", [("w[0] w[0]#2 w[0]#3", False)],
    ),
    "gated halves": ("gate: p, q = glu(s) : n:2 (u:12+u) -> n u, n u", 12, 12, "", []),
}  # fmt: skip


def analysis_of(row: str) -> Analysis:
    apart, a, b, more, _ = ROWS[row]
    return analyze_graph(parse_graph(HEAD.format(apart=apart, a=a, b=b, more=more)))


@pytest.mark.parametrize("row", ROWS)
def test_ties_follow_from_the_rules(row: str):
    expected = ROWS[row][-1]
    found = find_ties(analysis_of(row))
    assert expected == [(" ".join(group.name for group in tie.groups), tie.whole) for tie in found]


def test_what_code_makes_stays_whole():
    analysis = analysis_of("split")
    found = find_ties(analysis, frozenset({"a"}))
    assert [(tie.whole, [group.name for group in tie.groups]) for tie in found] == [(True, ["w[0]", "w[0]#2"])]


def scored(analysis: Analysis, name: str = "l2") -> tuple:
    rng = np.random.default_rng(0)
    arrays = {value.name: rng.standard_normal(value.shape) for value in analysis.graph.stored}
    return normalized(criterion(name).score(Evidence(analysis, arrays.__getitem__)))


SEARCHED = {"spdy", "evolution"}


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("row", ["split", "halves that are parts", "a slice of a third"])
@pytest.mark.parametrize("limits", [Limits(1), Limits(4, max_ratio=0.7)], ids=["free", "aligned"])
def test_every_allocation_keeps_ties_and_meets_the_budget(allocation: str, row: str, limits: Limits):
    analysis = analysis_of(row)
    model, ties, scores = build_cost_model(analysis), find_ties(analysis), scored(analysis)
    losses = {group.name: np.linspace(1, 0, group.size + 1) ** 2 for group in analysis.groups}
    problem = Problem(
        model, scores, parse_targets(["macs=0.5"]), limits, frozenset(scores), losses=losses,
        fitness=lambda counts: float(-counts.sum()),
    )  # fmt: skip
    counts = share_tied(problem, ties, allocation)
    kept = {group.name: n / group.size for group, n in zip(model.groups, counts, strict=True)}
    for tie in ties:
        assert len({kept[group.name] for group in tie.groups}) == 1, kept
    joint = join(model, ties)
    step = max(model.full / joint.model.groups[0].size)
    assert model.cost("macs", counts) <= 0.5 * model.cost("macs") + 1e-9
    assert model.cost("macs", counts + step * limits.align) >= 0.5 * model.cost("macs") - 1e-9


def test_ties_may_leave_too_little():
    analysis = analysis_of("a half that is an output")
    joint = join(build_cost_model(analysis), find_ties(analysis))
    assert frozenset() == joint.allowed(frozenset({"w[0]"}))


class Halves(nn.Module):
    """Halves with kernels of their own; ``fixed`` hands one of them out."""

    def __init__(self, *, fixed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fixed = fixed
        self.stem = nn.Conv2d(3, 32, 3)
        self.left, self.right = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x):
        a, b = self.stem(x).chunk(2, 1)
        y = self.head(self.left(a).relu() + self.right(b).relu())
        return (y, b) if self.fixed else y


X = torch.randn(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def widths(result: gp.Result) -> dict[str, int]:
    return {each.name: len(each.kept) for each in result.plan.groups}


@pytest.mark.parametrize("target", [0.7, 0.4])
def test_a_module_keeps_even_halves_and_a_file_is_free(target: float, tmp_path):
    net = Halves().eval()
    with torch.no_grad():
        net.stem.weight[:16] *= 0.01  # one half is worth less than the other
    result = gp.prune(net, (X,), target={"macs": target}, allocation="global", align=1, criterion="l2")
    assert type(result.module) is Halves
    assert widths(result)["stem.weight[0]"] == widths(result)["stem.weight[0]#2"]
    gp.export_onnx(net, (X,), tmp_path / "net.onnx")
    file = gp.prune(tmp_path / "net.onnx", target={"macs": target}, allocation="global", align=1, criterion="l2")
    assert len({each for name, each in widths(file).items() if "stem" in name}) > 1 or len(widths(file)) < 3


def test_a_half_that_must_stay_keeps_the_other_until_the_budget_asks_for_it():
    net = Halves(fixed=True).eval()
    mild = gp.prune(net, (X,), target={"macs": 0.9}, align=1)
    assert (Halves, False) == (type(mild.module), "stem.weight[0]" in widths(mild))
    hard = gp.prune(net, (X,), target={"macs": 0.22}, align=1)
    assert "stem.weight[0]" in widths(hard)
    assert type(hard.module) is not Halves
