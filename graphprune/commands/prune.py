"""``graphprune prune`` and ``graphprune apply``: a smaller ONNX file, by a recipe or by a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table

import graphprune as gp
from graphprune.commands.bundles import RECOVERY, Data, Model, Opening, Output, Plan, Running, Showing, Writing, Written
from graphprune.commands.offered import Offers
from graphprune.commands.pipelines import print_pipelines
from graphprune.commands.shell import dump, out, present, print_json, progress, require_distinct
from graphprune.errors import OptionError
from graphprune.files import require_writable, require_writable_folder
from graphprune.recipe import Recipe
from graphprune.report.envelope import described
from graphprune.report.terminal import render_report


def prune(
    model: Model,
    output: Written,
    recipe: Recipe,
    data: Data,
    opening: Opening,
    running: Running,
    writing: Writing,
    showing: Showing,
) -> None:
    """Prune MODEL to a budget and write a smaller ONNX file, or a checkpoint."""
    read = (model, recipe.source, running.profile, data.statistics, data.calibration, data.evaluate, data.tokenizer)
    require_distinct(read, writing.plan_out, model=output, force=writing.force)
    inputs, evaluation = data.opened()
    if running.print_pipeline:
        print_pipelines(model, (recipe,), data, opening, as_json=showing.as_json)
        return
    checkpoint = writing.checkpoint(model, output)
    if checkpoint:
        require_writable_folder(output)
        recipe = recipe if recipe.passes or recipe.allocate.layout else recipe.changed(layout="stock")
    for path in (*present(None if checkpoint else output, writing.plan_out), *data.written()):
        require_writable(path)
    streamed = checkpoint and (writing.stream or _outgrows_memory(model))
    if writing.stream and not checkpoint:
        what = "MODEL is none" if not Path(model).is_dir() else "-o has a suffix; give it none"
        raise OptionError(f"--stream takes the weights of a checkpoint's folder and writes another one, and {what}")
    files = described(model=model, profile=running.profile, recipe=recipe.source) if showing.as_json else {}
    with progress(showing.as_json, after=("write",)) as tell:
        result = gp.prune(
            model,
            recipe=recipe,
            **opening.keywords(),
            **running.keywords(dump),
            calibration=inputs,
            statistics=data.statistics,
            **data.recovery(),
            evaluate=evaluation,
            metric=data.metric,
            stream=streamed,
            latency=not (showing.no_latency or streamed),
            export=not streamed,
            progress=tell,
        )
        tell.begin("write")
        if checkpoint:
            proof = (*result.report.proof, *result.save_pretrained(output, data.tokenizer))
            result = replace(result, report=replace(result.report, proof=proof))
        else:
            result.save_onnx(output)
        if writing.plan_out is not None:
            result.plan.save(writing.plan_out)
    written = output / "config.json" if checkpoint else output
    files |= described(output=written, plan=writing.plan_out) if showing.as_json else {}
    _show(result, output, files, showing, time_passes=running.time_passes)


def apply(
    model: Model,
    plan: Plan,
    output: Output,
    recipe: Annotated[Recipe, Offers(only=("seed", "verify"))],
    data: Annotated[Data, Offers(without=("statistics", "evaluate", "metric", "labels", *RECOVERY))],
    opening: Opening,
    writing: Annotated[Writing, Offers(without=("plan_out", "to", "stream"))],
    showing: Showing,
) -> None:
    """Replay a plan on MODEL (or on another checkpoint of it) and write a smaller ONNX file."""
    require_distinct((model, plan, data.calibration, data.tokenizer), model=output, force=writing.force)
    inputs, _ = data.opened()
    require_writable(output)
    files = described(model=model, plan=plan) if showing.as_json else {}
    with progress(showing.as_json, after=("write",)) as tell:
        result = gp.apply(
            model,
            plan,
            **opening.keywords(),
            calibration=inputs,
            seed=recipe.seed,
            verify=recipe.proof.verify,
            latency=not showing.no_latency,
            export=True,
            progress=tell,
        )
        tell.begin("write")
        result.save_onnx(output)
    files |= described(output=output) if showing.as_json else {}
    _show(result, output, files, showing)


def _show(
    result: gp.Result, output: Path, files: Mapping[str, Any], showing: Showing, *, time_passes: bool = False
) -> None:
    """Prints the report, as JSON or as tables."""
    if showing.as_json:
        print_json({"output": str(output), **result.report.to_dict()}, files)
        return
    out.print(render_report(result.report, title=str(output), full=showing.full))
    if time_passes:
        table = Table(title="time", title_justify="left", show_edge=False)
        table.add_column("pass")
        table.add_column("seconds", justify="right")
        for step, seconds in result.report.seconds:
            table.add_row(step, f"{seconds:.3f}")
        out.print("", table)


def _outgrows_memory(model: str) -> bool:
    from graphprune.opening import outgrows_memory  # reads with onnx, which takes half of the start

    return outgrows_memory(Path(model))
