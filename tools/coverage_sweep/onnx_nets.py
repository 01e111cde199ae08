"""Small models with random weights, which are exported as ONNX files."""

from __future__ import annotations

from collections.abc import Callable


def torch_models() -> dict[str, Callable[[], tuple]]:  # noqa: C901  (a table of small builders)
    """Small models with random weights: name -> builder of (module, inputs by name, dynamic axes by input)."""

    def sequential(*layers, shape, dynamic):
        import torch

        return lambda: (torch.nn.Sequential(*[layer() for layer in layers]), {"x": torch.randn(shape)}, {"x": dynamic})

    def resnet():
        import torch
        from torch import nn

        class Block(nn.Module):
            def __init__(self, i, o, stride):
                super().__init__()
                self.a, self.b = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.Conv2d(o, o, 3, 1, 1, bias=False)
                self.n, self.m = nn.BatchNorm2d(o), nn.BatchNorm2d(o)
                self.down = nn.Conv2d(i, o, 1, stride) if i != o else nn.Identity()

            def forward(self, x):
                return (self.m(self.b(self.n(self.a(x)).relu())) + self.down(x)).relu()

        net = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), Block(16, 16, 1),
                            Block(16, 32, 2),
                            Block(32, 32, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))  # fmt: skip
        return net, {"x": torch.randn(2, 3, 32, 32)}, {"x": {0: "batch"}}

    def mobilenet():
        import torch
        from torch import nn

        def unit(i, o, stride):
            return nn.Sequential(nn.Conv2d(i, i, 3, stride, 1, groups=i, bias=False), nn.BatchNorm2d(i), nn.Hardswish(),
                                 nn.Conv2d(i, o, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU6())  # fmt: skip

        net = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), unit(16, 32, 1), unit(32, 32, 2), unit(32, 64, 1),
                            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))  # fmt: skip
        return net, {"x": torch.randn(2, 3, 32, 32)}, {"x": {0: "batch", 2: "height", 3: "width"}}

    def recurrent(kind):
        def build():
            import torch
            from torch import nn

            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.cell = getattr(nn, kind)(12, 16, num_layers=2, bidirectional=kind == "LSTM", batch_first=True)
                    self.out = nn.Linear(32 if kind == "LSTM" else 16, 7)

                def forward(self, x):
                    return self.out(self.cell(x)[0])

            return Net(), {"x": torch.randn(2, 10, 12)}, {"x": {0: "batch"}}

        return build

    def encoder():
        import torch
        from torch import nn

        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        net = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(32, 5))
        return net, {"x": torch.randn(2, 12, 32)}, {"x": {0: "batch", 1: "length"}}

    def language(name, model, **config):
        def build():
            import torch
            import transformers

            settings = transformers.AutoConfig.for_model(name, **config)
            settings.use_cache = False
            net = getattr(transformers, model)._from_config(settings, attn_implementation="eager")
            ids = torch.randint(3, 60, (2, 16))
            inputs, dynamic = {"input_ids": ids}, {"input_ids": {0: "batch", 1: "length"}}
            if settings.is_encoder_decoder:
                inputs["decoder_input_ids"] = torch.randint(3, 60, (2, 16))
                dynamic["decoder_input_ids"] = {0: "batch", 1: "length"}
            elif name in ("bert", "distilbert", "roberta"):
                inputs["attention_mask"] = torch.ones(2, 16, dtype=torch.long)
                dynamic["attention_mask"] = {0: "batch", 1: "length"}
            return net, inputs, dynamic

        return build

    def image(name, model, **config):
        def build():
            import torch
            import transformers

            settings = transformers.AutoConfig.for_model(name, **config)
            net = getattr(transformers, model)._from_config(settings)
            size = getattr(settings, "image_size", 64)
            return net, {"pixel_values": torch.randn(2, 3, size, size)}, {"pixel_values": {0: "batch"}}

        return build

    def whisper():
        import torch
        import transformers

        settings = transformers.WhisperConfig(
            d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
            encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=100, num_mel_bins=16, max_source_positions=20,
            max_target_positions=20, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        )  # fmt: skip
        settings.use_cache = False
        net = transformers.WhisperModel._from_config(settings, attn_implementation="eager")
        inputs = {"input_features": torch.randn(2, 16, 40), "decoder_input_ids": torch.randint(3, 60, (2, 8))}
        return net, inputs, {"input_features": {0: "batch"}, "decoder_input_ids": {0: "batch"}}

    small = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    heads = {**small, "intermediate_size": 64, "max_position_embeddings": 64}
    eyes = {**small, "num_hidden_layers": 4, "intermediate_size": 128, "image_size": 32, "patch_size": 4}
    eyes.pop("vocab_size")
    from torch import nn

    return {
        "mlp": sequential(lambda: nn.Linear(12, 32), nn.GELU, lambda: nn.Linear(32, 6), shape=(2, 12),
                          dynamic={0: "batch"}),
        "resnet": resnet,
        "mobilenet": mobilenet,
        "lstm": recurrent("LSTM"),
        "gru": recurrent("GRU"),
        "encoder": encoder,
        "bert": language("bert", "BertModel", **heads),
        "distilbert": language("distilbert", "DistilBertModel", vocab_size=100, dim=32, n_layers=2, n_heads=4,
                               hidden_dim=64, max_position_embeddings=64),
        "gpt2": language("gpt2", "GPT2Model", vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=64,
                         bos_token_id=1, eos_token_id=2),
        "llama": language("llama", "LlamaForCausalLM", **heads, num_key_value_heads=2),
        "qwen2": language("qwen2", "Qwen2ForCausalLM", **heads, num_key_value_heads=2),
        "gemma": language("gemma", "GemmaForCausalLM", **heads, num_key_value_heads=1, head_dim=8),
        "phi3": language("phi3", "Phi3ForCausalLM", **heads, num_key_value_heads=2, pad_token_id=0),
        "opt": language("opt", "OPTModel", vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                        ffn_dim=64, max_position_embeddings=64, word_embed_proj_dim=32),
        "gpt-neox": language("gpt_neox", "GPTNeoXModel", **heads),
        "t5": language("t5", "T5Model", vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4),
        "bart": language("bart", "BartModel", vocab_size=100, d_model=32, encoder_layers=2, decoder_layers=2,
                         encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64,
                         max_position_embeddings=64),
        "whisper": whisper,
        "vit": image("vit", "ViTModel", **eyes),
        "convnext": image("convnext", "ConvNextModel", hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1]),
        "swin": image("swin", "SwinModel", image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4],
                      window_size=4),
    }  # fmt: skip
