"""Every row of the ATen table, judged by the operator itself: golden text, oracle, planted mistakes, coverage."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aten_cases import CASES, Case, Tensor
from rule_oracle import failures, free_factors, mutants
from torch import fx

from graphprune.hosts.torch.graph import build_graph
from graphprune.hosts.torch.ops.table import ROWS
from graphprune.hosts.torch.specs import SPEC, annotate, spec_of
from graphprune.ir.notation import parse_rule
from graphprune.ir.printing import print_rule

GOLDEN = Path(__file__).parents[2] / "golden" / "aten_rules.txt"
IDS = [case.id for case in CASES]


def _operator(case: Case) -> Any:
    if case.op.startswith("transformers"):
        pytest.importorskip("transformers.integrations.moe", reason="the operator is registered by transformers")
    namespace, name, overload = case.op.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), overload)


class Judged:
    """A case with its tensors, its rule (through the frontend), and a runner for the oracle."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.target = _operator(case)
        generator = torch.Generator().manual_seed(0)
        names = [argument.name for argument in self.target._schema.arguments]
        given = {**dict(zip(names, case.args, strict=False)), **case.kwargs}
        self.arguments = {name: _filled(value, generator) for name, value in given.items()}
        self.operands: list[torch.Tensor | None] = []
        for argument in self.target._schema.arguments:
            if "Tensor" in str(argument.type):
                value = self.arguments.get(argument.name)
                items = value if isinstance(value, list) else [value]
                self.operands.extend(item if isinstance(item, torch.Tensor) else None for item in items)
        self.results = self._call(self.arguments)
        self.node = self._node()

    def _call(self, arguments: Mapping[str, Any]) -> list[torch.Tensor | None]:
        with torch.no_grad():
            found = self.target(**arguments)
        items = list(found) if isinstance(found, list | tuple) else [found]
        used = self.case.used
        return [item if used is None or i in used else None for i, item in enumerate(items)]

    def _node(self) -> Any:
        graph = fx.Graph()
        made: dict[int, fx.Node] = {}

        def leaf(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                node = made[id(value)] = graph.placeholder(f"x{len(made)}")
                node.meta["val"] = value
                return node
            return [leaf(item) for item in value] if isinstance(value, list) else value

        call = graph.call_function(self.target, (), {name: leaf(value) for name, value in self.arguments.items()})
        single = not isinstance(self.target(**self.arguments), list | tuple)
        call.meta["val"] = self.results[0] if single else list(self.results)
        outputs = [call]
        if not single:
            outputs = []
            for i, result in enumerate(self.results):
                if result is not None:
                    item = graph.call_function(__import__("operator").getitem, (call, i))
                    item.meta["val"] = result
                    outputs.append(item)
        graph.output(tuple(outputs))
        annotate(graph, {})
        return build_graph(graph, {})[0].nodes[0]

    def run(self, operands: Any, sizes: Mapping[tuple[str, int | None], float]) -> list[np.ndarray | None]:
        arguments = dict(self.arguments)
        fresh = iter(operands)
        for argument in self.target._schema.arguments:
            if "Tensor" not in str(argument.type):
                continue
            value = arguments.get(argument.name)
            if isinstance(value, list):
                arguments[argument.name] = [_torch(next(fresh)) for _ in value]
            else:
                array = next(fresh)
                if array is not None:
                    arguments[argument.name] = _torch(array)
        for (name, index), size in sizes.items():
            if index is None:
                arguments[name] = size
            else:
                arguments[name] = [*arguments[name][:index], int(size), *arguments[name][index + 1 :]]
        return [None if result is None else _numpy(result) for result in self._call(arguments)]


def _filled(value: Any, generator: torch.Generator) -> Any:
    if isinstance(value, Tensor):
        return value.make(generator)
    return [_filled(item, generator) for item in value] if isinstance(value, list) else value


def _torch(array: np.ndarray | None) -> torch.Tensor | None:
    return None if array is None else torch.from_numpy(np.ascontiguousarray(array)).reshape(array.shape)


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    if tensor.is_complex():  # one number that changes with either part
        tensor = tensor.real + 0.37 * tensor.imag
    return tensor.numpy()


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
    assert sorted(ROWS.keys() - {case.op for case in CASES}) == []


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
    operands = [None if operand is None else operand.numpy() for operand in subject.operands]
    run = subject.run
    if subject.case.note == "values are not compared":

        def run(operands: Any, sizes: Any) -> list[np.ndarray | None]:
            return [None if result is None else np.zeros_like(result) for result in subject.run(operands, sizes)]

    tolerance = 1e-5 if subject.case.note == "float32" else 1e-9
    assert failures(subject.node.rule, operands, run, tolerance=tolerance) == []


@every_case
def test_rule_can_be_printed_and_read(subject: Judged) -> None:
    text = print_rule(subject.node.rule, sizes=True)
    assert print_rule(parse_rule(text), sizes=True) == text


@every_case
def test_oracle_notices_swapped_factors(subject: Judged) -> None:
    operands = [None if operand is None else operand.numpy() for operand in subject.operands]
    unnoticed = [
        print_rule(mutant)
        for mutant in mutants(subject.node.rule)[:12]
        if subject.case.note != "values are not compared" and not _noticed(mutant, operands, subject)
    ]
    assert unnoticed == []


def _noticed(mutant: Any, operands: Any, subject: Judged) -> bool:
    try:
        return failures(mutant, operands, subject.run) != []
    except (ValueError, IndexError, RuntimeError):  # the cut tensors do not even fit together
        return True


def test_there_are_mutants() -> None:
    found = sum(len(mutants(judged(i).node.rule)) for i in range(len(CASES)))
    assert found > 60


def test_some_mutants_mistake_the_axis_that_positions_are_of() -> None:
    rules = {id(rule): rule for i in range(len(CASES)) if (rule := judged(i).node.rule).reads or rule.makes}
    wrong = [m for rule in rules.values() for m in mutants(rule) if (m.reads, m.makes) != (rule.reads, rule.makes)]
    assert len(wrong) > 5


def test_most_factors_are_free() -> None:
    assert sum(len(free_factors(judged(i).node.rule)) for i in range(len(CASES))) > 900


def test_spec_of_a_bfloat16_tensor() -> None:
    spec = spec_of(torch.zeros(2, 3, dtype=torch.bfloat16))
    assert (spec.shape, spec.dtype, spec.itemsize) == ((2, 3), "bfloat16", 2)
    assert SPEC
