"""What a table of operators sees of one call, whatever the framework."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, TypeAlias

from graphprune.errors import RuleError
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


Role: TypeAlias = Literal[
    "", "batch-norm", "softmax", "log-softmax", "sigmoid", "copy", "dropout", "quantize", "turn", "view", "join",
    "unit", "norm", "sum", "square", "bound", "pool", "sizes",
    "caching",
]  # fmt: skip
"""What an operator is for those who ask: a normalisation by stored statistics, what makes probabilities; a copy (of
another type, perhaps), what is one but for training or but for rounding, a copy with its axes in another order, or in
another shape, several in one; what brings vectors to length one, the length of vectors, a sum along axes, a square,
what keeps numbers away from zero or from large ones, a mean along axes; what reads sizes alone, and no
element; attention that looks back, whatever its attributes.
"""

EXACT = "exact"
"""The masked form of an operator whose statistic does not see zeros: itself."""


@dataclass(frozen=True, slots=True)
class Op:
    """All that is known of an operator, in one place: a line of a table that says more than the rule.

    It is called like a row.

    Attributes:
        row: How the rule of a call is built.
        sums: The operands that the result equals where the other ones are zero.
        multiple: Whether the result is its one computed operand times (``product``) or divided by (``quotient``) what
            is stored; copies are times one.
        role: What it is for those who ask.
        masked: The name of its masked form, for statistics that count kept units only (the functions of
            ``masked_forms`` in the host's folder); :data:`EXACT` if it needs none.
        zero_point: Of a quantised result: the operand that holds its zero point.
    """

    row: Row
    sums: tuple[int, ...] = ()
    multiple: Literal["", "product", "quotient"] = ""
    role: Role = ""
    masked: str = ""
    zero_point: int | None = None

    def __call__(self, call: Call) -> Rule:
        """The rule of a call."""
        return self.row(call)

    def addends(self, attributes: Mapping[str, Any]) -> tuple[int, ...]:
        """The operands that a call equals where the other one is zero; ``x + alpha y`` equals ``x`` only."""
        return self.sums if attributes.get("alpha", 1) == 1 else self.sums[:1]

    def multiple_of(self, stored: Sequence[bool]) -> Literal["", "product", "quotient"]:
        """What a call is of its one operand that is not stored; a quotient, of its dividend only."""
        return "" if self.multiple == "quotient" and stored and stored[0] else self.multiple


def facts(row: Row | None) -> Op:
    """What a line of a table says of its operator; of a bare row nothing but the rule."""
    return row if isinstance(row, Op) else _bare(row or _unknown)


def stated_form(op: str, name: str, forms: Iterable[str]) -> str:
    """The name of a masked form that a row states.

    Raises:
        RuleError: There is none of this name.
    """
    if name not in forms:
        known = ", ".join([EXACT, *sorted(forms)])
        raise RuleError(
            f"the row of '{op}' states the masked form '{name}', which there is not; expected one of {known}"
        )
    return name


@cache
def _bare(row: Row) -> Op:
    return Op(row)


def _unknown(call: Call) -> Rule:
    raise Refusal(f"no coupling rule for '{call.op}'")


_TELLING = frozenset(
    """
    dim dims axis axes perm stride strides padding pads output_padding dilation dilations group groups transposed
    kernel_size kernel_shape eps epsilon is_causal keepdim keepdims approximate ceil_mode alpha beta negative_slope
    threshold transA transB mode
    """.split()  # noqa: SIM905
)


def options(attributes: Mapping[str, Any]) -> str:
    """The attributes that say what an operator computes and never depend on the sizes of an example, as text."""
    telling = sorted(_TELLING & attributes.keys())
    return " ".join([f"{name}={value}" for name in telling if (value := attributes[name]) is not None])


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
