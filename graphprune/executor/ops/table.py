"""The table of operators that have an exact counterpart in PyTorch, and of those that have none, with the reason.

A row is a function of a :class:`graphprune.executor.ops.call.Call` that returns a tensor, or a tuple of results. To
support an operator, add a line in the table of its family; onnx's own node tests judge it
(``tests/executor/test_executor_node_tests.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from graphprune.executor.ops.attention import ATTENTION
from graphprune.executor.ops.call import Call
from graphprune.executor.ops.control import CONTROL
from graphprune.executor.ops.layout import LAYOUT
from graphprune.executor.ops.lookups import LOOKUPS
from graphprune.executor.ops.norms import NORMS
from graphprune.executor.ops.pointwise import POINTWISE
from graphprune.executor.ops.pools import POOLS
from graphprune.executor.ops.recurrent import RECURRENT
from graphprune.executor.ops.resize import RESIZES
from graphprune.executor.ops.signals import SIGNALS
from graphprune.executor.ops.sums import SUMS
from graphprune.executor.tensors import TYPES

OPERATORS: Mapping[str, Callable[[Call], Any]] = {
    **ATTENTION,
    **CONTROL,
    **LAYOUT,
    **LOOKUPS,
    **NORMS,
    **POINTWISE,
    **POOLS,
    **RECURRENT,
    **RESIZES,
    **SIGNALS,
    **SUMS,
}
"""Operator -> row. Operators of other domains are keyed ``domain::Op``."""

_ROUNDED = "rounds to integers, which has no gradients"
_RANDOM = "draws random numbers"
_TEXT = "computes with text"
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv"), _ROUNDED),
    **dict.fromkeys(("QLinearMatMul", "ConvInteger", "MatMulInteger"), _ROUNDED),
    **dict.fromkeys(("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike"), _RANDOM),
    **dict.fromkeys(("Bernoulli", "Multinomial"), _RANDOM),
    **dict.fromkeys(("RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"), _TEXT),
    "ImageDecoder": "reads a picture file",
    "SequenceMap": "maps a function over a sequence",
    **dict.fromkeys(("DeformConv", "MaxRoiPool", "RoiAlign"), "has no counterpart in PyTorch itself"),
    **dict.fromkeys(("LinearAttention", "CausalConvWithState"), "is newer than the models that are trained yet"),
}
"""Operators that are refused on purpose, with the reason that a user reads behind their name."""
UNKNOWN = "is not known here"
_FEATURES = "is one of scikit-learn's, whose weights are attributes"
_ANY_ROUNDED = ("qlinear", "quantize", "integer", "nbits", "bnb4", "fpq4", "qattention", "qgemm", "qmoe")


def refusal(op: str, attributes: Mapping[str, Any], present: tuple[bool, ...]) -> str | None:
    """Why a node cannot be run, as far as its operator, attributes and operands say; ``None`` if it can.

    Args:
        op: As in the table.
        attributes: Of the node.
        present: Which operands are there.
    """
    if op not in OPERATORS:
        found = _ROUNDED if any(part in op.lower() for part in _ANY_ROUNDED) else UNKNOWN
        return REFUSED.get(op, _FEATURES if op.startswith("ai.onnx.ml::") else found)

    def given(*places: int) -> bool:
        return any(i < len(present) and present[i] for i in places)

    match op:
        case "Cast" if attributes.get("to") not in TYPES:
            return "casts to a type that PyTorch does not compute with"
        case "BatchNormalization" if attributes.get("training_mode", 0):
            return "takes statistics over the batch in training mode"
        case "com.microsoft::MultiHeadAttention" if given(4, 6, 7, 8, 9):
            return "has padding or a cache"
        case "com.microsoft::Attention" if given(3, 4):
            return "has padding or a cache"
        case "com.microsoft::GroupQueryAttention" if given(3, 4, 9, 10, 11):
            return "has a cache or positions"
    return None
