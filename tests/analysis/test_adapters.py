"""Low-rank adapters: coupled with the weight that they adapt, the rank whole, and merging commutes with pruning."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch_proof import prove

import graphprune as gp
from graphprune.analysis.adapters import REASON
from graphprune.analysis.groups import analyze_graph
from graphprune.hosts.torch.host import TorchHost
from graphprune.passes.slice_groups import slice_edits

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

IDS = torch.randint(0, 50, (2, 6), generator=torch.Generator().manual_seed(0))
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 50}


def adapted(model: nn.Module, targets: list[str], **options: Any) -> nn.Module:
    """The model with random adapters (peft's own start with zeros, which would hide every mistake)."""
    torch.manual_seed(1)
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=targets, init_lora_weights=False, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft reads a property that transformers has renamed
        return peft.get_peft_model(model.eval(), config).eval()


def llama() -> nn.Module:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(num_key_value_heads=2, **SIZES))


def bert() -> nn.Module:
    torch.manual_seed(0)
    return transformers.BertModel(transformers.BertConfig(**SIZES), add_pooling_layer=False)


class Convs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 16, 3, stride=2, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))


CASES: dict[str, tuple[Callable[[], nn.Module], list[str], Any, dict[str, Any]]] = {
    "llama": (
        llama,
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        {"input_ids": IDS},
        {"lora_dropout": 0.1},
    ),
    "llama-embedding": (llama, ["embed_tokens", "v_proj"], {"input_ids": IDS}, {"use_rslora": True}),
    "bert": (bert, ["query", "value", "dense"], {"input_ids": IDS}, {"lora_bias": False}),
    "convolutions": (Convs, ["a", "b", "head"], (torch.randn(2, 3, 8, 8),), {}),
}


@pytest.mark.parametrize("name", ["llama", "bert", "convolutions"])
def test_prune_then_merge_is_merge_then_prune(name: str) -> None:
    """Low-rank adapters (docs/methods.md): the same units, before and after merging, give the same model."""
    build, targets, example, options = CASES[name]
    model = adapted(build(), targets, **options)
    proof = prove(model, example, n=1)
    merged = copy.deepcopy(model).merge_and_unload().eval()
    plain = TorchHost.trace(merged, example).folded()
    other = analyze_graph(plain.graph())

    def original(tensor: str) -> str:  # what peft calls a tensor of the model inside
        return tensor.removeprefix("base_model.model.").replace(".base_layer.", ".")

    kept = {}
    for group in other.groups:
        (twin,) = (
            mine
            for mine in proof.groups
            if mine.size == group.size
            and {(original(s.tensor), s.axis) for s in mine.sites if "lora_" not in s.tensor}
            == {(s.tensor, s.axis) for s in group.sites}
        )
        kept[group.factor] = proof.kept[twin.factor]
    assert len(kept) == len(proof.groups)  # the adapters add no group
    first = plain.edited(slice_edits(other, kept))
    whole, expected, got = (
        next(iter(host.run(host.example_inputs()).values())) for host in (plain, first, proof.pruned)
    )
    assert np.abs(expected - got).max() <= 1e-5 * np.abs(expected).max()
    assert np.abs(expected - whole).max() > 1e-3  # the pruning did something


@pytest.mark.parametrize("name", ["llama-embedding", "convolutions"])
def test_the_rank_stays_whole_and_the_rest_follows(name: str) -> None:
    build, targets, example, options = CASES[name]
    model = adapted(build(), targets, **options)
    analysis = gp.analyze(model, example)
    tensors = {value.name for value in analysis.graph.stored if "lora_" in value.name}
    assert tensors
    for tensor in tensors:
        rank = 0 if "lora_A" in tensor or "embedding_A" in tensor else 1
        assert [reason.text for reason in analysis.site_reasons(tensor, rank)] == [REASON]
    for group in analysis.groups:
        for site in group.sites:
            if "lora_B" in site.tensor:
                assert (site.tensor.partition("lora_B")[0] + "base_layer.weight", 0) in {
                    (s.tensor, s.axis) for s in group.sites
                }
            elif "lora_A" in site.tensor:
                assert (site.tensor.partition("lora_A")[0] + "base_layer.weight", 1) in {
                    (s.tensor, s.axis) for s in group.sites
                }
    assert not [block for block in analysis.blocks if "lora_A" in block.name]


def test_peft_module_comes_back_with_sliced_adapters() -> None:
    build, targets, example, options = CASES["llama"]
    result = gp.prune(adapted(build(), targets, **options), example, target={"macs": 0.6})
    module = result.module
    assert isinstance(module, peft.PeftModel)
    assert result.report.cost("macs").fraction <= 0.6
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    module.train()
    module(**example).logits.sum().backward()
    assert all(p.grad is not None for p in module.parameters() if p.requires_grad)
    module.eval()
    with torch.no_grad():
        expected = module(**example).logits
        assert torch.allclose(expected, module.merge_and_unload()(**example).logits, atol=1e-5)


