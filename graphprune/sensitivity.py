"""How much a model depends on each of its groups: parts of them removed on trial, one group at a time."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from graphprune.api import measuring
from graphprune.collector import frozen_heap
from graphprune.data.batches import open_batches
from graphprune.defaults import CRITERION, MEASURED_CRITERION
from graphprune.early import require_choices
from graphprune.errors import BoundError, OptionError
from graphprune.evaluation import Runner, open_evaluation, require_evaluation
from graphprune.files import read_json, write_text
from graphprune.hosts.onnx.blame import blaming_models
from graphprune.look import selectors
from graphprune.observer import Observer, Step, observing
from graphprune.opening import Shapes, open_host, require_seed
from graphprune.passes import Allocate, Analyze, Score, Select, default_pipeline
from graphprune.passes.protect_sensitive import RATIOS, SAMPLES, Measure, check_ratios, output_error, trials
from graphprune.pipeline.host import Host
from graphprune.pipeline.passes import run_pipeline
from graphprune.pipeline.state import State
from graphprune.planning.plan import fingerprint
from graphprune.planning.select import chosen_groups
from graphprune.planning.selectors import doubts
from graphprune.report.curves import OUTPUT_ERROR, Sensitivity, SensitivityRow, finite
from graphprune.turns import in_turn

PARTIAL = "sensitivity.partial.json"
"""What an interrupted run leaves in its folder; the next one with the same options goes on from there."""


@blaming_models
@in_turn
@frozen_heap()
def sensitivity(
    model: Any,
    example_inputs: Any = None,
    *,
    calibration: Any = None,
    samples: int = SAMPLES,
    evaluate: Any = None,
    metric: str | None = None,
    ratios: Sequence[float] = RATIOS,
    criterion: str | None = None,
    protect: str | Sequence[str] = (),
    only: str | Sequence[str] = (),
    seed: int = 0,
    shapes: Shapes | None = None,
    dynamic_shapes: Any = None,
    trust: bool = False,
    folder: str | Path | None = None,
    progress: Observer | Callable[[str], None] | None = None,
) -> Sensitivity:
    """Removes part of each group alone, least important units first, and measures what that does (Li 2016).

    Args:
        model: As for :func:`graphprune.prune`.
        example_inputs: As for :func:`graphprune.prune`.
        calibration: Inputs on which outputs are compared; made-up ones if there are none.
        samples: At most so many of them are used.
        evaluate: Your metric, instead of the relative error of the outputs; the first number that it gives counts.
        metric: For labelled data: ``accuracy``, ``mse`` or ``perplexity``.
        ratios: Fractions of a group's units that are removed.
        criterion: How units are scored.
        protect: Patterns or kinds that are left out.
        only: Kinds, names or patterns of the groups to try; empty means all.
        seed: Of random scores and made-up inputs.
        shapes: Shapes of inputs by name, for dynamic axes of ONNX files.
        dynamic_shapes: Dynamic axes of a PyTorch model.
        trust: Whether a ``.pt2`` file may be loaded.
        folder: Where an interrupted run is noted, so that the next goes on from there.
        progress: As for :func:`graphprune.prune`.

    Raises:
        GraphpruneError: One of its kinds, with a message that says what to do.
    """
    require_seed(seed)
    require_evaluation(evaluate, metric)
    check_ratios(ratios)
    require_choices(criterion=criterion, only=only, protect=protect)
    protect, only = selectors(protect), selectors(only)
    observer = observing(progress)
    observer.begin("open")
    host = open_host(model, example_inputs, shapes=shapes, trust=trust, dynamic_shapes=dynamic_shapes)
    batches = None
    if evaluate is None or calibration is not None:
        batches = open_batches(calibration, host, samples=samples, seed=seed)
    criterion = criterion or (MEASURED_CRITERION if calibration is not None else CRITERION)
    passes = default_pipeline(
        Analyze(),
        Score(criterion, seed),
        Allocate(),
        None,
        calibrate=measuring(criterion),
        select=Select(only, protect) if only or protect else None,
    )
    end = next(i for i, each in enumerate(passes) if isinstance(each, Score))
    state = run_pipeline(passes[: end + 1], State(host, batches=batches), observer=observer)
    analysis, original = state.analyzed("score"), state.host
    groups = chosen_groups(analysis, only, protect)
    if not groups:
        raise OptionError("no group of this model can be pruned, so there is nothing to try; see 'graphprune inspect'")
    observer.begin("measure the original")
    if evaluate is None:
        assert batches is not None
        name, baseline, measure = OUTPUT_ERROR, 0.0, output_error(original, batches, samples)
    else:
        evaluation = open_evaluation(evaluate, host, metric=metric)
        if not evaluation.before:
            raise OptionError(f"{evaluation.where} returns no number; expected at least one")
        name, baseline = next(iter(evaluation.before.items()))
        measure = _by_metric(evaluation, name)
    key = {
        "fingerprint": fingerprint(analysis.graph),
        "measure": name,
        "baseline": finite(baseline),
        "ratios": list(ratios),
        "criterion": criterion,
        "seed": seed,
        "scores": _digest(state.scores.values()),
        "weights": original.model_digest(),
        "data": "" if batches is None else batches.fingerprint,
    }
    path = None if folder is None else Path(folder) / PARTIAL
    rows = _resumed(path, key)
    done = {(row.group, row.ratio) for row in rows}
    total = len(groups)
    for i, group in enumerate(groups):
        left = [ratio for ratio in ratios if (group.name, ratio) not in done]
        observer.step(Step("group", i, total, group.name))
        rows.extend(
            SensitivityRow(group.name, group.kind, group.size, trial.ratio, trial.removed, measure(trial.host))
            for trial in (trials(original, analysis, (group,), state.scores, left) if left else ())
        )
        if path is not None and left:
            write_text(path, json.dumps({"key": key, "rows": [asdict(row) for row in rows]}))
    order = {group.name: i for i, group in enumerate(groups)}
    rows = sorted((row for row in rows if row.group in order), key=lambda row: (order[row.group], row.ratio))
    if path is not None:
        path.unlink(missing_ok=True)
    made_up = evaluate is None and batches is not None and batches.random
    notes = (*doubts(analysis, "only", only), *doubts(analysis, "protect", protect))
    return Sensitivity(name, baseline, tuple(rows), made_up, notes)


def _digest(arrays: Iterable[NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def _by_metric(evaluation: Callable[[Runner], dict[str, float]], name: str) -> Measure:
    def measure(host: Host) -> float:
        run = Runner(host, getattr(host, "module", None))  # not the user's own module, which is whole
        return evaluation(run).get(name, math.nan)

    return measure


def _resumed(path: Path | None, key: object) -> list[SensitivityRow]:
    """What an interrupted run with the same options has found."""
    if path is None or not path.is_file():
        return []
    try:
        data = read_json(path, OptionError, "partial result", "remove it")
        return [_row(**row) for row in data["rows"]] if data["key"] == key else []
    except (OptionError, BoundError, KeyError, TypeError):  # not ours, or of another version: begin anew
        return []


def _row(group: str, kind: str, units: int, ratio: float, removed: int, value: float) -> SensitivityRow:
    """A row out of a file.

    Raises:
        TypeError: Something is of another type.
    """
    whole, texts = (units, removed), (group, kind)
    numbers = all(isinstance(each, int | float) for each in (ratio, value))
    if not numbers or not all(type(each) is int for each in whole) or not all(isinstance(each, str) for each in texts):
        raise TypeError("no row")
    return SensitivityRow(group, kind, units, ratio, removed, value)
