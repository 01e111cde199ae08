"""The models of the benchmark by name: six that recipes were tuned on, and eight that they were not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tools.quality import audio_models, onnx_models, torch_models
from tools.quality.cases import Case

CASES: dict[str, Callable[[Path], Case]] = {
    "resnet20": torch_models.resnet20,
    "efficientnet-lite0": torch_models.efficientnet,
    "minilm": torch_models.minilm,
    "smollm2-135m": torch_models.smollm,
    "magika": onnx_models.magika,
    "ppocr-rec": onnx_models.ppocr_rec,
    "ddddocr": onnx_models.ddddocr,
    "ppocr-det": onnx_models.ppocr_det,
    "ppocr-cls": onnx_models.ppocr_cls,
    "ddddocr-det": onnx_models.ddddocr_det,
    "open-nsfw": onnx_models.open_nsfw,
    "silero-vad": audio_models.silero,
    "plcmos": audio_models.plcmos,
    "dnsmos": audio_models.dnsmos,
}
