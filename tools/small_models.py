"""Small instances of every architecture in transformers: a shrunk config, and inputs that its forward takes.

Nothing here names an architecture in logic: sizes are shrunk by what a config's fields are called, inputs are made for
what the forward's arguments are called. :data:`HINTS` holds what cannot be guessed, by model type.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch

WIDTH, INNER, HEADS, HEAD, VOCAB, SEQUENCE, BATCH, IMAGE = 64, 96, 4, 16, 128, 12, 2, 64

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

ROTARY = ("rope_parameters", "rope_scaling")

ABSENT = {"vocab_size": VOCAB, "prediction_length": 8, "n_routed_experts": 4, "num_local_experts": 4, "num_experts": 4}
"""What configs leave open and their models need."""

HINTS: dict[str, dict[str, Any]] = {
    "hunyuan_v1_dense": {"head_dim": HEAD},
    "hunyuan_v1_moe": {"head_dim": HEAD},
    "hunyuan_vl_text": {"head_dim": HEAD},
    "ministral": {"head_dim": HEAD},
    "nemotron": {"head_dim": HEAD},
    "mamba2": {"hidden_size": 64, "num_heads": 8, "head_dim": 16, "n_groups": 2, "state_size": 16, "chunk_size": 4},
    "efficientnet": {"width_coefficient": 0.5, "depth_coefficient": 0.3, "hidden_dim": 160},
    "align_vision_model": {"width_coefficient": 0.5, "depth_coefficient": 0.3, "hidden_dim": 160},
    "layoutlmv3": {"input_size": IMAGE},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "bit": {"embedding_size": 32, "hidden_sizes": [32, 64, 96, 128], "num_groups": 8},
    "decision_transformer": {"vocab_size": VOCAB},
}
"""Fields of configs that shrinking by name gets wrong."""

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
        elif isinstance(value, dict) and (name.endswith("config") or "model_type" in value):
            inner = shrunk(value, value.get("model_type", ""))
            new = {**inner, "model_type": value["model_type"]} if "model_type" in value else inner
            if not inner and "model_type" not in value:
                continue
        elif isinstance(value, bool) or value is None:
            continue
        elif isinstance(value, int):
            new = _scalar(name, value, many_heads)
            if re.fullmatch(r".*(_token_id|_token_index|_index|_token_ids?)", name) and value >= VOCAB - 28:
                new = next(ids)
        elif isinstance(value, list | tuple) and value and all(type(v) is int for v in value):
            new = _listed(name, list(value))
        if new != value:
            changed[name] = new
    changed.update(HINTS.get(model_type, {}))
    return changed


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


def small_config(model_type: str) -> Any:
    """A shrunk config."""
    config_class = config_of(model_type)
    config = config_class(**shrunk(config_class().to_dict(), model_type))
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


def _find(config: Any, *names: str, default: Any = None) -> Any:
    for name in names:
        for each in configs(config):
            value = getattr(each, name, None)
            if value is not None and not isinstance(value, str):
                return value
    return default


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, dict):
        return int(size.get("height", IMAGE)), int(size.get("width", IMAGE))
    return (int(size[0]), int(size[-1])) if isinstance(size, list | tuple) else (int(size), int(size))


class Inputs:
    """Makes arguments for a forward by their names."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.random = torch.Generator().manual_seed(0)
        self.variant = 0
        self.flat = False  # whether images come as rows of patches, with a grid
        self.n_tokens: dict[str, int] = {}  # how many positions of the text stand for an image, a sound, ...

    def floats(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.random)

    def ids(self, *shape: int, high: int = VOCAB - 40) -> torch.Tensor:
        return torch.randint(3, high, shape, generator=self.random)

    def tokens(self) -> torch.Tensor:
        high = min(VOCAB - 40, int(_find(self.config, "vocab_size", default=VOCAB)))
        places = [self.config_token(name) for name, n in self.n_tokens.items() for _ in range(n)]
        row = torch.tensor(places, dtype=torch.int64).expand(BATCH, -1)
        end = self.ids(BATCH, SEQUENCE, high=high)
        eos = _find(self.config, "eos_token_id")
        if isinstance(eos, int) and 0 <= eos < VOCAB:
            end[:, -1] = eos
        return torch.cat([end[:, :1], row, end[:, 1:]], 1)

    def config_token(self, name: str) -> int:
        return int(_find(self.config, f"{name}_token_id", f"{name}_token_index", default=VOCAB - 1))

    def image(self) -> tuple[int, ...]:
        size = _pair(_find(self.config, "image_size", "img_size", "input_size", default=IMAGE))
        return int(_find(self.config, "num_channels", "in_channels", "in_chans", default=3)), *size

    def make(self, name: str) -> torch.Tensor | None:
        """The value of an argument; none where it is not known."""
        c, h, w = self.image()
        frames = int(_find(self.config, "num_frames", "frames_per_clip", default=4))
        mel = int(_find(self.config, "num_mel_bins", "feature_size", "input_feat_per_channel", default=80))
        time = 2 * int(_find(self.config, "max_source_positions", default=32))
        length = SEQUENCE + sum(self.n_tokens.values())
        grid = torch.tensor([[1, 4, 4]]).expand(BATCH, -1)
        patch = int(_find(self.config, "patch_size", default=8)) if not isinstance(
            _find(self.config, "patch_size", default=8), list | tuple) else 8  # fmt: skip
        flat = c * patch * patch * int(_find(self.config, "temporal_patch_size", default=1))
        past = int(_find(self.config, "context_length", "prediction_length", default=16))
        known = {
            "input_ids": self.tokens,
            "decoder_input_ids": lambda: self.ids(BATCH, 7),
            "pixel_values": lambda: self.floats(
                *(
                    (BATCH * 16, flat)
                    if self.flat
                    else ((BATCH, c, h, w), (BATCH, frames, c, h, w), (BATCH, 16, flat))[self.variant % 3]
                )
            ),
            "pixel_values_videos": lambda: self.floats(BATCH, frames, c, h, w),
            "flattened_patches": lambda: self.floats(BATCH, 16, 2 + 3 * 256),
            "bbox": lambda: torch.tensor([1, 2, 30, 40]).expand(BATCH, length, 4).clone(),
            "input_values": lambda: self.floats(
                *((BATCH, 4000), (BATCH, 1, 4000), (BATCH, int(_find(self.config, "max_length", default=time)), mel))[
                    self.variant % 3
                ]
            ),
            "grid_thw": lambda: grid,
            "image_grid_thw": lambda: grid,
            "pixel_position_ids": lambda: torch.cartesian_prod(torch.arange(4), torch.arange(4)).expand(BATCH, -1, -1),
            "input_features_mask": lambda: torch.ones(BATCH, time, dtype=torch.int64),
            "qformer_input_ids": lambda: self.ids(BATCH, 6),
            "visual_feats": lambda: self.floats(BATCH, 5, int(_find(self.config, "visual_feat_dim", default=WIDTH))),
            "visual_pos": lambda: torch.rand(BATCH, 5, int(_find(self.config, "visual_pos_dim", default=4))),
            "past_values": lambda: self.floats(BATCH, past, int(_find(self.config, "num_input_channels", default=1))),
            "states": lambda: self.floats(BATCH, SEQUENCE, int(_find(self.config, "state_dim", default=17))),
            "actions": lambda: self.floats(BATCH, SEQUENCE, int(_find(self.config, "act_dim", default=4))),
            "returns_to_go": lambda: self.floats(BATCH, SEQUENCE, 1),
            "timesteps": lambda: torch.arange(SEQUENCE).expand(BATCH, -1),
            "input_features": lambda: self.floats(
                *((BATCH, mel, time), (BATCH, time, mel), (BATCH, mel, 100))[self.variant]
            ),
            "pixel_attention_mask": lambda: torch.ones(BATCH, 16, dtype=torch.int64),
            "spatial_shapes": lambda: torch.tensor([[4, 4]]).expand(BATCH, -1),
            "mm_token_type_ids": lambda: (self.tokens() == self.config_token("image")).long(),
            "past_time_features": lambda: self.floats(
                BATCH, past, int(_find(self.config, "num_time_features", default=1))
            ),
            "past_observed_mask": lambda: torch.ones(BATCH, past),
            "state": lambda: self.floats(BATCH, int(_find(self.config, "max_state_dim", default=8))),
            "attention_mask": lambda: torch.ones(BATCH, length, dtype=torch.int64),
            "encoder_hidden_states": lambda: self.floats(BATCH, SEQUENCE, WIDTH),
            "inputs_embeds": lambda: self.floats(BATCH, SEQUENCE, WIDTH),
            "hidden_states": lambda: self.floats(*((BATCH * 16, flat) if self.flat else (BATCH, SEQUENCE, WIDTH))),
            "spectrogram": lambda: self.floats(BATCH, 20, mel),
        }
        maker = known.get(name)
        return None if maker is None else maker()


