"""Prunes half of every group of many ONNX files, proves the results, and writes a table.

The files: what both PyTorch exporters make of small models, with static and dynamic sizes; the same after
onnxruntime's offline optimisation; the same quantised by onnxruntime (QDQ, QOperator, dynamic, 4-bit weights); the
light models of the installed onnx (their weights, which they compute, filled with random numbers); and every file
below the folders that are given. Each runs in a process of its own, with limits of memory and time, and what has a
record is not run again. Not a test: it takes half an hour.

    python -m tools.coverage_sweep.onnx_files [--folder DIR ...] [--only PATTERN ...] [--json onnx_files.jsonl]
    python -m tools.coverage_sweep.onnx_files --retry --table tools/coverage_sweep/onnx_files.txt
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnx

from tools.bench.records import Record
from tools.bench.runner import Sweep, arguments, error_line, run
from tools.coverage_sweep.onnx_writers import export, filled, fused, optimised, quantised

EXPORTS = Path(tempfile.gettempdir()) / "graphprune-exports"
"""Where exported files stay: the same one is optimised and quantised in several ways."""
LOOKUPS = {"Gather": (0,), "EmbedLayerNormalization": (2, 3, 4)}
"""Operators that look rows up, and the positions of their tables."""
COLUMNS = "loaded", "analysed", "pruned", "proven", "share", "groups", "analysis s", "total s", "barriers"


RATE = np.array(16000, np.int64)
FITTING: dict[str, tuple] = {
    "silero_vad_16k_op15": ((1, 576), (2, 1, 128), RATE),
    "silero_vad_16k_sequence": (),
    "silero_vad_openvino": (),
    "silero_vad_half": ((1, 576), (2, 1, 128)),
    "silero_vad_op18_ifless": ((1, 576), RATE, (2, 1, 128)),
    "silero_vad": ((1, 576), (2, 1, 128), RATE),
}
"""Shapes (or values) of the inputs of real files, where random ones of any size do not fit; by part of the name."""

TORCH = [
    "mlp",
    "resnet",
    "mobilenet",
    "lstm",
    "gru",
    "encoder",
    "bert",
    "distilbert",
    "gpt2",
    "llama",
    "qwen2",
    "gemma",
    "phi3",
    "opt",
    "gpt-neox",
    "t5",
    "bart",
    "whisper",
    "vit",
    "convnext",
    "swin",
]
OPTIMISED = "mobilenet", "resnet", "lstm", "encoder", "bert", "gpt2", "llama", "t5", "whisper", "vit"
QUANTISED = "mlp", "resnet", "mobilenet", "lstm", "encoder", "bert", "llama", "vit"


HOW = "qdq", "qdq-channel", "qoperator", "qoperator-channel", "nbits-symmetric", "dynamic", "nbits"


def made(case: str, folders: Sequence[Path], work: Path):
    """The model of a case (a path, or a message in memory), and example inputs in order."""
    kind, _, rest = case.partition(":")
    if kind == "file":
        path = next(path for folder in folders for path in files(folder) if title(path) == rest)
        shapes = next((shapes for text, shapes in FITTING.items() if text in rest), ())
        rng = np.random.default_rng(0)
        return path, [one if isinstance(one, np.ndarray) else rng.standard_normal(one, np.float32) for one in shapes]
    if kind == "light":
        return filled(light() / f"{rest}.onnx"), []
    name, exporter, sizes, *stages = rest.split("/")
    path = EXPORTS / f"{name}-{exporter}-{sizes}.onnx"
    arrays = path.with_suffix(".npz")
    if not arrays.exists():
        EXPORTS.mkdir(exist_ok=True)
        np.savez(arrays.with_suffix(".new.npz"), *export(name, exporter, sizes, path))
        arrays.with_suffix(".new.npz").rename(arrays)
    example = list(np.load(arrays).values())
    for stage in stages:
        what, _, how = stage.partition("=")
        new = work / f"{what}.onnx"
        {"ort": optimised, "fuse": fused, "quant": quantised}[what](path, how, new)
        path = new
    return path, example


def prune_half(model, example: list[np.ndarray] | dict[str, np.ndarray], row: Record) -> None:
    """Fills a row of the table, as far as it gets.

    Args:
        model: A path or a message.
        example: Values of the inputs, in order or by name (exporters drop inputs that are not used); empty for any.
        row: What was reached.
    """
    from graphprune.analysis.groups import analyze_graph
    from graphprune.hosts.onnx.host import OnnxHost
    from graphprune.passes.slice_groups import slice_edits
    from graphprune.passes.verify import verify
    from graphprune.planning.blockers import list_blockers

    names = [value.name for value in OnnxHost.load(model).proto.graph.input] if example else []
    if not isinstance(example, dict):
        example = dict(zip(names, example, strict=True))
    given = {name: example[name] for name in names}
    host = OnnxHost.load(model, given=given).folded().without_dead_nodes()
    row["loaded"] = "yes"
    graph = host.graph()
    begin = time.perf_counter()
    analysis = analyze_graph(graph)
    row["analysis s"] = round(time.perf_counter() - begin, 3)
    row["analysed"] = "yes"
    tables = embeddings(graph)
    weights = {v.name: v.n_elements for v in graph.stored if v.kind == "parameter" and v.name not in tables}
    inside = {site.tensor for group in analysis.groups for site in group.sites}
    row["share"] = round(sum(n for name, n in weights.items() if name in inside) / max(1, sum(weights.values())), 3)
    row["groups"] = len(analysis.groups)
    barriers = Counter(node.reason for node in graph.nodes if node.rule is None)
    row["barriers"] = "; ".join(f"{n}x {reason}" for reason, n in barriers.most_common(3))
    row["blockers"] = [f"{blocker.share:.1%} {blocker.reason}" for blocker in list_blockers(analysis)[:4]]
    rng = np.random.default_rng(0)
    kept = {
        group.factor: np.sort(rng.choice(group.size, group.at_least(group.size // 2), replace=False))
        for group in analysis.groups
    }
    pruned = host.edited(slice_edits(analysis, kept)).without_dead_nodes()
    row["pruned"] = "yes"
    checks = verify(host, pruned, analysis, kept)
    row["checks"] = {check.name: [check.difference, check.note] for check in checks}
    row["proven"] = "yes" if all(check.passed for check in checks) else "NO"
    with tempfile.TemporaryDirectory() as folder:
        pruned.save_onnx(Path(folder) / "pruned.onnx")
        again = OnnxHost.load(Path(folder) / "pruned.onnx").run(host.example_inputs())
    row["saved"] = all(
        np.allclose(again[name], array, 1e-5, 1e-6 * float(np.abs(array).max(initial=0)), equal_nan=True)
        for name, array in pruned.run(host.example_inputs()).items()
    )


def embeddings(graph) -> set[str]:
    """Tables in which rows are looked up: the share of what can be pruned is one of the other parameters."""
    made = {result: node for node in graph.nodes for result in node.results}
    found = set()
    for node in graph.nodes:
        for position in LOOKUPS.get(node.op, ()):
            name = node.operands[position]
            if name in made and made[name].op == "DequantizeLinear":
                name = made[name].operands[0]
            if name in graph.values and graph.values[name].stored and len(graph.values[name].shape) == 2:
                found.add(name)
    return found


def measure(record: Record, *, folders: tuple[Path, ...]) -> None:
    """Fills in the record of one case."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        try:
            model = made(record["case"], folders, Path(work))
        except Exception as error:  # noqa: BLE001  (whatever the exporter or the quantiser raises)
            record["made"] = error_line(error)[:200]
        else:
            begin = time.perf_counter()
            try:
                prune_half(*model, record)
            except Exception:
                step = next((name for name in COLUMNS[:4] if name not in record), "saved")
                record[step] = "NO"
                raise
            finally:
                record["total s"] = round(time.perf_counter() - begin, 1)
    if record.get("proven") == "NO":
        raise AssertionError(f"proof failed: {record['checks']}")


