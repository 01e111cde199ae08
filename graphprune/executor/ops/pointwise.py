"""Rows of operators that compute every element on its own, with broadcasting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import torch
from torch.nn import functional

from graphprune.executor.ops.call import Call, RefusedError, listed
from graphprune.executor.tensors import TYPES

Tensor = torch.Tensor
_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
"""Types in which PyTorch stores, but hardly computes."""


def wide(function: Callable[..., Tensor]) -> Callable[[Call], Tensor]:
    """A row of a function of all operands, computed in int64 where they are unsigned."""

    def row(c: Call) -> Tensor:
        kind = c.x.dtype
        if kind not in _UNSIGNED:
            return function(*c.operands)
        found = function(*(x.long() for x in c.operands))
        return found if found.dtype == torch.bool else found.to(kind)

    return row


def folded(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Call], Tensor]:
    """A row of a function of two operands that is applied to any number of them, one after the other."""
    return wide(lambda *operands: reduce(function, operands))


def _divided(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.dtype.is_floating_point else torch.div(a, b, rounding_mode="trunc")


def modulo(c: Call) -> Tensor:
    """``Mod``: with the sign of the divisor, or with ``fmod`` that of the dividend."""
    return wide(torch.fmod if c.get("fmod", 0) else torch.remainder)(c)


def power(c: Call) -> Tensor:
    """``Pow``; one whole number as exponent is no weight, so that squares of negative numbers have finite gradients."""
    exponent = c.need(1)
    if exponent.numel() == 1 and (exponent.ndim == 0 or exponent.ndim <= c.x.ndim):
        (number,) = listed(exponent)
        if number == int(number):
            base = c.x if c.x.dtype.is_floating_point or number >= 0 else c.x.double()
            return torch.pow(base, int(number)).to(c.x.dtype)
    return torch.pow(c.x, exponent).to(c.x.dtype)


def prelu(c: Call) -> Tensor:
    """``PRelu`` with any slope that can be broadcast to the operand's shape."""
    return torch.where(c.x < 0, c.x * c.need(1), c.x)


def clip(c: Call) -> Tensor:
    """``Clip``: its bounds are attributes in old opsets."""
    x = c.x.long() if c.x.dtype in _UNSIGNED else c.x
    for take, bound in ((torch.maximum, c.get("min", c.at(1))), (torch.minimum, c.get("max", c.at(2)))):
        if bound is not None:
            x = take(x, torch.as_tensor(bound, device=x.device).to(x.dtype))
    return x.to(c.x.dtype)


def gelu(c: Call) -> Tensor:
    """``Gelu``, exact or by ``tanh``; those of com.microsoft may have a bias."""
    x = c.x if c.at(1) is None else c.x + c.need(1)
    tanh = c.get("approximate", "none") == "tanh" or c.op.endswith("FastGelu")
    return functional.gelu(x, approximate="tanh" if tanh else "none")


def is_infinite(c: Call) -> Tensor:
    """``IsInf`` of the signs that are asked for."""
    positive, negative = c.get("detect_positive", 1), c.get("detect_negative", 1)
    return (
        torch.isinf(c.x)
        & (torch.signbit(c.x) if not positive else c.x == c.x)
        & (~torch.signbit(c.x) if not negative else c.x == c.x)
    )


def cast(c: Call) -> Tensor:
    """``Cast`` between the types that are computed with."""
    kind = TYPES.get(c.get("to"))
    if kind is None:
        raise RefusedError("a cast to a type that PyTorch does not compute with")
    return c.x.to(kind)


def shift(c: Call) -> Tensor:
    """``BitShift`` of unsigned numbers."""
    left = c.get("direction") == "LEFT"
    a, b = c.x.long(), c.need(1).long()
    if c.x.dtype == torch.uint64:
        raise RefusedError("shifted numbers of 64 bits without sign")
    return (torch.bitwise_left_shift(a, b) if left else torch.bitwise_right_shift(a, b)).to(c.x.dtype)


def swiglu(c: Call) -> Tensor:
    """``SwiGLU``: the gate's ``Swish`` times the other operand."""
    gate = c.x
    return gate * torch.sigmoid(c.get("alpha", 1.0) * gate) * c.need(1)


def where(c: Call) -> Tensor:
    """``Where``."""
    return torch.where(c.x, c.need(1), c.need(2))


