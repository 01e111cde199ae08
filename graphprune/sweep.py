"""Several targets in a row: what is left of metric, latency and size at each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from graphprune.api import Result, prune
from graphprune.data.batches import SAMPLES, open_batches
from graphprune.early import require_choices
from graphprune.errors import GraphpruneError, OptionError
from graphprune.evaluation import open_evaluation, require_evaluation
from graphprune.hosts.onnx.blame import blaming_models
from graphprune.observer import Observer, Within, observing
from graphprune.opening import Shapes, open_host, require_samples, require_seed
from graphprune.planning.target import parse_targets
from graphprune.report.curves import Front, FrontPoint
from graphprune.report.metrics import sure
from graphprune.turns import in_turn

ORIGINAL = "original"


@blaming_models
@in_turn
def sweep(
    model: Any,
    example_inputs: Any = None,
    *,
    targets: Iterable[str | Mapping[str, float | str]],
    folder: str | Path | None = None,
    calibration: Any = None,
    samples: int = SAMPLES,
    evaluate: Any = None,
    metric: str | None = None,
    latency: bool = True,
    seed: int = 0,
    shapes: Shapes | None = None,
    dynamic_shapes: Any = None,
    trust: bool = False,
    progress: Observer | Callable[[str], None] | None = None,
    **options: Any,
) -> Front:
    """Prunes a model to each of several targets, each time from the original.

    Args:
        model: As for :func:`graphprune.prune`; it is opened once.
        example_inputs: As for :func:`graphprune.prune`.
        targets: The targets, e.g. ``["macs=0.9", "macs=0.8"]``; ``"macs=0.8,params=2M"`` is one point that meets both.
        folder: Where the pruned models and their plans are written; nothing is if absent.
        calibration: As for :func:`graphprune.prune`.
        samples: As for :func:`graphprune.prune`.
        evaluate: As for :func:`graphprune.prune`; the original is measured once.
        metric: As for :func:`graphprune.prune`.
        latency: Whether to measure latency.
        seed: As for :func:`graphprune.prune`.
        shapes: As for :func:`graphprune.prune`.
        dynamic_shapes: As for :func:`graphprune.prune`.
        trust: As for :func:`graphprune.prune`.
        progress: As for :func:`graphprune.prune`.
        options: The other options of :func:`graphprune.prune`.

    Returns:
        The original and one point for each target; targets that cannot be met say why.

    Raises:
        GraphpruneError: No target could be met, or an option is wrong.
    """
    require_seed(seed)
    require_evaluation(evaluate, metric)
    require_samples(samples, calibration)
    require_choices(**options)
    wanted = _distinct(targets)
    _require_apart(model, wanted, folder)
    observer = observing(progress)
    observer.begin("open")
    host = open_host(model, example_inputs, shapes=shapes, trust=trust, dynamic_shapes=dynamic_shapes)
    batches = None if calibration is None else open_batches(calibration, host, samples=samples, seed=seed)
    evaluation = None if evaluate is None else open_evaluation(evaluate, host, metric=metric)
    points: list[FrontPoint] = []
    originals: list[FrontPoint] = []
    notes: dict[str, None] = {}
    failure: GraphpruneError | None = None
    for i, (name, target) in enumerate(wanted.items(), start=1):
        inside = Within(observer, f"{name} ({i} of {len(wanted)})")
        try:
            result = prune(
                host, target=target, calibration=batches, evaluate=evaluation, latency=latency, seed=seed,
                progress=inside, **options,
            )  # fmt: skip
        except GraphpruneError as error:
            failure = error
            points.append(FrontPoint(name, {}, {}, {}, {}, str(error)))
            continue
        originals.append(_point(ORIGINAL, result, "before", ()))
        points.append(_point(name, result, "after", _saved(result, name, folder)))
        notes.update(dict.fromkeys(result.report.notes))
        notes.update(dict.fromkeys(f"{name}: {each}" for each in sure(result.report.metrics)))
    if failure is not None and not originals:
        raise failure
    points.sort(key=lambda point: -point.costs.get("macs", -1))
    return Front((_median(originals), *points), tuple(notes))


def _distinct(targets: Iterable[str | Mapping[str, float | str]]) -> dict[str, list[str]]:
    """The targets by name, checked, each once."""
    found: dict[str, list[str]] = {}
    for target in [targets] if isinstance(targets, str) else targets:
        if isinstance(target, Mapping):
            parts = [f"{key}={value}" for key, value in target.items()]
        else:
            parts = target.split(",") if isinstance(target, str) else list(map(str, parse_targets(target)))
        parse_targets(parts)
        found[",".join(parts)] = parts
    if not found:
        raise OptionError("a sweep needs targets; give some, such as macs=0.9 and macs=0.8")
    return found


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


def _median(points: list[FrontPoint]) -> FrontPoint:
    """The original, whose latency was measured in turns with each of the others."""
    first = points[0]
    latency = {n: sorted(point.latency[n] for point in points)[len(points) // 2] for n in first.latency}
    return replace(first, latency=latency)


def _paths(name: str, folder: str | Path) -> tuple[Path, Path]:
    """Where the model of a target and its plan go."""
    stem = name.replace("=", "-").replace(",", "_").replace("%", "pct")
    return Path(folder) / f"{stem}.onnx", Path(folder) / f"{stem}.plan.json"


def _require_apart(model: Any, names: Iterable[str], folder: str | Path | None) -> None:
    """Refuses to write a point over the model that all points are made from.

    Raises:
        OptionError: One would be.
    """
    if folder is None or not isinstance(model, str | Path):
        return
    for name in names:
        written, _ = _paths(name, folder)
        if written.resolve() == Path(model).resolve():
            raise OptionError(f"'{written}' is the model itself, and the result for {name}; give another folder")


def _saved(result: Result, name: str, folder: str | Path | None) -> tuple[str, ...]:
    if folder is None:
        return ()
    model, plan = _paths(name, folder)
    result.save_onnx(model)
    result.plan.save(plan)
    return model.name, plan.name
