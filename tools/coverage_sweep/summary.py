"""The table of a coverage sweep (``architectures.py``) as text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tools.bench.records import Record

ENOUGH, FAST = 0.8, 1.0


def table(found: list[Record]) -> str:
    """Markdown: a summary, the architectures that were analysed, and those that were not, with the reason."""
    records = sorted(({"stage": "", **record} for record in found), key=lambda record: record["type"])
    toys = [r for r in records if r.get("toy")]
    rows = [r for r in records if not r.get("toy")]
    parts = [r for r in rows if "part of another model" in r.get("error", "")]
    whole = [r for r in rows if r not in parts]
    unbuilt = [r for r in whole if not r["stage"]]
    untraced = [r for r in whole if r["stage"] == "built"]
    traced = [r for r in whole if r["stage"] not in ("", "built")]
    analysed = [r for r in traced if "share" in r]
    proven = [r for r in traced if r["stage"] == "proven"]
    enough = [r for r in analysed if r["share"] >= ENOUGH]
    slow = [r for r in analysed if r["analysis_seconds"] > FAST]
    exported = [r for r in proven if "onnx" in r or "onnx_error" in r]
    lines = [
        "# Coverage of transformers",
        "",
        "Written by `python -m tools.coverage_sweep.architectures --table tools/coverage_sweep/architectures.md`;",
        "small configs, random weights.",
        "",
        f"- {len(whole)} architectures tried ({len(parts)} more model types are parts of others, without a class);",
        f"- {len(unbuilt)} were not built by the tool (a config or inputs that it cannot guess, a missing package);",
        f"- {len(untraced)} cannot be traced by torch.export, {len(traced)} can;",
        f"- {len(proven)} of {len(traced)} are pruned to half at random and by l2, and proven;",
        f"- {len(enough)} of {len(analysed)} have {ENOUGH:.0%} of their non-embedding parameters, or more, in groups;",
        f"- {len(slow)} spend more than {FAST:g} s of processor time in analysis.",
    ]
    if exported:
        good = sum("onnx_error" not in r for r in exported)
        lines.append(f"- {good} of {len(exported)} exported files compute the same in onnxruntime.")
    if pinned := [r for r in traced if r.get("pinned")]:
        lines.append(
            f"- {len(pinned)} were traced with sizes or branches as in the example, since they follow from the values "
            "of inputs of whole numbers (grids of patches, lengths, masks)."
        )
    if toys:
        good = sum(r["stage"] == "proven" for r in toys)
        lines.append(
            f"- {good} of {len(toys)} toy nets of the tests are proven (`python -m tools.coverage_sweep.toys`)."
        )
    lines += [
        "",
        "Real ONNX files and the files of `onnx/backend/test/data/light`: `onnx_files.txt`. Files that both",
    ]
    lines += ["of PyTorch's exporters write of these architectures: `exports.md`."]
    lines += ["", "## Analysed", "", *_analysed(analysed)]
    failed = [r for r in traced if r["stage"] != "proven"]
    if toys:
        lines += ["", "## Toy nets", "", *_analysed([r for r in toys if "share" in r])]
        failed += [r for r in toys if r["stage"] != "proven"]
    for title, found in (("Failed", failed), ("Not traceable", untraced), ("Not built", unbuilt)):
        if found:
            lines += ["", f"## {title}", ""]
            lines += rows_of(("type", "reason"), ((r["type"], cell(r.get("error", ""), 200)) for r in found))
    return "\n".join(lines) + "\n"


def _analysed(records: Iterable[Record]) -> list[str]:
    return rows_of(
        ("type", "class", "reached", "share", "groups", "largest difference", "s", "what keeps most whole"),
        (
            (
                r["type"], r["model"], r["stage"], f"{r['share']:.1%}", r["groups"], _difference(r),
                f"{r['analysis_seconds']:.2f}",
                _reason(r),
            )
            for r in records
        ),
    )  # fmt: skip


def _difference(record: Record) -> str:
    proof = record.get("proof")
    return f"{max(proof.values()):.1e}" if proof else ""


def _reason(record: Record) -> str:
    if record["share"] >= ENOUGH:
        return cell("; ".join(record["barriers"]), 80)
    return cell("; ".join(record["blockers"][:2]), 120)


def cell(text: str, most: int) -> str:
    text = " ".join(text.replace("|", "/").split())
    return text if len(text) <= most else text[: most - 3] + "..."


def rows_of(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    lines.extend(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows)
    return lines
