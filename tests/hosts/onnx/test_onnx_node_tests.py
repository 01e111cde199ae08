"""Rules judged by the node tests of onnx: a part of them here, all of them in ``tools/proofs/onnx_node_tests.py``."""

from __future__ import annotations

import pytest
from onnx_node_cases import node_cases
from onnx_node_judge import BARRIERS_ON_PURPOSE, verdict

CASES = list(node_cases(part=3, parts=12))


@pytest.mark.parametrize("case", CASES, ids=[case.note for case in CASES])
def test_rules_agree_with_the_node_tests(case) -> None:
    assert verdict(case) in ("", *BARRIERS_ON_PURPOSE)


def test_there_are_cases() -> None:
    assert len(CASES) > 40
