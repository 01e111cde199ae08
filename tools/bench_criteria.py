"""How well criteria rank units: Spearman's correlation with the oracle, on trained models and real data.

The oracle is exact ablation: what the loss gains when one unit is taken out (Molchanov et al. 2016, whose table this
redoes). Loss is the divergence from the whole model, so no labels are needed. Correlations are taken inside each group
and averaged over groups (`inside`), and over all units of the model together (`all`).

    python tools/bench_criteria.py [--cache DIR] [--only MODEL ...] [--samples 128] [--out criteria.json]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from quality_models import CASES
from real_models import CACHE
from rich.console import Console
from rich.table import Table

import graphprune as gp
from graphprune.calibration.collect import collect
from graphprune.errors import GraphpruneError
from graphprune.importance import CRITERIA, Evidence
from graphprune.importance.loss import gates_of
from graphprune.opening import open_host


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0; ties share their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation; 0 where one side is constant."""
    x, y = ranks(a), ranks(b)
    return float(np.corrcoef(x, y)[0, 1]) if x.std() and y.std() else 0.0


def measure(name: str, cache: Path, samples: int) -> dict[str, dict[str, float]]:
    """Correlations with the oracle, by criterion."""
    case = CASES[name](cache)
    host = open_host(case.model, case.example, shapes=case.shapes).folded()
    analysis = gp.analyze(case.model, case.example, shapes=case.shapes)
    per_batch = len(next(iter(case.calibration[0].values())))
    few = case.calibration[: max(1, samples // per_batch)]
    statistics = collect(host, analysis, case.calibration)
    evidence = Evidence(analysis, host.read, 0, statistics, host, few)
    begin = time.perf_counter()
    oracle = CRITERIA["oracle"].score(evidence)
    groups = [group.name for group in analysis.groups if group.name in gates_of(evidence, "oracle").by_group]
    print(f"{name}: oracle over {sum(len(oracle[g]) for g in groups)} units in {time.perf_counter() - begin:.0f} s")
    found = {}
    for criterion, each in CRITERIA.items():
        if criterion == "oracle":
            continue
        begin = time.perf_counter()
        try:
            scores = each.score(evidence)
        except GraphpruneError as error:
            print(f"{name} {criterion}: {error}")
            continue
        inside = [spearman(scores[g], oracle[g]) for g in groups if len(oracle[g]) > 2]
        scale = {g: 1.0 if each.absolute else max(float(np.mean(scores[g])), 1e-30) for g in groups}
        together = spearman(
            np.concatenate([scores[g] / scale[g] for g in groups]), np.concatenate([oracle[g] for g in groups])
        )
        found[criterion] = {
            "inside": float(np.mean(inside)),
            "all": together,
            "seconds": time.perf_counter() - begin,
        }
    return found


def main() -> None:
    """Runs the benchmark, prints a table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--only", nargs="+", default=["resnet20", "magika"], choices=list(CASES))
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = {name: measure(name, options.cache, options.samples) for name in options.only}
    table = Table("criterion", *(f"{name} {what}" for name in results for what in ("inside", "all")))
    for criterion in CRITERIA:
        cells = [
            f"{found[criterion][what]:.2f}" if criterion in found else "-"
            for found in results.values()
            for what in ("inside", "all")
        ]
        if criterion != "oracle":
            table.add_row(criterion, *cells)
    Console().print(table)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
