"""Coupling rules for operators that graphprune does not know: the public registry.

    from graphprune import ops

    ops.register("mylib::fused_gate", "n c s, n c s -> n c s")          # torch custom op
    ops.register("com.example::Scale", "n c h w, c -> n c h w")         # ONNX custom op

    @ops.register("mylib::head_mix")                                    # where the text depends on the call
    def head_mix(call: ops.Call) -> ops.Rule:
        return ops.parse_rule("b (h d), h -> b (h d)", call.operands, h=call.attributes["heads"])

An operator that takes a statistic over units, such as a norm, says how the proof computes it on kept units alone: by
the name of a form of the built-in operators (``layer_norm``, ``rms_norm``, ...), or ``exact`` where units that are zero
change nothing:

    ops.register("mylib::unit", ops.Op(ops.Text("n c -> n c; normalized c"), masked=ops.EXACT))

The notation is described in :mod:`graphprune.ir.notation`. A package can register its rules for all its users through
the entry point group ``graphprune.rules`` (the entry point is a function without arguments that registers them).
Rules are judged by the proof of every compile like the built-in ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import overload

from graphprune.errors import RuleError
from graphprune.ir.notation import parse_rule
from graphprune.ir.rule import Rule
from graphprune.registry import Registry, loaded
from graphprune.rules.call import EXACT, Call, Op, Refusal, Row

__all__ = ["EXACT", "Call", "Op", "Refusal", "Row", "Rule", "Text", "lookup", "parse_rule", "register", "registered"]

_ROWS: Registry[Row] = Registry("rule", {})


@dataclass(frozen=True)
class Text:
    """A rule as text, read for each call anew.

    Attributes:
        text: The rule; its sizes must follow from the shapes of the operands and results.
    """

    text: str

    def __call__(self, call: Call) -> Rule:
        """The rule of a call."""
        return parse_rule(self.text, call.operands, call.results)


@overload
def register(op: str, rule: str | Row, *, replace: bool = False) -> None: ...
@overload
def register(op: str, rule: None = None, *, replace: bool = False) -> Callable[[Row], Row]: ...


def register(op: str, rule: str | Row | None = None, *, replace: bool = False) -> Callable[[Row], Row] | None:
    """Adds the rule of an operator.

    Args:
        op: ``namespace::name`` of a torch custom op, or ``domain::OpType`` of an ONNX one (``OpType`` alone in the
            default domain).
        rule: The rule as text; its sizes must follow from the shapes of the operands and results. Or a function from
            :class:`Call` to :class:`Rule`; or an :class:`Op`, which says more of the operator than its rule. Without
            it, the result decorates such a function.
        replace: Whether it may take the place of one that was registered for this operator before.

    Raises:
        RuleError: The text cannot be read.
        OptionError: The operator has another registered rule.
    """
    if rule is None:

        def decorate(row: Row) -> Row:
            _ROWS.register(op, row, replace=replace)
            return row

        return decorate
    if not isinstance(rule, str):
        _ROWS.register(op, rule, replace=replace)
        return None
    if "->" not in rule:
        raise RuleError(f"no '->' in rule '{rule}' for '{op}'; expected 'operands -> results'")
    _ROWS.register(op, Text(rule), replace=replace)
    return None


def registered() -> dict[str, Row]:
    """All rules that users and plug-ins have registered."""
    _load_plugins()
    return dict(_ROWS)


def lookup(op: str) -> Row | None:
    """The registered rule of an operator, if any."""
    _load_plugins()
    return _ROWS.get(op)


@cache
def _load_plugins() -> None:
    for entry in entry_points(group="graphprune.rules"):
        loaded(entry, "rule", call=True)
