"""Pruning while training at equal steps: every method beside Torch-Pruning's group-norm pruner, on one trained CNN.

ResNet-20, trained on Fashion-MNIST (as for ``tools.quality``), is pruned to a part of its MACs while it trains on:
the same pictures in the same order, the same optimiser and learning rates (SGD with momentum, half a cosine), the same
number of steps. The rival trains with its regulariser for a part of the steps (``tp-group-norm``: half of them,
``-early``: a quarter), is pruned by its progressive loop of 400 small steps until it meets the budget, and trains on
for the rest. Accuracy is that of 10,000 test pictures.

    python -m tools.training.cnn [--cache DIR] [--only METHOD ...] [--ratios 0.5 0.3] [--epochs 4] [--json FILE]
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import graphprune as gp
from tools.bench.records import Record
from tools.bench.records import table as text_table
from tools.bench.registry import CACHE, importable
from tools.bench.runner import Sweep, arguments, run
from tools.demo.train import accuracy, augment, read_idx
from tools.quality import data, train_cnn

BATCH = 128
ONCE: dict[str, Any] = {
    "method": "iterative", "schedule": "once", "begin": 0.0, "end": 0.0, "refit": "as-is", "criterion": "obs",
    "allocation": "dp",
}  # fmt: skip
"""All that goes at the begin, refitted; then training."""
OURS: dict[str, dict[str, Any]] = {
    "iterative": {},
    "soft": {},
    "group-norm": {},
    "growing": {},
    "slimming": {},
    "dhspg": {},
    "hesso": {},
    "movement": {},
    "l0": {},
    "imp": {},
    "iterative-taylor": {"method": "iterative", "options": {"gradients": True}},
    "iterative-distill": {"method": "iterative", "distill": 1.0},
    "iterative-taylor-distill": {"method": "iterative", "options": {"gradients": True}, "distill": 1.0},
    "once-refit": ONCE,
    "once-refit-distill": {**ONCE, "distill": 1.0},
    "iterative-refit-distill": {
        "method": "iterative",
        "begin": 0.0,
        "end": 0.4,
        "every": 40,
        "refit": "as-is",
        "criterion": "obs",
        "allocation": "dp",
        "distill": 1.0,
    },
    "growing-distill": {"method": "growing", "distill": 1.0},
    "once-distill": {"method": "iterative", "schedule": "once", "begin": 0.0, "end": 0.0, "distill": 1.0},
    "once": {"method": "iterative", "schedule": "once", "begin": 0.0, "end": 0.0},
}
"""Name -> what the pruner is given; the method is the name where nothing else is said."""
THEIRS: dict[str, dict[str, float]] = {
    "tp-group-norm": {"regularized": 0.5},
    "tp-group-norm-early": {"regularized": 0.25},
}
EXAMPLE = torch.zeros(2, 1, 28, 28)
TORCH_PRUNING = "torch-pruning==1.6.1"

Step = Callable[[], None]


class Lessons:
    """The pictures, and the loop that all share.

    Args:
        cache: Where data and weights are.
        pictures: So many are trained on.
        epochs: How often.
        rate: The highest learning rate.
        seed: Of order and augmentation.
    """

    def __init__(self, cache: Path, pictures: int, epochs: int, rate: float, seed: int) -> None:
        folder = data.fashion_folder(cache)
        chosen = np.random.RandomState(0).permutation(60000)[:pictures]
        self.images = train_cnn.preprocess(read_idx(folder, "train", "images")[chosen])
        self.labels = torch.from_numpy(read_idx(folder, "train", "labels")[chosen]).long()
        self.tests = train_cnn.preprocess(read_idx(folder, "t10k", "images"))
        self.right = torch.from_numpy(read_idx(folder, "t10k", "labels")).long()
        self.steps, self.rate, self.seed = epochs * (pictures // BATCH), rate, seed

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The same for all."""
        return torch.optim.SGD(model.parameters(), lr=self.rate, momentum=0.9, weight_decay=5e-4, nesterov=True)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The pictures of each step."""
        generator = torch.Generator().manual_seed(self.seed)
        each = len(self.labels) // BATCH
        for _ in range(self.steps // each):
            order = torch.randperm(len(self.labels), generator=generator)[: each * BATCH]
            for chosen in order.chunk(each):
                yield augment(self.images[chosen], generator), self.labels[chosen]

    def factor(self, step: int) -> float:
        """Of the learning rate: a short rise, then half a cosine."""
        warm = max(1, self.steps // 20)
        return (step + 1) / warm if step < warm else 0.5 * (1 + np.cos(np.pi * (step - warm) / (self.steps - warm)))

    def step(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, batch: Any, before: Step) -> None:
        """One step of the loop; ``before`` is done between gradients and weights."""
        for group in optimizer.param_groups:
            group["lr"] = self.rate * self.factor(step)
        model.train()
        optimizer.zero_grad()
        functional.cross_entropy(model(batch[0]), batch[1], label_smoothing=0.1).backward()
        before()
        optimizer.step()

    def tested(self, model: nn.Module) -> float:
        """Accuracy on the test pictures."""
        return accuracy(model, self.tests, self.right)


def measure(record: Record, *, cache: Path) -> None:
    """Trains and prunes in one way."""
    torch.set_num_threads(1)
    torch.manual_seed(record["seed"])
    lessons = Lessons(cache, record["pictures"], record["epochs"], record["rate"], record["seed"])
    model = train_cnn.resnet20(cache / "resnet20-fashion.safetensors")
    whole, begin = macs(model), time.perf_counter()
    done = (theirs if record["method"] in THEIRS else ours)(model, lessons, record)
    spent = time.perf_counter() - begin
    record.update(accuracy=lessons.tested(done), macs=macs(done) / whole, spent=spent, steps=lessons.steps)


def ours(model: nn.Module, lessons: Lessons, record: Record) -> nn.Module:
    """The module that a pruner of ours makes."""
    how = {"method": record["method"], **OURS[record["method"]]}
    calibration = lessons.images[:256].numpy() if "refit" in how else None
    pruner = gp.Pruner(
        model, EXAMPLE, target={"macs": record["ratio"]}, align=1, steps=lessons.steps, calibration=calibration, **how
    )
    optimizer = lessons.optimizer(model)
    for step, batch in enumerate(lessons.batches()):
        lessons.step(model, optimizer, step, batch, pruner.before_step)
        pruner.step()
    found = pruner.finish().module
    assert isinstance(found, nn.Module)
    return found


def theirs(model: nn.Module, lessons: Lessons, record: Record) -> nn.Module:
    """The module that Torch-Pruning makes."""
    importable(CACHE, TORCH_PRUNING)
    import torch_pruning as tp

    whole, at = macs(model), round(THEIRS[record["method"]]["regularized"] * lessons.steps)
    pruner = tp.pruner.GroupNormPruner(
        model, EXAMPLE, importance=tp.importance.GroupMagnitudeImportance(p=2), reg=5e-4, iterative_steps=400,
        pruning_ratio=1.0, max_pruning_ratio=0.9, global_pruning=True, isomorphic=True, ignored_layers=[model.fc],
    )  # fmt: skip
    optimizer = lessons.optimizer(model)
    for step, batch in enumerate(lessons.batches()):
        regularized = step < at
        if regularized and step % (lessons.steps // record["epochs"]) == 0:
            pruner.update_regularizer()
        if step == at:
            while macs(model) > record["ratio"] * whole:
                pruner.step()
            optimizer = lessons.optimizer(model)
        lessons.step(model, optimizer, step, batch, partial(pruner.regularize, model) if regularized else _nothing)
    return model


def _nothing() -> None:
    pass


def macs(model: nn.Module) -> float:
    """As PyTorch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    training = model.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(EXAMPLE)
    model.train(training)
    return float(counter.get_total_flops())


