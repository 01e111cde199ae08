"""How much a model depends on each of its groups: parts of them removed on trial, one group at a time."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from graphprune.analysis.groups import Analysis, Group
from graphprune.collector import frozen_garbage_collection
from graphprune.compiling import Named
from graphprune.data.batches import SAMPLES, Batches, open_batches
from graphprune.defaults import CRITERION, MEASURED_CRITERION
from graphprune.errors import BoundError, OptionError
from graphprune.evaluation import Evaluation, Runner
from graphprune.files import read_json, write_text
from graphprune.hosts.host import Runnable
from graphprune.hosts.onnx.blame import blaming_models
from graphprune.importance.judge import judges_for, known_losses, parse_losses
from graphprune.observer import SILENT, Observer, Step, observing
from graphprune.opened import Opened
from graphprune.opening import Shapes, Sizes
from graphprune.passes import Allocate, Analyze, Score, Select, default_pipeline
from graphprune.pipeline.passes import run_pipeline
from graphprune.pipeline.state import State
from graphprune.pipeline.trials import RATIOS, Measure, check_ratios, judged_loss, output_error, trials
from graphprune.pipeline.trials import SAMPLES as TRIED
from graphprune.planning.allocation import Limits
from graphprune.planning.plan import fingerprint
from graphprune.planning.select import chosen_groups
from graphprune.planning.selectors import doubts
from graphprune.recipe import Recipe, Selection
from graphprune.recipe.build import measuring
from graphprune.recipe.signature import takes_recipe
from graphprune.report.curves import OUTPUT_ERROR, Sensitivity, SensitivityRow, finite
from graphprune.turns import in_turn

PARTIAL = "sensitivity.partial.json"
"""What an interrupted run leaves in its folder; the next one with the same options goes on from there."""


@dataclass(frozen=True, eq=False)
class _Measured:
    """What trials are judged by.

    Attributes:
        name: Of the number.
        baseline: What the original has.
        measure: Takes it of a model.
        batches: The inputs, where outputs are compared.
    """

    name: str
    baseline: float
    measure: Measure
    batches: Batches | None = None


@blaming_models
@in_turn
@frozen_garbage_collection()
@takes_recipe(only=("criterion", "loss", "protect", "only", "seed"))
def sensitivity(
    model: Any,
    example_inputs: Any = None,
    *,
    calibration: Any = None,
    samples: int = TRIED,
    evaluate: Any = None,
    metric: str | None = None,
    ratios: Sequence[float] = RATIOS,
    align: int = 1,
    shapes: Shapes | None = None,
    sizes: Sizes | None = None,
    dynamic_shapes: Any = None,
    trust: bool = False,
    folder: str | Path | None = None,
    progress: Observer | Callable[[str], None] | None = None,
    recipe: Named = None,
    **keywords: Any,
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
        align: Widths that are left are multiples of this where the width allows.
        shapes: Shapes of inputs by name, for dynamic axes of ONNX files.
        sizes: Sizes of dynamic axes of ONNX files by the names that the file gives them: ``{"past": 5}``.
        dynamic_shapes: Dynamic axes of a PyTorch model.
        trust: Whether a ``.pt2`` file may be loaded.
        folder: Where an interrupted run is noted, so that the next goes on from there.
        progress: As for :func:`graphprune.prune`.
        recipe: As for :func:`graphprune.prune`; what it says of other things does not count.
        **keywords: Those options of a :class:`Recipe` that count here.

    Raises:
        GraphpruneError: One of its kinds, with a message that says what to do.
    """
    wanted = Recipe.read(recipe, **keywords)
    opened = Opened(
        model, example_inputs, data=calibration, samples=SAMPLES if calibration is None else samples, evaluate=evaluate,
        metric=metric, shapes=shapes, sizes=sizes, dynamic_shapes=dynamic_shapes, trust=trust,
    )  # fmt: skip
    return tried(
        opened, wanted, ratios=ratios, samples=samples, align=align, folder=folder, observer=observing(progress)
    )


