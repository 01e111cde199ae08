"""Compile time and peak memory against Torch-Pruning 1.6.1, same job on both sides.

The job: find the groups, score them by the l2 norm of the whole group, choose half of every group (widths in multiples
of 8), and slice. Tracing (torch.export here, the autograd walk there) and ONNX export are measured beside it. Each
side of a model has a process of its own, on all cores. There the job is done over and over, each time on a fresh copy
of the model or of what was traced; the first time warms up (a virtual machine may have to find the memory first, which
takes longer than the job), then the median of the wall-clock times counts. Peak memory is that of the first time. Our
job ends when the sliced weights and the new shape constants exist, theirs when the module is sliced; making a graph
module of ours is clocked apart, and the table gives the ratio with it as well.

    python -m tools.bench.compile [--repeats 3] [--only NAME ...] [--json compile.jsonl]
    python -m tools.bench.compile --scaling [--json scaling.jsonl]

``--repeats`` is the number of processes, whose median counts. ``--scaling`` times the analysis of graphs of 10 to
10,000 operators instead, without tracing. Comparing needs ``pip install torch-pruning==1.6.1`` (the extra ``bench``);
ratios within one run are what to quote.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.bench.records import Record
from tools.bench.runner import Sweep, arguments, run

if TYPE_CHECKING:
    from graphprune.hosts.torch.host import TorchHost

THREADS = len(os.sched_getaffinity(0))

SIDES = ("graphprune", "torch-pruning")
OUTPUTS = (2, 10, 19, 144, 1000, 8000)
"""Widths of output layers, which Torch-Pruning has to be told to leave alone."""
LEAST, MOST_RUNS = 2.0, 15
"""Seconds and runs for which a job is repeated, once it has been run three times."""


MODELS = (
    "resnet50", "mobilenet-v2", "convnext-tiny", "googlenet", "densenet121", "densenet201", "unet++", "yolo-like",
    "vit-small", "swin-tiny", "bert-base", "llama-8-layers",
)  # fmt: skip


def build(name: str):
    """A model with random weights, its inputs, and how an output becomes one tensor."""
    import torch
    import transformers as hf

    from tools.bench import models as own

    torch.manual_seed(0)
    image = {"pixel_values": torch.randn(1, 3, 224, 224)}
    tokens = {"input_ids": torch.randint(0, 1000, (1, 64))}
    picture = (torch.randn(1, 3, 224, 224),)
    vit = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
    llama = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 8,
             "intermediate_size": 1376, "vocab_size": 8000, "use_cache": False}  # fmt: skip
    builders = {
        "resnet50": lambda: (hf.ResNetForImageClassification(hf.ResNetConfig()), image),
        "mobilenet-v2": lambda: (hf.MobileNetV2ForImageClassification(hf.MobileNetV2Config()), image),
        "convnext-tiny": lambda: (hf.ConvNextForImageClassification(hf.ConvNextConfig()), image),
        "googlenet": lambda: (own.GoogLeNet(), picture),
        "densenet121": lambda: (own.DenseNet((6, 12, 24, 16)), picture),
        "densenet201": lambda: (own.DenseNet((6, 12, 48, 32)), picture),
        "unet++": lambda: (own.UNetPlusPlus(), picture),
        "yolo-like": lambda: (own.Detector(), picture),
        "vit-small": lambda: (hf.ViTForImageClassification(hf.ViTConfig(**vit)), image),
        "swin-tiny": lambda: (hf.SwinForImageClassification(hf.SwinConfig()), image),
        "bert-base": lambda: (hf.BertForSequenceClassification(hf.BertConfig()), tokens),
        "llama-8-layers": lambda: (hf.LlamaForCausalLM(hf.LlamaConfig(**llama)), tokens),
    }
    model, inputs = builders[name]()
    return model.eval(), inputs


def rss() -> float:
    """Peak resident memory of this process, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


Times = dict[str, float]


def repeated(job: Callable[[Any], Times], prepare: Callable[[], Any]) -> Times:
    """Medians over runs of a job, each on a model of its own; the first run warms up, and its peak memory counts."""
    model = prepare()
    before = rss()
    job(model)
    peak = rss() - before
    runs: list[Times] = []
    start = time.perf_counter()
    while len(runs) < MOST_RUNS and (len(runs) < 3 or time.perf_counter() - start < LEAST):
        del model
        model = prepare()
        gc.collect()
        runs.append(job(model))
    return {**{key: statistics.median(each[key] for each in runs) for key in runs[0]}, "memory_mb": peak}


