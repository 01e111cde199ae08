"""Make the user's own PyTorch module as small as the pruned model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

from graphprune.errors import ModelError, TargetError
from graphprune.pipeline import keys
from graphprune.pipeline.passes import Pass
from graphprune.pipeline.state import State
from graphprune.planning.layouts import is_bound


def _require_said(module: Any, unsaid: Mapping[str, str], notes: Sequence[str]) -> None:
    """Refuses a module whose config does not say what it is, where that was asked for.

    Raises:
        ModelError: It does not.
    """
    reason = next(iter(unsaid.values()), "")
    if not reason and not callable(getattr(module, "save_pretrained", None)):
        reason = " ".join(notes)
    if reason:
        raise ModelError(
            f"layout 'stock' was asked for, and no config was found that says what is left: {reason}; leave the layout "
            "out, or prune other kinds (only=...)"
        )


@runtime_checkable
class Rebuildable(Protocol):
    """A host of a module of the user's own class; a method only, so that it costs nothing to ask."""

    def rebuilt(self, state: State) -> Any:
        """The user's module, made as small as the host of a state is.

        Returns:
            ``module`` (``None``: there is none), ``notes``, ``attributes`` that differ, ``checks`` beside its forward;
            where there are any, ``unsaid`` (why a config does not say its shape) and ``former`` (names in the host).
        """


@dataclass(frozen=True)
class RebuildModule(Pass):
    """Copies the user's module with sliced parameters, where the proof says that this is right; else a graph module.

    Does nothing for hosts that are no :class:`Rebuildable`, such as ONNX files. See
    :mod:`graphprune.hosts.torch.module`.

    Attributes:
        proof: Whether the module is proven on random inputs beside the example, and what was proven of it beside its
            forward counts among the checks.
    """

    name: ClassVar[str] = "rebuild-module"
    proof: bool = True

    @property
    def needs(self) -> frozenset[str]:
        """A model that is done."""
        return frozenset({keys.ANALYSIS, keys.PLAN, keys.SLICED})

    @property
    def gives(self) -> frozenset[str]:
        """The module."""
        return frozenset({keys.MODULE})

    def run(self, state: State) -> State:
        """The state with the module, notes on it, and in the plan the numbers of it that differ."""
        state = replace(state, done=state.done | self.gives)
        if not isinstance(state.host, Rebuildable):
            return state
        made, plan = state.host.rebuilt(replace(state, proves=self.proof)), state.plan
        assert plan is not None
        if is_bound(plan.options.get("layout")):
            _require_said(made.module, getattr(made, "unsaid", {}), made.notes)
            _require_values(made.module, plan.options.get("config", {}))
        if made.attributes:
            attributes = {row.path: [row.before, row.after] for row in made.attributes}
            plan = replace(plan, options={**plan.options, "attributes": attributes})
        checks = (*state.checks, *(made.checks if self.proof else ()))
        return replace(
            state, module=made.module, attributes=made.attributes, plan=plan, checks=checks,
            notes=(*state.notes, *made.notes), former=getattr(made, "former", str),
        )  # fmt: skip


def _require_values(module: Any, values: Mapping[str, int]) -> None:
    """Refuses a module whose config does not say what was asked for.

    Raises:
        TargetError: It does not.
    """
    if not values:
        return
    found = {name: _value_of(module, name) for name in values}
    if off := next((name for name, value in values.items() if found[name] != value), None):
        raise TargetError(
            f"shape target '{off}={values[off]}' cannot be reached: the config that says what would be left has "
            f"'{off}={found[off]}'; take other sizes"
        )


def _value_of(module: Any, name: str) -> Any:
    """A value of the config of a module, or of the first part of it that has one."""
    for _, layer in module.named_modules():
        value: Any = vars(layer).get("config")
        if value is not None:
            for key in name.split("."):
                value = value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)
            return value
    return None
