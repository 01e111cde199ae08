"""``graphprune inspect`` and ``graphprune explain``: what can be pruned, what stays whole, and why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

import graphprune as gp
from graphprune.analysis.dependency import DependencyGraph
from graphprune.commands.bundles import AsJson, Model, Opening
from graphprune.commands.offered import Offers
from graphprune.commands.shell import out, present, print_json, progress, require_distinct
from graphprune.errors import OptionError
from graphprune.files import require_writable, write_text
from graphprune.recipe import Recipe
from graphprune.report.data import inspect_analysis
from graphprune.report.envelope import described
from graphprune.report.explain import cut_along, explain_axis, layout_of
from graphprune.report.terminal import render_inspection
from graphprune.report.titles import named
from graphprune.suggest import nearest

Selecting = Annotated[Recipe, Offers(only=("protect", "resize_io"), read=True)]


def inspect(
    model: Model,
    *,
    recipe: Selecting,
    opening: Opening,
    dot: Annotated[
        Path | None, typer.Option(metavar="FILE.dot", help="Write the dependency graph for Graphviz.")
    ] = None,
    graphml: Annotated[
        Path | None, typer.Option(metavar="FILE.graphml", help="Write the dependency graph as GraphML.")
    ] = None,
    showing: AsJson,
) -> None:
    """Show what can be pruned in MODEL, and what stays whole and why."""
    require_distinct((model, recipe.source), dot, graphml)
    for path in present(dot, graphml):
        require_writable(path)
    with progress(showing.as_json):
        analysis = gp.analyze(
            model, protect=recipe.select.protect, resize_io=recipe.select.resize_io, **opening.keywords()
        )
    inspection = inspect_analysis(analysis)
    if dot is not None or graphml is not None:
        graph = DependencyGraph(analysis)
        if dot is not None:
            write_text(dot, graph.to_dot())
        if graphml is not None:
            graph.save_graphml(graphml)
    if showing.as_json:
        print_json(inspection.to_dict(), described(model=model))
    else:
        out.print(render_inspection(inspection, title=model))


def explain(
    model: Model,
    tensor: Annotated[str, typer.Argument(metavar="TENSOR", help="The name of a stored tensor (a weight).")],
    *,
    axis: Annotated[int | None, typer.Option(help="One axis only, from 0.")] = None,
    recipe: Selecting,
    opening: Opening,
    showing: AsJson,
) -> None:
    """Say why the dimensions of TENSOR are coupled to others, or why they stay whole."""
    with progress(showing.as_json):
        analysis = gp.analyze(
            model, protect=recipe.select.protect, resize_io=recipe.select.resize_io, **opening.keywords()
        )
    along = cut_along(analysis)
    names = [*(value.name for value in analysis.graph.stored), *along]
    if tensor not in names:
        near = [name for name in names if tensor in name][:5] or list(nearest(tensor, names)) or names[:5]
        raise OptionError(
            f"no stored tensor '{tensor}' in '{model}'; there are {len(names)}, such as {', '.join(near)}"
        )
    rank = len(layout_of(analysis, tensor))
    if axis is not None and not 0 <= axis < rank:
        raise OptionError(f"'{tensor}' has no axis {axis}; it has {rank} axes, from 0")
    facts = [explain_axis(analysis, tensor, i) for i in (range(rank) if axis is None else (axis,))]
    if showing.as_json:
        print_json({"tensor": tensor, "axes": facts}, described(model=model))
        return
    if tensor in along:
        out.print(f"read {along[tensor]} alone, and cut along", highlight=False)
    for fact in facts:
        _tell(fact)


def _tell(fact: Mapping[str, Any]) -> None:
    """Prints what there is to say of an axis."""
    title = escape(named(fact["axis"], fact["title"]))
    _print(f"[bold]{title}[/]  {fact['size']} = {escape(fact['layout'])}")
    for group in fact["groups"]:
        exact = "removal is exact" if group["exact"] else f"removal shifts statistics: {group['normalized']}"
        _print(f"  {group['units']} units of kind [cyan]{group['kind']}[/], {escape(exact)}; coupled with")
        for site in group["sites"]:
            _print(f"    {escape(site['axis'])}  [dim]{escape(' → '.join(site['through']))}[/]")
    for reason in fact["fixed"]:
        _print(f"  [yellow]stays whole:[/] {escape(reason)}")


def _print(text: str) -> None:
    out.print(text, highlight=False, soft_wrap=True)
