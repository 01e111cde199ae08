"""What a module does in the ways in which it is trained: its outputs, and one step."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils import _pytree as pytree

from graphprune.errors import first_line
from graphprune.hosts.torch.modes import WithoutDropout
from graphprune.hosts.torch.quiet import quiet
from graphprune.hosts.torch.runs import OtherRun
from graphprune.hosts.torch.trace import Example, inference
from graphprune.hosts.torch.untouched import untouched


def outputs_in(module: nn.Module, run: OtherRun) -> list[torch.Tensor]:
    """What a module returns in the way of a run, without dropout; it is left as it was."""
    args, kwargs = run.host.example
    with untouched(module, runs=True), quiet(), inference(module, training=run.training), WithoutDropout():
        torch.manual_seed(0)  # as hosts are run
        made = module(*args, **kwargs)
    return [leaf for leaf in pytree.tree_leaves(made) if isinstance(leaf, torch.Tensor)]


def train_step(module: nn.Module, example: Example) -> str:
    """Why one training step of a module fails; empty if it does not. The module is left as it was."""
    args, kwargs = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.detach().clone(), example)
    try:
        with untouched(module, runs=True), quiet(), torch.enable_grad():
            module.train()
            leaves = pytree.tree_leaves(module(*args, **kwargs))
            outputs = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
            if outputs:
                torch.autograd.backward([output.float().mean() for output in outputs if output.numel()])
    except Exception as error:  # noqa: BLE001  (the user's code raises what it likes)
        return first_line(error)
    return ""
