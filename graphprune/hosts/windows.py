"""What convolutions see: windows over their inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Window:
    """What a convolution sees at each position of its result, by spatial axis.

    A transposed convolution is one, too: its input with zeros between the elements, padded (or cropped: a negative
    pad), seen through a kernel that is turned back to front.

    Attributes:
        kernel: Sizes of the kernel.
        strides: Steps from one position of the result to the next.
        dilations: Steps from one element of the kernel to the next.
        pads: Zeros before and after the input.
        spread: Of a transposed convolution: its stride, by which the elements of the input are set apart; else empty.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    spread: tuple[int, ...] = ()

    def places(self, shape: tuple[int, ...]) -> int:
        """How many positions the result has for an input of a shape, ``n c *sizes`` or ``c *sizes``, all batches."""
        n = len(self.kernel)
        found = shape[0] if len(shape) == n + 2 else 1
        for axis, size in enumerate(shape[-n:]):
            set_apart = (size - 1) * self.spread[axis] + 1 if self.spread else size
            extent = self.dilations[axis] * (self.kernel[axis] - 1)
            found *= (set_apart + sum(self.pads[axis]) - extent - 1) // self.strides[axis] + 1
        return int(found)

    def view(self, x: Array) -> Array:
        """A view ``[n, c, *positions, *kernel]`` of an input ``[n, c, *sizes]``, padded with zeros."""
        n = len(self.kernel)
        if x.ndim == n + 1:
            x = x[None]
        if self.spread:
            apart = tuple((size - 1) * step + 1 for size, step in zip(x.shape[2:], self.spread, strict=True))
            wide = np.zeros((*x.shape[:2], *apart), x.dtype)
            wide[(slice(None), slice(None), *(slice(None, None, step) for step in self.spread))] = x
            cropped = (slice(max(0, -a), size - max(0, -b)) for (a, b), size in zip(self.pads, apart, strict=True))
            x = wide[(slice(None), slice(None), *cropped)]
        pads = tuple((max(0, before), max(0, after)) for before, after in self.pads)
        if any(before or after for before, after in pads):
            x = np.pad(x, ((0, 0), (0, 0), *pads))
        extent = tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True))
        seen: Any = sliding_window_view(x, extent, axis=tuple(range(2, 2 + n)))
        steps = [slice(None, None, each) for each in (*self.strides, *self.dilations)]
        view: Array = seen[(slice(None), slice(None), *steps)]
        return view


def transposed(
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[tuple[int, int]],
    more: Sequence[int],
) -> Window:
    """The window of a transposed convolution.

    Args:
        kernel: Sizes of the kernel.
        strides: How far neighbours in the input lie apart in the result.
        dilations: Steps from one element of the kernel to the next.
        pads: What is cut off the result before and after.
        more: What is added to the result at its end (``output_padding``).
    """
    reach = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
    around = tuple((r - a, r - b + end) for r, (a, b), end in zip(reach, pads, more, strict=True))
    return Window(tuple(kernel), (1,) * len(reach), tuple(dilations), around, tuple(strides))
