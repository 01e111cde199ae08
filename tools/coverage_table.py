"""The table of a coverage sweep (``tools/coverage.py``) as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

ENOUGH, FAST = 0.8, 1.0
Record = Mapping[str, Any]


def table(records: Mapping[str, Record]) -> str:
    """Markdown: a summary, the architectures that were analysed, and those that were not, with the reason."""
    rows = list(records.values())
    parts = [r for r in rows if "part of another model" in r.get("error", "")]
    whole = [r for r in rows if r not in parts]
    unbuilt = [r for r in whole if not r["stage"]]
    untraced = [r for r in whole if r["stage"] == "built"]
    traced = [r for r in whole if r["stage"] not in ("", "built")]
    analysed = [r for r in traced if "share" in r]
    proven = [r for r in traced if r["stage"] == "proven"]
    enough = [r for r in analysed if r["share"] >= ENOUGH]
    slow = [r for r in analysed if r["seconds"] > FAST]
    exported = [r for r in proven if "onnx" in r or "onnx_error" in r]
    lines = [
        "# Coverage of transformers",
        "",
        "Written by `python tools/coverage.py --table tools/coverage.md`; small configs, random weights.",
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
    lines += ["", "## Analysed", ""]
    lines += _rows(
        ("type", "class", "reached", "share", "groups", "largest difference", "s", "what keeps most whole"),
        (
            (
                r["type"], r["model"], r["stage"], f"{r['share']:.1%}", r["groups"], _difference(r),
                f"{r['seconds']:.2f}",
                _reason(r),
            )
            for r in analysed
        ),
    )  # fmt: skip
    failed = [r for r in traced if r["stage"] != "proven"]
    for title, found in (("Failed", failed), ("Not traceable", untraced), ("Not built", unbuilt)):
        if found:
            lines += ["", f"## {title}", ""]
            lines += _rows(("type", "reason"), ((r["type"], _cell(r.get("error", ""), 200)) for r in found))
    return "\n".join(lines) + "\n"


def _difference(record: Record) -> str:
    proof = record.get("proof")
    return f"{max(proof.values()):.1e}" if proof else ""


def _reason(record: Record) -> str:
    if record["share"] >= ENOUGH:
        return _cell("; ".join(record["barriers"]), 80)
    return _cell("; ".join(record["blockers"][:2]), 120)


def _cell(text: str, most: int) -> str:
    text = " ".join(text.replace("|", "/").split())
    return text if len(text) <= most else text[: most - 3] + "..."


def _rows(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    lines.extend(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows)
    return lines