def ours(model, inputs) -> Times:
    """Times of graphprune, seconds."""
    from graphprune.collector import frozen_garbage_collection
    from graphprune.hosts.torch.host import TorchHost

    start = time.perf_counter()
    host = TorchHost.trace(model, inputs)
    traced = time.perf_counter() - start
    gc.collect()
    with frozen_garbage_collection():  # as in graphprune.prune
        times = repeated(lambda host: our_job(host)[0], lambda: dataclasses.replace(host))
        pruned = our_job(dataclasses.replace(host))[1]
        start = time.perf_counter()
        left = sum(t.numel() for t in pruned.module.parameters())
        module = time.perf_counter() - start
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        pruned.save_onnx(Path(folder) / "model.onnx")
    exported = time.perf_counter() - start
    n = sum(p.numel() for p in model.parameters())
    return {**times, "trace": traced, "module": module, "export": exported, "parameters_kept": left / n}


def our_job(host: TorchHost) -> tuple[Times, TorchHost]:
    """Groups, scores, selection, sliced weights: times and the pruned model."""
    import numpy as np

    from graphprune.analysis.groups import analyze_graph
    from graphprune.importance import Evidence, criterion
    from graphprune.importance.criteria import normalized
    from graphprune.passes.allocate import keep_counts
    from graphprune.passes.slice_groups import slice_edits
    from graphprune.planning.allocation import Limits, levels_of

    t0 = time.perf_counter()
    host = host.folded()
    analysis = analyze_graph(host.graph())
    t1 = time.perf_counter()
    scores = normalized(criterion("l2").score(Evidence(analysis, host.read)))
    limits = Limits(align=8)
    groups = [group for group in analysis.groups if group.exact or group.kind == "width"]
    levels = {group: np.array(levels_of(group, limits)) for group in groups}
    counts = {group.name: int(n[np.abs(n - group.size / 2).argmin()]) for group, n in levels.items()}
    kept = keep_counts(groups, scores, counts)
    t2 = time.perf_counter()
    pruned = host.edited(slice_edits(analysis, kept)).without_dead_nodes()
    t3 = time.perf_counter()
    return {"groups": t1 - t0, "plan": t2 - t1, "slice": t3 - t2, "job": t3 - t0}, pruned


def theirs(model, inputs) -> Times:
    """Times of Torch-Pruning, seconds; its tracing is inside its dependency graph and is clocked there."""
    import torch_pruning as tp

    traced = [0.0]
    original = tp.DependencyGraph._trace

    def clocked(self, *args, **kwargs):
        begin = time.perf_counter()
        result = original(self, *args, **kwargs)
        traced[0] = time.perf_counter() - begin
        return result

    tp.DependencyGraph._trace = clocked
    n = sum(p.numel() for p in model.parameters())

    def job(pruned) -> Times:
        ends = [m for m in pruned.modules() if getattr(m, "out_features", getattr(m, "out_channels", 0)) in OUTPUTS]
        t0 = time.perf_counter()
        pruner = tp.pruner.BasePruner(
            pruned,
            inputs,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=0.5,
            round_to=8,
            ignored_layers=ends,
            output_transform=lambda out: getattr(out, "logits", out),
        )
        t1 = time.perf_counter()
        pruner.step()
        t2 = time.perf_counter()
        return {
            "trace": traced[0], "groups": t1 - t0 - traced[0], "plan+slice": t2 - t1, "job": t2 - t0 - traced[0],
            "parameters_kept": sum(p.numel() for p in pruned.parameters()) / n,
        }  # fmt: skip

    return repeated(job, lambda: copy.deepcopy(model))


def measure(record: Record) -> None:
    """One measurement of one side."""
    import torch

    torch.set_num_threads(THREADS)
    model, inputs = build(record["model"])
    record.update((ours if record["side"] == "graphprune" else theirs)(model, inputs))


def line(record: Record) -> str:
    """A record in short."""
    said = record.get("error") or f"{record['job'] * 1e3:.1f} ms"
    return f"{record['model']}, {record['side']}, run {record['run']}: {said}"


def medians(records: list[Record]) -> Record:
    """What counts of the runs of one side: their medians, or the first error."""
    failed = next((record for record in records if "error" in record), None)
    if failed is not None or not records:
        return {"error": failed["error"] if failed is not None else "was not run"}
    keys = [key for key, value in records[0].items() if isinstance(value, float)]
    return {key: statistics.median(record[key] for record in records) for key in keys}


