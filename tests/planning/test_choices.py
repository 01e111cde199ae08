"""What words of ``only``, ``protect`` and ``remove_blocks`` mean, and budgets that coarse units would miss."""

from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graphs import RESIDUAL
from torch import nn

import graphprune as gp
from graphprune.analysis.groups import analyze_graph
from graphprune.errors import OptionError
from graphprune.ir.text import parse_graph
from graphprune.opening import open_host
from graphprune.planning.allocation import Limits
from graphprune.planning.cost import build_cost_model
from graphprune.planning.fill import LARGE, undershoot
from graphprune.planning.problem import Problem
from graphprune.planning.select import block_candidates, chosen_groups, named_blocks, protected_axes
from graphprune.planning.selectors import doubts
from graphprune.planning.share import share
from graphprune.planning.target import parse_targets


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


class Classifier(nn.Module):
    """A transformer whose classifier is called ``head``, as most are."""

    def __init__(self, depth=1, hidden=128, width=64, heads=4):
        super().__init__()
        self.emb, self.head = nn.Linear(8, width), nn.Linear(width, 10)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {"attn": Attention(width, heads), "up": nn.Linear(width, hidden), "down": nn.Linear(hidden, width)}
            )
            for _ in range(depth)
        )

    def forward(self, x):
        x = self.emb(x)
        for layer in self.layers:
            x = x + layer["attn"](x)
            x = x + layer["down"](F.gelu(layer["up"](x)))
        return self.head(x.mean(1))


class Graphs(nn.Module):
    """Attention over a graph: few heads, wide, and some neurons behind them."""

    def __init__(self):
        super().__init__()
        self.project, self.left, self.right = (
            nn.Linear(32, 64),
            nn.Parameter(torch.randn(4, 16)),
            nn.Parameter(torch.randn(4, 16)),
        )
        self.up, self.out = nn.Linear(64, 128), nn.Linear(128, 4)

    def forward(self, x, edges):
        z = self.project(x).view(-1, 4, 16)
        score = F.leaky_relu((z * self.left).sum(-1)[:, None] + (z * self.right).sum(-1)[None])
        score = score.masked_fill(edges[..., None] == 0, -1e9).softmax(1)
        return self.out(F.relu(self.up(torch.einsum("ijh,jhd->ihd", score, z).reshape(-1, 64))))


X = (torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)),)
EDGES = (torch.ones(7, 32), torch.eye(7) + torch.eye(7).roll(1, 0))


def built(cls, *args, **more):
    torch.manual_seed(0)
    return cls(*args, **more).eval()


@cache
def opened(cls=Classifier, depth=1, hidden=128, heads=4):
    """Traced once; hosts are values."""
    return open_host(built(cls), EDGES) if cls is Graphs else open_host(built(cls, depth, hidden, heads=heads), X)


@cache
def analysed():
    return gp.analyze(opened())


@pytest.fixture
def analysis():
    return analysed()


def kinds(groups):
    return sorted({group.kind for group in groups})


# -- words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (["head"], ["head"]),  # and not the width that the layer of this name reads
        (["kind:head"], ["head"]),
        (["name:head"], ["width"]),
        (["name:head*"], ["width"]),
        (["head*"], ["width"]),
        (["head", "name:head"], ["head", "width"]),
        (["layers.0.attn.qkv.weight[0]"], ["head"]),
        (["group:layers.0.attn.qkv.weight[0]"], ["head"]),
        (["name:layers.0.attn.qkv.weight[0]"], ["head", "qk-dim", "value-dim"]),
        (["layers.0.attn.qkv.weight[0]#2"], ["qk-dim"]),
        (["name:layers.0.up"], ["neuron", "width"]),
    ],
)
def test_only_reads_a_kind_then_a_group_then_names(analysis, only, expected):
    found = kinds(chosen_groups(analysis, only))
    assert [kind for kind in found if kind in expected] == found
    assert set(found) >= {expected[0], expected[-1]} - {"value-dim"}


def test_a_word_that_is_no_kind_here_is_a_name():
    analysis = analyze_graph(parse_graph(RESIDUAL.replace("a.weight", "head.weight")))
    assert [group.name for group in chosen_groups(analysis, ["head[0]"])] == ["head.weight[0]"]
    assert {group.name for group in chosen_groups(analysis, ["head"])} == {"stem.weight[0]", "head.weight[0]"}
    assert doubts(analysis, "only", ["head"]) == doubts(analysis, "protect", ["head"]) == ()


