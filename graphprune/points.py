"""One point of a sweep: what a compilation gave, and the files that are written for it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from graphprune.report.curves import FrontPoint
from graphprune.report.metrics import sure
from graphprune.result import Result

ORIGINAL = "original"


class Outcome(NamedTuple):
    """What a recipe gave.

    Attributes:
        original: The model as it came.
        point: What became of it.
        notes: Sentences for the user.
    """

    original: FrontPoint
    point: FrontPoint
    notes: tuple[str, ...]


def outcome_of(result: Result, name: str, files: tuple[str, ...]) -> Outcome:
    """What a compilation gave, without the model.

    Args:
        result: The compilation.
        name: Of the point.
        files: What was written for it.
    """
    notes = dict.fromkeys(result.report.notes)
    notes.update(dict.fromkeys(f"{name}: {each}" for each in sure(result.report.metrics)))
    return Outcome(_point(ORIGINAL, result, "before", ()), _point(name, result, "after", files), tuple(notes))


def _point(name: str, result: Result, side: str, files: tuple[str, ...]) -> FrontPoint:
    report = result.report
    return FrontPoint(
        name,
        {cost.metric: getattr(cost, side) for cost in report.costs},
        {row.threads: getattr(row, side) for row in report.latency},
        {row.threads: getattr(row, side) / row.before for row in report.latency},
        {row.name: getattr(row, side) for row in report.metrics},
        files=files,
        intervals={
            row.name: interval
            for row in report.metrics
            if (interval := row.before_interval if side == "before" else row.after_interval) is not None
        },
        samples={row.name: row.n for row in report.metrics if row.n is not None},
    )


def paths_of(name: str, folder: str | Path) -> tuple[Path, Path]:
    """Where the model of a point and its plan go."""
    stem = name.replace("=", "-").replace(",", "_").replace("%", "pct")
    return Path(folder) / f"{stem}.onnx", Path(folder) / f"{stem}.plan.json"


def saved(result: Result, name: str, folder: str | Path | None) -> tuple[str, ...]:
    """Writes the model of a point and its plan; nothing without a folder."""
    if folder is None:
        return ()
    model, plan = paths_of(name, folder)
    result.save_onnx(model)
    result.plan.save(plan)
    return model.name, plan.name
