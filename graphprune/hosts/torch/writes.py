"""Writes to the memory of tensors, seen by a dispatch mode while somebody's code runs, and undone."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

_STORED = (torch.Tensor, nn.Parameter, nn.Buffer)
Memory = tuple[str, int]
"""A device, and an address there."""


class Writes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Copies the memory of some tensors, and of those that are guarded, before it is written to.

    Args:
        tensors: The tensors.
        seen: Takes the memory of all operands.
    """

    def __init__(self, tensors: Iterable[torch.Tensor], seen: set[Memory] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.watched = {storage._cdata for storage in map(storage_of, tensors) if storage is not None}
        self.saved: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operator."""
        kwargs = kwargs or {}
        if self.seen is not None:
            self.seen.update(map(memory_of, _operands((args, kwargs))))
        if _may_write(func, args):
            for tensor in _operands((args, kwargs)):
                if (storage := storage_of(tensor)) is not None:
                    for each in (self, *guards):
                        each.before_write(storage)
        return func(*args, **kwargs)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: nothing is compiled in here, and to hide this from the compiler costs more than what it does."""
        return False

    def before_write(self, storage: torch.UntypedStorage) -> None:
        """Copies a memory if it is watched and was not copied before."""
        if storage._cdata in self.watched and storage._cdata not in self.saved:
            self.saved[storage._cdata] = storage, cast("Any", storage).clone()

    def undo(self) -> None:
        """Writes back what was there."""
        for storage, before in self.saved.values():
            if storage.nbytes() != before.nbytes():
                storage.resize_(before.nbytes())
            storage.copy_(before)


guards: list[Writes] = []
"""Of the modules that are guarded."""


def _operands(values: Any) -> Iterator[torch.Tensor]:
    """The tensors among the arguments of an operator."""
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple | dict):
            yield from _operands(value)


def memory_of(tensor: torch.Tensor) -> Memory:
    """Where the elements of a tensor lie; a place of its own for what has no such memory."""
    if type(tensor) not in _STORED or tensor.layout is not torch.strided:
        return "", id(tensor)
    return tensor.device.type, tensor.untyped_storage().data_ptr()


def _may_write(func: Any, args: Any) -> bool:
    """Whether a call may write to an operand; older batch norms write statistics in training without saying so."""
    mutable, training = _written_by(func)
    return mutable and (training is None or training >= len(args) or args[training] is not False)


@functools.cache
def _written_by(func: Any) -> tuple[bool, int | None]:
    """Whether an operator writes to an operand, and the place of the argument without which it does not."""
    schema = func._schema
    if "batch_norm" not in schema.name:
        return bool(schema.is_mutable), None
    named = [each.name for each in schema.arguments]
    if "training" not in named or any(each.is_out for each in schema.arguments):
        return True, None
    return True, named.index("training")


def storage_of(tensor: torch.Tensor) -> torch.UntypedStorage | None:
    """The memory of a tensor; ``None`` for what has none of the kind."""
    try:
        return tensor.untyped_storage() if not tensor.is_meta else None
    except (RuntimeError, NotImplementedError):
        return None


@contextmanager
def watching() -> Iterator[None]:
    """Inside, code runs that may write to the tensors of a module that is guarded."""
    with Writes(()):
        yield
