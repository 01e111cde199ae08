"""Prunes small vision nets to several budgets; prints whether the user's class came back and trains, or why not.

python -m tools.proofs.class_kept [--only NET ...] [--json FILE]
"""

from __future__ import annotations

import sys

import torch
from torch import nn
from vision_nets import NETS, made, train_step

import graphprune
from graphprune.errors import GraphpruneError
from tools.bench.records import Record
from tools.bench.runner import Sweep, arguments, run

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


def measure(record: Record) -> None:
    """One net, to one budget."""
    torch.set_num_threads(1)
    record["word"], record["note"] = tried(record["net"], record["budget"])


def line(record: Record) -> str:
    """A record in short."""
    return f"{record['net']:12} {record['budget']:g} {record.get('error') or record['word']}"


def lost(records: list[Record]) -> set[str]:
    """The nets that lose their class at some budget."""
    return {record["net"] for record in records if record.get("word") != "class"}


def table(records: list[Record]) -> str:
    """Each net: a word for each budget, and what there is to say."""
    by_net: dict[str, list[Record]] = {}
    for record in records:
        by_net.setdefault(record["net"], []).append(record)
    lines = []
    for name, found in by_net.items():
        lines.append(f"{name:12} " + " ".join(f"{record.get('word', 'failed'):8}" for record in found))
        notes = (record.get("error") or record["note"] for record in found)
        lines += [f"             {note}" for note in dict.fromkeys(notes) if note]
    return "\n".join([*lines, f"{len(lost(records))} of {len(by_net)} lose their class at some budget"])


def main() -> int:
    """Prints the table; 1 if a class was lost."""
    options = arguments(__doc__, seconds=600).parse_args()
    cases = [{"net": name, "budget": budget} for name in NETS for budget in BUDGETS]
    return int(bool(lost(run(Sweep(("net", "budget"), measure, line, table, fork=True), cases, options))))


if __name__ == "__main__":
    sys.exit(main())
