"""Checkpoints as models: a folder with a config, weights, and perhaps a tokenizer. Nothing is fetched from a hub.

The class is the one that the config names; the weights are read by it, on the CPU. The call that the model is traced
with is made up of what its forward takes and of what its config says on sizes.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graphprune.errors import ModelError, OptionError, first_line
from graphprune.files import is_there
from graphprune.hosts.torch.quiet import quiet

CONFIG = "config.json"
FOLDER = "_graphprune_folder"
"""The attribute in which a module notes the folder that it was read from."""

TOKENIZER_FILES = (
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model"),
    *("chat_template*", "preprocessor_config.json", "processor_config.json", "spiece*", "sentencepiece*"),
)
"""What a folder of a tokenizer, or of a processor of other inputs, may hold."""

N_TOKENS = 64
"""Tokens of the example."""
N_FRAMES = 64
"""Frames of features of the example; of sound, what a quarter of a second is at 16,000 samples a second."""
_SAMPLES = 4_000


def is_checkpoint(folder: Path) -> bool:
    """Whether a path is a folder with a config."""
    return folder.is_dir() and is_there(folder / CONFIG)


def folder_of(source: nn.Module | None) -> Path | None:
    """The folder that a module was read from, where that was done here."""
    found = vars(source).get(FOLDER) if source is not None else None
    return Path(found) if isinstance(found, str) else None


def tokenizer_of(source: nn.Module | None) -> Path | None:
    """The folder that a module was read from, where it holds the files of a tokenizer."""
    folder = folder_of(source)
    return folder if folder is not None and any(True for name in TOKENIZER_FILES for _ in folder.glob(name)) else None


def read_checkpoint(folder: Path, *, trust: bool = False) -> nn.Module:
    """The model of a folder, in evaluation mode.

    Args:
        folder: The folder.
        trust: Whether code that lies in it may be run.

    Raises:
        ModelError: It cannot be read, or holds no weights for some of the model.
        OptionError: It brings code of its own, and is not trusted.
    """
    kind = _class_of(folder, trust=trust)
    try:
        with quiet():
            model, found = kind.from_pretrained(
                folder, output_loading_info=True, local_files_only=True, dtype="auto", trust_remote_code=trust
            )
    except Exception as error:  # the class's own reader raises what it likes
        raise ModelError(
            f"cannot read '{folder}' as '{kind.__name__}': {first_line(error)}; mend the folder"
        ) from error
    if missing := sorted(map(str, found.get("missing_keys", ()))):
        raise ModelError(
            f"'{folder}' holds no weights for '{missing[0]}' of '{kind.__name__}', which would be drawn at random; "
            "give a whole checkpoint"
        )
    vars(model)[FOLDER] = str(folder.resolve())
    read: nn.Module = model.eval()
    return read


def built_without_weights(folder: Path, dtype: str, *, trust: bool = False) -> nn.Module:
    """The model of a folder on the meta device, in evaluation mode: its structure alone.

    Args:
        folder: The folder.
        dtype: What the header of safetensors calls the type of its first tensor; the config's goes before it.
        trust: Whether code that lies in it may be run.

    Raises:
        ModelError: It cannot be built, or the config says that weights are quantised.
        OptionError: It brings code of its own, and is not trusted.
    """
    kind = _class_of(folder, trust=trust)
    import transformers

    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust)
            if getattr(config, "quantization_config", None) is not None:
                raise ModelError(
                    f"the weights of '{folder}' are quantised, and their scales lie elsewhere, so that cutting them is "
                    "not exact; give a checkpoint of bfloat16, float16 or float32"
                )
            stored = {"F64": torch.float64, "F16": torch.float16, "BF16": torch.bfloat16}.get(dtype, torch.float32)
            said = getattr(config, "dtype", None)
            options: dict[str, Any] = {"dtype": said if isinstance(said, torch.dtype) else stored}
            with torch.device("meta"):
                if hasattr(kind, "_from_config"):
                    model = kind._from_config(config, **options)
                else:
                    model = kind.from_config(config, trust_remote_code=trust, **options)
    except ModelError:
        raise
    except Exception as error:  # the class raises what it likes
        raise ModelError(
            f"cannot build '{kind.__name__}' from '{folder / CONFIG}': {first_line(error)}; mend the folder"
        ) from error
    built: nn.Module = model.eval()
    return built


def _class_of(folder: Path, *, trust: bool) -> Any:
    """The class that the config of a folder names, or the automatic one that finds it.

    Raises:
        ModelError: The config cannot be read.
        OptionError: The folder brings code of its own, and is not trusted.
    """
    try:
        data = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read '{folder / CONFIG}': {first_line(error)}; give a checkpoint's folder") from error
    if isinstance(data, dict) and data.get("auto_map") and not trust:
        raise OptionError(
            f"'{folder}' brings code of its own, which loading it runs; pass --trust if you trust its author"
        )
    try:
        import transformers
    except ImportError as error:
        raise ModelError(f"'{folder}' is a checkpoint of transformers, which is not installed; install it") from error
    names = data.get("architectures") if isinstance(data, dict) else None
    name = names[0] if isinstance(names, list) and names else ""
    kind: Any = getattr(transformers, name, None) if not data.get("auto_map") else None
    if kind is None:
        auto = next((key for key in data.get("auto_map", {}) if key.startswith("AutoModel")), "AutoModel")
        kind = getattr(transformers, auto, transformers.AutoModel)
    return kind


def example_of(model: nn.Module, shapes: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, Any]:
    """Arguments for a forward: random, of what its config says.

    Args:
        model: A model of transformers.
        shapes: Shapes of arguments by name, where they are to be others.

    Raises:
        OptionError: It is not known what its main argument looks like.
    """
    config: Any = vars(model)["config"]
    names = list(inspect.signature(model.forward).parameters)
    generator = torch.Generator().manual_seed(0)
    given = dict(shapes or {})
    main = str(getattr(model, "main_input_name", names[0]))
    wanted = list(dict.fromkeys([main, *_besides(model, config, names), *given]))
    found: dict[str, Any] = {}
    for name in wanted:
        shape = given.get(name) or _shape_of(name, config)
        if shape is None:
            raise OptionError(
                f"no example could be made up for '{name}' of '{type(model).__name__}'; give --shape {name}=1x... or "
                "example_inputs"
            )
        if name.endswith("ids"):
            found[name] = torch.randint(3, max(4, _vocabulary(config)), shape, generator=generator)
        elif name.endswith("mask"):
            found[name] = torch.ones(shape, dtype=torch.int64)
        else:
            values = torch.randn(shape, generator=generator)
            found[name] = values.to(next(p.dtype for p in model.parameters() if p.is_floating_point()))
    return found


def _besides(model: nn.Module, config: Any, names: list[str]) -> list[str]:
    """Arguments that a forward needs beside its main one."""
    found = []
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in names:
        found.append("decoder_input_ids")
    parts = getattr(type(config), "sub_configs", {})
    if "pixel_values" in names and "input_ids" in names and "vision_config" in parts and "text_config" in parts:
        found.extend(("input_ids", "pixel_values"))
    return found


def _vocabulary(config: Any) -> int:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(getattr(text, "vocab_size", None) or getattr(config, "vocab_size", None) or 4)


def _number(config: Any, *names: str) -> int | None:
    """The first of some values that a config or its parts have."""
    for each in (config, *(getattr(config, part, None) for part in getattr(type(config), "sub_configs", {}))):
        for name in names:
            value = getattr(each, name, None)
            if isinstance(value, list | tuple) and value:
                value = value[0]
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return None


def _shape_of(name: str, config: Any) -> tuple[int, ...] | None:
    """The shape of an argument by its name, which transformers keeps to over all models."""
    if name in ("input_ids", "decoder_input_ids", "attention_mask"):
        most = _number(config, "max_position_embeddings", "n_positions", "max_target_positions") or N_TOKENS
        return (1, min(N_TOKENS, most))
    if name == "pixel_values":
        size, channels = _number(config, "image_size"), _number(config, "num_channels", "in_channels")
        return (1, channels or 3, size or 224, size or 224)
    if name == "input_features":
        bins = _number(config, "num_mel_bins", "feature_size", "input_feat_per_channel")
        frames = _number(config, "max_source_positions")
        return None if bins is None else (1, bins, 2 * frames) if frames and not hasattr(config, "conv_channels") else (
            1, N_FRAMES, bins,
        )  # fmt: skip
    if name == "input_values":
        bins, length = _number(config, "num_mel_bins"), _number(config, "max_length")
        return (1, length, bins) if bins and length else (1, _SAMPLES)
    return None
