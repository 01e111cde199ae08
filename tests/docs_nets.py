"""What the pages of the documents take for granted: small models, pictures, data and modules, in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from cached_decoders import decoder

MODULES = {
    "mypackage/__init__.py": "",
    "mypackage/models.py": """
import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.middle = nn.Conv2d(3, 16, 4, stride=4), nn.Conv2d(16, 24, 3, padding=1)
        self.head = nn.Linear(24, 10)

    def forward(self, x):
        return self.head(torch.relu(self.middle(torch.relu(self.stem(x)))).mean((2, 3)))


def build():
    torch.manual_seed(0)
    return Model().eval(), (torch.randn(2, 3, 16, 16),)
""",
    "metrics.py": """
import numpy as np


def evaluate(run):
    x = np.random.default_rng(0).normal(size=(16, 3, 16, 16)).astype(np.float32)
    return {"mean": float(run({"image": x})["logits"].mean())}
""",
}

BRANCHES = (("mixer", 64), ("mlp", 128))


def conv(name: str, x: str, y: str, kernel: int) -> onnx.NodeProto:
    return onnx.helper.make_node(
        "Conv", [x, f"{name}.weight", f"{name}.bias"], [y], name, pads=[kernel // 2] * 4, kernel_shape=[kernel] * 2
    )


def residual_net(path: Path, seed: int = 0, width: int = 32) -> Path:
    """Images ``batch 3 16 16`` to 10 logits, through ``backbone.conv1`` and four layers of two residual branches each,
    ``layers.0.mixer``, ``layers.0.mlp``, ...
    """
    rng = np.random.default_rng(seed)
    sizes = {"backbone.conv1": (width, 3, 3, 3), "fc": (10, width)}
    nodes = [conv("backbone.conv1", "image", "s0", 3)]
    for i, (at, inner) in enumerate((f"layers.{i}.{part}", inner) for i in range(4) for part, inner in BRANCHES):
        sizes |= {f"{at}.conv1": (inner, width, 1, 1), f"{at}.conv2": (width, inner, 1, 1)}
        nodes += [
            conv(f"{at}.conv1", f"s{i}", f"a{i}", 1),
            onnx.helper.make_node("Relu", [f"a{i}"], [f"r{i}"], f"{at}.act"),
            conv(f"{at}.conv2", f"r{i}", f"b{i}", 1),
            onnx.helper.make_node("Add", [f"s{i}", f"b{i}"], [f"s{i + 1}"], f"{at}.add"),
        ]
    nodes += [
        onnx.helper.make_node("GlobalAveragePool", ["s8"], ["p"], "pool"),
        onnx.helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        onnx.helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["logits"], "fc", transB=1),
    ]
    stored = {f"{name}.weight": rng.normal(size=size) / np.sqrt(np.prod(size[1:])) for name, size in sizes.items()}
    stored |= {f"{name}.bias": 0.1 * rng.normal(size=size[0]) for name, size in sizes.items()}
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "net",
        [value("image", onnx.TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [value("logits", onnx.TensorProto.FLOAT, ["batch", 10])],
        [onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in stored.items()],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def pictures(folder: Path, count: int = 16) -> None:
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(folder / f"{i}.png")


def prepare(folder: Path) -> dict[str, Any]:
    """Fills a folder, and gives the names that blocks of Python know beside those that they make."""
    residual_net(folder / "model.onnx")
    residual_net(folder / "finetuned.onnx", seed=1)
    onnx.save(decoder("gqa", layers=2), folder / "decoder.onnx")
    (folder / "small").mkdir()
    pictures(folder / "photos")
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(24, 3, 16, 16)).astype(np.float32), rng.integers(0, 10, 24)
    np.savez(folder / "test.npz", image=images, labels=labels)
    for name, text in MODULES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text.lstrip(), encoding="utf-8")
    return {"images": images, "labels": labels, **_modules()}


def _modules() -> dict[str, Any]:
    """A model that README and the guide call by names of theirs."""
    import torch
    from torch import nn

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.middle = nn.Conv2d(3, 16, 16, stride=16), nn.Conv2d(16, 64, 3, padding=1)
            self.last, self.classifier = nn.Conv2d(64, 24, 1), nn.Linear(24, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.middle(torch.relu(self.stem(x))))
            return self.classifier(torch.relu(self.last(x)).mean((2, 3)))

    def build_model() -> nn.Module:
        torch.manual_seed(0)
        return Model().eval()

    def finetune(module: nn.Module) -> None:
        for parameter in module.parameters():
            parameter.data.mul_(1.001)

    torch.manual_seed(0)
    loader = torch.utils.data.DataLoader(torch.randn(8, 3, 224, 224), batch_size=4)
    return {"build_model": build_model, "loader": loader, "finetune": finetune}
