"""``graphprune recover``: a pruned model and its original, trained together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

import graphprune as gp
from graphprune.commands.bundles import Data, Model, Opening, Showing, Written
from graphprune.commands.offered import Offers
from graphprune.commands.shell import out, present, print_json, progress, require_distinct
from graphprune.files import require_writable, require_writable_folder
from graphprune.recipe import RECOVERING, Recipe
from graphprune.recipe.options import option
from graphprune.report.envelope import described
from graphprune.report.terminal import render_report

Pruned = Annotated[
    str,
    typer.Argument(
        metavar="PRUNED", help="What was pruned: an .onnx file, or the folder of save_state or of a checkpoint."
    ),
]


@dataclass(frozen=True, kw_only=True)
class Plans:
    """The plan before and after.

    Attributes:
        plan: The plan of what was pruned.
        plan_out: Write the plan of the recovered model, which knows its weights.
    """

    plan: Path | None = option(None, metavar="plan.json", unset="the one beside PRUNED")
    plan_out: Path | None = option(None, metavar="plan.json")


def recover(
    pruned: Pruned,
    original: Model,
    output: Written,
    recipe: Annotated[Recipe, Offers(only=(*RECOVERING, "verify", "seed"))],
    data: Annotated[Data, Offers(without=("statistics", "evaluate", "metric", "recover_data"))],
    opening: Opening,
    plans: Plans,
    showing: Showing,
) -> None:
    """Train PRUNED to answer as the ORIGINAL does, on inputs without labels (or with), and write it anew."""
    require_distinct((original, plans.plan, data.calibration, data.tokenizer), plans.plan_out, model=output, force=True)
    inputs, _ = data.opened()
    to_file = output.suffix == ".onnx"
    if not to_file:
        require_writable_folder(output)
    for path in present(output if to_file else None, plans.plan_out):
        require_writable(path)
    files = described(model=original, plan=plans.plan) if showing.as_json else {}
    with progress(showing.as_json, after=("write",)) as tell:
        result = gp.recover(
            pruned,
            inputs,
            original=original,
            plan=plans.plan,
            folder=data.recover_folder,
            latency=not showing.no_latency,
            export=to_file,
            progress=tell,
            **opening.keywords(),
            **{name: value for name, value in recipe.keywords().items() if name in (*RECOVERING, "verify", "seed")},
        )
        tell.begin("write")
        if to_file:
            result.save_onnx(output)
        elif hasattr(result.module, "save_pretrained"):
            proof = (*result.report.proof, *result.save_pretrained(output, data.tokenizer))
            result = replace(result, report=replace(result.report, proof=proof))
        else:
            result.save_state(output)
        if plans.plan_out is not None:
            result.plan.save(plans.plan_out)
    written = output if to_file else output / "plan.json"
    files |= described(output=written, plan=plans.plan_out) if showing.as_json else {}
    if showing.as_json:
        print_json({"output": str(output), **result.report.to_dict()}, files)
        return
    out.print(render_report(result.report, title=str(output), full=showing.full))
