"""Whether a latency target comes out as measured, and whether it is worth more than a MACs target.

Each trained model of the quality benchmark (`tools/quality`) is pruned with the default recipe and its calibration
data to ``latency=F`` and to ``macs=F``; then to the latency that the MACs target has come to, so that both can be
compared at equal latency. The files run interleaved in onnxruntime with the original; what counts is the measured
fraction of its latency. Quality is the model's metric on held-out data, and the error of the outputs there, relative to
their standard deviation, which tells results apart where the metric is too coarse.

    python -m tools.bench.latency_target [--only NAME ...] [--fraction 0.6] [--threads 1] [--json FILE]
"""

from __future__ import annotations

import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import graphprune as gp
from graphprune.data.batches import open_batches
from graphprune.opening import open_host
from graphprune.profiling.measure import clock_of
from graphprune.runtime import sessions as runtime
from tools.bench.records import Record
from tools.bench.records import table as text_table
from tools.bench.registry import CACHE
from tools.bench.runner import Sweep, arguments, run
from tools.quality.cases import Batch, Case
from tools.quality.models import CASES


def fractions(host: Any, results: dict[str, gp.Result], threads: int) -> tuple[float, dict[str, float]]:
    """Milliseconds of the original, and the fraction of them that each result takes, all interleaved."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "before.onnx", *(Path(folder) / f"{name}.onnx" for name in results)]
        host.save_onnx(files[0])
        for file, result in zip(files[1:], results.values(), strict=True):
            result.save_onnx(file)
        (found,) = runtime.measure(
            files, [host.example_inputs()] * len(files), threads=(threads,), seconds=20, most_runs=2000,
            quantile=0.25, clock=clock_of(threads),
        )  # fmt: skip
    before, *after = found.milliseconds
    return before, {name: ms / before for name, ms in zip(results, after, strict=True)}


def quality(case: Case, host: Any, result: gp.Result) -> dict[str, float]:
    """The metric of a result, and the error of its outputs on the same data."""
    errors, energies = [], []

    def run(batch: Batch) -> np.ndarray:
        found = next(iter(result.host.run(batch).values()))
        whole = next(iter(host.run(batch).values()))
        errors.append(float(np.square(found - whole).mean()))
        energies.append(float(whole.var()))
        return found

    value = next(iter(case.evaluate(run).values()))
    return {"value": value, "error": float(np.sqrt(np.mean(errors) / np.mean(energies)))}


def measure(record: Record, *, cache: Path) -> None:
    """Requested, predicted and measured latency, MACs and quality of all prunings."""
    case = CASES[record["model"]](cache)
    host = open_host(case.model, case.example, shapes=case.shapes)
    batches = open_batches(case.calibration, host)
    begin = time.perf_counter()
    profile = gp.profile(case.model, case.example, shapes=case.shapes, threads=record["threads"], quick=True)
    record.update(metric=case.metric, profile_seconds=time.perf_counter() - begin)

    def pruned(target: dict[str, float]) -> gp.Result:
        return gp.prune(
            case.model, case.example, shapes=case.shapes, target=target, profile=profile, calibration=batches,
            verify=record["verified"],
        )  # fmt: skip

    results = {metric: pruned({metric: record["fraction"]}) for metric in ("latency", "macs")}
    _, found = fractions(host, results, record["threads"])
    results["equal"] = pruned({"latency": min(found["macs"], 1.0)})
    record["before_ms"], found = fractions(host, results, record["threads"])
    for each, result in results.items():
        record[each] = {
            "fraction": found[each],
            "macs": result.report.cost("macs").fraction,
            "notes": list(result.report.notes),
            **quality(case, host, result),
        }
    record["predicted"] = results["latency"].report.cost("latency").fraction
    record["within"] = abs(found["latency"] / record["fraction"] - 1)


def line(record: Record) -> str:
    """A record in short."""
    if "error" in record:
        return f"{record['model']}: {record['error']}"
    found = record["latency"]
    return f"{record['model']}: {found['fraction']:.1%} of {record['before_ms']:.2f} ms, off by {record['within']:.1%}"


def table(records: list[Record]) -> str:
    """Every model with its three prunings: to a latency, to MACs, and as fast as those by latency."""
    head = ("model", "before, ms", "latency", "off by", "MACs", "metric", "error")
    head += ("by MACs: latency", "metric", "error", "as fast: latency", "metric", "error")
    rows = []
    for record in records:
        if "error" in record:
            rows.append([record["model"], record["error"][:60], *[None] * (len(head) - 2)])
            continue
        cells = [record["model"], f"{record['before_ms']:.2f}"]
        for each in ("latency", "macs", "equal"):
            found = record[each]
            cells.append(f"{found['fraction']:.1%}")
            if each == "latency":
                cells += [f"{record['within']:.1%}", f"{found['macs']:.1%}"]
            cells += [f"{found['value']:.4f}", f"{found['error']:.4f}"]
        rows.append(cells)
    return text_table(head, rows)


def main() -> int:
    """Runs the benchmark and prints a table; 1 if a case has failed."""
    parser = arguments(__doc__, seconds=7200)
    parser.set_defaults(only=["efficientnet-lite0", "minilm", "magika", "resnet20"])
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--fraction", type=float, default=0.6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--verify", action="store_true", help="prove the results, too")
    options = parser.parse_args()
    how = {"fraction": options.fraction, "threads": options.threads, "verified": options.verify}
    sweep = Sweep(("model", *how), partial(measure, cache=options.cache), line, table)
    found = run(sweep, [{"model": name, **how} for name in CASES], options)
    return int(any("error" in record for record in found))


if __name__ == "__main__":
    sys.exit(main())
