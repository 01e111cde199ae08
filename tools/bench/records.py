"""Records of a benchmark: one JSON object a line, appended as soon as it is measured, so that a killed run goes on.

A record is *found again* by its key: the fields that say what was measured (a model, a recipe, a budget, ...), never
what came out. Every record also says with what: :func:`provenance` gives the versions, the digest of graphprune's
sources and the machine. Tables are made from records, by :func:`table`, and from nothing else.

    records = Records(Path("records.jsonl"), ("model", "recipe", "budget"))
    for key in records.missing(keys):
        records.add(timed(key, lambda: measure(**key)))
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

Record = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("numpy", "onnx", "onnxruntime", "torch", "transformers")
"""Those whose versions may change what is measured."""


class Records:
    """The records of a file, by their keys; a later record replaces an earlier one of the same key."""

    def __init__(self, path: Path | None, key: Sequence[str]) -> None:
        """Reads the file if it is there.

        Args:
            path: A file of JSON lines. What follows its last line break was being written when a run was killed, and
                is cut off by the next :meth:`add`. Without one, records are kept in memory alone.
            key: Names of the fields that say what was measured; a record that lacks one has ``None`` there.

        Raises:
            ValueError: A line is no JSON object.
        """
        self.path, self.fields = path, tuple(key)
        self._found: dict[str, Record] = {}
        if path is not None and path.exists():
            for number, line in enumerate(path.read_text().split("\n")[:-1], start=1):
                try:
                    record = json.loads(line)
                except ValueError:
                    record = None
                if not isinstance(record, dict):
                    raise ValueError(f"line {number} of '{path}' is no JSON object: {line[:60]!r}; delete it")
                self._found[self.key_of(record)] = record

    def key_of(self, record: Mapping[str, Any]) -> str:
        """The key of a record, or of what is to be measured, as text."""
        return json.dumps([record.get(field) for field in self.fields], sort_keys=True)

    def get(self, key: Mapping[str, Any]) -> Record | None:
        """The record of what a mapping describes, if there is one."""
        return self._found.get(self.key_of(key))

    def missing(self, keys: Iterable[Record], wanted: Callable[[Record], bool] = bool) -> Iterator[Record]:
        """Those of the keys that have no record, or one that is not ``wanted``; looked up one by one."""
        return (key for key in keys if not wanted(self.get(key) or {}))

    def add(self, record: Record) -> None:
        """Appends a record in one write, so that two runs may share a file, and sees it onto the disk.

        Raises:
            TypeError, ValueError: The record holds what JSON has no words for, NaN and infinities among it.
        """
        line = json.dumps(record, allow_nan=False) + "\n"
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            with os.fdopen(descriptor, "rb+", buffering=0) as file:
                _cut_torn_line(file)
                file.write(line.encode())
                os.fsync(file.fileno())
        self._found[self.key_of(record)] = json.loads(line)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._found.values())

    def __len__(self) -> int:
        return len(self._found)


def _cut_torn_line(file: Any) -> None:
    """Shortens a file to its last line break."""
    size = end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 4096)
        file.seek(start)
        at = file.read(end - start).rfind(b"\n")
        if at >= 0:
            end = start + at + 1
            break
        end = start
    if end < size:
        file.truncate(end)


def timed(key: Record, measure: Callable[[], Record]) -> Record:
    """A record of what ``measure`` gives, with seconds and provenance; of an error, if it raises one.

    Returns:
        The key, what was measured (or ``error``: its class and first line), ``seconds`` by the clock, ``cpu_seconds``
        of this process, and what :func:`provenance` says.
    """
    begin, cpu = time.perf_counter(), time.process_time()
    try:
        found = measure()
    except Exception as error:  # noqa: BLE001 - one that fails must not end the run; the record says how
        found = {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"}
    times = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu}
    return {**key, **found, **{name: round(value, 3) for name, value in times.items()}, **provenance()}


@cache
def provenance() -> dict[str, Any]:
    """What a measurement was made with: versions, a digest of graphprune's sources, the machine."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"sources": sources_digest(ROOT), "versions": versions, "machine": f"{platform.machine()} x{os.cpu_count()}"}


def sources_digest(root: Path) -> str:
    """Twelve hex digits that change with the Python sources of graphprune below a folder."""
    digest = hashlib.sha256()
    for folder in ("graphprune", "passes"):
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in plain text: the first column to the left, the others to the right; floats with four digits."""
    cells = [[_cell(value) for value in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = (
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in ([*zip(row, widths, strict=True)] for row in cells)
    )
    return "\n".join(line.rstrip() for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
