"""Residual branches: found on the graph, left out by a pass, proven, counted, planned and replayed, on both hosts."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from graphs import RESIDUAL
from test_cli import error_of, run
from torch import nn

import graphprune as gp
from graphprune.analysis.blocks import Branches
from graphprune.analysis.branch import Block
from graphprune.analysis.groups import analyze_graph
from graphprune.errors import OptionError, PlanError, TargetError
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.torch.host import TorchHost
from graphprune.hosts.torch.module import pruned_module
from graphprune.importance.blocks import BLOCK_CRITERIA, block_criterion, register_for_blocks
from graphprune.importance.context import Evidence
from graphprune.ir.text import parse_graph, print_graph
from graphprune.passes import Allocate, RemoveBlocks, RemoveDeadNodes, Score, SliceGroups
from graphprune.passes.verify import verify
from graphprune.pipeline.state import State
from graphprune.planning.cost import build_cost_model
from graphprune.planning.latency import Entry, Machine, Profile
from graphprune.planning.selection import Selection
from graphprune.profiling.profile import cut, latency_model
from graphprune.profiling.refine import predicted_ms
from graphprune.proof.compare import compare, require
from graphprune.proof.masks import masks


class Mlp(nn.Module):
    def __init__(self, d: int = 8, h: int = 12) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(d), nn.Linear(d, h), nn.Linear(h, d)

    def forward(self, x):
        return self.down(F.gelu(self.up(self.norm(x))))


class Mixer(nn.Module):
    """Mixes tokens."""

    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.norm, self.q, self.v, self.o = nn.LayerNorm(d), nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)

    def forward(self, x):
        x = self.norm(x)
        scores = self.q(x) @ x.transpose(1, 2)
        return self.o(scores.softmax(-1) @ self.v(x))


class Pre(nn.Module):
    def __init__(self, n: int = 3, d: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(4, d), nn.Linear(d, 3)
        self.mix = nn.ModuleList([Mixer(d) for _ in range(n)])
        self.mlp = nn.ModuleList([Mlp(d) for _ in range(n)])

    def forward(self, x):
        x = self.stem(x)
        for mix, mlp in zip(self.mix, self.mlp, strict=True):
            x = x + mix(x)
            x = x + mlp(x)
        return self.head(x)


class Post(Pre):
    def __init__(self) -> None:
        super().__init__(2)
        self.norms = nn.ModuleList([nn.LayerNorm(8) for _ in range(4)])

    def forward(self, x):
        x = self.stem(x)
        for i, (mix, mlp) in enumerate(zip(self.mix, self.mlp, strict=True)):
            x = self.norms[2 * i](x + mix(x))
            x = self.norms[2 * i + 1](mlp(x) + x)
        return self.head(x)


class Parallel(Pre):
    """Two branches side by side: ``x + (a + b)`` and ``(x + a) + b``."""

    def forward(self, x):
        x = self.stem(x)
        x = x + (self.mix[0](x) + self.mlp[0](x))
        x = x + self.mix[1](x) + self.mlp[1](x)
        return self.head(x)


class Scaled(Pre):
    """``alpha``, a difference, and a sum followed by a ReLU."""

    def forward(self, x):
        x = self.stem(x)
        x = torch.add(x, self.mlp[0](x), alpha=0.5)
        x = x - self.mlp[1](x)
        x = F.relu(self.mlp[2](x) + x)
        return self.head(x)


class Side(Pre):
    """A branch that alone uses another stream, which goes with it."""

    def forward(self, x, memory):
        x, memory = self.stem(x), self.mlp[0](self.mix[0].o(memory))
        x = x + self.mlp[1](x) * memory
        return self.head(x)


class Shared(Pre):
    """One MLP used twice."""

    def forward(self, x):
        x = self.stem(x)
        x = x + self.mlp[0](x)
        x = x + self.mlp[0](x)
        return self.head(x)


class Nothing(Pre):
    """Sums that are no residual branches."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(5, 8))

    def forward(self, x):
        x = self.stem(x) + self.table
        y = x + 0.044715 * x**3  # no weight: nothing would be saved
        a, b = self.mlp[0](y), self.mlp[1](y)
        return self.head(a + b), (y * a + self.mix[0](a)).mean(-1, keepdim=True) + y


