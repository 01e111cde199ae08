"""A short model card: what was pruned, what is left, and what was proven, in the form that model hubs show."""

from __future__ import annotations

from graphprune.report.data import Report
from graphprune.version import __version__

_METRICS = {"macs": "multiply-accumulates", "params": "parameters", "bytes": "bytes", "latency": "milliseconds"}


def model_card(report: Report, kind: str, auto: str = "") -> str:
    """The card as Markdown, with the head of metadata that hubs read.

    Args:
        report: The report of the compilation.
        kind: The name of the model's class.
        auto: The name of the automatic class that reads it with the code beside it; empty where there is none.
    """
    call = f'{auto}.from_pretrained("FOLDER", trust_remote_code=True)' if auto else f'{kind}.from_pretrained("FOLDER")'
    lines = [
        "---",
        "library_name: transformers",
        "tags: [graphprune, pruned]",
        "---",
        "",
        f"# Pruned {kind}",
        "",
        f"Made smaller by graphprune {__version__}; `plan.json` says which units are left.",
        "",
        "```python",
        "import transformers",
        "",
        f"model = transformers.{call}",
        "```",
        "",
        "| | before | after | kept |",
        "| --- | --- | --- | --- |",
    ]
    for cost in report.costs:
        after = cost.after if cost.measured is None else cost.measured
        name = _METRICS.get(cost.metric, cost.metric)
        lines.append(f"| {name} | {_number(cost.before)} | {_number(after)} | {after / max(cost.before, 1e-30):.1%} |")
    for row in report.metrics:
        lines.append(f"| {row.name} | {row.before:.6g} | {row.after:.6g} | |")
    configs = [row for row in report.attributes if row.path.startswith("config.") and row.path.count(".") == 1]
    if configs:
        lines += ["", "| config | before | after |", "| --- | --- | --- |"]
        lines += [f"| `{row.path.removeprefix('config.')}` | {row.before} | {row.after} |" for row in configs]
    if report.blocks:
        lines += ["", "Left out as a whole: " + ", ".join(f"`{row.name}`" for row in report.blocks) + "."]
    if report.proof:
        lines += ["", "| proof | difference | accepted | |", "| --- | --- | --- | --- |"]
        lines += [f"| {c.name} | {c.difference:.2g} | {c.tolerance:.2g} | {c.note} |" for c in report.proof]
        lines += ["", "The proof is of the structure, not of accuracy."]
    if report.notes:
        lines += ["", *(f"- {note}" for note in report.notes)]
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:,.3f}"
