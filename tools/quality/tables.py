"""What the records of the benchmark say: tables, the comparison of the default with its rivals, plots."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tools.bench.records import Record, table
from tools.quality.cases import ERROR
from tools.quality.recipes import DEFAULT, PRESETS, RECIPES
from tools.quality.rivals import RIVALS

DENSE = "dense"
BOUNDS = {"perplexity": 0.75}
"""Accepted share of the best rival's loss where it is not one half."""

JUDGED = (0.8, 0.7)
"""Fractions of MACs at which the bound has to be met."""


def loss_of(record: Record, dense: Record) -> float:
    """Points (hundredths) of the metric lost, or log-perplexity times a hundred."""
    value, before = record["values"][record["metric"]], dense["values"][record["metric"]]
    if record["metric"] == "perplexity":
        return math.log(value / before) * 100
    return (before - value if record["higher"] else value - before) * 100


def noise_of(record: Record) -> float:
    """The standard error of a difference of two such values, were they independent, in the units of the loss."""
    return math.sqrt(2) * record["values"].get(ERROR, 0.0) * 100


def by_model(records: list[Record]) -> dict[str, list[Record]]:
    """The records of each model, those of an error among them, in the order of the records."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record["model"], []).append(record)
    return found


def quality_table(records: list[Record]) -> str:
    """For each model a table of the metric: recipes down, fractions of MACs kept across."""
    text = []
    for model, mine in by_model(records).items():
        dense = next((record for record in mine if record["recipe"] == DENSE and "values" in record), None)
        if dense is None:
            continue
        metric = dense["metric"]
        ratios = sorted({record["ratio"] for record in mine} - {1.0}, reverse=True)
        rows = []
        for name in dict.fromkeys(record["recipe"] for record in mine if record["recipe"] != DENSE):
            at = {record["ratio"]: record for record in mine if record["recipe"] == name}
            seconds = [record["seconds"] for record in at.values()]
            rows.append([name, *(_value(at.get(ratio), metric) for ratio in ratios), f"{sum(seconds) / len(at):.0f}"])
        error = dense["values"].get(ERROR)
        spread = f" ± {error:.2g}" if error else ""
        arrow = "higher" if dense["higher"] else "lower"
        shown = [table(["recipe", *(f"{ratio:.0%}" for ratio in ratios), "seconds"], rows)] if rows else []
        text.append(
            f"{model}: {metric} ({arrow} is better), dense {dense['values'][metric]:.4g}{spread}, "
            + "\n\n".join([f"{dense['n']} items\n{dense['source']}", *shown])
        )
    return "\n\n".join(text)


def _value(record: Record | None, metric: str) -> Any:
    if record is None:
        return None
    return record.get("values", {}).get(metric, "failed")


def summary(records: list[Record]) -> list[Record]:
    """For each model and ratio: the default's loss, the best preset's and the best tool's, and what is met.

    Returns:
        ``never_worse``: at most the best of ours (presets and ``isomorphic``), but for noise of one standard error.
        ``met``: at most the accepted share of what the best rival (preset or tool) loses, but for that noise.
    """
    found = []
    for model, mine in by_model([record for record in records if "values" in record]).items():
        dense = next((record for record in mine if record["recipe"] == DENSE), None)
        if dense is None:
            continue
        for ratio in sorted({record["ratio"] for record in mine} - {1.0}, reverse=True):
            at = {record["recipe"]: record for record in mine if record["ratio"] == ratio}
            losses = {name: loss_of(record, dense) for name, record in at.items()}
            rivals = [name for name in losses if name in (*RIVALS, *PRESETS)]
            own = [name for name in losses if name in RECIPES and name != DEFAULT]
            if DEFAULT not in losses or not own:
                continue
            noise, ours = noise_of(at[DEFAULT]), losses[DEFAULT]
            rival = min(rivals, key=losses.__getitem__, default=None)
            best = min(own, key=losses.__getitem__)
            bound = BOUNDS.get(dense["metric"], 0.5)
            least = 0.0 if rival is None else max(losses[rival], 0.0)
            found.append({
                "model": model, "ratio": ratio, "loss": ours, "noise": noise,
                "rival": rival, "rival_loss": None if rival is None else losses[rival],
                "best": best, "best_loss": losses[best],
                "met": ours <= bound * least + noise, "never_worse": ours <= max(losses[best], 0.0) + noise,
            })  # fmt: skip
    return found


def summary_table(lines: list[Record]) -> str:
    """The summary as a table; losses are hundredths of the metric, or of log-perplexity."""
    rows = []
    for line in lines:
        share = line["loss"] / line["rival_loss"] if (line["rival_loss"] or 0) > 0 else None
        words = ["" if line["met"] or line["ratio"] not in JUDGED else "MISSED", "" if line["never_worse"] else "WORSE"]
        rows.append([
            line["model"], f"{line['ratio']:.0%}", f"{line['loss']:.2f}", f"{line['noise']:.2f}",
            line["best"], f"{line['best_loss']:.2f}", line["rival"],
            "" if line["rival_loss"] is None else f"{line['rival_loss']:.2f}",
            "" if share is None else f"{share:.2f}", " ".join(filter(None, words)),
        ])  # fmt: skip
    head = ["model", "kept", "loss", "±", "other recipe", "loss", "rival", "loss", "share", ""]
    return "loss of the default, of the best other recipe, of the best rival (hundredths)\n\n" + table(head, rows)


HEAD = (
    "model, measured value",
    "kept",
    "**default**",
    "`isomorphic`",
    "FLAP",
    "Wanda-sp",
    "LLM-Pruner",
    "`l2`",
    "best tool",
)
SHOWN = (DEFAULT, "isomorphic", "flap", "wanda-sp", "llm-pruner", "l2")


def markdown(records: list[Record]) -> str:
    """The records as a table of documents: a row for each model and fraction of MACs, in bold what is best or near it.

    A dash: was not run; ``fails``: was, without a result.
    """
    lines = ["| " + " | ".join(HEAD) + " |", "|" + " --- |" * len(HEAD)]
    for model, mine in by_model(records).items():
        dense = next((record for record in mine if record["recipe"] == DENSE and "values" in record), None)
        if dense is None:
            continue
        title = f"{model}, {dense['metric']} ({dense['values'][dense['metric']]:.3g} whole)"
        for ratio in sorted({record["ratio"] for record in mine if record["recipe"] == DEFAULT}, reverse=True):
            at = {record["recipe"]: record for record in mine if record["ratio"] == ratio}
            tools = sorted((at[name] for name in RIVALS if name in at), key=lambda each: _rank(each, dense))
            row = [*(at.get(name) for name in SHOWN), *(tools[:1] or [None])]
            losses = [loss_of(each, dense) for each in row if each is not None and "values" in each]
            cells = [_cell(each, dense, min(losses)) for each in row]
            lines.append("| " + " | ".join([title, f"{ratio:.0%}".replace("%", " %"), *cells]) + " |")
            title = ""
    return "\n".join(lines)


def _rank(record: Record, dense: Record) -> float:
    return loss_of(record, dense) if "values" in record else math.inf


def _cell(record: Record | None, dense: Record, least: float) -> str:
    if record is None:
        return "-"
    if "values" not in record:
        return "fails"
    text = f"{record['values'][record['metric']]:.3g}"
    return f"**{text}**" if loss_of(record, dense) <= least + noise_of(record) else text


def report(records: list[Record]) -> str:
    """All that is kept as text."""
    sources = sorted({record["sources"] for record in records if "sources" in record})
    made = f"made with sources {', '.join(sources)}" if sources else ""
    return "\n\n".join(filter(None, [quality_table(records), summary_table(summary(records)), made])) + "\n"


def plot(records: list[Record], path: Path) -> None:
    """One panel for each model: the metric against the MACs kept; rivals dashed."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    models = by_model([record for record in records if "values" in record])
    columns = min(len(models), 3)
    figure, panels = pyplot.subplots(
        -(-len(models) // columns), columns, figsize=(7 * columns, 6 * -(-len(models) // columns)), squeeze=False
    )
    for panel, (model, mine) in zip(panels.flat, models.items(), strict=False):
        dense = [record for record in mine if record["recipe"] == DENSE]
        for i, name in enumerate(dict.fromkeys(record["recipe"] for record in mine if record["recipe"] != DENSE)):
            points = sorted((r["macs"], r["values"][r["metric"]]) for r in mine if r["recipe"] == name)
            points += [(1.0, record["values"][record["metric"]]) for record in dense]
            style = "--" if name in (*RIVALS, *PRESETS) else "-"
            panel.plot(*zip(*points, strict=True), style, marker=".", label=name, color=pyplot.cm.tab20(i % 20))
        if mine[0]["metric"] == "perplexity":
            panel.set_yscale("log")
        panel.set(title=model, xlabel="MACs kept", ylabel=mine[0]["metric"])
        panel.invert_xaxis()
        panel.legend(fontsize=6)
        panel.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
