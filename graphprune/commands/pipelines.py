"""``graphprune passes``, and what ``--print-pipeline`` prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

import graphprune as gp
from graphprune.commands.bundles import AsJson, Data, Opening
from graphprune.commands.shell import out, print_json, progress
from graphprune.errors import GraphpruneError
from graphprune.recipe import Recipe
from graphprune.recipe.options import first_sentence, plain
from graphprune.recipe.text import pipeline_text

if TYPE_CHECKING:
    from graphprune.passes import Pass


def passes(showing: AsJson) -> None:
    """List the passes that --pipeline takes, with what they need, what they give, and their options."""
    from graphprune.passes import all_passes

    listed = [_described_by_name(name, all_passes()) for name in all_passes()]
    if showing.as_json:
        print_json({"passes": listed})
        return
    for row in listed:
        out.print(f"[bold]{row['name']}[/]  {escape(row['doc'])}", highlight=False)
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
        for key in ("needs", "gives"):
            if row[key]:
                table.add_row(f"[dim]{key}[/]", "", escape("; ".join(row[key])))
        for each in row["options"]:
            default = "(required)" if each["required"] else each["default"]
            table.add_row(f"[cyan]{each['name']}[/]", escape(default), escape(each["doc"]))
        if table.row_count:
            out.print(table, highlight=False)


def _described_by_name(name: str, known: Mapping[str, type[Pass]]) -> dict[str, Any]:
    """What there is to say of a pass; of one that its package does not bring, why not."""
    try:
        return _described(known[name])
    except GraphpruneError as error:
        return {"name": name, "doc": str(error), "needs": [], "gives": [], "options": []}


def _described(cls: type[Pass]) -> dict[str, Any]:
    """What there is to say of a pass."""
    from graphprune.pipeline.options import options_of, summary

    options = options_of(cls)
    missing = [each.name for each in options.values() if each.required]
    made = None if missing else cls()  # by default; what only some options need stands in may_need
    return {
        "name": cls.name,
        "doc": plain(summary(cls)),
        "needs": [] if made is None else [*_phrases(made.needs), *_phrases(cls.may_need)],
        "gives": [] if made is None else _phrases(made.gives),
        "options": [
            {
                "name": each.name,
                "type": each.type,
                "required": each.required,
                "default": "" if each.required else _shown(each.default),
                "doc": plain(first_sentence(each.doc)),
            }
            for each in options.values()
        ],
    }


def _phrases(names: Iterable[str]) -> list[str]:
    """Keys as a reader has them, in the order in which they are made; with what asks for them, if that is said."""
    from graphprune.pipeline.keys import KEYS

    asked = names if isinstance(names, Mapping) else {}
    order = [*KEYS, *sorted(set(names) - KEYS.keys() - {"*"})]
    phrases = {name: KEYS[name].phrase if name in KEYS else name for name in order if name in names}
    return [f"{phrase} ({plain(asked[name])})" if name in asked else phrase for name, phrase in phrases.items()]


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return "|".join(map(str, default)) if isinstance(default, tuple) else str(default)


def print_pipelines(
    model: str, recipes: Sequence[Recipe], data: Data, opening: Opening, *, as_json: bool = False
) -> None:
    """Prints the passes of recipes as text that ``--pipeline`` takes, one line each.

    The model is opened only where the passes depend on it: by default losses are measured if an output is a number.
    """
    from graphprune.compiling import Running, passes_of

    inputs, _ = data.opened()
    session = gp.Session(model, data=inputs, **opening.keywords())
    running = Running(statistics=data.statistics)

    def text(recipe: Recipe) -> str:
        open_first = session.calibrated and not (recipe.passes or recipe.allocate.allocation)
        return pipeline_text(passes_of(session, recipe, running, measurable=open_first and session.measurable))

    with progress(as_json):
        texts = list(map(text, recipes))
    if as_json:
        print_json({"pipelines": texts})
    else:
        out.write("\n".join(texts) + "\n")
