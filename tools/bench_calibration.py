"""What calibration and compensation cost: time of each phase and peak memory, on models of the size that people have.

A ResNet-50 of transformers (25.6 M parameters, random weights: its values do not matter here) with 256 images of
224x224, and SmolLM2-135M with 64 blocks of 512 tokens of Wikipedia. Each is pruned to 0.8 of its MACs with the default
recipe, in a process of its own; a file for the ONNX host is exported first, outside the clock.

    python tools/bench_calibration.py [--only NAME ...] [--samples N] [--threads 2] [--json bench_calibration.json]

Wall time depends on what else the machine does, processor time hardly.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from graphprune.observer import Observer, Step

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

CASES = ("resnet50", "resnet50-onnx", "smollm2-135m", "smollm2-135m-onnx")
COUNTED = ("calibrate", "score", "measure-losses", "compensate")
"""The phases that "calibration plus compensation" means; the others are there without calibration data, too."""


class Clock(Observer):
    """Time and peak memory of each phase, which is a step by its name."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, float]] = {}
        self._phase: str | None = None
        self._mark()

    def _mark(self) -> None:
        self._start = time.perf_counter(), time.process_time()
        with contextlib.suppress(OSError):  # starts the count of peak memory anew
            Path("/proc/self/clear_refs").write_text("5")

    def step(self, step: Step | None) -> None:
        phase = step.name if step is not None else None
        if phase == self._phase:
            return
        if self._phase is not None:
            row = self.rows.setdefault(self._phase, {"seconds": 0.0, "processor_seconds": 0.0, "peak_mib": 0.0})
            row["seconds"] += time.perf_counter() - self._start[0]
            row["processor_seconds"] += time.process_time() - self._start[1]
            row["peak_mib"] = max(row["peak_mib"], peak_mib())
            print(
                f"{self._phase}: {row['seconds']:.1f} s, {row['processor_seconds']:.1f} s", file=sys.stderr, flush=True
            )
        self._phase = phase
        self._mark()


def peak_mib() -> float:
    """The most memory that this process has held since the count was started."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resnet50(samples: int):
    """The model, an example and batches of 16 images: smooth noise, so that neighbouring pixels are alike."""
    import numpy as np
    import torch
    import transformers as hf

    torch.manual_seed(0)
    size, rng = 16, np.random.default_rng(0)
    coarse = torch.from_numpy(rng.standard_normal((samples, 3, 28, 28)).astype(np.float32))
    images = torch.nn.functional.interpolate(coarse, 224, mode="bilinear").numpy()
    model = hf.ResNetForImageClassification(hf.ResNetConfig(num_labels=1000)).eval()
    batches = [{"pixel_values": images[i : i + size]} for i in range(0, samples, size)]
    return model, {"pixel_values": torch.from_numpy(images[:size])}, batches


def smollm(samples: int):
    """The model, an example and batches of one block of 512 tokens."""
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    from tools.bench.registry import CACHE
    from tools.quality.torch_models import smollm as case_of

    case = case_of(CACHE)
    return case.model, case.example, case.calibration[:samples]


def run(name: str, samples: int, threads: int, folder: Path) -> dict:
    """One case in this process."""
    import graphprune as gp

    model, example, batches = (resnet50 if name.startswith("resnet50") else smollm)(samples)
    if name.endswith("-onnx"):
        path = folder / "model.onnx"
        gp.export_onnx(model, example, path)
        import pickle

        with (folder / "batches.pickle").open("wb") as file:
            pickle.dump(batches, file)
        done = subprocess.run([sys.executable, __file__, "--onnx", str(folder), "--threads", str(threads)], check=True,
                              stdout=subprocess.PIPE, text=True)  # fmt: skip
        return json.loads(done.stdout.splitlines()[-1])
    import torch

    torch.set_num_threads(threads)
    return clocked(model, example, batches)


def clocked(model, example, batches, *, verify: bool = True) -> dict:
    """Prunes under the clock."""
    import graphprune as gp

    clock = Clock()
    begin = time.perf_counter(), time.process_time()
    result = gp.prune(model, example, target={"macs": 0.8}, calibration=batches, verify=verify, progress=clock)
    total = {"seconds": time.perf_counter() - begin[0], "processor_seconds": time.process_time() - begin[1]}
    clock.step(None)
    report = result.report
    rows = result.state.compensated
    return {
        "phases": clock.rows,
        "total": total,
        "parameters": report.cost("params").before,
        "macs_kept": report.cost("macs").fraction,
        "samples": result.state.batches.samples,
        "refitted": len(rows),
        "error_before": sum(row.before for row in rows) / max(1, len(rows)),
        "error_after": sum(row.after for row in rows) / max(1, len(rows)),
    }


def main() -> None:
    """Runs the cases and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--samples", type=int, help="instead of 256 images and 64 blocks")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--onnx", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.onnx is not None:
        import pickle

        with (options.onnx / "batches.pickle").open("rb") as file:
            batches = pickle.load(file)
        print(json.dumps(clocked(options.onnx / "model.onnx", None, batches)))
        return
    if options.child is not None:
        samples = options.samples or (256 if options.child.startswith("resnet50") else 64)
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(run(options.child, samples, options.threads, Path(folder))))
        return
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "OPENBLAS_NUM_THREADS": str(options.threads)}
    found = {}
    for name in options.only:
        command = [sys.executable, __file__, "--child", name, "--threads", str(options.threads)]
        command += ["--samples", str(options.samples)] if options.samples else []
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            print(f"{name}: failed")
            continue
        found[name] = json.loads(done.stdout.splitlines()[-1])
        show(name, found[name])
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")


def show(name: str, row: dict) -> None:
    """Prints one case."""
    print(f"{name}: {row['parameters'] / 1e6:.1f} M parameters, {row['samples']} samples, {row['refitted']} refitted, "
          f"error {row['error_before']:.2%} -> {row['error_after']:.2%}")  # fmt: skip
    print(f"  {'phase':14}{'seconds':>10}{'processor':>12}{'peak MiB':>10}")
    for phase, each in row["phases"].items():
        star = "*" if phase in COUNTED else " "
        print(f" {star}{phase:14}{each['seconds']:10.1f}{each['processor_seconds']:12.1f}{each['peak_mib']:10.0f}")
    counted = [row["phases"][phase] for phase in COUNTED if phase in row["phases"]]
    seconds, processor = (sum(each[key] for each in counted) for key in ("seconds", "processor_seconds"))
    print(f"  {'sum of *':14}{seconds:10.1f}{processor:12.1f}{max(each['peak_mib'] for each in counted):10.0f}")
    print(f"  {'all':14}{row['total']['seconds']:10.1f}{row['total']['processor_seconds']:12.1f}", flush=True)


if __name__ == "__main__":
    main()
