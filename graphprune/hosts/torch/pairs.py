"""What pruning has made of a traced model and of its other runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from graphprune.hosts.torch.host import TorchHost
from graphprune.hosts.torch.program import Program


def host_pairs(original: TorchHost, pruned: TorchHost) -> list[tuple[Program, Program]]:
    """A host before and after pruning, then those of the other runs."""
    others = zip(original.runs.runs, pruned.runs.runs, strict=False)
    return [(original, pruned), *((before.host, after.host) for before, after in others)]


def replaced_tensors(
    original: TorchHost, pruned: TorchHost, named: Mapping[str, torch.Tensor]
) -> Iterator[tuple[list[torch.Tensor], torch.Tensor]]:
    """The tensors of a module that a pruned host has others for, ties together, and what it has.

    Args:
        original: The host before; what a module keeps in plain attributes and containers is known by identity.
        pruned: The host after.
        named: The module's parameters and buffers.
    """
    for before, after in host_pairs(original, pruned):
        for name, aliases in after.tied.items():
            old = [named[alias] for alias in (name, *aliases) if alias in named]
            constant = before.tensors.get(name)
            if not old and isinstance(constant, torch.Tensor):
                old = [constant]
            if old:
                yield old, after.tensor(name)
