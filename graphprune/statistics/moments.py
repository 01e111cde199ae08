"""Moments of activations: sums over positions, in float64, that add up over batches, processes and machines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.statistics.products import (
    CHUNK,
    centre_of,
    centred,
    few_of,
    positive_of,
    product_of,
    real,
    square_of,
    total_of,
    uncentred,
)

Float = NDArray[np.float64]


@dataclass
class Moments:
    """Sums over positions of a row of columns ``x: [g, c]``.

    Attributes:
        count: How many positions.
        total: ``Σ x``, ``[g, c]``.
        square: ``Σ x²``, ``[g, c]``.
        positive: How often ``x > 0``, ``[g, c]``.
        product: ``Σ x xᵀ``, ``[g, c, c]``; ``None`` where only the diagonal is kept.
    """

    count: int
    total: Float
    square: Float
    positive: Float
    product: Float | None = None

    @staticmethod
    def zeros(groups: int, columns: int, *, full: bool) -> Moments:
        """No position yet."""
        flat = (groups, columns)
        return Moments(0, np.zeros(flat), np.zeros(flat), np.zeros(flat), np.zeros((*flat, columns)) if full else None)

    def add(self, rows: NDArray[Any]) -> None:
        """Counts positions in: ``rows: [n, g, c]``, in single or double precision (see ``products.py``)."""
        if not len(rows):
            return
        rows = real(rows)
        centre = centre_of(rows)
        shift, rest = centre.astype(np.float64), np.zeros_like(self.total)
        square = np.zeros_like(self.square)
        product = self.product
        for part in centred(rows, centre, CHUNK if product is not None else few_of(rows)):
            rest += total_of(part)
            if product is None:
                square += square_of(part)
            else:
                product += product_of(part, part)
        n = len(rows)
        self.count += n
        self.total += rest + n * shift
        self.positive += positive_of(rows)
        if product is None:
            self.square += square + shift * (2 * rest + n * shift)
            return
        uncentred(product, (shift, rest), (shift, rest), n)
        self.square = np.einsum("gcc->gc", product).copy()

    def merge(self, other: Moments) -> None:
        """Counts the positions of other moments in."""
        self.count += other.count
        self.total += other.total
        self.square += other.square
        self.positive += other.positive
        if self.product is not None and other.product is not None:
            self.product += other.product

    @property
    def mean(self) -> Float:
        """``E x``, ``[g, c]``."""
        return self.total / max(1, self.count)

    @property
    def variance(self) -> Float:
        """``E (x - E x)²``, ``[g, c]``."""
        return np.maximum(self.square / max(1, self.count) - self.mean**2, 0.0)

    @property
    def second(self) -> Float:
        """``E x xᵀ``, ``[g, c, c]``."""
        assert self.product is not None
        return self.product / max(1, self.count)

    @property
    def covariance(self) -> Float:
        """``E (x - E x)(x - E x)ᵀ``, ``[g, c, c]``."""
        return self.second - self.mean[:, :, None] * self.mean[:, None, :]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The sums by name, for files and for reduction over processes."""
        found: dict[str, NDArray[Any]] = {
            "count": np.array(self.count),
            "total": self.total,
            "square": self.square,
            "positive": self.positive,
        }
        if self.product is not None:
            found["product"] = self.product
        return found

    @staticmethod
    def from_arrays(arrays: dict[str, NDArray[Any]]) -> Moments:
        """What :meth:`arrays` gave."""
        return Moments(
            int(arrays["count"]), arrays["total"], arrays["square"], arrays["positive"], arrays.get("product")
        )