def line(record: Record) -> str:
    """A record in short."""
    if "error" in record:
        return f"{record['method']} {record['ratio']}: {record['error']}"
    what = f"{record['accuracy']:.2%} at {record['macs']:.1%}, {record['spent']:.0f} s"
    return f"{record['method']} {record['ratio']}: {what}"


def table(records: list[Record]) -> str:
    """Accuracy by method and budget, in percent."""
    good = [record for record in records if "accuracy" in record]
    ratios = sorted({record["ratio"] for record in good}, reverse=True)
    rows = []
    for method in dict.fromkeys(record["method"] for record in good):
        cells = []
        for ratio in ratios:
            found = [100 * r["accuracy"] for r in good if r["method"] == method and r["ratio"] == ratio]
            cells.append(f"{np.mean(found):.2f}" if found else "-")
        rows.append([method, *cells])
    rows.sort(key=lambda row: row[-1], reverse=True)
    return text_table(["method", *(f"{ratio:.0%} of the MACs" for ratio in ratios)], rows)


def main() -> int:
    """Runs the benchmark and prints a table; 1 if a case has failed."""
    parser = arguments(__doc__, seconds=1800)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.3])
    parser.add_argument("--pictures", type=int, default=10000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    how = {"pictures": options.pictures, "epochs": options.epochs, "rate": options.rate}
    cases = [
        {"method": method, "ratio": ratio, "seed": seed, **how}
        for ratio in sorted(options.ratios)
        for seed in options.seeds
        for method in (*THEIRS, *OURS)
    ]
    sweep = Sweep(("method", "ratio", "seed", *how), partial(measure, cache=options.cache), line, table)
    return int(any("error" in record for record in run(sweep, cases, options)))


if __name__ == "__main__":
    sys.exit(main())
