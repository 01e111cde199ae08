"""Judges every rule of the ONNX table by every node test of the installed onnx; CI runs a part of it. Two minutes.

python -m tools.proofs.onnx_node_tests [--only PATTERN ...]
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from fnmatch import fnmatchcase

from onnx_node_cases import node_cases
from onnx_node_judge import BARRIERS_ON_PURPOSE, verdict

from tools.bench.runner import parser_of


def main() -> int:
    """Prints what disagrees, and counts; 1 if something does."""
    parser = parser_of(__doc__)
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="names of tests, with * and ?")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    for case in node_cases():
        if not any(fnmatchcase(case.note, pattern) for pattern in options.only):
            continue
        said = verdict(case)
        kind = "agrees" if not said else "refused" if said in BARRIERS_ON_PURPOSE else "disagrees"
        counts[kind] += 1
        if kind == "disagrees":
            print(f"{case.note}: {said}", flush=True)
    print(", ".join(f"{n} {kind}" for kind, n in counts.items()))
    return int(bool(counts["disagrees"]))


if __name__ == "__main__":
    sys.exit(main())
