"""One trial: plant a fault, run what a user runs, and see whether it comes out."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnx

import graphprune as gp
from graphprune.analysis.groups import analyze_graph
from graphprune.api import Result
from graphprune.errors import GraphpruneError
from graphprune.hosts.onnx.host import OnnxHost
from tools.mutations import copies, faults, files, rules
from tools.mutations.models import MODELS, Case, case, opened, planned

CAUGHT, CRASHED, DECLARED, MISSED, NOTHING = "caught", "crashed", "declared", "MISSED", "no fault"
"""Verdicts: refused with one of graphprune's errors or checks; stopped by any other error; passed, after the proof of
the right result had named this as unproven; passed; nothing to plant there."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of a fault.

    Attributes:
        key: ``model/fault/seed``, which ``--only`` takes.
        verdict: One of the five.
        what: What was planted.
        answer: What graphprune said.
        seconds: Processor time.
    """

    key: str
    verdict: str
    what: str = ""
    answer: str = ""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)


def plan_seed(seed: int) -> int:
    """Three faults share a plan, so that the proof of the right result is needed once for them."""
    return seed // 3


def run(key: str) -> Trial:
    """The trial of a key."""
    model, fault, seed = key.split("/")
    begin = time.process_time()
    if fault in rules.WRONG:
        verdict, what, answer = _rule(model, fault, int(seed))
    else:
        chosen = case(model, 0, plan_seed(int(seed)))
        kind = _file if fault in files.FILES else _module if fault in copies.MODULES else _host
        verdict, what, answer = kind(chosen, fault, int(seed))
    return Trial(key, verdict, what, answer.replace("\n", " ")[:300], round(time.process_time() - begin, 2))


def _judged(work: Callable[[], Result]) -> tuple[str, str, Result | None]:
    try:
        result = work()
    except GraphpruneError as error:
        return CAUGHT, f"{type(error).__name__}: {error}", None
    except Exception as error:  # noqa: BLE001  (the fault may make anything fail)
        return CRASHED, f"{type(error).__name__}: {error}", None
    checks = ", ".join(f"{check.name} {check.difference:.2g}" for check in result.report.proof)
    return MISSED, checks, result


@cache
def _right(model: str, plan: int) -> Result:
    chosen = case(model, 0, plan)
    return gp.apply(chosen.host, chosen.plan)


def declared(result: Result, case: Case, tensors: tuple[str, ...]) -> bool:
    """Whether the proof of the right result says that it saw nothing of some tensors (of anything, where none)."""
    checks = result.report.proof
    if not all(check.informative for check in checks):
        return True
    unproven = {name for check in checks for name in getattr(check, "unproven", ())}
    return any(group.name in unproven for group in case.analysis.groups if {*group.tensors} & {*tensors})


def _host(chosen: Case, fault: str, seed: int) -> tuple[str, str, str]:
    try:
        with faults.planted_in_host(chosen, fault, seed) as planted:
            if planted is None:
                return NOTHING, "", ""
            verdict, answer, _ = _judged(lambda: gp.apply(chosen.host, chosen.plan))
    except GraphpruneError as error:
        return NOTHING, "", f"cannot be planted: {error}"
    if verdict == MISSED and declared(_right(chosen.name, plan_seed(seed)), chosen, planted.tensors):
        verdict = DECLARED
    return verdict, planted.text, answer


def _module(chosen: Case, fault: str, seed: int) -> tuple[str, str, str]:
    if chosen.source is None:
        return NOTHING, "", "no module"
    right = _right(chosen.name, plan_seed(seed))
    if type(right.module) is not type(chosen.source):
        return NOTHING, "", f"no module of the class: {right.report.notes}"
    with copies.planted_in_module(chosen, fault, seed) as texts:
        verdict, answer, result = _judged(lambda: gp.apply(chosen.host, chosen.plan))
    if not texts:
        return NOTHING, "", ""
    if result is not None:
        a, b = (copies.signature(module, chosen.source) for module in (right.module, result.module))
        if type(result.module) is not type(chosen.source):
            verdict, answer = CAUGHT, " ".join(result.report.notes)
        elif copies.same(a, b):
            verdict, answer = CAUGHT, "mended"
        elif declared(right, chosen, ()):
            verdict = DECLARED
    return verdict, texts[0], answer


@cache
def _written(model: str, plan: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        _right(model, plan).save_onnx(Path(folder) / "right.onnx")
        return (Path(folder) / "right.onnx").read_bytes()


def _file(chosen: Case, fault: str, seed: int) -> tuple[str, str, str]:
    right = onnx.load_model_from_string(_written(chosen.name, plan_seed(seed)))
    wrong = onnx.ModelProto()
    wrong.CopyFrom(right)
    what = files.FILES[fault](wrong, faults.dice_of(chosen.name, fault, seed))
    if what is None or wrong.SerializeToString(deterministic=True) == right.SerializeToString(deterministic=True):
        return NOTHING, "", ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "wrong.onnx"
        path.write_bytes(wrong.SerializeToString())
        try:
            checks = gp.verify(chosen.host, path, chosen.plan)
        except GraphpruneError as error:
            return CAUGHT, what, f"{type(error).__name__}: {error}"
        except Exception as error:  # noqa: BLE001  (the edit may make anything fail)
            return CRASHED, what, f"{type(error).__name__}: {error}"
    text = ", ".join(f"{check.name} {check.difference:.2g} {check.note}" for check in checks)
    return (CAUGHT if not all(check.passed for check in checks) else MISSED), what, text


PLANS = 8
"""How many plans are tried until a wrong rule does harm."""


def _rule(place: str, fault: str, seed: int) -> tuple[str, str, str]:
    with rules.wrong_rule(fault):
        plain, hidden = (OnnxHost.load(rules.net_of(fault, where, seed)).folded() for where in ("plain", place))
        there = analyze_graph(plain.graph())
        plans = (plan for plan in range(PLANS * seed, PLANS * (seed + 1)))
        plan = next((n for n in plans if rules.harms(planned("", plain, there, None, n, all_exact=True))), None)
        if plan is None:
            return NOTHING, "", "no plan does harm"
        chosen = planned(f"{place}.onnx", hidden, analyze_graph(hidden.graph()), None, plan, all_exact=True)
        verdict, answer, result = _judged(lambda: gp.apply(chosen.host, chosen.plan))
    what = f"rule of {rules.WRONG[fault].op} in a net at place '{place}'"
    if result is not None and declared(result, chosen, chosen.cut):
        verdict = DECLARED
    return verdict, what, answer


EXPORTED = ("unet", "residual")
"""Modules whose files are edited as well: the original of the file is then a module."""


def keys(seeds: int) -> list[str]:
    """All trials, rules first: of every fault on every model, so many seeds each; what is dear comes last."""
    found = [f"{place}/{name}/{seed}" for seed in range(seeds) for name in rules.WRONG for place in rules.PLACES]
    for seed in range(seeds):
        for model in MODELS:
            names = [*faults.EDITED, *faults.VALUED]
            names += files.FILES if model.endswith(".onnx") or model in EXPORTED else ()
            names += () if model.endswith(".onnx") else copies.MODULES
            found += [f"{model}/{name}/{seed}" for name in names]
    return found


__all__ = ["Trial", "keys", "opened", "run"]
