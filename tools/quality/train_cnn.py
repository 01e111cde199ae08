"""Trains a ResNet-20 on Fashion-MNIST in a plain way, for benchmarks: no penalty, nothing that eases pruning.

The architecture of the demo (depth 20, widths 16/32/64, stem of stride 2: He et al. 2016, arXiv:1512.03385, section
4.2) with fresh weights, 272 thousand parameters; SGD with a one-cycle schedule, mirrored and shifted images, label
smoothing, bfloat16 autocast.

    python -m tools.quality.train_cnn --data DIR --out resnet20.safetensors [--epochs 6] [--threads 2]
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from graphprune.demo.model import DemoNet, preprocess
from tools.bench.runner import parser_of
from tools.demo.train import BATCH_SIZE, PEAK_LEARNING_RATE, accuracy, augment, read_idx


def resnet20(weights: Path | None = None) -> DemoNet:
    """The network in eval mode, with fresh weights or those of a file; it maps `n 1 28 28` to logits `n 10`."""
    model = DemoNet()
    if weights is not None:
        model.load_state_dict(load_file(weights))
    return model.eval()


def train(data: Path, *, epochs: int = 6, seed: int = 0) -> DemoNet:
    """Trains from fresh weights on the 60,000 training images.

    Args:
        data: Folder with the idx files, gzipped or not.
        epochs: Passes over the training images.
        seed: Of weights, order and augmentation.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = resnet20().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = preprocess(read_idx(data, "train", "images"))
    labels = torch.from_numpy(read_idx(data, "train", "labels")).long()
    n_batches = len(labels) // BATCH_SIZE
    optimizer = torch.optim.SGD(
        model.parameters(), lr=PEAK_LEARNING_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=epochs * n_batches)
    for epoch in range(epochs):
        start = time.perf_counter()
        model.train()
        order = torch.randperm(len(labels), generator=generator)[: n_batches * BATCH_SIZE]
        for chosen in order.chunk(n_batches):
            batch = augment(images[chosen], generator).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(batch)
            loss = functional.cross_entropy(logits.float(), labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(
            f"epoch {epoch + 1}/{epochs}: last loss {loss.item():.3f}, {time.perf_counter() - start:.0f} s", flush=True
        )
    return model.to(memory_format=torch.contiguous_format).eval()


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the four idx files, gzipped or not")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = train(options.data, epochs=options.epochs, seed=options.seed)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, options.out)
    inputs = preprocess(read_idx(options.data, "t10k", "images"))
    labels = torch.from_numpy(read_idx(options.data, "t10k", "labels")).long()
    print(f"test accuracy {accuracy(model, inputs, labels):.4f}")


if __name__ == "__main__":
    main()
