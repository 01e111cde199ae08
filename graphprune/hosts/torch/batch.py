"""Graph modules that take any batch, and what a graph module costs compared with the user's class.

A trace holds the sizes of its example, the batch among them. Where a graph module is all that can be handed out, the
user's module is traced once more with its batch left open, and the plan is made true on that trace. The result counts
only if it computes what the proven graph computes, on single batches and on two of them at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import Dim, ShapesCollection
from torch.utils import _pytree as pytree

from graphprune.analysis.groups import analyze_graph
from graphprune.analysis.ties import Tie, find_ties
from graphprune.errors import GraphpruneError, first_line
from graphprune.hosts.host import Array
from graphprune.hosts.torch.host import TorchHost
from graphprune.hosts.torch.stored import to_numpy
from graphprune.hosts.torch.trace import Example, inference
from graphprune.hosts.torch.writes import watching
from graphprune.pipeline.edits import smaller
from graphprune.pipeline.state import State
from graphprune.planning.plan import fingerprint
from graphprune.proof.differences import off_whole

TOLERANCE = 1e-4
"""Largest accepted difference between a batch and its parts, relative to the largest output: other kernels may run."""


def with_any_batch(state: State, original: TorchHost, pruned: TorchHost) -> TorchHost | None:
    """The pruned graph with its batch left open; ``None`` where that cannot be had, or proven.

    Args:
        state: The state with the plan, after it was made true.
        original: The traced model.
        pruned: The pruned graph, proven at the example's batch.
    """
    if original.source is None or state.plan is None or original.dynamic_shapes is not None or original.pinned:
        return None
    size = batch_size(original.example)
    if size is None:
        return None
    twice = _twice(original.example, size)
    open_sizes: Any = ShapesCollection()  # type: ignore[no-untyped-call]
    for leaf in pytree.tree_leaves(twice):
        if isinstance(leaf, torch.Tensor) and leaf.ndim and leaf.shape[0] == 2 * size:
            open_sizes[leaf] = {0: Dim.AUTO}
    args, kwargs = twice
    if args and kwargs:
        return None
    try:
        host = TorchHost.trace(original.source, args or kwargs, open_sizes)
        cut = _cut(state, host, pruned)
        return cut if cut is not None and _agrees(cut, pruned, size) else None
    except (GraphpruneError, ValueError):  # the model may need the batch that it was given
        return None


def wrong_in_batches(module: nn.Module, original: TorchHost, pruned: TorchHost) -> str:
    """Why a module does not compute on two batches at once what the pruned graph does one by one; empty if it does.

    Nothing is said where the user's own module does not take two batches, or computes something else on them.
    """
    size = batch_size(original.example)
    if original.source is None or size is None or original.pinned:
        return ""
    inputs = [pruned.example_inputs(seed) for seed in (0, 1)]
    both = original.arguments({name: _joined([each[name] for each in inputs], size) for name in inputs[0]})
    try:
        apart = [_called(original.source, original.arguments(each)) for each in inputs]
        if not _close(_called(original.source, both), _together(apart, size)):
            return ""
    except Exception:  # noqa: BLE001  # it may need the batch that it was given
        return ""
    try:
        got = _called(module, both)
    except Exception as error:  # noqa: BLE001
        return f"with another batch it fails with '{first_line(error)}'"
    wanted = [dict(enumerate(pruned.run(each).values())) for each in inputs]
    return "" if _close(got, _together(wanted, size)) else "its outputs differ with another batch"


def _called(module: nn.Module, arguments: Example) -> dict[int, Array]:
    with watching(), inference(module), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        leaves = pytree.tree_leaves(module(*arguments[0], **arguments[1]))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    return {i: to_numpy(tensor) for i, tensor in enumerate(tensors)}


def _together(outputs: list[dict[int, Array]], size: int) -> dict[int, Array]:
    return {i: _joined([each[i] for each in outputs], size) for i in outputs[0]}


def batch_size(example: Example) -> int | None:
    """The size of the first axis of the first tensor that has one."""
    tensors = (leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, torch.Tensor))
    return next((int(leaf.shape[0]) for leaf in tensors if leaf.ndim), None)


def graph_module(state: State, original: TorchHost, pruned: TorchHost, reason: str) -> tuple[TorchHost, str]:
    """The graph to hand out as a module, of any batch where that can be had, and a note on what it costs.

    Args:
        state: The state with the plan.
        original: The traced model.
        pruned: The pruned graph.
        reason: Why the user's class does not come back.
    """
    found = None if pruned.is_meta else with_any_batch(state, original, pruned)
    costs = costs_of_graph(original, any_batch=found is not None)
    uneven = ", ".join(f"'{tie.groups[0].name}'" for tie in _broken(state, original))
    told = f" (the pieces of {uneven}, which the code splits evenly, did not stay equal)" if uneven else ""
    return found or pruned, f"the module is a graph module of torch.export, since {reason}{told}; it is {costs}"


def _broken(state: State, original: TorchHost) -> list[Tie]:
    """The ties that a plan does not keep: they stood in the way of a target, or the plan is somebody's own."""
    if state.analysis is None:
        return []
    kept = {g.name: len(state.kept[g.factor]) / g.size for g in state.analysis.groups if g.factor in state.kept}
    return [
        tie
        for tie in find_ties(state.analysis, original.made_by_code)
        if len(parts := {kept.get(group.name, 1.0) for group in tie.groups}) > 1 or (tie.whole and parts != {1.0})
    ]


