"""``graphprune verify`` and ``graphprune export``: a file against a plan, and the file that a plan is for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import graphprune as gp
from graphprune.commands.bundles import AsJson, Model, Opening, Output
from graphprune.commands.offered import Offers
from graphprune.commands.shell import ToldError, out, print_json, progress, require_distinct
from graphprune.errors import ProofError
from graphprune.files import require_writable
from graphprune.recipe import Recipe
from graphprune.report.envelope import described, failure
from graphprune.report.terminal import render_checks, render_verdict


def verify(
    original: Annotated[str, typer.Argument(metavar="ORIGINAL", help="The model before.")],
    pruned: Annotated[Path, typer.Argument(metavar="PRUNED", help="The ONNX file after, whoever made it.")],
    plan: Annotated[Path, typer.Option(metavar="plan.json", help="The plan.")],
    *,
    recipe: Annotated[Recipe, Offers(only=("seed",))],
    graph: Annotated[
        str,
        typer.Option(
            metavar="auto|exact|numeric",
            help="A graph that differs: refuse it unless another tool has clearly written it, always, or never (then "
            "only numbers are compared, and nothing is proven).",
        ),
    ] = "auto",
    opening: Opening,
    showing: AsJson,
) -> None:
    """Prove that PRUNED is what a plan makes of ORIGINAL, node by node and bit for bit."""
    with progress(showing.as_json):
        checks = gp.verify(original, pruned, plan, **opening.keywords(), seed=recipe.seed, graph=graph)
    failed = [check.name for check in checks if not check.passed]
    partial = [check.name for check in checks if check.partial]
    message = f"'{pruned}' is not what the plan makes of '{original}': {', '.join(failed)} failed"
    wrong = ProofError(message) if failed else None
    if showing.as_json:
        rows = [{**vars(check), "passed": check.passed} for check in checks]
        told = failure(wrong) if wrong is not None else {}
        files = described(model=original, output=pruned, plan=plan)
        print_json({"proven": not failed and not partial, "checks": rows, **told}, files)
    else:
        out.print(render_checks(checks))
        out.print(render_verdict(str(pruned), original, failed, partial), soft_wrap=True, highlight=False)
    if wrong is not None:
        raise ToldError(message) if showing.as_json else wrong


def export(model: Model, output: Output, opening: Opening) -> None:
    """Write a Python MODEL, unpruned, to an ONNX file that takes the plans made on the model."""
    require_distinct((model,), output)
    require_writable(output)
    with progress():
        gp.export_onnx(model, None, output, **opening.keywords())