class Net(nn.Module):
    """Convolutions: a block with identity skip, a down-sampling one without, and a U around both."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a, self.an = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.down, self.down2 = nn.Conv2d(8, 16, 2, 2), nn.Conv2d(8, 16, 1, 2)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(self.an(self.a(x)) + x)
        y = F.relu(self.down(x) + self.down2(x))
        return (self.up(y) + x).mean((2, 3))


X, M = (torch.randn(2, 5, n, generator=torch.Generator().manual_seed(n)) for n in (4, 8))
IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))

FOUND = {
    "pre": (
        Pre(2),
        (X,),
        {
            "mix.0.o.weight": "block",
            "mlp.0.down.weight": "block",
            "mix.0.o.weight..mlp.0.down.weight": "layer",
            "mix.1.o.weight": "block",
            "mlp.1.down.weight": "block",
            "mix.1.o.weight..mlp.1.down.weight": "layer",
        },
    ),
    "post": (
        Post(),
        (X,),
        {f"{part}.{i}.{last}.weight": "block" for i in range(2) for part, last in (("mix", "o"), ("mlp", "down"))}
        | {f"mix.{i}.o.weight..mlp.{i}.down.weight": "layer" for i in range(2)},
    ),
    "parallel": (
        Parallel(),
        (X,),
        {f"{part}.{i}.{last}.weight": "block" for i in range(2) for part, last in (("mix", "o"), ("mlp", "down"))}
        | {"mix.0.o.weight..mlp.0.down.weight": "layer"},
    ),
    "scaled": (Scaled(), (X,), {f"mlp.{i}.down.weight": "block" for i in range(3)}),
    "side": (Side(), (X, M), {"mlp.1.down.weight": "block"}),
    "shared": (Shared(), (X,), {"mlp.0.down.weight": "block", "mlp.0.down.weight#2": "block"}),
    "nothing": (Nothing(), (X,), {}),
    "net": (Net(), (IMAGE,), {"an.weight": "block", "up.weight": "block"}),
}


@cache
def found(name: str) -> tuple[TorchHost, gp.Analysis]:
    model, example, _ = FOUND[name]
    host = TorchHost.trace(model.eval(), example).folded()
    return host, analyze_graph(host.graph())


def without(host: TorchHost, analysis: gp.Analysis, blocks) -> State:
    """The state after the branches went."""
    state = State(host, host, analysis, removed=tuple(blocks))
    return RemoveDeadNodes().run(RemoveBlocks().run(state))


@pytest.mark.parametrize("name", FOUND)
def test_blocks_are_found_and_each_can_go(name: str) -> None:
    model, _, expected = FOUND[name]
    host, analysis = found(name)
    assert expected == {block.name: block.kind for block in analysis.blocks}
    inputs = host.example_inputs()
    whole = host.run(inputs)
    full = build_cost_model(analysis).costs()
    for block in analysis.blocks:
        state = without(host, analysis, [block])
        require(verify(host, state.host, analysis, {}, [block]))
        assert compare("", whole, state.host.run(inputs)).difference > 1e-3  # the branch did something
        left = build_cost_model(analysis, without=analysis.branches.unneeded([block])).costs()
        assert left == build_cost_model(analyze_graph(state.host.graph())).costs()
        assert left["macs"] < full["macs"]
        gone = [analysis.graph.values[tensor] for tensor in block.tensors]
        assert full["params"] - left["params"] == sum(value.n_elements for value in gone if value.kind == "parameter")
        module = pruned_module(state).module
        assert name == "shared" or type(model) is type(module)


def test_a_shared_module_goes_with_its_last_use() -> None:
    model, example, _ = FOUND["shared"]
    one = gp.prune(model, example, remove_blocks=["mlp.0.down.weight"], verify=False)
    both = gp.prune(model, example, blocks=2, verify=False)
    assert one.report.cost("params").fraction == 1.0
    assert one.report.cost("macs").fraction < 1.0
    assert both.report.cost("params").after == sum(
        p.numel() for p in (*model.stem.parameters(), *model.head.parameters())
    )
    assert isinstance(both.module, Shared)
    assert type(one.module).__name__ == "PrunedModule"  # the class calls one module twice, or not at all


def test_a_stream_that_only_the_branch_uses_goes_with_it() -> None:
    host, analysis = found("side")
    (block,) = analysis.blocks
    assert {"mlp.0.up.weight", "mix.0.o.weight", "mlp.1.up.weight"} <= set(block.tensors)
    left = without(host, analysis, [block]).host
    assert list(left.example_inputs()) == ["x", "memory"]  # the interface stays
    assert {"stem.weight", "stem.bias", "head.weight", "head.bias"} == {v.name for v in left.graph().stored}


def test_both_halves_of_a_sum_of_branches() -> None:
    """The sum is empty then; the sum around it is bypassed."""
    host, analysis = found("parallel")
    names = ["mix.0.o.weight", "mlp.0.down.weight"]
    parts = [analysis.branches[name] for name in names]
    halves = without(host, analysis, parts).host
    whole = without(host, analysis, [analysis.branches["..".join(names)]]).host
    inputs = host.example_inputs()
    require(verify(host, halves, analysis, {}, parts))
    assert compare("", whole.run(inputs), halves.run(inputs)).difference == 0
    assert {v.name for v in whole.graph().stored} == {v.name for v in halves.graph().stored}


def test_the_graph_as_text_is_enough() -> None:
    text = RESIDUAL.replace("add(s, b)", "add(+s, +b)")
    graph = parse_graph(text)
    assert text.lstrip() == print_graph(graph) or print_graph(graph) == print_graph(parse_graph(print_graph(graph)))
    (block,) = Branches(graph).blocks
    assert (block.name, block.source, block.result) == ("b.weight", "s", "t")
    assert block.tensors == ("a.weight", "b.weight")
    assert {"conv_a", "relu", "conv_b"} == Branches(graph).unneeded([block]).nodes
    assert Branches(parse_graph(RESIDUAL)).blocks == ()  # an operator that is not known to be a sum is none


def test_an_output_inside_a_branch_keeps_what_it_needs() -> None:
    class Net(Pre):
        def forward(self, x):
            x = self.stem(x)
            inside = self.mlp[0].up(x)
            return self.head(x + self.mlp[0].down(F.relu(inside))), inside

    result = gp.prune(Net().eval(), (X,), blocks=1, verify=False)
    assert {"mlp.0.down.weight", "mlp.0.down.bias"} == set(result.report.blocks[0].tensors)


def test_masks_cover_the_whole_branch() -> None:
    """A branch that is not left out, but masked, must be noticed: the oracle can fail."""
    host, analysis = found("pre")
    inputs = host.example_inputs()
    masked = host.run_masked(inputs, masks(analysis, {}, analysis.blocks[:1]))
    assert compare("", masked, host.run(inputs)).difference > 1e-3


@cache
def traced(n: int) -> tuple[TorchHost, gp.Analysis]:
    host = TorchHost.trace(Pre(n).eval(), (X,)).folded()
    return host, analyze_graph(host.graph())


def allocated(n: int, criterion: str = "l2", seed: int = 0, **options) -> State:
    """The state after allocation on a net of ``n`` layers."""
    host, analysis = traced(n)
    selection = Selection(options.pop("only", ()), options.pop("protect", ()))
    state = State(host, host, analysis, selection=selection)
    return Allocate(**options).run(Score("l2", seed, criterion).run(state))


def names(state: State) -> list[str]:
    return [block.name for block in state.removed]


def left(state: State) -> float:
    """The fraction of the MACs that is left."""
    host = RemoveDeadNodes().run(RemoveBlocks().run(SliceGroups().run(state))).host
    return build_cost_model(analyze_graph(host.graph())).cost("macs") / build_cost_model(state.analysis).cost("macs")


def test_targets_count_blocks() -> None:
    alone = allocated(4, targets=("macs=0.6",), only=("block",))
    assert left(alone) <= 0.6
    assert alone.kept == {}
    assert left(allocated(4, remove=tuple(names(alone)[:-1]))) > 0.6  # as few as need be
    mixed = allocated(4, targets=("macs=0.6",), layers="1")
    assert 0.5 < left(mixed) <= 0.6
    assert [block.kind for block in mixed.removed] == ["layer"]
    assert allocated(4, targets=("macs=0.9",), only=("neuron", "block")).removed == ()  # neurons are enough
    last = allocated(4, targets=("macs=0.2",), only=("neuron", "block"))
    assert left(last) <= 0.2
    with pytest.raises(TargetError):  # one branch less would not do, whatever the neurons
        allocated(4, targets=("macs=0.2",), only=("neuron",), remove=tuple(names(last)[:-1]))
    with pytest.raises(TargetError) as caught:
        allocated(4, targets=("macs=0.001",), only=("layer",))
    assert str(caught.value).startswith("target 'macs=0.001' cannot be met: at least ")


def test_reports_count_blocks() -> None:
    result = gp.prune(Pre(2).eval(), (X,), target={"macs": 0.4}, layers=0.5, verify=False)
    assert result.report.cost("macs").after == build_cost_model(analyze_graph(result.host.graph())).cost("macs")
    assert [row.kind for row in result.report.blocks] == ["layer"]


def test_criteria_rank_blocks() -> None:
    host, analysis = traced(3)
    scores = block_criterion("l2")(Evidence(analysis, host.read))
    o = dict(Pre(3).named_parameters())
    expected = (o["mix.0.o.weight"].square().sum() + o["mix.0.o.bias"].square().sum()).sqrt().item() / 8**0.5
    assert scores["mix.0.o.weight"] == pytest.approx(expected, rel=1e-5)
    layer = (scores["mix.0.o.weight"] ** 2 + scores["mlp.0.down.weight"] ** 2) ** 0.5
    assert scores["mix.0.o.weight..mlp.0.down.weight"] == pytest.approx(layer)
    register_for_blocks("last-first", lambda e: {b.name: -i for i, b in enumerate(e.analysis.blocks)})
    try:
        chosen = names(allocated(3, "last-first", blocks="1"))
    finally:
        del BLOCK_CRITERIA["last-first"]
    assert chosen == ["mlp.2.down.weight"]
    random = [names(allocated(3, "random", seed, blocks="3")) for seed in (0, 0, 1)]
    assert random[0] == random[1] != random[2]


def with_dead_mlp() -> nn.Module:
    """The first MLP gives nothing: its projection is zero."""
    model = Pre(2).eval()
    with torch.no_grad():
        for parameter in model.mlp[0].down.parameters():
            parameter.zero_()
    return model


def batches(host: TorchHost, n: int = 3) -> list[dict[str, np.ndarray]]:
    return [host.example_inputs(seed) for seed in range(n)]


@pytest.fixture(scope="module")
def dead() -> tuple[TorchHost, gp.Analysis]:
    """A net whose branch ``mlp.0`` has a zero output projection."""
    host = TorchHost.trace(with_dead_mlp(), (X,)).folded()
    return host, analyze_graph(host.graph())


def scored(dead: tuple[TorchHost, gp.Analysis], criterion: str) -> dict[str, float]:
    host, analysis = dead
    return dict(block_criterion(criterion)(Evidence(analysis, host.read, host=host, batches=batches(host))))


def test_a_branch_that_gives_nothing_is_removed_exactly(dead) -> None:
    host, analysis = dead
    inputs = host.example_inputs()
    left = without(host, analysis, [analysis.branches["mlp.0.down.weight"]]).host
    assert compare("", host.run(inputs), left.run(inputs)).difference == 0
    other = without(host, analysis, [analysis.branches["mlp.1.down.weight"]]).host
    assert compare("", host.run(inputs), other.run(inputs)).difference > 1e-3


@pytest.mark.parametrize("criterion", ["bi", "ablation"])
def test_measured_criteria_remove_the_dead_block_first(dead, criterion: str) -> None:
    host, analysis = dead
    scores = scored(dead, criterion)
    assert scores.keys() == {block.name for block in analysis.blocks}
    assert scores.pop("mlp.0.down.weight") == 0
    assert min(scores.values()) > 1e-5
    state = State(host, host, analysis, batches=batches(host))
    state = Allocate(blocks="1").run(Score("l2", 0, criterion).run(state))
    assert names(state) == ["mlp.0.down.weight"]


def test_block_influence_is_one_minus_the_cosine_at_each_position(dead) -> None:
    """Against PyTorch, from the definition."""
    host, _ = dead
    model = with_dead_mlp()
    with torch.no_grad():
        sources = [model.stem(torch.from_numpy(batch["x"])) for batch in batches(host)]
        results = [source + model.mix[0](source) for source in sources]
    cosines = torch.cat([F.cosine_similarity(x, y, dim=-1).ravel() for x, y in zip(sources, results, strict=True)])
    scores = scored(dead, "bi")
    assert scores["mix.0.o.weight"] == pytest.approx(1 - cosines.mean().item(), abs=1e-6)
    assert scores["mix.0.o.weight..mlp.0.down.weight"] == scores["mix.0.o.weight"]  # the MLP adds nothing


def test_features_of_images_lie_along_channels() -> None:
    host, analysis = found("net")
    scores = block_criterion("bi")(Evidence(analysis, host.read, host=host, batches=[{"x": IMAGE.numpy()}]))
    model = FOUND["net"][0]
    with torch.no_grad():
        x = F.relu(model.stem(IMAGE))
        cosines = F.cosine_similarity(x, model.an(model.a(x)) + x, dim=1)
    assert scores["an.weight"] == pytest.approx(1 - cosines.mean().item(), abs=1e-5)


def test_ablation_is_the_error_of_the_outputs(dead) -> None:
    """Relative to their variance, the mean over the data."""
    host, analysis = dead
    left = without(host, analysis, [analysis.branches["mix.1.o.weight"]]).host
    errors = []
    for batch in batches(host):
        (expected,), (got,) = host.run(batch).values(), left.run(batch).values()
        errors.append(np.square(expected - got).mean() / expected.var())
    assert scored(dead, "ablation")["mix.1.o.weight"] == pytest.approx(np.mean(errors), rel=1e-5)


def test_calibration_ranks_blocks_and_the_refit_follows() -> None:
    """End to end: the dead branch goes, neurons go, and what reads them is refitted on the shallower model."""
    model = with_dead_mlp()
    data = [torch.randn(8, 5, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    options = {"target": {"macs": 0.7}, "calibration": data, "blocks": 1, "align": 1, "only": ["neuron"]}
    refitted = gp.prune(model, (X,), **options, block_criterion="bi")
    plain = gp.prune(model, (X,), **options, block_criterion="bi", compensation="none", verify=False)
    assert [row.name for row in refitted.report.blocks] == ["mlp.0.down.weight"]
    assert refitted.plan.groups == plain.plan.groups
    x = torch.cat(data)
    with torch.no_grad():
        errors = [(result.module(x) - model(x)).square().mean().item() for result in (refitted, plain)]
    assert errors[0] < errors[1]


def test_selectors_and_fractions() -> None:
    assert names(allocated(4, remove=("mlp.2",))) == ["mlp.2.down.weight"]
    assert names(allocated(4, remove=("m*.2",))) == ["mix.2.o.weight..mlp.2.down.weight"]
    assert 4 == len(names(allocated(4, blocks="50%"))) == len(names(allocated(4, blocks="0.5")))
    assert not any(name.startswith("mlp") for name in names(allocated(4, blocks="3", protect=("mlp",))))
    layer = names(allocated(4, layers="0.25"))
    assert len(layer) == 1
    both = names(allocated(4, layers="1", blocks="1"))
    assert layer[0] == both[0]
    assert both[1] not in layer[0]


@pytest.mark.parametrize(
    ("criterion", "options", "message"),
    [
        ("l2", {"blocks": "7"}, "'7' blocks of 6 cannot be removed; expected a number from 1 to 6, or a fraction of at least one block"),
        ("l2", {"blocks": "0.1"}, "'0.1' blocks of 6 cannot be removed; expected a number from 1 to 6, or a fraction of at least one block"),
        ("l2", {"layers": "few"}, "cannot read 'few' layers; expected a number like 2 or a fraction like 0.25"),
        ("no", {"blocks": "1"}, "unknown block criterion 'no'; expected one of ablation, bi, l2, random"),
        ("bi", {"blocks": "1"}, "block criterion 'bi' needs calibration data; give some (calibration=..., --calibration PATH)"),
        (
            "l2",
            {"remove": ("stem",)},
            "'stem' names no residual branch that can be removed; they are named after the last weight of the branch, such as "
            "'mix.0.o.weight', 'mlp.0.down.weight', 'mix.0.o.weight..mlp.0.down.weight' ('graphprune inspect' lists all 9)",
        ),
    ],
)  # fmt: skip
def test_errors(criterion, options, message) -> None:
    with pytest.raises(OptionError) as caught:
        allocated(3, criterion, **options)
    assert message == str(caught.value)


def test_a_model_without_blocks_says_so() -> None:
    model, example, _ = FOUND["nothing"]
    with pytest.raises(OptionError) as caught:
        gp.prune(model, example, blocks=1)
    assert str(caught.value) == "the model has no block that can be removed; see 'graphprune inspect'"


def test_plans_replay_and_compose(tmp_path: Path) -> None:
    model = Pre(2).eval()
    first = gp.prune(model, (X,), target={"params": 0.7}, blocks=1, verify=False)
    first.plan.save(tmp_path / "plan.json")
    again = gp.apply(model, tmp_path / "plan.json", (X,), verify=False)
    inputs = again.host.example_inputs()
    assert compare("", first.host.run(inputs), again.host.run(inputs)).difference == 0
    assert first.report.costs[0].after == again.report.costs[0].after
    data = json.loads((tmp_path / "plan.json").read_text())
    assert [{"name": b.name, "kind": b.kind, "tensors": list(b.tensors)} for b in first.report.blocks] == data["blocks"]
    data["blocks"][0]["tensors"].pop()
    with pytest.raises(PlanError) as caught:
        gp.apply(model, gp.PruningPlan.from_dict(data), (X,))
    assert (
        f"block '{data['blocks'][0]['name']}' of the plan is not a block of this model with the same weights; make the "
        "plan anew" == str(caught.value)
    )
    second = gp.prune(first.module, (X,), blocks=1, verify=False)
    together = gp.apply(model, first.plan.then(second.plan), (X,), verify=False)
    assert compare("", second.host.run(inputs), together.host.run(inputs)).difference < 1e-6
    first.save_state(tmp_path / "state")
    restored = gp.restore(Pre(2).eval(), tmp_path / "state", (X,))
    assert torch.equal(first.module(X), restored(X))


def test_the_module_trains_without_its_branches() -> None:
    model = Pre(2)
    result = gp.prune(model.eval(), (X,), layers=1, blocks=1, verify=False)
    assert any("in the module, placeholders stand for what was left out: " in note for note in result.report.notes)
    module = result.module.train()
    module(torch.randn(3, 7, 4)).sum().backward()  # another shape than that of the example
    assert all(p.grad is not None for p in module.parameters())
    assert set(dict(module.named_parameters())) < set(dict(model.named_parameters()))


def test_a_class_that_cannot_lose_a_branch_gives_the_graph_module() -> None:
    class Functional(nn.Module):
        """The branch is no module of its own, and its bias is added whatever the input is."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.weight, self.bias = (
                nn.Linear(4, 8),
                nn.Parameter(torch.randn(8, 8)),
                nn.Parameter(torch.ones(8)),
            )

        def forward(self, x):
            x = self.stem(x)
            return x + F.linear(F.relu(x), self.weight, self.bias)

    result = gp.prune(Functional().eval(), (X,), blocks=1, verify=False)
    assert type(result.module).__name__ == "PrunedModule"
    assert any(note.startswith("the module is a graph module of torch.export, since ") for note in result.report.notes)
    assert {"stem.weight", "stem.bias"} == set(dict(result.module.named_parameters()))