def costs_of_graph(original: TorchHost, *, any_batch: bool) -> str:
    """What a user of a graph module misses, as part of a sentence."""
    sizes = "; it takes any batch, other sizes as in the example"
    if original.dynamic_shapes is not None:
        sizes = "; sizes are those of the example but where dynamic_shapes leaves them open"
    elif not any_batch:
        batch = batch_size(original.example)
        sizes = f"; sizes are those of the example{'' if batch is None else f', also the batch of {batch}'}"
    norms = original.source is not None and any(
        isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in original.source.modules()
    )
    frozen = ", with batch norms that do not learn" if norms else ""
    return f"without dropout and without the methods of your class{frozen}{sizes}"


def _twice(example: Example, size: int) -> Example:
    """The example, where what has the batch as its first axis has two of it."""

    def doubled(leaf: object) -> object:
        if isinstance(leaf, torch.Tensor) and leaf.ndim and leaf.shape[0] == size:
            return torch.cat([leaf, leaf])
        return leaf

    args, kwargs = pytree.tree_map(doubled, example)
    return tuple(args), dict(kwargs)


def _cut(state: State, host: TorchHost, pruned: TorchHost) -> TorchHost | None:
    """A host with an open batch after the plan, with the values of the pruned one; ``None`` if it lacks a tensor."""
    assert state.plan is not None
    whole = host.folded()
    analysis = analyze_graph(whole.graph())
    plan = replace(state.plan, fingerprint=fingerprint(analysis.graph))
    cut = smaller(whole, analysis, plan.kept_of(analysis), plan.blocks_of(analysis))
    assert isinstance(cut, TorchHost)
    parameters = {name for name, tensor in pruned.tensors.items() if isinstance(tensor, nn.Parameter)}
    if not parameters <= cut.tensors.keys():  # a bias that a refit has added
        return None
    same = {
        name: pruned.tensors[name]
        for name, tensor in cut.tensors.items()
        if isinstance(tensor, torch.Tensor) and name in pruned.tensors and pruned.tensors[name].shape == tensor.shape
    }
    return replace(cut, tensors={**cut.tensors, **same})


def _agrees(host: TorchHost, pruned: TorchHost, size: int) -> bool:
    """Whether a host computes what the pruned one does, and on two batches at once what that does one by one."""
    inputs = [pruned.example_inputs(seed) for seed in (0, 1)]
    wanted = [pruned.run(each) for each in inputs]
    both = {name: _joined([each[name] for each in inputs], size) for name in inputs[0]}
    tried = host.run(both)
    return all(_close(host.run(each), want) for each, want in zip(inputs, wanted, strict=True)) and _close(
        tried, {name: _joined([want[name] for want in wanted], size) for name in wanted[0]}
    )


def _joined(arrays: list[Array], size: int) -> Array:
    return np.concatenate(arrays) if arrays[0].ndim and arrays[0].shape[0] == size else arrays[0]


def _close(got: Mapping[Any, Array], wanted: Mapping[Any, Array]) -> bool:
    if [each.shape for each in got.values()] != [each.shape for each in wanted.values()]:
        return False
    return all(off_whole(b, a) <= TOLERANCE for a, b in zip(got.values(), wanted.values(), strict=True))
