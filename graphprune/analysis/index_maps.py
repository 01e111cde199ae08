"""Constant indices as dimension expressions: ``y = x[index]`` takes parts of an axis of ``x``, in another order.

An index that takes few runs of consecutive positions is a sum of parts (``b+a``: a rotation, swapped halves, a
subset); one that walks an axis by a stride is a transposed product (``(c g)`` of ``(g c)``: a channel shuffle), or the
major part of one (every second position). What is none of these has no expression.
"""

from __future__ import annotations

from itertools import pairwise
from math import isqrt

import numpy as np

from graphprune.analysis.solver import MisalignedError, Reason, Solver
from graphprune.ir.dims import Dim, Factor, Index, concat, factors_of, product

MAXIMUM_RUNS = 16
"""The most runs of an index that is cut into parts."""


def regular(index: Index, dim: Dim, solver: Solver, where: str) -> Dim | None:
    """The dimension that ``dim`` becomes when positions of it are taken.

    Args:
        index: Different positions of ``dim``, in the order in which they are taken.
        dim: The dimension; it is refined as far as needed.
        solver: Holds what is known of its factors.
        where: The node, for reasons.

    Returns:
        ``b+a`` for ``index = [2, 3, 4, 0, 1]`` and ``dim = a:2+b:3``; ``None`` where there is no such expression.
    """
    starts = np.flatnonzero(np.diff(index, prepend=index[0] - 2) != 1)
    if len(starts) <= min(MAXIMUM_RUNS, (len(index) + 1) // 2):
        return _runs(index, starts, dim, solver)
    if len(index) == dim.size:
        return _shuffle(index, dim, solver, where)
    return _stride(index, dim, solver, where)


def _runs(index: Index, starts: Index, dim: Dim, solver: Solver) -> Dim | None:
    """The parts of ``dim`` that the runs are, each cut out of it."""
    ends = np.append(starts[1:], len(index))
    firsts, lasts = index[starts], index[ends - 1] + 1
    bounds = sorted({0, dim.size, *firsts.tolist(), *lasts.tolist()})
    parts: dict[int, Dim] = {}
    rest = dim
    try:
        for low, high in pairwise(bounds):
            parts[low], rest = solver.cut(rest, high - low)
    except MisalignedError:
        return None
    runs = zip(firsts, lasts, strict=True)
    return concat(*(parts[low] for first, last in runs for low in bounds if first <= low < last))


def _shuffle(index: Index, dim: Dim, solver: Solver, where: str) -> Dim | None:
    """``(c g)`` where the index walks ``(g c)`` with the stride ``|c|``."""
    n = dim.size
    for size in (size for small in range(2, isqrt(n) + 1) if n % small == 0 for size in {small, n // small}):
        if np.array_equal(index, np.arange(n).reshape(size, n // size).T.ravel()):
            major, minor = Factor("g", size), Factor("c", n // size)
            solver.unify(dim, product(major, minor), where)
            return product(minor, major)
    return None


def _stride(index: Index, dim: Dim, solver: Solver, where: str) -> Dim | None:
    """``q`` where the index takes every ``step``-th position of ``(q step)``; ``step`` is fixed."""
    step, rest = divmod(dim.size, len(index))
    if rest or step < 2 or index[0] >= step or not np.array_equal(index, index[0] + step * np.arange(len(index))):
        return None
    major, minor = Factor("q", len(index)), Factor("step", step)
    for factor in factors_of(minor):
        solver.fix(factor, Reason(f"an index takes every {step}-th position of this axis", where))
    solver.unify(dim, product(major, minor), where)
    return major