def table(records: list[Record]) -> str:
    """Both sides of each model, and means."""
    lines = [
        f"{'':16} {'job, ms':>17} {'':>8} {'module':>8} {'':>8} {'trace, ms':>17} {'export':>8} {'memory, MB':>13}",
        f"{'':16} {'ours':>8} {'theirs':>8} {'faster':>8} {'ms':>8} {'with it':>8} {'ours':>8} {'theirs':>8}"
        f" {'ms':>8} {'ours/theirs':>13}   parameters kept",
    ]
    both = []
    for name, found in groupby(records, lambda record: record["model"]):
        rows = list(found)
        a, b = (medians([row for row in rows if row["side"] == side]) for side in SIDES)
        if "error" in a or "error" in b:
            lines.append(f"{name:16} ours: {a.get('error', 'ok')[:120]}; theirs: {b.get('error', 'ok')[:120]}")
            continue
        both.append((a, b))
        lines.append(
            f"{name:16} {a['job'] * 1e3:8.1f} {b['job'] * 1e3:8.1f} {b['job'] / a['job']:7.1f}x "
            f"{a['module'] * 1e3:8.1f} {b['job'] / (a['job'] + a['module']):7.1f}x "
            f"{a['trace'] * 1e3:8.0f} {b['trace'] * 1e3:8.0f} {a['export'] * 1e3:8.0f} "
            f"{a['memory_mb']:6.0f}/{b['memory_mb']:<6.0f}   "
            f"{a['parameters_kept']:.2f}/{b['parameters_kept']:.2f}"
        )
    if both:
        job, module, whole = (
            statistics.geometric_mean(ratios)
            for ratios in (
                [b["job"] / a["job"] for a, b in both],
                [b["job"] / (a["job"] + a["module"]) for a, b in both],
                [(b["job"] + b["trace"]) / a["job"] for a, b in both],
            )
        )
        lines.append(
            f"geometric mean: {job:.1f}x without tracing on either side, {module:.1f}x with our graph module made, "
            f"{whole:.1f}x where their tracing counts as finding groups; "
            f"smallest {min(b['job'] / a['job'] for a, b in both):.1f}x"
        )
    return "\n".join(lines)


def measure_scaling(record: Record) -> None:
    """Seconds of processor time from a traced graph to its groups: the least of some runs."""
    from graphprune.analysis.groups import analyze_graph
    from graphprune.collector import frozen_garbage_collection
    from tools.bench import chains

    times = []
    host, n = chains.chain(record["blocks"], record["wanted"])
    gc.collect()
    for _ in range(max(record["repeats"], 3)):
        with frozen_garbage_collection():
            t0 = time.process_time()
            fresh = dataclasses.replace(host).folded()
            graph = fresh.graph()
            t1 = time.process_time()
            groups = len(analyze_graph(graph).groups)
            times.append((t1 - t0, time.process_time() - t1))
    a, b = (min(column) for column in zip(*times, strict=True))
    record.update(operators=n, graph=a, analysis=b, groups=groups)


def scaling_line(record: Record) -> str:
    """A record in short, which is a row of the table."""
    if "error" in record:
        return f"{record['blocks']:12} {record['wanted']:10} {record['error']}"
    n, a, b = record["operators"], record["graph"], record["analysis"]
    return (
        f"{record['blocks']:12} {n:10} {a * 1e3:10.2f} {b * 1e3:10.2f} {(a + b) / n * 1e6:10.1f} {record['groups']:8}"
    )


def scaling_table(records: list[Record]) -> str:
    """Ever longer graphs."""
    head = f"{'blocks':12} {'operators':>10} {'graph, ms':>10} {'analysis':>10} {'us each':>10} {'groups':>8}"
    return "\n".join([head, *map(scaling_line, records)])


def main() -> int:
    """Runs the benchmark and prints a table; 1 if a case has failed."""
    parser = arguments(__doc__, seconds=900)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scaling", action="store_true", help="time the analysis of ever longer graphs")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(THREADS)  # of the processes of the cases
    if options.scaling:
        cases: list[Record] = [
            {"blocks": kind, "wanted": wanted, "repeats": options.repeats}
            for kind in ("residual", "transformer")
            for wanted in (10, 100, 1_000, 10_000)
        ]
        sweep = Sweep(("blocks", "wanted", "repeats"), measure_scaling, scaling_line, scaling_table)
    else:
        turns = range(options.repeats)
        cases = [{"model": name, "side": side, "run": turn} for name in MODELS for side in SIDES for turn in turns]
        sweep = Sweep(("model", "side", "run"), measure, line, table)
    return int(any("error" in record for record in run(sweep, cases, options)))


if __name__ == "__main__":
    sys.exit(main())
