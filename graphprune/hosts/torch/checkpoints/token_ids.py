"""Ids of tokens in configs: found by how transformers calls them in all classes, and numbered anew."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from graphprune.errors import OptionError
from graphprune.hosts.torch.checkpoints.reading import example_of
from graphprune.hosts.torch.quiet import quiet
from graphprune.hosts.torch.trace import inference

_NAMED = re.compile(r"(?:.*_)?(token_ids?|token_index)")
"""Ids that stand for something and have to be there: ``eos_token_id``, ``decoder_start_token_id``."""
_SUPPRESSED = ("suppress_tokens", "begin_suppress_tokens")
"""Lists of tokens; what is gone goes from them."""


def needed_ids(model: nn.Module, size: int) -> frozenset[int]:
    """The ids that the configs of a model name for some purpose, and that are in its vocabulary."""
    found: set[int] = set()
    for config in _configs(model):
        for name, value in vars(config).items():
            if _NAMED.fullmatch(name) or name in ("force_words_ids", "forced_decoder_ids"):
                found.update(_numbers(value))
    return frozenset(i for i in found if 0 <= i < size)


def example_with(
    model: nn.Module, example: Any, shapes: Mapping[str, tuple[int, ...]] | None, size: int
) -> dict[str, Any]:
    """A call of the model, by name, whose tokens are below ``size``, so that it is one of the smaller model, too.

    Raises:
        OptionError: The example is none by name, or none can be made up.
    """
    found = example_of(model, shapes) if example is None else example
    if not isinstance(found, Mapping):
        raise OptionError("the example of a language model is a mapping from names of arguments: {'input_ids': ...}")
    return {name: each % size if name.endswith("input_ids") else each for name, each in found.items()}


def outputs_of(model: nn.Module, example: Mapping[str, Any], tokens: Mapping[str, Any]) -> dict[str, Any]:
    """What the model gives for some tokens: floating-point outputs as arrays, by position."""
    given = {name: torch.from_numpy(np.array(each)).to(example[name].device) for name, each in tokens.items()}
    with inference(model), torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        leaves = pytree.tree_leaves(model(**{**example, **given}))
    floats = [each for each in leaves if isinstance(each, torch.Tensor) and each.is_floating_point()]
    return {str(i): each.detach().float().cpu().numpy() for i, each in enumerate(floats)}


def n_rows(model: nn.Module) -> int | None:
    """How many rows the table of tokens of a model of transformers has; ``None`` where the class does not say."""
    try:
        table = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    return int(table.num_embeddings) if isinstance(table, nn.Embedding) else None


def renumber(model: nn.Module, new: Mapping[int, int]) -> None:
    """Writes new ids into the configs of a model, and into its embeddings, which know the row that pads."""
    for config in _configs(model):
        for name, value in list(vars(config).items()):
            if _NAMED.fullmatch(name):
                vars(config)[name] = _mapped(value, lambda i: new.get(i, i))
            elif name in _SUPPRESSED and isinstance(value, list | tuple):
                vars(config)[name] = [new[i] if i >= 0 else i for i in value if i in new or i < 0]
            elif name in ("bad_words_ids", "force_words_ids") and isinstance(value, list | tuple):
                kept = [each for each in value if all(i in new for i in _numbers(each))]
                vars(config)[name] = [_mapped(each, lambda i: new[i]) for each in kept] or None
            elif name == "forced_decoder_ids" and isinstance(value, list | tuple):
                vars(config)[name] = [[place, new.get(i, i)] for place, i in value]
    for module in model.modules():
        padding = getattr(module, "padding_idx", None)
        if isinstance(module, nn.Embedding) and isinstance(padding, int) and padding in new:
            if module.num_embeddings > max(new):
                module.padding_idx = new[padding]
        elif padding is not None and not isinstance(module, nn.Embedding) and padding in new:
            vars(module)["padding_idx"] = new[padding]


def _configs(model: nn.Module) -> Iterator[Any]:
    """The configs of a model and of its parts, and how it generates."""
    seen: set[int] = set()
    held = [vars(module).get(name) for module in model.modules() for name in ("config", "generation_config")]
    while held:
        config = held.pop()
        if config is None or id(config) in seen or not hasattr(config, "to_dict"):
            continue
        seen.add(id(config))
        yield config
        held.extend(vars(config).values())


def _numbers(value: Any) -> list[int]:
    if isinstance(value, bool) or value is None:
        return []
    if isinstance(value, int):
        return [value]
    return [i for each in value for i in _numbers(each)] if isinstance(value, list | tuple) else []


def _mapped(value: Any, new: Callable[[int], int]) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | list | tuple):
        return value
    return new(value) if isinstance(value, int) else [_mapped(each, new) for each in value]
