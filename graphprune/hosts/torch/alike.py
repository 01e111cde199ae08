"""Whether a sliced copy holds exactly what it should, also where no output would tell.

A bias in front of a softmax, a statistic behind a tiny scale, a tie that is lost or a number that no forward reads all
compute what they did: so tensors, ties and numbers are compared one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from graphprune.hosts.torch.host import TorchHost
from graphprune.hosts.torch.pairs import host_pairs
from graphprune.hosts.torch.spots import Spot, find_spots, is_torchs


def wrong_contents(
    module: nn.Module, source: nn.Module, original: TorchHost, pruned: TorchHost, changes: Mapping[Spot, Any]
) -> str:
    """What a copy holds that it should not; empty if there is nothing.

    Args:
        module: The copy.
        source: The user's module.
        original: The host before.
        pruned: The host after, whose tensors the copy should have bit for bit.
        changes: The numbers that were changed on purpose.
    """
    ours, theirs = _named(module), _named(source)
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
    return _wrong_number(module, source, changes)


def _wrong_number(module: nn.Module, source: nn.Module, changes: Mapping[Spot, Any]) -> str:
    layers, others = (dict(each.named_modules(remove_duplicate=False)) for each in (module, source))
    numbers = find_spots(module)
    meant = {*changes, *(spot.common for spot in changes)}
    for spot, value in find_spots(source).items():
        layer = layers.get(spot.path)
        if type(layer) is not type(others.get(spot.path)) or layer is None or is_torchs(layer):
            continue
        if numbers.get(spot, value) != value and meant.isdisjoint((spot, spot.common)):
            return f"its number '{spot}' is {numbers[spot]}, it was {value}"
    return ""


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.is_meta or b.is_meta:
        return True
    a, b = a.detach(), b.detach().to(a.device)
    # what is equal as it is needs no copies, and weights may be as large as a vocabulary
    return torch.equal(a, b) or torch.equal(a.nan_to_num(), b.nan_to_num())


def _named(module: nn.Module) -> dict[str, torch.Tensor]:
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
