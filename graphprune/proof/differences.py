"""How far outputs lie apart, relative to how large they are, where no rounding was measured that says what is too far.

Infinities and what is no number must stand where the other has them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphprune.hosts.host import Array
from graphprune.proof.parts import Largest, parts_of


def off_whole(want: Array, have: Array) -> float:
    """The largest difference of two arrays of one shape, relative to the largest value."""
    off, size = _largest([(want, have)])
    return off.whole / (size.whole or 1.0)


def off_slices(pairs: Sequence[tuple[Array, Array]], floor: float = 0.0) -> float:
    """The largest difference, relative to the largest value of the slice where it is: of every slice of every axis.

    Args:
        pairs: What should be and what is, all of one shape: of several runs, whose slices are looked at together.
        floor: As a fraction of the largest value: slices of smaller ones are not held to more.
    """
    off, size = _largest(pairs)
    largest = size.whole or 1.0
    worst = off.whole / largest
    for apart, values in zip(off.plain, size.plain, strict=True):
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(apart == 0, 0.0, apart / np.maximum(values, floor * largest))
        worst = max(worst, float(ratio.max()))
    return worst


def _largest(pairs: Sequence[tuple[Array, Array]]) -> tuple[Largest, Largest]:
    """The largest differences and the largest values."""
    shape = pairs[0][0].shape
    off, size = (Largest(shape, np.dtype(np.float64)) for _ in range(2))
    for want, have in pairs if pairs[0][0].size else ():
        for at in parts_of(shape):
            x, y = np.asarray(want[at], np.float64), np.asarray(have[at], np.float64)
            with np.errstate(invalid="ignore"):
                apart = np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0.0, np.abs(x - y))
            off.add(at, np.nan_to_num(apart, nan=np.inf, posinf=np.inf))
            size.add(at, np.where(np.isfinite(x), np.abs(x), 0.0))
    return off, size