# -- ONNX --------------------------------------------------------------------------------------------------------------


def exported(name: str, folder: Path) -> Path:
    """The file of one of the nets."""
    found(name)[0].save_onnx(folder / f"{name}.onnx")
    return folder / f"{name}.onnx"


@pytest.mark.parametrize("name", ["post", "parallel", "side", "net"])
def test_the_same_blocks_in_the_exported_file(tmp_path: Path, name: str) -> None:
    expected = FOUND[name][2]
    path = exported(name, tmp_path)
    analysis = gp.analyze(path)
    assert sorted(expected.values()) == sorted(block.kind for block in analysis.blocks)
    before = [node.op_type for node in onnx.load(path).graph.node]
    theirs = found(name)[1]
    for block, other in zip(analysis.blocks, theirs.blocks, strict=True):
        assert share(analysis, block) == pytest.approx(share(theirs, other), abs=1e-9)
    for block in (analysis.blocks[0], analysis.blocks[-1]):
        result = gp.prune(path, remove_blocks=[block.name])  # proven: masked, permuted, in onnxruntime
        result.save_onnx(tmp_path / "out.onnx")
        written = onnx.load(tmp_path / "out.onnx")
        ops = [node.op_type for node in written.graph.node]
        assert len(ops) < len(before)
        assert ops.count("Identity") <= before.count("Identity")
        assert {tensor.name for tensor in written.graph.initializer}.isdisjoint(block.tensors)


