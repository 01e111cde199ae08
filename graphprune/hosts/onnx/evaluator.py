"""onnx's own reference evaluator, with the operators that it lacks and loops that end."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.ops.op_loop import Loop as _Loop

from graphprune.bounds import present
from graphprune.errors import BoundError
from graphprune.hosts.host import Arrays
from graphprune.hosts.onnx.reference import OPERATORS


def evaluate(model: onnx.ModelProto, inputs: Arrays) -> list[Any]:
    """The outputs of a model with its weights, in its own precision; what its operators raise is not caught."""
    found = ReferenceEvaluator(model, new_ops=[*OPERATORS, Loop]).run(None, dict(inputs))
    return list(found)


class Loop(_Loop):
    """ONNX's ``Loop``, which ends where it takes longer than a run may, and runs where it has no condition."""

    op_domain = ""

    def _run(self, most: Any, condition: Any, *operands: Any, **given: Any) -> Any:  # type: ignore[override]
        condition = np.ones((), np.bool_) if condition is None else condition
        end = time.process_time() + present().seconds
        step: Any = self._run_body  # type: ignore[has-type]

        def body(*inputs: Any, **more: Any) -> Any:
            if time.process_time() > end:
                raise BoundError(f"a loop runs for more than {present().seconds} seconds in float64")
            return step(*inputs, **more)

        self._run_body = body
        try:
            return super()._run(most, condition, *operands, **given)  # type: ignore[no-untyped-call]
        finally:
            self._run_body = step
