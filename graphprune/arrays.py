"""Arrays: positions taken from some of their axes, and digests of what they hold."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def cut_shape(shape: tuple[int, ...], axes: Mapping[int, NDArray[np.int64]]) -> tuple[int, ...]:
    """The shape of an array of which only some positions of some axes are taken."""
    return tuple([len(axes[axis]) if axis in axes else size for axis, size in enumerate(shape)])


def cut(array: NDArray[Any], axes: Mapping[int, NDArray[np.int64]], out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Takes positions of some axes, in the order given.

    Args:
        array: The array.
        axes: For some axes, the positions; all of them exist.
        out: Where the result goes, contiguous; otherwise it is a new array.
    """
    if out is None:
        out = np.empty(cut_shape(array.shape, axes), array.dtype)
    *first, last = sorted(axes)  # whole rows go first: they are copied fastest
    for axis in first:
        array = array.take(axes[axis], axis)
    return array.take(axes[last], last, out=out, mode="clip")  # this mode writes to 'out' without a copy


def widened(array: NDArray[Any]) -> NDArray[np.float32]:
    """The values in single precision; those of bfloat16, which is its upper half, without a look at each of them."""
    if array.dtype.name != "bfloat16":
        return array.astype(np.float32)
    return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def digest_of(dtype: str, shape: Sequence[int], data: bytes | memoryview) -> str:
    """A hash of a stored tensor: of its type, its shape and its bytes, so that one bit more or less is another one.

    Args:
        dtype: The element type as NumPy names it (``float32``, ``bfloat16``, ...).
        shape: The shape.
        data: The elements in row-major order, little-endian, as ONNX stores them.
    """
    digest = hashlib.sha256(f"{dtype}:{list(map(int, shape))}:".encode())
    digest.update(data)
    return digest.hexdigest()
