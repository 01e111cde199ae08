"""Caches in ONNX files: their sizes are found, their heads shrink where the user lets them, and decoding is proven."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from cached_decoders import HEADS, KINDS, SHARED, SIZE, decoder, greedy
from onnx import numpy_helper

import graphprune as gp
from graphprune.analysis.groups import analyze_graph
from graphprune.errors import GraphpruneWarning, OptionError
from graphprune.hosts.onnx.caches import find_caches
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.onnx.symbols import symbols_in
from graphprune.opening import open_host
from graphprune.planning.select import resizable_axes
from graphprune.proof.decoding import decoded

IO = ("*.key[1]", "*.value[1]")
CACHE = "past_key_values.0.key"
EXPORTED = {"batch": "s1", "new": "s7", "past": "s3", "total": "s9"}
OPEN = {"past": "past_sequence_length", "new": "sequence_length", "total": "total_sequence_length", "head": "kv_dim"}


# -- sizes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_caches_are_found_by_what_the_graph_does_with_them(kind):
    host = OnnxHost.load(decoder(kind))
    found = find_caches(host.proto)
    assert {name: cache.axis for name, cache in found.items()} == dict.fromkeys(
        (CACHE, CACHE.removesuffix("key") + "value"), 2
    )
    assert found[CACHE].present[0] == "present.0.key"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symbols", [{}, EXPORTED, OPEN], ids=["expressions", "invented", "open"])
def test_a_decoder_needs_no_shapes(kind, symbols):
    host = open_host(decoder(kind, **symbols))
    ids, cache = host.bound["input_ids"], host.bound[CACHE]
    assert cache == (ids[0], HEADS if kind == "mha" else SHARED, 8, SIZE)
    assert host.bound.get("attention_mask", (0, cache[2] + ids[1]))[1] == cache[2] + ids[1]
    host.run(host.example_inputs())
    other = host.at_other_sizes()
    assert other.bound[CACHE][2:] == (16, SIZE)


@pytest.mark.parametrize(
    ("given", "mask", "cache", "new"),
    [
        ({"sizes": {"past": 5}}, 21, 5, 16),
        ({"sizes": {"past": 5, "seq": 3}}, 8, 5, 3),
        ({"sizes": {"total": 20, "past": 5}}, 20, 5, 15),
        ({"sizes": {"total": 6}}, 6, 3, 3),
        ({"shapes": {"attention_mask": (1, 30)}}, 30, 14, 16),
        ({"shapes": {CACHE: (1, SHARED, 4, SIZE)}, "sizes": {"sequence": 2}}, 6, 4, 2),
    ],
)
@pytest.mark.parametrize("symbols", [{}, EXPORTED, OPEN], ids=["expressions", "invented", "open"])
def test_sizes_are_solved(given, mask, cache, new, symbols):
    if "total" in given.get("sizes", {}) and not symbols:
        given = {
            "shapes": {"attention_mask": (1, mask)},
            "sizes": {k: v for k, v in given["sizes"].items() if k != "total"},
        }
    host = open_host(decoder("gqa", **symbols), **given)
    assert host.bound["attention_mask"][1] == mask
    assert (host.bound[CACHE][2], host.bound["input_ids"][1]) == (cache, new)
    assert host.bound["past_key_values.0.value"] == host.bound[CACHE]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sizes": {"pst": 5}}, "the inputs have no size 'pst'.*did you mean 'past'"),
        ({"sizes": {"past": 0}}, "the size 'past' is 0 and holds nothing"),
        ({"sizes": {"past": 5}, "shapes": {CACHE: (1, SHARED, 4, SIZE)}}, "the size 'past' is 5 here and 4 elsewhere"),
        ({"shapes": {"attention_mask": (1, 9)}, "sizes": {"past": 5, "seq": 3}}, "'past \\+ seq' is 9 here, and 8 by"),
        ({"shapes": {"attention_mask": (1, 5)}, "sizes": {"past": 5}}, "no size of 'seq' makes 'past \\+ seq' 5"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(given, said):
    with pytest.raises(OptionError, match=said):
        open_host(decoder("concat"), **given)


def test_only_files_have_named_sizes():
    with pytest.raises(OptionError, match="only axes of an ONNX file have names"):
        open_host("package.module:factory", sizes={"past": 5})


@pytest.mark.parametrize(
    ("sizes", "symbols"),
    [
        ({"x": ("a", "b"), "y": ("a", "a + b")}, ("a", "b")),
        ({"x": ("batch-size", 3)}, ("batch-size",)),
        ({"x": ("2*n", 3), "y": ("n",)}, ("n",)),
        ({"x": ("a.b", "f(a)", "a ** 2", "__import__('os')")}, ("a.b", "f(a)", "a ** 2", "__import__('os')")),
    ],
)
def test_an_expression_is_one_of_symbols_that_stand_alone(sizes, symbols):
    assert symbols_in(sizes) == symbols


def test_a_cache_of_the_wrong_size_is_told_in_a_sentence():
    host = OnnxHost.load(decoder("gqa", head=24))
    reason = next(node.reason for node in host.graph().nodes if node.op.endswith("GroupQueryAttention"))
    assert "[1, 2, 8, 24]" in reason
    assert len(reason) < 200


# -- heads ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=KINDS)
def pruned(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    whole = decoder(request.param, layers=2)
    onnx.save(whole, folder / "whole.onnx")
    only, left = ("head", 0.6) if request.param == "mha" else ("kv-group", 0.8)
    result = gp.prune(
        str(folder / "whole.onnx"),
        only=only,
        resize_io=IO,
        target={"params": left},
        allocation="uniform",
        max_ratio=0.5,
    )
    return whole, result, folder


def removed_heads(result, kind):
    """By layer, which query heads are gone."""
    kept = {group.name: group.kept for group in result.plan.groups}
    assert len(kept) == 2
    r = 1 if kind == "mha" else HEADS // SHARED
    return [[h for h in range(HEADS) if h // r not in units] for units in kept.values()]


def test_heads_and_caches_halve_and_20_tokens_are_those_of_the_masked_original(pruned):
    whole, result, folder = pruned
    result.save_onnx(folder / "small.onnx")
    small = onnx.load(folder / "small.onnx")
    masked = onnx.ModelProto()
    masked.CopyFrom(whole)
    for i, gone in enumerate(removed_heads(result, whole.graph.name)):
        tensor = next(each for each in masked.graph.initializer if each.name == f"wo{i}")
        table = numpy_helper.to_array(tensor).copy()
        table.reshape(HEADS, SIZE, -1)[gone] = 0
        tensor.CopyFrom(numpy_helper.from_array(table, tensor.name))
    (want, before), (have, after) = greedy(masked, [3, 1, 4, 1, 5], 20), greedy(small, [3, 1, 4, 1, 5], 20)
    assert want == have
    assert after * 2 == before
    assert result.report.cache_bytes == (before, after)


def test_decoding_is_part_of_the_proof_and_the_report_lists_what_shrank(pruned):
    _, result, _ = pruned
    check = next(each for each in result.report.proof if each.name == "decode")
    assert check.passed
    assert check.note.startswith("20 of 20 greedy tokens")
    rows = {(row.name, row.axis, row.before // row.after) for row in result.report.interface}
    sides = [
        f"{side}.{i}.{each}" for side in ("past_key_values", "present") for i in (0, 1) for each in ("key", "value")
    ]
    assert rows == {(name, 1, 2) for name in sides}
    assert "bytes for each token" in str(result)


def test_the_plan_is_replayed_and_the_file_is_proven_by_it(pruned):
    _, result, folder = pruned
    result.save_onnx(folder / "small.onnx")
    again = gp.apply(str(folder / "whole.onnx"), result.plan)
    again.save_onnx(folder / "again.onnx")
    assert (folder / "small.onnx").read_bytes() == (folder / "again.onnx").read_bytes()
    checks = gp.verify(str(folder / "whole.onnx"), str(folder / "small.onnx"), result.plan)
    assert all(check.passed and not check.partial for check in checks)


def test_a_model_that_forgets_its_past_fails_the_decoding_check(pruned):
    _, result, _ = pruned
    state = result.state
    given = state.analysis, state.kept, state.removed
    (right,) = decoded(state.original, result.host, *given)
    assert right.passed
    stored = next(name for name in ("wv1", "wqkv1") if name in result.host.graph().values)
    wrong = result.host.replaced({stored: np.roll(result.host.read(stored), 1, axis=1)})
    (check,) = decoded(state.original, wrong, *given)
    assert not check.passed


def test_a_pruned_file_can_be_pruned_on_with_its_own_interface(pruned):
    _, result, _ = pruned
    session = gp.Session.of(result)
    inputs = session.host.example_inputs()
    assert inputs[CACHE].shape[1] == next(row.after for row in result.report.interface if row.name == CACHE)
    session.host.run(inputs)


def test_the_interface_stays_what_it_is_unless_it_is_named():
    model = decoder("gqa")
    kinds = {group.kind for group in gp.analyze(model).groups}
    assert "kv-group" not in kinds
    for one_side in ("past*[1]", "present*[1]"):
        assert "kv-group" not in {group.kind for group in gp.analyze(model, resize_io=one_side).groups}
    assert "kv-group" in {group.kind for group in gp.analyze(model, resize_io=IO).groups}


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("*.keys", "matches no input or output of the model; these are 'input_ids'"),
        ("*.key[2]", "has not an axis 2 of a size of its own"),
        ("*.key[7]", "has not an axis 7 of a size of its own"),
    ],
)
def test_patterns_that_name_nothing_are_refused(pattern, said):
    graph = OnnxHost.load(decoder("gqa")).graph()
    with pytest.raises(OptionError) as error:
        resizable_axes(graph, [pattern])
    assert said in str(error.value)
    with pytest.raises(OptionError, match="about inputs and outputs of ONNX files"):
        resizable_axes(graph, ["*"], file=False)


def test_a_wrong_order_of_the_cut_interface_is_seen():
    host = OnnxHost.load(decoder("concat"))
    axes = resizable_axes(host.graph(), IO)
    analysis = analyze_graph(host.graph(), resizable=axes)
    group = next(group for group in analysis.groups if group.kind == "kv-group")
    from graphprune.passes.verify import verify
    from graphprune.pipeline.edits import smaller

    kept = {group.factor: np.array([1])}
    right = smaller(host, analysis, kept)
    assert all(check.passed for check in verify(host, right, analysis, kept))
    cuts = {n: {a: replace(c, index=np.array([0])) for a, c in axes.items()} for n, axes in right.cuts.items()}
    assert not all(check.passed for check in verify(host, replace(right, cuts=cuts), analysis, kept))


# -- genai ---------------------------------------------------------------------------------------------------------

CONFIG = {
    "model": {
        "type": "llama",
        "vocab_size": 40,
        "decoder": {
            "filename": "whole.onnx",
            "head_size": SIZE,
            "hidden_size": 32,
            "num_attention_heads": HEADS,
            "num_key_value_heads": SHARED,
            "num_hidden_layers": 2,
            "inputs": {"past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"},
            "outputs": {"logits": "logits"},
        },
    },
    "search": {"max_length": 64},
}


def test_the_config_of_genai_goes_with_the_file(pruned, tmp_path):
    whole, result, folder = pruned
    (folder / "genai_config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    try:
        result.save_onnx(tmp_path / "small.onnx")
        with pytest.warns(GraphpruneWarning, match="is of the original and stays"):
            result.save_onnx(folder / "beside.onnx")
    finally:
        (folder / "genai_config.json").unlink()
    made = json.loads((tmp_path / "genai_config.json").read_text(encoding="utf-8"))
    shared = HEADS if whole.graph.name == "mha" else SHARED
    wanted = {"filename": "small.onnx", "num_attention_heads": HEADS // 2, "num_key_value_heads": shared // 2}
    assert made == {**CONFIG, "model": {**CONFIG["model"], "decoder": {**CONFIG["model"]["decoder"], **wanted}}}
    assert (tmp_path / "tokenizer.json").is_file()


def test_a_config_that_cannot_say_uneven_layers_is_not_written(tmp_path):
    (tmp_path / "whole").mkdir()
    onnx.save(decoder("mha", layers=2), tmp_path / "whole" / "whole.onnx")
    (tmp_path / "whole" / "genai_config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    only = "wq0[1]"
    result = gp.prune(
        str(tmp_path / "whole" / "whole.onnx"), only=only, resize_io=IO, target={"params": 0.9}, max_ratio=0.75
    )
    with pytest.warns(GraphpruneWarning, match="it says one number"):
        result.save_onnx(tmp_path / "small.onnx")
    assert not (tmp_path / "genai_config.json").exists()


# -- calibration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["concat", "gqa"])
def test_calibration_is_fed_the_interface_of_the_original_and_judges_the_logits(kind):
    result = gp.prune(
        decoder(kind, layers=2), only="kv-group", resize_io=IO, target={"params": 0.8}, calibration="random", samples=8
    )
    assert {check.name for check in result.report.proof if check.passed} >= {"masked", "decode"}
    assert [text.partition(" ")[0] for text in result.report.losses] == ["'logits'"]
    host = OnnxHost.load(decoder(kind))
    assert host.graph().carried == {"present.0.key", "present.0.value"}
    assert host.takes_one == (kind == "gqa")
