"""What cannot be guessed of small configs, by model type: fields that shrinking by name gets wrong."""

from __future__ import annotations

from typing import Any

WIDTH, INNER, HEADS, HEAD, VOCAB, IMAGE = 64, 96, 4, 16, 128, 64

_SECTIONS = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
_PLAIN = {"rope_type": "default", "rope_theta": 1e4}
_HGNET = {
    "stem_channels": [3, 16, 16], "stage_in_channels": [16, 32, 32, 64], "stage_mid_channels": [16, 16, 16, 16],
    "stage_out_channels": [32, 32, 64, 64], "stage_num_blocks": [1, 1, 1, 1], "stage_numb_of_layers": [2, 2, 2, 2],
    "hidden_sizes": [32, 32, 64, 64], "depths": [1, 1, 1, 1], "embedding_size": 16,
}  # fmt: skip

_HINTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("blip-2 instructblip instructblipvideo", {"image_token_index": VOCAB - 2}),
    ("d_fine deimv2 pp_doclayout_v2 pp_doclayout_v3 pp_doclayout_v4",
     {"decoder_in_channels": [WIDTH] * 3, "encoder_in_channels": [32, 64, 64]}),
    ("rt_detr rt_detr_v2", {"decoder_in_channels": [WIDTH] * 3, "encoder_in_channels": [32, 64, 128]}),
    ("sam_vision_model sam_hq_vision_model", {"num_pos_feats": WIDTH // 2}),
    ("xmod", {"default_language": "en_XX"}),
    ("chameleon emu3", {"vocabulary_map": {"<image>": VOCAB - 2, "IMGIMGAAAAAAZ": VOCAB - 3}}),
    ("mimi", {"codebook_dim": WIDTH, "vector_quantization_hidden_dimension": WIDTH}),
    ("zamba", {"num_hidden_layers": 4, "layer_types": ["mamba", "mamba", "hybrid", "hybrid"]}),
    ("esm", {"pad_token_id": 1, "mask_token_id": 2}),
    ("nemotron_h", {"n_groups": 2}),
    ("hgnet_v2", _HGNET),
    ("qwen2_vl_text qwen2_5_vl_text glm4v_text glm_image_text glm_ocr_text", {"rope_parameters": _SECTIONS}),
    ("glm4v_moe_text", {"rope_parameters": {**_SECTIONS, "mrope_section": [1, 1, 2]}}),
    ("nemotron", {"num_key_value_heads": 2, "head_dim": HEAD}),
    ("lfm2_moe", {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1}),
    ("cohere_compass_text", {"rope_parameters": {"full_attention": _PLAIN, "sliding_attention": _PLAIN}}),
    ("longcat_flash", {"head_dim": HEAD, "qk_nope_head_dim": HEAD, "qk_rope_head_dim": HEAD}),
    ("granite4_vision", {"downsample_rate": "1/2", "deepstack_layer_map": [[-1, 0]]}),
    ("dbrx", {"rope_parameters": _PLAIN}),
    ("hunyuan_v1_dense hunyuan_v1_moe ministral", {"head_dim": HEAD}),
    ("hunyuan_vl_text", {"head_dim": HEAD, "rope_parameters": {**_SECTIONS, "mrope_section": [2, 2, 2, 2]}}),
    ("mamba2", {"hidden_size": 64, "num_heads": 8, "head_dim": 16, "n_groups": 2, "state_size": 16, "chunk_size": 4}),
    ("layoutlmv3", {"input_size": IMAGE}),
    ("gpt_neo", {"attention_types": [[["global", "local"], 1]]}),
    ("bit", {"embedding_size": 32, "hidden_sizes": [32, 64, 96, 128], "num_groups": 8}),
    ("decision_transformer", {"vocab_size": VOCAB}),
)  # fmt: skip

HINTS = {name: fields for names, fields in _HINTS for name in names.split()}
"""Fields of configs, by model type."""
