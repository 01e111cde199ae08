"""Decoders are proven with their cache; what the forward alone does not show is found there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch_proof import prove

import graphprune as gp
from graphprune.hosts.torch import generate as generating
from graphprune.hosts.torch.generate import Cached, decoding_of
from graphprune.hosts.torch.module import sliced_module

IDS = torch.randint(3, 19, (1, 8), generator=torch.Generator().manual_seed(0))


class Layer(nn.Module):
    """Sums of what came before, kept in a cache that the forward without one never sees."""

    def __init__(self, place: int, heads: int = 4, head_dim: int = 3) -> None:
        super().__init__()
        self.place, self.heads, self.width = place, heads, heads * head_dim
        self.value, self.out = nn.Linear(12, heads * head_dim), nn.Linear(heads * head_dim, 12)

    def forward(self, x, mask, cache):
        v = self.value(x).relu() * mask
        if cache is None:
            return x + self.out(v.cumsum(1))
        before = cache.setdefault(self.place, v.new_zeros(len(x), 1, self.width))
        cache[self.place] = before + v.sum(1, keepdim=True)
        return x + self.out(before + v.cumsum(1))


class Decoder(nn.Module):
    """Not of transformers, but decoded in the same way; a layer's place equals its number of heads."""

    def __init__(self, n_layers: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(19, 12), nn.Linear(12, 19)
        self.layers = nn.ModuleList(Layer(i) for i in range(n_layers))

    def forward(self, ids, attention_mask=None, past=None, use_cache=False):
        x = self.embed(ids)
        mask = 1 if attention_mask is None else attention_mask[:, -ids.shape[1] :, None].to(x)
        cache = ({} if past is None else dict(past)) if use_cache else None
        for layer in self.layers:
            x = layer(x, mask, cache)
        return (self.head(x), cache) if use_cache else self.head(x)


class WithoutCache(Decoder):
    """The class's own cached forward does not work."""

    def forward(self, ids, attention_mask=None, past=None, use_cache=False):
        assert not use_cache, "no cache here"
        return super().forward(ids, attention_mask)


class Approximate(Decoder):
    """The class's own cache leaves out what is far away."""

    def forward(self, ids, attention_mask=None, past=None, use_cache=False):
        past = {place: 0.9 * state for place, state in past.items()} if past else past
        return super().forward(ids, attention_mask, past, use_cache)


def llama(**options: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 19, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 5, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 32, "initializer_range": 0.3,
    }  # fmt: skip
    config = transformers.LlamaConfig(**sizes | options, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    return transformers.LlamaForCausalLM(config).eval()


def test_what_only_the_cache_needs_changes_too() -> None:
    model = Decoder().eval()
    proof = prove(model, (IDS,), n=1)
    made = sliced_module(model, proof.host, proof.pruned)
    assert type(made.module) is Decoder, made.notes
    assert [layer.place for layer in made.module.layers] == list(range(6))
    assert [layer.width for layer in made.module.layers] == [layer.value.out_features for layer in made.module.layers]
    assert {row.path.rpartition(".")[2] for row in made.attributes} == {"width"}
    (check,) = made.checks
    assert (check.name, check.passed) == ("cached", True)
    assert check.note == "step by step = at once, batch 2, left padding, dynamic cache"


def test_transformers_are_proven_with_both_caches() -> None:
    model = llama()
    before = {path: dict(vars(part)) for path, part in model.named_modules()}
    result = gp.prune(model, {"input_ids": IDS}, target="params=0.6", allocation="uniform")
    assert type(result.module) is type(model), result.report.notes
    assert [layer.self_attn.layer_idx for layer in result.module.model.layers] == [0, 1, 2, 3, 4]
    check = next(check for check in result.report.proof if check.name == "cached")
    assert check.passed
    assert check.note == "step by step = at once, batch 2, left padding, dynamic and static cache"
    ids = IDS.repeat(2, 1)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    tokens = [result.module.generate(ids, use_cache=cached, **options).tolist() for cached in (True, False)]
    assert tokens[0] == tokens[1]
    assert {path: vars(part).keys() for path, part in model.named_modules()} == {
        path: kept.keys() for path, kept in before.items()
    }


SMALL = {
    "vocab_size": 19, "hidden_size": 24, "num_hidden_layers": 5, "num_attention_heads": 4, "initializer_range": 0.3,
    "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES = {
    "GPT2": {},
    "Phi3": {"intermediate_size": 20, "num_key_value_heads": 2},
    "Mamba2": {"num_heads": 4, "head_dim": 12, "state_size": 4, "n_groups": 2, "chunk_size": 4, "num_hidden_layers": 3},
}
"""Where a number of layers, heads or a chunk equals a size that changes; ``tools/proofs/decoders.py`` has all families."""


@pytest.mark.parametrize("family", FAMILIES)
def test_families_decode_with_their_cache(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SMALL | FAMILIES[family])
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    result = gp.prune(model, {"input_ids": IDS}, target="params=0.7", verify=False)
    assert type(result.module) is type(model), result.report.notes
    names = ("layer_idx", "chunk_size", "sliding_window", "vocab_size")
    for path, part in model.named_modules():
        pruned = result.module.get_submodule(path)
        assert [getattr(pruned, name, None) for name in names] == [getattr(part, name, None) for name in names]
    found = [
        result.module.generate(
            IDS, max_new_tokens=6, do_sample=False, use_cache=cached, output_logits=True, return_dict_in_generate=True
        )
        for cached in (True, False)
    ]
    cached, whole = (torch.stack(each.logits) for each in found)
    assert float((cached - whole).abs().max() / whole.abs().max()) < 1e-5


@pytest.mark.parametrize(("build", "example"), [(Decoder, ((IDS,), {})), (llama, ((), {"input_ids": IDS}))])
def test_a_planted_index_is_caught(build: Any, example: Any) -> None:
    model = build().eval()
    decoding, note = decoding_of(model, example)
    assert note == ""
    assert decoding.judge(model) == ""
    assert decoding.check(model).passed
    layers = model.layers if build is Decoder else [layer.self_attn for layer in model.model.layers]
    name = "place" if build is Decoder else "layer_idx"
    setattr(layers[3], name, 2)
    assert "cache" in decoding.judge(model)


def test_a_module_that_fails_with_its_cache_is_not_handed_out() -> None:
    class Odd(Decoder):
        def forward(self, ids, attention_mask=None, past=None, use_cache=False):
            output = super().forward(ids, attention_mask, past, use_cache)
            pruned = self.layers[0].value.weight.numel() < 144
            return (output[0] * (1 + pruned), output[1]) if use_cache else output

    result = gp.prune(Odd().eval(), (IDS,), target="params=0.7", verify=False)
    assert type(result.module).__name__ != "Odd"
    assert "with a dynamic cache its logits differ by 1 from those without" in result.report.notes[-1]


def test_the_original_is_the_measure() -> None:
    model = Approximate().eval()
    decoding, _ = decoding_of(model, ((IDS,), {}))
    assert decoding.accepted["dynamic"] > 1e-3
    assert decoding.judge(model) == ""
    decoding, note = decoding_of(WithoutCache().eval(), ((IDS,), {}))
    assert decoding is None
    assert note == "decoding with a cache was not looked at: the original fails with 'no cache here'"
    assert decoding_of(nn.Linear(3, 3), ((torch.ones(1, 3),), {})) == (None, "")


def test_the_original_is_not_decoded_where_the_copy_decodes_as_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    """One forward of all tokens at once is what steps with a cache are held against; the original is not run at all."""
    asked: list[str] = []
    logits = generating._logits_of
    monkeypatch.setattr(generating, "_logits_of", lambda *given: asked.append(given[3]) or logits(*given))
    model = llama().eval()
    example: Any = ((), {"input_ids": IDS})
    exact = Cached(model, example)
    assert exact.judge(model) == ""
    assert asked == ["dynamic", "static"]
    assert [check.tolerance for check in exact.checks(model)] == [1e-5]
    asked.clear()
    lossy = Cached(Approximate().eval(), ((IDS,), {}))
    assert lossy.judge(lossy.source) == ""
    assert asked == ["dynamic", "none", "none", "dynamic", "dynamic", "none"]
    without = Cached(WithoutCache().eval(), ((IDS,), {}))
    assert without.judge(without.source) == ""
    assert without.checks(without.source) == ()
    assert without.note == "decoding with a cache was not looked at: the original fails with 'no cache here'"
