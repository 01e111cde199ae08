"""Less memory for training: what repeated blocks compute inside is computed again when gradients are taken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from graphprune.errors import OptionError


@contextmanager
def checkpointed(module: nn.Module) -> Iterator[None]:
    """Within it, each repeated block keeps nothing but its inputs (Chen et al. 2016, arXiv 1604.06174).

    Raises:
        OptionError: The module has no repeated blocks.
    """
    blocks = repeated(module)
    if not blocks:
        raise OptionError("the pruned model has no repeated blocks that could be computed twice; give 'all'")
    config = getattr(module, "config", None)
    caching = getattr(config, "use_cache", None)
    for each in blocks:
        vars(each)["forward"] = _twice(each.forward)
    try:
        if caching:  # what is computed twice may not be appended twice
            config.use_cache = False  # type: ignore[union-attr]
        yield
    finally:
        if caching:
            config.use_cache = caching  # type: ignore[union-attr]
        for each in blocks:
            del vars(each)["forward"]


def _twice(forward: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, **kwargs)


def repeated(module: nn.Module) -> list[nn.Module]:
    """The outermost blocks that lie side by side and are of one class, two at least; single layers are none."""
    found: list[nn.Module] = []

    def look(parent: nn.Module) -> None:
        children = [each for each in parent.children() if "forward" not in vars(each)]
        kinds = Counter(type(each) for each in children if any(True for _ in each.children()))
        for each in children:
            if isinstance(parent, nn.ModuleList | nn.Sequential) and kinds[type(each)] > 1:
                found.append(each)
            else:
                look(each)

    look(module)
    return found
