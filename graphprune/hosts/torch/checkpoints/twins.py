"""What a class builds from a config: its tensors' shapes and its modules' plain attributes, without memory for weights.

A *configured* module has a ``config`` that becomes a dictionary and comes from one, and ``save_pretrained``: that is
how transformers' models are known here, and any class that is written alike.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from graphprune.hosts.torch.constructor import unfilled, unseen
from graphprune.hosts.torch.spots import own_attributes

Shapes = dict[str, tuple[int, ...]]

_LOGGERS = ("transformers",)
_PLAIN = (bool, int, float, str, type(None))


def is_config(value: Any) -> bool:
    """Whether an object becomes a dictionary and comes from one."""
    return all(callable(getattr(type(value), name, None)) for name in ("to_dict", "from_dict"))


def is_configured(layer: nn.Module) -> bool:
    """Whether a module is written with a config of its own."""
    kept = vars(layer).get("config")
    ways = ("save_pretrained", "from_pretrained")
    return kept is not None and is_config(kept) and all(callable(getattr(type(layer), way, None)) for way in ways)


def configured_roots(module: nn.Module) -> dict[str, nn.Module]:
    """The configured modules that lie in no other one, by path; often the module itself, whose path is empty."""
    found: dict[str, nn.Module] = {}
    for path, layer in module.named_modules():
        inside = any(not root or path.startswith(f"{root}.") for root in found)
        if not inside and is_configured(layer):
            found[path] = layer
    return found


@dataclass(frozen=True)
class Twin:
    """A class built from a config.

    Attributes:
        module: What was built, on the meta device.
        shapes: Of its state dict.
        passing: Of its buffers that are not in the state dict: a class makes them anew.
    """

    module: nn.Module
    shapes: Shapes
    passing: Shapes

    @classmethod
    def of(cls, kind: type[nn.Module], data: Mapping[str, Any], like: Any) -> Twin | None:
        """Builds a class; ``None`` where it, or its config, refuses.

        Args:
            kind: The class.
            data: The config as a dictionary.
            like: A config of its class, whose ways to compute (``_attn_implementation``) are taken over.
        """
        try:
            return cls.built(kind, data, like)
        except Exception:  # noqa: BLE001  # classes refuse sizes in any way
            return None

    @classmethod
    def built(cls, kind: type[nn.Module], data: Mapping[str, Any], like: Any) -> Twin:
        """Builds a class as :meth:`of` does, and raises whatever it, or its config, raises."""
        with unseen(), _silent(), unfilled(), torch.no_grad():
            config = read_config(data, like)
            with torch.device("meta"):
                module = kind(config)
        return cls(module, shapes_of(module), passing_shapes(module))


def read_config(data: Mapping[str, Any], like: Any) -> Any:
    """A config of the class of another one, from a dictionary."""
    config = type(like).from_dict(copy.deepcopy(dict(data)))
    chosen = getattr(like, "_attn_implementation", None)
    if chosen is not None and getattr(config, "_attn_implementation", None) != chosen:
        config._attn_implementation = chosen
    return config


def common_keys(config: Any) -> frozenset[str]:
    """The keys that a config has as an instance of the class that all configs are of."""
    base = [kind for kind in type(config).__mro__ if "from_dict" in vars(kind)][-1]
    try:
        return frozenset(base().to_dict()) if base is not type(config) else frozenset()
    except Exception:  # noqa: BLE001  # a base that is no config by itself
        return frozenset()


def shapes_of(module: nn.Module) -> Shapes:
    """The shapes of a state dict."""
    return {name: tuple(value.shape) for name, value in module.state_dict(keep_vars=True).items() if _sized(value)}


def passing_shapes(module: nn.Module) -> Shapes:
    """The shapes of the buffers that are not in the state dict."""
    stored = module.state_dict(keep_vars=True)
    return {
        name: tuple(value.shape) for name, value in module.named_buffers(remove_duplicate=False) if name not in stored
    }


def facts_of(module: nn.Module) -> dict[tuple[str, str], Any]:
    """The plain values that a module's parts keep in attributes, by path and name."""
    return {
        (path, name): value
        for path, layer in module.named_modules()
        for name, value in own_attributes(layer).items()
        if is_plain(value)
    }


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a text, nothing, or a list or dictionary of such."""
    if type(value) in (list, tuple, torch.Size):
        return all(map(is_plain, value))
    if type(value) is dict:
        return all(map(is_plain, value.values())) and all(map(is_plain, value))
    return isinstance(value, _PLAIN)


def _sized(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


@contextmanager
def _silent() -> Iterator[None]:
    """Keeps from the user what a library logs of sizes that are only tried."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
