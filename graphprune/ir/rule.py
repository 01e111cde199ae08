"""Coupling rules: what one operator says about the dimensions of its operands and results.

This module holds the rule; its one-line notation is in :mod:`graphprune.ir.notation`; the builders for families of
operators are in ``graphprune.rules``; which operator has which rule is said by the tables in
``graphprune.hosts.onnx.ops`` and ``graphprune.hosts.torch.ops``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from graphprune.brief import brief
from graphprune.ir.dims import Dim, Factor, Layout, resized

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SizeSlot:
    """An attribute (or an element of one) whose value is the size of ``dim``: ``shape[2] = |(h d)|``.

    With ``negative`` the value is minus that size, as in a slice that starts 64 before the end: ``start = -|b|``. An
    ``offset`` is added: the largest position of an axis is ``|e| - 1``.
    """

    attribute: str
    dim: Dim
    index: int | None = None
    negative: bool = False
    offset: int = 0

    def value(self, dim: Dim, sizes: Mapping[Factor, int]) -> int:
        """The attribute's value when ``dim`` (this slot's, or what the solver made of it) has these sizes left."""
        size = resized(dim, sizes)
        return (-size if self.negative else size) + self.offset


@dataclass(frozen=True, slots=True)
class Rule:
    """How the dimensions of one operator's operands and results are built from shared factors.

    A factor belongs to one rule only. Nodes with equal calls share a rule; the analysis says what its factors are at
    each node.

    Attributes:
        operands: One layout for each operand, ``None`` where the operand has no axes of interest.
        results: One layout for each result, ``None`` likewise.
        fixed: Factors that may not be cut, with the reason that a user reads.
        normalized: Factors over which a statistic is taken, so that removing units shifts what the others see.
        macs: Monomials whose sum is the number of multiply-accumulate operations.
        sizes: Attributes that carry sizes.
        pinned: Attributes that must be made explicit, with their value, before an operand is cut.
        labels: What the units of a factor are to a user (``head``, ``channel``, ...).
        reads: Operands whose elements are positions of a dimension, which the operator looks up.
        writes: Axes of indices at which something is written: one goes only with the position that it writes to, or a
            removed index would write to the first position.
        makes: Results whose elements are positions of a dimension.
        carries: Operands whose elements are what the other results consist of (a view, a join, a copy), so that
            positions stay positions.
        ranks: Whether the operator puts the positions that it carries in order.
        compares: Whether the operands are compared for equality, which positions may be.
        choices: Factors among whose units the operator chooses or shares (softmax, top-k, maximum), with the reason
            why they stay whole, unless the units are experts: then removal shifts the choice, as for ``normalized``.
            A factor that is in ``normalized`` too is one that only a maximum is taken of: that of the kept units.
        ordered: Factors whose units may be removed but not change places.
        least: Dimensions of which at least so many positions must stay.
        multiples: Dimensions whose size must stay a multiple of a number.
    """

    __repr__ = brief

    operands: tuple[Layout | None, ...]
    results: tuple[Layout | None, ...]
    fixed: Mapping[Factor, str] = field(default_factory=dict)
    normalized: frozenset[Factor] = frozenset()
    macs: tuple[Layout, ...] = ()
    sizes: tuple[SizeSlot, ...] = ()
    pinned: tuple[tuple[str, float], ...] = ()
    labels: Mapping[Factor, str] = field(default_factory=dict)
    reads: Mapping[int, Dim] = field(default_factory=dict)
    writes: tuple[Dim, ...] = ()
    makes: Mapping[int, Dim] = field(default_factory=dict)
    carries: tuple[int, ...] = ()
    ranks: bool = False
    compares: bool = False
    choices: Mapping[Factor, str] = field(default_factory=dict)
    ordered: frozenset[Factor] = frozenset()
    least: tuple[tuple[Dim, int], ...] = ()
    multiples: tuple[tuple[Dim, int], ...] = ()

    @property
    def statistics(self) -> frozenset[Factor]:
        """The factors that the masked reference must count in the operator's own way."""
        return self.normalized.union(self.choices, self.ordered)
