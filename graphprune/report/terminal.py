"""Reports as tables in a terminal, by rich."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from io import StringIO

from rich.console import Console, RenderableType
from rich.console import Group as Stack
from rich.markup import escape
from rich.table import Table

from graphprune.pipeline.state import Check
from graphprune.planning.latency import Profile
from graphprune.report import details
from graphprune.report.curves import OUTPUT_ERROR, Front, Sensitivity
from graphprune.report.data import Inspection, Report
from graphprune.report.metrics import sure
from graphprune.report.titles import named

_UNITS = {
    "macs": "MACs",
    "params": "parameters",
    "bytes": "bytes",
    "flops": "FLOPs",
    "active_params": "active parameters",
    "kv_cache": "bytes of cache for a token",
}
_MOST_GROUPS = 40
_WIDTH = 120
"""Columns of tables that are not printed in a terminal."""


def as_text(tables: RenderableType) -> str:
    """Tables as plain text."""
    console = Console(file=StringIO(), width=_WIDTH, color_system=None)
    with console.capture() as capture:
        console.print(tables)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def amount(value: float) -> str:
    """A large number with a suffix: ``40.6 M``."""
    for limit, suffix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.3g}"


def render_report(report: Report, *, title: str, full: bool = False) -> RenderableType:
    """The tables of ``graphprune prune``; in ``full`` with the sizes of every weight."""
    costs = Table(title=title, title_justify="left", show_edge=False)
    for column, justify in (
        ("", "left"),
        ("before", "right"),
        ("after", "right"),
        ("kept", "right"),
        ("allowed", "right"),
    ):
        costs.add_column(column, justify=justify)  # type: ignore[arg-type]
    for cost in report.costs:
        allowed = "" if cost.requested is None else f"{cost.requested / cost.before:.1%}"
        if cost.metric == "latency":
            before = f"{cost.before:.3g} ms"
            costs.add_row("latency, predicted", before, f"{cost.after:.3g} ms", f"{cost.fraction:.1%}", allowed)
            if cost.measured is not None:
                share = f"{cost.measured / cost.before:.1%}"
                costs.add_row("latency, measured", before, f"{cost.measured:.3g} ms", share, allowed)
            continue
        costs.add_row(_UNITS[cost.metric], amount(cost.before), amount(cost.after), f"{cost.fraction:.1%}", allowed)
    for row in report.latency:
        name = f"latency, {row.threads} thread{'s' if row.threads > 1 else ''}"
        costs.add_row(name, f"{row.before:.2f} ms", f"{row.after:.2f} ms", f"{row.after / row.before:.1%}", "")
    for metric in report.metrics:
        change = f"{metric.after - metric.before:+.4g}"
        costs.add_row(escape(metric.name), f"{metric.before:.4g}", f"{metric.after:.4g}", change, "")
    inputs = [details.inputs_line(report)] if report.inputs else []
    parts: list[RenderableType] = [costs, *(escape(line) for line in sure(report.metrics)), *inputs, ""]
    parts.extend([_cut_groups(report), *details.left_whole(report), *details.interface_lines(report), ""])
    if report.attributes:
        parts.extend([_attributes(report), ""])
    if full:
        parts.extend([details.widths(report), ""])
    if report.proof:
        proven = all(check.passed and not check.partial for check in report.proof)
        parts.append(render_checks(report.proof, title="structure proven" if proven else "proof"))
    else:
        parts.append("[yellow]not verified[/] (--no-verify)")
    parts.extend(details.moved_lines(report))
    parts.extend(f"[yellow]note:[/] {escape(note)}" for note in report.notes)
    return Stack(*parts)


def render_checks(checks: Iterable[Check], *, title: str = "proof") -> Table:
    """The table of a proof."""
    table = Table(title=title, title_justify="left", show_edge=False)
    table.add_column("check")
    table.add_column("difference", justify="right")
    table.add_column("accepted", justify="right")
    table.add_column("")
    for check in checks:
        passed = "[yellow]in part[/]" if check.partial else "[green]passed[/]"
        word = passed if check.passed else "[red]FAILED[/]"
        table.add_row(check.name, f"{check.difference:.2g}", f"{check.tolerance:g}", f"{word}  {escape(check.note)}")
    return table


def render_verdict(pruned: str, original: str, failed: Sequence[str], partial: Sequence[str]) -> str:
    """What the checks of a file come to: of these some have failed, or could be made in part."""
    if failed:
        return "checks that need those that failed were not run"
    if partial:
        return escape(
            f"'{pruned}' agrees with what the plan makes of '{original}' as far as it could be compared, but is not "
            f"proven: {', '.join(partial)} only in part"
        )
    return escape(f"'{pruned}' is what the plan makes of '{original}'")


def _cut_groups(report: Report) -> Table:
    table = Table(title="groups", title_justify="left", show_edge=False)
    table.add_column("kind")
    table.add_column("groups", justify="right")
    table.add_column("cut", justify="right")
    table.add_column("units", justify="right")
    table.add_column("kept", justify="right")
    for kind in dict.fromkeys(group.kind for group in report.groups):
        rows = [group for group in report.groups if group.kind == kind]
        units, kept = sum(row.size for row in rows), sum(row.kept for row in rows)
        cut = sum(row.kept < row.size for row in rows)
        table.add_row(kind, str(len(rows)), str(cut), str(units), f"{kept} ({kept / units:.0%})")
    return table


def _attributes(report: Report) -> Table:
    """One row for alike modules: ``layers.*.heads``."""
    alike: dict[tuple[str, str, str], int] = {}
    for row in report.attributes:
        key = re.sub(r"\d+", "*", row.path), str(row.before), str(row.after)
        alike[key] = alike.get(key, 0) + 1
    table = Table(title="attributes of the module that changed with its tensors", title_justify="left", show_edge=False)
    table.add_column("attribute", overflow="fold")
    for column in ("before", "after", "modules"):
        table.add_column(column, justify="right")
    for (path, before, after), n in list(alike.items())[:_MOST_GROUPS]:
        table.add_row(escape(path), escape(before), escape(after), str(n))
    if len(alike) > _MOST_GROUPS:
        table.caption = f"... and {len(alike) - _MOST_GROUPS} more (--json lists all)"
    return table


def render_front(front: Front, *, title: str) -> RenderableType:
    """The table of ``graphprune sweep``."""
    table = Table(title=title, title_justify="left", show_edge=False)
    table.add_column("target")
    first = front.points[0]
    metrics = list(dict.fromkeys(name for point in front.points for name in point.metrics))
    heads = [
        *(_UNITS[metric] for metric in first.costs),
        *(f"ms, {n} thr." for n in first.latency),
        *map(escape, metrics),
    ]
    for head in heads:
        table.add_column(head, justify="right")
    for point in front.points:
        if point.error:
            table.add_row(escape(point.target), "[yellow]not met[/]", *[""] * (len(heads) - 1))
            continue
        costs = [f"{point.costs[metric] / (value or 1):.1%}" for metric, value in first.costs.items()]
        latency = [f"{point.latency[n]:.2f} ({point.latency_kept[n]:.0%})" for n in first.latency]
        values = [f"{point.metrics[name]:.4g}" if name in point.metrics else "" for name in metrics]
        table.add_row(escape(point.target), *costs, *latency, *values)
    parts: list[RenderableType] = [table]
    failed = [point for point in front.points if point.error]
    parts.extend(f"[yellow]not met:[/] {escape(point.target)}: {escape(point.error)}" for point in failed)
    parts.extend(f"[yellow]note:[/] {escape(note)}" for note in front.notes)
    return Stack(*parts)


def render_sensitivity(result: Sensitivity, *, title: str) -> RenderableType:
    """The table of ``graphprune sensitivity``: the most sensitive groups first."""
    head = f"{title}: {result.measure}"
    head += "" if result.measure == OUTPUT_ERROR else f" (original {result.baseline:.4g})"
    table = Table(title=head, title_justify="left", show_edge=False)
    table.add_column("group", overflow="fold")  # a name must be whole, to be typed elsewhere
    table.add_column("kind")
    ratios = sorted({row.ratio for row in result.rows})
    for column in ("units", *(f"-{ratio:.0%}" for ratio in ratios), "mean change"):
        table.add_column(column, justify="right")
    deviations = result.deviations
    order = result.most_sensitive(1.0)
    for name in order[:_MOST_GROUPS]:
        rows = [row for row in result.rows if row.group == name]
        values = {row.ratio: f"{row.value:.4g}" for row in rows}
        cells = [values.get(ratio, "") for ratio in ratios]
        table.add_row(escape(name), rows[0].kind, str(rows[0].units), *cells, f"{deviations[name]:.4g}")
    parts: list[RenderableType] = [table]
    if len(order) > _MOST_GROUPS:
        parts.append(f"... and {len(order) - _MOST_GROUPS} less sensitive groups (--json lists all)")
    if result.random:
        parts.append("[yellow]note:[/] the inputs are made up, so this says little; give real ones (--calibration)")
    parts.extend(f"[yellow]note:[/] {escape(note)}" for note in result.notes)
    return Stack(*parts)


def _blocks(inspection: Inspection) -> Table:
    table = Table(title="residual branches that can be left out as a whole", title_justify="left", show_edge=False)
    for column, justify in (("block", "left"), ("kind", "left"), ("MACs", "right"), ("params", "right")):
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in inspection.blocks[:_MOST_GROUPS]:
        name = escape(named(row["name"], row["title"]))
        table.add_row(name, row["kind"], f"{row['macs_share']:.1%}", f"{row['params_share']:.1%}")
    if len(inspection.blocks) > _MOST_GROUPS:
        table.caption = f"... and {len(inspection.blocks) - _MOST_GROUPS} more (--json lists all)"
    return table


def render_inspection(inspection: Inspection, *, title: str) -> RenderableType:
    """The tables of ``graphprune inspect``."""
    head = ", ".join(f"{amount(value)} {_UNITS[metric]}" for metric, value in inspection.costs.items())
    table = Table(title="groups", title_justify="left", show_edge=False)
    table.add_column("group", overflow="fold")
    table.add_column("kind")
    table.add_column("units", justify="right")
    table.add_column("exact")
    for column in ("MACs", "params", "tensors"):
        table.add_column(column, justify="right")
    shown = sorted(inspection.groups, key=lambda row: -row["macs_share"])
    for row in shown[:_MOST_GROUPS]:
        table.add_row(
            escape(named(row["name"], row["title"])),
            row["kind"],
            str(row["units"]),
            "yes" if row["exact"] else "no",
            f"{row['macs_share']:.1%}",
            f"{row['params_share']:.1%}",
            str(len(row["sites"])),
        )
    parts: list[RenderableType] = [f"[bold]{escape(title)}[/]: {head}"]
    parts.extend([*([details.inputs_line(inspection)] if inspection.inputs else []), ""])
    counts = Counter(row["kind"] for row in inspection.groups)
    kinds = ", ".join(f"{n} {kind}" for kind, n in counts.items()) or "none"
    n_groups = len(inspection.groups)
    word = "group" if n_groups == 1 else "groups"
    parts.append(f"{n_groups} {word} ({kinds}) over {inspection.prunable:.1%} of the parameters")
    parts.extend(["", table])
    if len(shown) > _MOST_GROUPS:
        parts.append(f"... and {len(shown) - _MOST_GROUPS} smaller groups (--json lists all)")
    if inspection.blocks:
        parts.extend(["", _blocks(inspection)])
    blocked = Table(title="what stays whole, by the parameters kept whole", title_justify="left", show_edge=False)
    for column, justify in (("reason", "left"), ("axes", "left"), ("kept whole", "right"), ("touched", "right")):
        blocked.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in inspection.blockers[:15]:
        where = f" (node '{row['node']}')" if row["node"] else ""
        axes = named(row["axes"][0], row["title"]) + (
            f" and {len(row['axes']) - 1} more" if len(row["axes"]) > 1 else ""
        )
        kept = f"{amount(row['params'])} ({row['params_share']:.1%})"
        reason = escape(row["reason"] + where)
        blocked.add_row(
            f"[red]{reason}[/]" if row["kind"] == "barrier" else reason,
            escape(axes),
            kept,
            amount(row["params_touched"]),
        )
    if len(inspection.blockers) > 15:
        blocked.caption = f"... and {len(inspection.blockers) - 15} more (--json lists all)"
    parts.extend(["", blocked])
    return Stack(*parts)


def render_profile(profile: Profile, *, title: str) -> RenderableType:
    """The table of ``graphprune profile``."""
    table = Table(title="slowest operators", title_justify="left", show_edge=False)
    table.add_column("operators", overflow="fold")
    for column in ("whole, ms", "smallest, ms", "widths"):
        table.add_column(column, justify="right")
    slowest = sorted(profile.entries.values(), key=lambda entry: -entry.milliseconds[-1])
    for entry in slowest[:_MOST_GROUPS]:
        widths = "x".join(str(len(axis)) for axis in entry.axes) or "1"
        table.add_row(
            escape(entry.label), f"{entry.milliseconds[-1]:.3f}", f"{entry.milliseconds[0]:.3f}", escape(widths)
        )
    head = (
        f"[bold]{escape(title)}[/]: {len(profile.entries)} operator shapes on {escape(str(profile.machine))}\n"
        f"whole model {profile.whole:.3g} ms; sum of its operators {profile.summed:.3g} ms; correction "
        f"{profile.correction:.3g}"
    )
    skipped = f"{len(profile.skipped)} segments cannot be run alone and count as constant" if profile.skipped else ""
    return Stack(head, "", table, *([f"[yellow]note:[/] {skipped}"] if skipped else []))
