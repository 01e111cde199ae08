"""Rules of look-ups and of choices: elements that are positions of an axis, and what makes and reads them.

A rule says with ``reads`` that an operand's elements are positions of a dimension, and with ``makes`` that a result's
are. The analysis follows them from the one to the other: the axis that a router chooses from and the axis of experts
that its choice looks up are one factor. Positions that come from elsewhere (token ids) fix the axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from graphprune.ir.dims import ONE, Dim, Factor, factors_of
from graphprune.ir.rule import Rule, Shape
from graphprune.rules.contraction import axes, axis
from graphprune.rules.pointwise import pointwise


def gather(table: Shape, indices: Shape, at: int) -> Rule:
    """``take(table, indices, axis=at)``: ``n v d, b s @v -> n b s d``; an embedding is a gather along axis 0."""
    at %= len(table)
    dims, places = axes("x", table), axes("i", indices)
    labels = {factor: "neuron" for i, dim in enumerate(dims) if i != at for factor in factors_of(dim)}
    result = (*dims[:at], *places, *dims[at + 1 :])
    return Rule((dims, places), (result,), labels=labels, reads={1: dims[at]}, carries=(0,))


def elements(x: Shape, others: Sequence[Shape | None], at: int, *, writes: bool) -> Rule:
    """One index for each element: ``n e, n k @e -> n k``, or (``writes``) ``n e, n k @e, n k -> n e``.

    Other axes are coupled where the indices cover them whole. An index that writes may not be removed: it would write
    to the first position.

    Args:
        x: What is read from or written to.
        others: The indices, and what is written.
        at: The axis that the indices address.
        writes: Whether the result is ``x`` with something written, rather than what was read.
    """
    at %= max(1, len(x))
    dims = axes("x", x)
    present = [shape for shape in others if shape is not None]
    shared = [i for i in range(len(x)) if i != at and all(shape[i] == x[i] for shape in present)]
    fixed: dict[Factor, str] = {}
    place = axis("i", present[0][at]) if x else ONE
    operands = []
    for shape in others:
        layout = None if shape is None else [dims[i] if i in shared else axis("i", n) for i, n in enumerate(shape)]
        if layout and shape is not None and shape[at] == place.size:
            layout[at] = place
        for i, dim in enumerate(layout or ()):
            if i not in shared and dim is not place:
                fixed.update(dict.fromkeys(factors_of(dim), "an index addresses part of this axis"))
        operands.append(None if layout is None else tuple(layout))
    for i, dim in enumerate(dims):
        if i not in shared and i != at:
            fixed.update(dict.fromkeys(factors_of(dim), "an index addresses part of this axis"))
    return Rule(
        (dims, *operands),
        (dims,) if writes else (operands[0],),
        fixed,
        reads={1: dims[at]} if dims else {},
        writes=(place,) if writes else (),
        carries=() if writes else (0,),
    )


def topk(x: Shape, k: int, at: int, *, reason: str, pointed: bool = True, n_operands: int = 1) -> Rule:
    """``n e -> n k, n k @e``: so many units of ``e`` must stay, and ``k`` is fixed.

    Args:
        x: What is chosen from.
        k: How many are chosen.
        at: The axis.
        reason: Why the axis stays whole, where nothing but the values matters.
        pointed: Whether the positions are used.
        n_operands: How many operands the node has.
    """
    at %= max(1, len(x))
    dims, own = axes("x", x), axis("k", k)
    taken = (*dims[:at], own, *dims[at + 1 :]) if x else ()
    inner = tuple(factors_of(dims[at])) if x else ()
    return Rule(
        (dims, *(None for _ in range(n_operands - 1))),
        (taken, taken),
        dict.fromkeys(factors_of(own), "a choice of so many"),
        makes={1: dims[at]} if x else {},
        choices=dict.fromkeys(inner, reason),
        labels=dict.fromkeys(inner, "chosen") if pointed else {},
        least=((dims[at], k),) if inner else (),
    )


def pointing(rule: Rule, at: Dim, result: int) -> Rule:
    """``rule``, whose ``result`` holds positions of ``at`` that the operator chose."""
    return replace(
        rule, makes={**rule.makes, result: at}, labels={**rule.labels, **dict.fromkeys(factors_of(at), "chosen")}
    )


def copied(operands: Sequence[Shape | None], result: Shape) -> Rule:
    """Element by element, and the elements stay what they are (a copy, another type)."""
    return replace(pointwise(operands, result), carries=(0,))


def compared(operands: Sequence[Shape | None], result: Shape) -> Rule:
    """Element by element, for equality: positions may be compared with positions, or with all of them in order."""
    return replace(pointwise(operands, result), compares=True)
