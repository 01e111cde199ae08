"""Windows over spatial axes: where they lie, whatever says so, and operands padded so that they all fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from graphprune.executor.ops.call import Call

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows over the spatial axes of an operand; one number for each axis.

    Attributes:
        kernel: Sizes.
        strides: How far apart they are.
        dilations: How far apart their elements are.
        before: Padding in front.
        after: Padding behind.
        beyond: Further padding behind, so that the last window fits that ``ceil_mode`` adds.
    """

    kernel: Sequence[int]
    strides: Sequence[int]
    dilations: Sequence[int]
    before: Sequence[int]
    after: Sequence[int]
    beyond: Sequence[int]

    @property
    def plain(self) -> bool:
        """Whether padding is the same on both sides, and nothing is beyond."""
        return list(self.before) == list(self.after) and not any(self.beyond)

    def padded(self, x: Tensor, value: float = 0.0, *, beyond: float | None = None) -> Tensor:
        """The operand with padding, the outermost of which may have another value."""
        if any(self.before) or any(self.after):
            x = functional.pad(x, _flat(self.before, self.after), value=value)
        if any(self.beyond):
            x = functional.pad(x, _flat([0] * len(self.beyond), self.beyond), value=value if beyond is None else beyond)
        return x

    def summed(self, x: Tensor) -> Tensor:
        """The sums over windows of a padded operand."""
        n = len(self.kernel)
        for i in range(n):
            k, d = self.kernel[i], self.dilations[i]
            axis = x.ndim - n + i
            x = x.unfold(axis, d * (k - 1) + 1, self.strides[i])[..., ::d].sum(-1)
        return x


def _flat(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Padding as PyTorch takes it: the last axis first."""
    return [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]


def windows_of(c: Call, kernel: Sequence[int], sizes: Sequence[int]) -> Windows:
    """The windows of a convolution or a pooling.

    Args:
        c: The call.
        kernel: Sizes of the window.
        sizes: Spatial sizes of the operand.
    """
    n = len(kernel)
    strides, dilations = c.get("strides") or (1,) * n, c.get("dilations") or (1,) * n
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    mode = c.get("auto_pad", "NOTSET")
    pads = c.get("pads") or (0,) * (2 * n)
    before, after = list(pads[:n]), list(pads[n:])
    if mode != "NOTSET":
        before, after = [0] * n, [0] * n
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        for i, (size, span, stride) in enumerate(zip(sizes, spans, strides, strict=True)):
            total = max(0, (-(-size // stride) - 1) * stride + span - size)
            before[i] = total // 2 if mode == "SAME_UPPER" else total - total // 2
            after[i] = total - before[i]
    beyond = [0] * n
    if c.get("ceil_mode", 0):
        for i, (size, span, stride) in enumerate(zip(sizes, spans, strides, strict=True)):
            last = -(-(size + before[i] + after[i] - span) // stride) * stride  # where the last window begins
            if last >= size + before[i]:  # all of it would be padding
                last -= stride
            beyond[i] = max(0, last + span - size - before[i] - after[i])
    return Windows(kernel, strides, dilations, before, after, beyond)
