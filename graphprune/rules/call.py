"""What a table of operators sees of one call, whatever the framework."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from graphprune.ir.rule import Rule, Shape


@dataclass(frozen=True, slots=True)
class Call:
    """An operator call, reduced to what rules depend on.

    Attributes:
        op: The operator (``aten.linear.default``, ``Conv``).
        operands: Shapes of the tensor operands; ``None`` where one is absent.
        results: Shapes of the results; ``None`` where a result is unused or no tensor.
        attributes: All other arguments, by the name in the operator's schema.
        stored: Whether each operand is a stored tensor (a weight, a constant).
        constants: The values of small integer operands that are known (shapes, axes, bounds), by operand index; an
            element that is only known at run time is ``None``.
    """

    op: str
    operands: tuple[Shape | None, ...]
    results: tuple[Shape | None, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    stored: tuple[bool, ...] = ()
    constants: Mapping[int, tuple[int | None, ...]] = field(default_factory=dict)

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or the default where it is absent."""
        value = self.attributes.get(name)
        return default if value is None else value

    def operand(self, i: int) -> Shape | None:
        """The shape of operand ``i``, ``None`` where there is none."""
        return self.operands[i] if i < len(self.operands) else None

    @property
    def x(self) -> Shape:
        """The shape of the first operand."""
        shape = self.operands[0]
        assert shape is not None
        return shape

    @property
    def y(self) -> Shape:
        """The shape of the first result that is used."""
        return next((shape for shape in self.results if shape is not None), ())


class Refusal(Exception):  # noqa: N818  (it is an answer, not an error)
    """Raised by a row that knows the operator but not this use of it; its text becomes the reason of the barrier."""


Row: TypeAlias = Callable[[Call], Rule]
"""One line of a table: how the rule of a call is built. May raise :class:`Refusal`."""


class RuleBook:
    """Builds rules, those of equal calls once: models repeat their layers."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Rule] = {}

    def rule(self, row: Row, call: Call) -> Rule:
        """The rule of a call, the same one for equal calls.

        Raises:
            Refusal: The row knows the operator but not this use of it.
            RuleError: The row's rule does not fit the shapes.
        """
        key = (
            row,
            call.op,
            call.operands,
            call.results,
            tuple(call.attributes.items()),
            call.stored,
            tuple(call.constants.items()),
        )
        try:
            known = self._known.get(key)
        except TypeError:  # an attribute that cannot be hashed
            return row(call)
        if known is None:
            known = self._known[key] = row(call)
        return known
