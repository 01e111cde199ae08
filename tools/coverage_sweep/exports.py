"""What both PyTorch exporters write of transformers' architectures, pruned as ONNX files and proven.

Every second architecture that ``architectures.py`` sweeps, and what is asked for by name, is written by
``torch.onnx.export`` with ``dynamo=True`` and with ``dynamo=False``; each file is opened, half of every group is
pruned at random, and the result proven (masked and permutation oracle, and the saved file in onnxruntime). Each runs in
a process of its own with limits of memory and time; a run continues where it was stopped.

    python -m tools.coverage_sweep.exports [--only PATTERN ...] [--jobs N] [--json exports.jsonl]
    python -m tools.coverage_sweep.exports --only bert/dynamo --table tools/coverage_sweep/exports.md
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tools.bench.records import Record
from tools.bench.runner import Sweep, arguments, error_line, run
from tools.coverage_sweep import architectures
from tools.coverage_sweep.onnx_files import prune_half
from tools.coverage_sweep.summary import cell, rows_of

EXPORTERS = ("dynamo", "script")
ENOUGH = 0.8


def tensors(value: Any) -> list[Any]:
    """The tensors of a model's output, in order, whatever holds them."""
    import torch

    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [each for one in value.values() for each in tensors(one)]
    if isinstance(value, list | tuple):
        return [each for one in value for each in tensors(one)]
    return []


def export(model: Any, inputs: dict[str, Any], exporter: str, path: Path) -> dict[str, Any]:
    """Writes the file: as the model is, or else with what usually helps (attention in plain operators).

    Returns:
        The inputs of the file, by name.
    """
    import torch

    from graphprune.hosts.torch.trace import quiet

    class Positional(torch.nn.Module):
        """Takes its inputs in order and returns tensors, which is all that the older exporter can do."""

        def __init__(self, net: Any, names: list[str]) -> None:
            super().__init__()
            self.net, self.names = net, names

        def forward(self, *values: Any) -> Any:
            return tuple(tensors(self.net(**dict(zip(self.names, values, strict=True)))))

    if exporter == "script" and "input_ids" in inputs and "attention_mask" not in inputs:
        # without a mask transformers looks for packed sequences, with an operator that this exporter does not know
        inputs = {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}
    net = Positional(model, list(inputs)).eval()
    values = tuple(inputs.values())
    options: dict[str, Any] = (
        {"dynamo": True, "verbose": False, "external_data": False, "opset_version": 20}
        if exporter == "dynamo"
        else {"dynamo": False, "opset_version": 18}
    )
    options["input_names"] = list(inputs)
    try:
        with quiet(), torch.no_grad():
            torch.onnx.export(net, values, str(path), **options)
    except Exception:
        if not hasattr(model, "set_attn_implementation"):
            raise
        model.set_attn_implementation("eager")
        with quiet(), torch.no_grad():
            torch.onnx.export(net, values, str(path), **options)
    return inputs


