"""Prunes many small random networks and proves each; prints what failed, with the seed that makes it again.

python -m tools.proofs.random_networks --count 2000 --seed 0
python -m tools.proofs.random_networks --only 17            shows one network and its failure
"""

from __future__ import annotations

import sys
import time
import traceback
from collections import Counter

import numpy as np
import onnx
from random_nets import Seeded, build, check

from tools.bench.runner import parser_of

SHAPES = ((2, 3, 6, 6), (2, 4, 5), (3, 5))
"""An image, a sequence, a row."""


def main() -> int:
    """Runs the networks; 1 if one of them failed."""
    parser = parser_of(__doc__)
    parser.add_argument("--count", type=int, default=2000, help="how many networks")
    parser.add_argument("--seed", type=int, default=0, help="of the first; the others follow")
    parser.add_argument("--only", type=int, help="one seed, with the model as text")
    options = parser.parse_args()
    seeds = range(options.seed, options.seed + options.count) if options.only is None else [options.only]
    operators, failed, n_groups, prunable = Counter[str](), list[int](), 0, 0
    started = time.perf_counter()
    for seed in seeds:
        model, removal = build(Seeded(np.random.default_rng(seed)), SHAPES[seed % len(SHAPES)])
        operators.update(node.op_type for node in model.graph.node)
        if options.only is not None:
            print(onnx.printer.to_text(model.graph))
        try:
            found = check(model, removal)
        except Exception:  # noqa: BLE001  (whatever it is, it is the finding)
            failed.append(seed)
            print(f"seed {seed}:\n{traceback.format_exc(limit=-3)}", flush=True)
            continue
        n_groups += found
        prunable += found > 0
    seconds = time.perf_counter() - started
    print(f"{len(seeds)} networks, {sum(operators.values())} nodes of {len(operators)} operators, {seconds:.0f} s")
    print(f"{prunable} can be pruned, {n_groups} groups; failed: {failed or 'none'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
