"""Where in the user's code an operator is called: the modules that are running, and the line."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as calls

_TORCH = str(Path(torch.__file__).parent) + os.sep
_OURS = str(Path(__file__).parent) + os.sep


@dataclass(frozen=True, slots=True)
class Place:
    """Running modules.

    Attributes:
        module: The innermost one.
        stack: All of them as fx notes them: path and class by path.
    """

    module: Any
    stack: dict[str, tuple[str, type]]


class Places:
    """Follows which modules run.

    Args:
        model: The outermost module.
    """

    def __init__(self, model: nn.Module) -> None:
        self.paths = {id(layer): path for path, layer in reversed(list(model.named_modules()))}
        self.stack = [Place(None, {})]
        self.thread = threading.get_ident()
        self.files: dict[str, str] = {}

    @property
    def now(self) -> Place:
        """The modules that are running."""
        return self.stack[-1]

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Follows the calls of all modules."""
        handles = (
            calls.register_module_forward_pre_hook(self._enter),
            calls.register_module_forward_hook(self._leave),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, _: Any) -> None:
        path = self.paths.get(id(module))
        if path is not None and threading.get_ident() == self.thread:
            self.stack.append(Place(module, {**self.stack[-1].stack, path: (path, type(module))}))

    def _leave(self, module: nn.Module, _: Any, __: Any) -> None:
        if id(module) in self.paths and threading.get_ident() == self.thread:
            while len(self.stack) > 1:
                if self.stack.pop().module is module:
                    break

    def line(self) -> str:
        """The innermost line that is not torch's own: ``model.py line 41``; torch's where no other is in a forward."""
        frame: Any = sys._getframe(2)
        inner = ""
        while frame is not None:
            code = frame.f_code
            file = code.co_filename
            short = self.files.get(file)
            if short is None:
                short = self.files[file] = "" if file.startswith((_TORCH, _OURS)) else PurePath(file).name
            if short:
                return f"{short} line {frame.f_lineno}"
            if code is _RECORDED:
                return inner
            if not inner and file.startswith(_TORCH) and "/nn/" in file and not file.endswith("module.py"):
                inner = f"{PurePath(file).name} line {frame.f_lineno}"
            frame = frame.f_back
        return inner


def called(model: nn.Module, args: Any, kwargs: Any) -> Any:
    """Calls a module; lines are looked for down to here."""
    return model(*args, **kwargs)


_RECORDED = called.__code__
