"""``graphprune sweep`` and ``graphprune sensitivity``: several budgets in a row, and each group alone."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

import graphprune as gp
from graphprune.commands.bundles import RECOVERY, AsJson, Data, Model, Opening, Running, Showing
from graphprune.commands.offered import Offers
from graphprune.commands.pipelines import print_pipelines
from graphprune.commands.shell import dump, out, print_json, progress, require_distinct
from graphprune.defaults import SENSITIVITY_RATIOS, SENSITIVITY_SAMPLES
from graphprune.errors import OptionError
from graphprune.files import output_folder, require_writable, write_text
from graphprune.recipe import Recipe
from graphprune.recipe.options import option
from graphprune.report.envelope import described
from graphprune.report.plots import FORMATS, drawn, plot_front, plot_sensitivity
from graphprune.report.terminal import render_front, render_sensitivity
from graphprune.suggest import meant

Folder = Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The folder to write to; made if need be.")]


@dataclass(frozen=True, kw_only=True)
class Plotting:
    """What is written into the folder beside the table.

    Attributes:
        plot: png, svg or none.
        save_models: Write each pruned model and its plan.
    """

    plot: str = option("png", metavar="FORMAT")
    save_models: bool = option(default=False)

    def __post_init__(self) -> None:
        if self.plot not in (*FORMATS, "none"):
            raise OptionError(
                f"unknown format {meant(self.plot, (*FORMATS, 'none'))} of --plot; expected {', '.join(FORMATS)} or "
                "none"
            )


@dataclass(frozen=True, kw_only=True)
class Trials:
    """What is removed on trial.

    Attributes:
        ratios: Fractions of a group's units to remove on trial.
        align: Widths on trial stay multiples of this where the width allows.
    """

    ratios: str = option(",".join(map(str, SENSITIVITY_RATIOS)), metavar="R,R,...")
    align: int = option(1)

    @property
    def fractions(self) -> tuple[float, ...]:
        """The ratios as numbers.

        Raises:
            OptionError: One is none.
        """
        try:
            return tuple(float(part) for part in self.ratios.split(","))
        except ValueError:
            raise OptionError(f"cannot read --ratios '{self.ratios}'; expected fractions like 0.25,0.5,0.75") from None


@dataclass(frozen=True, kw_only=True)
class Sweeping(Showing, Plotting):
    """What is shown of a sweep, what is written, and on how many processes it runs.

    Attributes:
        workers: Carry out so many points at the same time, in processes of their own; latency is measured afterwards.
    """

    workers: int = option(1, metavar="N")

    def __post_init__(self) -> None:
        Plotting.__post_init__(self)
        if self.workers < 1:
            raise OptionError(f"--workers is {self.workers}; expected 1 or more")

    @contextmanager
    def executor(self) -> Iterator[Executor | None]:
        """The processes; ``None`` for one after the other here."""
        if self.workers == 1:
            yield None
            return
        with ProcessPoolExecutor(self.workers, multiprocessing.get_context("spawn")) as pool:
            yield pool


def sweep(
    model: Model,
    output: Folder,
    target: Annotated[
        list[str], typer.Option("--target", metavar="METRIC=VALUE", help="One point, as for prune. Repeatable.")
    ],
    recipe: Annotated[Recipe, Offers(without=("target",))],
    data: Annotated[Data, Offers(without=RECOVERY)],
    opening: Opening,
    running: Annotated[Running, Offers(without=("time_passes",))],
    showing: Annotated[Sweeping, Offers(without=("full",))],
) -> None:
    """Prune MODEL to several targets; write front.json and a plot of metric, latency and size."""
    read = (model, recipe.source, running.profile, data.statistics, data.calibration, data.evaluate, data.tokenizer)
    require_distinct(read, output / "front.json", output / f"front.{showing.plot}")
    inputs, evaluation = data.opened()
    if running.print_pipeline:
        points = tuple(recipe.changed(target=each.split(",")) for each in target)
        print_pipelines(model, points, data, opening, as_json=showing.as_json)
        return
    with output_folder(output), progress(showing.as_json) as tell, showing.executor() as executor:
        for path in (output / "front.json", *data.written()):
            require_writable(path)
        front = gp.sweep(
            model,
            targets=target,
            recipe=recipe,
            **opening.keywords(),
            **running.keywords(dump),
            folder=output if showing.save_models else None,
            executor=executor,
            calibration=inputs,
            statistics=data.statistics,
            evaluate=evaluation,
            metric=data.metric,
            latency=not showing.no_latency,
            progress=tell,
        )
    write_text(output / "front.json", json.dumps(front.to_dict(), indent=1))
    if showing.plot != "none":
        plotted = output / f"front.{showing.plot}"
        front = replace(front, notes=(*front.notes, *drawn(lambda: plot_front(front, plotted), plotted)))
    if showing.as_json:
        print_json(front.to_dict(), described(model=model, output=output / "front.json"))
    else:
        out.print(render_front(front, title=model))


def sensitivity(
    model: Model,
    *,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Write sensitivity.json and a plot here.")
    ] = None,
    trials: Trials,
    recipe: Annotated[Recipe, Offers(only=("criterion", "loss", "protect", "only", "seed"), read=True)],
    data: Annotated[Data, Offers(without=("statistics", *RECOVERY), unset={"samples": f"{SENSITIVITY_SAMPLES}"})],
    opening: Opening,
    plotting: Annotated[Plotting, Offers(without=("save_models",))],
    showing: AsJson,
) -> None:
    """Show what removing part of each group alone does to the outputs or to --eval; with -o it can be continued."""
    if output is not None:
        written = (output / "sensitivity.json", output / f"sensitivity.{plotting.plot}")
        require_distinct((model, recipe.source, data.calibration, data.evaluate, data.tokenizer), *written)
    inputs, evaluation = data.opened(needed=False)
    with output_folder(output) if output is not None else nullcontext(), progress(showing.as_json) as tell:
        if output is not None:
            require_writable(output / "sensitivity.json")
        found = gp.sensitivity(
            model,
            **opening.keywords(),
            calibration=inputs,
            samples=SENSITIVITY_SAMPLES if data.samples is None else data.samples,
            evaluate=evaluation,
            metric=data.metric,
            ratios=trials.fractions,
            align=trials.align,
            recipe=recipe,
            folder=output,
            progress=tell,
        )
    if output is not None:
        write_text(output / "sensitivity.json", json.dumps(found.to_dict(), indent=1))
        if plotting.plot != "none":
            path, whole = output / f"sensitivity.{plotting.plot}", found
            found = replace(found, notes=(*found.notes, *drawn(lambda: plot_sensitivity(whole, path), path)))
    if showing.as_json:
        table = None if output is None else output / "sensitivity.json"
        print_json(found.to_dict(), described(model=model, output=table))
    else:
        out.print(render_sensitivity(found, title=model))
