"""Whether a config can give layers in alike places different widths: asked by one build, before any config is sought.

Most of what is pruned freely is said by no config: the same projection of two layers, which were equally wide, is not
any more. To find that by trying configs takes hundreds of them. Instead the class is built once with all numbers of the
config changed that the widths could depend on, each in another way. What is equally wide even then, no number tells
apart.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from graphprune.hosts.torch.checkpoints.leaves import Leaf, changed, leaves
from graphprune.hosts.torch.checkpoints.twins import Shapes, Twin, common_keys

_MOST_NUMBERS = 14
"""Numbers that are changed at once: each is multiplied by another power of two."""


def inseparable(root: nn.Module, old: Shapes, new: Shapes) -> str:
    """Why no config can say some shapes, where one build tells; else empty.

    Args:
        root: The configured module as it is before it is pruned; it is only read.
        old: The shapes of its state dict.
        new: Those that are wanted, under the same names; some may be gone.
    """
    torn = {key: widths for key, widths in _alike(old, new).items() if len(set(widths.values())) > 1}
    if not torn:
        return ""
    config: Any = vars(root)["config"]
    data = dict(config.to_dict())
    numbers = _numbers(root, data, common_keys(config), {size for _, _, size in torn})
    if len(numbers) > _MOST_NUMBERS:
        return ""
    move = {leaf: value << i for i, (leaf, value) in enumerate(numbers.items(), 1)}
    twin = Twin.of(type(root), changed(data, move), config)
    if twin is None:
        return ""
    for (_, axis, size), widths in torn.items():
        first: dict[int, str] = {}  # of the tensors that are equally wide when all numbers differ
        for name, width in widths.items():
            shape = twin.shapes.get(name, ())
            if axis >= len(shape):
                continue
            other = first.setdefault(shape[axis], name)
            if (b := widths[other]) != width:
                return (
                    f"no config of '{type(root).__name__}' was found that says its shape: '{other}' and '{name}' had "
                    f"{size} units and have {b} and {width}, which no number of its config says apart"
                )
    return ""


def _alike(old: Shapes, new: Shapes) -> dict[tuple[str, int, int], dict[str, int]]:
    """The new widths of tensors whose names differ in places of lists alone, and which were equally wide on an axis."""
    found: dict[tuple[str, int, int], dict[str, int]] = {}
    for name, shape in old.items():
        pattern = re.sub(r"\d+", "*", name)
        for axis, (before, after) in enumerate(zip(shape, new.get(name, ()), strict=False)):
            found.setdefault((pattern, axis, before), {})[name] = after
    return found


def _numbers(root: nn.Module, data: Mapping[str, Any], common: Collection[Any], sizes: set[int]) -> dict[Leaf, int]:
    """Whole numbers of a config that sizes may be made of, the smallest first, so that what divides goes on dividing.

    How often something is repeated is none of them, nor are the numbers of tokens.
    """
    lengths = {len(layer) for layer in root.modules() if isinstance(layer, nn.ModuleList | nn.Sequential)}
    held = dict(leaves(data))
    found: dict[Leaf, int] = {}
    for leaf, value in held.items():
        if type(value) is not int or value < 2 or leaf[-1] in common or str(leaf[-1]).endswith("_token_id"):
            continue
        beside = held.get(leaf[:-1])  # the list that it lies in
        counted = all(each in lengths for each in beside) if isinstance(beside, list | tuple) else value in lengths
        if not counted and any(size % value == 0 or value % size == 0 for size in sizes):
            found[leaf] = value
    return dict(sorted(found.items(), key=lambda item: item[1]))
