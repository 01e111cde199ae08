"""LoRAShear's claim as a ratio: what a small decoder keeps of its next-token accuracy, at equal steps.

Each method has the same number of steps of the same batches, and trains nothing but low-rank additions of one rank;
``lhspg`` draws its batches after the last period by how much each source has suffered (dynamic recovery). ``dense`` is
the unpruned model with the same additions and steps: training goes on, and this says what that alone brings.

    python -m tools.training.llm --cache DIR [--steps 300 --methods lhspg lora --fractions 0.8 0.5]
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path
from typing import Any

import torch

import graphprune as gp
from graphprune.recovery.sources import Sources
from tools.bench.records import Records, timed
from tools.bench.registry import CACHE
from tools.bench.runner import parser_of
from tools.training.decoder import BATCH, LENGTH, SOURCES, Size, Texts, accuracy, dense, judged, loss_of

ONLY = ("head", "neuron")
METHODS: dict[str, dict[str, Any]] = {
    "lhspg": {"method": "lhspg"},
    "llm-pruner": {"method": "llm-pruner", "recipe": "llm-pruner"},
    "lora-taylor": {"method": "lora-taylor"},
    "lora": {"method": "lora", "criterion": "obs"},
}
"""Ours, and what it is held against; the last one is one-shot, then additions."""
KEY = ("model", "method", "fraction", "steps", "rate", "rank", "seed")


def run(model: Any, some: Texts, key: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Trains with a pruner; what is left, and what it knows."""
    method, fraction = key["method"], key["fraction"]
    how = dict(METHODS.get(method, {}))
    model = copy.deepcopy(model)
    example = {"input_ids": some.batch(0)[:2]}
    given = {"input_ids": torch.cat([some.batch(10**6 + i) for i in range(4)]).numpy()}
    if method == "dense":
        how, fraction = {"method": "lora"}, 1.0
    begin = time.process_time()
    pruner = gp.Pruner(
        model, example, how.pop("recipe", None), target=f"params={fraction}", steps=options.steps, only=ONLY, align=1,
        calibration=given, options={"rank": options.rank}, **how,
    )  # fmt: skip
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=options.rate, weight_decay=0.0)
    watched = {name: rows[-32:] for name, rows in some.train.items()}
    sources = Sources({name: loss for name, (_, loss) in judged(model, watched).items()})
    shares = None
    for step in range(options.steps):
        for each in optimizer.param_groups:
            each["lr"] = options.rate * min((step + 1) / 20, 0.5 + 0.5 * math.cos(math.pi * step / options.steps))
        if method == "lhspg" and pruner.over and step % 25 == 0:
            sources.update({name: loss for name, (_, loss) in judged(model, watched).items()})
            shares = sources.shares
        model.train()
        loss_of(model, some.batch(step, shares, options.seed)).backward()
        pruner.before_step()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    result = pruner.finish(verify=False)
    return {
        "params": result.report.cost("params").fraction,
        "accuracy": accuracy(result.module, some.held),
        "by_source": {name: right for name, (right, _) in judged(result.module, some.held).items()},
        "training_seconds": round(time.process_time() - begin, 1),
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of llm.jsonl")
    parser.add_argument("--methods", nargs="*", choices=[*METHODS, "dense"], default=["dense", *METHODS])
    parser.add_argument("--fractions", nargs="*", type=float, default=[0.8, 0.5])
    for name, kind, default in (("steps", int, 300), ("rate", float, 2e-3), ("rank", int, 8), ("seed", int, 0)):
        parser.add_argument(f"--{name}", type=kind, default=default)
    for name in ("vocabulary", "width", "inner", "layers", "heads"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Size(), name))
    parser.add_argument("--trained", type=int, default=Size().steps, help="steps of the dense model")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = ("vocabulary", "width", "inner", "layers", "heads")
    size = Size(**{name: getattr(options, name) for name in names}, steps=options.trained)
    model, some = dense(options.cache, size)
    whole = accuracy(model, some.held)
    print(f"{size.name}: {whole:.4f} of next tokens ({len(SOURCES)} sources, {BATCH} x {LENGTH} tokens a step)")
    records = Records(options.out / "llm.jsonl", KEY)
    for fraction in options.fractions:
        for method in options.methods:
            key = {
                "model": size.name, "method": method, "fraction": 1.0 if method == "dense" else fraction,
                **{name: getattr(options, name) for name in ("steps", "rate", "rank", "seed")},
            }  # fmt: skip
            for missing in records.missing([key], lambda record: bool(record)):
                records.add(timed(missing, lambda key=missing: run(model, some, key, options)))
            record = records.get(key) or {}
            if "error" in record:
                print(f"{method:12} {fraction:.2f} {record['error']}", flush=True)
                continue
            kept = record["accuracy"] / whole
            print(
                f"{method:12} {record['params']:.3f} of params: {record['accuracy']:.4f}, {kept:.1%} of the dense "
                f"model's ({record['training_seconds']:.0f} CPU s)",
                flush=True,
            )


if __name__ == "__main__":
    main()
