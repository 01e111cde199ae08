"""Train the embedded demo network and write everything that `graphprune/demo` ships.

Run from the repository root, with the idx files of Fashion-MNIST (Debian package `dataset-fashion-mnist`):

    python -m tools.demo.train --data /usr/share/datasets/fashion-mnist

The network is trained to be prunable: to the usual loss comes a group-lasso penalty on the norm of each unit,
a unit being one channel with every weight that would be removed with it. Pruning it is the job of graphprune.
"""

from __future__ import annotations

import argparse
import gzip
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from graphprune.demo.model import DemoNet, ResidualBlock, preprocess
from tools.bench.runner import parser_of

BATCH_SIZE = 128
EVALUATION_BATCH_SIZE = 500
PEAK_LEARNING_RATE = 0.2
MAX_SHIFT = 2
MIRROR_PROBABILITY = 0.5
FREE_FRACTION = 0.5
"""Part of each group, the stronger units, that the penalty spares."""

NORM_EPSILON = 1e-12
"""Keeps the derivative of the norm finite at a unit of zeros."""

N_SHIPPED = 1500
IDX_HEADER_BYTES = {"images": 16, "labels": 8}

NOTICE = """\
# Origin of the files in this folder

- `demo_data.npz`: the first {n_shipped} images and labels of the test set of Fashion-MNIST
  (https://github.com/zalandoresearch/fashion-mnist), Copyright (c) 2017 Zalando SE, MIT licence:

{licence}
- `demo_net.safetensors`, `demo_net.onnx`: weights of `DemoNet` (`model.py`), trained on the 60,000 training
  images of Fashion-MNIST by `tools/demo/train.py` with the command

      {command}

  Another machine or thread count gives slightly different weights.
  Test accuracy on the 10,000 test images: {accuracy:.2%}; on the {n_shipped} shipped ones: {shipped:.2%}.
"""

MIT_LICENCE = """\
  > Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
  > documentation files (the "Software"), to deal in the Software without restriction, including without limitation
  > the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and
  > to permit persons to whom the Software is furnished to do so, subject to the following conditions:
  >
  > The above copyright notice and this permission notice shall be included in all copies or substantial portions of
  > the Software.
  >
  > THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO
  > THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
  > AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF
  > CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER
  > DEALINGS IN THE SOFTWARE.
"""


@dataclass(frozen=True, slots=True)
class Site:
    """One axis of one parameter whose indices are the units of a group."""

    parameter: Tensor
    axis: int


def read_idx(folder: Path, split: str, kind: str) -> npt.NDArray[np.uint8]:
    """Read one idx file of bytes, gzipped or not.

    Args:
        folder: Where the four files lie.
        split: `train` or `t10k`.
        kind: `images` or `labels`.

    Returns:
        `n 28 28` for images, `n` for labels.
    """
    plain = folder / f"{split}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"
    packed = plain.with_name(plain.name + ".gz")
    content = plain.read_bytes() if plain.exists() else gzip.decompress(packed.read_bytes())
    values = np.frombuffer(content, np.uint8, offset=IDX_HEADER_BYTES[kind]).copy()
    return values.reshape(-1, 28, 28) if kind == "images" else values


def writer(layer: nn.Conv2d, norm: nn.BatchNorm2d) -> list[Site]:
    """Return the sites of a convolution with BN that produces the units."""
    return [Site(layer.weight, 0), Site(norm.weight, 0), Site(norm.bias, 0)]


def reader(layer: nn.Conv2d | nn.Linear) -> list[Site]:
    """Return the site of a layer that consumes the units."""
    return [Site(layer.weight, 1)]


def coupled_groups(model: DemoNet) -> dict[str, list[Site]]:
    """Return the sites of every prunable width, by name: each block's inner one and each stage's residual one."""
    groups: dict[str, list[Site]] = {}
    stream = writer(model.stem, model.stem_bn)
    for i, stage in enumerate(model.stages):
        for j, block in enumerate(stage.children()):
            assert isinstance(block, ResidualBlock)
            groups[f"inner{i}.{j}"] = writer(block.conv1, block.bn1) + reader(block.conv2)
            stream += reader(block.conv1)
            match tuple(block.shortcut.children()):
                case (nn.Conv2d() as projection, nn.BatchNorm2d() as norm):
                    groups[f"stream{i - 1}"] = stream + reader(projection)
                    stream = writer(projection, norm)
            stream += writer(block.conv2, block.bn2)
    groups[f"stream{len(model.stages) - 1}"] = stream + reader(model.fc)
    return groups


def unit_norms(sites: list[Site]) -> Tensor:
    """Return, for each unit of a group, the square root of the sum of squares over all its weights."""
    squares = [
        site.parameter.square().transpose(0, site.axis).reshape(site.parameter.shape[site.axis], -1).sum(1)
        for site in sites
    ]
    return torch.stack(squares).sum(0).add(NORM_EPSILON).sqrt()


