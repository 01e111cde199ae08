"""Every row of the executor, those of onnxruntime's own operators included: its values, and in float64 its gradients."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from onnx_cases import CASES, Case, F, W
from onnx_cases import ms as case
from test_onnx_ops import Judged

from graphprune.errors import ModelError
from graphprune.executor.module import OnnxModule
from graphprune.executor.ops.table import OPERATORS, UNKNOWN, refusal
from graphprune.executor.tensors import tensor_of
from graphprune.hosts.onnx.ops.table import ROWS as HOST

EXPERTS = F(4, 6), F(4, 3), W(3, 8, 6), W(3, 8), W(3, 6, 8), W(3, 6)
GATED = F(4, 6), F(4, 3), W(3, 16, 6), W(3, 16), W(3, 6, 8), W(3, 6)
LIMITED = {"activation_alpha": 1.7, "activation_beta": 1.0, "swiglu_limit": 1.2}
MORE = [
    *(case("MoE", *EXPERTS, k=2, activation_type=kind) for kind in ("gelu", "silu", "identity")),
    case("MoE", *EXPERTS, k=2, activation_type="relu", normalize_routing_weights=1),
    case("MoE", *GATED, k=1, activation_type="swiglu", swiglu_fusion=1, **LIMITED),
    case("Gelu", F(3, 4)),
    case("FastGelu", F(3, 4), W(4)),
    case("FusedGemm", F(3, 4), W(4, 5), W(5), activation="LeakyRelu", activation_alpha=0.3),
]
"""Uses beside those that rules are judged by: what only values tell apart."""
ROWS = [case for case in (*CASES, *MORE) if case.op in OPERATORS]
SEQUENCES = ("If", "Loop", "Scan", "Optional", "Sequence")
"""Operators with bodies or sequences, which onnx's node tests judge."""
REFUSED = ("has padding or a cache", "padding, a cache or packed operands")
TOLERANCE = {"reference": 1e-6, "onnxruntime": 1e-4}
"""The reference computes some operators in single precision, whatever comes."""
FLAT = ("Sign", "Ceil", "Floor", "Round", "Hardmax", "TopK", "MaxUnpool")
"""Operators that are not differentiable where a difference quotient may look, or count on what does not move."""
WHOLE = frozenset(
    [
        "And",
        "ArgMax",
        "ArgMin",
        "BitCast",
        "BitShift",
        "BitwiseAnd",
        "BitwiseNot",
        "BitwiseOr",
        "BitwiseXor",
        "BlackmanWindow",
        "CastLike",
        "Constant",
        "ConstantOfShape",
        "Equal",
        "EyeLike",
        "Greater",
        "GreaterOrEqual",
        "HammingWindow",
        "HannWindow",
        "IsInf",
        "IsNaN",
        "Less",
        "LessOrEqual",
        "MelWeightMatrix",
        "Mod",
        "NonMaxSuppression",
        "NonZero",
        "Not",
        "OneHot",
        "Or",
        "Range",
        "Shape",
        "Size",
        "Xor",
        "com.microsoft::NhwcMaxPool",
    ]
)
"""Operators whose results depend on no floating-point number, or do so in steps, in their first case."""
MOST = 3000
"""Elements of an operand whose gradients are compared with difference quotients."""


def run(case: Case) -> tuple[OnnxModule, dict[str, torch.Tensor], Judged]:
    judged = Judged(case)
    module = OnnxModule(judged.model(judged.operands, case.attributes, stored=True))
    fed = {f"x{i}": each for i, each in enumerate(judged.operands) if each is not None}
    return module, {name: tensor_of(np.asarray(fed[name]), name) for name in module.input_names}, judged


def expected(case: Case, judged: Judged) -> Sequence[np.ndarray]:
    """What the operator computes: in old opsets and where the reference does not know it, what onnxruntime says."""
    found = judged.run(judged.operands, {})
    return [each for each in found if each is not None]


def same(wanted: Sequence[np.ndarray], found: Sequence[Any], tolerance: float) -> bool:
    return len(wanted) == len(found) and all(
        a.shape == b.shape and np.allclose(np.float64(a), np.float64(b.detach()), tolerance, tolerance)
        for a, b in zip(wanted, found, strict=True)
    )


@pytest.mark.parametrize("one", ROWS, ids=lambda one: one.id)
def test_row(one: Case) -> None:
    try:
        module, inputs, judged = run(one)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = list(module(inputs).values())
    except ModelError as error:
        assert any(reason in str(error) for reason in REFUSED)  # noqa: PT017
        return
    try:
        wanted = expected(one, judged)
    except ValueError:  # a use that the reference does not know
        wanted = []
    if same(wanted, found, TOLERANCE[one.runtime]):
        return
    narrow = Case(**{**vars(one), "runtime": "onnxruntime"})
    module, inputs, judged = run(narrow)
    assert same(expected(narrow, judged), list(module(inputs).values()), TOLERANCE["onnxruntime"])


SMOOTH = {case.op: case for case in reversed(ROWS) if not case.op.startswith(FLAT)}
"""The first case of each operator."""


@pytest.mark.parametrize("op", sorted(SMOOTH))
def test_gradients(op: str) -> None:
    """Of stored tensors and of inputs alike, against difference quotients in float64."""
    module, inputs, _ = run(SMOOTH[op])
    module = module.double()
    inputs = {name: each.double() if each.is_floating_point() else each for name, each in inputs.items()}
    leaves = {name: each for name, each in inputs.items() if each.is_floating_point() and each.numel() <= MOST}
    weights = {f"x{i}" for i, each in enumerate(SMOOTH[op].operands) if each is not None and each.kind == "weight"}
    leaves |= {name: each for name, each in module.named_weights() if name in weights and each.numel() <= MOST}
    names = list(leaves)

    def outputs(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = dict(zip(names, values, strict=True))
        found = module({name: given.get(name, each) for name, each in inputs.items()}, replaced=given)
        return tuple(each for each in found.values() if each.is_floating_point() and each.requires_grad)

    points = [leaves[name].detach().clone().requires_grad_() for name in names]
    if not points or not outputs(*points):
        assert op in WHOLE
        return
    assert op not in WHOLE
    assert torch.autograd.gradcheck(outputs, points, eps=1e-6, atol=1e-5, rtol=1e-4, fast_mode=True)


def test_every_operator_that_the_host_knows_is_run_or_refused_with_a_reason() -> None:
    branches = "graphprune::Join"  # what a host calls an If; its file has the If
    known = [op for op in HOST if op not in OPERATORS and op != branches]
    assert [op for op in known if refusal(op, {}, ()) == UNKNOWN] == []


def test_every_row_has_a_case() -> None:
    left = [op for op in OPERATORS if op not in {case.op for case in ROWS} and not op.startswith(SEQUENCES)]
    assert left == ["SplitToSequence", "ConcatFromSequence"]
