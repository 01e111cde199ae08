"""How much of transformers graphprune prunes: every architecture, small, pruned by half and proven.

Every architecture in transformers' mappings is built with a small config and random weights
(``tools/small_configs.py``, ``tools/small_inputs.py``), traced, analysed, pruned to half of every group at random and
by l2, and proven: the masked oracle for both, the permutation oracle, and the exported file in onnxruntime. Each runs
in a process of its own with limits of memory and time. Results go to a JSONL file as they come, and a run continues
where it was stopped; the table is made from that file.

    python tools/coverage.py [--only PATTERN] [--jobs N] [--results coverage.jsonl] [--table tools/coverage.md]
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import multiprocessing
import os
import random
import re
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np

from graphprune.errors import GraphpruneError, ModelError

STAGES = ("built", "exported", "analysed", "pruned", "proven")
EMBEDDINGS = ("aten.embedding.default",)
Measure = Callable[[str, dict[str, Any]], None]
"""Takes one architecture, by name, through all stages, and notes in the record what was reached."""


def line(error: BaseException) -> str:
    """An error in one line: that of PyTorch's exporter is the one that it wraps."""
    while type(error).__name__ in ("ConversionError", "TorchExportError") and error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\x1b\[\d*m", "", " ".join(str(error).split()))
    text = re.sub(r"'?/\S*/site-packages/", "", text)  # no paths of this machine in the table
    return f"{type(error).__name__}: {text}"[:240]


def build(model_type: str) -> tuple[Any, dict[str, Any]]:
    """A small model of a type, and arguments that it runs on; the first of its configs and classes that has both."""
    import torch
    from small_configs import PARAMETERS, candidates, small_configs
    from small_inputs import small_inputs

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


def measure(model_type: str, record: dict[str, Any], *, onnx: bool) -> None:
    """Takes one architecture through all stages; what was reached stands in ``record``."""
    import torch
    from small_inputs import with_masks

    torch.set_num_threads(1)
    model, inputs = build(model_type)
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


def measure_module(model: Any, inputs: Any, record: dict[str, Any], dynamic_shapes: Any = None, *, onnx: bool) -> None:
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
    record["seconds"] = round(time.process_time() - begin, 3)
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
                record["onnx_error"] = line(error)
    if failed:
        raise AssertionError(f"proof failed: {', '.join(failed)}")


def work(name: str, measured: Measure, pipe: Any, memory: int) -> None:
    """The process of one architecture."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    record: dict[str, Any] = {"type": name, "stage": ""}
    begin = time.perf_counter()
    try:
        measured(name, record)
    except BaseException as error:  # noqa: BLE001
        record["error"] = line(error)
        if not isinstance(error, GraphpruneError | LookupError | AssertionError):
            record["where"] = traceback.format_exc()[-1500:]
    record["wall"] = round(time.perf_counter() - begin, 1)
    pipe.send(record)
    os._exit(0)


def sweep(names: list[str], measured: Measure, options: argparse.Namespace) -> None:
    """Measures each in a process of its own, ``--jobs`` at a time, and appends what comes to the results."""
    context = multiprocessing.get_context("fork")
    running: dict[str, tuple[Any, Any, float]] = {}
    waiting = list(reversed(names))
    done = 0
    while waiting or running:
        while waiting and len(running) < options.jobs:
            name = waiting.pop()
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=work, args=(name, measured, theirs, options.memory << 30))
            process.start()
            theirs.close()
            running[name] = (process, ours, time.monotonic())
        for name, (process, pipe, begin) in list(running.items()):
            record = None
            if pipe.poll(0.05):
                try:
                    record = pipe.recv()
                except EOFError:
                    process.join()
                    record = {"type": name, "stage": "", "error": f"the process ended with status {process.exitcode}"}
            elif time.monotonic() - begin > options.seconds:
                process.kill()
                record = {"type": name, "stage": "", "error": f"took longer than {options.seconds} s"}
            if record is not None:
                process.join(5)
                del running[name]
                done += 1
                with options.results.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                reached = f"{record['stage']} {record.get('share', '')} {record.get('error', '')}"
                print(f"[{done}/{len(names)}] {name}: {reached}"[:200], flush=True)


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


def latest(path: Path) -> dict[str, dict[str, Any]]:
    """The last result of every architecture."""
    found: dict[str, dict[str, Any]] = {}
    if path.exists():
        for text in path.read_text().splitlines():
            record = json.loads(text)
            found[record["type"]] = record
    return dict(sorted(found.items()))


def arguments(description: str | None, results: str, seconds: int) -> argparse.ArgumentParser:
    """The options that all sweeps share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=["*"], metavar="PATTERN", help="model types, with * and ?")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=seconds, help="limit of time for one architecture")
    parser.add_argument("--memory", type=int, default=12, help="limit of address space for one, in GiB")
    parser.add_argument("--results", type=Path, default=Path(results))
    parser.add_argument("--table", type=Path, help="write the table of all results here")
    parser.add_argument("--again", action="store_true", help="run those that have a result too")
    parser.add_argument("--retry", action="store_true", help="run those that have an error too")
    return parser


def left(names: list[str], options: argparse.Namespace) -> list[str]:
    """The names that are asked for and have no result yet, in an order that is random and always the same."""
    known = latest(options.results)
    names = [name for name in names if any(fnmatchcase(name, p) for p in options.only)]
    if not options.again:
        names = [n for n in names if n not in known or (options.retry and "error" in known[n])]
    random.Random(0).shuffle(names)  # a sweep that is stopped has seen a fair sample
    return names


def main() -> int:
    """Sweeps and writes the table."""
    parser = arguments(__doc__, "coverage.jsonl", 300)
    parser.add_argument("--onnx", action=argparse.BooleanOptionalAction, default=True, help="export and run the file")
    options = parser.parse_args()
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    names = left(sorted(CONFIG_MAPPING_NAMES), options)
    if names:
        warm_up(onnx=options.onnx)
        sweep(names, partial(measure, onnx=options.onnx), options)
    if options.table:
        from coverage_table import table

        options.table.write_text(table(latest(options.results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
