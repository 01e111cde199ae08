"""Prunes small vision nets to several budgets; prints whether the user's class came back and trains, or why not.

Run it as ``python tools/class_kept.py``; names of nets as arguments try only those.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from vision_nets import NETS, made, train_step

import graphprune
from graphprune.errors import GraphpruneError

BUDGETS = (0.7, 0.5, 0.3)


def tried(name: str, budget: float) -> tuple[str, str]:
    """A word for the table, and what there is to say."""
    net, inputs = made(name)
    try:
        result = graphprune.prune(net, inputs, target={"macs": budget})
    except GraphpruneError as error:
        return "refused", str(error)
    module = result.module
    assert isinstance(module, nn.Module)
    note = " ".join(result.report.notes)
    try:
        train_step(module, inputs)
    except Exception as error:  # noqa: BLE001  # whatever a net raises in training is a row of the table
        return "no step", f"{error} {note}"
    return ("class" if type(module) is type(net) else "graph"), note


def main() -> int:
    """Prints the table; 1 if a class was lost."""
    torch.set_num_threads(1)
    lost = 0
    for name in sys.argv[1:] or NETS:
        found = [tried(name, budget) for budget in BUDGETS]
        lost += any(word != "class" for word, _ in found)
        print(f"{name:12}", *(f"{word:8}" for word, _ in found))
        for note in dict.fromkeys(note for _, note in found if note):
            print(f"             {note}")
    print(f"{lost} of {len(sys.argv[1:] or NETS)} lose their class at some budget")
    return int(lost > 0)


if __name__ == "__main__":
    raise SystemExit(main())
