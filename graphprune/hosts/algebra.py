"""What operators say about values rather than shapes: sums, multiples, and the attributes that tell models apart.

A *sum* equals one of its operands where the others are zero, so that a residual branch can be left out. A *multiple*
is its one computed operand times something stored (casts and copies are times one), so that a product of two weights
with nothing but multiples between them is one linear map. Operators that are in neither table are taken for neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_BOTH, _FIRST = (0, 1), (0,)

SUMS: Mapping[str, tuple[int, ...]] = {
    "aten.add.Tensor": _BOTH,
    "aten.sub.Tensor": _FIRST,
    "Add": _BOTH,
    "Sub": _FIRST,
    "Sum": _BOTH,  # of two operands; readers leave longer sums alone
}
"""Operator -> the operands that it equals where the other one is zero."""

MULTIPLES = frozenset(
    """
    aten.mul.Tensor aten.mul.Scalar aten.div.Tensor aten.div.Scalar aten.neg.default aten.clone.default
    aten.contiguous.default aten.detach.default aten.alias.default aten._to_copy.default aten.to.dtype
    aten.dropout.default aten.feature_dropout.default Mul Div Neg Identity Cast Dropout
    """.split()  # noqa: SIM905  (read as a table)
)
"""Operators whose result is a multiple of one operand where the others are stored."""


def addends(op: str, attributes: Mapping[str, Any]) -> tuple[int, ...]:
    """The operands that a call equals where the other one is zero; ``x + alpha y`` equals ``x`` only."""
    found = SUMS.get(op, ())
    return found if attributes.get("alpha", 1) == 1 else _FIRST


def is_multiple(op: str, stored: Sequence[bool]) -> bool:
    """Whether the result of a call is a multiple of its one operand that is not stored: a quotient, of its dividend."""
    if op not in MULTIPLES:
        return False
    divides = op.removeprefix("aten.").lower().startswith("div")
    return not (divides and stored and stored[0])


_TELLING = frozenset(
    """
    dim dims axis axes perm stride strides padding pads output_padding dilation dilations group groups transposed
    kernel_size kernel_shape eps epsilon is_causal keepdim keepdims approximate ceil_mode alpha beta negative_slope
    threshold transA transB mode
    """.split()  # noqa: SIM905
)


def options(attributes: Mapping[str, Any]) -> str:
    """The attributes that say what an operator computes and never depend on the sizes of an example, as text."""
    telling = sorted(_TELLING & attributes.keys())
    return " ".join([f"{name}={value}" for name in telling if (value := attributes[name]) is not None])
