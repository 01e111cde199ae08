"""How much of transformers graphprune prunes: every architecture, small, pruned by half and proven.

Every architecture in transformers' mappings is built with a small config and random weights (``small_configs.py``,
``small_inputs.py``), traced, analysed, pruned to half of every group at random and by l2, and proven: the masked oracle
for both, the permutation oracle, and the exported file in onnxruntime. Each runs in a process of its own with limits of
memory and time. Records are kept as they come, and a run continues where it was stopped; the table is made from them.

    python -m tools.coverage_sweep.architectures [--only PATTERN ...] [--jobs N] [--json coverage.jsonl]
    python -m tools.coverage_sweep.architectures --only bert --table tools/coverage_sweep/architectures.md
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import time
from argparse import BooleanOptionalAction
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from graphprune.errors import ModelError
from tools.bench.records import Record
from tools.bench.runner import Sweep, arguments, error_line, run
from tools.coverage_sweep.summary import table

RECORDS = Path("coverage.jsonl")
STAGES = ("built", "exported", "analysed", "pruned", "proven")
EMBEDDINGS = ("aten.embedding.default",)


def build(model_type: str) -> tuple[Any, dict[str, Any]]:
    """A small model of a type, and arguments that it runs on; the first of its configs and classes that has both."""
    import torch

    from tools.coverage_sweep.small_configs import PARAMETERS, candidates, small_configs
    from tools.coverage_sweep.small_inputs import small_inputs

    classes = candidates(model_type)
    if not classes:
        raise LookupError("part of another model: transformers maps no class to it")
    first: Exception | None = None
    for config in small_configs(model_type):
        for each in classes[:4]:
            try:
                torch.manual_seed(0)
                with torch.device("meta"):
                    size = sum(p.numel() for p in each(config).parameters())
                if size > PARAMETERS:
                    raise MemoryError(f"{size} parameters")
                torch.manual_seed(0)
                model = each(config).float().eval()
                return model, small_inputs(model, model.config)
            except ImportError:
                raise
            except Exception as error:  # noqa: BLE001  (a config that is too small for this class)
                first = first or error
    assert first is not None
    raise first


def measure(record: Record, *, onnx: bool) -> None:
    """Takes one architecture through all stages; what was reached stands in ``record``."""
    import torch

    from tools.coverage_sweep.small_inputs import with_masks

    torch.set_num_threads(1)
    record["stage"] = ""
    model, inputs = build(record["type"])
    try:
        measure_module(model, inputs, record, onnx=onnx)
    except ModelError:
        masked = with_masks(model, inputs)
        if record["stage"] != "built" or masked.keys() == inputs.keys():
            raise
        inputs = masked
        measure_module(model, inputs, record, onnx=onnx)
    if record["constant"]:
        redraw(model)
        measure_module(model, inputs, record, onnx=onnx)


def redraw(model: Any) -> None:
    """Draws larger weights: with those that some models start from, outputs hardly vary, which proves little."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                spread = (2 * parameter.shape[0] / max(1, parameter.numel())) ** 0.5
                parameter.normal_(0, max(0.05, spread), generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1, generator=generator)
            else:
                parameter.uniform_(0.5, 1.5, generator=generator)


