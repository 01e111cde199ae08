"""Runs the command on hostile files, each in a process of its own with little time and memory; prints what came of it.

A trial must end with status 0, or with 2 and one line; within its time and memory; without a control character, a
leftover, or a byte of a file outside the model's folder. Trials that the record holds are not repeated.

    python -m tools.fuzz --count 1000 --kinds onnx --record fuzz.jsonl
    python -m tools.fuzz --only 17                      shows one of them
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

from fuzz_trials import KINDS, Bench, canary_sings, row_of

from tools.bench.records import Record, Records, provenance
from tools.bench.runner import parser_of

KEY = ("number", "seed", "kinds")
"""What a trial is made of, with the sources of the tests."""


def main() -> int:
    """Runs the trials; 1 if one of them went wrong."""
    parser = parser_of(__doc__)
    parser.add_argument("--count", type=int, default=1000, help="how many trials")
    parser.add_argument("--first", type=int, default=0, help="the number of the first one")
    parser.add_argument("--seed", type=int, default=0, help="of all of them")
    parser.add_argument("--kinds", default=",".join(KINDS), help="what is hostile, in turn: %(default)s")
    parser.add_argument("--record", type=Path, help="a file of JSON lines, continued if it is there")
    parser.add_argument("--minutes", type=float, default=600, help="stop after so long; --record continues")
    parser.add_argument("--only", type=int, help="one trial, with all that is known of it")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    kinds = tuple(options.kinds.split(","))
    numbers = range(options.first, options.first + options.count) if options.only is None else [options.only]
    records = Records(options.record if options.only is None else None, KEY)
    cases = [{"number": number, "seed": options.seed, "kinds": options.kinds} for number in numbers]
    end = time.monotonic() + 60 * options.minutes
    _import(kinds)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        if not canary_sings(Path(folder)):
            print("this file system keeps no times of access: reads outside the folder go unnoticed", file=sys.stderr)
        bench = Bench(Path(folder))
        for case in records.missing(cases):
            if time.monotonic() > end:
                break
            row = row_of(*bench.trial(options.seed, case["number"], kinds))
            records.add({**case, **row, **provenance()})
    rows = [row for row in map(records.get, cases) if row is not None]
    _show(rows, as_json=options.json, whole=options.only is not None)
    return int(any(row["problems"] for row in rows))


def _import(kinds: tuple[str, ...]) -> None:
    """Imports now what every trial would import."""
    import onnxruntime  # noqa: F401  (which leaves a file of its own where temporary ones go)

    import graphprune.api
    import graphprune.cli  # noqa: F401

    if "state" in kinds:
        import torch  # noqa: F401


def _show(rows: list[Record], *, as_json: bool, whole: bool) -> None:
    bad = [row for row in rows if row["problems"]]
    if as_json:
        print(json.dumps({"trials": len(rows), "problems": bad}, indent=1))
        return
    for row in bad if not whole else rows:
        print(f"{row['number']} {row['kind']}/{row['base']}/{row['edit']}: {', '.join(row['problems']) or 'right'}")
        print(f"    {' '.join(row['words'])}\n    {row['said'][-600 if whole else -300 :].strip()!r}")
    print(f"{'kind':12}{'trials':>8}{'status 0':>10}{'status 2':>10}{'wrong':>8}{'most s':>8}{'most MB':>9}")
    by_kind = defaultdict(list)
    for row in rows:
        by_kind[row["kind"]].append(row)
    for kind, held in by_kind.items():
        ended = Counter(row["status"] for row in held)
        wrong = sum(bool(row["problems"]) for row in held)
        most = [max(row[name] for row in held) for name in ("seconds", "megabytes")]
        print(f"{kind:12}{len(held):8}{ended[0]:10}{ended[2]:10}{wrong:8}{most[0]:8.1f}{most[1]:9.0f}")


if __name__ == "__main__":
    sys.exit(main())