def share(analysis: gp.Analysis, block: Block) -> float:
    """What of the MACs goes with a block."""
    left = build_cost_model(analysis, without=analysis.branches.unneeded([block]))
    return 1 - left.cost("macs") / build_cost_model(analysis).cost("macs")


def test_latency_counts_blocks(tmp_path: Path) -> None:
    """Every operator that multiplies takes a millisecond by this profile: those of a branch are saved with it."""
    host = OnnxHost.load(exported("parallel", tmp_path)).folded()
    pieces = cut(host)
    entries = {u.signature: Entry("", ((1.0,),) * len(u.coordinates), (1.0,)) for u in pieces.usages}
    n = float(len(pieces.usages))
    latency = latency_model(Profile(Machine("other", 1, 1, "none", "1"), 8, entries, n, n), pieces)
    analysis = analyze_graph(host.graph())
    state = Score("l2", 0, "l2").run(State(host, host, analysis, latency=latency))
    state = Allocate(targets=("latency=0.6",)).run(replace(state, selection=Selection(only=("block",))))
    gone = {node.name for node in analysis.graph.nodes if node.rule is not None and node.rule.macs}
    gone &= analysis.branches.unneeded(state.removed).nodes
    assert predicted_ms(state, latency) == pytest.approx(n - len(gone))
    assert n - len(gone) <= 0.6 * n
    assert state.kept == {}
    assert len(state.removed) > 1
    fewer = replace(state, removed=state.removed[:-1])
    assert predicted_ms(fewer, latency) > 0.6 * n  # as few as need be


