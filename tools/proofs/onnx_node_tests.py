"""Judges every rule of the ONNX table by every node test of the installed onnx; CI runs a part of it. Two minutes.

PYTHONPATH=tests:. python tools/onnx_node_tests.py
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from onnx_node_cases import node_cases
from onnx_node_judge import BARRIERS_ON_PURPOSE, verdict


def main() -> None:
    """Prints what disagrees, and counts."""
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    for case in node_cases():
        said = verdict(case)
        kind = "agrees" if not said else "refused" if said in BARRIERS_ON_PURPOSE else "disagrees"
        counts[kind] += 1
        if kind == "disagrees":
            print(f"{case.note}: {said}", flush=True)
    print(", ".join(f"{n} {kind}" for kind, n in counts.items()))
    sys.exit(bool(counts["disagrees"]))


if __name__ == "__main__":
    main()
