"""Plots of many trials, by matplotlib (the extra ``plots``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from graphprune.errors import OptionError
from graphprune.files import replaced
from graphprune.report.curves import OUTPUT_ERROR, Front, FrontPoint, Sensitivity

FORMATS = ("png", "svg")
_NAMED = 8
_LONGEST = 44
_BLUE, _GREY = "#1f5fa8", "#b8bec6"
_TITLES = {"macs": "MACs kept", "params": "parameters kept", "bytes": "size kept"}


def require_matplotlib() -> None:
    """Raises an :class:`OptionError` that says how to install matplotlib, where it is not."""
    try:
        import matplotlib as _  # noqa: F401
    except ImportError as error:
        raise OptionError("plots need matplotlib; pip install matplotlib, or leave them out (--plot none)") from error


def drawn(plot: Callable[[], None], path: Path) -> tuple[str, ...]:
    """Draws a plot if matplotlib is there; else a sentence that says that there is none: the data are what counts.

    Raises:
        OutputError: The file cannot be written.
    """
    try:
        require_matplotlib()
    except OptionError as error:
        return (f"there is no '{path}': {error}",)
    plot()
    return ()


def plot_sensitivity(result: Sensitivity, path: Path) -> None:
    """Writes two panels: the measure against the ratio, and the deviation of each group in the order of the model.

    Raises:
        OptionError: matplotlib is not installed.
        OutputError: The file cannot be written.
    """
    figure = _figure(11, 4.6)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    deviations = result.deviations
    named = [name for name in result.most_sensitive(1.0) if name in deviations][:_NAMED]
    colors = _colors(len(named))
    for name in deviations:
        rows = sorted((row for row in result.rows if row.group == name), key=lambda row: row.removed)
        x = [0.0, *(100 * row.removed / row.units for row in rows)]
        y = [result.baseline, *(row.value for row in rows)]
        at = named.index(name) if name in named else None
        style = (
            {"color": _GREY, "lw": 0.8, "zorder": 1} if at is None else {"color": colors[at], "lw": 1.8, "zorder": 2}
        )
        left.plot(x, y, marker=None if at is None else "o", ms=4, **style)
    for name, color in zip(named, colors, strict=True):
        left.plot([], [], color=color, lw=1.8, marker="o", ms=4, label=_short(name))
    if len(deviations) > len(named):
        left.plot([], [], color=_GREY, lw=0.8, label=f"{len(deviations) - len(named)} others")
    left.set(xlabel="units of the group removed (%)", ylabel=_axis(result), xlim=(0, None))
    left.legend(fontsize=7, frameon=False)
    left.set_title("one group at a time", loc="left", fontsize=10)
    values = [value if math.isfinite(value) else 0.0 for value in deviations.values()]
    bars = [colors[named.index(name)] if name in named else _GREY for name in deviations]
    right.bar(range(1, len(values) + 1), values, color=bars, width=0.85)
    right.set(xlabel="group, in the order of the model", ylabel="mean distance from the original")
    right.xaxis.get_major_locator().set_params(integer=True)
    right.set_title("how much the model depends on each group", loc="left", fontsize=10)
    _save(figure, path, (left, right))


def plot_front(front: Front, path: Path) -> None:
    """Writes one row of panels for each metric of the user's (or for the latency): against MACs, size and latency.

    Raises:
        OptionError: matplotlib is not installed.
        OutputError: The file cannot be written.
    """
    points = [point for point in front.points if not point.error]
    metrics = list(dict.fromkeys(name for point in points for name in point.metrics))
    threads = sorted({n for point in points for n in point.latency_kept})
    first = points[0]
    axes: list[tuple[str, Any]] = [
        (f"{_TITLES[cost]} (%)", lambda point, cost=cost: 100 * point.costs[cost] / (first.costs[cost] or 1))
        for cost in ("macs", "params")
    ]
    if threads:
        axes.append((_latency(threads[0]), lambda point: 100 * point.latency_kept[threads[0]]))
    rows: list[tuple[str, Any]] = [
        (name, lambda point, name=name: point.metrics.get(name, math.nan)) for name in metrics
    ]
    if not rows and threads:
        rows = [(_latency(n), lambda point, n=n: 100 * point.latency_kept[n]) for n in threads]
        axes = axes[:2]
    if not rows:
        rows, axes = [axes[1]], axes[:1]
    figure = _figure(3.7 * len(axes) + 0.6, 3.1 * len(rows) + 0.5)
    panels = figure.subplots(len(rows), len(axes), squeeze=False)
    for (ylabel, y), line in zip(rows, panels, strict=True):
        for i, ((xlabel, x), panel) in enumerate(zip(axes, line, strict=True)):
            _curve(panel, points, x, y)
            panel.set(xlabel=xlabel, ylabel=ylabel if i == 0 else "")
    _save(figure, path, [panel for line in panels for panel in line])


def _curve(panel: Any, points: Sequence[FrontPoint], x: Any, y: Any) -> None:
    drawn = [point for point in points if math.isfinite(y(point))]
    panel.plot([x(point) for point in drawn], [y(point) for point in drawn], color=_BLUE, lw=1.5, marker="o", ms=4.5)
    for i, point in enumerate(drawn):
        if point.target == "original":
            panel.plot([x(point)], [y(point)], color=_BLUE, marker="o", ms=8, mfc="white", mew=1.6)
        panel.annotate(
            point.target, (x(point), y(point)), textcoords="offset points", xytext=(0, 8 if i % 2 == 0 else -13),
            fontsize=7, color="#444444", ha="center",
        )  # fmt: skip
    panel.margins(0.12, 0.18)


def _latency(threads: int) -> str:
    return f"latency on {threads} thread{'s' if threads > 1 else ''} (%)"


def _axis(result: Sensitivity) -> str:
    return "relative error of the outputs" if result.measure == OUTPUT_ERROR else result.measure


def _short(name: str) -> str:
    half = _LONGEST // 2
    return name if len(name) <= _LONGEST else f"{name[:half]}…{name[-half:]}"


def _colors(n: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["viridis"](0.9 * i / max(1, n - 1)) for i in range(n)]


def _figure(width: float, height: float) -> Any:
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=150)


def _save(figure: Any, path: Path, panels: Any) -> None:
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="#e6e8eb", lw=0.6)
        panel.set_axisbelow(True)
        panel.tick_params(labelsize=8)
    with replaced(path) as temporary:
        figure.savefig(
            temporary, format=path.suffix.removeprefix("."), metadata={"Date": None} if path.suffix == ".svg" else {}
        )
