"""What a user waits for: from a module, or a file, to a smaller one, beside Torch-Pruning and onnxsim in the same run.

Processor seconds of one thread, in one process for each model, which is warm: both sides have pruned a small net
before, and the median of some calls counts (the first one is told as well). Theirs: the dependency graph and the step
that cuts the module in place. Ours: ``graphprune.prune`` from the module to a smaller copy of it (``params=0.5``, l2),
tracing included; without a proof, with the proof of the module (masked, permutation, own tensors), and once more on the
pruned module, whose trace is known. Of ONNX files: reading, pruning and writing; onnxsim proves nothing.

    python -m tools.bench.end_to_end [--repeats 3] [--only NAME ...] [--json end_to_end.jsonl] [--docs]

``--docs`` writes the table into ``docs/benchmarks.md``. Torch-Pruning 1.6.1 comes from PyPI (the extra ``bench``), so
does onnxsim 0.8.1, which is unpacked in the cache folder and never installed.
"""

from __future__ import annotations

import copy
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.bench.records import ROOT, Record
from tools.bench.registry import CACHE, fetch, importable
from tools.bench.runner import Sweep, arguments, run

MODELS = (
    "resnet50", "mobilenet-v3-small", "efficientnet-lite0", "vit-tiny", "convnext-atto", "swin-tiny", "densenet121",
    "llama-12-layers",
)  # fmt: skip
FILES = ("resnet50.onnx", "mobilenet-v3-small.onnx")
TARGET = {"params": 0.5}
RATIO = 0.3
"""Of the units that Torch-Pruning and onnxsim remove of each layer: about half of the parameters go with them."""
LONG = 10.0
"""Seconds after which a call is not repeated."""
TORCH_PRUNING, ONNXSIM = "torch-pruning==1.6.1", "onnxsim==0.8.1"
SIDES = {"plain": "without a proof", "proven": "proven", "again": "pruned again, proven"}
MARKS = "<!-- end_to_end: begin -->\n", "<!-- end_to_end: end -->\n"


def build(name: str) -> tuple[Any, tuple[Any, ...]]:
    """A model with random weights, and its inputs."""
    import torch
    import transformers as hf

    from tools.bench import models, small

    torch.manual_seed(0)
    image, tokens = (torch.randn(1, 3, 224, 224),), (torch.randint(0, 1000, (1, 64)),)
    tiny = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
    llama = {"hidden_size": 256, "num_hidden_layers": 12, "num_attention_heads": 8, "num_key_value_heads": 4,
             "intermediate_size": 688, "vocab_size": 1000, "use_cache": False}  # fmt: skip
    builders: dict[str, Callable[[], tuple[Any, tuple[Any, ...]]]] = {
        "resnet50": lambda: (hf.ResNetForImageClassification(hf.ResNetConfig(num_labels=1000)), image),
        "mobilenet-v3-small": lambda: (small.mobilenet_v3_small(), image),
        "efficientnet-lite0": lambda: (small.efficientnet_lite0(), image),
        "vit-tiny": lambda: (hf.ViTForImageClassification(hf.ViTConfig(**tiny, num_labels=1000)), image),
        "convnext-atto": lambda: (
            hf.ConvNextForImageClassification(
                hf.ConvNextConfig(hidden_sizes=[40, 80, 160, 320], depths=[2, 2, 6, 2], num_labels=1000)
            ),
            image,
        ),
        "swin-tiny": lambda: (hf.SwinForImageClassification(hf.SwinConfig(num_labels=1000)), image),
        "densenet121": lambda: (models.DenseNet((6, 12, 24, 16)), image),
        "llama-12-layers": lambda: (hf.LlamaForCausalLM(hf.LlamaConfig(**llama)), tokens),
    }
    model, inputs = builders[name]()
    return model.eval(), inputs


def clocked(job: Callable[[], Any], repeats: int) -> tuple[dict[str, float], Any]:
    """Processor seconds of calls of a job: the first, and the median; and what the last one gave."""
    times: list[float] = []
    result = None
    while len(times) < repeats and (not times or times[-1] < LONG):
        result = None
        begin = time.process_time()
        result = job()
        times.append(time.process_time() - begin)
    return {"seconds": statistics.median(times), "first": times[0]}, result


def theirs(model: Any, inputs: tuple[Any, ...], ratio: float = RATIO) -> None:
    """Torch-Pruning's whole job on a module, which it changes."""
    import torch_pruning as tp

    ends = [m for m in model.modules() if getattr(m, "out_features", 0) == 1000]  # it has to be told of outputs
    pruner = tp.pruner.BasePruner(
        model,
        inputs,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=ends,
        output_transform=lambda out: getattr(out, "logits", out),
    )
    pruner.step()


def measure(record: Record) -> None:
    """All sides of one model, one after the other."""
    import torch

    torch.set_num_threads(1)
    measured = _file_sides if record["model"] in FILES else _module_sides
    record.update(measured(record["model"], record["repeats"]))


