"""``graphprune demo``: a trained net that comes with graphprune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphprune.commands.bundles import AsJson
from graphprune.commands.shell import out, print_json, progress
from graphprune.report.envelope import described


def demo(
    *,
    out_dir: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to write the pruned files.")] = Path(
        "graphprune-demo"
    ),
    showing: AsJson,
) -> None:
    """Prune a small trained CNN that ships with graphprune, and show accuracy, size, latency and proof."""
    from graphprune.demo.run import run_demo

    with progress(showing.as_json) as tell:
        outcome = run_demo(out_dir, tell)
    if showing.as_json:
        print_json(outcome.to_dict(), described(output=outcome.output))
    else:
        out.print(outcome.render())
