"""Right results, which must all pass: random nets and the models of the faults, in several types."""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import graphprune as gp
from graphprune.analysis.groups import analyze_graph
from graphprune.errors import GraphpruneError, TargetError
from graphprune.hosts.onnx.host import OnnxHost
from tools.mutations import onnx_models
from tools.mutations.models import MODELS, case, planned
from tools.mutations.trials import Trial

PASSED, REFUSED, NOTHING, UNPROVEN = "passed", "REFUSED", "no result", "says nothing"
"""Verdicts: proven; refused, or a crash; nothing can be pruned (or the runtime does not take the original); the outputs
hardly vary on the example input, which the proof says."""

SHAPES = ((2, 3, 6, 6), (2, 4, 5), (3, 5))
"""An image, a sequence, a row."""
KINDS = ("float32", "float32", "float16", "qdq", "model")
"""In turn."""
DEAR = ("llama", "llama-fp16", "vit.onnx")
"""Models that take seconds: every fifth time it is their turn."""
TARGETS = ("params=0.7", "params=0.5", "macs=0.6", "macs=0.4")


def keys(first: int, count: int) -> list[str]:
    """``right/kind/seed``: the seed says which net, target and scores."""
    return [f"right/{KINDS[seed % len(KINDS)]}/{seed}" for seed in range(first, first + count)]


def run(key: str) -> Trial:
    """Prunes and proves; for ONNX models the file as well."""
    _, kind, text = key.split("/")
    seed = int(text)
    begin = time.process_time()
    try:
        verdict, what, answer = _model(seed // len(KINDS)) if kind == "model" else _random(kind, seed)
    except TargetError as error:
        verdict, what, answer = NOTHING, "", str(error)
    except GraphpruneError as error:
        silent = "says nothing" in str(error)
        verdict, what, answer = UNPROVEN if silent else REFUSED, "", f"{type(error).__name__}: {error}"
    except Exception as error:  # noqa: BLE001  (whatever it is, it is the finding)
        verdict, what, answer = REFUSED, "", f"crash, {type(error).__name__}: {error}"
    return Trial(key, verdict, what, answer.replace("\n", " ")[:400], round(time.process_time() - begin, 2))


def _random(kind: str, seed: int) -> tuple[str, str, str]:
    from random_nets import Seeded, build

    model, _ = build(Seeded(np.random.default_rng(seed)), SHAPES[seed % len(SHAPES)])
    if kind == "float16":
        model = onnx_models.halved(model)
        if _dies_of(model):
            return NOTHING, "", "onnxruntime dies of the original"
    if kind == "qdq":
        model = onnx_models.requantised(model)
    if not _runs(model):
        return NOTHING, "", "onnxruntime does not take the original"
    if seed % 4 == 0:
        target = TARGETS[seed // 4 % len(TARGETS)]
        result = gp.prune(model, target=target, criterion="random", align=1, allocation="uniform", seed=seed)
        return _checked(model, result, f"{target} of a random net")
    host = OnnxHost.load(model).folded()
    chosen = planned("", host, analyze_graph(host.graph()), None, seed)
    if not chosen.kept:
        return NOTHING, "", "nothing can be pruned"
    return _checked(model, gp.apply(host, chosen.plan), "a random plan of a random net")


def _dies_of(model: onnx.ModelProto) -> bool:
    """Whether onnxruntime 1.31 takes the process with it, as of some products in float16; tried in one of its own."""
    child = os.fork()
    if child == 0:
        try:
            _runs(model)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def _runs(model: onnx.ModelProto) -> bool:
    host = OnnxHost.load(model)
    try:
        host.run(host.example_inputs())
    except GraphpruneError:
        return False
    return True


def _model(turn: int) -> tuple[str, str, str]:
    cheap = [name for name in MODELS if name not in DEAR]
    name = DEAR[turn // 5 % len(DEAR)] if turn % 5 == 4 else cheap[turn % len(cheap)]
    chosen = case(name, turn % 2, turn)
    if not chosen.kept:
        return NOTHING, "", ""
    return _checked(chosen.host, gp.apply(chosen.host, chosen.plan), f"{name}, plan {turn}")


def _checked(original: Any, result: Any, what: str) -> tuple[str, str, str]:
    checks = list(result.report.proof)
    if result.module is None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pruned.onnx"
            result.save_onnx(path)
            checks += gp.verify(original, path, result.plan)
    text = ", ".join(f"{check.name} {check.difference:.2g}" for check in checks)
    if all(check.passed for check in checks):
        return PASSED, what, text
    return UNPROVEN if all(check.difference <= check.tolerance for check in checks) else REFUSED, what, text


def table(records: list[dict]) -> str:
    """Verdicts by kind."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        if record["key"].startswith("right/"):
            counts[record["key"].split("/")[1]][record["verdict"]] += 1
    columns = PASSED, NOTHING, UNPROVEN, REFUSED
    lines = [f"{'right results':16}" + "".join(f"{column:>18}" for column in columns)]
    for name, row in counts.items():
        lines.append(f"{name:16}" + "".join(f"{row[column]:>18}" for column in columns))
    return "\n".join(lines)
