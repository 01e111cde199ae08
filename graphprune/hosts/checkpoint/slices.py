"""Slices of mapped tensors: written piece by piece, and held against what they were taken from.

No more than :data:`PIECE` bytes of a tensor are in memory at a time, however large it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from graphprune.arrays import cut, cut_shape
from graphprune.ir.dims import Index

PIECE = 1 << 24
"""Bytes that are worked on at a time."""

_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def bits(array: NDArray[Any]) -> NDArray[Any]:
    """The same bytes as whole numbers, which every type can be compared and copied by."""
    return array.view(_BITS[array.dtype.itemsize])


def write_slice(source: NDArray[Any], axes: Mapping[int, Index], file: IO[bytes]) -> None:
    """Writes the positions of a tensor that are taken, in row-major order.

    Args:
        source: The tensor, mapped.
        axes: For some of its axes, the positions.
        file: Where to.
    """
    whole = np.atleast_1d(bits(source))
    for rows, rest in _pieces(whole, axes):
        if isinstance(rows, slice):
            part = cut(whole[rows], rest) if rest else np.ascontiguousarray(whole[rows])
        else:
            part = cut(whole, {0: rows, **rest})
        file.write(bytes_of(part))


def bytes_of(array: NDArray[Any]) -> memoryview:
    """The bytes of a contiguous array."""
    flat: Any = bits(array).reshape(-1)
    return memoryview(flat).cast("B")


def first_difference(source: NDArray[Any], axes: Mapping[int, Index], written: NDArray[Any]) -> int | None:
    """The first row of what was written that is not what was to be taken, bit by bit; ``None`` if there is none.

    Arguments as of :func:`write_slice`, and what was written, mapped. Positions are looked up one axis after the other
    and in the order of the axes, unlike in the cut itself.
    """
    if written.shape != cut_shape(source.shape, axes) or written.dtype != source.dtype:
        return 0
    one, other, start = np.atleast_1d(bits(source)), np.atleast_1d(bits(written)), 0
    for rows, rest in _pieces(one, axes):
        expected = one[rows]
        for axis, index in rest.items():
            expected = expected[(slice(None),) * axis + (index,)]
        got = other[start : start + len(expected)]
        if not np.array_equal(expected, got):
            return start
        start += len(expected)
    return None


def _pieces(source: NDArray[Any], axes: Mapping[int, Index]) -> Iterator[tuple[slice | Index, dict[int, Index]]]:
    """Rows that are taken, some at a time, and what is taken of the other axes."""
    rest = {axis: index for axis, index in axes.items() if axis}
    n_bytes = source.nbytes // max(1, len(source))
    step = max(1, PIECE // max(1, n_bytes))
    rows = axes.get(0)
    for start in range(0, len(source) if rows is None else len(rows), step):
        yield (slice(start, start + step) if rows is None else rows[start : start + step]), rest
