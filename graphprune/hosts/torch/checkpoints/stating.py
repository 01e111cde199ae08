"""The config of what a plan leaves of a model without weights, found from shapes alone; else why there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from graphprune.errors import OutputError
from graphprune.hosts.torch.checkpoints.asking import elements_without
from graphprune.hosts.torch.checkpoints.renumber import Renumbering
from graphprune.hosts.torch.checkpoints.search import Statement, Wanted, find_statement, pairs_of, torn
from graphprune.pipeline.edits import slice_edits
from graphprune.planning.layouts import is_bound
from graphprune.report.data import AttributeRow

_NO_WEIGHTS = "weights on the meta device have no values: the module is its class as the new config builds it"

if TYPE_CHECKING:
    from graphprune.hosts.torch.checkpoints.twins import Shapes
    from graphprune.hosts.torch.host import TorchHost
    from graphprune.pipeline.state import State


def lost_names(host: TorchHost, state: State) -> frozenset[str]:
    """The names in the module of the tensors that go with the branches that a plan leaves out."""
    assert state.analysis is not None
    gone = state.analysis.branches.unneeded(state.removed).tensors if state.removed else frozenset[str]()
    return frozenset(alias for name in gone for alias in host.tied.get(name, (name,)))


def left_shapes(host: TorchHost, state: State) -> Shapes:
    """The shapes that a plan leaves, by names in the module; of those that are cut."""
    plan = state.plan
    assert plan is not None
    return {
        alias: tuple(len(axes[i]) if i in axes else size for i, size in enumerate(plan.shapes[name]))
        for name, axes in plan.parameters.items()
        for alias in host.tied.get(name, (name,))
    }


def renumbering_of(host: TorchHost, state: State) -> Renumbering:
    """What becomes of the lists of layers when a plan's branches go."""
    assert host.source is not None
    return elements_without(host.source, set(lost_names(host, state)))


def said_of(host: TorchHost, state: State) -> Statement:
    """The config of what a plan leaves.

    Raises:
        OutputError: There is none, or values would have to change that are no slices of the original's.
    """
    if reason := _not_slices(host, state):
        raise OutputError(
            f"'{type(host.source).__name__}' cannot be cut without its weights: {reason}; load them (without --stream)"
        )
    base, reason = host.asking.bases.get(""), host.asking.reason
    if base is None:
        raise OutputError(f"no config says what would be left: {reason}")
    lost, cut, renumbering = lost_names(host, state), left_shapes(host, state), renumbering_of(host, state)
    left = {name: shape for name, shape in base.shapes.items() if not renumbering.is_gone(name)}
    if alone := next((name for name in left if name in lost), ""):
        reason = f"no config leaves out '{alone}' alone"
    else:
        old = {renumbering.new(name): shape for name, shape in left.items()}
        new = {renumbering.new(name): cut.get(name, shape) for name, shape in left.items()}
        if not (reason := torn(base, old, new)):
            sizes = [(factor.size, len(index)) for factor, index in state.kept.items()]
            found, reason = find_statement(base, Wanted(new, pairs_of(old, new, sizes), renumbering))
            if found is not None:
                return found
    raise OutputError(
        f"no config says what would be left of '{type(host.source).__name__}': {reason}; give layout='stock', with "
        "which only that is left which a config can say"
    )


def left_of(host: TorchHost, state: State) -> tuple[nn.Module, tuple[str, ...], tuple[AttributeRow, ...]] | None:
    """A class on the meta device as the config builds it that says what is left, a note, and what of it differs.

    ``None`` where no such config was asked for.

    Raises:
        OutputError: There is none.
    """
    if state.plan is None or not is_bound(state.plan.options.get("layout")):
        return None
    said = said_of(host, state)
    return said.after.module.eval(), (_NO_WEIGHTS,), rows_of(said)


def rows_of(said: Statement) -> tuple[AttributeRow, ...]:
    """The values of a config that differ, for the report."""
    return tuple(
        AttributeRow(f"config.{'.'.join(map(str, leaf))}", old, new) for leaf, (old, new) in said.changes.items()
    )


def _not_slices(host: TorchHost, state: State) -> str:
    """Which stored values a plan would change beside cutting them; empty if it does none."""
    assert state.analysis is not None
    edits = slice_edits(state.analysis, state.kept)
    if edits.renumbered:
        return f"'{next(iter(edits.renumbered))}' holds places of what is cut, which are counted anew"
    for name, follows in host.adjusted.items():
        if any(each in edits.slices for each in follows):
            return f"'{name}' follows from the norm of what is cut, and is computed anew"
    return ""
