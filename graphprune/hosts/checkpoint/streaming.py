"""Slices of a checkpoint, streamed from its files into new ones, in a way that may be killed at any moment.

All is written into ``FOLDER.streaming/new``, which takes the place of ``FOLDER`` when it is whole. A file of weights is
written under another name, flushed to the disk, held against the original byte by byte, and then gets its name: what
has its name is done. ``FOLDER.streaming/job.json`` says what is being written: a run of the same job goes on from there
(it looks at what is done once more), and one of another job begins anew.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphprune.errors import OutputError, ProofError
from graphprune.files import is_there, require_writable_folder, write_text
from graphprune.hosts.checkpoint.shards import INDEX, SINGLE, Shards, Stored
from graphprune.hosts.checkpoint.slices import first_difference, write_slice
from graphprune.hosts.torch.checkpoints.search import Statement
from graphprune.hosts.torch.checkpoints.stating import renumbering_of
from graphprune.hosts.torch.checkpoints.twins import shapes_of
from graphprune.hosts.torch.checkpoints.writing import write_tokenizer
from graphprune.ir.dims import Index
from graphprune.pipeline.state import Check
from graphprune.planning.plan import PruningPlan

if TYPE_CHECKING:
    from graphprune.hosts.checkpoint.host import CheckpointHost
    from graphprune.pipeline.state import State

SHARD = 5_000_000_000
"""Bytes of the largest file of weights, but for a tensor that is larger."""
JOB, NEW, OLD, PART = "job.json", "new", "old", ".part"
_GENERATION = "generation_config.json"


@dataclass(frozen=True)
class Piece:
    """A tensor that is written.

    Attributes:
        name: Its name in the new files.
        source: Its name in the old ones.
        axes: What is taken of it.
        place: Where it lies in the new files.
    """

    name: str
    source: str
    axes: Mapping[int, Index]
    place: Stored


@dataclass(frozen=True)
class Job:
    """What is to be written.

    Attributes:
        shards: The files to take from.
        files: By name of a new file: its header, and its tensors in order.
        said: The config.
        plan: The plan.
    """

    shards: Shards
    files: Mapping[str, tuple[bytes, tuple[Piece, ...]]] = field(repr=False)
    said: Statement = field(repr=False)
    plan: PruningPlan = field(repr=False)

    @property
    def text(self) -> str:
        """What tells one job from another: the plan, the files that it is for, and how new ones are laid out."""
        files = {name: [[p.name, p.place.begin] for p in pieces] for name, (_, pieces) in self.files.items()}
        data = {"plan": self.plan.to_dict(), "config": self.said.data, "source": self.shards.stamps(), "files": files}
        return json.dumps(data, default=str) + "\n"


def job_of(host: CheckpointHost, state: State, *, shard: int = SHARD) -> Job:
    """What a state's plan makes of a checkpoint.

    Args:
        host: The checkpoint before.
        state: With a plan.
        shard: Bytes of the largest file.

    Raises:
        OutputError: The config and the slices do not fit together.
    """
    plan, said, renumbering = state.plan, host.said(state), renumbering_of(host, state)
    assert plan is not None
    owners = {alias: owner for owner, aliases in host.tied.items() for alias in aliases}
    pieces = []
    for source, place in host.shards.stored.items():
        if renumbering.is_gone(source):
            continue
        axes = plan.parameters.get(owners.get(source, source), {})
        taken = {axis: np.asarray(index, np.int64) for axis, index in axes.items()}
        shape = tuple(len(taken[i]) if i in taken else size for i, size in enumerate(place.shape))
        pieces.append(Piece(renumbering.new(source), source, taken, Stored("", place.dtype, shape, 0)))
    _require_whole(pieces, said)
    return Job(host.shards, _laid_out(pieces, shard), said, plan)


def _require_whole(pieces: list[Piece], said: Statement) -> None:
    """Refuses what is not what the class has under the new config: no more, no less, and of the same shapes.

    Raises:
        OutputError: It is not.
    """
    module = said.after.module
    wanted, written = shapes_of(module), {piece.name: piece.place.shape for piece in pieces}
    tied: dict[int, list[str]] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        tied.setdefault(id(value), []).append(name)
    missing = next((names[0] for names in tied.values() if written.keys().isdisjoint(names)), "")
    odd = next((name for name, shape in written.items() if wanted.get(name) != shape), missing)
    if odd:
        raise OutputError(
            f"'{odd}' would be {list(written.get(odd, ()))} and the config says {list(wanted.get(odd, ()))}; please "
            "report this"
        )


def _laid_out(pieces: list[Piece], shard: int) -> dict[str, tuple[bytes, tuple[Piece, ...]]]:
    """Tensors in files of some size, in the order of the original, wide types first in each."""
    parts: list[list[Piece]] = [[]]
    held = 0
    for piece in pieces:
        if parts[-1] and held + piece.place.n_bytes > shard:
            parts.append([])
            held = 0
        parts[-1].append(piece)
        held += piece.place.n_bytes
    names = (
        [SINGLE] if len(parts) == 1 else [f"model-{i + 1:05}-of-{len(parts):05}.safetensors" for i in range(len(parts))]
    )
    return {name: _with_header(name, part) for name, part in zip(names, parts, strict=True)}


def _with_header(file: str, pieces: list[Piece]) -> tuple[bytes, tuple[Piece, ...]]:
    ordered = sorted(pieces, key=lambda piece: -np.dtype(_width(piece)).itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    places, at = [], 0
    for piece in ordered:
        end = at + piece.place.n_bytes
        header[piece.name] = {"dtype": piece.place.dtype, "shape": list(piece.place.shape), "data_offsets": [at, end]}
        places.append(at)
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    base = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, tuple(
        Piece(p.name, p.source, p.axes, Stored(file, p.place.dtype, p.place.shape, base + at))
        for p, at in zip(ordered, places, strict=True)
    )


def _width(piece: Piece) -> Any:
    from graphprune.hosts.checkpoint.shards import DTYPES

    return DTYPES[piece.place.dtype][1]


def stream(
    job: Job,
    folder: Path,
    tokenizer: Any,
    beside: Mapping[str, Callable[[Path], None]],
    told: Callable[[int, int], None] = lambda done, total: None,
) -> Check:
    """Writes a job, or goes on with what an earlier run of it has done, and puts the folder into its place.

    Args:
        job: What is to be written.
        folder: The folder, which is new, empty, or an earlier checkpoint of ours.
        tokenizer: What has ``save_pretrained``, or the path of a tokenizer's folder or file; ``None``: none.
        beside: By name of a file: writes it.
        told: Told how many files of how many are done.

    Returns:
        The line of the proof.

    Raises:
        OutputError: Something cannot be written.
        ProofError: What was written is not what was to be taken.
    """
    place = folder.parent / f"{folder.name}.streaming"
    try:
        if not _is_in_place(job, place, folder):
            require_writable_folder(folder)
            _fill(job, place, tokenizer, beside, told)
            _put_into_place(place, folder)
        shutil.rmtree(place, ignore_errors=True)
    except OSError as error:
        raise OutputError(
            f"cannot write '{folder}': {error.strerror or error}; make room, and run the same again: it goes on"
        ) from error
    n = sum(len(pieces) for _, pieces in job.files.values())
    return Check("streamed", 0.0, 0.0, f"every byte of {n} tensors = the original's, no missing or unexpected keys")


def _is_same(job: Job, place: Path) -> bool:
    """Whether what lies there is of the same job."""
    return is_there(place / JOB) and (place / JOB).read_text(encoding="utf-8") == job.text


def _is_in_place(job: Job, place: Path, folder: Path) -> bool:
    """Whether an earlier run has been killed when all but clearing away was done."""
    return (
        is_there(folder)
        and _is_same(job, place)
        and not is_there(place / NEW)
        and all(_is_done(job, folder / name, *file) for name, file in job.files.items())
    )


def _fill(
    job: Job,
    place: Path,
    tokenizer: Any,
    beside: Mapping[str, Callable[[Path], None]],
    told: Callable[[int, int], None],
) -> None:
    """Writes all that a folder is to hold, as far as it is not there."""
    inside = place / NEW
    if not _is_same(job, place) or not is_there(inside):
        if is_there(place):
            shutil.rmtree(place)
        inside.mkdir(parents=True)
        write_text(place / JOB, job.text)
        _flush(place)
    for done, (name, file) in enumerate(job.files.items()):
        if not _is_done(job, inside / name, *file):
            _write(job, inside / name, *file)
        told(done + 1, len(job.files))
    _write_rest(job, inside, tokenizer, beside)
    _flush(inside)


def _put_into_place(place: Path, folder: Path) -> None:
    if is_there(folder):
        shutil.rmtree(place / OLD, ignore_errors=True)
        folder.rename(place / OLD)
    (place / NEW).rename(folder)
    _flush(folder.parent)


def _is_done(job: Job, path: Path, header: bytes, pieces: tuple[Piece, ...]) -> bool:
    """Whether a file is there and holds what it should."""
    if not is_there(path):
        return False
    with path.open("rb") as file:
        if file.read(len(header)) != header:
            return False
    return path.stat().st_size == _size(header, pieces) and _wrong(job, path, pieces) is None


def _size(header: bytes, pieces: tuple[Piece, ...]) -> int:
    return len(header) + sum(piece.place.n_bytes for piece in pieces)


def _write(job: Job, path: Path, header: bytes, pieces: tuple[Piece, ...]) -> None:
    """Writes a file under another name, looks at it, and gives it its name.

    Raises:
        ProofError: It does not hold what was to be taken.
    """
    part = path.with_name(path.name + PART)
    with part.open("wb") as file:
        file.write(header)
        for piece in pieces:
            write_slice(job.shards.raw(piece.source), piece.axes, file)
        file.flush()
        os.fsync(file.fileno())
    if (wrong := _wrong(job, part, pieces)) is not None:
        raise ProofError(f"{wrong} in '{path.name}'; nothing was put into its place, check the disk")
    part.rename(path)
    _flush(path.parent)


def _wrong(job: Job, path: Path, pieces: tuple[Piece, ...]) -> str | None:
    """Which tensor of a written file is not what was to be taken."""
    written = Shards(
        path.parent, {p.name: Stored(path.name, p.place.dtype, p.place.shape, p.place.begin) for p in pieces}
    )
    for piece in pieces:
        row = first_difference(job.shards.raw(piece.source), piece.axes, written.raw(piece.name))
        if row is not None:
            return f"'{piece.name}' is not what was taken of '{piece.source}' from row {row} on"
    return None


def _write_rest(job: Job, inside: Path, tokenizer: Any, beside: Mapping[str, Callable[[Path], None]]) -> None:
    """The index, the config, and what lies beside the weights."""
    if len(job.files) > 1:
        names = {piece.name: name for name, (_, pieces) in job.files.items() for piece in pieces}
        total = sum(piece.place.n_bytes for _, pieces in job.files.values() for piece in pieces)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))}
        write_text(inside / INDEX, json.dumps(index, indent=2) + "\n")
    vars(job.said.after.module)["config"].save_pretrained(inside)
    if is_there(job.shards.folder / _GENERATION):
        shutil.copyfile(job.shards.folder / _GENERATION, inside / _GENERATION)
    write_tokenizer(tokenizer, inside)
    for name, write in beside.items():
        write(inside / name)
    for each in inside.iterdir():
        each.chmod(0o644)


def _flush(folder: Path) -> None:
    """Makes the disk keep the names in a folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
