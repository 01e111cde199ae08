"""Whether a latency target comes out as measured, and whether it is worth more than a MACs target.

Each trained model of the quality benchmark (`tools/quality`) is pruned with the default recipe and its calibration
data to ``latency=F`` and to ``macs=F``; then to the latency that the MACs target has come to, so that both can be
compared at equal latency. The files run interleaved in onnxruntime with the original; what counts is the measured
fraction of its latency. Quality is the model's metric on held-out data, and the error of the outputs there, relative to
their standard deviation, which tells results apart where the metric is too coarse.

    python tools/bench_latency_target.py [--models NAME ...] [--fraction 0.6] [--threads 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.append(str(Path(__file__).resolve().parents[1]))

import numpy as np
from rich.console import Console
from rich.table import Table

import graphprune as gp
from graphprune.data.batches import open_batches
from graphprune.opening import open_host
from graphprune.profiling.measure import clock_of
from graphprune.runtime import sessions as runtime
from tools.bench.registry import CACHE
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


def bench(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One row: requested, predicted and measured latency, MACs and quality of all prunings."""
    case = CASES[name](options.cache)
    host = open_host(case.model, case.example, shapes=case.shapes)
    batches = open_batches(case.calibration, host)
    begin = time.perf_counter()
    profile = gp.profile(case.model, case.example, shapes=case.shapes, threads=options.threads, quick=True)
    row: dict[str, Any] = {"metric": case.metric, "profile_seconds": time.perf_counter() - begin}

    def pruned(target: dict[str, float]) -> gp.Result:
        return gp.prune(
            case.model, case.example, shapes=case.shapes, target=target, profile=profile, calibration=batches,
            verify=options.verify,
        )  # fmt: skip

    results = {metric: pruned({metric: options.fraction}) for metric in ("latency", "macs")}
    _, found = fractions(host, results, options.threads)
    results["equal"] = pruned({"latency": min(found["macs"], 1.0)})
    row["before_ms"], found = fractions(host, results, options.threads)
    for each, result in results.items():
        row[each] = {
            "fraction": found[each],
            "macs": result.report.cost("macs").fraction,
            "notes": list(result.report.notes),
            **quality(case, host, result),
        }
    row["predicted"] = results["latency"].report.cost("latency").fraction
    row["within"] = abs(found["latency"] / options.fraction - 1)
    return row


def main() -> None:
    """Runs the benchmark and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument(
        "--models", nargs="*", choices=CASES, default=["efficientnet-lite0", "minilm", "magika", "resnet20"]
    )
    parser.add_argument("--fraction", type=float, default=0.6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--verify", action="store_true", help="prove the results, too")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows: dict[str, Any] = {}
    table = Table(
        "model", "before, ms", f"latency={options.fraction:g}: measured", "off by", "MACs", "metric", "error",
        f"macs={options.fraction:g}: measured", "metric", "error", "as fast by latency: measured", "metric", "error",
    )  # fmt: skip
    for name in options.models:
        try:
            rows[name] = row = bench(name, options)
        except (RuntimeError, gp.GraphpruneError) as error:
            rows[name] = {"error": str(error)}
            table.add_row(name, str(error))
            continue
        cells = [name, f"{row['before_ms']:.2f}"]
        for each in ("latency", "macs", "equal"):
            found = row[each]
            cells.append(f"{found['fraction']:.1%}")
            if each == "latency":
                cells += [f"{row['within']:.1%}", f"{found['macs']:.1%}"]
            cells += [f"{found['value']:.4f}", f"{found['error']:.4f}"]
        table.add_row(*cells)
        print(json.dumps({name: row}), flush=True)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")
    Console(width=180).print(table)


if __name__ == "__main__":
    main()
