"""What the real operator says of the rule of a node test."""

from __future__ import annotations

import numpy as np
from onnx_cases import Case
from onnx_node_cases import on_runtime
from rule_oracle import failures
from test_onnx_ops import Judged

TOLERANCES = {2: 2e-2, 4: 1e-4, 8: 1e-9}
"""Rounding by bytes of a number; some reference implementations compute in single precision whatever comes."""
BARRIERS_ON_PURPOSE = (
    "a batch normalisation in training mode takes statistics over the batch",
    "a dropout in training mode draws random numbers",
    "einsum equation '...ii ->...i' has an ellipsis",
)
"""Uses of operators that rows refuse, with their reason."""


def verdict(case: Case) -> str:
    """Nothing if the rule is right, else what is wrong, or why there is no rule.

    The reference evaluator judges first. It has faults of its own (its ``LRN`` mixes up axes) and lacks operators; what
    it says against a rule counts only if onnxruntime says so too.
    """
    said = _heard(case)
    if not said or said in BARRIERS_ON_PURPOSE:
        return said
    again = _heard(on_runtime(case))
    return f"{said} (onnxruntime: {again})" if again else ""


def _heard(case: Case) -> str:
    try:
        return _said(case)
    except Exception as error:  # noqa: BLE001  (it does not have the operator, for these types)
        return f"cannot be run: {(str(error).splitlines() or [''])[0][:120]}"


def _said(case: Case) -> str:
    judged = Judged(case)
    rule = judged.node.rule
    if rule is None:
        return judged.node.reason
    floats = [array.dtype.itemsize for array in judged.operands if array is not None and array.dtype.kind == "f"]
    tolerance = TOLERANCES[min(4, *floats)] if floats else TOLERANCES[8]
    with np.errstate(all="ignore"):
        found = failures(rule, judged.operands, judged.run, tolerance=tolerance, zeros=case.zeros, mixed=case.mixed)
    return "; ".join(found)