def test_two_adapters_beside_one_weight() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 4)
            self.a, self.b = nn.Linear(6, 3, bias=False), nn.Linear(3, 16, bias=False)
            self.c, self.d = nn.Linear(6, 2, bias=False), nn.Linear(2, 16, bias=False)

        def forward(self, x):
            y = self.first(x) + self.b(self.a(x)) * 2.0
            return self.last(torch.relu(y + self.d(self.c(x)) / 3.0))

    proof = prove(Net(), (torch.randn(2, 6),))
    assert [REASON] == proof.reasons("a.weight[0]") == proof.reasons("d.weight[1]")
    (group,) = proof.groups
    assert {"first.weight", "first.bias", "b.weight", "d.weight", "last.weight"} == set(group.tensors)


def test_what_is_no_adapter_keeps_its_hidden_width() -> None:
    """A nonlinearity between the two factors, another source, or no dense weight beside them."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.w, self.out = nn.Linear(8, 8), nn.Linear(8, 3)
            self.a = nn.ModuleList([nn.Linear(8, 4) for _ in range(3)])
            self.b = nn.ModuleList([nn.Linear(4, 8) for _ in range(3)])

        def forward(self, x):
            y = self.w(x) + self.b[0](torch.relu(self.a[0](x)))
            y = self.w(y) + self.b[1](self.a[1](x))
            return self.out(y + self.b[2](self.a[2](y)))

    proof = prove(Net(), (torch.randn(2, 8),))
    for i in range(3):
        assert proof.group(f"a.{i}.weight[0]").size == 4


def test_adapters_in_an_exported_file(tmp_path) -> None:
    build, targets, example, options = CASES["llama"]
    host = TorchHost.trace(adapted(build(), targets, **options), example)
    host.save_onnx(tmp_path / "model.onnx")
    analysis = gp.analyze(tmp_path / "model.onnx")
    ranks = [reason for reason in analysis.fixed.values() if reason.text == REASON]
    assert len({reason.node for reason in ranks}) == 7
    mine, theirs = (sorted((g.kind, g.size) for g in a.groups) for a in (analyze_graph(host.graph()), analysis))
    assert mine == theirs


def test_a_refit_commutes_with_merging() -> None:
    """A bias of the inner product would be lost when the adapter is merged."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.up, self.down = nn.Embedding(50, 16), nn.Linear(16, 48), nn.Linear(48, 16, bias=False)

        def forward(self, ids):
            return self.down(torch.relu(self.up(self.embed(ids))))

    generator = torch.Generator().manual_seed(0)
    data = [torch.randint(0, 50, (2, 6), generator=generator) for _ in range(6)]
    model = adapted(Plain(), ["up", "down"])
    module = gp.prune(model, (IDS,), target={"macs": 0.6}, only="neuron", calibration=data, verify=False).module
    assert module.base_model.model.down.base_layer.bias is not None
    assert module.base_model.model.down.lora_A.default.bias is None
    with torch.no_grad():
        expected = module(IDS)
        got = copy.deepcopy(module).merge_and_unload()(IDS)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


class Residual(nn.Module):
    """A residual step, with or without an activation: its width is no rank."""

    def __init__(self, act: Callable[[torch.Tensor], torch.Tensor], inputs: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.mix, self.head = nn.Linear(inputs, 32), nn.Linear(32, 32), nn.Linear(32, 4)
        self.act = act

    def forward(self, x):
        h = self.stem(x)
        return self.head(torch.relu(h + self.act(self.mix(h))))


class Skip(nn.Module):
    """A dense skip beside a linear path of some width, whose inside may be used elsewhere too."""

    def __init__(self, width: int, *, read: bool = False, shared: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.skip, self.last = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 4)
        self.a, self.b = nn.Linear(32, width), nn.Linear(width, 32)
        self.read, self.shared = read, shared

    def forward(self, x):
        x = torch.relu(self.first(x))
        inner = self.a(x)
        y = torch.relu(self.skip(x) + self.b(inner))
        y = torch.relu(self.b(torch.relu(self.a(y)))) if self.shared else y
        return self.last(y) + (torch.relu(inner).sum(-1, keepdim=True) if self.read else 0)


NOT_A_RANK: dict[str, tuple[nn.Module, int, str, int]] = {
    "linear residual": (Residual(lambda x: x, 8), 8, "stem.weight[0]", 32),
    "linear residual, narrow": (Residual(lambda x: x, 48), 48, "stem.weight[0]", 32),
    "residual with activation": (Residual(torch.relu, 8), 8, "stem.weight[0]", 32),
    "wider than both": (Skip(64), 8, "a.weight[0]", 64),
    "as wide as both": (Skip(32), 8, "a.weight[0]", 32),
    "read elsewhere": (Skip(4, read=True), 8, "a.weight[0]", 4),
    "factors used elsewhere": (Skip(4, shared=True), 8, "a.weight[0]", 4),
}


@pytest.mark.parametrize("name", NOT_A_RANK)
def test_a_width_is_no_rank(name: str) -> None:
    model, n, group, size = NOT_A_RANK[name]
    proof = prove(model, (torch.randn(2, n),))
    assert proof.group(group).size == size


def test_a_rank_below_both_widths_used_nowhere_else_is_one() -> None:
    assert prove(Skip(4), (torch.randn(2, 8),)).reasons("a.weight[0]") == [REASON]


def test_a_linear_residual_net_meets_its_target() -> None:
    result = gp.prune(Residual(lambda x: x, 8), (torch.randn(4, 8),), target={"params": 0.5}, align=1)
    assert 0.4 < result.report.cost("params").fraction <= 0.5
