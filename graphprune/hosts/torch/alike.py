"""Whether a sliced copy holds exactly what it should, also where no output would tell.

A bias in front of a softmax, a statistic behind a tiny scale, a tie that is lost or a number that no forward reads all
compute what they did: so tensors, ties and numbers are compared one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from graphprune.hosts.torch.host import TorchHost
from graphprune.hosts.torch.pairs import host_pairs
from graphprune.hosts.torch.spots import Spot, find_spots, is_torchs
from graphprune.hosts.torch.stored import named_tensors


def wrong_contents(
    module: nn.Module,
    source: nn.Module,
    original: TorchHost,
    pruned: TorchHost,
    changes: Mapping[Spot, Any],
    old: Callable[[str], str] = str,
) -> str:
    """What a copy holds that it should not; empty if there is nothing.

    Args:
        module: The copy.
        source: The user's module.
        original: The host before.
        pruned: The host after, whose tensors the copy should have bit for bit.
        changes: The numbers that were changed on purpose.
        old: From names in the copy to those in the user's module, where they differ.
    """
    ours, theirs = {old(name): tensor for name, tensor in named_tensors(module).items()}, named_tensors(source)
    expected = {
        alias: after.tensor(name)
        for _, after in host_pairs(original, pruned)
        for name, aliases in after.tied.items()
        for alias in (name, *aliases)
    }
    for name, tensor in ours.items():
        want = expected.get(name, theirs.get(name))
        if want is not None and not _equal(tensor, want):
            return f"its '{name}' is not that of the pruned graph"
    first: dict[int, str] = {}
    for name, tensor in theirs.items():
        tied = first.setdefault(id(tensor), name)
        if name in ours and tied in ours and ours[name] is not ours[tied]:
            return f"its '{name}' is no longer tied to '{tied}'"
    return _wrong_number(module, source, changes, old)


def _wrong_number(module: nn.Module, source: nn.Module, changes: Mapping[Spot, Any], old: Callable[[str], str]) -> str:
    others = dict(source.named_modules(remove_duplicate=False))
    layers = {old(path): layer for path, layer in module.named_modules(remove_duplicate=False)}
    numbers = {_renamed(spot, old): value for spot, value in find_spots(module).items()}
    meant = {_renamed(each, old) for spot in changes for each in (spot, spot.common)}
    for spot, value in find_spots(source).items():
        layer = layers.get(spot.path)
        if type(layer) is not type(others.get(spot.path)) or layer is None or is_torchs(layer):
            continue
        if numbers.get(spot, value) != value and meant.isdisjoint((spot, spot.common)):
            return f"its number '{spot}' is {numbers[spot]}, it was {value}"
    return ""


def _renamed(spot: Spot, old: Callable[[str], str]) -> Spot:
    first = None if spot.first is None else (old(spot.first[0]), spot.first[1])
    return replace(spot, path=old(spot.path), first=first)


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.is_meta or b.is_meta:
        return True
    a, b = a.detach(), b.detach().to(a.device)
    # what is equal as it is needs no copies, and weights may be as large as a vocabulary
    return torch.equal(a, b) or torch.equal(a.nan_to_num(), b.nan_to_num())
