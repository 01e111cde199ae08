"""Comparing what two models compute: every element against what rounding can explain where it stands.

One number for a whole output hides its small parts: scores of 1e-3 beside boxes of 640, or a branch behind a layer
scale. So each element is measured against the numbers that it stands among: the slices of every axis that it lies in,
the smallest of them. Slices of few elements are judged with their neighbours on one side, or on the other: a number
that is small by chance (a logit near zero) has neighbours that are not, and a part that is small as a whole has none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import ProofError
from graphprune.hosts.host import Array, Arrays
from graphprune.pipeline.state import Check
from graphprune.proof.parts import Largest, Place, least_at, parts_of

TOLERANCES = {2: 2e-2, 4: 1e-5, 8: 1e-10}
"""Largest accepted difference by bytes of a number: rounding of sums in another order, far below any wrong unit."""
EPSILON = {2: 2.0**-10, 4: 2.0**-23, 8: 2.0**-52}
"""The step from one to the next number, by bytes of a number."""
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
    parts, limit = parts_of(want.shape), _AS_INFINITE[want.dtype.itemsize]
    single = np.dtype(np.float32) if want.dtype.itemsize == 2 else want.dtype
    sizes, moved = Largest(want.shape, single), Largest(want.shape, np.dtype(np.float64))
    largest = 0.0
    for at in parts:
        size, difference = _apart(want[at], have[at], limit)
        top = float(difference.max())
        if not np.isfinite(top):
            return Deviation(float("inf"), _place(~np.isfinite(difference), at))
        largest = max(largest, top)
        sizes.add(at, size)
    if largest == 0:
        return Deviation(0.0)
    whole = sizes.whole or 1.0
    vectors = sizes.smoothed()
    smallest = min((float(vector.min()) for vector in vectors), default=whole)
    if smallest > 0 and largest <= rounding.tolerance * smallest:
        return Deviation(largest / (rounding.tolerance * smallest))
    measured: list[NDArray[Any]] | None = None
    if noise is not None and rounding.noise:
        for at in parts:
            moved.add(at, np.where(np.isfinite(noise[at]), noise[at], 0).astype(np.float64))
        measured = moved.smoothed(noise=True)
    found = Deviation(-1.0)
    for at in parts:
        scale = least_at(at, vectors, whole)
        accepted = np.maximum(rounding.tolerance * scale, rounding.residue * whole)
        np.maximum(accepted, np.minimum(rounding.floor * whole, SEEN * scale), out=accepted)
        if measured is not None:
            near = rounding.noise * least_at(at, measured, moved.whole)
            np.maximum(accepted, np.minimum(near, rounding.most * scale) if rounding.most else near, out=accepted)
        if not vectors or not sizes.whole:
            accepted = np.maximum(accepted, rounding.tolerance * whole)
        _, difference = _apart(want[at], have[at], limit)
        with np.errstate(divide="ignore", invalid="ignore"):
            excess = np.where(difference == 0, 0.0, difference / accepted)
        index = int(excess.argmax())
        if (worst := float(excess.flat[index])) > found.excess or np.isnan(worst):
            inside = np.unravel_index(index, excess.shape)
            found = Deviation(worst, tuple(int(i) + place.start for i, place in zip(inside, at, strict=True)))
        if np.isnan(worst):
            break
    return found


def _apart(want: Array, have: Array, limit: float) -> tuple[Array, Array]:
    """Absolute values, zero where they are out of the ordinary, and differences, zero where these are equal."""
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
    return size, difference


def _place(wrong: NDArray[np.bool_], at: Place) -> tuple[int, ...]:
    inside = np.unravel_index(int(wrong.argmax()), wrong.shape)
    return tuple(int(i) + place.start for i, place in zip(inside, at, strict=True))


def varies(value: Array) -> bool:
    """Whether a value says anything: a saturated or constant one agrees with anything."""
    if value.size == 0:
        return False
    if value.dtype.kind != "f":
        return bool((value != value.flat[0]).any())
    itemsize = value.dtype.itemsize
    scale, low, high = 0.0, np.inf, -np.inf
    table = np.atleast_1d(value)
    for at in parts_of(table.shape):
        with np.errstate(invalid="ignore"):
            finite = table[at][np.abs(table[at]) < _AS_INFINITE[itemsize]]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
            scale = max(abs(low), abs(high))
    if value.size == 1:  # a number that stands alone varies from input to input
        return scale > 0
    spread = high - low if high >= low else 0.0
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
    """Differences of two runs, by output; in single precision where both are."""
    return {
        name: _difference(x, y)
        for (name, x), y in zip(a.items(), b.values(), strict=True)
        if x.dtype.kind == "f" and x.shape == y.shape
    }


def _difference(x: Array, y: Array) -> Array:
    dtype = np.float32 if x.dtype == y.dtype == np.float32 else np.float64
    with np.errstate(invalid="ignore", over="ignore"):
        found: Array = np.asarray(np.subtract(x, y, dtype=dtype))
        return np.abs(found, out=found)


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
