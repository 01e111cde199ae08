"""Rules of element-wise operators, with broadcasting, and of operators that fix some axes of one shape."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from graphprune.ir.dims import ONE, Factor, factors_of
from graphprune.ir.rule import Rule, Shape
from graphprune.rules.contraction import axes


def pointwise(operands: Sequence[Shape | None], result: Shape, n_results: int = 1) -> Rule:
    """An element-wise operator: every operand is broadcast to the result's shape.

    Axes align at the right; an axis of size one is broadcast (``n c h w, c 1 1 -> n c h w``).
    """
    dims = axes("x", result)
    rank = len(result)
    layouts = tuple(
        None
        if shape is None
        else tuple(ONE if size == 1 else dims[rank - len(shape) + i] for i, size in enumerate(shape))
        for shape in operands
    )
    return Rule(layouts, (dims,) * n_results)


def along(
    operand: Shape, results: Sequence[Shape], fixed_axes: Iterable[int], reason: str, *, n_operands: int = 1
) -> Rule:
    """An operator that works along some axes (softmax, cumsum, sort, flip, top-k, pooling, resizing).

    Those axes are fixed; where a result has another size there (top-k, pooling) it gets a factor of its own. All other
    axes are coupled.

    Args:
        operand: The shape of the first operand.
        results: The shapes of the results, all of the operand's rank.
        fixed_axes: The axes that the operator works along; negative ones count from the end.
        reason: Why they may not be cut.
        n_operands: How many operands the node has; those after the first have no axes of interest.
    """
    at = {i % len(operand) for i in fixed_axes} if operand else set[int]()
    dims = axes("x", operand)
    fixed: dict[Factor, str] = {}
    layouts = []
    for shape in results:
        own = axes("y", shape)
        layouts.append(tuple(own[i] if i in at else dims[i] for i in range(len(shape))))
        fixed.update((factor, reason) for i in at for factor in factors_of(own[i]))
    fixed.update((factor, reason) for i in at for factor in factors_of(dims[i]))
    return Rule((dims, *(None for _ in range(n_operands - 1))), tuple(layouts), fixed)