def tried(
    opened: Opened,
    recipe: Recipe,
    *,
    ratios: Sequence[float] = RATIOS,
    samples: int = TRIED,
    align: int = 1,
    folder: str | Path | None = None,
    observer: Observer = SILENT,
) -> Sensitivity:
    """Removes part of each group alone, least important units first, and measures what that does (Li 2016).

    Args:
        opened: The model; its metric counts if there is one, else the relative error of the outputs.
        recipe: What may be pruned, and how units are scored.
        ratios: Fractions of a group's units that are removed.
        samples: Outputs are compared on at most so many.
        align: Widths that are left are multiples of this where the width allows.
        folder: Where an interrupted run is noted, so that the next goes on from there.
        observer: Told each step before it begins.

    Raises:
        GraphpruneError: One of its kinds, with a message that says what to do.
    """
    if recipe.judge.loss and opened.evaluate is not None:
        raise OptionError("'loss' and 'evaluate' both say what is measured; leave one of them out")
    check_ratios(ratios)
    Limits(align)
    state = _scored(opened, recipe, samples, observer)
    analysis, original, selection = state.analyzed("score"), state.host, recipe.select
    groups = chosen_groups(analysis, selection.only, selection.protect)
    if not groups:
        raise OptionError("no group of this model can be pruned, so there is nothing to try; see 'graphprune inspect'")
    observer.expected(["measure the original", "group"])
    observer.begin("measure the original")
    judged = _judged(opened, state, samples)
    path = None if folder is None else Path(folder) / PARTIAL
    key = {} if path is None else {**_key(state, judged, ratios, recipe), "align": align}
    rows = _resumed(path, key)
    done = {(row.group, row.ratio) for row in rows}
    for i, group in enumerate(groups):
        left = [ratio for ratio in ratios if (group.name, ratio) not in done]
        observer.step(Step("group", i, len(groups), group.name))
        rows.extend(
            SensitivityRow(group.name, group.kind, group.size, trial.ratio, trial.removed, judged.measure(trial.host))
            for trial in (trials(original, analysis, (group,), state.scores, left, align) if left else ())
        )
        if path is not None and left:
            write_text(path, json.dumps({"key": key, "rows": [asdict(row) for row in rows]}))
    if path is not None:
        path.unlink(missing_ok=True)
    return Sensitivity(
        judged.name,
        judged.baseline,
        _in_order(rows, groups),
        judged.batches is not None and judged.batches.random,
        _doubts(analysis, selection),
    )


def _scored(opened: Opened, recipe: Recipe, samples: int, observer: Observer) -> State:
    """The state with scores, and with made-up inputs where outputs are to be compared on some and there are none."""
    state = opened.start(observer)
    state = replace(state, asked=known_losses(parse_losses(recipe.judge.loss), state.host))
    batches = opened.batches(recipe.seed)
    if batches is None and opened.evaluate is None:
        batches = open_batches(None, state.host, samples=samples, seed=recipe.seed)
    criterion, selection = _criterion(opened, recipe), recipe.select
    passes = default_pipeline(
        Analyze(),
        Score(criterion, recipe.seed),
        Allocate(),
        measuring(criterion),
        Select(selection.only, selection.protect) if selection.only or selection.protect else None,
    )
    end = next(i for i, each in enumerate(passes) if isinstance(each, Score))
    return run_pipeline(passes[: end + 1], replace(state, batches=batches), observer=observer)


def _judged(opened: Opened, state: State, samples: int) -> _Measured:
    """The user's metric, or the error of the outputs."""
    evaluation = opened.evaluation(SILENT)
    if evaluation is None:
        assert state.batches is not None
        if state.asked:
            judges = judges_for(state.host, state.asked)
            name = f"loss relative to answering the mean: {'; '.join(map(str, judges))}"
            return _Measured(name, 0.0, judged_loss(state.host, state.batches, judges, samples), state.batches)
        return _Measured(OUTPUT_ERROR, 0.0, output_error(state.host, state.batches, samples), state.batches)
    if not evaluation.before:
        raise OptionError(f"{evaluation.where} returns no number; expected at least one")
    name, baseline = next(iter(evaluation.before.items()))
    return _Measured(name, baseline, _by_metric(evaluation, name))


def _key(state: State, judged: _Measured, ratios: Sequence[float], recipe: Recipe) -> dict[str, Any]:
    """All that a partial result depends on."""
    return {
        "fingerprint": fingerprint(state.analyzed("score").graph),
        "measure": judged.name,
        "baseline": finite(judged.baseline),
        "ratios": list(ratios),
        "seed": recipe.seed,
        "scores": _digest(state.scores.values()),
        "weights": state.measured.digest(state.host),
        "data": "" if judged.batches is None else judged.batches.fingerprint,
    }


def _criterion(opened: Opened, recipe: Recipe) -> str:
    return recipe.score.criterion or (MEASURED_CRITERION if opened.calibrated else CRITERION)


def _in_order(rows: Iterable[SensitivityRow], groups: Sequence[Group]) -> tuple[SensitivityRow, ...]:
    order = {group.name: i for i, group in enumerate(groups)}
    return tuple(sorted((row for row in rows if row.group in order), key=lambda row: (order[row.group], row.ratio)))


def _doubts(analysis: Analysis, selection: Selection) -> tuple[str, ...]:
    return (*doubts(analysis, "only", selection.only), *doubts(analysis, "protect", selection.protect))


def _digest(arrays: Iterable[NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def _by_metric(evaluation: Evaluation, name: str) -> Measure:
    def measure(host: Runnable) -> float:
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
