"""What PyTorch's exporters look up anew for every export, looked up once for all tests of a process.

The table of all ONNX translations, and the list of operators that are made of others, take longer than the export of a
model of tests. Both are functions of what is installed and registered, and are taken again where that has changed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._export import utils
from torch.onnx._internal.exporter import _registration

COMPOSITE = "CompositeImplicitAutograd"


def install() -> None:
    """Keeps the results of both, in this process."""
    if not getattr(utils._materialize_cpp_cia_ops, "once", False):
        utils._materialize_cpp_cia_ops = _listed(utils._materialize_cpp_cia_ops)
        _registration.ONNXRegistry.from_torchlib = classmethod(_copied(_registration.ONNXRegistry.from_torchlib))


def _listed(materialize: Any) -> Any:
    """Does nothing as long as the same operators are registered."""
    seen: list[list[str]] = []

    def listed() -> None:
        present = torch._C._dispatch_get_registrations_for_dispatch_key(COMPOSITE)
        if seen != [present]:
            materialize()
            seen[:] = [present]

    listed.once = True  # type: ignore[attr-defined]
    return listed


def _copied(from_torchlib: Any) -> Any:
    """Gives a registry of its own each time, with the translations that were found the first time."""
    found: dict[Any, dict[Any, list[Any]]] = {}

    def copied(cls: Any, *options: Any, **named: Any) -> Any:
        key = options, tuple(named.items())
        if key not in found:
            registry = from_torchlib(*options, **named)
            found[key] = {target: list(each) for target, each in registry.functions.items()}
            return registry
        registry = cls()
        registry._opset_version = options[0] if options else named.get("opset_version", registry._opset_version)
        registry.functions = {target: list(each) for target, each in found[key].items()}
        return registry

    return copied
