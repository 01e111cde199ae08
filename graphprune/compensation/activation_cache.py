"""Values that wait, in memory and beyond a limit on disk: between two steps of a walk, or to be compared with."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from graphprune.hosts.host import Carried

MEMORY = 2 << 30
"""Bytes of activations that a walk holds in memory; what does not fit waits in a temporary folder."""

HELD = 1 << 26
"""Bytes of outputs to compare with that are held in memory; those of a whole vocabulary wait on disk."""


class ActivationCache:
    """For each batch the values that it has come to; those of the first batches stay in memory.

    Args:
        batches: The inputs, which are there anyway and do not count.
        memory: Bytes that values may take in memory.
    """

    def __init__(self, batches: Iterable[Carried], memory: int = MEMORY) -> None:
        self._held: list[Any] = list(batches)
        self._sizes = [0] * len(self._held)
        self._memory = memory
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def __len__(self) -> int:
        return len(self._held)

    def __getitem__(self, index: int) -> Carried:
        """The values of a batch."""
        held: Mapping[str, Any] = self._held[index]
        return {name: each.read() if isinstance(each, _Spilled) else each for name, each in held.items()}

    def __setitem__(self, index: int, values: Carried) -> None:
        """Puts the values of a batch in place of those that it had."""
        for each in self._held[index].values():
            if isinstance(each, _Spilled):
                each.path.unlink()
        self._sizes[index] = 0
        self._held[index] = kept = {}
        room = self._memory - sum(self._sizes)
        for name, value in values.items():
            array = _array(value)
            size = 0 if array is None else array.nbytes
            if array is None or size <= room:
                kept[name] = value
                self._sizes[index] += size
                room -= size
            else:
                kept[name] = self._spill(index, len(kept), array)

    def names(self) -> list[str]:
        """The names of the values."""
        return list(self._held[0])

    def _spill(self, index: int, number: int, array: np.ndarray[Any, Any]) -> _Spilled:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="graphprune-")
        return _Spilled(Path(self._folder.name) / f"{index}-{number}", array)


class Shelf:
    """Arrays that are looked at again and again: the first ones in memory, others in a folder that goes with this.

    Args:
        memory: Bytes that arrays may take in memory.
    """

    def __init__(self, memory: int = HELD) -> None:
        self._room = memory
        self._folder: Path | None = None
        self._n = 0

    def put(self, array: np.ndarray[Any, Any]) -> Callable[[], np.ndarray[Any, Any]]:
        """What gives the array; it may be used as long as the shelf is there."""
        if array.nbytes <= self._room or array.dtype.hasobject:
            self._room -= array.nbytes
            return lambda: array
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="graphprune-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._n += 1
        return _Spilled(self._folder / str(self._n), array).read


class _Spilled:
    """An array in a file."""

    def __init__(self, path: Path, array: np.ndarray[Any, Any]) -> None:
        self.path, self._shape, self._dtype = path, array.shape, array.dtype
        np.ascontiguousarray(array).tofile(path)

    def read(self) -> np.ndarray[Any, Any]:
        return np.fromfile(self.path, self._dtype).reshape(self._shape)


def _array(value: Any) -> np.ndarray[Any, Any] | None:
    """An array or a tensor as an array on the same memory; ``None`` for what NumPy has no type for."""
    if isinstance(value, np.ndarray):
        return None if value.dtype.hasobject else value
    try:
        found = value.numpy()
    except (AttributeError, TypeError, RuntimeError):
        return None
    return found if isinstance(found, np.ndarray) else None
