"""Rules of reductions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from graphprune.ir.dims import factors_of
from graphprune.ir.rule import Rule, Shape
from graphprune.rules.contraction import axes

Statistic = Literal["sum", "mean", "extreme", "choice", "other"]


def reduce(
    operand: Shape, reduced: Sequence[int] | None, *, keep: bool, statistic: Statistic, op: str, n_operands: int = 1
) -> Rule:
    """A reduction over some axes (``None`` or empty: all).

    A removed unit adds zero to a ``sum`` (or an L2 norm), shifts a ``mean`` (normalized) and an ``extreme`` (a maximum
    or minimum, which is then that of what is kept: normalized too), takes its part out of a ``choice`` (what all have
    a share of), and makes anything else wrong (fixed).
    """
    rank = len(operand)
    at = {i % rank for i in reduced} if reduced else set(range(rank))
    dims = axes("x", operand)
    inner = [factor for i in sorted(at) for factor in factors_of(dims[i])]
    reason = dict.fromkeys(inner, f"'{op}' reduces over this axis")
    result = tuple(axes("one", (1,))[0] if i in at else dims[i] for i in range(rank) if keep or i not in at)
    return Rule(
        (dims, *(None for _ in range(n_operands - 1))),
        (result,),
        reason if statistic == "other" else {},
        frozenset(inner) if statistic in ("mean", "extreme") else frozenset(),
        choices=reason if statistic in ("extreme", "choice") else {},
    )
