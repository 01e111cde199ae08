"""``graphprune profile``: what operators take, for latency targets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

import graphprune as gp
from graphprune.commands.bundles import AsJson, Model, Opening
from graphprune.commands.shell import err, out, print_json, require_distinct
from graphprune.defaults import ALIGN
from graphprune.files import require_writable
from graphprune.recipe.options import option
from graphprune.report.envelope import described
from graphprune.report.terminal import render_profile


@dataclass(frozen=True, kw_only=True)
class Profiling:
    """How latency is measured.

    Attributes:
        threads: Threads within an operator; 0 means all cores.
        provider: onnxruntime's execution provider.
        align: Widths are measured at multiples of this where possible.
        quick: Fewer widths and less time.
        seconds: About how long to measure in all.
    """

    threads: int = option(1)
    provider: str = option("CPUExecutionProvider")
    align: int = option(ALIGN)
    quick: bool = option(default=False)
    seconds: float | None = option(None, unset="120, with --quick 20")


def profile(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="profile.json", help="The table to write.")],
    profiling: Profiling,
    opening: Opening,
    showing: AsJson,
) -> None:
    """Measure what the operators of MODEL take in onnxruntime at smaller widths, for latency targets."""
    require_distinct((model,), output)
    require_writable(output)
    with Progress(console=err, transient=True, disable=showing.as_json or not err.is_terminal) as bars:
        task = bars.add_task("measure operators", total=None)
        made = gp.profile(
            model,
            **vars(profiling),
            **opening.keywords(),
            advance=lambda done, total: bars.update(task, completed=done, total=total),
        )
    made.save(output)
    if showing.as_json:
        print_json({"output": str(output), **made.to_dict()}, described(model=model, output=output))
    else:
        out.print(render_profile(made, title=str(output)))
