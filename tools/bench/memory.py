"""What pruning takes at its peak: resident memory of each phase, on models whose weights are mostly a vocabulary.

Models of the shape of Gemma-3-270M (640 wide, 18 layers, 4 heads, 1 of keys and values, 2048 neurons, a tied table of
262,144 tokens) and scaled-down ones are made of a configuration with random weights, and pruned by the default recipe
with 12 x 128 tokens. Each runs in a process of its own, whose peak is read from the kernel phase by phase: arrays of
PyTorch, NumPy and protocol buffers count alike, and so do the pages of libraries and mapped files.

    python -m tools.bench.memory [--only NAME ...] [--threads 1] [--json memory.jsonl]

The bound that a peak is held against is 2.5 times the weights and half a gigabyte.
"""

from __future__ import annotations

import gc
import sys
from dataclasses import asdict, dataclass

from tools.bench.phases import Phases, forget
from tools.bench.records import Record
from tools.bench.runner import Sweep, arguments, run

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


def measure(record: Record) -> None:
    """One case in this process."""
    import torch

    import graphprune as gp

    torch.set_num_threads(record["threads"])
    if record["quick"]:
        from graphprune.importance import trials

        trials.WORK = 0.0
    case = CASES[record["model"]]
    model, example, batches = gemma(case)
    weights = sum(each.numel() * each.element_size() for each in model.parameters())
    record.update(asdict(case), weights=weights, bound=TIMES * weights + PLUS)
    gc.collect()
    forget()
    phases = Phases()
    result = gp.prune(
        model, example, target={"macs": case.macs}, calibration=batches if record["calibrated"] else None,
        verify=record["verified"], progress=phases,
    )  # fmt: skip
    phases.step(None)
    peak = max(row["peak"] for row in phases.rows.values())
    record.update(peak=peak, macs_kept=result.report.cost("macs").fraction, phases=phases.rows)


def line(record: Record) -> str:
    """A record in short."""
    if "error" in record:
        return f"{record['model']}: {record['error']}"
    return (
        f"{record['model']}: {record['weights'] / 1e9:.2f} GB of weights, peak {record['peak'] / 1e9:.2f} GB, "
        f"bound {record['bound'] / 1e9:.2f} GB: {'within' if record['peak'] <= record['bound'] else 'ABOVE'}"
    )


def table(records: list[Record]) -> str:
    """Each case with its phases."""
    lines = []
    for record in records:
        lines += [line(record), f"  {'phase':<18}{'peak GB':>9}{'left GB':>9}{'seconds':>9}"]
        lines += [
            f"  {phase:<18}{each['peak'] / 1e9:>9.2f}{each['left'] / 1e9:>9.2f}{each['seconds']:>9.1f}"
            for phase, each in record.get("phases", {}).items()
        ]
    return "\n".join(lines)


def main() -> int:
    """Runs the cases and prints tables; 1 if one has failed."""
    parser = arguments(__doc__, seconds=3600)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="as few trials as there can be; each takes what it takes")
    parser.add_argument("--uncalibrated", action="store_true", help="the proof and the module alone, by weights")
    parser.add_argument("--unverified", action="store_true", help="without the proof")
    options = parser.parse_args()
    how = {"threads": options.threads, "quick": options.quick}
    how |= {"calibrated": not options.uncalibrated, "verified": not options.unverified}
    sweep = Sweep(("model", *how), measure, line, table)
    found = run(sweep, [{"model": name, **how} for name in CASES], options)
    return int(any("error" in record for record in found))


if __name__ == "__main__":
    sys.exit(main())
