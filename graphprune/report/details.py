"""Parts of a report in a terminal: sizes of inputs, what was left whole, how far outputs moved, widths."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from graphprune.report.data import Inspection, Report
from graphprune.report.inputs import describe_inputs
from graphprune.report.titles import named

_SHOWN_AXES = 12
"""So many kinds of axes are shown that have become smaller."""
_SHOWN = 4
"""Losses of so many outputs are shown."""


def inputs_line(shown: Report | Inspection) -> str:
    """The sizes that all numbers are for, and where they come from."""
    # a batch that is assumed scales all numbers alike; any other size may be far from what is used
    assumed = any("assumed" in source for row in shown.inputs for source in row.sources[1:])
    color = "yellow" if assumed else "bold"
    advice = "; --shape gives others" if assumed else ""
    return f"[{color}]inputs:[/] {escape(describe_inputs(shown.inputs))}{advice}"


def left_whole(report: Report) -> Iterator[str]:
    """A line for each kind that could have been pruned and was left whole."""
    for row in report.whole:
        groups = f"{row.groups} group{'s' if row.groups > 1 else ''}"
        advice = f" (to cut it, name it: --only {row.kind})" if row.reason.startswith("by default") else ""
        share = f"{row.params_share:.1%} of the parameters"
        yield f"[bold]left whole:[/] {row.kind}, {groups}, {share}; {escape(row.reason)}{advice}"


def interface_lines(report: Report) -> Iterator[str]:
    """What has become smaller at the interface, alike axes in one line, and what caches hold."""
    alike: dict[tuple[str, int, int, int], int] = {}
    for row in report.interface:
        key = re.sub(r"\d+", "*", row.name), row.axis, row.before, row.after
        alike[key] = alike.get(key, 0) + 1
    for (name, axis, before, after), n in list(alike.items())[:_SHOWN_AXES]:
        times = f" ({n} of them)" if n > 1 else ""
        yield f"[yellow]interface:[/] {escape(f'{name}[{axis}]')} {before} → {after}{times}"
    if more := len(alike) - _SHOWN_AXES:
        yield from [f"... and {more} more kinds of axes (--json lists all)"] if more > 0 else []
    if report.cache_bytes is not None:
        before, after = report.cache_bytes
        yield f"[bold]cache:[/] {before:,} → {after:,} bytes for each token of a sequence"


def moved_lines(report: Report) -> Iterator[str]:
    """How far the outputs moved, and what the proof is not about."""
    moved = str(report.moved) if report.moved is not None else ""
    if moved:
        yield f"[bold]{escape(moved)}[/]"
    if report.moved is not None:
        yield from (f"[bold]loss of the output {escape(str(each))}[/]" for each in report.moved.losses[:_SHOWN])
        if more := len(report.moved.losses) - _SHOWN:
            yield from [f"... and the losses of {more} more (--json lists all)"] if more > 0 else []
        if report.moved.ruined:
            yield f"[bold red]{escape(report.moved.ruined)}[/]"
    if not report.proof or report.metrics:
        return
    made_up = report.moved is not None and report.moved.made_up
    advice = "such inputs say little about yours: give real ones (--calibration), or a metric (--eval)"
    yield f"the proof is of the structure, not of accuracy; {advice if made_up else 'measure it (--eval)'}"


def widths(report: Report) -> RenderableType:
    """The sizes of all stored weights that changed."""
    table = Table(title="widths of stored weights", title_justify="left", show_edge=False)
    table.add_column("weight", overflow="fold")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    rows = [row for row in report.widths if row.changed]
    for row in rows:
        after = "left out" if row.after is None else "x".join(map(str, row.after))
        table.add_row(escape(named(row.name, row.title)), "x".join(map(str, row.before)), after)
    if same := len(report.widths) - len(rows):
        table.caption = f"{same} more are as they were (--json lists all)"
    return table