@pytest.mark.parametrize(
    ("protect", "axes", "left"),
    [
        (["head"], ["head.bias", "head.weight"], ["neuron"]),
        (["kind:head"], [], ["neuron", "qk-dim", "width"]),
        (["name:head"], ["head.bias", "head.weight"], ["head", "neuron", "qk-dim"]),
        (["group:layers.0.attn.qkv.weight[0]"], [], ["neuron", "qk-dim", "width"]),
    ],
)
def test_protect_keeps_what_a_word_may_mean(protect, axes, left):
    graph = analysed().graph
    assert sorted(name for name, _, _ in protected_axes(graph, protect)) == axes
    analysis = analyze_graph(graph, protected_axes(graph, protect))
    found = kinds(chosen_groups(analysis, (), protect))
    assert set(left) <= {*found, "qk-dim"}
    assert ("head" in found) == ("head" in left)
    assert ("width" in found) == ("width" in left)


ONLY = (
    "'head' of only is a kind of unit and names 'head.weight', and was taken as the kind; write 'kind:head' or "
    "'name:head' for one of them"
)
PROTECT = (
    "'head' of protect is a kind of unit and names 'head.weight', and was taken as both, and both stay whole; write "
    "'kind:head' or 'name:head' for one of them"
)


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({"only": "head"}, ONLY),
        ({"only": "kind:head"}, None),
        ({"protect": "head"}, PROTECT),
        ({"protect": ("name:head",)}, None),
        ({"pipeline": "analyze,score,allocate{params=0.7 only=head},slice-groups"}, ONLY),
        ({"pipeline": "analyze,score,allocate{params=0.7 only=kind:head},slice-groups"}, None),
    ],
)
def test_a_word_of_two_meanings_is_noted(options, note):
    target = {} if "pipeline" in options else {"target": "params=0.7"}
    report = gp.prune(opened(), verify=False, **target, **options).report
    assert [each for each in report.notes if " of only " in each or " of protect " in each] == ([note] if note else [])
    if "only" in str(options):
        assert {row.kind for row in report.groups if row.kept < row.size} == {"head"}
        assert not report.inexact


def test_sensitivity_notes_it_too():
    found = gp.sensitivity(opened(), only="head", ratios=(0.5,), samples=2)
    assert {row.kind for row in found.rows} == {"head"}
    assert found.notes == (ONLY,)
    assert found.to_dict()["notes"] == [ONLY]
    assert "note: 'head' of only" in " ".join(str(found).split())


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        (
            "only",
            "kind:heads",
            "'kind:heads' (did you mean 'kind:head'?) names no kind of unit; the kinds are expert, ",
        ),
        ("only", "group:up", "'group:up' of only selects no group; the kinds in this model are: "),
        ("only", "name:neuron", "'name:neuron' of only selects no group; the kinds in this model are: "),
        ("protect", "group:up", "'group:up' of protect names no group of the model; groups are called 'emb.weight"),
        ("protect", "name:neuron", "protect pattern 'name:neuron' matches no stored tensor and no kind of group; "),
    ],
)
def test_words_that_mean_nothing(option, text, message):
    with pytest.raises(OptionError) as error:
        gp.prune(opened(), target="params=0.9", verify=False, **{option: text})
    assert str(error.value).startswith(message)


def test_blocks_are_kinds_and_may_be_names(analysis):
    assert chosen_groups(analysis, ["block"]) == ()
    assert [b.kind for b in block_candidates(analysis, "block", ["name:layers.0.up"])] == ["block"]
    assert block_candidates(analysis, "block", ["kind:block"]) == ()


class Wrapped(nn.Module):
    """Weights live below ``model``, as in transformers."""

    def __init__(self, *names):
        super().__init__()
        for name in names:
            self.add_module(name, built(Classifier, 2))

    def forward(self, x):
        return sum(child(x) for child in self.children())


def test_blocks_are_named_by_the_ends_of_scopes():
    blocks = named_blocks(gp.analyze(Wrapped("model"), X), ["layers.1"])
    assert {name for block in blocks for name in block.tensors if "layers.0" in name} == set()
    assert {b.name for b in blocks if b.kind == "block"} == {
        "model.layers.1.attn.proj.weight",
        "model.layers.1.down.weight",
    }
    result = gp.prune(Wrapped("model"), X, remove_blocks="layers.1", verify=False)
    assert {name.rpartition(".layers.")[0] for row in result.report.blocks for name in row.tensors} == {"model"}


