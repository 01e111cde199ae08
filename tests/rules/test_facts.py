"""What rows say of operators beside the rule: judged by the operators, complete, and the only place that says it."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import test_aten_ops as aten
import test_onnx_ops as onnx
from aten_cases import CASES as ATEN_CASES
from onnx_cases import CASES as ONNX_CASES

import graphprune
from graphprune.hosts.onnx import masked_forms as onnx_forms
from graphprune.hosts.onnx.ops import rows as onnx_rows
from graphprune.hosts.onnx.ops import table as onnx_table
from graphprune.hosts.torch import masked_forms as aten_forms
from graphprune.hosts.torch.ops import rows as aten_rows
from graphprune.hosts.torch.ops import table as aten_table
from graphprune.rules.call import EXACT, facts

HOME = Path(graphprune.__file__).parent
CORE = ("analysis", "importance", "compensation", "statistics", "planning", "proof", "pipeline", "passes")
WINGS = {
    "aten": (aten_table.ROWS, ATEN_CASES, aten.judged, aten_rows.elementwise),
    "onnx": (onnx_table.ROWS, ONNX_CASES, onnx.judged, onnx_rows.elementwise),
}
wings = pytest.mark.parametrize("wing", WINGS)

UNMASKED = {
    "aten": {
        "aten._native_batch_norm_legit_functional.default": "of the training mode, which is cut along and not proven so",
    },
    "onnx": {},
}
"""Operators that take a statistic and have no masked form, with the reason: the proof of a model in which such an axis
is cut refuses.
"""
_FIRST = "a multiple of its first operand only, whichever of the two is stored"
EXEMPT = {
    "aten.ldexp.Tensor": "a multiple of a power, not a sum",
    "aten.heaviside.default": "a step, whose value at zero is the second operand",
    **dict.fromkeys(("aten.xlogy.Tensor", "aten.special_xlog1py.default"), _FIRST),
    **dict.fromkeys(("aten.expand_as.default", "aten.broadcast_tensors.default"), _FIRST),
    **dict.fromkeys(("aten.polar.default", "aten.complex.default"), "two parts of complex numbers"),
}


@wings
def test_every_statistic_has_a_masked_form(wing: str) -> None:
    table, cases, judged, _ = WINGS[wing]
    lacking = {
        case.op
        for i, case in enumerate(cases)
        if (rule := judged(i).node.rule) is not None and rule.statistics and not facts(table[case.op]).masked
    }
    assert sorted(UNMASKED[wing]) == sorted(lacking)


def test_every_masked_form_is_there() -> None:
    named = {facts(row).masked for row in aten_table.ROWS.values()} - {"", EXACT}
    assert sorted(name for name in named if aten_forms.__dict__.get(name) is None) == []
    named = {facts(row).masked for row in onnx_table.ROWS.values()} - {"", EXACT, *onnx_forms.CHOOSING}
    assert sorted(name for name in named if onnx_forms.__dict__.get(name) is None) == []


@wings
def test_sums_and_multiples_are_what_operators_compute(wing: str) -> None:
    """Of element-wise operators with two operands: ``f(x, 0) = x``, ``f(c x, y) = c f(x, y)``."""
    table, cases, judged, elementwise = WINGS[wing]
    wrong = []
    for i, case in enumerate(cases):
        if facts(table[case.op]).row is not elementwise or case.op in EXEMPT:
            continue
        subject = judged(i)
        x = [a if not hasattr(a, "numpy") else a.numpy() for a in subject.operands]
        if len(x) != 2 or any(a is None or a.dtype.kind != "f" for a in x):
            continue
        x[0] = x[0] - np.asarray(0.5, x[0].dtype)  # both signs
        with np.errstate(all="ignore"):
            if subject.run(x, {})[0].dtype.kind != "f":
                continue
            turned = [-a for a in x]
            sums = tuple(j for j in (0, 1) if _equals(subject, x, j) and _equals(subject, turned, j))
            if sums != subject.node.addends:
                wrong.append((case.id, "sums", sums))
            multiple = _scales(subject, x, 0, 1)
            quotient = multiple and not _scales(subject, x, 1, 1)
            found = "quotient" if quotient and _scales(subject, x, 1, -1) else "product" if multiple else ""
            if found != facts(table[case.op]).multiple:
                wrong.append((case.id, "multiple", found))
    assert wrong == []


def _scales(subject: object, x: list[np.ndarray], at: int, power: int) -> bool:
    """Whether the result is multiplied by ``c ** power`` where an operand is multiplied by ``c``."""
    whole = subject.run(x, {})[0]
    for c in (2.0, -4.0):
        scaled = [a * np.asarray(c, a.dtype) if j == at else a for j, a in enumerate(x)]
        if not np.array_equal(subject.run(scaled, {})[0], whole * np.asarray(c**power, whole.dtype)):
            return False
    return bool(np.isfinite(whole).all() and np.any(whole != 0))


def _equals(subject: object, x: list[np.ndarray], at: int) -> bool:
    """Whether the result is operand ``at`` where the other one is zero, and is not where it is not."""
    other = [np.zeros_like(a) if j != at else a for j, a in enumerate(x)]
    found = subject.run(other, {})[0]
    same = found.shape == np.broadcast_shapes(x[0].shape, x[1].shape) and np.array_equal(
        found, np.broadcast_to(x[at], found.shape)
    )
    return bool(same) and not np.array_equal(subject.run(x, {})[0], found)


def test_no_core_file_asks_for_an_operator() -> None:
    """Names of operators are printed there, and compared for equality of two nodes; what they mean is the rows' to say."""
    asking = []
    for room in CORE:
        for path in (HOME / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                looked_at = []
                if isinstance(node, ast.Compare):
                    looked_at = [node.left, *node.comparators]
                elif isinstance(node, ast.Attribute):  # node.op.lower()
                    looked_at = [node.value]
                elif isinstance(node, ast.Call):
                    looked_at = (
                        list(node.args) if isinstance(node.func, ast.Attribute) and node.func.attr == "get" else []
                    )
                if any(isinstance(each, ast.Attribute) and each.attr == "op" for each in looked_at):
                    asking.append(f"{path.relative_to(HOME)}:{node.lineno}")
    assert sorted(set(asking)) == []
