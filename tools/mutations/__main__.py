"""Plants faults in pruned models and counts which of them the proof lets pass; counts right results that it refuses.

    python -m tools.mutations                        every fault on every model, one seed each
    python -m tools.mutations --seeds 3 --json FILE  three seeds each; what FILE (JSON lines) holds is not run again
    python -m tools.mutations --only llama/module-layer-index/0
    python -m tools.mutations --faults unit,order --models vit,llama
    python -m tools.mutations --right 1000           right results; every refusal is printed with what makes it again
    python -m tools.mutations --time ../base         proof time against that of another checkout

A fault is planted in the pruned side only: a wrong slice, size, scale or value in what ``slice-groups`` hands on
(``faults.py``), a wrong copy of the user's class before it is proven (``copies.py``), an edit of the file that was
written, which ``verify`` is shown (``files.py``), or a wrong coupling rule in a net where something hides its effect
(``rules.py``). Each trial first sees to it that the fault is one: values that differ, a rule that does harm. It is
*caught* if graphprune refuses (or, for a module, hands out another one than the faulty copy), *declared* if the proof
of the right result had said that it sees nothing there, and *MISSED* otherwise. Everything follows from the seeds.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter, defaultdict
from pathlib import Path

from tools.bench.records import Record, Records, provenance
from tools.bench.runner import parser_of
from tools.mutations import right, timing, trials


def table(records: list[Record]) -> str:
    """Verdicts by fault and model, as text; the misses by key below it."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        counts[record["key"].split("/")[1]][record["verdict"]] += 1
    columns = trials.CAUGHT, trials.CRASHED, trials.DECLARED, trials.MISSED, trials.NOTHING
    lines = [f"{'fault':24}" + "".join(f"{column:>10}" for column in columns)]
    for name, row in counts.items():
        lines.append(f"{name:24}" + "".join(f"{row[column] or '':>10}" for column in columns))
    total = sum(counts.values(), Counter())
    lines.append(f"{'total':24}" + "".join(f"{total[column]:>10}" for column in columns))
    missed = [record for record in records if record["verdict"] == trials.MISSED]
    lines += [f"MISSED {record['key']}: {record['what']} ({record['answer']})" for record in missed]
    return "\n".join(lines)


def main() -> int:
    """Runs what was asked for; 1 if a fault was missed or a right result refused."""
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="how many faults of each kind on each model")
    parser.add_argument("--count", type=int, help="at most so many trials")
    parser.add_argument("--only", help="one key, model/fault/seed, or right/...")
    parser.add_argument("--models", default="", help="names, separated by commas")
    parser.add_argument("--faults", default="", help="names or beginnings of names, separated by commas")
    parser.add_argument("--json", type=Path, help="records; trials that it holds are not run again")
    parser.add_argument("--right", type=int, help="so many right results instead")
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first right result")
    parser.add_argument("--time", type=Path, metavar="DIR", help="proof time against that of another checkout")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.time is not None:
        return timing.compared(options.time)
    keys = right.keys(options.first, options.right) if options.right is not None else trials.keys(options.seeds)
    if options.only:
        keys = [options.only]
    models, names = ([part for part in text.split(",") if part] for text in (options.models, options.faults))
    keys = [key for key in keys if not models or key.split("/")[0] in models]
    keys = [key for key in keys if not names or key.split("/")[1].startswith(tuple(names))]
    records = Records(options.json, ("key",))
    for case in list(records.missing({"key": key} for key in keys))[: options.count]:
        key = case["key"]
        trial = right.run(key) if key.startswith("right/") else trials.run(key)
        records.add({**trial.to_dict(), **provenance()})
        if trial.verdict in (trials.MISSED, right.REFUSED) or options.only:
            print(f"{trial.verdict} {trial.key}: {trial.what} ({trial.answer})", flush=True)
    found = list(records)
    print(right.table(found) if options.right is not None else table(found))
    return int(any(record["verdict"] in (trials.MISSED, right.REFUSED) for record in found))


if __name__ == "__main__":
    sys.exit(main())
