"""A traced graph with the tensors that a module holds now: what a loop of pruning and training needs no new trace for.

Optimizers write to the tensors that a graph knows; loading a checkpoint, moving a parameter or replacing a buffer gives
the module others. A pruned module has tensors of its own, and its graph is the one that it was proven against.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from graphprune.hosts.torch.host import TorchHost
from graphprune.hosts.torch.lazy_graph import LazyGraph
from graphprune.hosts.torch.program import Program
from graphprune.hosts.torch.runs import OtherRun
from graphprune.hosts.torch.specs import storage_key


def rebound(host: TorchHost, module: nn.Module) -> TorchHost | None:
    """A host with the tensors that a module holds under the names of its own.

    Args:
        host: The traced module, or one that was built like it.
        module: The module, of the same class and with the same numbers in its attributes.

    Returns:
        ``None`` where the trace may say something else of the module as it is: names, shapes, types or ties differ, or
        its code keeps tables that were made of other tensors.
    """
    if host.runs.warm is not None:
        return None
    named: dict[str, torch.Tensor] = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    tensors = _bound(host, named)
    if tensors is None:
        return None
    runs: list[OtherRun] = []
    for run in host.runs.runs:
        own = _bound(run.host, named)
        if own is None:
            return None
        runs.append(replace(run, host=run.host.with_tensors(own)))
    made = host.with_tensors(tensors)
    return replace(made, source=module, runs=replace(host.runs, runs=tuple(runs)))


def of_pruned(pruned: TorchHost, module: nn.Module) -> TorchHost | None:
    """The host of the module that was made of a pruned graph, without tracing it; ``None`` where it has to be traced.

    Args:
        pruned: The pruned graph.
        module: The copy of the user's class that was proven against it.
    """
    if pruned.source is None or type(module) is not type(pruned.source):
        return None
    host = _written(pruned.without_dead_nodes())
    runs = tuple(replace(run, host=_written(run.host)) for run in host.runs.runs)
    return rebound(replace(host, runs=replace(host.runs, runs=runs)), module)


def _written(program: Any) -> Any:
    """A program whose graph has its edits made, as a trace has none."""
    return replace(program, lazy=LazyGraph(program.program), known=None)


def _bound(program: Program, named: Mapping[str, torch.Tensor]) -> dict[str, Any] | None:
    """The tensors of a program, with a module's own for those of the same names; ``None`` if they differ in kind."""
    found = dict(program.tensors)
    for name, old in program.tensors.items():
        new = named.get(name)
        if not isinstance(old, torch.Tensor) or (new is None and not isinstance(old, nn.Parameter)):
            continue  # a body of an operator, or a table that the code has made
        if new is None or (new.shape, new.dtype, new.device) != (old.shape, old.dtype, old.device):
            return None
        found[name] = new
    for name, aliases in program.tied.items():
        places = {storage_key(named[each]) for each in (name, *aliases) if each in named}
        if len(places) > 1:
            return None
    keys = {storage_key(tensor) for tensor in found.values() if isinstance(tensor, torch.Tensor) and tensor.numel()}
    before = {storage_key(t) for t in program.tensors.values() if isinstance(t, torch.Tensor) and t.numel()}
    return found if len(keys) == len(before) else None
