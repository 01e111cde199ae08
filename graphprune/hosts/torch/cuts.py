"""Edits of a traced model: the stored tensors that they cut, and what they name that is not there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import fx

from graphprune.errors import PlanError
from graphprune.hosts.edits import Edits
from graphprune.hosts.torch.gains import lengthened, rescaled
from graphprune.hosts.torch.slice import sliced
from graphprune.hosts.torch.stored import owners


def require_there(edits: Edits, nodes: Collection[str], tied: Collection[str], values: Collection[str]) -> None:
    """Refuses edits of another model.

    Args:
        edits: The edits.
        nodes: Names of the nodes that there are.
        tied: Names of the stored values that there are.
        values: Names of all values that there are.

    Raises:
        PlanError: An edit names something that the model does not have.
    """
    foreign = "the plan belongs to another model"
    if missing := [
        name for name in (*(e.node for e in edits.sizes), *(p.node for p in edits.pins)) if name not in nodes
    ]:
        raise PlanError(f"the model has no node '{missing[0]}'; {foreign}")
    if missing := [tensor for tensor in edits.slices if tensor not in tied]:
        raise PlanError(f"the model has no stored tensor '{missing[0]}'; {foreign}")
    if missing := [old for pair in edits.bypasses.items() for old in pair if old not in values]:
        raise PlanError(f"the model has no value '{missing[0]}' to bypass; {foreign}")


def cut_tensors(
    graph: fx.Graph, tensors: Mapping[str, Any], tied: Mapping[str, tuple[str, ...]], edits: Edits
) -> dict[str, Any]:
    """The stored tensors after edits, each in all names that it has.

    Args:
        graph: The graph that reads them.
        tensors: The tensors before.
        tied: For each stored value all its names.
        edits: The edits.
    """
    cut = dict(tensors)

    def put(owner: str, new: torch.Tensor) -> None:
        cut.update((alias, new) for alias in tied[owner] if alias in cut)

    for name, new in sliced(tensors, edits.slices).items():
        put(name, new)
    by_name = owners(tied)
    given = graph, tensors, cut, edits.slices, by_name
    for name, new in (*rescaled(*given), *lengthened(*given)):
        put(by_name[name], new)
    for name, places in edits.renumbered.items():
        put(name, torch.from_numpy(places)[cut[name].cpu().long()].to(cut[name]))
    return cut
