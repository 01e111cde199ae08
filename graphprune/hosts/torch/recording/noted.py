"""Which operators a forward runs through, and whether code of the user's asks for the mode on the way.

Code that never reads ``training`` does in training mode what it does in evaluation mode; only where it is read, the
module has to be run in training mode to see whether other operators come of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

_DROPS = frozenset(("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"))
"""Operators that are left out: in evaluation mode they do nothing."""


class Calls:
    """Operators in the order in which they ran, and the shapes of what they made.

    Attributes:
        noted: For each operator its shapes; at last what the module has returned, by the operators that made it.
        asked: Whether a module of the user's was asked for its mode.
    """

    def __init__(self) -> None:
        self.noted: list[Any] = []
        self.asked = False
        self._made: dict[int, int] = {}

    def note(self, func: Any, made: Any) -> None:
        """Notes an operator and what it has made."""
        if func._overloadpacket.__name__.removesuffix("_") in _DROPS:
            return
        if isinstance(made, torch.Tensor):
            self._made[id(made)] = len(self.noted)
            self.noted.append((func, made.shape))
            return
        leaves = [leaf for leaf in pytree.tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        self._made.update((id(leaf), len(self.noted)) for leaf in leaves)
        self.noted.append((func, [leaf.shape for leaf in leaves]))

    def note_outputs(self, outputs: Any) -> None:
        """Notes what the module returns, by the operators that made it."""
        leaves = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
        self.noted.append([(self._made.get(id(leaf)), leaf.shape) for leaf in leaves])
        self._made.clear()

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Notes inside whether modules are asked for their mode; those of torch's own keep theirs, and do not count."""
        noted = self

        class Mode:
            def __get__(self, module: nn.Module, kind: Any = None) -> bool:
                own = vars(module)
                if "training" not in own:
                    raise AttributeError("training")
                if not type(module).__module__.startswith("torch."):
                    noted.asked = True
                return bool(own["training"])

            def __set__(self, module: nn.Module, value: bool) -> None:
                vars(module)["training"] = value

        nn.Module.training = Mode()  # type: ignore[assignment]
        try:
            yield
        finally:
            del nn.Module.training
