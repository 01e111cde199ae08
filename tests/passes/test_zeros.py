"""What is dead already goes, all of it and nothing else, and the model computes what it did."""

from __future__ import annotations

import copy
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_cli import error_of, run, small_model
from torch import nn
from torch.nn.utils import prune as masks

import graphprune as gp
from graphprune.errors import GraphpruneError, OptionError, ProofError
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.importance.constants import find_constants
from graphprune.ir.dims import unit_of

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.c2, self.f1 = nn.Conv2d(8, 12, 3, padding=1), nn.Linear(12, 16)
        self.f2, self.f3 = nn.Linear(16, 16, bias=False), nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.c2(F.relu(self.b1(self.c1(x))))).mean((2, 3))
        return self.f3(F.gelu(self.f2(torch.sigmoid(self.f1(x)))))


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def gone(result: Any) -> dict[str, list[int]]:
    return {g.name.partition(".weight")[0]: sorted({*range(g.size)} - {*g.kept}) for g in result.plan.groups}


def without(model: nn.Module, example: Any = (IMAGES,), **options: Any) -> Any:
    return gp.prune(model, example, target="zeros", **options)


def zero(tensor: torch.Tensor, index: Any, value: float = 0.0) -> None:
    with torch.no_grad():
        tensor[index] = value


