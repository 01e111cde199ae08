"""Dimension expressions: how one axis of one tensor is built from factors, and the index maps that follow.

A dimension is a :class:`Factor` (an atomic sub-dimension), a :class:`Product` (row-major: the last part varies
fastest) or a :class:`Sum` (the parts lie one after the other). Expressions are kept in a normal form by
:func:`product` and :func:`concat`: no nested products or sums, no parts of size one in a product, no empty parts
in a sum, and a product whose first part is a sum is a sum of products. :data:`ONE` is the dimension of size one;
:func:`unit` makes others, equal to it, that a rule tells apart by identity.

What an expression means for the units of its factors is answered here too, vectorised: which positions of the axis
stay (:func:`positions`), how long it becomes (:func:`resized`), which unit each position belongs to (:func:`unit_of`).
Which factors are the same is not decided here: that is the solver's work (``graphprune.analysis``).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Index: TypeAlias = NDArray[np.int64]


class Factor:
    """An atomic sub-dimension: ``size`` units that are kept or removed one by one. Compared by identity."""

    __slots__ = ("name", "size")

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size

    def __repr__(self) -> str:
        return f"{self.name}:{self.size}"


class _Compound:
    """Parts of one axis, in order. Never changed after it is made; equal if the parts are."""

    __slots__ = ("factors", "parts", "size")

    def __init__(self, parts: tuple[Dim, ...], size: int) -> None:
        self.parts = parts
        self.size = size
        self.factors: tuple[Factor, ...]
        """Every factor, in order, with repetitions; the very ``parts`` if all of them are factors."""
        if all(isinstance(part, Factor) for part in parts):
            self.factors = parts  # type: ignore[assignment]
        else:
            self.factors = tuple([factor for part in parts for factor in factors_of(part)])

    def __eq__(self, other: object) -> bool:
        return self is other or (type(other) is type(self) and other.parts == self.parts)

    def __hash__(self) -> int:
        return hash(self.parts)


class Product(_Compound):
    """A row-major product: ``index = (i_0 * |p_1| + i_1) * |p_2| + ...``. Build it with :func:`product`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "(" + " ".join(map(repr, self.parts)) + ")" if self.parts else "1"


class Sum(_Compound):
    """Parts that lie one after the other on the axis. Build it with :func:`concat`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "(" + "+".join(map(repr, self.parts)) + ")"


Dim: TypeAlias = Factor | Product | Sum
Layout: TypeAlias = tuple[Dim, ...]
Kept: TypeAlias = Mapping[Factor, Index]
"""The units of each factor that stay, as sorted indices in the factor's own numbering; absent means all."""

ONE = Product((), 1)


def unit() -> Dim:
    """A dimension of size one that is itself: in a rule, where else the same object stands, the same axis lies.

    It is equal to :data:`ONE`, and has no factor that could be cut. A weighted sum with one row is one all the same:
    which axis of its result holds that row is only seen by this.
    """
    return Product((), 1)


def product(*dims: Dim) -> Dim:
    """The normal form of the row-major product of ``dims``, the major one first."""
    parts: list[Dim] = []
    for dim in dims:
        if dim.size == 1:
            continue
        if isinstance(dim, Product):
            parts.extend(dim.parts)
        else:
            parts.append(dim)
    if not parts:
        return ONE
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], Sum):
        minor = parts[1:]
        return concat(*(product(part, *minor) for part in parts[0].parts))
    return Product(tuple(parts), prod([part.size for part in parts]))


def concat(*dims: Dim) -> Dim:
    """The normal form of ``dims`` laid one after the other."""
    parts: list[Dim] = []
    for dim in dims:
        if dim.size == 0:
            continue
        if isinstance(dim, Sum):
            parts.extend(dim.parts)
        else:
            parts.append(dim)
    if len(parts) == 1:
        return parts[0]
    return Sum(tuple(parts), sum(part.size for part in parts))


def factors_of(dim: Dim) -> tuple[Factor, ...]:
    """Every factor of ``dim``, in order, with repetitions."""
    return (dim,) if isinstance(dim, Factor) else dim.factors


def positions(dim: Dim, kept: Kept) -> Index:
    """The positions of the axis that stay, in order.

    ``positions((h:2 d:3), {d: [0, 2]})`` is ``[0, 2, 3, 5]``; ``positions(a:2+b:2, {b: [1]})`` is ``[0, 1, 3]``.
    """
    match dim:
        case Factor():
            index = kept.get(dim)
            return np.arange(dim.size, dtype=np.int64) if index is None else index
        case Product():
            result = np.zeros(1, dtype=np.int64)
            for part in dim.parts:
                result = (result[:, None] * part.size + positions(part, kept)[None, :]).ravel()
            return result
        case Sum():
            offset, pieces = 0, []
            for part in dim.parts:
                pieces.append(positions(part, kept) + offset)
                offset += part.size
            return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)


def resized(dim: Dim, sizes: Mapping[Factor, int]) -> int:
    """The length of the axis when each factor in ``sizes`` has that many units left (absent: all of them)."""
    match dim:
        case Factor():
            return sizes.get(dim, dim.size)
        case Product():
            return prod(resized(part, sizes) for part in dim.parts)
        case Sum():
            return sum(resized(part, sizes) for part in dim.parts)


def unit_of(dim: Dim, factor: Factor) -> Index:
    """For each position of the axis, the unit of ``factor`` that it belongs to, or -1.

    ``unit_of((h:2 d:3), h)`` is ``[0, 0, 0, 1, 1, 1]``; ``unit_of(a:2+b:2, b)`` is ``[-1, -1, 0, 1]``.
    """
    match dim:
        case Factor():
            return np.arange(dim.size, dtype=np.int64) if dim is factor else np.full(dim.size, -1, dtype=np.int64)
        case Product():
            result = np.full(1, -1, dtype=np.int64)
            for part in dim.parts:
                result = np.maximum(result[:, None], unit_of(part, factor)[None, :]).ravel()
            return result
        case Sum():
            return np.concatenate([unit_of(part, factor) for part in dim.parts])
