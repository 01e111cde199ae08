"""Sums of products over positions, at the speed of single precision and to the accuracy that least squares need.

Activations come in single precision, and products of thousands of columns take twice as long in double precision. So
rows are centred, products of at most :data:`CHUNK` rows are summed in the precision that the rows come in, and the
chunks are added up in float64. Centring is what keeps large means from drowning small variances; what it takes away is
put back in float64. Rows in float64 stay in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[Any]
Float = NDArray[np.float64]

CHUNK = 2048
"""Rows whose products are summed in single precision: the error of a sum grows with the root of their number."""
CELLS = 1 << 22
"""Numbers of a chunk, where rows are wide."""
_SINGLE = 4  # bytes


def real(array: Rows) -> Rows:
    """Values in single precision, or in double precision where single precision would lose something."""
    if array.dtype.kind == "f" and array.dtype.itemsize >= _SINGLE:
        return array
    small = array.dtype.itemsize < _SINGLE
    return array.astype(np.float32 if small else np.float64)


def centre_of(rows: Rows) -> Rows:
    """What rows ``[n, g, c]`` are shifted by: about their mean, in their own precision."""
    centre: Rows = rows[:CHUNK].mean(0, dtype=rows.dtype)
    return np.where(np.isfinite(centre), centre, 0).astype(rows.dtype)


def centred(rows: Rows, centre: Rows, step: int = CHUNK) -> Iterator[Rows]:
    """Chunks of the rows, less the centre."""
    for start in range(0, len(rows), step):
        yield rows[start : start + step] - centre


def few_of(rows: Rows) -> int:
    """How many rows make a chunk whose products are not taken."""
    return min(CHUNK, max(1, CELLS // max(1, rows[:1].size)))


def total_of(part: Rows) -> Float:
    """``Σ y`` over the rows of a chunk."""
    total: Float = part.sum(0).astype(np.float64)
    return total


def positive_of(rows: Rows) -> NDArray[np.int64]:
    """How often rows ``[n, g, c]`` are above zero."""
    step = few_of(rows)
    found = np.zeros(rows.shape[1:], np.int64)
    for start in range(0, len(rows), step):
        found += np.count_nonzero(rows[start : start + step] > 0, axis=0)
    return found


def square_of(part: Rows) -> Float:
    """``Σ y²`` over the rows of a chunk."""
    square: Float = np.einsum("ngc,ngc->gc", part, part).astype(np.float64)
    return square


def product_of(left: Rows, right: Rows) -> Rows:
    """``Σ l rᵀ`` over the rows of a chunk, ``[g, l, r]``; a product with itself takes half as long."""
    by_group = left.transpose(1, 2, 0)
    other = by_group if right is left else right.transpose(1, 2, 0)
    found: Rows = by_group @ other.transpose(0, 2, 1)
    return found


def uncentred(product: Float, left: tuple[Float, Float], right: tuple[Float, Float], count: int) -> None:
    """Puts back into ``Σ (l - a)(r - b)ᵀ`` what the centres took away, in place.

    Args:
        product: ``[g, l, r]``.
        left: The centre ``a`` and ``Σ (l - a)``, ``[g, l]``.
        right: The centre ``b`` and ``Σ (r - b)``, ``[g, r]``.
        count: How many rows there were.
    """
    (a, l_total), (b, r_total) = left, right
    # both corrections in one product of rank two: a (Σr')ᵀ + (Σl' + n a) bᵀ
    columns = np.stack([a, l_total + count * a], axis=2)
    rows = np.stack([r_total, b], axis=1)
    product += columns @ rows
