"""``graphprune passes``, and what ``--print-pipeline`` prints."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

import graphprune as gp
from graphprune.commands.bundles import AsJson, Data, Opening
from graphprune.commands.shell import out, print_json, progress
from graphprune.recipe import Recipe
from graphprune.recipe.options import attributes, first_sentence, plain
from graphprune.recipe.text import pipeline_text

if TYPE_CHECKING:
    from graphprune.passes import Pass


def passes(showing: AsJson) -> None:
    """List the passes that --pipeline takes, with their options."""
    from graphprune.passes import all_passes

    listed = [_described(each) for each in all_passes().values()]
    if showing.as_json:
        print_json({"passes": listed})
        return
    for row in listed:
        out.print(f"[bold]{row['name']}[/]  {escape(row['doc'])}", highlight=False)
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
        for option in row["options"]:
            table.add_row(f"[cyan]{option['name']}[/]", escape(option["default"]), escape(option["doc"]))
        if row["options"]:
            out.print(table, highlight=False)


def _described(cls: type[Pass]) -> dict[str, Any]:
    """What there is to say of a pass."""
    texts = attributes(cls)
    return {
        "name": cls.name,
        "doc": plain(inspect.cleandoc(cls.__doc__ or "").partition("\n")[0]),
        "options": [
            {"name": each.name, "default": _shown(each.default), "doc": plain(first_sentence(texts.get(each.name, "")))}
            for each in fields(cls)
        ],
    }


def _shown(default: Any) -> str:
    if default is MISSING:
        return ""
    return "|".join(map(str, default)) if isinstance(default, tuple) else str(default)


def print_pipelines(
    model: str, recipes: Sequence[Recipe], data: Data, opening: Opening, *, as_json: bool = False
) -> None:
    """Prints the passes of recipes as text that ``--pipeline`` takes, one line each.

    The model is opened only where the passes depend on it: by default losses are measured if an output is a number.
    """
    calibrated = data.calibration is not None
    open_first = calibrated and any(not (each.passes or each.allocate.allocation) for each in recipes)
    measurable = False
    if open_first:
        with progress(as_json):
            graph = gp.analyze(model, **opening.keywords()).graph
        measurable = any("float" in graph.values[name].dtype for name in graph.outputs)
    statistics = "" if data.statistics is None else str(data.statistics)
    texts = [
        pipeline_text(each.pipeline(calibrated=calibrated, measurable=measurable, statistics=statistics))
        for each in recipes
    ]
    if as_json:
        print_json({"pipelines": texts})
    else:
        out.write("\n".join(texts) + "\n")
