"""Random networks (see ``random_nets``) of a fixed seed; ``tools/proofs/random_networks.py`` runs thousands."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import onnx
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from random_nets import Shape, build, check


@dataclass
class Drawn:
    """Dice from hypothesis."""

    data: st.DataObject

    def pick(self, *options: Any) -> Any:
        return self.data.draw(st.sampled_from(options))

    def between(self, low: int, high: int) -> int:
        return self.data.draw(st.integers(low, high))


@pytest.mark.parametrize(
    ("shape", "n_examples", "expected"),
    [
        (
            (2, 3, 6, 6),
            90,
            {"Conv", "BatchNormalization", "MaxPool", "AveragePool", "Reshape", "Concat", "Split", "Pad"},
        ),
        (
            (2, 4, 5),
            70,
            {"MatMul", "LayerNormalization", "Softmax", "Transpose", "Slice", "Add", "Mul", "TopK", "Einsum"},
        ),
        ((3, 5), 40, {"Gemm", "Add", "Mul", "Concat", "Split", "Gather", "ScatterND"}),
    ],
    ids=["image", "sequence", "row"],
)
def test_random_nets(shape: Shape, n_examples: int, expected: set[str]) -> None:
    operators, n_groups = Counter[str](), []

    @settings(
        max_examples=n_examples, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.data())
    def every(data: st.DataObject) -> None:
        model, seed = build(Drawn(data), shape)
        note(onnx.printer.to_text(model.graph))
        operators.update(node.op_type for node in model.graph.node)
        n_groups.append(check(model, seed))

    every()
    assert sum(n > 0 for n in n_groups) > len(n_groups) / 2, "too few of the networks can be pruned"
    assert expected - set(operators) == set(), "an operator was never drawn"
