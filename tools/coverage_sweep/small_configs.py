"""Small configs of every architecture in transformers.

Nothing here names an architecture in logic. Sizes are shrunk by what a config's fields are called: first each to a size
of its own; where that breaks what must fit, all widths by one divisor, which keeps their ratios; at last only the
number of layers and the size of the vocabulary. ``small_hints.py`` holds what cannot be guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tools.coverage_sweep.small_hints import HEAD, HEADS, HINTS, IMAGE, INNER, VOCAB, WIDTH

TASKS = (
    "SEQ_TO_SEQ_CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "IMAGE_CLASSIFICATION",
    "OBJECT_DETECTION", "SEMANTIC_SEGMENTATION", "UNIVERSAL_SEGMENTATION", "DEPTH_ESTIMATION", "CTC", "MASKED_LM",
    "",  # the bare model
    "ZERO_SHOT_OBJECT_DETECTION", "IMAGE_TO_IMAGE", "KEYPOINT_DETECTION", "KEYPOINT_MATCHING", "IMAGE_MATTING",
    "POSE_ESTIMATION", "VIDEO_CLASSIFICATION", "TEXT_TO_SPECTROGRAM", "TEXT_TO_WAVEFORM", "TIME_SERIES_PREDICTION",
    "MASK_GENERATION", "AUDIO_CLASSIFICATION", "PRETRAINING", "MULTIMODAL_LM", "RETRIEVAL", "TEXT_ENCODING", "BACKBONE",
    "TABLE_RECOGNITION", "TEXT_RECOGNITION", "IMAGE", "TOKEN_CLASSIFICATION", "SEQUENCE_CLASSIFICATION",
    "VISUAL_QUESTION_ANSWERING", "DECISION", "NORMAL_ESTIMATION", "POINTMAP_ESTIMATION", "RNNT", "TDT",
)  # fmt: skip
"""Which of transformers' mappings is asked first for the class of a config."""

BACKBONE = {
    "model_type": "resnet", "embedding_size": 16, "hidden_sizes": [16, 32, 64, 64], "depths": [1, 1, 1, 1],
    "layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"],
}  # fmt: skip
"""In place of backbones of timm, which is not needed otherwise."""

_TOKEN = r".*(_token_id|_token_index|_index|_token_ids?)"
ROTARY = ("rope_parameters", "rope_scaling")

ABSENT = {
    "vocab_size": VOCAB, "prediction_length": 8, "n_routed_experts": 4, "num_local_experts": 4, "num_experts": 4,
    "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "image_token_id": VOCAB - 2,
}  # fmt: skip
"""What configs leave open and their models need."""

SCALARS: tuple[tuple[str, int], ...] = (
    (r".*(num_key_value_heads|num_kv_heads|n_head_kv|multi_query_group_num)", 2),
    (r".*(num_.*heads?|n_heads?|heads|.*attention_heads)", HEADS),
    (r".*(qk_rope_head_dim|rotary_dim)", HEAD),
    (r".*(head_dim|head_size|d_kv|dim_head|kv_channels)", HEAD),
    (r".*lora_rank", 32),
    (r".*(intermediate_size|ffn_dim|d_ffn?|n_inner|d_inner|dim_feedforward|feedforward_dim|ffn_hidden_size)", INNER),
    (r".*(num_experts_per_tok|top_k|topk|moe_k|num_experts_per_token)", 2),
    (r".*(n_group|topk_group)", 1),
    (r".*(num_experts|n_routed_experts|num_local_experts|moe_num_experts)", 4),
    (r".*(type_vocab_size|visual_vocab_size)", 0),  # small as they are
    (r".*(vocab_size.*|n_words|num_embeddings)", VOCAB),
    (r".*(max_position_embeddings|n_positions|max_seq_len|max_2d_position_embeddings|max_sequence_length)", VOCAB),
    (r".*(num_queries|num_latents|num_query_tokens|query_num|num_learnable_queries)", 10),
    (r".*(num_frames|frames_per_clip)", 4),
    (r".*num_feat_extract_layers", 0),
    (r".*(num_.*layers?|n_layers?|.*_layers|depth|num_blocks|num_stages_layers|n_layer)", 2),
    (r"(image_size|img_size)", IMAGE),
    (r".*(max_source_positions)", 32),
    (r".*(num_conv_pos_embeddings)", 16),
    (r".*(num_conv_pos_embedding_groups|upsample_groups)", 4),
    (r".*(hidden_size|d_model|n_embd|embed_dim|embedding_size|hidden_dim|dim|width|projection_dim|emb_dim|_size|"
     r"_channels|units|_dims|feature_size|out_features_dim|bottleneck.*|d_embed.*)", WIDTH),
)  # fmt: skip
_KEEP = re.compile(
    r".*(patch|stride|kernel|merge_size|_id$|_ids$|tile|window|block_size|chunk|num_channels|in_channels|state_size|"
    r"conv_size|temporal|dilation|group_size|num_labels|downsampl|pool|conv_kernel|input_size|mel|n_fft|hop)"
)