MAIN = ("input_ids", "pixel_values", "input_values", "input_features", "flattened_patches", "spectrogram",
        "inputs_embeds", "hidden_states")  # fmt: skip
_COUNT = re.compile(r"tokens:? (\d+).*?features:? (\d+)", re.IGNORECASE | re.DOTALL)
_MISSING = re.compile(r"(?:have to|must|should) specify.*?(decoder_input_ids|pixel_values|input_ids|bbox)", re.DOTALL)


def small_inputs(model: torch.nn.Module, config: Any) -> dict[str, torch.Tensor]:
    """Arguments with which the forward of a model runs; found by running it.

    Raises:
        RuntimeError: No arguments were found; the message is the forward's.
    """
    names = list(inspect.signature(model.forward).parameters)
    required = [
        name for name, p in inspect.signature(model.forward).parameters.items()
        if p.default is inspect.Parameter.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    ]  # fmt: skip
    inputs = Inputs(config)
    main = getattr(model, "main_input_name", "input_ids")
    wanted = [n for n in (main, *required, "input_ids", "pixel_values", "input_features", "bbox") if n in names]
    error: Exception | None = None
    inputs.flat = "grid_thw" in names or "image_grid_thw" in names
    grids = [name for name in names if name in ("grid_thw", "image_grid_thw", "mm_token_type_ids")]
    choices = [
        [*wanted, *grids], [*wanted, *grids, "decoder_input_ids"], [main, *required], [*required], ["input_ids"],
    ]  # fmt: skip
    for choice, variant in (*((c, v) for v in range(3) for c in choices[:2]), *((c, 0) for c in choices[2:])):
        chosen = list(dict.fromkeys(n for n in choice if n in names))
        inputs.variant = variant
        for _ in range(3):
            made = {name: value for name in chosen if (value := inputs.make(name)) is not None}
            if not made:
                break
            try:
                with torch.no_grad():
                    model(**made)
                return made
            except Exception as failure:  # noqa: BLE001  (whatever the forward raises)
                if error is None or _COUNT.search(str(error)):
                    error = failure
                counted = _COUNT.search(str(failure))
                if counted is None or inputs.n_tokens or int(counted[1]) >= int(counted[2]):
                    break
                text = str(failure).lower()
                kind = next((kind for kind in ("image", "audio") if kind in text), "video")
                inputs.n_tokens = {kind: int(counted[2]) // BATCH}
        inputs.n_tokens = {}
    raise RuntimeError(f"no inputs found: {type(error).__name__}: {error}" if error else "no inputs known")
