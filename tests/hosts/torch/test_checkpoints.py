"""Pruned modules with a config: the config is true, or the module refuses to be written; folders in and out."""

from __future__ import annotations

import copy
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from configured_nets import IDS, Net, net

import graphprune as gp
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.torch.checkpoints.reading import example_of, read_checkpoint
from graphprune.hosts.torch.checkpoints.refusing import Refusing

QUICK: dict[str, Any] = {"verify": False, "align": 1}


def pruned(model: Any = None, **options: Any) -> gp.Result:
    return gp.prune(net() if model is None else model, (IDS,), **QUICK | options)


@pytest.fixture(scope="module")
def shallow() -> gp.Result:
    return pruned(layers=1, layout="stock")


def same_when_read_again(module: Any, folder: Path) -> None:
    module.save_pretrained(folder)
    again, found = type(module).from_pretrained(folder, output_loading_info=True)
    assert not any(found.values())
    with torch.no_grad():
        assert torch.equal(module(IDS), again(IDS))


def test_layers_that_are_gone_leave_no_gap(shallow: gp.Result, tmp_path: Path) -> None:
    module = shallow.module
    assert type(module) is Net
    assert len(module.layers) == module.config.layers == len(module.config.kinds) == 2
    assert [layer.place for layer in module.layers] == [0, 1]
    assert all(layer.config is module.config for layer in module.layers)
    same_when_read_again(module, tmp_path)
    rows = {row.path: (row.before, row.after) for row in shallow.report.attributes}
    assert rows["config.layers"] == (3, 2)


def test_the_file_of_renumbered_layers_has_their_values(shallow: gp.Result, tmp_path: Path) -> None:
    with torch.no_grad():
        shallow.module.layers[1].up.bias.add_(1.0)
    shallow.save_onnx(tmp_path / "x.onnx")
    (out,) = OnnxHost.load(tmp_path / "x.onnx").run({"ids": IDS.numpy()}).values()
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(out), shallow.module(IDS), atol=1e-4)


def test_the_users_own_module_and_config_stay() -> None:
    model = net()
    before, config = copy.deepcopy(model.config.to_dict()), model.config
    module = pruned(model, target={"params": 0.8}, layout="stock").module
    assert model.config is config
    assert config.to_dict() == before
    assert module.config.to_dict() != before


def test_equal_parts_under_a_budget(tmp_path: Path) -> None:
    result = pruned(target={"params": 0.7}, layout="stock", allocation="global", criterion="l1")
    kept = {
        (row.kind, row.size): {r.kept for r in result.report.groups if r.kind == row.kind}
        for row in result.report.groups
    }
    assert all(len(each) == 1 for each in kept.values())
    assert 0.6 < result.report.cost("params").fraction <= 0.7
    assert result.plan.options["layout"] == "stock"
    same_when_read_again(result.module, tmp_path)
    again = gp.apply(net(), result.plan, (IDS,), verify=False).module
    assert again.config.to_dict() == result.module.config.to_dict()


def test_what_no_config_says_refuses_to_be_written(tmp_path: Path) -> None:
    result = pruned(target={"params": 0.7}, allocation="global", only=["neuron"])
    widths = {len(layer.up.bias) for layer in result.module.layers}
    assert len(widths) > 1
    for module in (result.module, copy.deepcopy(result.module), pickle.loads(pickle.dumps(result.module))):
        with pytest.raises(gp.OutputError) as error:
            module.save_pretrained(tmp_path / "no")
        assert (
            "'save_pretrained' of the pruned 'Net' would write a config that is not true: no config of 'Net' was"
            in str(error.value)
        )
        assert "prune with layout='stock'" in str(error.value)
    with pytest.raises(gp.OutputError):
        result.save_pretrained(tmp_path / "no")
    assert list(tmp_path.iterdir()) == []


