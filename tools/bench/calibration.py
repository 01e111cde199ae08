"""What calibration and compensation cost: time of each phase and peak memory, on models of the size that people have.

A ResNet-50 of transformers (25.6 M parameters, random weights: its values do not matter here) with 256 images of
224x224, and SmolLM2-135M with 64 blocks of 512 tokens of Wikipedia. Each is pruned to 0.8 of its MACs with the default
recipe, in a process of its own; a file for the ONNX host is exported first, in another one.

    python -m tools.bench.calibration [--only NAME ...] [--samples N] [--threads 2] [--json calibration.jsonl]

Wall time depends on what else the machine does, processor time hardly.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tools.bench.phases import Phases
from tools.bench.records import Record
from tools.bench.runner import Sweep, arguments, run

CASES = ("resnet50", "resnet50-onnx", "smollm2-135m", "smollm2-135m-onnx")
COUNTED = ("calibrate", "score", "measure-losses", "compensate")
"""The phases that "calibration plus compensation" means; the others are there without calibration data, too."""


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
    from tools.bench.registry import CACHE
    from tools.quality.torch_models import smollm as case_of

    case = case_of(CACHE)
    return case.model, case.example, case.calibration[:samples]


def built(name: str, samples: int):
    """The model of a case, an example and calibration data."""
    return (resnet50 if name.startswith("resnet50") else smollm)(samples)


def export(name: str, samples: int, folder: Path) -> None:
    """Writes a case as a file, and the data: in a process of its own, whose memory is not counted."""
    import numpy as np

    import graphprune as gp

    model, example, batches = built(name, samples)
    gp.export_onnx(model, example, folder / "model.onnx")
    for number, batch in enumerate(batches):
        np.savez(folder / f"{number:04}.npz", **batch)


def opened(name: str, samples: int, folder: Path) -> tuple[Any, Any, list[Any]]:
    """The model of a case for its host, an example where there has to be one, and calibration data."""
    import numpy as np

    if not name.endswith("-onnx"):
        return built(name, samples)
    call = f"from tools.bench.calibration import export, Path; export({name!r}, {samples}, Path({str(folder)!r}))"
    subprocess.run([sys.executable, "-W", "ignore", "-c", call], check=True, stdout=subprocess.DEVNULL)
    return folder / "model.onnx", None, [dict(np.load(path)) for path in sorted(folder.glob("*.npz"))]


def measure(record: Record) -> None:
    """One case in this process."""
    import torch

    import graphprune as gp

    torch.set_num_threads(record["threads"])
    name = record["model"]
    with tempfile.TemporaryDirectory() as folder:
        model, example, batches = opened(name, record["samples"], Path(folder))
        phases = Phases()
        begin = time.perf_counter(), time.process_time()
        result = gp.prune(model, example, target={"macs": 0.8}, calibration=batches, progress=phases)
        total = {"seconds": time.perf_counter() - begin[0], "cpu_seconds": time.process_time() - begin[1]}
        phases.step(None)
    rows = result.state.compensated
    record.update(
        phases=phases.rows,
        total=total,
        parameters=result.report.cost("params").before,
        macs_kept=result.report.cost("macs").fraction,
        seen=result.state.batches.samples,
        refitted=len(rows),
        error_before=sum(row.before for row in rows) / max(1, len(rows)),
        error_after=sum(row.after for row in rows) / max(1, len(rows)),
    )


def line(record: Record) -> str:
    """A record in short."""
    if "error" in record:
        return f"{record['model']}: {record['error']}"
    return (
        f"{record['model']}: {record['parameters'] / 1e6:.1f} M parameters, {record['seen']} samples, "
        f"{record['refitted']} refitted, error {record['error_before']:.2%} -> {record['error_after']:.2%}"
    )


def table(records: list[Record]) -> str:
    """Each case with its phases."""
    lines = []
    for record in records:
        lines.append(line(record))
        if "error" in record:
            continue
        lines.append(f"  {'phase':14}{'seconds':>10}{'processor':>12}{'peak MiB':>10}")
        lines += [
            f" {'*' if phase in COUNTED else ' '}{phase:14}{each['seconds']:10.1f}{each['cpu_seconds']:12.1f}"
            f"{each['peak'] / 2**20:10.0f}"
            for phase, each in record["phases"].items()
        ]
        counted = [each for phase, each in record["phases"].items() if phase in COUNTED]
        seconds, processor = (sum(each[key] for each in counted) for key in ("seconds", "cpu_seconds"))
        peak = max((each["peak"] for each in counted), default=0) / 2**20
        lines.append(f"  {'sum of *':14}{seconds:10.1f}{processor:12.1f}{peak:10.0f}")
        lines.append(f"  {'all':14}{record['total']['seconds']:10.1f}{record['total']['cpu_seconds']:12.1f}")
    return "\n".join(lines)


def main() -> int:
    """Runs the cases and prints tables; 1 if one has failed."""
    parser = arguments(__doc__, seconds=7200)
    parser.add_argument("--samples", type=int, help="instead of 256 images and 64 blocks")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(options.threads)))
    cases = [
        {
            "model": name,
            "samples": options.samples or (256 if name.startswith("resnet50") else 64),
            "threads": options.threads,
        }
        for name in CASES
    ]
    found = run(Sweep(("model", "samples", "threads"), measure, line, table), cases, options)
    return int(any("error" in record for record in found))


if __name__ == "__main__":
    sys.exit(main())
