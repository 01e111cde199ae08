"""Rules of operators that rearrange axes: reshape, transpose, expand, tile."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd, prod

from graphprune.errors import RuleError
from graphprune.ir.dims import ONE, Dim, Factor, factors_of, product
from graphprune.ir.rule import Rule, Shape, SizeSlot
from graphprune.rules.contraction import axes, axis

MISALIGNED = "a reshape moves values across this axis"


def reshape(
    operand: Shape,
    result: Shape,
    *,
    slot: str | None = None,
    stored: Sequence[int | None] | None = None,
    n_operands: int = 1,
) -> Rule:
    """A row-major reshape: both sides are products of the same factors, the major ones first.

    ``(12, 64) -> (768)`` is ``h d -> (h d)``; ``(6, 4) -> (8, 3)`` shares a factor of 2 and fixes the rest.

    Args:
        operand: The shape before.
        result: The shape after.
        slot: The attribute or operand that holds the new shape, if any.
        stored: What it holds, as written: entries of -1 (inferred) and 0 (copied) adjust themselves and get no slot.
        n_operands: How many operands the node has; those after the first have no axes of interest.

    Raises:
        RuleError: The shapes hold different numbers of elements, as those of sizes known at run time only may seem to.
    """
    if prod(operand) != prod(result):
        raise RuleError(f"a reshape of {list(operand)} cannot give {list(result)}: a size is only known at run time")
    before, after, fixed = _refine(operand, result)
    slots: tuple[SizeSlot, ...] = ()
    if slot is not None:
        raw = stored if stored is not None else result
        slots = tuple(SizeSlot(slot, dim, i) for i, dim in enumerate(after) if i < len(raw) and raw[i] not in (-1, 0))
    return Rule((before, *(None for _ in range(n_operands - 1))), (after,), fixed, sizes=slots, carries=(0,))


def _refine(operand: Shape, result: Shape) -> tuple[tuple[Dim, ...], tuple[Dim, ...], dict[Factor, str]]:
    """The factors that both shapes are products of; what does not align is fixed, each side on its own."""
    if 0 in operand:
        return _refine_empty(operand, result)
    before: list[list[Dim]] = [[] for _ in operand]
    after: list[list[Dim]] = [[] for _ in result]
    fixed: dict[Factor, str] = {}
    left = [[i, size] for i, size in enumerate(operand) if size != 1]
    right = [[j, size] for j, size in enumerate(result) if size != 1]
    a = b = 0
    while a < len(left) and b < len(right):
        x, y = left[a], right[b]
        common = gcd(x[1], y[1])
        if common > 1:
            factor = Factor("f", common)
            before[x[0]].append(factor)
            after[y[0]].append(factor)
            x[1] //= common
            y[1] //= common
        else:
            stop_a, stop_b = _block_end(left, right, a, b)
            for side, parts, start, stop in ((left, before, a, stop_a), (right, after, b, stop_b)):
                for at, size in side[start:stop]:
                    whole = Factor("f", size)
                    parts[at].append(whole)
                    fixed[whole] = MISALIGNED
            a, b = stop_a, stop_b
            continue
        a += x[1] == 1
        b += y[1] == 1
    return tuple(product(*parts) for parts in before), tuple(product(*parts) for parts in after), fixed


def _refine_empty(operand: Shape, result: Shape) -> tuple[tuple[Dim, ...], tuple[Dim, ...], dict[Factor, str]]:
    """The same where there are no elements: axes that are equal up to the first empty one, what lies behind it."""
    n = operand.index(0) + 1
    if operand[:n] == result[:n] and prod(operand[n:]) == prod(result[n:]):
        first = axes("f", operand[:n])
        before, after, fixed = _refine(operand[n:], result[n:])
        return (*first, *before), (*first, *after), fixed
    sides = axes("x", operand), axes("y", result)
    fixed = {factor: MISALIGNED for side in sides for dim in side for factor in factors_of(dim)}
    return *sides, fixed


def _block_end(left: list[list[int]], right: list[list[int]], a: int, b: int) -> tuple[int, int]:
    volume_a, volume_b = left[a][1], right[b][1]
    while volume_a != volume_b:
        if volume_a < volume_b:
            a += 1
            volume_a *= left[a][1]
        else:
            b += 1
            volume_b *= right[b][1]
    return a + 1, b + 1


def transpose(operand: Shape, order: Sequence[int]) -> Rule:
    """A permutation of axes: result axis ``i`` is operand axis ``order[i]``."""
    dims = axes("x", operand)
    return Rule((dims,), (tuple(dims[i] for i in order),), carries=(0,))


def expand(
    operand: Shape,
    result: Shape,
    *,
    slot: str | None = None,
    stored: Sequence[int | None] | None = None,
    n_operands: int = 1,
) -> Rule:
    """Broadcasting to a shape: axes of size one become free factors (``b k 1 s d -> b k r s d``).

    A free factor that ends up in weights is prunable on its own: query heads of each key-value group.
    """
    rank = len(result)
    dims = axes("r", result)
    offset = rank - len(operand)
    before = tuple(ONE if size == 1 else dims[offset + i] for i, size in enumerate(operand))
    raw = stored if stored is not None else result
    slots: tuple[SizeSlot, ...] = ()
    if slot is not None:
        slots = tuple(SizeSlot(slot, dim, i) for i, dim in enumerate(dims) if i < len(raw) and raw[i] not in (-1, 1))
    labels = {
        factor: "repeat"
        for i, dim in enumerate(dims)
        if i >= offset and operand[i - offset] == 1
        for factor in factors_of(dim)
    }
    return Rule((before, *(None for _ in range(n_operands - 1))), (dims,), sizes=slots, labels=labels, carries=(0,))


def tile(
    operand: Shape, repeats: Sequence[int], *, slot: str | None = None, interleave: bool = False, n_operands: int = 1
) -> Rule:
    """Repeats each axis: ``(r c)`` for a tile of the whole, ``(c r)`` where each element is repeated in place."""
    rank = len(repeats)
    before = axes("x", operand)
    padded = (*(ONE for _ in range(rank - len(operand))), *before)
    times = tuple(axis("r", n) for n in repeats)
    after = tuple(product(c, r) if interleave else product(r, c) for r, c in zip(times, padded, strict=True))
    slots = () if slot is None else tuple(SizeSlot(slot, r, i) for i, r in enumerate(times) if r.size != 1)
    labels = {factor: "repeat" for r in times for factor in factors_of(r)}
    return Rule((before, *(None for _ in range(n_operands - 1))), (after,), sizes=slots, labels=labels, carries=(0,))


def create(result: Shape, *, slot: str | None = None, n_operands: int = 0) -> Rule:
    """A tensor of one value (zeros, ones, full): every axis is free, its size is written anew."""
    dims = axes("z", result)
    slots = () if slot is None else tuple(SizeSlot(slot, dim, i) for i, dim in enumerate(dims))
    return Rule(tuple(None for _ in range(n_operands)), (dims,), sizes=slots)


def opaque(results: Sequence[Shape | None], reason: str, *, n_operands: int = 0) -> Rule:
    """Results whose axes are fixed, of operands whose axes do not matter (shapes, ranges, comparisons of sizes)."""
    layouts = tuple(None if shape is None else axes("y", shape) for shape in results)
    fixed = {factor: reason for layout in layouts if layout for dim in layout for factor in factors_of(dim)}
    return Rule(tuple(None for _ in range(n_operands)), layouts, fixed)
