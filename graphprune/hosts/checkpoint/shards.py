"""The files of weights of a checkpoint's folder, mapped: nothing is read before it is looked at.

Each file is one of safetensors: eight bytes of a length, a header of JSON that says where each tensor lies, the bytes.
The header comes from strangers, so every place in it is checked before it is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, cast

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from graphprune.brief import brief
from graphprune.errors import ModelError
from graphprune.files import is_there, read_json, require_plain_source

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_ADVICE = "give a folder that save_pretrained of transformers has written"
_LONGEST_HEADER = 100_000_000
"""Bytes, as the library of the format allows."""

DTYPES: Mapping[str, tuple[str, Any]] = {
    "F64": ("float64", np.float64), "F32": ("float32", np.float32), "F16": ("float16", np.float16),
    "BF16": ("bfloat16", ml_dtypes.bfloat16), "I64": ("int64", np.int64), "I32": ("int32", np.int32),
    "I16": ("int16", np.int16), "I8": ("int8", np.int8), "U8": ("uint8", np.uint8), "BOOL": ("bool", np.bool_),
}  # fmt: skip
"""By what a header calls a type: its name elsewhere, and the type of mapped arrays."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor lies.

    Attributes:
        file: The name of the file in the folder.
        dtype: As the header calls it.
        shape: Its shape.
        begin: The byte of the file at which it begins.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]
    begin: int

    @property
    def n_bytes(self) -> int:
        """Bytes that it takes."""
        return prod(self.shape) * int(np.dtype(DTYPES[self.dtype][1]).itemsize)


@dataclass(frozen=True)
class Shards:
    """The stored tensors of a folder, by name, in the order of files and of places in them.

    Attributes:
        folder: The folder.
        stored: Where each tensor lies.
    """

    __repr__ = brief

    folder: Path
    stored: Mapping[str, Stored]
    _maps: dict[str, NDArray[np.uint8]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, folder: Path) -> Shards:
        """The weights of a folder.

        Raises:
            ModelError: There are none, a header is malformed, or a type is one that is not cut here.
        """
        stored: dict[str, Stored] = {}
        for name in files_of(folder):
            for tensor, place in _read_header(folder / name).items():
                if tensor in stored:
                    raise ModelError(f"'{folder}' holds '{tensor}' twice; {_ADVICE}")
                stored[tensor] = place
        return cls(folder, stored)

    def raw(self, name: str) -> NDArray[Any]:
        """The values of a tensor where they lie; bfloat16 as of ml_dtypes."""
        place = self.stored[name]
        if place.file not in self._maps:
            self._maps[place.file] = np.memmap(self.folder / place.file, np.uint8, "r")
        part = self._maps[place.file][place.begin : place.begin + place.n_bytes]
        return cast("NDArray[Any]", part.view(np.ndarray).view(DTYPES[place.dtype][1]).reshape(place.shape))

    @cached_property
    def n_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(place.n_bytes for place in self.stored.values())

    def stamps(self) -> list[list[Any]]:
        """Names, sizes and times of the files: others once one of them has been written to."""
        found = [(name, (self.folder / name).stat()) for name in dict.fromkeys(p.file for p in self.stored.values())]
        return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in found]


def files_of(folder: Path) -> tuple[str, ...]:
    """The names of the files of weights in a folder, in order.

    Raises:
        ModelError: There are none, or the index names a file that is not beside it.
    """
    if is_there(folder / INDEX):
        named = read_json(folder / INDEX, ModelError, "index", _ADVICE).get("weight_map")
        if not isinstance(named, dict) or not named:
            raise ModelError(f"'{folder / INDEX}' names no weights; {_ADVICE}")
        names = tuple(dict.fromkeys(map(str, named.values())))
        for name in names:
            if Path(name).name != name or not is_there(folder / name):
                raise ModelError(f"'{folder / INDEX}' names the file {name!r:.80}, which is not beside it; {_ADVICE}")
        return tuple(sorted(names))
    if is_there(folder / SINGLE):
        return (SINGLE,)
    raise ModelError(f"'{folder}' holds no weights as safetensors, which alone can be mapped; {_ADVICE}")


def _read_header(path: Path) -> dict[str, Stored]:
    """The tensors of a file, in the order of their places.

    Raises:
        ModelError: The header is malformed.
    """
    size = require_plain_source(path, ModelError, "weights", _ADVICE)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, _LONGEST_HEADER):
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        found = {}
        for name, entry in header.items():
            if name != "__metadata__":
                found[str(name)] = _place(path, entry, 8 + length, size)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelError(f"'{path}' is no file of safetensors: {str(error)[:80]}; {_ADVICE}") from error
    last = 8 + length
    ordered = dict(sorted(found.items(), key=lambda item: item[1].begin))
    for name, place in ordered.items():
        if place.begin < last:
            raise ModelError(f"'{path}' is no file of safetensors: '{name}' lies over another tensor; {_ADVICE}")
        last = place.begin + place.n_bytes
    return ordered


def _place(path: Path, entry: Mapping[str, Any], base: int, size: int) -> Stored:
    dtype, shape, (begin, end) = str(entry["dtype"]), tuple(map(int, entry["shape"])), entry["data_offsets"]
    if dtype not in DTYPES:
        raise ModelError(
            f"'{path}' holds numbers of type {dtype[:20]!r}, of which scales lie elsewhere or bits are shared, so that "
            "cutting them is not exact; give a checkpoint of bfloat16, float16 or float32"
        )
    found = Stored(path.name, dtype, shape, base + int(begin))
    if min((*shape, begin)) < 0 or end - begin != found.n_bytes or base + end > size:
        raise ValueError(f"a tensor at bytes {begin} to {end} of shape {list(shape)}")
    return found