def measure_module(model: Any, inputs: Any, record: Record, dynamic_shapes: Any = None, *, onnx: bool) -> None:
    """Takes a module through all stages; what was reached stands in ``record``."""
    from graphprune.analysis.groups import analyze_graph
    from graphprune.collector import frozen_garbage_collection
    from graphprune.hosts.parity import file_parity as parity
    from graphprune.hosts.torch.host import TorchHost
    from graphprune.importance import Evidence, criterion
    from graphprune.passes.slice_groups import slice_edits
    from graphprune.passes.verify import verify
    from graphprune.planning.blockers import list_blockers
    from graphprune.proof.findings import Pair
    from graphprune.proof.masks import masks
    from graphprune.proof.oracles import masked, precision_of
    from graphprune.proof.watch import watched

    record.update(model=type(model).__name__, stage="built", params=sum(p.numel() for p in model.parameters()))
    begin = time.perf_counter()
    host = TorchHost.trace(model, inputs, dynamic_shapes)
    record.update(stage="exported", trace_seconds=round(time.perf_counter() - begin, 2), pinned=list(host.pinned))
    host = host.folded()
    begin = time.process_time()
    with frozen_garbage_collection():
        graph = host.graph()
        analysis = analyze_graph(graph)
    record["analysis_seconds"] = round(time.process_time() - begin, 3)
    tables = {n.operands[0] for n in graph.nodes if n.op in EMBEDDINGS}
    held = {site.tensor for group in analysis.groups for site in group.sites}
    weights = {v.name: v.n_elements for v in graph.stored if v.kind == "parameter" and v.name not in tables}
    record.update(
        stage="analysed",
        nodes=len(graph.nodes),
        groups=len(analysis.groups),
        kinds=dict(Counter(group.kind for group in analysis.groups)),
        share=round(sum(n for name, n in weights.items() if name in held) / max(1, sum(weights.values())), 4),
        blockers=[f"{100 * b.share:.0f} % {b.reason.text}" for b in list_blockers(analysis)[:4] if b.share > 0.005],
        barriers=dict(Counter(f"{n.op}: {n.reason}" for n in graph.nodes if n.rule is None).most_common(8)),
    )
    rng = np.random.default_rng(0)
    half = {g.factor: np.sort(rng.choice(g.size, g.at_least(g.size // 2), replace=False)) for g in analysis.groups}
    pruned = host.edited(slice_edits(analysis, half))
    feeds = host.example_inputs()
    pruned.run(feeds)
    scores = criterion("l2").score(Evidence(analysis, host.read, 0))
    order = {g: np.argsort(-scores[g.name], kind="stable") for g in analysis.groups}
    best = {g.factor: np.sort(found[: g.at_least(g.size // 2)]) for g, found in order.items()}
    smaller = host.edited(slice_edits(analysis, best))
    smaller.run(feeds)
    record["stage"] = "pruned"
    checks = {check.name: check for check in verify(host, pruned, analysis, half)}
    pair = Pair(host, smaller, masks(analysis, best), watched(analysis, best, smaller.graph()))
    checks["masked l2"], _ = masked(pair, feeds, precision_of(analysis), note="")
    record["constant"] = any(not check.informative for check in checks.values())
    record["proof"] = {name: float(f"{check.difference:.2g}") for name, check in checks.items()}
    failed = [name for name, check in checks.items() if check.difference > check.tolerance]
    if not failed:
        record["stage"] = "proven"
    if onnx:
        with tempfile.TemporaryDirectory() as folder:
            try:
                path = Path(folder) / "pruned.onnx"
                pruned.save_onnx(path)
                check = parity(pruned, path, feeds)
                record["onnx"] = float(f"{check.difference:.2g}")
                if not check.passed:
                    record["onnx_error"] = f"differs by {check.difference:.2g}"
                    host.save_onnx(path)
                    whole = parity(host, path, feeds)
                    if not whole.passed:
                        record["onnx_error"] = (
                            f"what the exporter writes of the whole model differs by {whole.difference:.2g}"
                        )
            except Exception as error:  # noqa: BLE001
                record["onnx_error"] = error_line(error)
    if failed:
        raise AssertionError(f"proof failed: {', '.join(failed)}")


def warm_up(*, onnx: bool) -> None:
    """Imports once what every process needs: it takes longer than most architectures."""
    import torch
    from transformers.models.bert import modeling_bert  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401
    from transformers.models.vit import modeling_vit  # noqa: F401

    import graphprune.api  # noqa: F401
    from graphprune.hosts.torch.host import TorchHost

    torch.set_num_threads(1)
    host = TorchHost.trace(torch.nn.Linear(3, 3), (torch.ones(2, 3),)).folded()
    if onnx:
        with tempfile.TemporaryDirectory() as folder:
            host.save_onnx(Path(folder) / "one.onnx")
    gc.collect()
    gc.freeze()  # the processes that fork off share this heap and need not walk it


def line(record: Record) -> str:
    """A record in short."""
    return f"{record['type']}: {record.get('stage', '')} {record.get('share', '')} {record.get('error', '')}"[:200]


def main() -> int:
    """Sweeps and writes the table."""
    parser = arguments(__doc__, seconds=300, memory=12)
    parser.set_defaults(json=RECORDS)
    parser.add_argument("--onnx", action=BooleanOptionalAction, default=True, help="export and run the file")
    options = parser.parse_args()
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    sweep = Sweep(
        ("type",), partial(measure, onnx=options.onnx), line, table,
        fork=True, prepare=partial(warm_up, onnx=options.onnx), quiet=True, shuffled=True,
    )  # fmt: skip
    run(sweep, [{"type": name} for name in sorted(CONFIG_MAPPING_NAMES)], options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