def test_branches_alone_are_not_left_out_under_a_config() -> None:
    with pytest.raises(gp.TargetError) as error:
        pruned(blocks=1, layout="stock")
    assert "layout 'stock' can leave out 0 of the 1 blocks that are to go: no config leaves out 'layers." in str(
        error.value
    )


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (lambda: torch.nn.Sequential(torch.nn.Embedding(19, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 3)), {},
         "layout 'stock' keeps to what a config of the model's class can say, and 'Sequential' has no config that "
         "transformers could read; leave it out, or give the module of transformers itself"),
        (net, {"layout": "stok"}, "unknown layout 'stok' (did you mean 'stock'?); expected one of free, stock, per-layer"),
        (net, {"compensation": "affine"},
         "compensation 'affine' gives layers biases that no config says; with layout 'stock' take 'as-is', 'ols' or "
         "'none'"),
    ],
)  # fmt: skip
def test_options_that_mean_nothing(model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(gp.OptionError) as error:
        pruned(model(), **{"target": {"params": 0.7}, "layout": "stock", **options})
    assert str(error.value) == message


def test_a_refit_under_a_config_gives_no_biases(tmp_path: Path) -> None:
    data = {"ids": torch.randint(0, 19, (16, 6), generator=torch.Generator().manual_seed(1)).numpy()}
    options = {"calibration": data, "criterion": "wanda", "allocation": "uniform", "only": ["head", "neuron"]}
    result = pruned(target={"params": 0.7}, layout="stock", **options)
    assert result.plan.options["compensation"] == "as-is"
    assert result.plan.options["compensated"]
    assert result.module.layers[0].o.bias is None
    same_when_read_again(result.module, tmp_path)


# -- folders -----------------------------------------------------------------------------------------------------------


def test_a_folder_whole_or_not_at_all(shallow: gp.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "small"
    (check,) = shallow.save_pretrained(folder)
    assert (check.name, check.difference, check.passed) == ("reloaded", 0.0, True)
    assert {each.name for each in folder.iterdir()} == {"README.md", "config.json", "plan.json", "weights.pt"}
    assert "| `layers` | 3 | 2 |" in (folder / "README.md").read_text()
    assert gp.PruningPlan.load(folder / "plan.json") == shallow.plan
    shallow.save_pretrained(folder)  # an earlier one of ours is replaced
    before = (folder / "weights.pt").read_bytes()

    def altered(cls: Any, folder: Any, **options: Any) -> Any:
        made, found = read(folder, **options)
        with torch.no_grad():
            made.head.bias[0] += 1e-7
        return made, found

    read = Net.from_pretrained
    monkeypatch.setattr(Net, "from_pretrained", classmethod(altered))
    with pytest.raises(
        gp.ProofError, match="'head.bias' is not what it was once 'Net' is read again; nothing was written"
    ):
        shallow.save_pretrained(folder)
    monkeypatch.setattr(
        Net,
        "from_pretrained",
        classmethod(lambda cls, folder, **options: (read(folder), {"missing_keys": {"head.bias"}})),
    )
    with pytest.raises(gp.ProofError, match="with missing_keys such as 'head.bias'; nothing was written"):
        shallow.save_pretrained(tmp_path / "other")
    assert (folder / "weights.pt").read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["small"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(gp.OutputError, match="it holds files that are no earlier checkpoint of graphprune's"):
        shallow.save_pretrained(tmp_path / "mine")


def test_tokenizers_go_with_it(shallow: gp.Result, tmp_path: Path) -> None:
    source = tmp_path / "tokenizer"
    source.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "notes.txt"):
        (source / name).write_text("{}")
    shallow.save_pretrained(tmp_path / "small", source)
    names = {each.name for each in (tmp_path / "small").iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json"} < names
    assert "notes.txt" not in names
    with pytest.raises(gp.OptionError, match="is no tokenizer; give one with save_pretrained"):
        shallow.save_pretrained(tmp_path / "other", 5)


def test_a_method_that_refuses_says_what_to_do() -> None:
    with pytest.raises(gp.OutputError) as error:
        Refusing("push_to_hub", "Net", "its layers differ")("name")
    assert str(error.value) == (
        "'push_to_hub' of the pruned 'Net' would write a config that is not true: its layers differ; prune with "
        "layout='stock' (--layout stock) so that a config can say it, or with "
        "layout='per-layer' and write it with result.save_pretrained(folder), which adds a few lines of code"
    )


# -- of transformers ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tf = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=32, hidden_size=24, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("checkpoint") / "whole"
    tf.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_from_a_folder_into_a_folder(whole: Path, tmp_path: Path) -> None:
    tf = pytest.importorskip("transformers")
    result = gp.prune(str(whole), target={"params": 0.6}, layers=1, layout="stock", verify=False)
    (check,) = result.save_pretrained(tmp_path / "small")
    assert check.note.endswith("the same tokens")
    again, found = tf.LlamaForCausalLM.from_pretrained(tmp_path / "small", output_loading_info=True)
    assert not found["missing_keys"] | found["unexpected_keys"]
    assert again.config.num_hidden_layers == 2
    ids = torch.tensor([[5, 7, 9]])
    assert torch.equal(again.generate(ids, max_new_tokens=5), result.module.generate(ids, max_new_tokens=5))
    assert json.loads((tmp_path / "small" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert (tmp_path / "small" / "generation_config.json").exists()


def test_code_goes_with_what_no_config_says(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tf = pytest.importorskip("transformers")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.path", [*sys.path])
    options: dict[str, Any] = {"allocation": "global", "criterion": "l1", "verify": False, "align": 1}
    result = gp.prune(str(whole), target={"params": 0.8}, blocks=1, layout="per-layer", **options)
    (check,) = result.save_pretrained(tmp_path / "small")
    assert (check.difference, check.note[-15:]) == (0.0, "the same tokens")
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config["auto_map"] == {"AutoModelForCausalLM": "modeling_pruned.PrunedLlamaForCausalLM"}
    assert len(config["pruned"]["without"]) == 1
    assert "AutoModelForCausalLM.from_pretrained" in (tmp_path / "small" / "README.md").read_text()
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "small", trust_remote_code=True)
    assert {n: p.shape for n, p in again.named_parameters()} == {
        n: p.shape for n, p in result.module.named_parameters()
    }
    assert not hasattr(result.module.config, "pruned")
    with pytest.raises(gp.OutputError):
        result.module.save_pretrained(tmp_path / "other")


def test_folders_that_cannot_be_read(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(gp.ModelError, match=r"is a folder without a config\.json; expected a checkpoint"):
        gp.analyze(tmp_path)
    config = json.loads((whole / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "code.Own"}}))
    with pytest.raises(gp.OptionError, match="brings code of its own, which loading it runs; pass --trust"):
        read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    (tmp_path / "model.safetensors").write_bytes((whole / "model.safetensors").read_bytes())
    with pytest.raises(gp.ModelError, match="holds no weights for 'model.layers.3.* which would be drawn at random"):
        read_checkpoint(tmp_path)


def test_examples_of_what_a_config_says(whole: Path) -> None:
    example = example_of(read_checkpoint(whole))
    assert {name: tuple(value.shape) for name, value in example.items()} == {"input_ids": (1, 64)}
    assert tuple(example_of(read_checkpoint(whole), {"input_ids": (2, 5)})["input_ids"].shape) == (2, 5)