def shrunk(fields: dict[str, Any], model_type: str = "") -> dict[str, Any]:
    """The fields of a config that must change to make it small; sub-configs likewise."""
    changed: dict[str, Any] = {}
    n_heads = fields.get("num_attention_heads")
    many_heads = next((v for k, v in fields.items() if "num_heads" in k and isinstance(v, list) and v), None)
    ids = iter(range(VOCAB - 28, VOCAB))
    for name, value in fields.items():
        new = value
        if name == "num_key_value_heads" and value == n_heads:
            new = HEADS
        elif name == "backbone_config" and isinstance(value, dict) and "timm" in value.get("model_type", ""):
            new = BACKBONE
        elif name == "image_size" and isinstance(value, int) and _large(fields.get("patch_size")):
            new = IMAGE // 2
        elif name == "window_size" and "depths" in fields and isinstance(value, int):
            new = 2
        elif name in ROTARY and isinstance(value, dict):
            new = _rotary(value, fields)
        elif name in ABSENT and value is None:
            new = ABSENT[name]
        elif name == "per_layer_config" and isinstance(value, dict):
            new = {k: v | shrunk(v) for k, v in value.items() if int(k) < 2} or None
        elif isinstance(value, dict) and (name.endswith("config") or "model_type" in value):
            inner = shrunk(value, value.get("model_type", ""))
            new = {**_own(value), **inner, "model_type": value["model_type"]} if "model_type" in value else inner
            if not inner and "model_type" not in value:
                continue
        elif isinstance(value, bool) or value is None:
            continue
        elif isinstance(value, int):
            new = _scalar(name, value, many_heads)
            if re.fullmatch(_TOKEN, name) and value >= VOCAB - 28:
                new = next(ids)
        elif isinstance(value, list | tuple) and value and all(type(v) is int for v in value):
            new = _listed(name, list(value))
        if new != value:
            changed[name] = new
    changed.update(_stages(fields))
    changed.update(HINTS.get(model_type, {}))
    return changed


