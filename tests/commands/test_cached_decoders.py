"""Decoders with caches on the command line: one command, without the shape of any input."""

import json

import onnx
from cached_decoders import decoder
from test_cli import error_of, run


def test_one_command_halves_the_heads_of_a_decoder(tmp_path):
    onnx.save(decoder("gqa", past="past_len", new="seq_len", total="all_len", head="width"), tmp_path / "whole.onnx")
    result = run(
        "prune", tmp_path / "whole.onnx", "-o", tmp_path / "small.onnx", "--target", "params=0.8", "--only", "kv-group",
        "--resize-io", "*.key[1]", "--resize-io", "*.value[1]", "--size", "past=5", "--json",
    )  # fmt: skip
    report = json.loads(result.output)
    sizes = {row["name"]: row["sizes"] for row in report["inputs"]}
    assert sizes["past_key_values.0.key"] == [1, 2, 5, 16]
    assert sizes["attention_mask"] == [1, 21]
    assert {(row["name"], row["before"], row["after"]) for row in report["interface"]} == {
        (f"{side}.0.{each}", 2, 1) for side in ("past_key_values", "present") for each in ("key", "value")
    }
    assert report["cache_bytes"] == [256, 128]
    assert [row["name"] for row in report["proof"]] == ["masked", "permutation", "decode", "onnxruntime"]


def test_a_size_that_cannot_be_read_is_refused(tmp_path):
    onnx.save(decoder("gqa"), tmp_path / "whole.onnx")
    assert "cannot read --size 'past'; expected one like 'past=5'" in error_of(
        "inspect", tmp_path / "whole.onnx", "--size", "past"
    )


def test_inspect_shows_heads_that_may_shrink(tmp_path):
    onnx.save(decoder("packed"), tmp_path / "whole.onnx")
    kinds = [
        {row["kind"] for row in json.loads(run("inspect", tmp_path / "whole.onnx", "--json", *more).output)["groups"]}
        for more in ((), ("--resize-io", "*.key[1]", "--resize-io", "*.value[1]"))
    ]
    assert kinds[1] - kinds[0] == {"kv-group"}
