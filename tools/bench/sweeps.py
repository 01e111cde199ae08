"""Sweeps on workers: how long two points of a model take on two workers, beside one worker, and with equal results.

    python -m tools.bench.sweeps                        all rows, best of three
    python -m tools.bench.sweeps --only weights --repeat 5 --json sweeps.jsonl

The workers of a pool are started and have imported graphprune before the clock runs; what is measured once on the data,
and the latency of both points afterwards, is in the time. Both pools take turns, and the load of the machine is noted:
beside other work on its cores two workers are no faster than one. So the ratio is told a second time, of processor
seconds along the longest way: of this process, and of the worker that used most.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, wait
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import graphprune as gp
from tools.bench.records import Record
from tools.bench.runner import Sweep, arguments, run
from tools.bench.startup import chain, residual

TARGETS = ("params=0.7", "params=0.5")
MOST = 0.6
"""What two workers may take of the time of one."""
ROWS: Mapping[str, tuple[Any, dict[str, Any]]] = {
    "weights": (lambda: residual(1000), {"latency": False}),
    "calibrated": (lambda: chain(64, 96), {"latency": False, "calibration": "normal"}),
    "latency": (lambda: residual(1000), {"latency": True}),
}
"""A model, and how it is pruned."""


def started(n: int) -> ProcessPoolExecutor:
    """Workers that have imported what they need."""
    pool = ProcessPoolExecutor(n, multiprocessing.get_context("spawn"))
    wait([pool.submit(_import, 0.3) for _ in range(2 * n)])
    return pool


def _import(seconds: float) -> None:
    import_module("graphprune.workers")
    time.sleep(seconds)  # so that every worker gets one


def processor_seconds() -> list[float]:
    """What this process has used so far, and each of its children that live, in a fixed order."""
    found = [time.process_time()]
    for child in sorted(multiprocessing.active_children(), key=lambda each: each.pid or 0):
        fields = Path(f"/proc/{child.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        found.append((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))
    return found


def measure(record: Record) -> None:
    """Seconds of one row by the number of workers."""
    make, options = ROWS[record["row"]]
    options = dict(options)
    with tempfile.TemporaryDirectory() as folder, started(1) as one, started(2) as two:
        path = Path(folder) / "model.onnx"
        model = make()
        onnx.save(model, path)
        if options.get("calibration"):
            width = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
            options["calibration"] = np.random.default_rng(0).standard_normal((64, width)).astype(np.float32)
        seconds: dict[int, list[float]] = {1: [], 2: []}
        busy: dict[int, list[float]] = {1: [], 2: []}
        found = []
        for i in range(record["repeat"]):
            for n, pool in ((1, one), (2, two)):
                target = Path(folder) / f"{n}-{i}"
                target.mkdir()
                begin, before = time.perf_counter(), processor_seconds()
                gp.sweep(path, targets=TARGETS, folder=target, executor=pool, align=1, **options)
                seconds[n].append(time.perf_counter() - begin)
                here, *workers = (after - then for then, after in zip(before, processor_seconds(), strict=True))
                busy[n].append(here + max(workers))
                found.append({each.name: each.read_bytes() for each in target.iterdir()})
        record["one"], record["two"] = (min(times) for times in seconds.values())
        record["ratio"] = record["two"] / record["one"]
        record["processor_ratio"] = min(busy[2]) / min(busy[1])
        record["equal"] = all(each == found[0] for each in found)
        record["load"], record["cores"] = os.getloadavg()[0], os.cpu_count()
        assert record["equal"], "the files of two workers are not those of one"


def line(record: Record) -> str:
    """A record as a row of the table."""
    row = record["row"]
    if "error" in record:
        return f"{row:12} {record['error']}"
    return (
        f"{row:12} {record['one']:7.2f} s {record['two']:7.2f} s   {record['ratio']:.2f}   "
        f"{record['processor_ratio']:9.2f}   (at most {MOST}; "
        f"load {record['load']:.1f} on {record['cores']} cores)"
    )


def table(records: list[Record]) -> str:
    """All rows."""
    return "\n".join([f"{'':12} {'1 worker':>9} {'2 workers':>9}   ratio   processor", *map(line, records)])


def main() -> int:
    """Runs the sweeps; 1 if one has failed."""
    parser = arguments(__doc__, seconds=1800)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    cases = [{"row": row, "repeat": options.repeat} for row in ROWS]
    return int(any("error" in record for record in run(Sweep(("row", "repeat"), measure, line, table), cases, options)))


if __name__ == "__main__":
    sys.exit(main())
