"""Sizes by the names of a config: the result's config says them, or it is said why it cannot."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from configured_nets import IDS, net
from test_cli import small_model

import graphprune as gp
from graphprune.errors import GraphpruneError, OptionError, TargetError
from graphprune.planning.shape_target import counts_of, shape_texts

TEXT = {"vocab_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2}
LLAMA = {**TEXT, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 8,
         "num_key_value_heads": 4}  # fmt: skip
GPT2 = {**TEXT, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16, "n_inner": 48}


@cache
def session(name: str = "", **sizes: Any) -> Any:
    if not name:
        return gp.Session(net(), (IDS,))
    import transformers

    torch.manual_seed(0)
    kind: Any = getattr(transformers, name)
    model = kind(kind.config_class(**({"LlamaForCausalLM": LLAMA, "GPT2LMHeadModel": GPT2}[name] | sizes))).eval()
    return gp.Session(model, {"input_ids": IDS})


def shaped(wanted: Any, opened: Any = None, **options: Any) -> Any:
    return (opened or session()).prune(shape_target=wanted, **{"verify": False, "criterion": "l1"} | options)


# -- what is reached -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("hidden=12,inner=10,heads=3,layers=2", {"hidden": 12, "inner": 10, "heads": 3, "layers": 2, "head": 4}),
        ({"inner": 7}, {"inner": 7, "hidden": 16, "layers": 3}),
        (["heads=2", "layers=1"], {"heads": 2, "layers": 1, "inner": 24}),
        ({"layers": 3, "inner": 24}, {"layers": 3, "inner": 24}),  # what it is
    ],
)
def test_the_config_says_what_was_asked_for(wanted: Any, says: dict[str, int], tmp_path: Path) -> None:
    result = shaped(wanted)
    config = result.module.config.to_dict()
    assert {name: config[name] for name in says} == says
    assert type(result.module) is type(session().host.source)
    result.module.save_pretrained(tmp_path)
    again, found = type(result.module).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found.values())
    with torch.no_grad():
        assert torch.equal(result.module(IDS), again(IDS))
    assert gp.Recipe.from_dict(result.plan.recipe).allocate.shape_target == shape_texts(wanted)


@pytest.mark.parametrize(
    ("name", "wanted", "says"),
    [
        ("LlamaForCausalLM",
         "hidden_size=24,num_attention_heads=4,num_key_value_heads=2,intermediate_size=20,num_hidden_layers=2",
         {"head_dim": 4, "num_key_value_heads": 2}),
        ("LlamaForCausalLM", "num_key_value_heads=2", {"num_attention_heads": 4}),  # a group goes with its query heads
        ("GPT2LMHeadModel", "hidden_size=24,num_hidden_layers=1", {"n_embd": 24, "n_head": 3, "n_layer": 1}),
    ],
)  # fmt: skip
def test_stock_classes_read_it_again(name: str, wanted: str, says: dict[str, int], tmp_path: Path) -> None:
    result = shaped(wanted, session(name))
    config = result.module.config
    asked = {key: int(value) for key, _, value in (text.partition("=") for text in wanted.split(","))}
    assert {key: getattr(config, key) for key in asked | says} == asked | says
    (check,) = result.save_pretrained(tmp_path / "small")
    assert (check.difference, "same tokens" in check.note) == (0.0, True)


def test_importance_chooses_units_and_layers() -> None:
    model = net()
    with torch.no_grad():
        model.layers[1].o.weight.mul_(0.01)
        model.layers[1].down.weight.mul_(0.01)
        model.layers[2].up.weight[[3, 7]] *= 0.001
    result = gp.prune(model, (IDS,), shape_target={"layers": 2, "inner": 22}, criterion="l1", verify=False)
    assert all(name.startswith("layers.1.") for name in result.state.removed[0].tensors)
    kept = {group.name: group.kept for group in result.plan.groups}
    assert {3, 7}.isdisjoint(kept["layers.2.up.weight[0]"])
    assert result.module.config.kinds == ["relu", "silu"]


def test_a_target_beside_it_is_met_by_the_rest() -> None:
    result = shaped({"layers": 2}, target={"params": 0.55}, align=1)
    assert 0.45 < result.report.cost("params").fraction <= 0.55
    assert result.module.config.layers == 2
    assert result.module.config.inner < 24
    result = shaped({"heads": 2}, target={"params": 0.6}, align=1)
    assert (result.module.config.heads, result.report.cost("params").fraction <= 0.6) == (2, True)


def test_units_may_be_named_beside_it() -> None:
    result = shaped({"inner": 3, "layers": 3}, keep={"*.up": [5, 6, 11]})
    assert {group.kept for group in result.plan.groups} == {(5, 6, 11)}


# -- what is not ---------------------------------------------------------------------------------------------------

ONE = "shape target '{}' cannot be reached: "


@pytest.mark.parametrize(
    ("wanted", "kind", "message"),
    [
        ({"inner": 25}, OptionError, "shape target 'inner=25' is more than 24, which it is now"),
        ({"innr": 8}, OptionError, "the config of 'Net' has no number 'innr' (did you mean 'inner'?); it has hidden, "
                                   "inner, heads, head, layers"),
        ({"head": 2}, TargetError, ONE.format("head=2")),
        ({"layers": 0}, OptionError, "shape target 'layers=0' leaves nothing; expected 1 or more"),
        ("inner", OptionError, "cannot read shape target 'inner'; expected one like 'hidden_size=2048'"),
        ("inner=x", OptionError, "cannot read shape target 'inner=x'; expected one like 'hidden_size=2048'"),
        ("inner=8,inner=9", OptionError, "shape target 'inner' is 8 and 9; leave one of them out"),
        ({"inner": 8.5}, OptionError, "shape target 'inner' is 8.5; expected a name and a whole number"),
        (8, OptionError, "shape_target is 8; expected a text like 'hidden_size=2048', or a mapping"),
    ],
)  # fmt: skip
def test_what_cannot_be_reached(wanted: Any, kind: type[GraphpruneError], message: str) -> None:
    with pytest.raises(kind) as error:
        shaped(wanted)
    said = str(error.value)
    assert said.startswith(message) if kind is TargetError else said == message


@pytest.mark.parametrize(
    ("name", "wanted", "message"),
    [
        ("LlamaForCausalLM", "vocab_size=16",
         ONE.format("vocab_size=16") + "'model.embed_tokens.weight' would be 16 along axis 0 in place of 32: an index, "),
        ("LlamaForCausalLM", "hidden_size=21", "'LlamaForCausalLM' cannot be built with 'hidden_size=21' (Class validation error"),
        ("LlamaForCausalLM", "max_position_embeddings=16",
         "shape target 'max_position_embeddings=16' is no size: no tensor has another shape for it"),
        ("GPT2LMHeadModel", "n_positions=8",
         ONE.format("n_positions=8") + "group 'transformer.wpe.weight[0]' (unit) would keep 2 of 10 units, and it may be "
         "a table of places, of which the first ones only could stay"),
    ],
)  # fmt: skip
def test_what_stock_classes_cannot_say(name: str, wanted: str, message: str) -> None:
    with pytest.raises(GraphpruneError) as error:
        shaped(wanted, session(name))
    assert str(error.value).startswith(message)


def test_who_has_no_config_and_what_contradicts() -> None:
    with pytest.raises(OptionError) as error:
        gp.Recipe.of(shape_target="inner=8", layout="per-layer").pipeline()
    assert str(error.value) == (
        "a shape target is what a config says, and layout 'per-layer' leaves more than that; take 'stock'"
    )
    with pytest.raises(OptionError) as error:
        shaped({"inner": 8}, keep={"layers.1.up": 9})
    assert str(error.value) == (
        "'keep layers.1.up=count:9' and 'shape target inner=8' contradict each other: both say what stays of group "
        "'layers.1.up.weight[0]' (neuron, 24 units); leave one of them out"
    )


def test_a_file_has_no_config(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"^layout 'stock' keeps to what a config .* an ONNX file has no config"):
        gp.prune(small_model(tmp_path / "m.onnx"), shape_target="hidden_size=8")


# -- axes as equations ---------------------------------------------------------------------------------------------


def solved(**shapes: Any) -> Any:
    """Of the first layer of the net: 16 wide, 24 neurons, 4 heads of 4."""
    counts, reason = counts_of(
        analysis(), {f"layers.0.{name.replace('_', '.')}": shape for name, shape in shapes.items()}
    )
    return reason or {name.removeprefix("layers.0."): n for name, n in counts.items()}


@cache
def analysis() -> Any:
    return session().analyze()


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ({"up.weight": (9, 16), "down.weight": (16, 9), "up.bias": (9,)}, {"up.weight[0]": 9}),
        ({"q.weight": (12, 16), "o.weight": (16, 12)}, {"q.weight[0]": 3}),
        ({"q.weight": (16, 16)}, {}),
        ({"up.weight": (9, 16), "down.weight": (16, 8)},
         "'layers.0.down.weight' would be 8 along axis 1 in place of 24, and what it shares is 9"),
        ({"q.weight": (13, 16)}, "'layers.0.q.weight' would be 13 along axis 0, which is no whole number of units of "
                                 "group 'layers.0.q.weight[0]' (head, 4 units of 4)"),
        ({"up.weight": (25, 16)}, "'layers.0.up.weight' would grow from 24 to 25 along axis 0"),
    ],
)  # fmt: skip
def test_axes_say_how_many_units_stay(shapes: dict[str, Any], expected: Any) -> None:
    assert solved(**{name.replace(".", "_"): shape for name, shape in shapes.items()}) == expected
