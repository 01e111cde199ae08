"""What it takes to measure losses on trial, as it is done and as plainly as it can be, in one process on one session.

Plainly is a changed copy of the model for each trial, every width, all inputs that are held apart. Done is one prepared
rest of the model for each group, which changed weights are handed to, no more widths and inputs than tell something,
and as many groups beside each other as there are cores. Both plans are cut and refitted, and judged on the inputs held
apart.

    python -m tools.bench.losses [--cache DIR] [--only MODEL ...] [--targets 0.7 0.5] [--json losses.jsonl]

One core unless ``OMP_NUM_THREADS`` says more. Processor time is what counts; wall time depends on the neighbours.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

import graphprune as gp
from graphprune.importance.held_out import judge
from graphprune.importance.trial_runs import NOTHING
from graphprune.statistics.holdout import split_batches
from tools.bench.phases import Phases
from tools.bench.records import Record
from tools.bench.records import table as text_table
from tools.bench.registry import CACHE, fetch
from tools.bench.runner import Sweep, arguments, run
from tools.quality import data
from tools.quality.models import CASES as MODELS

STEP = "measure-losses"
CASES = ("yolov8n", "ppocr-cls", "dnsmos", "resnet20")


def opened(name: str, cache: Path) -> tuple[Any, Any, dict[str, Any]]:
    """A model, its example, and what a session is given beside: the detector with 8 pictures, others as in quality."""
    if name != "yolov8n":
        case = MODELS[name](cache)
        return case.model, case.example, {"data": case.calibration, "shapes": case.shapes}
    path = fetch(cache, "nudenet==3.4.2") / "nudenet/320n.onnx"
    views = data.stamp_views(cache)[0][:8].astype(np.float32) / 255
    pictures = np.pad(views, ((0, 0), (0, 0), (48, 48), (48, 48)), mode="reflect")
    return path, None, {"data": {"images": pictures}, "samples": 8, "shapes": {"images": (1, 3, 320, 320)}}


@contextmanager
def plainly() -> Iterator[None]:
    """Trials without what makes them fast."""
    with (
        patch("graphprune.hosts.onnx.host.OnnxHost.trials", lambda self, asked: None),
        patch("graphprune.hosts.torch.program.Program.trials", lambda self, asked: None),
        patch("graphprune.importance.trials.beside", lambda *given: 1),
        patch.multiple("graphprune.passes.measure_losses", USUAL=NOTHING, PIECES=1),
    ):
        yield


def measure(cache: Path, targets: list[float], record: Record) -> None:
    """One model: trials and plans both ways, first plainly."""
    model, example, given = opened(record["model"], cache)
    session = gp.Session(model, example, **given)
    for way, context in (("plain", plainly), ("done", nullcontext)):
        record[way] = {"losses": {}}
        for target in targets:
            phases = Phases()
            with context():
                result = session.prune(
                    target={"macs": target}, allocation="measured", verify=False, latency=False, progress=phases
                )
            phases.step(None)
            record[way] = {**phases.rows[STEP], **record[way]}  # those of the first; the session keeps what it measured
            state = result.state
            _, held = split_batches(len(state.batches))
            loss = judge(state.original, [state.batches[i] for i in held], asked=state.asked)
            record[way]["losses"][f"{target:.0%}"] = float(np.mean(loss(result.host)))


def line(record: Record) -> str:
    """A record in short."""
    if "error" in record:
        return f"{record['model']}: {record['error']}"
    plain, done = record["plain"], record["done"]
    return (
        f"{record['model']}: {plain['cpu_seconds']:.1f} -> {done['cpu_seconds']:.1f} CPU s, "
        f"{plain['cpu_seconds'] / done['cpu_seconds']:.2f}x, {plain['seconds'] / done['seconds']:.2f}x by the clock"
    )


def table(records: list[Record]) -> str:
    """Each model with the times of both ways, and for each target what the plans lose."""
    head = ("model", "plainly, CPU s", "done, CPU s", "times", "by the clock", "MACs", "loss plainly", "loss done")
    rows = []
    for record in records:
        if "error" in record:
            continue
        plain, done = record["plain"], record["done"]
        times = [plain[each] / done[each] for each in ("cpu_seconds", "seconds")]
        for target, loss in plain["losses"].items():
            first = (record["model"], plain["cpu_seconds"], done["cpu_seconds"], *times)
            rows.append((*first, target, loss, done["losses"][target]))
    return text_table(head, rows)


def main() -> int:
    """Runs the cases and prints a table; 1 if one has failed."""
    parser = arguments(__doc__, seconds=3600)
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder for models and data")
    parser.add_argument("--targets", type=float, nargs="+", default=[0.7, 0.5], help="fractions of MACs that stay")
    options = parser.parse_args()
    cases = [{"model": name, "targets": options.targets} for name in CASES]
    sweep = Sweep(("model", "targets"), partial(measure, options.cache, options.targets), line, table)
    found = run(sweep, cases, options)
    return int(any("error" in record for record in found))


if __name__ == "__main__":
    sys.exit(main())
