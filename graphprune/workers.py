"""The points of a sweep in other processes: on the cores of a machine, or on those of a cluster.

What is measured on the model is measured once, here, and goes along with the model; each point is carried out by a
worker and comes back as numbers, and as files where some are wanted. No file system is shared. Latency is measured
here, when all workers are done: beside busy neighbours it would be theirs.
"""

from __future__ import annotations

import pickle
import tempfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from graphprune.bounds import Bounds, bounded, present
from graphprune.compiling import Reaching, Running, compiled, measure_before
from graphprune.early import with_reach
from graphprune.errors import GraphpruneError, OptionError, first_line
from graphprune.files import replaced
from graphprune.hosts.onnx.blame import blaming_models
from graphprune.observer import SILENT, Observer
from graphprune.opened import Opened
from graphprune.planning.target import parse_targets
from graphprune.points import Outcome, outcome_of, paths_of, saved
from graphprune.recipe import Recipe
from graphprune.runtime import sessions as runtime
from graphprune.statistics.measurements import Measurements
from graphprune.turns import in_turn, waiting_out_of_turn

BROKEN = (BrokenExecutor, CancelledError)


@dataclass(frozen=True)
class Shared:
    """What all points of a sweep have in common, as it goes to the workers.

    Attributes:
        model: And all else that it is opened with: the arguments of :class:`graphprune.opened.Opened`.
        measured: What was measured on it.
        original: The digest of the model, and what the user's metric gives for it.
        running: How recipes are carried out.
        reach: The groups that are measured, where that is known.
        bounds: What the model may ask for.
        files: Whether the pruned models and their plans are wanted.
    """

    model: Mapping[str, Any]
    measured: Measurements
    original: tuple[str, Mapping[str, float]] | None
    running: Running
    reach: Reaching | None
    bounds: Bounds
    files: bool


@dataclass(frozen=True)
class Carried:
    """A point that a worker has carried out.

    Attributes:
        outcome: Its numbers.
        files: What is to be written, by name: the model first.
    """

    outcome: Outcome
    files: Mapping[str, bytes]


_kept = threading.local()
"""Of each worker: the model that it has opened last, by what it came as, since it is asked for several points of it."""


def carry_out(shared: bytes, name: str, recipe: Recipe) -> Carried | GraphpruneError:
    """What a worker does: one point.

    Args:
        shared: What all points have in common, pickled.
        name: Of the point.
        recipe: The recipe.

    Returns:
        The point, or why there is none.
    """
    if getattr(_kept, "source", None) != shared:
        loaded: Shared = pickle.loads(shared)
        opened = Opened(**loaded.model)
        opened.take_over(loaded.measured, loaded.original)
        _kept.source, _kept.shared, _kept.opened = shared, loaded, opened
    try:
        return _carried_out(_kept.opened, _kept.shared, name, recipe)
    except GraphpruneError as error:
        return error


@blaming_models
@in_turn
def _carried_out(opened: Opened, shared: Shared, name: str, recipe: Recipe) -> Carried:
    with bounded(**asdict(shared.bounds)), tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
        opened.begin()
        result = compiled(opened, recipe, shared.running, shared.reach or with_reach)
        written = saved(result, name, folder if shared.files else None)
        names = (*written, *sorted({each.name for each in Path(folder).iterdir()}.difference(written)))
        return Carried(outcome_of(result, name, written), {each: (Path(folder) / each).read_bytes() for each in names})


def spread(
    opened: Opened, recipes: Mapping[str, Recipe], running: Running, executor: Executor, folder: str | Path | None
) -> Iterator[tuple[str, Outcome | GraphpruneError]]:
    """Carries out recipes on the workers of an executor, each from the original.

    Args:
        opened: The model.
        recipes: By the names of the points.
        running: How they are carried out.
        executor: Whose workers can import what the model, the data and the metric are made of.
        folder: Where the pruned models and their plans are written; nothing is if absent.

    Yields:
        The points in the order of the recipes, each its numbers or why there are none.

    Raises:
        OptionError: Something cannot be sent to other processes, or the workers are gone.
    """
    if running.dump_after:
        raise OptionError("graphs cannot be dumped after passes that run on other workers; leave 'executor' out")
    observer = running.observer
    apart = {name: recipe for name, recipe in recipes.items() if _measures_latency(recipe)}
    spread_out = {name: recipe for name, recipe in recipes.items() if name not in apart}
    found: dict[str, Outcome | GraphpruneError] = {}
    with tempfile.TemporaryDirectory(prefix="graphprune-") as own:
        target = Path(own) if folder is None else Path(folder)
        if spread_out:
            shared = _shared(opened, spread_out, running, files=folder is not None or running.latency)
            for name, given in _gathered(executor, shared, spread_out, observer):
                if isinstance(given, GraphpruneError):
                    found[name] = given
                    continue
                _write(given.files, target)
                files = given.outcome.point.files if folder is not None else ()
                found[name] = given.outcome._replace(point=replace(given.outcome.point, files=files))
        if running.latency:
            _measure_latency(opened, recipes, found, target, observer)
    for name, recipe in recipes.items():
        yield name, _in_turn(opened, name, recipe, running, folder) if name in apart else found[name]


