"""Layers whose norms or reshapes stand between their sums go as a whole: what the next starts from is what they did."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
import transformers as hf
from torch import nn

import graphprune as gp

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 50}
IDS = torch.arange(3, 13).reshape(2, 5)


def bert() -> tuple[nn.Module, dict[str, torch.Tensor], str]:
    config = hf.BertConfig(**SIZES, intermediate_size=48, max_position_embeddings=16)
    return hf.BertForSequenceClassification(config), {"input_ids": IDS}, "bert.encoder.layer"


def opt() -> tuple[nn.Module, dict[str, torch.Tensor], str]:
    config = hf.OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=16)
    return hf.OPTForCausalLM(config), {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}, "model.decoder.layers"


def bart() -> tuple[nn.Module, dict[str, torch.Tensor], str]:
    sizes = {f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in (("layers", 3), ("ffn_dim", 48))}
    heads = {f"{part}_attention_heads": 4 for part in ("encoder", "decoder")}
    config = hf.BartConfig(d_model=32, vocab_size=50, max_position_embeddings=16, **sizes, **heads)
    return hf.BartModel(config), {"input_ids": IDS, "decoder_input_ids": IDS.flip(1)}, "decoder.layers"


def made(name: str) -> tuple[nn.Module, dict[str, torch.Tensor], str]:
    torch.manual_seed(0)
    model, example, layers = {"bert": bert, "opt": opt, "bart": bart}[name]()
    for each in model.modules():  # a norm that does nothing would hide that it is left out or kept
        if isinstance(each, nn.LayerNorm):
            nn.init.normal_(each.weight, 1.0, 0.3)
            nn.init.normal_(each.bias, 0.0, 0.3)
    return model.eval(), example, layers


def first_of(model: nn.Module, example: dict[str, torch.Tensor]) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(model(**example)[0])


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("name", ["bert", "opt", "bart"])
def test_a_layer_goes_as_if_it_were_taken_out_of_the_list(tmp_path: Path, name: str, at: int) -> None:
    model, example, layers = made(name)
    result = gp.prune(model, example, remove_blocks=[f"{layers}.{at}"], layout="stock")
    without = deepcopy(model)
    del without.get_submodule(layers)[at]
    expected = first_of(without, example)
    assert type(result.module) is type(model)
    np.testing.assert_allclose(first_of(result.module, example), expected, atol=1e-6)
    result.save_pretrained(tmp_path)
    again, told = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    np.testing.assert_array_equal(first_of(again.eval(), example), first_of(result.module, example))


@pytest.mark.parametrize("at", [0, 2])
def test_the_same_in_a_file(tmp_path: Path, at: int) -> None:
    model, example, layers = made("bert")
    without = deepcopy(model)
    del without.get_submodule(layers)[at]
    path = tmp_path / "model.onnx"
    gp.export_onnx(model, example, path)
    name = [block.name for block in gp.analyze(path).blocks if block.kind == "layer"][at]
    result = gp.prune(path, remove_blocks=[name])
    result.save_onnx(tmp_path / "out.onnx")
    session = ort.InferenceSession(str(tmp_path / "out.onnx"))
    (got,) = session.run(None, {"input_ids": np.asarray(example["input_ids"])})
    np.testing.assert_allclose(got, first_of(without, example), atol=1e-6)
    gp.verify(path, tmp_path / "out.onnx", result.plan)


def test_layers_and_widths_at_once() -> None:
    model, example, _ = made("bert")
    result = gp.prune(model, example, layers=1, target={"params": 0.7}, layout="stock")
    assert result.module.config.num_hidden_layers == 2
    assert result.report.cost("params").fraction <= 0.7


def test_layers_that_follow_each_other() -> None:
    model, example, layers = made("bert")
    result = gp.prune(model, example, remove_blocks=[f"{layers}.1", f"{layers}.2"])
    without = deepcopy(model)
    del without.get_submodule(layers)[1:]
    np.testing.assert_allclose(first_of(result.module, example), first_of(without, example), atol=1e-6)
