"""Large values part by part, so that comparing outputs of a whole vocabulary takes no copies of them."""

from __future__ import annotations

from math import ceil, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Place = tuple[slice, ...]
"""Where a part lies: one slice for each axis."""

CELLS = 1 << 22
"""Numbers that are looked at together."""
ENOUGH = 16
"""So many elements are hardly all small by chance."""


def parts_of(shape: tuple[int, ...], copies: int = 1) -> list[Place]:
    """The parts of a value: pieces of its longest axis, or the whole where that is small.

    Args:
        shape: Of the value.
        copies: How many copies of a part there will be at a time: parts are so many times smaller.
    """
    cells = max(1, CELLS // copies)
    everything = tuple(slice(0, n) for n in shape)
    size = prod(shape)
    if size <= cells:
        return [everything]
    axis = max(range(len(shape)), key=shape.__getitem__)
    step = max(1, cells // (size // shape[axis]))
    pieces = (slice(start, min(start + step, shape[axis])) for start in range(0, shape[axis], step))
    return [(*everything[:axis], piece, *everything[axis + 1 :]) for piece in pieces]


class Largest:
    """For each axis that is longer than one: the largest number of each of its slices.

    Args:
        shape: Of the value.
        dtype: Of its numbers.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._shape = shape
        self._vectors = {axis: np.zeros(n, dtype) for axis, n in enumerate(shape) if n > 1}
        self.whole = 0.0

    def add(self, at: Place, size: NDArray[Any]) -> None:
        """Counts a part in: absolute values."""
        rest = size.max(axis=-1) if size.ndim > 1 else size
        self.whole = max(self.whole, float(rest.max()))
        for axis, vector in self._vectors.items():
            if axis == size.ndim - 1:
                found = size.reshape(-1, size.shape[-1]).max(axis=0)
            else:
                found = rest.max(axis=tuple(i for i in range(rest.ndim) if i != axis))
            np.maximum(vector[at[axis]], found, out=vector[at[axis]])

    @property
    def plain(self) -> list[NDArray[Any]]:
        """The vectors, axis by axis."""
        return list(self._vectors.values())

    def smoothed(self, *, noise: bool = False) -> list[NDArray[Any]]:
        """The vectors, in shapes that broadcast; of each slice and its neighbours where slices have few elements.

        Args:
            noise: Whether they are differences, of which neighbours on both sides count.
        """
        found = []
        for axis, vector in self._vectors.items():
            width = ceil(ENOUGH * len(vector) / prod(self._shape))
            wide = vector
            if width > 1:
                before, behind = _running(vector, width), _running(vector[::-1], width)[::-1]
                wide = np.maximum(before, behind) if noise else np.minimum(before, behind)
            found.append(wide.reshape(tuple(-1 if i == axis else 1 for i in range(len(self._shape)))))
        return found


def _running(vector: NDArray[Any], width: int) -> NDArray[Any]:
    """The largest of each element and those before it, ``width`` in all."""
    padded = np.concatenate([np.zeros(width - 1, vector.dtype), vector])
    found: NDArray[Any] = np.lib.stride_tricks.sliding_window_view(padded, width).max(axis=1)
    return found


def least_at(at: Place, vectors: list[NDArray[Any]], whole: float) -> NDArray[np.float64]:
    """For each element of a part the smallest of the numbers of its slices."""
    found = np.full((1,) * len(at), whole, np.float64)
    for vector in sorted(vectors, key=np.size):
        piece = tuple(place if n > 1 else slice(None) for place, n in zip(at, vector.shape, strict=True))
        found = np.minimum(found, vector[piece])
    return np.broadcast_to(found, tuple(place.stop - place.start for place in at))
