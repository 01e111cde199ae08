"""Hosts of other packages: for models that are neither ONNX files nor PyTorch modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from graphprune.hosts.host import Host
from graphprune.registry import Registry


@dataclass(frozen=True)
class HostKind:
    """How models of some kind are opened.

    Attributes:
        accepts: Whether a model is one: whatever a user gives, a path or an object. It must not raise, nor take long.
        open: Gets the model and, by name, ``example_inputs``, ``shapes``, ``dynamic_shapes`` and ``trust`` as
            :func:`graphprune.prune` does, and gives a host. It raises :class:`graphprune.errors.ModelError` where the
            model cannot be read.
    """

    accepts: Callable[[Any], bool]
    open: Callable[..., Host]


def _plugin(name: str, found: Any) -> HostKind:
    if not isinstance(found, HostKind):
        raise TypeError(f"a '{type(found).__name__}' is no HostKind")
    return found


HOSTS: Registry[HostKind] = Registry("host", {}, group="graphprune.hosts", plugin=_plugin)
"""Kinds of hosts by name, those of the entry point group ``graphprune.hosts``; ``HOSTS.register`` adds to them."""


def kind_of(model: Any) -> HostKind | None:
    """The first kind of hosts that accepts a model, by their names in order; none of them may."""
    return next((HOSTS[name] for name in HOSTS if HOSTS[name].accepts(model)), None)