def _own(value: dict[str, Any]) -> dict[str, Any]:
    """What a sub-config says that its class does not say by itself."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if value["model_type"] not in CONFIG_MAPPING:
        return {}
    try:
        default = CONFIG_MAPPING[value["model_type"]]().to_dict()
    except Exception:  # noqa: BLE001  (a class that has no defaults)
        return {}
    return {k: v for k, v in value.items() if v is not None and default.get(k) != v and not k.startswith("_")}


def _stages(fields: dict[str, Any]) -> dict[str, Any]:
    """A backbone that gives the results of some of its layers: as many layers as it gives."""
    found = fields.get("out_indices")
    names = fields.get("stage_names") or []
    if (
        not isinstance(found, list | tuple)
        or "depths" in fields
        or len(names) != fields.get("num_hidden_layers", 0) + 1
    ):
        return {}
    n_layers = max(2, len(found))
    stages = range(n_layers - len(found) + 1, n_layers + 1)
    return {"num_hidden_layers": n_layers, "out_indices": list(stages), "out_features": [f"stage{i}" for i in stages]}


def _large(patch: Any) -> bool:
    return isinstance(patch, int) and patch > 8


def _rotary(value: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings whose sections fill the smaller head."""
    part = value.get("partial_rotary_factor") or fields.get("partial_rotary_factor") or 1.0
    half = max(2, int(HEAD * part) // 2)
    sections = value.get("mrope_section")
    if not sections:
        return value
    rest = [half // (len(sections) + 1)] * (len(sections) - 1)
    return {**value, "mrope_section": [half - sum(rest), *rest]}


def _scalar(name: str, value: int, many_heads: Any) -> int:
    if _KEEP.fullmatch(name) or _KEEP.match(name):
        return 4 if re.fullmatch(r".*patch_size", name) and "temporal" not in name and value > 8 else value
    for pattern, size in SCALARS:
        if re.fullmatch(pattern, name):
            if not size:
                return value
            if size is SCALARS[-1][1] and pattern is SCALARS[-1][0] and many_heads:
                return min(value, HEAD * max(1, int(many_heads[0] if not isinstance(many_heads[0], list) else 4)))
            return min(value, size)
    return value


def _listed(name: str, values: list[int]) -> list[int]:
    if re.fullmatch(r".*(depths|num_blocks|layers|num_layers|layer_depths|encoder_depths|decoder_depths)", name):
        return [min(v, 2 if i == 0 else 1) for i, v in enumerate(values)]
    if re.fullmatch(r".*(image_size|img_size)", name):
        return [min(v, IMAGE) for v in values]
    if re.fullmatch(r".*(hidden_sizes|embed_dims?|widths|channels|conv_dim|.*_dims|.*sizes|hidden_channels|tdnn_dim|"
                    r"neck_hidden_sizes|embedding_size)", name) and not _KEEP.match(name):  # fmt: skip
        while max(values) > 2 * WIDTH and min(values) >= 16 and all(v % 2 == 0 for v in values):
            values = [v // 2 for v in values]
    return values


def candidates(model_type: str) -> list[type]:
    """The classes that transformers offers for a model type, the preferred task first."""
    from transformers.models.auto import modeling_auto

    found: dict[type, None] = {}
    config_class = config_of(model_type)
    for task in TASKS:
        mapping = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING" if task else "MODEL_MAPPING", None)
        if mapping is None or config_class not in mapping:
            continue
        classes = mapping[config_class]
        for each in classes if isinstance(classes, list | tuple) else (classes,):
            if each is not None:
                found.setdefault(each)
    return list(found)


def config_of(model_type: str) -> type:
    """The class of a model type's config."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[model_type]


PARAMETERS = 100_000_000
"""A model with more is not small."""

_LAYERS = re.compile(
    r"(?!.*(feat_extract|num_stages)).*"
    r"(num_.*layers?|n_layers?|.*_layers|depth|num_blocks|n_layer|num_hidden_layers|num_block)"
)
_WIDTHS = re.compile(
    r"(?!.*(patch|kernel|stride|num_|vocab|position|image|window|grid|merge|chunk|conv_size|group|max_|block_size|pool|"
    r"input_size|crop|tile|mel|n_fft|hop|rank_|n_heads|_token|fps)).*"
    r"(hidden|d_model|n_embd|embed|dim|width|_size|channels?|units|dims|intermediate|d_ff|d_kv|ffn|n_inner|lora_rank|"
    r"sizes|features?|decoder_input|bottleneck|section)s?.*"
)


def scaled(fields: dict[str, Any], divisor: int, image: int) -> dict[str, Any]:
    """The fields of a config that change when all widths are divided by one number and layers are left out.

    Args:
        fields: The fields of the config.
        divisor: Of the widths that it divides; sizes below four stay.
        image: Divisor of the image size, as far as whole patches are left.
    """
    changed: dict[str, Any] = {}
    n_layers, n_left = _layers(fields)
    ids = iter(range(VOCAB - 28, VOCAB))
    for name, value in fields.items():
        new = value
        if name == "backbone_config" and isinstance(value, dict) and "timm" in value.get("model_type", ""):
            new = BACKBONE
        elif name in ABSENT and value is None:
            new = ABSENT[name]
        elif name == "per_layer_config" and isinstance(value, dict):
            new = {k: v | scaled(v, divisor, image) for k, v in value.items() if int(k) < n_left} or None
        elif isinstance(value, dict):
            inner = scaled(value, divisor, image)
            new = {**(value if name in ROTARY else {} if "model_type" not in value else _own(value)), **inner}
            if "model_type" in value:
                new["model_type"] = value["model_type"]
            if not inner:
                continue
        elif isinstance(value, list | tuple) and n_layers and len(value) == n_layers and not name.endswith("_ids"):
            new = list(value)[:n_left]
        elif name in ("image_size", "img_size") and type(value) is int:
            patch = fields.get("patch_size")
            step = patch if isinstance(patch, int) else 32
            new = value // image if value % (image * step) == 0 else value
        elif type(value) is int and re.fullmatch(_TOKEN, name) and value >= VOCAB - 28:
            new = next(ids)
        elif type(value) is int:
            new = _scaled_scalar(name, value, divisor, n_left if value == n_layers else 2)
        elif isinstance(value, list | tuple) and value and all(type(v) is int for v in value):
            new = _scaled_list(name, list(value), divisor)
        if new != value:
            changed[name] = new
    changed.update(_stages(fields))
    return changed


def _scaled_scalar(name: str, value: int, divisor: int, n_left: int) -> int:
    if re.fullmatch(r".*(vocab_size.*|n_words|num_embeddings)", name) and value > 1000:
        return VOCAB
    if _LAYERS.fullmatch(name) and value > 2:
        return n_left
    if re.fullmatch(r".*(num_experts|n_routed_experts|num_local_experts|moe_num_experts)", name):
        return min(value, 16)
    return _divided(value, divisor) if _WIDTHS.fullmatch(name) else value


def _scaled_list(name: str, values: list[int], divisor: int) -> list[int]:
    if re.fullmatch(r".*(depths|num_blocks|layers|num_layers|depth)", name):
        return [min(v, 2 if i == 0 else 1) for i, v in enumerate(values)]
    if not _WIDTHS.fullmatch(name):
        return values
    divided = [_divided(v, divisor) for v in values]  # a first one may be the channels of the image
    return divided if all(o == n * divisor or o < 8 for o, n in zip(values, divided, strict=True)) else values


def _layers(fields: dict[str, Any]) -> tuple[int, int]:
    """How many layers there are, and how many from the first on show every kind of them (two at least)."""
    n_layers = next((v for k in ("num_hidden_layers", "n_layer", "num_layers", "n_layers") if (v := fields.get(k))), 0)
    kinds = next((v for k in ("layer_types", "layers_block_type") if isinstance(v := fields.get(k), list)), [])
    if not isinstance(n_layers, int) or not kinds or len(kinds) != n_layers:
        return (n_layers if isinstance(n_layers, int) else 0), 2
    seen = [kinds.index(kind) for kind in set(kinds)]
    return n_layers, min(n_layers, max(2, max(seen) + 1))


def _divided(value: int, divisor: int) -> int:
    return value // divisor if value % divisor == 0 and value // divisor >= 4 else value


def small_configs(model_type: str) -> Iterator[Any]:
    """Configs to try, the smallest first; those that transformers refuses are left out, if any is accepted.

    Raises:
        Exception: None is accepted; the first refusal.
    """
    config_class = config_of(model_type)
    hints = HINTS.get(model_type, {})
    first: Exception | None = None
    accepted = False
    ways = [(0, 0), (8, 4), (8, 1), (32, 4), (4, 1), (1, 4), (1, 1)]
    for divisor, image in ways:
        try:
            fields = defaults(config_class, hints)
            changed = shrunk(fields, model_type) if not divisor else {**scaled(fields, divisor, image), **hints}
            config = config_class(**changed)
        except Exception as error:  # noqa: BLE001  (whatever a config's checks raise)
            first = first or error
            continue
        accepted = True
        yield traceable(config)
    if not accepted:
        assert first is not None
        raise first


def defaults(config_class: type, hints: dict[str, Any]) -> dict[str, Any]:
    """The fields of a config as its class fills them in; with what is known of it where it refuses its own."""
    try:
        return config_class().to_dict()
    except Exception:
        if not hints:
            raise
        return config_class(**hints).to_dict()


def traceable(config: Any) -> Any:
    """The config without what keeps a model from being traced: caches, kernels of their own."""
    for each in configs(config):
        for name, value in (("use_cache", False), ("use_mamba_kernels", False), ("timm_model", None)):
            if getattr(each, name, None):
                setattr(each, name, value)
    return config


def configs(config: Any) -> list[Any]:
    """A config and its sub-configs, itself first."""
    found = [config]
    for name in getattr(config, "sub_configs", {}) or {}:
        sub = getattr(config, name, None)
        if sub is not None and hasattr(sub, "to_dict"):
            found.extend(configs(sub))
    return found