def _module_sides(name: str, repeats: int) -> Record:
    import torch

    import graphprune as gp

    importable(CACHE, TORCH_PRUNING)
    warm = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4)).eval()
    gp.prune(warm, (torch.randn(2, 8),), target=TARGET, criterion="l2")
    theirs(copy.deepcopy(warm), (torch.randn(2, 8),))
    model, inputs = build(name)
    found: Record = {}
    for side, verify in (("plain", False), ("proven", True)):
        times, result = clocked(
            lambda verify=verify: gp.prune(model, inputs, target=TARGET, criterion="l2", verify=verify), repeats
        )
        found[side] = {**times, "kept": result.report.cost("params").fraction, "class": type(result.module).__name__}
    session = gp.Session.of(result)
    found["again"] = clocked(lambda: session.prune(target={"params": 0.8}, criterion="l2"), repeats)[0]
    try:
        times: list[float] = []
        while len(times) < repeats and (not times or times[-1] < LONG):
            fresh = copy.deepcopy(model)  # it is changed in place
            begin = time.process_time()
            theirs(fresh, inputs)
            times.append(time.process_time() - begin)
        n = sum(p.numel() for p in model.parameters())
        kept = sum(p.numel() for p in fresh.parameters()) / n
        found["theirs"] = {"seconds": statistics.median(times), "first": times[0], "kept": kept}
    except Exception as error:  # noqa: BLE001  (it raises what it likes)
        found["theirs"] = {"failed": f"{type(error).__name__}: {error}"[:200]}
    return found


def _file_sides(name: str, repeats: int) -> Record:
    import onnx

    import graphprune as gp
    from graphprune.hosts.torch.host import TorchHost

    sys.path.insert(0, str(fetch(CACHE, ONNXSIM)))
    import onnxsim

    found: Record = {}
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "model.onnx", Path(folder) / "small.onnx"
        model, inputs = build(name.removesuffix(".onnx"))
        TorchHost.trace(model, inputs).save_onnx(path)

        def ours(*, verify: bool) -> None:
            gp.prune(path, target=TARGET, criterion="l2", verify=verify).save_onnx(out)

        def simplified() -> None:
            onnx.save(onnxsim.apply_structured_pruning(onnx.load(path), sparsity=RATIO), out)

        found["plain"], _ = clocked(lambda: ours(verify=False), repeats)
        found["proven"], _ = clocked(lambda: ours(verify=True), repeats)
        try:
            found["theirs"], _ = clocked(simplified, repeats)
        except Exception as error:  # noqa: BLE001  (it raises what it likes)
            found["theirs"] = {"failed": f"{type(error).__name__}: {error}"[:200]}
    return found


def line(record: Record) -> str:
    """A record in short."""
    if "error" in record:
        return f"{record['model']}: {record['error']}"
    return ", ".join([record["model"], *(f"{side} {_seconds(record, side)}" for side in ("theirs", *SIDES))])


def _seconds(record: Record, side: str) -> str:
    found = record.get(side, {}).get("seconds")
    return "" if found is None else f"{found:.2f}" if found < 10 else f"{found:.0f}"


def _faster(record: Record, side: str) -> float | None:
    other, own = (record.get(each, {}).get("seconds") for each in ("theirs", side))
    return other / own if other and own else None


def table(records: list[Record]) -> str:
    """A table in Markdown, with means of the modules."""
    head = ["model", "theirs", *(cell for title in SIDES.values() for cell in (title, "speed"))][:-1]
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |"]
    good = [record for record in records if "error" not in record]
    for record in good:
        cells = [record["model"], _seconds(record, "theirs") or "fails"]
        for side in SIDES:
            ratio = _faster(record, side)
            cells += [_seconds(record, side), "" if ratio is None else f"{ratio:.2g}x"]
        lines.append(f"| {' | '.join(cells[:-1])} |")
    means = []
    for side, title in list(SIDES.items())[:2]:
        ratios = [r for record in good if record["model"] in MODELS and (r := _faster(record, side)) is not None]
        if ratios:
            mean, least = statistics.geometric_mean(ratios), min(ratios)
            means.append(f"{title} {mean:.2g} times their speed, at least {least:.2g} times")
    return "\n".join([*lines, "", f"Modules, in the geometric mean: {'; '.join(means)}."])


def write_docs(text: str) -> None:
    """Puts the table in its place in the docs."""
    path = ROOT / "docs" / "benchmarks.md"
    begin, end = MARKS
    found = path.read_text()
    new, n = re.subn(f"{begin}.*{end}", lambda _: f"{begin}\n{text}\n\n{end}", found, flags=re.DOTALL)
    if n != 1:
        raise SystemExit(f"'{path}' has no place for the table, which is between '{begin.strip()}' and '{end.strip()}'")
    path.write_text(new)


def main() -> int:
    """Runs the benchmark and prints a table; 1 if a case has failed."""
    parser = arguments(__doc__, seconds=1800)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--docs", action="store_true", help="write the table into docs/benchmarks.md")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes of the cases
    cases: list[Record] = [{"model": name, "repeats": options.repeats} for name in (*MODELS, *FILES)]
    records = run(Sweep(("model", "repeats"), measure, line, table), cases, options)
    if options.docs:
        write_docs(table(records))
    return int(any("error" in record for record in records))


if __name__ == "__main__":
    sys.exit(main())
