"""The executor of ONNX graphs, judged by onnx's own node tests: all of them, file by file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx_node_cases import cases_of, node_files

from graphprune.errors import ModelError
from graphprune.executor.module import OnnxModule
from graphprune.executor.ops.table import OPERATORS, REFUSED
from graphprune.executor.tensors import array_of, tensor_of
from graphprune.hosts.onnx.runtime import session_of

RELATIVE: Mapping[str, float] = {"float16": 2e-2, "bfloat16": 2e-2}
"""Rounding of narrow types, as for rules; of all others what the test says."""
LEAST = 1e-6
"""Rounding of float32 around zero, relative to the largest number."""
REFUSALS = (
    r"cannot be run with gradients",
    r"elements of type (float8\w*|float4\w*|u?int[24]|object)\b",
    r"a dropout in training mode draws random numbers",
    r"shifted numbers of 64 bits without sign",
    r"patches over \d axes",
    r"positions counted by columns",
    r"a scan of opset 8",
)
"""What is refused on purpose, beside the operators of ``REFUSED``."""


def given(value: Any) -> Any:
    if value is None or isinstance(value, list | tuple):
        return None if value is None else tuple(map(given, value))
    return tensor_of(array(value), "input")


def array(value: Any) -> np.ndarray:
    return np.asarray(onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value)


def difference(wanted: Any, found: Any, test: Any) -> str:
    """What is different; nothing if nothing is."""
    if wanted is None or isinstance(wanted, list | tuple):
        same = found is None if wanted is None else len(wanted) == len(found)
        each = [difference(a, b, test) for a, b in zip(wanted or (), found or (), strict=False)]
        return "; ".join(filter(None, each)) if same else f"{found} for {wanted}"
    a, b = array(wanted), array_of(found)
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return f"{b.dtype}{b.shape} for {a.dtype}{a.shape}"
    if a.dtype.kind in "iub":
        return "" if np.array_equal(a, b) else f"{b.ravel()[:6]} for {a.ravel()[:6]}"
    relative = RELATIVE.get(a.dtype.name, test.rtol)
    a, b = a.astype(np.float64), b.astype(np.float64)
    finite = np.abs(a[np.isfinite(a)])
    absolute = max(test.atol, LEAST * finite.max(initial=0))
    return "" if np.allclose(b, a, relative, absolute, equal_nan=True) else f"off by {np.nanmax(np.abs(a - b))}"


@cache
def verdict(file: str, at: int) -> tuple[str, str]:
    """What is wrong with a test, and why it is refused; one of them is empty."""
    test = cases_of(file)[at]
    wrong: list[str] = []
    try:
        module = OnnxModule(test.model)
        for inputs, outputs in test.data_sets:
            fed = dict(zip(module.input_names, map(given, inputs), strict=True))
            with torch.no_grad():
                found = list(module(fed).values())
            wrong.extend(filter(None, (difference(*each, test) for each in zip(outputs, found, strict=True))))
    except ModelError as error:
        return "", str(error)
    if wrong and on_the_runtime(test):  # the reference has faults of its own
        wrong = []
    return "; ".join(wrong), ""


def on_the_runtime(test: Any) -> bool:
    """Whether onnxruntime computes what the executor does."""
    module, session = OnnxModule(test.model), session_of(test.model)
    for inputs, _ in test.data_sets:
        fed = dict(zip(module.input_names, inputs, strict=True))
        results = session.run(None, {name: array(value) for name, value in fed.items()})
        found = module({name: given(value) for name, value in fed.items()})
        if any(difference(a, b, test) for a, b in zip(results, found.values(), strict=True)):
            return False
    return True


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("file", node_files())
def test_node_tests(file: str) -> None:
    for at, test in enumerate(cases_of(file)):
        wrong, refused = verdict(file, at)
        assert not wrong, f"{test.name}: {wrong}"
        assert not refused or any(re.search(reason, refused) for reason in REFUSALS), f"{test.name}: {refused}"


def test_most_are_run_and_every_operator_is_judged() -> None:
    judged, refused = set(), 0
    for file in node_files():
        for at, test in enumerate(cases_of(file)):
            if verdict(file, at)[1]:
                refused += 1
            else:
                judged |= {node.op_type for node in test.model.graph.node}
    assert refused < 320
    own = {op for op in OPERATORS if "::" not in op}
    elsewhere = ["ConcatFromSequence", "GlobalLpPool", "Optional", "SequenceAt", "SequenceConstruct", "SequenceErase"]
    assert sorted(own - judged) == [*elsewhere, "SimplifiedLayerNormalization"]  # in the two files beside this one
    assert judged.isdisjoint(REFUSED)


def test_a_wrong_row_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge would see an operator that is another one, and one whose results have another type."""
    at = next(i for i, test in enumerate(cases_of("floor")) if test.name == "test_floor")
    assert verdict("floor", at) == ("", "")
    table = dict(OPERATORS)
    for row in (lambda c: torch.ceil(c.x), lambda c: torch.floor(c.x).double()):
        monkeypatch.setattr("graphprune.executor.program.OPERATORS", {**table, "Floor": row})
        assert verdict.__wrapped__("floor", at)[0]
