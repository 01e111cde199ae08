"""Several recipes in a row on one model: what is left of metric, latency and size at each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

from graphprune.collector import frozen_garbage_collection
from graphprune.compiling import Named, Running, compiled, reach_of
from graphprune.data.batches import SAMPLES
from graphprune.early import with_reach
from graphprune.errors import GraphpruneError, OptionError
from graphprune.hosts.onnx.blame import blaming_models
from graphprune.observer import Observer, Within
from graphprune.opened import Opened
from graphprune.opening import Shapes, Sizes
from graphprune.planning.latency import Profile
from graphprune.planning.target import parse_targets
from graphprune.points import Outcome, outcome_of, paths_of, saved
from graphprune.recipe import Recipe
from graphprune.recipe.signature import takes_recipe
from graphprune.report.curves import Front, FrontPoint
from graphprune.turns import in_turn
from graphprune.workers import spread


@blaming_models
@in_turn
@frozen_garbage_collection()
@takes_recipe(without=("target",))
def sweep(
    model: Any,
    example_inputs: Any = None,
    *,
    targets: Iterable[str | Mapping[str, float | str]],
    folder: str | Path | None = None,
    executor: Executor | None = None,
    calibration: Any = None,
    samples: int = SAMPLES,
    statistics: str | Path | None = None,
    evaluate: Any = None,
    metric: str | None = None,
    shapes: Shapes | None = None,
    sizes: Sizes | None = None,
    dynamic_shapes: Any = None,
    trust: bool = False,
    latency: bool = True,
    profile: Profile | str | Path | None = None,
    dump_after: Iterable[str] = (),
    dump: Callable[[str], None] = lambda text: None,
    verify_each: bool = False,
    progress: Observer | Callable[[str], None] | None = None,
    recipe: Named = None,
    **keywords: Any,
) -> Front:
    """Prunes a model to each of several targets, each time from the original, which is opened and measured once.

    Args:
        model: As for :func:`graphprune.prune`.
        example_inputs: As for :func:`graphprune.prune`.
        targets: The targets, e.g. ``["macs=0.9", "macs=0.8"]``; ``"macs=0.8,params=2M"`` is one point that meets both.
        folder: Where the pruned models and their plans are written; nothing is if absent.
        executor: Carries the points out at the same time: any ``concurrent.futures.Executor`` (a process pool, those
            of dask and Ray). Plans, files and metrics are those of a sweep without; latency is measured afterwards,
            here. Model, data and metric must be such that they can be pickled.
        calibration: As for :func:`graphprune.prune`.
        samples: As for :func:`graphprune.prune`.
        statistics: As for :func:`graphprune.prune`.
        evaluate: As for :func:`graphprune.prune`; the original is measured once.
        metric: As for :func:`graphprune.prune`.
        shapes: As for :func:`graphprune.prune`.
        sizes: As for :func:`graphprune.prune`.
        dynamic_shapes: As for :func:`graphprune.prune`.
        trust: As for :func:`graphprune.prune`.
        latency: Whether to measure latency.
        profile: As for :func:`graphprune.prune`.
        dump_after: As for :func:`graphprune.prune`.
        dump: As for :func:`graphprune.prune`.
        verify_each: As for :func:`graphprune.prune`.
        progress: As for :func:`graphprune.prune`.
        recipe: As for :func:`graphprune.prune`; its targets do not count.
        **keywords: The options of a :class:`Recipe`.

    Returns:
        The original and one point for each target; targets that cannot be met say why.

    Raises:
        GraphpruneError: No target could be met, or an option is wrong.
    """
    base = Recipe.read(recipe, **keywords)
    recipes = {name: base.changed(target=parts) for name, parts in points_of(targets).items()}
    opened = Opened(
        model, example_inputs, data=calibration, samples=samples, evaluate=evaluate, metric=metric, shapes=shapes,
        sizes=sizes, dynamic_shapes=dynamic_shapes, trust=trust,
    )  # fmt: skip
    running = Running(
        statistics=statistics, latency=latency, profile=profile, dump_after=dump_after, dump=dump,
        verify_each=verify_each, progress=progress,
    )  # fmt: skip
    return swept(opened, recipes, running, folder=folder, executor=executor)


def swept(
    opened: Opened,
    recipes: Mapping[str, Recipe],
    running: Running,
    *,
    folder: str | Path | None = None,
    executor: Executor | None = None,
) -> Front:
    """Carries out recipes, each from the original; model, data and what is measured on them are shared.

    Args:
        opened: The model.
        recipes: By the names of the points.
        running: How they are carried out.
        folder: Where the pruned models and their plans are written; nothing is if absent.
        executor: Whose workers carry them out, at the same time (absent: one after the other, here).

    Returns:
        The original and one point for each recipe; targets that cannot be met say why.

    Raises:
        GraphpruneError: No recipe could be carried out, or an option is wrong.
    """
    if not recipes:
        raise OptionError("a sweep needs targets; give some, such as macs=0.9 and macs=0.8")
    _require_apart(opened.model, recipes, folder)
    observer = running.observer
    opened.start(observer)
    opened.batches(next(iter(recipes.values())).seed)
    opened.evaluation(observer)
    points: list[FrontPoint] = []
    originals: list[FrontPoint] = []
    notes: dict[str, None] = {}
    failure: GraphpruneError | None = None
    running = replace(running, export=running.export or folder is not None)
    if executor is None:
        outcomes = _one_by_one(opened, recipes, running, folder)
    else:
        outcomes = spread(opened, recipes, running, executor, folder)
    for name, outcome in outcomes:
        if isinstance(outcome, GraphpruneError):
            failure = outcome
            points.append(FrontPoint(name, {}, {}, {}, {}, str(outcome)))
            continue
        originals.append(outcome.original)
        points.append(outcome.point)
        notes.update(dict.fromkeys(outcome.notes))
    if failure is not None and not originals:
        raise failure
    points.sort(key=lambda point: -point.costs.get("macs", -1))
    return Front((_median(originals), *points), tuple(notes))


def _one_by_one(
    opened: Opened, recipes: Mapping[str, Recipe], running: Running, folder: str | Path | None
) -> Iterator[tuple[str, Outcome | GraphpruneError]]:
    reach = reach_of(opened, recipes.values(), running) if opened.calibrated else with_reach
    for i, (name, recipe) in enumerate(recipes.items(), start=1):
        inside = Within(running.observer, f"{name} ({i} of {len(recipes)})", len(recipes) - i)
        try:
            result = compiled(opened, recipe, replace(running, progress=inside), reach)
        except GraphpruneError as error:
            yield name, error
            continue
        yield name, outcome_of(result, name, saved(result, name, folder))


def by_name(recipes: Mapping[str, Recipe] | Iterable[Recipe]) -> dict[str, Recipe]:
    """Recipes by the names of their points: the targets, and a number where several have the same ones.

    Raises:
        OptionError: Something is no recipe.
    """
    if isinstance(recipes, Mapping):
        return dict(recipes)
    found: dict[str, Recipe] = {}
    for recipe in recipes:
        if not isinstance(recipe, Recipe):
            raise OptionError(f"a '{type(recipe).__name__}' is no recipe; give Recipe.of(target=...), several of them")
        name = first = ",".join(recipe.targets) or "recipe"
        n = 1
        while name in found:
            n += 1
            name = f"{first} {n}"
        found[name] = recipe
    return found


def points_of(targets: Iterable[str | Mapping[str, float | str]]) -> dict[str, list[str]]:
    """The targets of a sweep by the names of its points, checked, each once.

    Raises:
        GraphpruneError: There is none, or one cannot be read.
    """
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


def _median(points: list[FrontPoint]) -> FrontPoint:
    """The original, whose latency was measured in turns with each of the others."""
    first = points[0]
    latency = {n: sorted(point.latency[n] for point in points)[len(points) // 2] for n in first.latency}
    return replace(first, latency=latency)


def _require_apart(model: Any, names: Iterable[str], folder: str | Path | None) -> None:
    """Refuses to write a point over the model that all points are made from.

    Raises:
        OptionError: One would be.
    """
    if folder is None or not isinstance(model, str | Path):
        return
    for name in names:
        written, _ = paths_of(name, folder)
        if written.resolve() == Path(model).resolve():
            raise OptionError(f"'{written}' is the model itself, and the result for {name}; give another folder")
