"""Folding of a traced graph: tables that depend on no input, parameter or buffer become constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import fx

from graphprune.hosts.torch.graph import Folding
from graphprune.hosts.torch.normal_form import run_of
from graphprune.hosts.torch.recording.operators import READS
from graphprune.hosts.torch.specs import SPEC, Spec

FOLD_BUDGET = 1 << 26
"""Bytes that one folded constant may take."""

_FRESH = ("zeros", "ones", "full", "empty", "new_", "scalar_tensor", "rand", "bernoulli", "normal", "multinomial")
_INDEX = torch.ops.aten.index.Tensor


def fold(graph: fx.Graph, tensors: Mapping[str, Any]) -> tuple[Folding, dict[str, Any]]:
    """What folding changes in a graph, and the tensors after it.

    Only what contains a range or a computation is folded; a lone ``zeros`` or ``ones`` keeps its free axes.
    """
    found = _foldable(graph)
    if not found:
        return Folding(), dict(tensors)
    values: dict[fx.Node, Any] = {}
    constants: dict[fx.Node, str] = {}
    folded = dict(tensors)
    with torch.no_grad():
        for node in found:
            name = f"_folded_{node.name}"
            folded[name] = _evaluated(node, values).detach().clone()
            constants[node] = name
    runs = {node: run_of(folded, node, constants) for node in graph.nodes if node.target is _INDEX}
    slices = {node: run for node, run in runs.items() if run is not None}
    folding = Folding(constants, slices)
    folding = replace(folding, dead=dead_nodes(graph, folding))
    return folding, used_tensors(graph, folding, folded)


def dead_nodes(graph: fx.Graph, folding: Folding) -> frozenset[fx.Node]:
    """The nodes of a folded graph that no output needs."""
    constants, slices = folding.constants, folding.slices
    dead: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op not in ("call_function", "get_attr"):
            continue
        for user in node.users:
            if user not in dead and user not in constants and (user not in slices or user.args[0] is node):
                break
        else:
            if node.target not in READS and not node.is_impure(
                impure_random=False
            ):  # attention counts as random, since it may have dropout
                dead.add(node)
    return frozenset(dead)


def used_tensors(graph: fx.Graph, folding: Folding, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors that a folded graph still needs."""
    used = {str(node.target) for node in graph.nodes if node.op == "get_attr" and node not in folding.dead}
    used.update(name for node, name in folding.constants.items() if node not in folding.dead)
    return {name: tensor for name, tensor in tensors.items() if name in used}


def _foldable(graph: fx.Graph) -> list[fx.Node]:
    """The last nodes of computations that start from nothing (ranges, fills) and are worth a constant."""
    free: set[fx.Node] = set()
    worthy: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        operands = node.all_input_nodes
        if any(operand not in free for operand in operands) or not isinstance(node.meta[SPEC], Spec):
            continue
        spec = node.meta[SPEC]
        if spec.dynamic or spec.itemsize * prod(spec.shape) > FOLD_BUDGET:
            continue
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            continue
        free.add(node)
        fresh = str(node.target).split(".")[1].startswith(_FRESH)
        if any(operand in worthy for operand in operands) or (not operands and not fresh):
            worthy.add(node)
    return [node for node in graph.nodes if node in worthy and any(user not in free for user in node.users)]


def _evaluated(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """The value of a node that starts from nothing; what is computed on the way is kept in ``values``."""
    if node not in values:
        for operand in node.all_input_nodes:
            _evaluated(operand, values)
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    return values[node]
