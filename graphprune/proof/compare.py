"""Comparing what two models compute: every element against what rounding can explain where it stands.

One number for a whole output hides its small parts: scores of 1e-3 beside boxes of 640, or a branch behind a layer
scale. So each element is measured against the numbers that it stands among: the slices of every axis that it lies in,
the smallest of them. Slices of few elements are judged with their neighbours on one side, or on the other: a number
that is small by chance (a logit near zero) has neighbours that are not, and a part that is small as a whole has none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import ProofError
from graphprune.pipeline.host import Array, Arrays
from graphprune.pipeline.state import Check

TOLERANCES = {2: 2e-2, 4: 1e-5, 8: 1e-10}
"""Largest accepted difference by bytes of a number: rounding of sums in another order, far below any wrong unit."""
EPSILON = {2: 2.0**-10, 4: 2.0**-23, 8: 2.0**-52}
"""The step from one to the next number, by bytes of a number."""
ENOUGH = 16
"""So many elements are hardly all small by chance."""
SEEN = 1e-2
"""Rounding of what surrounds a slice is accepted in it up to this fraction of the slice: a wrong unit is more."""

_SATURATED = {2: 1e-2, 4: 1e-4, 8: 1e-200}
"""Outputs that vary by less consist of rounding: the tail of a sigmoid in single precision, say."""
_AS_INFINITE = {2: 6.5e4, 4: 3.3e38, 8: 3.3e38}
"""Numbers that stand for infinity: masks write the largest one of half or single precision."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """What is accepted of the difference of two numbers.

    Attributes:
        tolerance: Relative to the slices that an element lies in.
        floor: Relative to the whole value, but at most :data:`SEEN` of the slices.
        residue: Relative to the whole value: a slice that is below this consists of rounding.
        noise: How often the measured noise of its slices is accepted.
        most: Up to this, relative to the slices that an element lies in; 0: however much it is.
    """

    tolerance: float
    floor: float = 0.0
    residue: float = 0.0
    noise: float = 0.0
    most: float = 0.0


@dataclass(frozen=True, slots=True)
class Deviation:
    """The element that deviates most.

    Attributes:
        excess: Its difference relative to what is accepted there; at most 1 if all is well.
        at: Its indices; empty if nothing was found out of the ordinary.
    """

    excess: float
    at: tuple[int, ...] = ()


def deviation(want: Array, have: Array, rounding: Rounding, noise: Array | None = None) -> Deviation:
    """Compares two floating-point values of one shape.

    Args:
        want: The value.
        have: What should equal it.
        rounding: What is accepted.
        noise: Differences that are rounding for sure, of the same shape: of two runs in different precision, say.
    """
    if want.size == 0:
        return Deviation(0.0)
    if want.ndim == 0:
        found = deviation(want[None], have[None], rounding, None if noise is None else noise[None])
        return Deviation(found.excess)
    limit = _AS_INFINITE[want.dtype.itemsize]
    if want.dtype.itemsize == 2:
        want, have = want.astype(np.float32), have.astype(np.float32)
    size = np.abs(want)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(want - have)
        ordinary = size < limit
    if not ordinary.all():  # infinities, numbers that stand for them, and what is no number
        same = (want == have) | (np.isnan(want) & np.isnan(have))
        difference[same] = 0
        size[~ordinary] = 0
    largest = float(difference.max())
    if not np.isfinite(largest):
        return Deviation(float("inf"), _place(~np.isfinite(difference)))
    if largest == 0:
        return Deviation(0.0)
    whole = float(size.max()) or 1.0
    vectors = slices(size)
    smallest = min((float(vector.min()) for vector in vectors), default=whole)
    if smallest > 0 and largest <= rounding.tolerance * smallest:
        return Deviation(largest / (rounding.tolerance * smallest))
    scale = _spread(vectors, size.shape, whole).astype(np.float64)
    accepted = np.maximum(rounding.tolerance * scale, rounding.residue * whole)
    np.maximum(accepted, np.minimum(rounding.floor * whole, SEEN * scale), out=accepted)
    if noise is not None and rounding.noise:
        moved = np.where(np.isfinite(noise), noise, 0).astype(np.float64)
        measured = _spread(slices(moved, noise=True), size.shape, float(moved.max(initial=0.0)))
        measured = rounding.noise * measured
        np.maximum(accepted, np.minimum(measured, rounding.most * scale) if rounding.most else measured, out=accepted)
    if not vectors or not size.any():
        accepted = np.maximum(accepted, rounding.tolerance * whole)
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = np.where(difference == 0, 0.0, difference / accepted)
    at = np.unravel_index(int(excess.argmax()), excess.shape)
    return Deviation(float(excess[at]), tuple(int(i) for i in at))


def slices(size: Array, *, noise: bool = False) -> list[NDArray[Any]]:
    """For each axis that is longer than one: the largest number of each of its slices, or of it and its neighbours.

    Args:
        size: Absolute values.
        noise: Whether they are differences, of which neighbours on both sides count.

    Returns:
        One vector for each axis, in a shape that broadcasts.
    """
    rest = size.max(axis=-1) if size.ndim > 1 else size
    found = []
    for axis, n in enumerate(size.shape):
        if n == 1:
            continue
        if axis == size.ndim - 1:
            vector = size.reshape(-1, n).max(axis=0)
        else:
            vector = rest.max(axis=tuple(i for i in range(rest.ndim) if i != axis))
        width = ceil(ENOUGH * n / size.size)
        if width > 1:
            before, behind = _running(vector, width), _running(vector[::-1], width)[::-1]
            vector = np.maximum(before, behind) if noise else np.minimum(before, behind)
        found.append(vector.reshape(tuple(n if i == axis else 1 for i in range(size.ndim))))
    return found


def _running(vector: NDArray[Any], width: int) -> NDArray[Any]:
    """The largest of each element and those before it, ``width`` in all."""
    padded = np.concatenate([np.zeros(width - 1, vector.dtype), vector])
    found: NDArray[Any] = np.lib.stride_tricks.sliding_window_view(padded, width).max(axis=1)
    return found


def _spread(vectors: list[NDArray[Any]], shape: tuple[int, ...], whole: float) -> NDArray[Any]:
    """For each element the smallest of the numbers of its slices."""
    found = np.full((1,) * len(shape), whole, np.float64)
    for vector in sorted(vectors, key=np.size):
        found = np.minimum(found, vector)
    return np.broadcast_to(found, shape)


def _place(wrong: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(wrong.argmax()), wrong.shape))


def varies(value: Array) -> bool:
    """Whether a value says anything: a saturated or constant one agrees with anything."""
    if value.size == 0:
        return False
    if value.dtype.kind != "f":
        return bool((value != value.flat[0]).any())
    itemsize = value.dtype.itemsize
    with np.errstate(invalid="ignore"):
        finite = value[np.abs(value) < _AS_INFINITE[itemsize]].astype(np.float64)
    scale = float(np.abs(finite).max(initial=0.0))
    if value.size == 1:  # a number that stands alone varies from input to input
        return scale > 0
    spread = float(np.ptp(finite)) if finite.size else 0.0
    return spread > max(1e-3 * scale, min(_SATURATED[itemsize], 1e-1 * scale))


def compare(
    name: str,
    expected: Arrays,
    got: Arrays,
    *,
    note: str = "",
    tolerance: float | None = None,
    rounding: Rounding | None = None,
    noise: Arrays | None = None,
) -> Check:
    """The largest difference of outputs, each element relative to the slices of its output that it lies in.

    Outputs are compared in order. Integer and boolean outputs must be equal; infinities, and the largest
    numbers, which masks write in their place, must be equal where they are.

    Args:
        name: Of the check.
        expected: Outputs by name.
        got: What should equal them.
        note: What is compared, for the reader.
        tolerance: What is accepted; absent: by the type of the outputs.
        rounding: More exactly what is accepted, of floating-point outputs.
        noise: By output, differences that are rounding for sure.
    """
    if len(expected) != len(got):
        return Check(name, float("inf"), 0.0, f"{len(expected)} outputs became {len(got)}")
    worst, where, itemsize, informative = 0.0, "", 8, False
    for (output, want), have in zip(expected.items(), got.values(), strict=True):
        if problem := _mismatch(output, want, have):
            return Check(name, float("inf"), 0.0, problem)
        informative = informative or varies(want)
        if want.dtype.kind != "f":
            if not np.array_equal(want, have):
                worst, where = float("inf"), f"output '{output}'"
            continue
        itemsize = min(itemsize, want.dtype.itemsize)
        accepted = rounding or Rounding(TOLERANCES[want.dtype.itemsize] if tolerance is None else tolerance)
        found = deviation(want, have, accepted, None if noise is None else noise.get(output))
        if found.excess * accepted.tolerance > worst:
            worst, where = found.excess * accepted.tolerance, place(f"output '{output}'", found)
    if rounding is not None:
        tolerance = rounding.tolerance
    return Check(name, worst, TOLERANCES[itemsize] if tolerance is None else tolerance, note, informative, where=where)


def _mismatch(output: str, want: Array, have: Array) -> str:
    if want.shape != have.shape:
        return f"output '{output}' has shape {list(have.shape)} instead of {list(want.shape)}"
    if want.dtype != have.dtype:
        return f"output '{output}' has type {have.dtype} instead of {want.dtype}"
    return ""


def place(what: str, found: Deviation) -> str:
    """Where a deviation is, for the reader."""
    return f"{what} at {list(found.at)}" if found.at else what


def worse(a: Check, b: Check) -> Check:
    """Of two comparisons of one check the one that is closer to what is accepted, or further from it."""
    return max(a, b, key=lambda check: check.difference / (check.tolerance or 1e-300))


def noise_of(a: Arrays, b: Arrays) -> dict[str, Array]:
    """Differences of two runs, by output."""
    with np.errstate(invalid="ignore"):
        return {
            name: np.abs(x.astype(np.float64) - y.astype(np.float64))
            for (name, x), y in zip(a.items(), b.values(), strict=True)
            if x.dtype.kind == "f" and x.shape == y.shape
        }


def excused(checks: tuple[Check, ...]) -> tuple[Check, ...]:
    """The checks, passed also where they could not see anything: the user has asked for that."""
    return tuple(replace(check, excused=True) for check in checks)


def require(checks: tuple[Check, ...]) -> None:
    """Raises a :class:`ProofError` for the first check that failed."""
    for check in checks:
        if check.passed:
            continue
        if check.difference <= check.tolerance:
            raise ProofError(
                f"the proof '{check.name}' says nothing ({check.note}); nothing was written. Give example inputs or "
                'shapes on which the outputs vary, or accept it unproven (verify="accept-unproven", '
                "--accept-unproven)"
            )
        where = f" in {check.where}" if check.where else ""
        raise ProofError(
            f"the proof '{check.name}' failed ({check.note}): largest relative difference {check.difference:.3g}"
            f"{where}, accepted {check.tolerance:g}; nothing was written. Please report this with the model"
        )
