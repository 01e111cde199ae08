"""Checkpoints whose weights stay in their files: the same folder as from memory, killed at any moment, and its proof."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import graphprune as gp
from graphprune.hosts.checkpoint import shrunken, streaming
from graphprune.hosts.checkpoint.host import CheckpointHost
from graphprune.hosts.checkpoint.shards import Shards
from graphprune.hosts.checkpoint.slices import first_difference, write_slice

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.2, "pad_token_id": 0, "max_position_embeddings": 128,
}  # fmt: skip
GPT2: dict[str, Any] = {"vocab_size": 64, "n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4}


def written(folder: Path, kind: str = "Llama", dtype: torch.dtype = torch.float32, **config: Any) -> Path:
    torch.manual_seed(0)
    sizes = {**(GPT2 if kind == "GPT2" else SIZES), **config}
    build = getattr(transformers, f"{kind}{'LMHeadModel' if kind == 'GPT2' else 'ForCausalLM'}")
    build(getattr(transformers, f"{kind}Config")(**sizes)).to(dtype).save_pretrained(folder, max_shard_size="30KB")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("checkpoint") / "whole")


def pruned(folder: Path, **options: Any) -> gp.Result:
    given = {"stream": True, "target": {"params": 0.7}, "criterion": "l2", "layout": "stock", "verify": False}
    return gp.prune(str(folder), **{**given, **options})


@pytest.fixture(scope="module")
def small(whole: Path) -> gp.Result:
    return pruned(whole, layers=1)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


FOLDERS = (
    ("Llama", torch.float32, {}, {"layers": 1}),
    ("Llama", torch.bfloat16, {"tie_word_embeddings": True}, {"criterion": "l1", "only": "width"}),
    ("Qwen2", torch.float16, {}, {"criterion": "fpgm"}),
    ("GPT2", torch.float32, {}, {"criterion": "random"}),
)


@pytest.mark.parametrize(("kind", "dtype", "config", "options"), FOLDERS)
def test_the_same_folder_as_from_memory(
    kind: str, dtype: torch.dtype, config: dict[str, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    folder = written(tmp_path / "whole", kind, dtype, **config)
    pruned(folder, stream=False, **options).save_pretrained(tmp_path / "loaded")
    (check,) = pruned(folder, **options).save_pretrained(tmp_path / "streamed")
    assert (check.name, check.difference) == ("streamed", 0.0)
    loaded, streamed = (json.loads((tmp_path / n / "config.json").read_text()) for n in ("loaded", "streamed"))
    assert loaded == streamed != json.loads((folder / "config.json").read_text())
    expected, got = weights(tmp_path / "loaded"), weights(tmp_path / "streamed")
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert got[name].dtype == value.dtype
        assert torch.equal(got[name], value), name
    assert not any(path.name.endswith(".streaming") for path in tmp_path.iterdir())


def test_proven_on_a_twin(tmp_path: Path) -> None:
    folder = written(tmp_path / "whole", vocab_size=16384, intermediate_size=512, num_hidden_layers=6, hidden_size=128)
    result = pruned(folder, verify=True, layers=1)
    assert [check.name for check in result.report.proof] == ["masked", "permutation", "reloaded"]
    assert all("a twin of" in check.note for check in result.report.proof)
    twin = result.state.original.stand_in(result.state)
    assert len(twin.removed) == 1
    assert {group.kind for group in twin.analysis.groups if group.factor in twin.kept} == {
        row.kind for row in result.report.groups if row.kept < row.size
    }
    assert sum(value.n_elements for value in twin.analysis.graph.stored) < 1_000_000
    with pytest.raises(gp.OutputError, match="are not loaded"):
        result.save_onnx(tmp_path / "x.onnx")
    with pytest.raises(gp.OptionError, match="use save_pretrained"):
        result.save_state(tmp_path / "state")


def test_a_wrong_slice_of_the_twin_is_seen(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    laid_out = streaming._laid_out

    def turned(pieces: list[streaming.Piece], shard: int) -> Any:
        off = [replace(p, axes={a: i[::-1].copy() for a, i in p.axes.items()}) for p in pieces]
        return laid_out([b if "up_proj" in a.name else a for a, b in zip(pieces, off, strict=True)], shard)

    monkeypatch.setattr(streaming, "_laid_out", turned)
    with pytest.raises(gp.ProofError, match="reloaded"):
        pruned(whole, verify=True, target={"params": 0.9})


def test_an_original_that_is_unlike_its_twin_has_none(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shrunken, "_structure", lambda base, data: None)
    with pytest.raises(gp.ProofError, match="no twin of it can be built; give verify=False"):
        pruned(whole, verify=True)


class Killed(BaseException):
    """As if the process ended here."""


def test_killed_at_any_moment(small: gp.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = small
    job = streaming.job_of(result.state.original, result.state, shard=40_000)
    assert len(job.files) > 2

    def run(folder: Path) -> None:
        streaming.stream(job, folder, None, {"plan.json": result.plan.save})

    run(tmp_path / "once")
    expected = contents(tmp_path / "once")
    calls, real = 0, {"fsync": os.fsync, "rename": Path.rename, "write": streaming.write_slice}

    def dying(name: str, at: int) -> Any:
        def call(*given: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                if name == "write":
                    given[-1].write(b"half")
                raise Killed
            return real[name](*given)

        return call

    at = 0
    while True:
        at, calls = at + 1, 0
        folder = tmp_path / "small"
        shutil.rmtree(folder, ignore_errors=True)
        if at % 2:
            shutil.copytree(tmp_path / "once", folder)  # an earlier checkpoint, which is replaced
            (folder / "config.json").write_text("{}")
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", dying("fsync", at))
            patch.setattr(Path, "rename", dying("rename", at))
            patch.setattr(streaming, "write_slice", dying("write", at))
            try:
                run(folder)
            except Killed:
                died = True
            else:
                died = False
        run(folder)
        assert contents(folder) == expected, at
        assert not (tmp_path / "small.streaming").exists()
        if not died:
            break
    assert at > 30


def test_what_is_done_is_not_done_again(small: gp.Result, tmp_path: Path) -> None:
    result = small
    job = streaming.job_of(result.state.original, result.state, shard=40_000)
    with pytest.raises(Killed):
        streaming.stream(job, tmp_path / "small", None, {"plan.json": _dies})
    done = sorted((tmp_path / "small.streaming" / "new").glob("*.safetensors"))
    assert [path.name for path in done] == sorted(job.files)
    with done[0].open("r+b") as file:  # the disk has lost a byte
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    times = {path.name: path.stat().st_mtime_ns for path in done}
    streaming.stream(job, tmp_path / "small", None, {"plan.json": result.plan.save})
    now = {name: (tmp_path / "small" / name).stat().st_mtime_ns for name in times}
    assert [name for name in times if now[name] != times[name]] == [done[0].name]


def _dies(path: Path) -> None:
    raise Killed


def test_another_plan_begins_anew(small: gp.Result, whole: Path, tmp_path: Path) -> None:
    for result in (pruned(whole, target={"params": 0.9}), small):
        job = streaming.job_of(result.state.original, result.state)
        with pytest.raises(Killed):
            streaming.stream(job, tmp_path / "small", None, {"plan.json": _dies})
    streaming.stream(job, tmp_path / "small", None, {"plan.json": result.plan.save})
    result.save_pretrained(tmp_path / "other")
    assert weights(tmp_path / "small").keys() == weights(tmp_path / "other").keys()
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "small")
    assert model.config.intermediate_size == result.module.config.intermediate_size < 96


def test_a_disk_that_lies_is_noticed(small: gp.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def wrong(source: Any, axes: Any, file: Any) -> None:
        start = file.tell()
        write_slice(source, axes, file)
        if source.shape == (32, 96):
            file.seek(start)
            file.write(b"\1")
            file.seek(0, os.SEEK_END)

    monkeypatch.setattr(streaming, "write_slice", wrong)
    with pytest.raises(
        gp.ProofError, match=r"'model.layers.0.mlp.down_proj.weight' is not what was taken .* from row 0"
    ):
        small.save_pretrained(tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_read_as_from_memory(whole: Path) -> None:
    host, loaded = CheckpointHost.open(whole), gp.Session(str(whole), stream=False).host
    for name in host.stored_as:
        assert np.array_equal(host.read(name), loaded.read(name))
        assert host.digest(name) == loaded.digest(name)


@pytest.mark.parametrize("axes", [{}, {0: [0, 3]}, {2: [1]}, {0: [1, 4], 1: [0, 2], 2: [2, 0]}])
def test_slices_in_pieces(axes: dict[int, list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphprune.hosts.checkpoint import slices

    monkeypatch.setattr(slices, "PIECE", 16)
    source = np.arange(5 * 4 * 3, dtype=np.float16).reshape(5, 4, 3)
    taken = {axis: np.array(index) for axis, index in axes.items()}
    expected = source[np.ix_(*(taken.get(i, np.arange(n)) for i, n in enumerate(source.shape)))]
    with (tmp_path / "x").open("wb") as file:
        write_slice(source, taken, file)
    got = np.fromfile(tmp_path / "x", np.float16).reshape(expected.shape)
    assert np.array_equal(expected, got)
    assert first_difference(source, taken, got) is None
    got[-1, 0, 0] += 1
    assert first_difference(source, taken, got) == len(got) - 1


def _with_header(folder: Path, change: Any) -> None:
    path = sorted(folder.glob("*.safetensors"))[0]
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    name = next(name for name in header if name != "__metadata__")
    change(header, name)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + n :])


HEADERS = (
    (lambda h, n: h[n].update(dtype="F8_E4M3"), "holds numbers of type 'F8_E4M3', of which scales lie elsewhere"),
    (lambda h, n: h[n].update(data_offsets=[0, 10**12]), "is no file of safetensors: a tensor at bytes 0 to"),
    (lambda h, n: h[n].update(shape=[-1, -4]), "is no file of safetensors: a tensor at bytes"),
    (lambda h, n: h.update(more=h[n]), "' lies over another tensor"),
    (lambda h, n: h.update({n: 3}), "is no file of safetensors: 'int' object"),
)


@pytest.mark.parametrize(("change", "message"), HEADERS)
def test_headers_that_are_refused(change: Any, message: str, whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "whole"))
    _with_header(folder, change)
    with pytest.raises(gp.ModelError, match=message):
        Shards.of(folder)


def _quantised(folder: Path) -> None:
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, "quantization_config": {"quant_method": "fp8"}}))


def _lacking(folder: Path) -> None:
    path = next(p for p in sorted(folder.glob("*.safetensors")) if len(load_file(p)) > 1)
    save_file(dict(list(load_file(path).items())[1:]), path, {"format": "pt"})


def _reshaped(folder: Path) -> None:
    path = next(p for p in sorted(folder.glob("*.safetensors")) if "model.norm.weight" in load_file(p))
    save_file({**load_file(path), "model.norm.weight": torch.ones(33)}, path, {"format": "pt"})


MODELS = (
    (_quantised, {}, "are quantised, and their scales lie elsewhere"),
    (_lacking, {}, "which would be drawn at random; give a whole checkpoint"),
    (_reshaped, {}, r"stores 'model.norm.weight' of shape \[33\], which 'LlamaForCausalLM' has in shape \[32\]"),
    (None, {"calibration": "random"}, "it does not run"),
    (None, {"layout": "free", "allocation": "global", "align": 1}, "no config says what would be left"),
)


@pytest.mark.parametrize(("change", "options", "message"), MODELS)
def test_models_that_are_refused(
    change: Any, options: dict[str, Any], message: str, whole: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "whole"))
    if change is not None:
        change(folder)
    with pytest.raises(gp.GraphpruneError, match=message):
        pruned(folder, **options)


def test_only_folders_are_streamed(tmp_path: Path) -> None:
    with pytest.raises(gp.OptionError, match="is no checkpoint's folder, and only the weights of one are streamed"):
        gp.prune(tmp_path / "x.onnx", stream=True, target={"macs": 0.5})
