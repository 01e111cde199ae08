"""``genai_config.json`` beside a file, which says a decoder's sizes: made true for a smaller one."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graphprune.errors import GraphpruneWarning
from graphprune.hosts.messages import attributes_of
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.onnx.sizes import input_sizes

CONFIG = "genai_config.json"
_BESIDE = (".json", ".txt", ".jinja", ".model", ".tiktoken")
"""How the files of tokenizers and templates end, which go with a config."""
_LARGEST = 1 << 26
"""Bytes of the largest of them."""
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "sep_token_id")
_QUERY_HEADS = ("num_heads", "q_num_heads")


def genai_ids(file: Path | None, size: int) -> frozenset[int]:
    """The ids of tokens that the config beside a file names."""
    try:
        model = json.loads((file.parent / CONFIG).read_text(encoding="utf-8"))["model"] if file is not None else {}
    except (OSError, ValueError, KeyError):
        return frozenset()
    given = [model.get(key) for key in _IDS]
    found = [i for each in given for i in (each if isinstance(each, list) else [each]) if isinstance(i, int)]
    return frozenset(i for i in found if 0 <= i < size)


def write_genai(host: OnnxHost, path: Path, widths: Mapping[int, int], ids: Mapping[int, int] | None = None) -> None:
    """Writes the config that lies beside the original, and what else lies there of a tokenizer, beside a smaller file.

    A config that cannot say the sizes of the file is not written, and a warning says why. Nothing is written into the
    original's own folder, whose config is the original's.

    Args:
        host: The smaller model, as it was saved.
        path: Where.
        widths: From widths of the residual stream to what is left of them.
        ids: New ids of tokens by former ones; the tokenizer's files are written by others then.
    """
    if host.file is None or not (host.file.parent / CONFIG).is_file():
        return
    folder = host.file.parent
    if folder.resolve() == path.parent.resolve():
        _warn(
            f"'{folder / CONFIG}' is of the original and stays as it is; write '{path.name}' into a folder of its own"
        )
        return
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        made = rewritten(config, host, path.name, widths)
    except (ValueError, KeyError, TypeError, OSError) as error:
        _warn(f"'{folder / CONFIG}' could not be rewritten for '{path}': {error}; write one by hand")
        return
    for key in _IDS if ids is not None else ():
        if (given := made["model"].get(key)) is not None:
            listed = [(ids or {}).get(i, i) for i in (given if isinstance(given, list) else [given])]
            made["model"][key] = listed if isinstance(given, list) else listed[0]
    for each in sorted(folder.iterdir()) if ids is None else ():
        there = path.parent / each.name
        if each.suffix in _BESIDE and each.is_file() and each.stat().st_size <= _LARGEST and not there.exists():
            shutil.copyfile(each, there)
    (path.parent / CONFIG).write_text(json.dumps(made, indent=4), encoding="utf-8")


def rewritten(config: Mapping[str, Any], host: OnnxHost, name: str, widths: Mapping[int, int]) -> dict[str, Any]:
    """The config of a smaller file.

    Args:
        config: That of the original.
        host: The smaller model.
        name: Of its file.
        widths: From widths of the residual stream to what is left of them.

    Raises:
        ValueError: Layers have other sizes than each other, and a config says one for all.
        KeyError: The config says nothing of a decoder.
    """
    made: dict[str, Any] = json.loads(json.dumps(config))
    model, decoder = made["model"], made["model"]["decoder"]
    before = int(decoder.get("num_key_value_heads", 0))
    decoder["filename"] = name
    declared = input_sizes(host.proto)
    layers: list[tuple[int | str | None, ...]] = []
    patterns = [decoder.get("inputs", {}).get(key, "") for key in ("past_key_names", "past_value_names")]
    present = [[pattern % i in declared for pattern in patterns if "%d" in pattern] for i in range(len(declared))]
    for i, found in enumerate(present):
        if any(found):
            layers.extend(declared[pattern % i] for pattern in patterns if pattern % i in declared)
    for key, axis in (("num_key_value_heads", 1), ("head_size", 3)):
        sizes = {sizes[axis] for sizes in layers if len(sizes) == 4}
        if len(sizes) > 1:
            listed = " and ".join(map(str, sorted(map(str, sizes))))
            raise ValueError(f"caches of layers have {listed} as '{key}', and it says one number (allocation uniform)")
        if sizes and isinstance(size := next(iter(sizes)), int):
            decoder[key] = size
    if layers:
        decoder["num_hidden_layers"] = sum(any(found) for found in present)
    heads = {
        attributes_of(node)[key] for node in host.proto.graph.node for key in _QUERY_HEADS if key in attributes_of(node)
    }
    if len(heads) == 1:
        decoder["num_attention_heads"] = int(next(iter(heads)))
    elif not heads and before:
        decoder["num_attention_heads"] = decoder["num_attention_heads"] * decoder["num_key_value_heads"] // before
    if (hidden := decoder.get("hidden_size")) in widths:
        decoder["hidden_size"] = widths[hidden]
    logits = decoder.get("outputs", {}).get("logits", "")
    value = next((each for each in host.proto.graph.output if each.name == logits), None)
    if value is not None and value.type.tensor_type.shape.dim and value.type.tensor_type.shape.dim[-1].dim_value:
        model["vocab_size"] = value.type.tensor_type.shape.dim[-1].dim_value
    return made


def _warn(text: str) -> None:
    warnings.warn(text, GraphpruneWarning, stacklevel=4)
