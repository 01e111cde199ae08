"""Modules of TorchScript in a user's module: their tensors live where ``copy.deepcopy`` does not replace them."""

from __future__ import annotations

import torch
from torch import nn

from graphprune.hosts.torch.program import Program
from graphprune.hosts.torch.stored import owners


def give_scripts(module: nn.Module, pruned: Program) -> None:
    """Gives the scripted modules in a copy of a user's module the tensors of a pruned graph.

    Args:
        module: The copy; its other modules have their tensors already.
        pruned: The graph.
    """
    scripts = {path: layer for path, layer in module.named_modules() if isinstance(layer, torch.jit.ScriptModule)}
    names = owners(pruned.tied) if scripts else {}
    fresh: dict[str, torch.Tensor] = {}
    for path, layer in scripts.items():
        prefix = f"{path}." if path else ""
        stored = (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False))
        for name, old in stored:
            owner = names.get(prefix + name)
            if owner is None:
                continue
            if owner not in fresh:
                values = pruned.tensor(owner).detach().clone()
                kept = isinstance(pruned.tensor(owner), nn.Parameter)
                fresh[owner] = nn.Parameter(values, requires_grad=old.requires_grad) if kept else values
            setattr(layer, name, fresh[owner])
