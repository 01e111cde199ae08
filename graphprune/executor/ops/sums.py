"""Rows of weighted sums: convolutions, products of matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional

from graphprune.executor.ops.call import Call, RefusedError, along
from graphprune.executor.ops.windows import windows_of

Tensor = torch.Tensor
_CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)
_TRANSPOSED = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)


def conv(c: Call) -> Tensor:
    """``Conv`` over one to three axes, with any padding."""
    x, weight = c.x, c.need(1)
    n = x.ndim - 2
    if not 1 <= n <= 3:
        raise RefusedError(f"a convolution over {n} axes")
    found = windows_of(c, weight.shape[2:], x.shape[2:])
    given = (weight, c.at(2), tuple(found.strides))
    dilations, groups = tuple(found.dilations), c.get("group", 1)
    function: Callable[..., Tensor] = _CONVOLUTIONS[n - 1]
    if found.plain:
        return function(x, *given, tuple(found.before), dilations, groups)
    return function(found.padded(x), *given, 0, dilations, groups)


def conv_transpose(c: Call) -> Tensor:
    """``ConvTranspose``; padding takes away from the whole result, whose bias comes last."""
    x, weight, bias = c.x, c.need(1), c.at(2)
    n = x.ndim - 2
    if not 1 <= n <= 3:
        raise RefusedError(f"a convolution over {n} axes")
    strides, dilations = c.get("strides") or (1,) * n, c.get("dilations") or (1,) * n
    more, mode = list(c.get("output_padding") or (0,) * n), c.get("auto_pad", "NOTSET")
    pads = c.get("pads") or (0,) * (2 * n)
    before, after = list(pads[:n]), list(pads[n:])
    spans = [d * (k - 1) + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    full = [s * (size - 1) + span for s, size, span in zip(strides, x.shape[2:], spans, strict=True)]
    wanted = c.get("output_shape") or (
        [s * size for s, size in zip(strides, x.shape[2:], strict=True)] if mode.startswith("SAME") else None
    )
    if mode == "VALID":
        before, after = [0] * n, [0] * n
    elif wanted is not None:
        totals = [f + m - w for f, m, w in zip(full, more, wanted[-n:], strict=True)]
        less = [max(0, total) // 2 for total in totals]
        before = [total - part if mode == "SAME_LOWER" else part for total, part in zip(totals, less, strict=True)]
        after = [total - part for total, part in zip(totals, before, strict=True)]
    groups = c.get("group", 1)
    function: Callable[..., Tensor] = _TRANSPOSED[n - 1]
    y = function(x, weight, None, tuple(strides), 0, 0, groups, tuple(dilations))
    flat = [each for i in reversed(range(n)) for each in (-before[i], more[i] - after[i])]
    y = functional.pad(y, flat) if any(flat) else y
    return y if bias is None else y + along(bias, y.ndim, 1)


def gemm(c: Call) -> Tensor:
    """``Gemm``."""
    a, b = c.x, c.need(1)
    a, b = (each.mT if c.get(flip, 0) else each for each, flip in ((a, "transA"), (b, "transB")))
    alpha, beta, bias = c.get("alpha", 1.0), c.get("beta", 1.0), c.at(2)
    y = a @ b
    y = y if alpha == 1 else alpha * y
    if bias is None:
        return y.to(c.x.dtype)
    return torch.add(y, bias if beta == 1 else beta * bias).to(c.x.dtype)


def matmul(c: Call) -> Tensor:
    """``MatMul``, also of fewer than two axes."""
    return torch.matmul(c.x, c.need(1))


def fused_matmul(c: Call) -> Tensor:
    """``FusedMatMul``: ``MatMul`` of transposed operands, scaled."""
    if c.get("transBatchA", 0) or c.get("transBatchB", 0):
        raise RefusedError("a product of operands whose batch axes are transposed")
    operands = ((c.x, "transA"), (c.need(1), "transB"))
    a, b = (each.mT if c.get(flip, 0) and each.ndim > 1 else each for each, flip in operands)
    return torch.mul(torch.matmul(a, b), c.get("alpha", 1.0))


def activated(x: Tensor, name: str | None, parameters: Any) -> Tensor:
    """What the optimiser of onnxruntime fuses behind a sum."""
    given = list(parameters or ())
    match name:
        case None | "":
            return x
        case "Relu" | "Tanh" | "Sigmoid":
            function: Callable[[Tensor], Tensor] = getattr(torch, name.lower())
            return function(x)
        case "LeakyRelu":
            return functional.leaky_relu(x, given[0] if given else 0.01)
        case "Clip":
            return torch.clamp(x, *given)
        case "HardSigmoid":
            return torch.clamp(given[0] * x + given[1], 0, 1)
    raise RefusedError(f"the fused activation '{name}'")


def fused_conv(c: Call) -> Tensor:
    """``FusedConv``: a convolution, a summand, an activation."""
    y = conv(c) if c.at(3) is None else conv(c) + c.need(3)
    return activated(y, c.get("activation"), c.get("activation_params"))


def fused_gemm(c: Call) -> Tensor:
    """``FusedGemm``: a product of matrices and an activation."""
    names = ("activation_alpha", "activation_beta", "activation_gamma")
    return activated(gemm(c), c.get("activation"), [c.get(name) for name in names if c.get(name) is not None])


SUMS: Mapping[str, Callable[[Call], Any]] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": matmul,
    "Einsum": lambda c: torch.einsum(c.get("equation"), *c.operands),
    "com.microsoft::FusedConv": fused_conv,
    "com.microsoft::FusedGemm": fused_gemm,
    "com.microsoft::FusedMatMul": fused_matmul,
    "com.microsoft::TransposeMatMul": fused_matmul,
}