def test_a_sum_that_is_an_output(tmp_path: Path) -> None:
    """The output keeps its name; it is the input of the branch now."""
    rng = np.random.default_rng(0)
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Relu", ["x"], ["r"], "relu"),
            onnx.helper.make_node("MatMul", ["r", "w"], ["b"], "matmul"),
            onnx.helper.make_node("Add", ["b", "x"], ["y"], "add"),
        ],
        "net",
        [onnx.helper.make_tensor_value_info("x", 1, [2, 4])],
        [onnx.helper.make_tensor_value_info("y", 1, [2, 4])],
        [onnx.numpy_helper.from_array(rng.normal(size=(4, 4)).astype(np.float32), "w")],
    )
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "m.onnx",
    )
    result = gp.prune(tmp_path / "m.onnx", blocks=1)
    result.save_onnx(tmp_path / "out.onnx")
    (node,) = onnx.load(tmp_path / "out.onnx").graph.node
    assert (node.op_type, list(node.input), list(node.output)) == ("Identity", ["x"], ["y"])


def test_command_line(tmp_path: Path) -> None:
    path, out = exported("pre", tmp_path), tmp_path / "out.onnx"
    data = json.loads(run("inspect", path, "--json").stdout)
    assert [row["kind"] for row in data["blocks"][:3]] == ["block", "block", "layer"]
    assert data["blocks"][2]["params_share"] == pytest.approx(
        data["blocks"][0]["params_share"] + data["blocks"][1]["params_share"]
    )
    assert "residual branches that can be left out as a whole" in run("inspect", path).stdout
    name = data["blocks"][0]["name"]
    report = json.loads(
        run("prune", path, "-o", out, "--blocks", "25%", "--remove-block", name, "--plan-out", tmp_path / "p.json", "--no-latency", "--json").stdout
    )  # fmt: skip
    assert name in [row["name"] for row in report["blocks"]]
    assert 1 <= len(report["blocks"]) <= 2
    assert all(row["passed"] for row in report["proof"])
    run("verify", path, out, "--plan", tmp_path / "p.json")
    run("apply", path, "--plan", tmp_path / "p.json", "-o", tmp_path / "again.onnx", "--no-latency")
    assert error_of("prune", path, "-o", out) == (
        "no target given; expected one like 'macs=0.5', which keeps half of the multiply-accumulates"
    )


def test_pipelines_name_the_pass() -> None:
    text = "fold-constants,analyze,score{blocks=l2},allocate{blocks=1 layers=1},slice-groups,remove-blocks,remove-dead-nodes,verify"
    model = Pre(2).eval()
    result = gp.prune(model, (X,), pipeline=text, target="macs=1", verify=False)
    assert {"layer", "block"} == {row.kind for row in result.report.blocks}
    assert str(Allocate(blocks="1", remove=("a", "b"))) == "allocate{blocks=1 remove=a|b}"
    with pytest.raises(OptionError) as caught:
        gp.prune(model, (X,), pipeline=text.replace("{blocks=l2}", ""), target="macs=1")
    assert str(caught.value) == "blocks have no scores; put 'score{blocks=l2}' before 'allocate' in the pipeline"
