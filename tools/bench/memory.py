"""What pruning takes at its peak: resident memory of each phase, on models whose weights are mostly a vocabulary.

Models of the shape of Gemma-3-270M (640 wide, 18 layers, 4 heads, 1 of keys and values, 2048 neurons, a tied table of
262,144 tokens) and scaled-down ones are made of a configuration with random weights, and pruned by the default recipe
with 12 x 128 tokens. Each runs in a process of its own, whose peak is read from the kernel phase by phase: arrays of
PyTorch, NumPy and protocol buffers count alike, and so do the pages of libraries and mapped files.

    python -m tools.bench.memory [--only NAME ...] [--threads 1] [--json memory.json]

The bound that a peak is held against is 2.5 times the weights and half a gigabyte.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from graphprune.observer import Observer, Step

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

GIB = 1 << 30
TIMES, PLUS = 2.5, 0.5e9
"""The bound: so many times the weights, and so many bytes."""


@dataclass(frozen=True)
class Case:
    """A language model and its calibration data.

    Attributes:
        vocabulary: Rows of the tied table.
        layers: How many layers.
        hidden: Width of the residual stream.
        inner: Neurons of each layer.
        samples: Blocks of tokens.
        length: Tokens of a block.
        macs: What remains. The head alone takes two thirds of the MACs of the largest model: below what its layers can
            give, the residual stream is cut, which all weights read.
    """

    vocabulary: int = 262_144
    layers: int = 18
    hidden: int = 640
    inner: int = 2048
    samples: int = 12
    length: int = 128
    macs: float = 0.8


CASES = {
    "gemma-3-270m": Case(),
    "four-layers": Case(layers=4, macs=0.95),
    "four-layers-residual": Case(layers=4),
    "small": Case(vocabulary=32_768, layers=2, hidden=128, inner=256, samples=8, length=64, macs=0.95),
}


@dataclass
class Peaks(Observer):
    """The peak of each phase, which is a step by its name."""

    rows: dict[str, dict[str, float]] = field(default_factory=dict)
    phase: str = "before"
    begun: float = field(default_factory=time.perf_counter)

    def step(self, step: Step | None) -> None:
        """Told that a step begins, or that the last one has ended."""
        phase = step.name if step is not None else "after"
        if phase == self.phase:
            return
        row = self.rows.setdefault(self.phase, {"peak": 0.0, "left": 0.0, "seconds": 0.0})
        row["peak"] = max(row["peak"], resident("VmHWM"))
        row["left"] = resident("VmRSS")
        row["seconds"] += time.perf_counter() - self.begun
        print(f"{self.phase}: {row['peak'] / 1e9:.2f} GB, {row['seconds']:.0f} s", file=sys.stderr, flush=True)
        self.phase = phase
        forget()
        self.begun = time.perf_counter()


def resident(which: str) -> float:
    """Bytes: ``VmRSS`` now, ``VmHWM`` at the most since :func:`forget`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(which):
            return 1024.0 * int(line.split()[1])
    return 0.0


def forget() -> None:
    """Starts the count of the peak anew."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def gemma(case: Case):
    """The model, an example and batches of one block each."""
    import numpy as np
    import torch
    import transformers as hf

    torch.manual_seed(0)
    config = hf.Gemma3TextConfig(
        vocab_size=case.vocabulary,
        hidden_size=case.hidden,
        intermediate_size=case.inner,
        num_hidden_layers=case.layers,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256 if case.hidden >= 512 else 32,
        tie_word_embeddings=True,
        use_cache=False,
    )
    model = hf.Gemma3ForCausalLM(config).eval()
    rng = np.random.default_rng(0)
    batches = [{"input_ids": rng.integers(0, case.vocabulary, (1, case.length))} for _ in range(case.samples)]
    return model, {"input_ids": torch.from_numpy(batches[0]["input_ids"])}, batches


def run(case: Case, options: argparse.Namespace) -> dict:
    """One case in this process."""
    import torch

    import graphprune as gp

    torch.set_num_threads(options.threads)
    if options.quick:
        from graphprune.importance import trials

        trials.WORK = 0.0
    model, example, batches = gemma(case)
    weights = sum(each.numel() * each.element_size() for each in model.parameters())
    gc.collect()
    peaks = Peaks()
    forget()
    data = None if options.uncalibrated else batches
    result = gp.prune(
        model, example, target={"macs": case.macs}, calibration=data, verify=not options.unverified, progress=peaks
    )
    peaks.step(None)
    rows = peaks.rows
    return {
        "weights": weights,
        "bound": TIMES * weights + PLUS,
        "peak": max(row["peak"] for row in rows.values()),
        "macs_kept": result.report.cost("macs").fraction,
        "phases": rows,
        **asdict(case),
    }


def table(name: str, row: dict) -> str:
    """One case as text."""
    lines = [
        f"{name}: {row['weights'] / 1e9:.2f} GB of weights, peak {row['peak'] / 1e9:.2f} GB, "
        f"bound {row['bound'] / 1e9:.2f} GB: {'within' if row['peak'] <= row['bound'] else 'ABOVE'}",
        f"  {'phase':<18}{'peak GB':>9}{'left GB':>9}{'seconds':>9}",
    ]
    lines += [
        f"  {phase:<18}{each['peak'] / 1e9:>9.2f}{each['left'] / 1e9:>9.2f}{each['seconds']:>9.1f}"
        for phase, each in row["phases"].items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Runs the cases and prints tables and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="the file that the JSON goes to, instead of the last line")
    parser.add_argument("--quick", action="store_true", help="as few trials as there can be; each takes what it takes")
    parser.add_argument("--uncalibrated", action="store_true", help="the proof and the module alone, by weights")
    parser.add_argument("--unverified", action="store_true", help="without the proof")
    parser.add_argument("--child", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        print(json.dumps(run(CASES[options.child], options)))
        return
    found = {}
    for name in options.only:
        command = [sys.executable, "-m", "tools.bench.memory", "--child", name, "--threads", str(options.threads)]
        command += ["--unverified"] if options.unverified else []
        command += ["--quick"] if options.quick else []
        command += ["--uncalibrated"] if options.uncalibrated else []
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            print(f"{name}: failed")
            continue
        found[name] = json.loads(done.stdout.splitlines()[-1])
        print(table(name, found[name]), flush=True)
    if options.json is None:
        print(json.dumps(found))
    else:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