def test_an_end_of_several_scopes_is_refused():
    analysis = gp.analyze(Wrapped("encoder", "decoder"), X)
    with pytest.raises(OptionError) as error:
        named_blocks(analysis, ["layers.1"])
    assert str(error.value) == (
        "'layers.1' may be any of 'decoder.layers.1', 'encoder.layers.1'; write the whole name, or '*.layers.1' for all of "
        "them"
    )
    every = named_blocks(analysis, ["*.layers.1"])
    assert {name.partition(".")[0] for block in every for name in block.tensors} == {"encoder", "decoder"}
    assert named_blocks(analysis, ["encoder.layers.1"]) != every


# -- coarse units ------------------------------------------------------------------------------------------------


def remaining(result):
    """Notes that explain why less remains than is allowed."""
    return [note for note in result.report.notes if " remain, where target " in note]


ORDERS = ("isomorphic", "global", "uniform", "zscore", "log-ramp", "kwon")


@pytest.mark.parametrize("allocation", ORDERS)
@pytest.mark.parametrize(("metric", "fraction"), [("params", 0.5), ("macs", 0.6)])
@pytest.mark.parametrize("net", [Classifier, Graphs])
def test_finer_units_pay_for_what_a_coarse_one_would_overshoot(allocation, metric, fraction, net):
    result = gp.prune(opened(net), target={metric: fraction}, allocation=allocation, align=1, verify=False)
    cost = result.report.cost(metric)
    assert (1 - LARGE) * fraction < cost.fraction <= fraction
    assert remaining(result) == []


def test_a_large_undershoot_is_explained():
    result = gp.prune(opened(hidden=8), target="params=0.5", only="kind:head", verify=False)
    assert [(row.kind, row.kept) for row in result.report.groups if row.kept < row.size] == [("head", 1)]
    fraction = result.report.cost("params").fraction
    assert fraction < 0.4
    (note,) = remaining(result)
    start, _, end = note.partition(" in place of 1, would leave ")
    assert start == (
        f"{fraction:.1%} of the parameters remain, where target 'params=0.5' allows 50.0%: the next step, 2 units of "
        "'layers.0.attn.qkv.weight[0]' (kind head, 4 units)"
    )
    assert end.partition("; ")[2] == (
        "to come closer, allow groups that stay whole now, by their kinds in only (width, qk-dim, neuron)"
    )


@pytest.mark.parametrize(
    ("fraction", "options"), [(0.85, {}), (0.5, {"only": ("kind:head", "neuron", "qk-dim"), "align": 1})]
)
def test_parts_of_heads_pay_where_nothing_else_is_fine_enough(fraction, options):
    result = gp.prune(opened(hidden=8, heads=2), target={"params": fraction}, verify=False, **options)
    assert 0.9 * fraction < result.report.cost("params").fraction <= fraction
    assert 1 < {row.kind: row.kept for row in result.report.groups}["qk-dim"] < 32
    assert not result.report.inexact


def test_whole_heads_are_taken_where_that_is_close():
    result = gp.prune(opened(hidden=8), target="params=0.45", verify=False)
    assert {row.kind for row in result.report.groups if row.kept < row.size} <= {"head", "neuron"}
    (note,) = remaining(result)
    assert note.endswith("groups that stay whole now, by their kinds in only (width, qk-dim)")


@pytest.mark.parametrize(("metric", "fraction"), [("params", 0.5), ("macs", 0.5), ("params", 0.7)])
def test_uniform_keeps_as_much_of_groups_that_are_alike(metric, fraction):
    result = gp.prune(opened(depth=3), target={metric: fraction}, allocation="uniform", verify=False)
    for kind in ("neuron", "head"):
        assert len({row.kept for row in result.report.groups if row.kind == kind}) == 1
    assert 0.9 * fraction < result.report.cost(metric).fraction <= fraction


def test_a_choice_that_loses_less_is_not_filled():
    analysis = analysed()
    model = build_cost_model(analysis)
    names = {group.kind: group.name for group in analysis.groups}
    allowed = frozenset({names["head"], names["neuron"]})
    scores = {group.name: np.ones(group.size) for group in analysis.groups}
    losses = {names["head"]: np.arange(5.0), names["neuron"]: 100.0 - np.arange(129) / 1.29}
    targets = parse_targets("params=0.8")
    counts = share(Problem(model, scores, targets, Limits(), allowed, losses=losses), "measured")
    kept = {group.kind: int(n) for group, n in zip(model.groups, counts, strict=True)}
    assert (kept["neuron"], kept["head"]) == (128, 1)
    note = undershoot(model, counts, targets, limits=Limits(), allowed=allowed, original=model, groups=analysis.groups)
    assert note is not None
    assert note.endswith("where target 'params=0.8' allows 80.0%: more units were found to lose no less")
