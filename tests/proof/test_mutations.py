"""A sample of the faults of ``tools/mutations``, which plants hundreds: each is refused, and right results are not."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest

import graphprune as gp

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))

from mutations import right, trials

FAULTS = (
    # a rule that is wrong, where an output, a scale, zeros or saturation hide what it does
    "beside/rule-flip/0",
    "scaled/rule-concat/0",
    "zeroed/rule-reshape/0",
    "saturated/rule-softmax/0",
    "summed/rule-flip/0",
    "scaled/rule-grouped/0",
    "zeroed/rule-norm/0",
    # one tensor of the pruned model that is not what the plan says
    "hidden.onnx/unit/0",
    "hidden.onnx/order/1",
    "hidden.onnx/statistics/0",
    "detector.onnx/zeroed/0",
    "hidden.onnx/size/0",
    "two-outputs.onnx/element/0",
    "qdq.onnx/bit/0",
    "lstm.onnx/first/0",
    "attention-fp16.onnx/scale/0",
    "saturated.onnx/bias-lost/0",
    # the file, after it was written
    "detector.onnx/file-operator/0",
    "detector.onnx/file-branch/0",
    "two-outputs.onnx/file-outputs-swapped/0",
    "lstm.onnx/file-output-renamed/0",
    "hidden.onnx/file-unit-zeroed/0",
    "qdq.onnx/file-bit/0",
    "attention.onnx/file-reshape/0",
    # a copy of the user's class
    "unet/module-shared/0",
    "lstm/module-closure/0",
    "residual/module-buffer/0",
    "vit/module-bias/0",
    "tied/module-untied/0",
)


@pytest.mark.parametrize("key", FAULTS)
def test_a_planted_fault_is_caught(key: str) -> None:
    trial = trials.run(key)
    assert trial.verdict == trials.CAUGHT, trial


@pytest.mark.parametrize("key", ["plain/rule-flip/0", "hidden.onnx/unit/0"])
def test_without_a_proof_the_same_faults_are_missed(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials.gp, "apply", partial(gp.apply, verify=False))
    assert trials.run(key).verdict == trials.MISSED


@pytest.mark.parametrize("key", [*right.keys(100, 8), "right/float16/82", "right/float16/2062"])
def test_a_right_result_is_not_refused(key: str) -> None:
    trial = right.run(key)
    assert trial.verdict != right.REFUSED, trial
