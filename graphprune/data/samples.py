"""Samples by number, wherever they come from, and the sources that are arrays: files, memory, made-up data."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from graphprune.bounds import present
from graphprune.brief import brief
from graphprune.data.specs import Array, InputSpec, Model, constant, converted, joined
from graphprune.errors import BoundError, OptionError

Rows = NDArray[np.int64]
Pick = Callable[[int], Rows]
"""From how many samples there are, to the numbers of those that are wanted, ascending."""
LABELS = "labels"
MOST_PACKED = 100
"""Data are seldom packed more densely; what is, and takes more than memory may, is meant to harm."""
HELD_BYTES = 4 << 30
"""At most so much is held in memory of data that cannot be read again in any order."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples that can be read in any order.

    Attributes:
        count: How many there are.
        read: From the numbers of some samples, from 0, to the batched inputs by name, ``n ...``.
        where: What they come from, for messages.
        fixed: The inputs that are the same for every batch.
        labels: What is right for each sample, if known.
        classes: Where labels are numbers of folders: the names of these, in order.
        unit: How many samples in a row are one call that stays whole; 0 where the source does not say.
        of_calls: Inputs that have no samples and differ from call to call: ``calls ...``.
    """

    __repr__ = brief

    count: int
    read: Callable[[Rows], dict[str, Array]]
    where: str
    fixed: Mapping[str, Array] = field(default_factory=dict)
    labels: Array | None = None
    classes: tuple[str, ...] = ()
    unit: int = 0
    of_calls: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Grouping:
    """How samples make up batches.

    Attributes:
        size: Samples of a full batch.
        random: Whether they are made up.
        padded: Whether a last short batch is filled up with its last sample.
        flexible: Whether the model takes any number of samples at a time.
    """

    size: int
    random: bool = False
    padded: bool = False
    flexible: bool = False


def of_arrays(arrays: Mapping[str, Array], specs: tuple[InputSpec, ...], where: str) -> Samples:
    """Samples of arrays by name, ``n ...``; values are read and converted when they are asked for.

    For a model with one input the name of a lone array does not matter. ``labels`` are for evaluation, other arrays
    that the model has no input for are left alone.

    Raises:
        OptionError: An input is missing, shapes or numbers of samples do not fit.
    """
    names = [spec.name for spec in specs]
    labels = None if LABELS in names else arrays.get(LABELS)
    data = {name: array for name, array in arrays.items() if name in names or (name != LABELS or labels is None)}
    if len(specs) == 1 and names[0] not in data and len(data) == 1:
        data = {names[0]: next(iter(data.values()))}
    if missing := [name for name in names if name not in data]:
        raise OptionError(
            f"{where} has no array '{missing[0]}'; it has {', '.join(map(repr, arrays)) or 'none'}, and the model "
            f"takes {', '.join(map(str, specs))}; name the arrays like the inputs"
        )
    fixed = {spec.name: constant(data[spec.name], spec, where) for spec in specs if not spec.batched}
    varying = {spec: joined(data[spec.name], spec, where) for spec in specs if spec.batched}
    count = max(map(len, varying.values()))
    for spec, array in varying.items():
        if len(array) != count and data[spec.name].shape == spec.shape:  # one batch, for all
            fixed[spec.name] = converted(array, spec, where)
        elif len(array) != count:
            counts = ", ".join(f"'{each.name}' has {len(held)}" for each, held in varying.items())
            raise OptionError(f"{where} has different numbers of samples: {counts}; give as many for each input")
    if labels is not None and (labels.ndim == 0 or len(labels) != count):
        got = len(labels) if labels.ndim else "a scalar"
        raise OptionError(f"{where} has {count} samples but {got} '{LABELS}'; give one label for each sample")

    def read(rows: Rows) -> dict[str, Array]:
        return {
            spec.name: converted(np.asarray(array[rows]), spec, where)
            for spec, array in varying.items()
            if spec.name not in fixed
        }

    return Samples(count, read, where, fixed, labels)


def made_up(host: Model, specs: tuple[InputSpec, ...], wanted: int, seed: int) -> Samples:
    """Made-up samples: the host's examples of consecutive seeds."""
    size = next(spec.shape[0] for spec in specs if spec.batched)
    batched = [spec.name for spec in specs if spec.batched]

    def read(rows: Rows) -> dict[str, Array]:
        parts: dict[str, list[Array]] = {name: [] for name in batched}
        for batch in np.unique(rows // size):
            example = host.example_inputs(seed + int(batch))
            inside = rows[rows // size == batch] % size
            for name in batched:
                parts[name].append(example[name][inside])
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}

    fixed = {spec.name: host.example_inputs(seed)[spec.name] for spec in specs if not spec.batched}
    return Samples(-(-wanted // size) * size, read, "made-up data", fixed)


def require_small(held: int, where: str, advice: str) -> None:
    """Refuses to hold more in memory than :data:`HELD_BYTES`.

    Raises:
        OptionError: It is more.
    """
    if held > HELD_BYTES:
        raise OptionError(
            f"{where} would take more than {HELD_BYTES / 2**30:.3g} GiB of memory; use fewer samples, or {advice}"
        )


# -- files ---------------------------------------------------------------------------------------------------------


def of_npy(path: Path, specs: tuple[InputSpec, ...], where: str) -> Samples:
    """Samples of a ``.npy`` file, mapped from disk.

    Raises:
        OptionError: The file is no array, the model has several inputs, or the array does not fit.
    """
    if len(specs) != 1:
        raise OptionError(
            f"{where} holds one array and the model takes {', '.join(map(str, specs))}; "
            "give an .npz file with an array for each"
        )
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise OptionError(f"cannot read {where} as an array: {error}; write it with numpy.save") from error
    return of_arrays({specs[0].name: array}, specs, where)


def of_npz(path: Path, specs: tuple[InputSpec, ...], where: str, pick: Pick) -> Samples:
    """Samples of an ``.npz`` file: mapped from disk, or where it is compressed, read once and only as far as wanted.

    Raises:
        OptionError: The file is no archive of arrays, or they do not fit.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [_Member(path, archive, info) for info in archive.infolist() if info.filename.endswith(".npy")]
            by_name = {spec.name: spec for spec in specs}
            if len(specs) == 1 and specs[0].name not in {member.name for member in members}:  # a lone array
                by_name = {member.name: specs[0] for member in members if member.name != LABELS}
            members = [member for member in members if member.name in {*by_name, LABELS}]
            if not any(member.compressed for member in members):
                return of_arrays({member.name: member.mapped() for member in members}, specs, where)
            counts = {  # of the arrays of samples; batches are left for of_arrays to join
                member.name: member.shape[0]
                for member in members
                if (spec := by_name.get(member.name)) and spec.batched and len(member.shape) == len(spec.shape)
            }
            count = max(counts.values(), default=0)
            rows = pick(count) if len(set(counts.values())) == 1 else None
            held = sum(member.size(rows if member.name in counts else None) for member in members if member.compressed)
            require_small(held, where, "write the file with numpy.savez, which is mapped from disk")
            arrays = {
                member.name: member.read(rows if member.shape[:1] == (count,) else None)
                if member.name in counts or member.name == LABELS
                else member.read(None)
                for member in members
            }
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise OptionError(f"cannot read {where} as arrays: {error}; write it with numpy.savez") from error
    return of_arrays(arrays, specs, where)


class _Member:
    """One array of an archive, of which only the header has been read."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
        self.path, self.archive, self.info = path, archive, info
        self.name = info.filename.removesuffix(".npy")
        self.compressed = info.compress_type != zipfile.ZIP_STORED
        with archive.open(info) as file:
            self.shape, self.fortran, self.dtype = header_of(file)
            self.offset = file.tell()
        if self.dtype.hasobject:
            raise ValueError(f"'{self.name}' holds Python objects, which are not loaded")
        self._require_honest()

    def _require_honest(self) -> None:
        """Refuses what says that it holds more than there is, and what is next to nothing until it is unpacked."""
        size, held = self.size(None), self.info.file_size - self.offset
        if size > held:
            raise ValueError(f"'{self.name}' says that it has {size} bytes, and there are {held}")
        if size > present().memory and size > MOST_PACKED * self.info.compress_size:
            raise BoundError(
                f"'{self.name}' of '{self.path}' has {size} bytes, packed into {self.info.compress_size}; write it "
                f"with numpy.savez, which does not pack, or allow more with --bound memory={size}"
            )

    def mapped(self) -> Array:
        """The array, mapped from disk."""
        with self.path.open("rb") as file:
            file.seek(self.info.header_offset + 26)
            name, extra = np.frombuffer(file.read(4), "<u2")
        start = self.info.header_offset + 30 + int(name) + int(extra) + self.offset
        if 0 in self.shape:
            return np.zeros(self.shape, self.dtype)
        order = "F" if self.fortran else "C"
        return np.memmap(self.path, self.dtype, "r", start, self.shape, order)  # type: ignore[call-overload,no-any-return]

    def size(self, rows: Rows | None) -> int:
        """Bytes of the array, or of some rows of it."""
        shape = self.shape if rows is None else (len(rows), *self.shape[1:])
        return self.dtype.itemsize * prod(shape)

    def read(self, rows: Rows | None) -> Array:
        """The array, or some rows of it, read in one go through the file."""
        with self.archive.open(self.info) as file:
            if rows is None or self.fortran:
                array = np.asarray(np.lib.format.read_array(file, allow_pickle=False))
                return array if rows is None else array[rows]
            header_of(file)
            taken = np.empty((len(rows), *self.shape[1:]), self.dtype)
            size = self.dtype.itemsize * prod(self.shape[1:])
            at = 0
            for i, row in enumerate(rows):
                _skip(file, (int(row) - at) * size)
                taken[i] = np.frombuffer(_exactly(file, size), self.dtype).reshape(self.shape[1:])
                at = int(row) + 1
            return taken


_CHUNK = 1 << 20


def _exactly(file: IO[bytes], size: int) -> bytes:
    parts = []
    while size:
        part = file.read(size)
        if not part:
            raise EOFError("the file ends within an array")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _skip(file: IO[bytes], size: int) -> None:
    while size:
        size -= len(_exactly(file, min(size, _CHUNK)))


def header_of(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran's order, and type of the array that a ``.npy`` file holds.

    Raises:
        ValueError: It is none, or its sizes are none.
    """
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = read(file)
    except (TypeError, SyntaxError, RecursionError, MemoryError) as error:  # NumPy reads it as Python text
        raise ValueError(f"its header is none: {error}") from error
    if any(type(size) is not int or size < 0 for size in shape) or prod(shape) * dtype.itemsize >= 1 << 62:
        raise ValueError(f"its header says that it has the shape {list(shape)[:8]}")
    return shape, fortran, dtype
