"""Which config says a shape is found by trying; what none says is refused with the tensor that shows it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from configured_nets import Config, Net, net
from torch import nn

from graphprune.hosts.torch.checkpoints.asking import Asking, elements_without
from graphprune.hosts.torch.checkpoints.leaves import changed, depth_moves
from graphprune.hosts.torch.checkpoints.renumber import Renumbering
from graphprune.hosts.torch.checkpoints.search import Base, Wanted, find_statement, pairs_of, torn
from graphprune.hosts.torch.checkpoints.twins import Shapes, Twin, configured_roots, shapes_of

LLAMA = {
    "vocab_size": 32, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 4, "max_position_embeddings": 32,
}  # fmt: skip
GEMMA = {
    **LLAMA, "num_hidden_layers": 4, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"] * 2
}  # fmt: skip
GPT2 = {"vocab_size": 32, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 4}
NEO = {"vocab_size": 32, "hidden_size": 16, "num_layers": 4, "num_heads": 4,
       "attention_types": [[["global", "local"], 2]]}  # fmt: skip
T5 = {"vocab_size": 32, "d_model": 16, "d_ff": 24, "num_layers": 3, "num_decoder_layers": 3, "num_heads": 4, "d_kv": 4}


def found(source: nn.Module, shapes: Shapes, gone: Renumbering, pairs: Any = ()) -> tuple[dict[str, Any], str]:
    base, reason = Base.of(source)
    assert base is not None, reason
    old = {gone.new(name): shape for name, shape in base.shapes.items() if not gone.is_gone(name)}
    statement, reason = find_statement(base, Wanted(shapes, pairs_of(old, shapes, pairs), gone))
    changes = {} if statement is None else statement.changes
    return {".".join(map(str, leaf)): after for leaf, (_, after) in changes.items()}, reason


def without(path: str, places: tuple[int, ...], depth: int) -> Renumbering:
    return Renumbering({path: places}, {path: depth})


# name of the class, its config, what a smaller one says, what the plan knows of numbers of units, layers that are gone
ROWS: list[tuple[str, dict[str, Any], dict[str, Any], list[tuple[int, int]], Renumbering]] = [
    ("LlamaForCausalLM", LLAMA, {"intermediate_size": 40}, [], Renumbering()),
    # as many heads as a head is wide: only one of both scales the scores
    ("LlamaForCausalLM", LLAMA, {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
     [(8, 4), (4, 2)], Renumbering()),
    ("LlamaForCausalLM", LLAMA, {"num_hidden_layers": 1, "hidden_size": 32, "head_dim": 8}, [],
     without("model.layers", (0,), 2)),
    ("Gemma3ForCausalLM", GEMMA, {
        "num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "intermediate_size": 48}, [], without("model.layers", (2,), 4)),
    ("GPT2LMHeadModel", GPT2, {"n_inner": 40}, [], Renumbering()),
    ("T5ForConditionalGeneration", T5, {"d_ff": 8, "num_heads": 3, "num_layers": 2}, [(4, 3)],
     without("encoder.block", (1,), 3)),
    ("Phi3ForCausalLM", {**LLAMA, "pad_token_id": 0}, {
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}, [(8, 4), (4, 2)], Renumbering()),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "sizes", "new", "pairs", "gone"), ROWS, ids=[f"{r[0]}-{'-'.join(r[2])}" for r in ROWS]
)
def test_configs_of_transformers(name: str, sizes: Any, new: Any, pairs: Any, gone: Renumbering) -> None:
    kind = getattr(pytest.importorskip("transformers"), name)
    source, smaller = (kind(kind.config_class(**each)) for each in (sizes, {**sizes, **new}))
    changes, reason = found(source, shapes_of(smaller), gone, pairs)
    assert reason == ""
    stays = {key for key in ("head_dim",) if key not in changes}
    assert changes == {key: value for key, value in new.items() if key not in stays}


def test_patterns_of_layers_that_repeat_are_written_out() -> None:
    kind = pytest.importorskip("transformers").GPTNeoForCausalLM
    smaller = kind(kind.config_class(**{**NEO, "num_layers": 3, "attention_types": [[["global"], 1], [["local"], 2]]}))
    changes, reason = found(kind(kind.config_class(**NEO)), shapes_of(smaller), without("transformer.h", (2,), 4))
    assert (reason, changes["num_layers"]) == ("", 3)
    config = kind.config_class(**NEO)
    built = kind(
        type(config).from_dict(changed(config.to_dict(), {tuple(k.split(".")): v for k, v in changes.items()}))
    )
    assert [each.attn.attention_type for each in built.transformer.h] == ["global", "local", "local"]


def test_layers_that_differ_are_said_by_no_config() -> None:
    shapes = {**shapes_of(net(inner=8)), "layers.1.up.weight": (16, 16), "layers.1.up.bias": (16,)}
    changes, reason = found(net(), {**shapes, "layers.1.down.weight": (16, 16)}, Renumbering())
    assert changes == {}
    assert reason == (
        "no config of 'Net' was found that says its shape: 'layers.1.up.weight' would be [8, 16], not [16, 16]"
    )


def test_a_width_that_scales_scores_is_said_by_no_config() -> None:
    assert found(net(head=3), shapes_of(net(head=2)), Renumbering())[0] == {}
    assert found(net(head=3), shapes_of(net(head=3, heads=2)), Renumbering(), [(4, 2)])[0] == {"heads": 2}


def test_what_is_not_its_config_before_is_not_after() -> None:
    other = net()
    other.head = nn.Linear(16, 5)
    assert Base.of(other) == (
        None, "'Net' is not what its config says even before it is pruned: 'head.weight' would be [19, 16], not [5, 16]",
    )  # fmt: skip


def test_a_module_that_holds_a_configured_one() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.config = net(), {"hidden": 16}

    assert list(configured_roots(Outer())) == ["inner"]
    assert list(configured_roots(net())) == [""]


def test_asked_before_anything_is_cut() -> None:
    asked = Asking.of(net(), {"head.weight": ("head.weight",)})
    layer = [f"layers.1.{name}" for name, _ in net().layers[1].named_parameters()]
    assert asked.why_not({}, layer) == ""
    assert asked.why_not({}, layer[:4]) == "no config leaves out 'layers.1.q.weight' alone"
    ups = {
        f"layers.{i}.{n}": s
        for i in range(3)
        for n, s in (("up.weight", (8, 16)), ("up.bias", (8,)), ("down.weight", (16, 8)))
    }
    assert asked.why_not(ups) == ""
    assert asked.known == [frozenset({("inner",)}), frozenset({("layers",), ("kinds",)})]
    ups["layers.0.up.bias"] = (9,)
    assert asked.why_not(ups).endswith("'layers.0.up.bias' would be [8], not [9]")
    assert Asking.of(None, {}).why_not({}) == "the model has no config that transformers could read"


def test_elements_without_tensors() -> None:
    gone = {f"layers.{i}.{name}" for i in (0, 2) for name, _ in net().layers[0].named_parameters()}
    found = elements_without(net(), gone)
    assert (dict(found.gone), dict(found.depths)) == ({"layers": (0, 2)}, {"layers": 3})
    assert elements_without(net(), gone - {"layers.2.o.weight"}).gone == {"layers": (0,)}


def test_names_are_counted_anew_and_found_again() -> None:
    gaps = without("net.layers", (0, 2), 4)
    names = ["net.embed", "net.layers", "net.layers.1", "net.layers.1.q.weight", "net.layers.3.q.weight"]
    new = ["net.embed", "net.layers", "net.layers.0", "net.layers.0.q.weight", "net.layers.1.q.weight"]
    assert [gaps.new(name) for name in names] == new
    assert [gaps.old(name) for name in new] == names
    assert [gaps.is_gone(f"net.layers.{i}.q") for i in range(4)] == [True, False, True, False]
    assert gaps.below("net").names(["layers.0.q", "layers.3.q"]) == {"layers.1.q": "layers.3.q"}


def test_lists_by_layer_and_places_of_layers() -> None:
    data = {"depth": 4, "kinds": ["a", "b", "c", "d"], "dense": [0, 3], "part": {"depth": 4}, "first": 2}
    moves = depth_moves(data, (1,), 4)
    assert {("depth",): 3, ("kinds",): ["a", "c", "d"], ("dense",): [0, 2]} in moves
    assert {("part", "depth"): 3} in moves
    assert {("first",): 1} in moves
    assert Config(layers=2).kinds == ["relu", "silu"]
    assert isinstance(net(), Net)


def test_layers_that_no_number_says_apart_take_no_search() -> None:
    """Widths are counted against the numbers of the config that they depend on; equal ones, and few, are sought."""
    tf = pytest.importorskip("transformers")
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**sizes, num_hidden_layers=5))
    base, _ = Base.of(model)
    assert base is not None
    old = base.shapes
    up = ("mlp.up_proj.weight", "mlp.gate_proj.weight")

    def with_widths(*widths: int) -> dict[str, tuple[int, ...]]:
        by_layer = {f"model.layers.{i}.{name}": width for i, width in enumerate(widths) for name in up}
        return {name: (by_layer.get(name, shape[0]), *shape[1:]) for name, shape in old.items()}

    assert "which no number of its config says apart" in torn(base, old, with_widths(64, 56, 48, 40, 32))
    assert torn(base, old, with_widths(48, 48, 48, 48, 48)) == ""
    assert torn(base, old, with_widths(48, 56, 48, 48, 48)) == ""


def test_models_that_another_thread_makes_get_their_values() -> None:
    """Only tensors without memory go without: ways to fill tensors are those of the whole process."""
    weights = []

    class Watched(Net):
        def __init__(self, config: Config) -> None:
            super().__init__(config)
            weights.append(nn.init.constant_(torch.zeros(2, device="cpu"), 3.0))

    source = net()
    assert Twin.of(Watched, source.config.to_dict(), source.config) is not None
    (weight,) = weights
    assert weight.tolist() == [3.0, 3.0]