ROWS: dict[str, tuple[list[tuple[str, Any, float]], dict[str, list[int]]]] = {
    "rows": ([("c2.weight", 5, 0), ("c2.bias", 5, 0)], {"c2": [5]}),
    "a row with a bias": ([("c2.weight", 5, 0)], {"c2": [5]}),  # constant, and read by a weighted sum of means
    "columns": ([("f3.weight", (slice(None), 7), 0)], {"f2": [7]}),
    "columns of a convolution": ([("c2.weight", (slice(None), 3), 0)], {"c1": [3]}),
    "scales of a norm": ([("b1.weight", 2, 0), ("b1.bias", 2, 0)], {"c1": [2]}),
    "cut off by an activation": ([("b1.weight", 2, 0), ("b1.bias", 2, -1)], {"c1": [2]}),
    "constant beside padding": ([("b1.weight", 2, 0), ("b1.bias", 2, 1)], {}),
    "constant behind a sigmoid": ([("f1.weight", 1, 0), ("f1.bias", 1, 0)], {"f1": [1]}),
    "what follows from constants": (
        [("f1.weight", 1, 0), ("f2.weight", 4, 0), ("f2.weight", (4, 1), 2.0)], {"f1": [1], "f2": [4]}),
    "hardly ever active": ([("f1.bias", 2, -90.0), ("c2.bias", 6, -90.0)], {}),
    "small": ([("c2.weight", 5, 1e-20), ("c2.bias", 5, 0)], {}),
    "half of a row": ([("c2.weight", (5, slice(1, None)), 0)], {}),
    "all of them": ([("f3.weight", slice(None), 0)], {"f2": list(range(1, 16))}),  # one stays
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_what_is_dead_goes_and_nothing_else(name: str) -> None:
    changes, expected = ROWS[name]
    model = net()
    for tensor, index, value in changes:
        zero(model.get_parameter(tensor), index, value)
    before = copy.deepcopy(model.state_dict())
    result = without(model)
    found = gone(result)
    if name == "all of them":
        assert len(found["f2"]) == 15
    else:
        assert found == expected
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    (check,) = (each for each in result.report.proof if each.name == "unchanged")
    assert check.passed
    assert check.difference < 1e-7
    assert type(result.module) is Net
    with torch.no_grad():
        torch.testing.assert_close(result.module(IMAGES * 30), model(IMAGES * 30), rtol=1e-5, atol=1e-6)


def test_the_report_says_what_went_where() -> None:
    model = net()
    zero(model.f1.weight, [1, 3])
    zero(model.f3.weight, (slice(None), [2, 9, 11]))
    result = without(model)
    assert "5 units in 2 groups contribute nothing to the outputs and were removed" in result.report.notes
    assert "constants of removed units were added to the biases of 1 layers" in result.report.notes
    assert {row.asked for row in result.report.groups if row.kept < row.size} == {"target zeros"}
    assert result.module.f2.bias is not None
    assert gp.Recipe.from_dict(result.plan.recipe).targets == ("zeros",)
    nothing = without(net())
    assert "no unit contributes nothing to the outputs; nothing was removed" in nothing.report.notes
    assert nothing.plan.groups == ()


def test_a_plan_is_replayed_with_its_constants_and_on_no_other_weights() -> None:
    model = net()
    zero(model.f1.weight, 1)
    result = without(model)
    again = gp.apply(model, result.plan, (IMAGES,))
    assert torch.equal(again.module.f2.bias, result.module.f2.bias)
    with pytest.raises(ProofError) as error:
        gp.apply(net(), result.plan, (IMAGES,))
    assert str(error.value) == (
        "units of group 'f1.weight[0]' that the plan removes are not dead in this model; make the plan anew with target "
        "'zeros'"
    )


def test_masks_of_torch_are_looked_through() -> None:
    model = net()
    keep = torch.ones(16, 12)
    keep[[3, 8]] = 0
    masks.custom_from_mask(model.f1, "weight", keep)
    masks.custom_from_mask(model.f1, "bias", keep[:, 0])
    masks.ln_structured(model.f3, "weight", amount=4, n=2, dim=1)
    result = without(model)
    found = gone(result)
    assert (found["f1"], len(found["f2"])) == ([3, 8], 4)
    with torch.no_grad():
        torch.testing.assert_close(result.module(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-6)


# -- experts -------------------------------------------------------------------------------------------------------


class Experts(nn.Module):
    """Two of six experts answer, by their scores; with a bias on the scores, as some routers have one."""

    def __init__(self, *, even: bool = True) -> None:
        super().__init__()
        self.router, self.even = nn.Linear(8, 6), even
        self.up, self.down = nn.Parameter(torch.randn(6, 8, 12)), nn.Parameter(torch.randn(6, 12, 8))
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        probs = self.router(x).softmax(-1)
        weights, places = probs.topk(2, -1)
        weights = weights / weights.sum(-1, keepdim=True) if self.even else weights
        share = torch.zeros_like(probs).scatter(-1, places, weights)
        y = torch.einsum("eth,ehd->etd", F.silu(torch.einsum("td,edh->eth", x, self.up)), self.down)
        return self.out(torch.einsum("te,etd->td", share, y))


TOKENS = torch.randn(40, 8, generator=torch.Generator().manual_seed(1))


def experts(**options: Any) -> Experts:
    torch.manual_seed(0)
    return Experts(**options).eval()


@pytest.mark.parametrize("even", [True, False])
def test_an_expert_is_dead_only_if_it_is_never_chosen(even: bool) -> None:
    model = experts(even=even)
    zero(model.down, 1)  # says nothing, and takes a share where it is chosen
    zero(model.router.weight, 1)
    assert gone(without(model, (TOKENS,))) == {}
    zero(model.router.bias, [1, 4], -math.inf)
    result = without(model, (TOKENS,))
    assert gone(result) == {"up[0]": [1, 4]}
    with torch.no_grad():
        torch.testing.assert_close(result.module(TOKENS), model(TOKENS), rtol=1e-5, atol=1e-6)
    zero(model.router.bias, slice(1, None), -math.inf)  # two are asked for
    assert len(gone(without(model, (TOKENS,)))["up[0]"]) == 4


@pytest.mark.parametrize("side", ["up", "down"])
def test_the_width_of_experts(side: str) -> None:
    model = experts()
    if side == "up":
        zero(model.up, (slice(None), slice(None), [2, 5]))
        zero(model.up, (0, slice(None), 7))  # of one of them
    else:
        zero(model.down, (slice(None), [2, 5]))
        zero(model.down, (0, 7))
    assert gone(without(model, (TOKENS,))) == {"up[2]": [2, 5]}


# -- planted in architectures ----------------------------------------------------------------------------------------

TEXT = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
CLASSES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {**TEXT, **SIZES, "num_key_value_heads": 2},
    "Phi3ForCausalLM": {**TEXT, **SIZES, "num_key_value_heads": 2},
    "GPT2LMHeadModel": {**TEXT, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 32},
    "MixtralForCausalLM": {**TEXT, **SIZES, "num_key_value_heads": 2, "num_local_experts": 3, "num_experts_per_tok": 2},
    "BertForSequenceClassification": {**TEXT, **SIZES},
    "T5ForConditionalGeneration": {
        "vocab_size": 40, "d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 1, "num_heads": 4,
        "decoder_start_token_id": 0},
    "ViTForImageClassification": {**SIZES, "image_size": 16, "patch_size": 8},
    "Wav2Vec2ForCTC": {
        **SIZES, "vocab_size": 32, "conv_dim": (8, 8), "conv_kernel": (10, 3), "conv_stride": (5, 4),
        "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4, "num_feat_extract_layers": 2},
}  # fmt: skip
PLANTED = ("neuron", "head", "kv-group", "expert-width")


def planted(model: nn.Module, analysis: Any) -> dict[str, list[int]]:
    """Zeros on one side of some units of each group of neurons and heads: of what gives them, or of what reads them."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    found = {}
    for n, group in enumerate(each for each in analysis.groups if each.kind in PLANTED and each.exact):
        units = [1] if group.multiple == 1 else list(range(group.multiple))
        names = [site.tensor for site in group.sites if site.tensor in tensors]
        last = names[-1]  # an output projection reads them, all before it give them
        for site in group.sites:
            if site.tensor in names and (site.tensor == last) == bool(n % 2):
                at = np.flatnonzero(np.isin(unit_of(site.dim, group.factor), units))
                with torch.no_grad():
                    tensors[site.tensor].index_fill_(site.axis, torch.from_numpy(at), 0.0)
        found[group.name] = units
    return found


@cache
def architecture(name: str) -> tuple[Any, Any]:
    import transformers

    from graphprune.hosts.torch.checkpoints.reading import example_of

    torch.manual_seed(0)
    kind: Any = getattr(transformers, name)
    model = kind(kind.config_class(**CLASSES[name])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model, example_of(model)


@pytest.mark.parametrize("name", CLASSES)
def test_all_that_was_planted_is_found(name: str) -> None:
    model, example = architecture(name)
    session = gp.Session(model, example)
    expected = planted(model, session.analyze())
    assert len(expected) >= 3
    result = session.prune(target="zeros", verify=False)
    assert {g.name: sorted({*range(g.size)} - {*g.kept}) for g in result.plan.groups} == expected
    assert type(result.module) is type(model)
    with torch.no_grad():
        one, other = (next(iter(each(**example).values())).double() for each in (model, result.module))
    assert float((one - other).abs().max()) <= 1e-6 * float(one.abs().max())


# -- files, layouts, the command line ------------------------------------------------------------------------------


def test_a_file_without_zeros(tmp_path: Path) -> None:
    path = small_model(tmp_path / "m.onnx")
    host = OnnxHost.load(path)
    first, bias = host.read("first.weight").copy(), host.read("first.bias").copy()
    first[:, [2, 20]] = 0
    bias[20] = -3  # the activation cuts it off
    host.replaced({"first.weight": first, "first.bias": bias}).save_onnx(path)
    run(
        "prune", path, "-o", tmp_path / "out.onnx", "--target", "zeros", "--plan-out", tmp_path / "p.json", "--no-latency"
    )  # fmt: skip
    (group,) = gp.PruningPlan.load(tmp_path / "p.json").groups
    assert sorted({*range(24)} - {*group.kept}) == [2, 20]  # the former is a constant that 'second' adds
    out = OnnxHost.load(tmp_path / "out.onnx")
    x = {"x": np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32) * 50}
    np.testing.assert_allclose(out.run(x)["y"], OnnxHost.load(path).run(x)["y"], rtol=1e-5, atol=1e-4)
    assert all(check.passed for check in gp.verify(path, tmp_path / "out.onnx", tmp_path / "p.json"))


def test_with_a_config_layers_stay_alike() -> None:
    from configured_nets import IDS
    from configured_nets import net as configured

    model = configured()
    for i, units in enumerate(([1, 2, 3], [4, 5], [0, 7, 9, 11])):
        zero(model.layers[i].down.weight, (slice(None), units))
    result = gp.prune(model, (IDS,), target="zeros", layout="stock")
    assert result.module.config.inner == 22
    assert {len(units) for units in gone(result).values()} == {2}
    assert any("more had to stay" in note for note in result.report.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 1}, "target 'zeros' changes nothing of what the model computes; leave blocks, layers and "
                        "remove_blocks out beside it"),
        ({"keep": {"f1": 3}}, "target 'zeros' changes nothing of what the model computes; leave keep and remove out beside "
                              "it"),
        ({"compensation": "affine"}, "target 'zeros' changes nothing of what the model computes; leave compensation out "
                                     "beside it"),
        ({"pipeline": "analyze,score,allocate{macs=0.5},slice-groups"},
         "target 'zeros' is a pipeline of its own; leave the pipeline out"),
    ],
)  # fmt: skip
def test_what_cannot_stand_beside_it(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as error:
        without(net(), **options)
    assert str(error.value) == message
    with pytest.raises(GraphpruneError, match="^unknown target 'zeros'"):
        gp.Recipe.of(target=["zeros=1", "macs=0.5"])


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    path = small_model(tmp_path / "m.onnx")
    said = error_of("prune", path, "-o", tmp_path / "o.onnx", "--target", "zeros", "--layers", "1")
    assert said.startswith("target 'zeros' changes nothing of what the model computes;")


def test_what_is_the_same_for_all_inputs() -> None:
    """A planted fault: were numbers of one sign only, what an activation cuts off would pass for zero."""
    session = gp.Session(net(), (IMAGES,))
    analysis = session.analyze()
    assert find_constants(session.host, analysis) == {}
