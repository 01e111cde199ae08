"""How well criteria rank units: Spearman's correlation with the oracle, on trained models and real data.

The oracle is exact ablation: what the loss gains when one unit is taken out (Molchanov et al. 2016, whose table this
redoes), on the model as it is (`ablation`) and with what reads the unit refitted, as the default recipe does it
(`refit`). Correlations are taken inside each group and averaged over groups. `half` is what the loss comes to when the
lower half of one group's units goes and its consumers are refitted, the geometric mean over groups, as a multiple of
the best criterion's. Loss is the divergence from the whole model, so no labels are needed; it is measured on data that
neither statistics nor refits have seen.

    python -m tools.bench.criteria [--cache DIR] [--only MODEL ...] [--samples 128] [--units 32] [--json FILE]
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

import graphprune as gp
from graphprune.analysis.groups import Group
from graphprune.errors import GraphpruneError
from graphprune.importance import CRITERIA, Evidence
from graphprune.importance.context import readings
from graphprune.importance.loss import Objective, Standard, gates_of
from graphprune.importance.trials import read_with_biases, refitted
from graphprune.opening import open_host
from graphprune.statistics.collect import collect
from graphprune.statistics.holdout import split_batches
from tools.bench.records import Record
from tools.bench.records import table as text_table
from tools.bench.registry import CACHE
from tools.bench.runner import Sweep, arguments, run
from tools.quality.models import CASES


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0; ties share their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation; 0 where one side is constant."""
    x, y = ranks(a), ranks(b)
    return float(np.corrcoef(x, y)[0, 1]) if x.std() and y.std() else 0.0


class Trials:
    """The loss of the model without some units of one group, as it is and with the consumers of the group refitted."""

    def __init__(self, evidence: Evidence, batches: list[dict[str, np.ndarray]]) -> None:
        self._evidence, self._batches = evidence, batches
        self._host, self._consumers = read_with_biases(evidence.host, evidence.statistics)
        self._standard = Standard(self._host.run, ((batch, None) for batch in batches))

    def losses(self, group: Group, sets: list[np.ndarray]) -> list[float]:
        """After a refit, without each of some sets of units; the model runs from the first consumer on."""
        read = list(readings(self._evidence, self._evidence.statistics, group))
        order = {node.name: i for i, node in enumerate(self._host.graph().nodes)}
        start = min((self._consumers[r.consumer.node] for r in read), key=lambda c: order[c.node]).value
        outputs = list(self._host.graph().outputs)
        go = self._host.partial_run(None, [start], outputs)
        carried = [go(batch)[0] for batch in self._batches]
        found = []
        for gone in sets:
            trial = self._host.replaced(refitted(self._host, read, self._consumers, gone))
            run = trial.partial_run(list(carried[0]), outputs)
            found.append(self._standard.loss_of(run(values)[1] for values in carried))
        return found


def measure(record: Record, *, cache: Path) -> None:
    """Correlations with both oracles and losses of halves, by criterion."""
    name, samples, units = record["model"], record["samples"], record["units"]
    case = CASES[name](cache)
    host = open_host(case.model, case.example, shapes=case.shapes).folded()
    analysis = gp.analyze(case.model, case.example, shapes=case.shapes)
    per_batch = len(next(iter(case.calibration[0].values())))
    fit, held = (([case.calibration[i] for i in part]) for part in split_batches(len(case.calibration)))
    few, seen = (part[: max(1, samples // per_batch)] for part in (held, fit))
    statistics = collect(host, analysis, fit)
    evidence = Evidence(analysis, host.read, 0, statistics, host, seen)
    gates = gates_of(replace(evidence, batches=few), "oracle")
    objective = Objective(gates)
    trials = Trials(evidence, few)
    rng = np.random.default_rng(0)
    groups = [g for g in analysis.groups if g.exact and g.name in gates.by_group and g.size > 2]
    tried = {g.name: np.sort(rng.permutation(g.size)[:units]) for g in groups}
    begin = time.perf_counter()
    plain = {
        g.name: np.array(
            [objective(gates.factors({g.name: tried[g.name][i : i + 1]})) for i in range(len(tried[g.name]))]
        )
        for g in groups
    }
    after = {
        g.name: np.array(trials.losses(g, [tried[g.name][i : i + 1] for i in range(len(tried[g.name]))]))
        for g in groups
    }
    n_units = sum(map(len, tried.values()))
    print(
        f"{name}: {n_units} units of {len(groups)} groups taken out in {time.perf_counter() - begin:.0f} s", flush=True
    )
    found: dict[str, dict[str, float]] = record.setdefault("criteria", {})
    for criterion, each in CRITERIA.items():
        if criterion == "oracle":
            continue
        begin = time.perf_counter()
        try:
            scores = each.score(evidence)
        except GraphpruneError as error:
            print(f"{name} {criterion}: {error}")
            continue
        seconds = time.perf_counter() - begin
        halves = [
            trials.losses(g, [np.argsort(scores[g.name], kind="stable")[: max(1, g.size // 2)]])[0] for g in groups
        ]
        found[criterion] = {
            "ablation": float(np.mean([spearman(scores[g.name][tried[g.name]], plain[g.name]) for g in groups])),
            "refit": float(np.mean([spearman(scores[g.name][tried[g.name]], after[g.name]) for g in groups])),
            "half": float(np.exp(np.mean(np.log(np.maximum(halves, 1e-12))))),
            "seconds": seconds,
        }
        print(f"{name} {criterion}: {found[criterion]}", flush=True)


def line(record: Record) -> str:
    """A record in short."""
    return f"{record['model']}: {record.get('error') or ', '.join(record['criteria'])}"


def table(records: list[Record]) -> str:
    """Correlations, and the losses of halves as multiples of the best one's."""
    columns = ("ablation", "refit", "half")
    shown = [record for record in records if record.get("criteria")]
    head = ["criterion", *(f"{record['model']} {what}" for record in shown for what in columns)]
    rows = []
    for criterion in CRITERIA:
        cells = []
        for record in shown:
            found = record["criteria"]
            best = min(each["half"] for each in found.values())
            for what in columns:
                known = criterion in found
                cells.append(f"{found[criterion][what] / (best if what == 'half' else 1):.2f}" if known else "-")
        if criterion != "oracle":
            rows.append([criterion, *cells])
    return text_table(head, rows)


def main() -> int:
    """Runs the benchmark and prints a table; 1 if a case has failed."""
    parser = arguments(__doc__, seconds=7200)
    parser.set_defaults(only=["resnet20", "magika", "minilm"])
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--units", type=int, default=32, help="units of each group that are taken out alone")
    options = parser.parse_args()
    how = {"samples": options.samples, "units": options.units}
    sweep = Sweep(("model", *how), partial(measure, cache=options.cache), line, table)
    found = run(sweep, [{"model": name, **how} for name in CASES], options)
    return int(any("error" in record for record in found))


if __name__ == "__main__":
    sys.exit(main())
