"""Modules of others that are imported when something of theirs is first used, and not before."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from threading import Lock
from types import ModuleType
from typing import Any


class _StandIn(ModuleType):
    """Stands for a module: a look at an attribute imports the real one, which answers."""

    def __getattr__(self, name: str) -> Any:
        _withdraw(self)
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def late_import(*names: str) -> Iterator[None]:
    """What is imported in this context takes these modules for imported, and gets them when it looks into them.

    The standard library's ``LazyLoader`` is of no use here: ``import name`` looks at a module that exists already, and
    with it that look loads the module. Whoever imports one of them after this context gets the real one at once. What
    is imported already stays as it is, and a package that is not installed is missing as ever.

    Args:
        *names: Modules, or submodules of a package that is imported in the context.
    """
    stand_ins = []
    for name in names:
        top, _, sub = name.partition(".")
        if name not in sys.modules and (sub or find_spec(top) is not None):
            stand_in = _StandIn(name)
            stand_in.__spec__ = ModuleSpec(name, None)  # ``import name`` looks at it
            sys.modules[name] = stand_in
            stand_ins.append(stand_in)
    try:
        yield
    finally:
        for stand_in in stand_ins:
            _withdraw(stand_in)


def import_onnx_ir() -> None:
    """Imports ``onnx_ir`` without what computes with symbolic sizes, which few models need: 0.3 CPU seconds."""
    with late_import("sympy", "onnx_ir._symbolic_shapes"):
        importlib.import_module("onnx_ir.passes.common")


def _withdraw(stand_in: _StandIn) -> None:
    with _withdrawing:  # never held while importing, which could wait for an import that waits for it
        if sys.modules.get(stand_in.__name__) is stand_in:
            del sys.modules[stand_in.__name__]


_withdrawing = Lock()
