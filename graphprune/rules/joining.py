"""Rules of operators that join axes end to end or take parts of them: concat, split, slice, pad, stack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from graphprune.ir.dims import Dim, Factor, concat, factors_of, product
from graphprune.ir.rule import Rule, Shape, SizeSlot
from graphprune.rules.contraction import axes, axis


def _replace(layout: Sequence[Dim], at: int, dim: Dim) -> tuple[Dim, ...]:
    return (*layout[:at], dim, *layout[at + 1 :])


def joined(operands: Sequence[Shape], at: int) -> Rule:
    """Concatenation along axis ``at``: ``n a h, n c h -> n a+c h``."""
    at %= len(operands[0])
    dims = axes("x", operands[0])
    parts = [axis(f"p{i}", shape[at]) if shape[at] else concat() for i, shape in enumerate(operands)]
    return Rule(
        tuple(_replace(dims, at, part) for part in parts),
        (_replace(dims, at, concat(*parts)),),
        carries=tuple(range(len(parts))),
    )


def split(operand: Shape, at: int, sizes: Sequence[int], *, slot: str | None = None, n_operands: int = 1) -> Rule:
    """Splitting axis ``at`` into consecutive parts: ``n a+b -> n a, n b``."""
    at %= len(operand)
    dims = axes("x", operand)
    parts = [axis(f"p{i}", size) for i, size in enumerate(sizes)]
    slots = () if slot is None else tuple(SizeSlot(slot, part, i) for i, part in enumerate(parts))
    return Rule(
        (_replace(dims, at, concat(*parts)), *(None for _ in range(n_operands - 1))),
        tuple(_replace(dims, at, part) for part in parts),
        sizes=slots,
        carries=(0,),
    )


def sliced(
    operand: Shape,
    at: int,
    start: int,
    stop: int,
    step: int = 1,
    *,
    start_slot: SizeName | None = None,
    stop_slot: SizeName | None = None,
    n_operands: int = 1,
) -> Rule:
    """A slice of one axis: ``n a+b+c -> n b``; every ``step``-th element where the step divides the axis.

    Args:
        operand: The shape before.
        at: The axis.
        start: First position, as written (negative counts from the end).
        stop: Position after the last, as written; at or past the end leaves the slice open.
        step: Distance of the positions; a negative one fixes the axis.
        start_slot: Attribute and index that hold the start.
        stop_slot: Attribute and index that hold the stop.
        n_operands: How many operands the node has.
    """
    at %= len(operand)
    size = operand[at]
    dims = axes("x", operand)
    open_end = stop >= size
    first, last = _clip(start, size), _clip(stop, size)
    length = len(range(first, last, step)) if step > 0 else 0
    rest: tuple[None, ...] = (None,) * (n_operands - 1)
    if step == 1:
        before, middle, after = (
            axis(name, n) if n > 0 else concat()
            for name, n in (("a", first), ("b", length), ("c", size - first - length))
        )
        slots = []
        if start_slot is not None and first > 0:
            slots.append(_bound(start_slot, start, before, concat(middle, after)))
        if stop_slot is not None and not open_end:
            slots.append(_bound(stop_slot, stop, concat(before, middle), after))
        whole = concat(before, middle, after)
        return Rule((_replace(dims, at, whole), *rest), (_replace(dims, at, middle),), sizes=tuple(slots), carries=(0,))
    if step > 1 and size % step == 0 and first < step and length == size // step:
        major, minor = axis("q", size // step), axis("step", step)
        fixed = dict.fromkeys(factors_of(minor), f"a slice takes every {step}-th position of this axis")
        slots_ = () if open_end or stop_slot is None else (SizeSlot(stop_slot[0], product(major, minor), stop_slot[1]),)
        return Rule(
            (_replace(dims, at, product(major, minor)), *rest),
            (_replace(dims, at, major),),
            fixed,
            sizes=slots_,
            carries=(0,),
        )
    reason = f"a slice with step {step} walks along this axis"
    shape = (*operand[:at], max(length, len(range(first, last if stop >= -size else -1, step))), *operand[at + 1 :])
    own = axis("y", shape[at])
    fixed = {factor: reason for dim in (dims[at], own) for factor in factors_of(dim)}
    return Rule((dims, *rest), (_replace(dims, at, own),), fixed, carries=(0,))


SizeName = tuple[str, int | None]
"""An attribute and, where it is a list, the element."""


def _bound(slot: SizeName, written: int, before: Dim, after: Dim) -> SizeSlot:
    """A bound of a slice: the size of what lies before it, or minus that of what lies after where it is negative."""
    if written < 0:
        return SizeSlot(slot[0], after, slot[1], negative=True)
    return SizeSlot(slot[0], before, slot[1])


def _clip(position: int, size: int) -> int:
    return max(0, min(size, position + size if position < 0 else position))


def selected(operand: Shape, at: int, *, n_operands: int = 1) -> Rule:
    """One position of an axis, which is fixed and disappears: ``n a h -> n h``."""
    at %= len(operand)
    dims = axes("x", operand)
    fixed = dict.fromkeys(factors_of(dims[at]), "one position of this axis is selected")
    return Rule((dims, *(None for _ in range(n_operands - 1))), ((*dims[:at], *dims[at + 1 :]),), fixed, carries=(0,))


def unbound(operand: Shape, at: int) -> Rule:
    """All positions of an axis as results of their own: ``n a h -> n h, n h, ...``."""
    at %= len(operand)
    rule = selected(operand, at)
    return replace(rule, results=rule.results * operand[at])


def stacked(operands: Sequence[Shape], at: int) -> Rule:
    """Stacking along a new axis, which is fixed."""
    at %= len(operands[0]) + 1
    dims = axes("x", operands[0])
    new = axis("stack", len(operands))
    fixed: dict[Factor, str] = dict.fromkeys(factors_of(new), "tensors are stacked along this axis")
    return Rule((dims,) * len(operands), ((*dims[:at], new, *dims[at:]),), fixed, carries=tuple(range(len(operands))))


def padded(operand: Shape, before: Sequence[int], after: Sequence[int], *, constant: bool, n_operands: int = 1) -> Rule:
    """Padding: ``n c -> n l+c+r`` with fixed ``l`` and ``r``; a padding by the axis' own values fixes it."""
    dims = axes("x", operand)
    fixed: dict[Factor, str] = {}
    result: list[Dim] = []
    inner = list(dims)
    for i, (dim, left, right) in enumerate(zip(dims, before, after, strict=True)):
        if left == 0 and right == 0:
            result.append(dim)
        elif constant and left >= 0 and right >= 0:
            ends = [axis("l", left) if left else concat(), axis("r", right) if right else concat()]
            for end in ends:
                fixed.update(dict.fromkeys(factors_of(end), "padding"))
            result.append(concat(ends[0], dim, ends[1]))
        elif left <= 0 and right <= 0:
            parts = [
                axis(n, s) if s else concat() for n, s in (("l", -left), ("x", dim.size + left + right), ("r", -right))
            ]
            for end in (parts[0], parts[2]):
                fixed.update(dict.fromkeys(factors_of(end), "cut off by a negative padding"))
            inner[i] = concat(*parts)
            result.append(parts[1])
        else:
            own = axis("y", dim.size + left + right)
            for each in (dim, own):
                fixed.update(dict.fromkeys(factors_of(each), "padded by its own values"))
            result.append(own)
    return Rule((tuple(inner), *(None for _ in range(n_operands - 1))), (tuple(result),), fixed)
