"""Proof time, as a ratio to that of another checkout of graphprune."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

MODELS = ("demo.onnx", "detector.onnx", "attention.onnx", "vit", "residual", "llama")
REPEATS = 3


def measured() -> dict[str, tuple[float, float]]:
    """Processor seconds of an ``apply`` without and with the proof, the least of some after a first one; by model."""
    import graphprune as gp
    from tools.mutations.models import case

    found = {}
    for name in MODELS:
        chosen = case(name, 0, 1)
        gp.apply(chosen.host, chosen.plan)
        best = []
        for verify in (False, True):
            times = []
            for _ in range(REPEATS):
                begin = time.process_time()
                gp.apply(chosen.host, chosen.plan, verify=verify)
                times.append(time.process_time() - begin)
            best.append(min(times))
        found[name] = (best[0], best[1])
    return found


def compared(base: Path) -> int:
    """Prints both and their ratio; 1 if all proofs together take more than half again as long as before."""
    here = Path(__file__).resolve().parents[2]
    rows = []
    for checkout in (base.resolve(), here):
        path = os.pathsep.join([str(checkout), str(here / "tools")])
        code = "import json; from mutations import timing; print(json.dumps(timing.measured()))"
        command = [sys.executable, "-W", "ignore", "-c", code]
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": path}, cwd="/", capture_output=True, text=True, check=True
        )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    before, after = rows
    print(f"{'model':18}{'before':>10}{'now':>10}{'ratio':>8}   (seconds of the proof: with it less without it)")
    for name in MODELS:
        a, b = (row[name][1] - row[name][0] for row in (before, after))
        print(f"{name:18}{a:10.3f}{b:10.3f}{b / a:8.2f}")
    a, b = (sum(with_it - without for without, with_it in row.values()) for row in (before, after))
    print(f"{'all':18}{a:10.3f}{b:10.3f}{b / a:8.2f}")
    return int(b > 1.5 * a)