def _measures_latency(recipe: Recipe) -> bool:
    """Whether a recipe is about latency: what is measured on the way should be measured apart from busy neighbours."""
    named = (
        {target.metric for target in parse_targets(recipe.targets)} if recipe.targets and not recipe.zeros else set()
    )
    return "latency" in named or "latency" in str(recipe.passes or "")


def _in_turn(
    opened: Opened, name: str, recipe: Recipe, running: Running, folder: str | Path | None
) -> Outcome | GraphpruneError:
    try:
        result = compiled(opened, recipe, running)
    except GraphpruneError as error:
        return error
    return outcome_of(result, name, saved(result, name, folder))


def _shared(opened: Opened, recipes: Mapping[str, Recipe], running: Running, *, files: bool) -> bytes:
    """What all points have in common, pickled; what is measured on data is measured now."""
    reach = measure_before(opened, recipes.values(), running) if opened.calibrated else None
    evaluation = opened.evaluation(running.observer)
    there = replace(running, latency=False, progress=SILENT, dump=_nothing)
    made = Shared(
        opened.arguments,
        opened.measured,
        None if evaluation is None else (opened.measured.digest(opened.host), evaluation.before),
        there,
        reach,
        present(),
        files,
    )
    try:
        return pickle.dumps(made, protocol=5)
    except Exception as error:
        raise OptionError(
            f"the model, its data or its metric cannot be sent to other workers: {first_line(error)}; give the path "
            "of a file, a module or function that can be pickled (of a module of its own, no lambda), or leave "
            "'executor' out"
        ) from error


def _nothing(text: str) -> None:
    """Takes the text of a graph that nobody asked for."""


def _gathered(
    executor: Executor, shared: bytes, recipes: Mapping[str, Recipe], observer: Observer
) -> Iterator[tuple[str, Carried | GraphpruneError]]:
    futures: dict[str, Future[Carried | GraphpruneError]] = {}
    try:
        for name, recipe in recipes.items():
            futures[name] = executor.submit(carry_out, shared, name, recipe)
        observer.begin(f"{len(futures)} points on other workers")
        waiting_out_of_turn(futures.values())
        for name, future in futures.items():
            yield name, future.result()
    except (*BROKEN, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not isinstance(error, BROKEN) and futures.keys() == recipes.keys():
            raise  # of the work itself; an executor that is shut down refuses to begin it
        raise OptionError(
            f"the workers are gone before their work was done: {first_line(error)}; they may have run out of memory, "
            "or could not be started: give fewer of them, and call from below if __name__ == '__main__'"
        ) from error
    finally:
        for future in futures.values():
            future.cancel()


def _write(files: Mapping[str, bytes], folder: Path) -> None:
    for name, data in reversed(list(files.items())):  # what a model refers to is there before it
        with replaced(folder / name) as path:
            path.write_bytes(data)


def _measure_latency(
    opened: Opened,
    recipes: Mapping[str, Recipe],
    found: dict[str, Outcome | GraphpruneError],
    folder: Path,
    observer: Observer,
) -> None:
    """Measures the models of all points, each in turns with the original."""
    with tempfile.TemporaryDirectory(prefix="graphprune-") as own:
        before = Path(own) / "before.onnx"
        for name, outcome in found.items():
            if isinstance(outcome, GraphpruneError):
                continue
            observer.begin(f"measure the latency of {name}")
            if not before.exists():
                opened.host.save_onnx(before)
            inputs = opened.host.example_inputs(recipes[name].seed)
            rows = runtime.measure([before, paths_of(name, folder)[0]], [inputs, inputs], seconds=1.0)
            first = {row.threads: row.milliseconds[0] for row in rows}
            then = {row.threads: row.milliseconds[1] for row in rows}
            kept = {threads: then[threads] / first[threads] for threads in first}
            found[name] = outcome._replace(
                original=replace(outcome.original, latency=first, latency_kept=dict.fromkeys(first, 1.0)),
                point=replace(outcome.point, latency=then, latency_kept=kept),
            )