def group_lasso(groups: dict[str, list[Site]], ramp: float) -> Tensor:
    """Return the weighted sum of all unit norms.

    The stronger half of each group goes free, so that the units meant to stay keep their weights; below it the
    factor rises linearly to 1. Weighting by relative strength follows Fang et al. 2023 (DepGraph, arXiv:2301.12900,
    section 3.4); the shape of the factor is ours.

    Args:
        groups: The sites of each group.
        ramp: Fraction of the units of a group, in (0, 0.5], over which the factor rises.

    Returns:
        The penalty, a scalar. The factors are constant under differentiation.
    """
    total = torch.zeros(())
    for sites in groups.values():
        norms = unit_norms(sites)
        with torch.no_grad():
            place = (1 + norms.argsort(descending=True).argsort()) / len(norms)
            factors = ((place - FREE_FRACTION) / ramp).clamp(0, 1)
        total = total + (factors * norms).sum()
    return total


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image of `n 1 28 28` by up to `MAX_SHIFT` pixels each way and mirror every second one."""
    n, _, height, width = images.shape
    background = images.min().item()
    padded = functional.pad(images.squeeze(1), (MAX_SHIFT,) * 4, value=background)
    shifts = torch.randint(0, 2 * MAX_SHIFT + 1, (2, n, 1), generator=generator)
    rows = shifts[0] + torch.arange(height)
    columns = torch.arange(width).expand(n, width)
    mirrored = torch.rand(n, 1, generator=generator) < MIRROR_PROBABILITY
    columns = shifts[1] + torch.where(mirrored, width - 1 - columns, columns)
    return padded[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]].unsqueeze(1)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the fraction in [0, 1] of images that the model in eval mode, labels right."""
    model.eval()
    n_chunks = -(-len(labels) // EVALUATION_BATCH_SIZE)
    chunks = zip(images.chunk(n_chunks), labels.chunk(n_chunks), strict=True)
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in chunks)
    return right / len(labels)


def train(model: DemoNet, images: Tensor, labels: Tensor, options: argparse.Namespace) -> None:
    """Train in place: SGD with a one-cycle schedule; the penalty rises linearly over the first third.

    Args:
        model: Network with fresh weights.
        images: Normalised training images, `n 1 28 28`.
        labels: Class indices, `n`.
        options: The command line.
    """
    generator = torch.Generator().manual_seed(options.seed)
    groups = coupled_groups(model)
    n_batches = len(labels) // BATCH_SIZE
    n_steps = options.epochs * n_batches
    optimizer = torch.optim.SGD(
        model.parameters(), lr=PEAK_LEARNING_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=n_steps)
    step = 0
    for epoch in range(options.epochs):
        start = time.perf_counter()
        model.train()
        order = torch.randperm(len(labels), generator=generator)[: n_batches * BATCH_SIZE]
        for chosen in order.chunk(n_batches):
            batch = augment(images[chosen], generator).contiguous(memory_format=torch.channels_last)
            loss = functional.cross_entropy(model(batch), labels[chosen], label_smoothing=0.1)
            strength = options.group_lasso * min(1.0, 3 * step / n_steps)
            penalty = group_lasso(groups, options.ramp)
            optimizer.zero_grad()
            (loss + strength * penalty).backward()
            optimizer.step()
            schedule.step()
            step += 1
        print(
            f"epoch {epoch + 1}/{options.epochs}: last batch loss {loss.item():.3f}, penalty {penalty.item():.1f}, "
            f"{time.perf_counter() - start:.0f} s",
            flush=True,
        )


def export(model: DemoNet, path: Path) -> None:
    """Write the network as one ONNX file with a free batch axis."""
    program = torch.onnx.export(
        model.eval(),
        (torch.zeros(2, 1, 28, 28),),
        dynamo=True,
        opset_version=20,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)  # paths of the machine that trained
    program.save(path, external_data=False)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the four idx files, gzipped or not")
    parser.add_argument("--out", type=Path, default=Path("graphprune/demo"), help="where the outputs go")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; the last digits depend on it")
    parser.add_argument("--group-lasso", type=float, default=6e-3, help="strength of the penalty")
    parser.add_argument("--ramp", type=float, default=0.25, help="fraction of the units over which it sets in")
    return parser.parse_args()


def main() -> None:
    """Train, evaluate and write the outputs."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    start = time.perf_counter()

    model = DemoNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    labels = torch.from_numpy(read_idx(options.data, "train", "labels")).long()
    train(model, preprocess(read_idx(options.data, "train", "images")), labels, options)

    test_images, test_labels = read_idx(options.data, "t10k", "images"), read_idx(options.data, "t10k", "labels")
    model = model.to(memory_format=torch.contiguous_format)
    inputs, targets = preprocess(test_images), torch.from_numpy(test_labels).long()
    full = accuracy(model, inputs, targets)
    shipped = accuracy(model, inputs[:N_SHIPPED], targets[:N_SHIPPED])
    print(f"test accuracy {full:.4f}, on the shipped images {shipped:.4f}, {time.perf_counter() - start:.0f} s")

    options.out.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, options.out / "demo_net.safetensors")
    export(model, options.out / "demo_net.onnx")
    np.savez_compressed(options.out / "demo_data.npz", images=test_images[:N_SHIPPED], labels=test_labels[:N_SHIPPED])
    command = (
        f"python -m tools.demo.train --data DIR --epochs {options.epochs} --seed {options.seed} "
        f"--threads {options.threads} --group-lasso {options.group_lasso:g} --ramp {options.ramp:g}"
    )
    notice = NOTICE.format(n_shipped=N_SHIPPED, licence=MIT_LICENCE, command=command, accuracy=full, shipped=shipped)
    (options.out / "NOTICE.md").write_text(notice, encoding="utf-8")


if __name__ == "__main__":
    main()
