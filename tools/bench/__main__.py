"""Runs a benchmark by its name.

python -m tools.bench NAME [options]        the same as python -m tools.bench.NAME [options]
python -m tools.bench --help                the names
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

BENCHMARKS = {
    "ablation": "what code that is there only for speed gains",
    "calibration": "what calibration and compensation cost, phase by phase",
    "compile": "groups, plan and slices against Torch-Pruning's",
    "criteria": "how well criteria rank units, against exact ablation",
    "end_to_end": "from a module, or a file, to a smaller one, beside Torch-Pruning and onnxsim",
    "latency": "a pruned file against one built from scratch at its widths",
    "latency_target": "a latency target against one of MACs",
    "losses": "losses on trial, against trials without what makes them fast",
    "memory": "resident memory at its peak, phase by phase",
    "startup": "what commands cost before and beside the work",
    "streaming": "checkpoints larger than memory: memory, time, and what killing leaves",
    "sweeps": "two points of a sweep on two workers, beside one",
}
"""By name: what is measured."""


def main() -> int:
    """Hands the rest of the command line to a benchmark."""
    names = "\n".join(f"  {name:16}{what}" for name, what in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench", description=__doc__, epilog=names, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("name", choices=BENCHMARKS, metavar="NAME", help="one of those below")
    options = parser.parse_args(sys.argv[1:2])
    sys.argv[:2] = [f"{sys.argv[0]} {options.name}"]
    return int(import_module(f"tools.bench.{options.name}").main() or 0)


if __name__ == "__main__":
    sys.exit(main())