def refusal(path: Path, feeds: dict[str, Any]) -> str:
    """What onnxruntime says against a file as it was written; empty if it runs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        session.run(None, {value.name: feeds[value.name] for value in session.get_inputs()})
    except Exception as error:  # noqa: BLE001  (its errors have no common base)
        return re.sub(r"Load model from \S+ failed: ?", "", error_line(error))
    return ""


def measure(record: Record) -> None:
    """Takes the file of one architecture and one exporter (``bert/dynamo``) through all stages."""
    import torch

    record["stage"] = ""
    model_type, exporter = record["type"].split("/")
    torch.set_num_threads(1)
    model, inputs = architectures.build(model_type)
    record.update(model=type(model).__name__, stage="built")
    for module in model.modules():
        if getattr(module, "config", None) is not None:
            for setting, value in (("use_cache", False), ("_experts_implementation", "batched_mm")):
                if getattr(module.config, setting, None):
                    setattr(module.config, setting, value)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        begin = time.perf_counter()
        inputs = export(model, inputs, exporter, path)
        record.update(stage="exported", export_seconds=round(time.perf_counter() - begin, 1))
        feeds = {name: value.numpy() for name, value in inputs.items()}
        row: dict[str, Any] = {"invalid": refusal(path, feeds)}
        try:
            prune_half(path, feeds, row)
        finally:
            record.update(row)
            for stage in architectures.STAGES[2:]:
                if row.get(stage) == "yes":
                    record["stage"] = stage
    if row["proven"] != "yes" or not row["saved"]:
        raise AssertionError(f"proof failed: {row['checks']}" if row["saved"] else "the saved file computes otherwise")


def table(records: list[Record]) -> str:
    """Markdown: a summary, the files that were exported, and what was not, with the reason."""
    rows = sorted((r for r in records if r.get("stage")), key=lambda record: record["type"])
    lines = [
        "# Coverage of exported ONNX files",
        "",
        "Written by `python -m tools.coverage_sweep.exports --table tools/coverage_sweep/exports.md`: every second",
        "architecture of transformers, small configs, random weights, written by both of PyTorch's ONNX exporters.",
        "Half of every group is pruned at random; the masked and the permutation oracle run in onnxruntime, and the",
        "saved file again. The share is one of the parameters that are no tables of embeddings.",
        "",
    ]
    for exporter in EXPORTERS:
        those = [r for r in rows if r["type"].endswith(f"/{exporter}")]
        made = [r for r in those if r["stage"] != "built"]
        valid = [r for r in made if not r.get("invalid")]
        proven = [r for r in valid if r["stage"] == "proven"]
        enough = sum(r.get("share", 0) >= ENOUGH for r in valid)
        slow = sum(r.get("analysis s", 0) > 1 for r in valid)
        lines.append(
            f"- {exporter}: {len(those)} architectures, {len(made)} exported, {len(valid)} of these run in onnxruntime "
            f"as they were written; {len(proven)} of them are pruned to half and proven, {enough} have {ENOUGH:.0%} of "
            f"their parameters in groups, {slow} took over 1 s to analyse;"
        )
    lines[-1] = lines[-1][:-1] + "."
    exported = [r for r in rows if r["stage"] != "built" and not r.get("invalid")]
    lines += ["", "## Exported", ""]
    lines += rows_of(
        ("file", "class", "reached", "share", "groups", "largest difference", "analysis s", "barriers"),
        (
            (
                r["type"], r["model"], r["stage"], f"{r['share']:.1%}" if "share" in r else "", r.get("groups", ""),
                f"{max(c[0] for c in r['checks'].values()):.1e}" if r.get("checks") else "",
                f"{r['analysis s']:.2f}" if "analysis s" in r else "", cell(r.get("barriers", ""), 100),
            )
            for r in exported
        ),
    )  # fmt: skip
    for title, found, key in (
        ("Failed", [r for r in exported if r["stage"] != "proven"], "error"),
        ("Exported, but not valid: onnxruntime's reason", [r for r in rows if r.get("invalid")], "invalid"),
        ("Not exported: the exporter's reason", [r for r in rows if r["stage"] == "built"], "error"),
    ):
        if found:
            lines += ["", f"## {title}", ""]
            lines += rows_of(("file", "reason"), ((r["type"], cell(r.get(key, ""), 200)) for r in found))
    return "\n".join(lines) + "\n"


def main() -> int:
    """Sweeps and writes the table."""
    parser = arguments(__doc__, seconds=120, memory=12)
    parser.set_defaults(json=Path("exports.jsonl"))
    options = parser.parse_args()
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    types = sorted(CONFIG_MAPPING_NAMES)
    types = types[::2] if options.only == ["*"] else types
    sweep = Sweep(
        ("type",), measure, architectures.line, table,
        fork=True, prepare=partial(architectures.warm_up, onnx=True), quiet=True, shuffled=True,
    )  # fmt: skip
    run(sweep, [{"type": f"{each}/{exporter}"} for each in types for exporter in EXPORTERS], options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
