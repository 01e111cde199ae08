"""Coupling rules: what one operator says about the dimensions of its operands and results.

This module holds the rule; its one-line notation is in :mod:`graphprune.ir.notation`; the builders for families of
operators are in ``graphprune.rules``; which operator has which rule is said by the tables in ``graphprune.frontends``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from graphprune.ir.dims import Dim, Factor, Layout, resized

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SizeSlot:
    """An attribute (or an element of one) whose value is the size of ``dim``: ``shape[2] = |(h d)|``.

    With ``negative`` the value is minus that size, as in a slice that starts 64 before the end: ``start = -|b|``.
    """

    attribute: str
    dim: Dim
    index: int | None = None
    negative: bool = False

    def value(self, dim: Dim, sizes: Mapping[Factor, int]) -> int:
        """The attribute's value when ``dim`` (this slot's, or what the solver made of it) has these sizes left."""
        return -resized(dim, sizes) if self.negative else resized(dim, sizes)


@dataclass(frozen=True, slots=True)
class Rule:
    """How the dimensions of one operator's operands and results are built from shared factors.

    A factor belongs to one rule only; the solver says which factors of different rules are the same.

    Attributes:
        operands: One layout for each operand, ``None`` where the operand has no axes of interest.
        results: One layout for each result, ``None`` likewise.
        fixed: Factors that may not be cut, with the reason that a user reads.
        normalized: Factors over which a statistic is taken, so that removing units shifts what the others see.
        macs: Monomials whose sum is the number of multiply-accumulate operations.
        sizes: Attributes that carry sizes.
        pinned: Attributes that must be made explicit, with their value, before an operand is cut.
        labels: What the units of a factor are to a user (``head``, ``channel``, ...).
    """

    operands: tuple[Layout | None, ...]
    results: tuple[Layout | None, ...]
    fixed: Mapping[Factor, str] = field(default_factory=dict)
    normalized: frozenset[Factor] = frozenset()
    macs: tuple[Layout, ...] = ()
    sizes: tuple[SizeSlot, ...] = ()
    pinned: tuple[tuple[str, float], ...] = ()
    labels: Mapping[Factor, str] = field(default_factory=dict)


def fresh(rule: Rule) -> Rule:
    """The same rule with factors of its own, for another node: building a rule anew costs many times as much."""
    copies: dict[Dim, Dim] = {}

    def copy(dim: Dim) -> Dim:
        known = copies.get(dim)
        if known is None:
            if isinstance(dim, Factor):
                known = Factor(dim.name, dim.size)
            elif dim.parts:
                known = type(dim)(tuple([copy(part) for part in dim.parts]), dim.size)
            else:
                known = dim
            copies[dim] = known
        return known

    def factor(old: Factor) -> Factor:
        new = copy(old)
        assert isinstance(new, Factor)
        return new

    def layouts(old: tuple[Layout | None, ...]) -> tuple[Layout | None, ...]:
        return tuple([None if layout is None else tuple([copy(dim) for dim in layout]) for layout in old])

    return Rule(
        layouts(rule.operands),
        layouts(rule.results),
        {factor(old): reason for old, reason in rule.fixed.items()},
        frozenset([factor(old) for old in rule.normalized]),
        tuple([tuple([copy(dim) for dim in monomial]) for monomial in rule.macs]),
        tuple([SizeSlot(slot.attribute, copy(slot.dim), slot.index, slot.negative) for slot in rule.sizes]),
        rule.pinned,
        {factor(old): label for old, label in rule.labels.items()},
    )
