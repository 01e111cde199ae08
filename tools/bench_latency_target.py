"""Whether a latency target comes out as measured, and what a MACs target of the same fraction gives beside it.

Each real model (see ``real_models.py``) is pruned to ``latency=F`` and to ``macs=F``; both results and the original
run interleaved in onnxruntime. What counts is the measured fraction of the original's latency; the accuracy of either
is the business of another benchmark, so the plans are written too if asked for.

    python tools/bench_latency_target.py [--models NAME ...] [--fraction 0.6] [--threads 1] [--json FILE] [--plans DIR]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from real_models import CACHE, MODELS

import graphprune as gp
from graphprune.backends import runtime
from graphprune.opening import open_host
from graphprune.profiling.measure import clock_of

SHAPES = {"yolov8n": {"images": (1, 3, 320, 320)}, "ppocr-rec": {"x": (1, 3, 48, 320)}}
"""Input shapes of ONNX files whose axes are dynamic: what the models are used with."""


def measure(model, inputs, shapes, paths, threads):
    """Milliseconds of the original and of each file, interleaved."""
    host = open_host(model, inputs, shapes=shapes)
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before.onnx"
        host.save_onnx(before)
        files = [before, *paths]
        (found,) = runtime.measure(
            files, [host.example_inputs()] * len(files), threads=(threads,), seconds=10, most_runs=1000,
            quantile=0.25, clock=clock_of(threads),
        )  # fmt: skip
    return found.milliseconds


def bench(name: str, options: argparse.Namespace):
    """One row: requested, predicted and measured latency, MACs and parameters of both prunings."""
    model, inputs = MODELS[name](options.cache)
    shapes = SHAPES.get(name)
    begin = time.perf_counter()
    profile = gp.profile(model, inputs, shapes=shapes, threads=options.threads, quick=True)
    row = {"profile_seconds": time.perf_counter() - begin, "correction": profile.correction}
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for metric in ("latency", "macs"):
            result = gp.prune(
                model, inputs, shapes=shapes, target={metric: options.fraction}, profile=profile,
                allocation=options.allocation,
            )  # fmt: skip
            paths.append(Path(folder) / f"{metric}.onnx")
            result.save_onnx(paths[-1])
            if options.plans:
                options.plans.mkdir(parents=True, exist_ok=True)
                result.plan.save(options.plans / f"{name}-{metric}-{options.fraction:g}.json")
            report = result.report
            row[metric] = {
                "macs": report.cost("macs").fraction,
                "params": report.cost("params").fraction,
                "notes": list(report.notes),
                "proof": {check.name: check.difference for check in report.proof},
            }
            if metric == "latency":
                row["predicted"] = report.cost("latency").fraction
        before, *after = measure(model, inputs, shapes, paths, options.threads)
    row["before_ms"] = before
    for metric, ms in zip(("latency", "macs"), after, strict=True):
        row[metric] |= {"ms": ms, "fraction": ms / before}
    row["within"] = abs(row["latency"]["fraction"] / options.fraction - 1)
    return row


def main() -> None:
    """Runs the benchmark and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--models", nargs="*", choices=MODELS, default=["efficientnet-lite0", "minilm", "ppocr-rec"])
    parser.add_argument("--fraction", type=float, default=0.6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--allocation", default="isomorphic")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plans", type=Path)
    options = parser.parse_args()
    columns = "before, ms", "predicted", "measured", "off by", "its MACs", "macs target", "its latency"
    print(f"{'model':20}" + "".join(f"{column:>12}" for column in columns))
    rows = {}
    for name in options.models:
        try:
            rows[name] = row = bench(name, options)
        except (RuntimeError, gp.GraphpruneError) as error:
            rows[name] = {"error": str(error)}
            print(f"{name:20} {error}", flush=True)
            continue
        print(
            f"{name:20}{row['before_ms']:12.2f}{row['predicted']:12.1%}{row['latency']['fraction']:12.1%}"
            f"{row['within']:12.1%}{row['latency']['macs']:12.1%}{row['macs']['macs']:12.1%}"
            f"{row['macs']['fraction']:12.1%}",
            flush=True,
        )
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
