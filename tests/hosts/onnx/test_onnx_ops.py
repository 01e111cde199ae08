"""Every row of the ONNX table, judged by the operator itself: golden text, oracle, planted mistakes, coverage."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_cases import CASES, Case
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema
from rule_oracle import failures, free_factors, mutants

from graphprune.hosts.onnx.graph import build_graph
from graphprune.hosts.onnx.ops.table import BARRIERS, ROWS
from graphprune.hosts.onnx.shapes import infer
from graphprune.ir.notation import parse_rule
from graphprune.ir.printing import print_rule

GOLDEN = Path(__file__).parents[2] / "golden" / "onnx_rules.txt"
IDS = [case.id for case in CASES]
TOLERANCE = {"reference": 1e-9, "onnxruntime": 1e-5}
"""Rounding of float64 and of float32."""
NARROW = {"Attention": 1e-6, "LinearAttention": 1e-6}
"""Operators that the reference evaluator computes in float32 whatever the operands are."""


class Judged:
    """A case with its operands, its rule (through shape inference and the frontend), and a runner for the oracle."""

    def __init__(self, case: Case) -> None:
        self.case = case
        rng = np.random.default_rng(0)
        self.operands = [None if tensor is None else tensor.make(rng) for tensor in case.operands]
        if case.runtime == "onnxruntime":
            self.operands = [_narrow(array) for array in self.operands]
        self.schema = _schema(case)
        model = self.model(self.operands, self.case.attributes, stored=True)
        bound = {value.name: _shape(value) for value in model.graph.input}
        inferred = infer(model, bound)
        if any(name not in inferred.shapes for name in model.graph.node[0].output):  # sizes that depend on data
            results = zip(model.graph.node[0].output, self.run(self.operands, {}), strict=True)
            inferred = infer(model, bound, {name: _probed(result) for name, result in results if result is not None})
        self.node = build_graph(model, inferred).nodes[0]

    def model(self, operands: Any, attributes: Mapping[str, Any], *, stored: bool) -> onnx.ModelProto:
        inputs, initializers, names = [], [], []
        for i, array in enumerate(operands):
            names.append("" if array is None else f"x{i}")
            if array is None:
                continue
            tensor = self.case.operands[i] if i < len(self.case.operands) else None
            if stored and tensor is not None and tensor.constant:
                initializers.append(onnx.numpy_helper.from_array(array, f"x{i}"))
            else:
                kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
                inputs.append(onnx.helper.make_tensor_value_info(f"x{i}", kind, array.shape))
        results = [f"y{i}" for i in range(self.case.n_results)]
        node = onnx.helper.make_node(
            self.case.op_type, names, results, name="node", domain=self.case.domain, **attributes
        )
        outputs = [onnx.ValueInfoProto(name=f"y{i}") for i in self.used]
        graph = onnx.helper.make_graph([node], "case", inputs, outputs, initializers)
        opsets = [onnx.helper.make_opsetid("", self.case.opset)]
        if self.case.domain:
            opsets.append(onnx.helper.make_opsetid(self.case.domain, 3 if self.case.domain == "ai.onnx.ml" else 1))
        return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)

    @property
    def used(self) -> tuple[int, ...]:
        return self.case.used if self.case.used is not None else tuple(range(self.case.n_results))

    def failures(self, rule: Any) -> list[str]:
        """What the operator says against a rule."""
        tolerance = NARROW.get(self.case.op, TOLERANCE[self.case.runtime])
        options = {"zeros": self.case.zeros, "mixed": self.case.mixed}
        return failures(rule, self.operands, self.run, tolerance=tolerance, **options)

    def run(self, operands: Any, sizes: Mapping[tuple[str, int | None], float]) -> list[np.ndarray | None]:
        operands, attributes = list(operands), dict(self.case.attributes)
        for (name, index), size in sizes.items():
            place = next((i for i, formal in enumerate(self.schema.inputs) if formal.name == name), None)
            if name in attributes or place is None or name in self.schema.attributes:
                attributes[name] = _replaced(attributes.get(name, self._parts()), index, size)
            else:
                while len(operands) <= place:
                    operands.append(None)
                attributes.pop("num_outputs", None)
                present = operands[place] if operands[place] is not None else np.array(self._parts())
                operands[place] = np.asarray(_replaced(present, index, size))
        model = self.model(operands, attributes, stored=False)
        feeds = {f"x{i}": np.asarray(array, order="C") for i, array in enumerate(operands) if array is not None}
        found = dict(zip(self.used, self._evaluate(model, feeds), strict=True))
        return [found.get(i) for i in range(self.case.n_results)]

    def _parts(self) -> list[int]:
        """The sizes of the parts of a split that does not name them."""
        axis = self.case.attributes.get("axis", 0)
        return [result.shape[axis] for result in self.run(self.operands, {})] if self.case.op == "Split" else []

    def _evaluate(self, model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            if self.case.runtime == "reference":
                return [np.asarray(result) for result in ReferenceEvaluator(model).run(None, feeds)]
            options = ort.SessionOptions()
            options.log_severity_level = 4
            options.intra_op_num_threads = 1
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            return [_counted(np.asarray(result)) for result in session.run(None, feeds)]


@cache
def _fused_schemas() -> dict[tuple[str, str], Any]:
    """What onnxruntime says of its own operators."""
    return {(schema.domain, schema.name): schema for schema in get_all_operator_schema()}


def _schema(case: Case) -> Any:
    if not case.domain and onnx.defs.has(case.op):
        return onnx.defs.get_schema(case.op, case.opset, "")
    return _fused_schemas()[case.domain, case.op_type]


def _replaced(values: Any, index: int | None, size: float) -> Any:
    if index is None:
        return size
    changed = np.array(values)
    changed.reshape(-1)[index] = size
    return changed if isinstance(values, np.ndarray) else changed.tolist()


def _counted(array: np.ndarray) -> np.ndarray:
    """Words as their lengths: what is compared are numbers."""
    return np.vectorize(len)(array) if array.dtype.kind in "OU" else array


def _narrow(array: np.ndarray | None) -> np.ndarray | None:
    return array.astype(np.float32) if array is not None and array.dtype == np.float64 else array


def _probed(result: np.ndarray) -> tuple[int, tuple[int, ...]]:
    return onnx.helper.np_dtype_to_tensor_dtype(result.dtype), result.shape


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


@cache
def judged(index: int) -> Judged:
    return Judged(CASES[index])


@pytest.fixture
def subject(request: pytest.FixtureRequest) -> Judged:
    return judged(request.param)


every_case = pytest.mark.parametrize("subject", range(len(CASES)), ids=IDS, indirect=True)


def golden_text() -> str:
    """What the golden file should hold."""
    lines = []
    for i, case in enumerate(CASES):
        node = judged(i).node
        lines.append(f"{case.id}: {node.reason if node.rule is None else print_rule(node.rule, sizes=True)}")
    return "\n".join(lines) + "\n"


def test_every_operator_of_the_table_has_a_case() -> None:
    ours = {"graphprune::Join"}  # the end of two branches, which no runtime knows; see test_onnx_branches.py
    assert sorted(ROWS.keys() - BARRIERS.keys() - {case.op for case in CASES} - ours) == []


def test_every_operator_of_onnx_has_a_row_or_a_reason() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    assert sorted(known - ROWS.keys()) == []


def test_cases_have_names_of_their_own() -> None:
    assert sorted(set(IDS)) == sorted(IDS)


def test_golden_rules(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--update-golden", default=False):
        GOLDEN.write_text(golden_text())
    assert GOLDEN.read_text() == golden_text()


@every_case
def test_case_has_a_rule(subject: Judged) -> None:
    assert subject.node.rule is not None, subject.node.reason


@every_case
def test_operator_agrees_with_its_rule(subject: Judged) -> None:
    assert subject.failures(subject.node.rule) == []


@every_case
def test_rule_can_be_printed_and_read(subject: Judged) -> None:
    text = print_rule(subject.node.rule, sizes=True)
    assert print_rule(parse_rule(text), sizes=True) == text


@every_case
def test_oracle_notices_swapped_factors(subject: Judged) -> None:
    unnoticed = [print_rule(mutant) for mutant in mutants(subject.node.rule)[:12] if not _noticed(mutant, subject)]
    assert unnoticed == []


def _noticed(mutant: Any, subject: Judged) -> bool:
    try:
        return subject.failures(mutant) != []
    except (ValueError, IndexError, RuntimeError):  # the cut tensors do not even fit together
        return True


def test_there_are_mutants() -> None:
    assert sum(len(mutants(judged(i).node.rule)) for i in range(len(CASES))) > 200


def test_most_factors_are_free() -> None:
    assert sum(len(free_factors(judged(i).node.rule)) for i in range(len(CASES))) > 350