def light() -> Path:
    """Where the installed onnx keeps its light models."""
    return Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def files(folder: Path) -> list[Path]:
    """The ONNX files below a folder."""
    return sorted(folder.rglob("*.onnx"))


def title(path: Path) -> str:
    """A file's name, for the table."""
    return path.stem


def cases(folders: Sequence[Path]) -> Iterator[str]:
    """All cases, by name."""
    yield from (f"light:{path.stem}" for path in files(light()))
    yield from (f"file:{title(path)}" for folder in folders for path in files(folder))
    for name in TORCH:
        for exporter in ("dynamo", "script"):
            for sizes in ("static", "dynamic"):
                yield f"torch:{name}/{exporter}/{sizes}"
    for name in OPTIMISED:
        yield f"torch:{name}/script/dynamic/ort=extended"
        yield f"torch:{name}/dynamo/static/ort=basic"
    for name, kind in (("bert", "bert"), ("gpt2", "gpt2"), ("llama", "gpt2"), ("vit", "vit"), ("t5", "bert")):
        for exporter in ("dynamo", "script"):
            yield f"torch:{name}/{exporter}/static/fuse={kind}"
    for name in QUANTISED:
        for how in HOW if name in ("resnet", "bert", "llama") else HOW[1::2]:
            yield f"torch:{name}/dynamo/static/quant={how}"
    for name in ("resnet", "mobilenet", "bert"):
        yield f"torch:{name}/dynamo/static/quant=qdq/ort=extended"
        yield f"torch:{name}/dynamo/static/quant=dynamic/ort=extended"


def table(records: list[Record]) -> str:
    """The records as text."""
    lines = [f"{'case':58}" + "".join(f"{name:>11}" for name in COLUMNS[:-1]) + "  barriers, or what went wrong"]
    for row in records:
        case = row["case"]
        if "made" in row:
            lines.append(f"{case:58}  not made: {row['made']}")
            continue
        cells = "".join(f"{row.get(name, '-')!s:>11}" for name in COLUMNS[:-1])
        lines.append(f"{case:58}{cells}  {row.get('error') or row.get('barriers', '')}".rstrip())
    made_rows = [row for row in records if "made" not in row]
    counts = {name: sum(row.get(name) == "yes" for row in made_rows) for name in COLUMNS[:4]}
    whole = sum(row.get("share", 0) >= 0.8 for row in made_rows)
    lines.append(
        f"\n{len(records)} cases, {len(made_rows)} made; "
        + ", ".join(f"{name} {n}" for name, n in counts.items())
        + f"; {whole} with at least 80 % of the parameters in groups,\nembeddings apart"
    )
    return "\n".join(lines) + "\n"


def line(record: Record) -> str:
    """A record in short."""
    said = record.get("made") or record.get("error") or record.get("barriers", "")
    return (
        f"{record['case']:58} {record.get('proven', '-'):4} {record.get('share', '-')} {record.get('total s', '-')} s "
        f"{said}"
    )


def main() -> int:
    """Runs what has no record yet."""
    parser = arguments(__doc__, seconds=300, memory=8)
    parser.set_defaults(json=Path("onnx_files.jsonl"))
    parser.add_argument("--folder", type=Path, action="append", default=[], help="a folder of real files")
    options = parser.parse_args()
    sweep = Sweep(("case",), partial(measure, folders=tuple(options.folder)), line, table, quiet=True)
    run(sweep, [{"case": case} for case in cases(options.folder)], options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