def dropout(c: Call) -> tuple[Tensor, Tensor]:
    """``Dropout`` in evaluation mode, with a mask that keeps all."""
    training = c.at(2)
    if training is not None and bool(training):
        raise RefusedError("a dropout in training mode draws random numbers")
    return c.x, torch.ones_like(c.x, dtype=torch.bool)


def shrink(c: Call) -> Tensor:
    """``Shrink``: what is near zero becomes zero, the rest comes nearer by the bias."""
    edge, bias = c.get("lambd", 0.5), c.get("bias", 0.0)
    zero = torch.zeros_like(c.x)
    return torch.where(c.x < -edge, c.x + bias, torch.where(c.x > edge, c.x - bias, zero)).to(c.x.dtype)


def selu(c: Call) -> Tensor:
    """``Selu`` with any factors."""
    gamma: float = c.get("gamma", 1.0507010221481323)
    return gamma * functional.elu(c.x, c.get("alpha", 1.6732631921768188))


def first(function: Callable[[Tensor], Tensor]) -> Callable[[Call], Tensor]:
    """A row of a function of the first operand."""
    return lambda c: function(c.x)


POINTWISE: Mapping[str, Callable[[Call], Any]] = {
    # two operands or more
    "Add": wide(torch.add),
    "Sub": wide(torch.sub),
    "Mul": wide(torch.mul),
    "Div": wide(_divided),
    "Mod": modulo,
    "Pow": power,
    "Sum": folded(torch.add),
    "Max": folded(torch.maximum),
    "Min": folded(torch.minimum),
    "Mean": lambda c: reduce(torch.add, c.operands) / len(c.operands),
    "Less": wide(torch.lt),
    "LessOrEqual": wide(torch.le),
    "Greater": wide(torch.gt),
    "GreaterOrEqual": wide(torch.ge),
    "Equal": wide(torch.eq),
    "And": wide(torch.logical_and),
    "Or": wide(torch.logical_or),
    "Xor": wide(torch.logical_xor),
    "BitwiseAnd": wide(torch.bitwise_and),
    "BitwiseOr": wide(torch.bitwise_or),
    "BitwiseXor": wide(torch.bitwise_xor),
    "BitShift": shift,
    "PRelu": prelu,
    "SwiGLU": swiglu,
    "Where": where,
    "Clip": clip,
    # one
    **{op: first(getattr(torch, op.lower())) for op in ("Abs", "Ceil", "Floor", "Round", "Reciprocal", "Exp", "Log")},
    **{op: first(getattr(torch, op.lower())) for op in ("Sin", "Cos", "Tan", "Sinh", "Cosh", "Tanh", "Asin", "Acos")},
    **{op: first(getattr(torch, op.lower())) for op in ("Atan", "Asinh", "Acosh", "Atanh", "Erf", "Sqrt", "Sigmoid")},
    **{op: first(getattr(torch, op.lower())) for op in ("Neg", "Sign", "Relu", "IsNaN")},
    "Not": first(torch.logical_not),
    "BitwiseNot": wide(torch.bitwise_not),
    "IsInf": is_infinite,
    "Identity": lambda c: (c.operands[0],),  # perhaps a sequence
    "Cast": cast,
    "CastLike": lambda c: c.x.to(c.need(1).dtype),
    "Dropout": dropout,
    "LeakyRelu": lambda c: functional.leaky_relu(c.x, c.get("alpha", 0.01)),
    "ThresholdedRelu": lambda c: torch.where(c.x > c.get("alpha", 1.0), c.x, torch.zeros_like(c.x)),
    "Elu": lambda c: functional.elu(c.x, c.get("alpha", 1.0)),
    "Celu": lambda c: functional.celu(c.x, c.get("alpha", 1.0)),
    "Selu": selu,
    "Gelu": gelu,
    **{f"com.microsoft::{op}": gelu for op in ("Gelu", "BiasGelu", "FastGelu")},
    "com.microsoft::QuickGelu": lambda c: c.x * torch.sigmoid(c.get("alpha", 1.702) * c.x),
    "Mish": first(functional.mish),
    "HardSigmoid": lambda c: (c.get("alpha", 0.2) * c.x + c.get("beta", 0.5)).clamp(0, 1),
    "HardSwish": first(functional.hardswish),
    "Softplus": lambda c: functional.softplus(c.x, threshold=1e9),
    "Softsign": first(functional.softsign),
    "Shrink": shrink,
    "Swish": lambda c: c.x * torch.sigmoid(c.get("alpha", 1.0) * c.x),
}
