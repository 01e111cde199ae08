"""What a step of a training loop costs with a pruner in it, as a multiple of the same step without.

Steps with and without alternate on the same batches, so that a busy machine slows both; the median of their ratios is
taken, over steps in which nothing is scored (`plain`) and over all (`all`: scores and choices included).

    python -m tools.training.step_cost [--only MODEL ...] [--steps 40] [--json FILE]
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import graphprune as gp
from graphprune.training.methods import METHODS
from tools.bench.records import Record
from tools.bench.records import table as text_table
from tools.bench.runner import Sweep, arguments, run
from tools.quality.train_cnn import resnet20

Case = tuple[nn.Module, Any, torch.Tensor, Callable[[nn.Module, torch.Tensor], torch.Tensor]]


def cnn() -> Case:
    """ResNet-20 on 128 pictures."""
    torch.manual_seed(0)
    batch = torch.randn(128, 1, 28, 28)
    return resnet20(), batch[:2], batch, lambda model, x: model(x).square().mean()


def decoder() -> Case:
    """A small decoder on 8 blocks of 128 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2000, hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6,
        num_key_value_heads=2, use_cache=False,
    )  # fmt: skip
    batch = torch.randint(0, 2000, (8, 128))

    def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        logits = model(x).logits
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten())

    return LlamaForCausalLM(config), (batch[:1],), batch, loss


CASES: dict[str, Callable[[], Case]] = {"resnet20": cnn, "decoder": decoder}


def measure(record: Record, *, steps: int) -> None:
    """Times a method on a model."""
    torch.set_num_threads(1)
    model, example, batch, loss = CASES[record["model"]]()
    other = deepcopy(model)
    pruner = gp.Pruner(
        model, example, target="macs=0.5", method=record["method"], steps=steps, begin=0.2, end=0.8, every=5
    )
    optimizers = [torch.optim.AdamW(each.parameters(), lr=1e-4) for each in (model, other)]
    plain, everything = [], []

    def one(module: nn.Module, optimizer: torch.optim.Optimizer, *, with_pruner: bool) -> float:
        begin = time.perf_counter()
        module.train()
        loss(module, batch).backward()
        if with_pruner:
            pruner.before_step()
        optimizer.step()
        if with_pruner:
            pruner.step()
        optimizer.zero_grad()
        return time.perf_counter() - begin

    for step in range(steps):
        without = one(other, optimizers[1], with_pruner=False)
        having = one(model, optimizers[0], with_pruner=True)
        everything.append(having / without)
        if not pruner._loop.schedule.due(pruner.steps) and step:
            plain.append(having / without)
    record.update(plain=float(np.median(plain)), all=float(np.mean(everything[1:])))


def line(record: Record) -> str:
    """A record in short."""
    found = record.get("error") or f"{record['plain']:.3f} plain, {record['all']:.3f} all"
    return f"{record['model']} {record['method']}: {found}"


def table(records: list[Record]) -> str:
    """Multiples of a step without a pruner."""
    good = [record for record in records if "plain" in record]
    rows = [[r["model"], r["method"], f"{r['plain']:.3f}", f"{r['all']:.3f}"] for r in good]
    return text_table(["model", "method", "plain steps", "all steps"], rows)


def main() -> int:
    """Runs the benchmark and prints a table; 1 if a case has failed."""
    parser = arguments(__doc__, seconds=600)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    options = parser.parse_args()
    cases = [{"model": model, "method": method} for model in CASES for method in options.methods]
    cases = [each for each in cases if each != {"model": "decoder", "method": "slimming"}]
    sweep = Sweep(("model", "method"), partial(measure, steps=options.steps), line, table)
    return int(any("error" in record for record in run(sweep, cases, options)))


if __name__ == "__main__":
    sys.exit(main())
