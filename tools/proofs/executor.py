"""Runs real ONNX files by PyTorch: outputs against onnxruntime, gradients against difference quotients of onnxruntime.

The gradient of a random function of all outputs, along a random direction of all weights (relative to their size), is
held against the central difference quotient of that function in onnxruntime, with the weights replaced in the file.
Three minutes.

    python -m tools.proofs.executor [--cache DIR] [--only PATTERN ...]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench.registry import CACHE, fetch
from tools.bench.runner import parser_of
from tools.proofs.real_models import OCR

SPEECH, VAD, NUDE = "speechmos==0.0.1.1", "silero-vad==6.2.3", "nudenet==3.4.2"
DDDDOCR, PITCH = "ddddocr==1.6.1", "basic-pitch==0.4.0"
FRAMES: Mapping[str, Any] = {"input": (1, 576), "state": (2, 1, 128), "sr": np.array(16000)}
SLOW: Mapping[str, Any] = {"input": (3, 288), "state": (2, 3, 128), "sr": np.array(8000)}
FILES: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "magika": ("magika==1.0.3", "magika/models/standard_v3_3/model.onnx", {}),
    "silero-vad": (VAD, "silero_vad/data/silero_vad.onnx", FRAMES),
    "silero-vad 8k": (VAD, "silero_vad/data/silero_vad.onnx", SLOW),
    "silero-vad without LSTM": (VAD, "silero_vad/data/silero_vad_op18_ifless.onnx", FRAMES),
    "silero-vad sequence": (VAD, "silero_vad/data/silero_vad_16k_sequence.onnx", {}),
    "captcha": (DDDDOCR, "ddddocr/common.onnx", {"input1": (1, 1, 64, 128)}),
    "ppocr-cls": (OCR, "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx", {}),
    "ppocr-rec": (OCR, "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx", {"x": (2, 3, 48, 96)}),
    "nudenet": (NUDE, "nudenet/320n.onnx", {"images": (1, 3, 160, 160)}),
    "dnsmos": (SPEECH, "speechmos/dnsmos_models/model_v8.onnx", {}),
    "plcmos": (SPEECH, "speechmos/plcmos_models/plcmos_v2.onnx", {}),
    "basic-pitch": (PITCH, "basic_pitch/saved_models/icassp_2022/nmp.onnx", {}),
}
"""By name: the wheel, the file in it, and inputs or their shapes."""
STEP = 1e-4
"""How far weights move, relative to their own size: most rectifiers stay on their side."""
MOST = {"outputs": 2e-5, "gradient": 2e-2}
"""Rounding of float32: of outputs relative to the largest one, and of a difference of two sums of all outputs."""


def compared(path: Path, given: Mapping[str, Any]) -> dict[str, float]:
    """How far PyTorch is from onnxruntime, relatively: outputs, and a derivative."""
    import torch

    from graphprune.executor.tensors import tensor_of
    from graphprune.hosts.onnx.host import OnnxHost

    rng = np.random.default_rng(0)
    inputs = {
        name: rng.standard_normal(each).astype(np.float32) if isinstance(each, tuple) else each
        for name, each in given.items()
    }
    host = OnnxHost.load(path, given=inputs)
    inputs = host.example_inputs()
    module, wanted = host.as_module(), host.run(inputs)
    found = module({name: tensor_of(array, name) for name, array in inputs.items()})
    factors = {name: rng.standard_normal(each.shape) / max(1, each.size) for name, each in wanted.items()}
    total = sum((found[name].double() * torch.from_numpy(each)).sum() for name, each in factors.items())
    assert isinstance(total, torch.Tensor)
    total.backward()
    moved = {name: each for name, each in module.named_weights() if each.grad is not None}
    ways = {name: rng.standard_normal(each.shape) * np.abs(each.detach().numpy()) for name, each in moved.items()}
    slope = sum(float((each.grad.double().numpy() * ways[name]).sum()) for name, each in moved.items())
    sizes = sum(abs((each.grad.double().numpy() * ways[name]).sum()) for name, each in moved.items())

    def value(step: float) -> float:
        outputs = host.replaced({n: each.detach().numpy() + step * ways[n] for n, each in moved.items()}).run(inputs)
        return float(sum((each.astype(np.float64) * factors[name]).sum() for name, each in outputs.items()))

    quotient = (value(STEP) - value(-STEP)) / (2 * STEP)
    worst = max(
        float(np.abs(each - found[name].detach().numpy()).max() / max(1e-30, np.abs(each).max()))
        for name, each in wanted.items()
    )
    return {"outputs": worst, "gradient": abs(slope - quotient) / max(sizes, 1e-30)}


def main() -> int:
    """Prints a line for each file; 1 if one is too far off."""
    parser = parser_of(__doc__)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="names of files, with * and ?")
    options = parser.parse_args()
    wrong = 0
    for name, (requirement, inner, given) in FILES.items():
        if not any(fnmatchcase(name, pattern) for pattern in options.only):
            continue
        begin = time.perf_counter()
        off = compared(fetch(options.cache, requirement) / inner, given)
        bad = any(not off[what] <= most for what, most in MOST.items())
        wrong += bad
        said = "  ".join(f"{what} {each:.1e}" for what, each in off.items())
        print(f"{name:24} {said}  {time.perf_counter() - begin:5.1f} s{'  TOO FAR' if bad else ''}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
