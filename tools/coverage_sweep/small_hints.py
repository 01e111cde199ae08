"""What cannot be guessed of small configs, by model type: fields that shrinking by name gets wrong."""

from __future__ import annotations

from typing import Any

WIDTH, INNER, HEADS, HEAD, VOCAB, IMAGE = 64, 96, 4, 16, 128, 64

_SECTIONS = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
_PLAIN = {"rope_type": "default", "rope_theta": 1e4}
_RATIOS = (("long", 7), ("mid", 5), ("short", 3))
_HGNET = {
    "stem_channels": [3, 16, 16], "stage_in_channels": [16, 32, 32, 64], "stage_mid_channels": [16, 16, 16, 16],
    "stage_out_channels": [32, 32, 64, 64], "stage_num_blocks": [1, 1, 1, 1], "stage_numb_of_layers": [2, 2, 2, 2],
    "hidden_sizes": [32, 32, 64, 64], "depths": [1, 1, 1, 1], "embedding_size": 16,
}  # fmt: skip

_STRIPES = {
    "reduce_channel": [1, 1, 0], "return_channel": [1, 1, 0],
    **{f"vertical_long_to_small_conv_{ratio}ratio": [[n, 1], 1, [n // 2, 0]] for ratio, n in _RATIOS},
    **{f"horizontal_small_to_long_conv_{ratio}ratio": [[1, n], 1, [0, n // 2]] for ratio, n in _RATIOS},
    **{f"symmetric_conv_long_{ratio}ratio": [n, 1, n // 2] for ratio, n in _RATIOS},
}  # fmt: skip
_EFFICIENT = {
    "width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320, "image_size": IMAGE,
    "in_channels": [32, 16, 24, 40, 80, 112, 192], "out_channels": [16, 24, 40, 80, 112, 192, 320],
}  # fmt: skip
_DINO = {
    "model_type": "dinov2", "image_size": 32, "patch_size": 8, "hidden_size": WIDTH, "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
}  # fmt: skip

_DEEP = {"num_hidden_layers": 4, "intermediate_size": 4 * WIDTH}
"""For bare encoders, whose width is that of their output and stays: most of the real ones is not at the ends either."""

_HINTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("blip-2 instructblip instructblipvideo", {"image_token_index": VOCAB - 2, "video_token_index": VOCAB - 2}),
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
    ("longcat_flash", {"head_dim": HEAD, "qk_nope_head_dim": HEAD, "qk_rope_head_dim": HEAD, "qk_head_dim": 32}),
    ("granite4_vision", {"downsample_rate": "1/2", "deepstack_layer_map": [[-1, 0]]}),
    ("hunyuan_v1_dense hunyuan_v1_moe ministral", {"head_dim": HEAD}),
    ("hunyuan_vl_text", {"head_dim": HEAD, "rope_parameters": {**_SECTIONS, "mrope_section": [2, 2, 2, 2]}}),
    ("mamba2", {"hidden_size": 64, "num_heads": 8, "head_dim": 16, "n_groups": 2, "state_size": 16, "chunk_size": 4}),
    ("gpt_neo", {"attention_types": [[["global", "local"], 1]]}),
    ("bit", {"embedding_size": 32, "hidden_sizes": [32, 64, 96, 128], "num_groups": 8}),
    ("decision_transformer", {"vocab_size": VOCAB}),
    ("tvp", {"visual_prompt_size": 8}),
    ("blt", {"encoder_hash_byte_group_vocab": 64}),
    ("clap_audio_model", {"spec_size": 128, "hidden_size": 768}),
    ("step3p7_text", {"sliding_window": 8}),
    ("gemma3n_text", {"num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"]}),
    ("moonshine_streaming", {"num_key_value_heads": HEADS}),
    ("qwen3_omni_moe_talker_text", {"shared_expert_intermediate_size": INNER}),
    ("t5gemma2_text", {"dropout_rate": 0.0}),
    ("pp_ocrv5_server_det pp_ocrv6_medium_det",
     {"intraclass_block_config": _STRIPES, "scale_factor_list": [1, 2, 4, 8], "kernel_list": [3, 2, 2]}),
    ("qwen2_5_omni_text", {"rope_parameters": _SECTIONS}),
    ("dbrx", {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}}),
    ("omdet-turbo", {"encoder_in_channels": [32, 64, 64], "apply_layernorm_after_vision_backbone": False}),
    ("depth_pro", {
        "patch_size": 32, "image_size": 128, "image_model_config": _DINO, "patch_model_config": _DINO,
        "fov_model_config": _DINO, "intermediate_hook_ids": [1, 0], "intermediate_feature_dims": [32, 32],
        "scaled_images_feature_dims": [64, 64, 32], "fusion_hidden_size": 32,
    }),
    ("efficientnet", _EFFICIENT),
    ("molmo2_adapter", {"vision_feature_layer": [1, 0]}),
    ("deepseek_ocr2_text", {"mlp_layer_types": ["dense", "sparse"]}),
    ("diffusion_gemma_text", {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}),
    ("pp_ocrv5_mobile_rec", {"image_size": [64, 160]}),
    ("timesfm2_5", {"context_length": 256}),
    ("nemotron3_diarization_audio nemotron3_5_transcribe_asr_audio", {**_DEEP, "hidden_size": 128, "num_mel_bins": 32}),
    ("granite_speech5_encoder cosmos3_edge_vision sam3_lite_text_text_model", _DEEP),
    ("internvl_vision qianfan_ocr_vision", {**_DEEP, "patch_size": [4, 4], "image_size": [32, 32]}),
    ("vivit", {**_DEEP, "tubelet_size": [2, 4, 4], "image_size": 32, "num_frames": 4}),
    ("videoprism_vision_model", {"tubelet_size": [1, 4, 4], "image_size": 32, "intermediate_size": 4 * WIDTH}),
    ("vitpose_backbone", {"patch_size": [8, 8], "image_size": [32, 32]}),
    ("pix2struct_vision_model", {"d_ff": 4 * WIDTH, "num_hidden_layers": 4}),
    ("ernie4_5_vl_moe_text", {"rope_parameters": {**_SECTIONS, "mrope_section": [2, 2, 4]}}),
    ("layoutlmv3", {"num_hidden_layers": 4, "input_size": IMAGE}),
    ("seggpt", {"pretrain_image_size": 32, "mlp_dim": 4 * WIDTH}),
    ("audio-spectrogram-transformer", {**_DEEP, "patch_size": 8, "max_length": 64, "num_mel_bins": 32}),
    ("yolos", {"num_detection_tokens": 10, "image_size": [32, 32], "intermediate_size": 4 * WIDTH}),
)  # fmt: skip

HINTS = {name: fields for names, fields in _HINTS for name in names.split()}
"""Fields of configs, by model type."""
