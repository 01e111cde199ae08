"""Measures what trained models lose when they are pruned without training, beside rivals on the same model and data.

For each model, recipe and fraction of MACs kept it prunes, runs the result on held-out real data and appends one record
to ``records.jsonl``; what is there already is not run again, so that a run can be stopped and goes on where it was.
``table.txt`` is made from the records. Models and data come from package registries (``torch_models.py``,
``onnx_models.py``, ``audio_models.py``, ``data.py``); where a download is refused the model is skipped and says so.
Everything runs on one thread.

    python -m tools.quality                                   all models, recipes and rivals, 0.9 to 0.5
    python -m tools.quality --cache DIR --list                what models there are, with sources and dense metrics
    python -m tools.quality --models ddddocr plcmos --recipes default isomorphic --ratios 0.7 --batches 4
    python -m tools.quality --minutes 60 --current            an hour's worth of what this code has not measured yet
    python -m tools.quality --report                          tables and plot of what is recorded
    python -m tools.quality --report --markdown               the table of docs/benchmarks.md

A rival's own ratio is searched until it keeps what was asked for (``rivals.py``); nobody fine-tunes. Seconds of the
first recipe of a model include its calibration, which the others share.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tools.bench.records import Record, Records, provenance, timed
from tools.bench.registry import CACHE
from tools.bench.runner import parser_of
from tools.quality import tables
from tools.quality.cases import Case, dense_runner
from tools.quality.models import CASES
from tools.quality.recipes import RECIPES, TABLE, applies, prune
from tools.quality.rivals import RIVALS, Rivals
from tools.quality.rivals import TABLE as RIVALS_TABLE

HERE = Path(__file__).parent
RATIOS = (0.9, 0.8, 0.7, 0.6, 0.5)
"""Fractions of MACs kept."""

KEY = ("model", "recipe", "ratio", "seed", "batches", "arguments")
"""What says which measurement a record is of."""


def measure(case: Case, rivals: Rivals, key: Record) -> Record:
    """What was kept, the values, seconds to prune and to evaluate."""
    begin = time.perf_counter()
    name, ratio = key["recipe"], key["ratio"]
    found: Record = {"metric": case.metric, "higher": case.higher, "n": case.n, "source": case.source}
    if name == tables.DENSE:
        run = dense_runner(case)
        found["macs"] = 1.0
    elif name in RIVALS:
        run, facts = rivals.pruned(name, ratio)
        found |= facts
    else:
        result, run = prune(case, name, ratio, seed=key["seed"], batches=key["batches"])
        found |= {metric: result.report.cost(metric).fraction for metric in ("macs", "params")}
    middle = time.perf_counter()
    values = case.evaluate(run)
    times = {"prune_seconds": middle - begin, "evaluate_seconds": time.perf_counter() - middle}
    return {**found, "values": values, **{name: round(value, 3) for name, value in times.items()}}


def keys_of(case: Case, rivals: Rivals, options: argparse.Namespace) -> Iterator[Record]:
    """The measurements of a model that were asked for, the dense one first."""
    pairs = [(tables.DENSE, 1.0), *((name, ratio) for ratio in options.ratios for name in options.recipes)]
    for name, ratio in pairs:
        own = name in RECIPES
        if not (applies(case, name) if own else name not in RIVALS or rivals.applies(name)):
            continue
        yield {
            "model": case.name, "recipe": name, "ratio": ratio, "seed": options.seed if own else 0,
            "batches": options.batches if own else None, "arguments": RECIPES.get(name, RIVALS.get(name)),
        }  # fmt: skip


def wanted(options: argparse.Namespace) -> Callable[[Record], bool]:
    """Whether a record is good enough not to be measured again."""

    def judge(record: Record) -> bool:
        if not record or options.fresh or (options.retry and "error" in record):
            return False
        # rivals do not change with our sources
        return not options.current or record["recipe"] not in RECIPES or record["sources"] == provenance()["sources"]

    return judge


def sweep(case: Case, records: Records, options: argparse.Namespace, deadline: float) -> None:
    """Runs what is missing for one model."""
    rivals = Rivals(case, options.cache)
    for key in records.missing(list(keys_of(case, rivals, options)), wanted(options)):
        if time.monotonic() > deadline:
            return
        if options.traceback:
            print(_line({**key, **measure(case, rivals, key), "cpu_seconds": 0.0}), flush=True)
            continue
        record = timed(key, lambda key=key: measure(case, rivals, key))
        records.add(record)
        print(_line(record), flush=True)
        gc.collect()


def _line(record: Record) -> str:
    start = f"{record['model']:20} {record['recipe']:26} {record['ratio']:.2f} "
    if "error" in record:
        return start + record["error"]
    values = "  ".join(f"{name} {value:.4g}" for name, value in record["values"].items())
    times = f"({record['prune_seconds']:.0f} + {record['evaluate_seconds']:.0f} s; {record['cpu_seconds']:.0f} CPU s)"
    return start + f"{record['macs']:.3f}  {values}  {times}"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder for models and data, outside the repository")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of records.jsonl and table.txt")
    parser.add_argument("--models", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--recipes", nargs="*", choices=[*RECIPES, *RIVALS], default=[*TABLE, *RIVALS_TABLE])
    parser.add_argument("--ratios", nargs="*", type=float, default=list(RATIOS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batches", type=int, help="at most so many calibration batches (a record of its own)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start nothing after so long")
    parser.add_argument("--current", action="store_true", help="run again what other sources of graphprune measured")
    parser.add_argument("--fresh", action="store_true", help="run again what is recorded")
    parser.add_argument("--retry", action="store_true", help="run again what failed")
    parser.add_argument("--traceback", action="store_true", help="record nothing; stop at an error and show its origin")
    parser.add_argument("--report", action="store_true", help="run nothing; write table.txt and quality.png")
    parser.add_argument("--markdown", action="store_true", help="with --report: print the table of documents")
    parser.add_argument("--list", action="store_true", help="measure the dense models only")
    options = parser.parse_args()
    options.cache = options.cache.resolve()
    if options.list:
        options.recipes = []
    return options


def main() -> int:
    """Runs what was asked for and is missing, then writes the table."""
    options = arguments()
    records = Records(options.out / "records.jsonl", KEY)
    if not options.report:
        _run(records, options)
    found = _shown(records, options)
    text = tables.report(found)
    print(tables.markdown(found) if options.markdown else text)
    (options.out / "table.txt").write_text(text)
    if options.report and found:
        tables.plot(found, options.out / "quality.png")
    return 0


def _run(records: Records, options: argparse.Namespace) -> None:
    import torch

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    deadline = time.monotonic() + 60 * options.minutes
    for name in options.models:
        if time.monotonic() > deadline:
            return
        try:
            case = CASES[name](options.cache)
        except RuntimeError as error:
            print(f"{name:20} skipped: {error}", flush=True)
            continue
        sweep(case, records, options, deadline)


def _shown(records: Records, options: argparse.Namespace) -> list[Record]:
    """Records of the seed and the calibration data asked for, in the order of the tables above them."""
    order: dict[Any, int] = {name: i for i, name in enumerate([*CASES, tables.DENSE, *RECIPES, *RIVALS])}
    found = [
        record
        for record in records
        if record["recipe"] not in RECIPES or (record["seed"] == options.seed and record["batches"] == options.batches)
    ]
    return sorted(found, key=lambda record: (order.get(record["model"], 99), order.get(record["recipe"], 99)))


if __name__ == "__main__":
    sys.exit(main())
