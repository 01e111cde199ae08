"""What every JSON output says beside its data: the version of its schema, of what made it, and which files it is of."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from graphprune.version import __version__

SCHEMA = 1
"""Counts up when a key changes its meaning or goes; new keys may come at any time."""


def enveloped(data: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """The data of an output, behind its schema, versions and files."""
    return {"schema": SCHEMA, "versions": versions(), "files": dict(files or {}), **data}


def failure(error: BaseException) -> dict[str, Any]:
    """An error as JSON data: its type and its message."""
    message = str(error) or ("interrupted" if isinstance(error, KeyboardInterrupt) else "")
    return {"error": {"type": type(error).__name__, "message": message}}


def versions() -> dict[str, str]:
    """The versions of graphprune and of what has run models: torch only where it was used."""
    found = {"graphprune": __version__}
    for package in ("onnx", "onnxruntime", *(["torch"] if "torch" in sys.modules else [])):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a build of another name, such as onnxruntime-gpu
            found[package] = str(getattr(sys.modules.get(package), "__version__", "unknown"))
    return found


def described(**paths: str | Path | None) -> dict[str, dict[str, Any]]:
    """For each path its text and, of a plain file, its size in bytes and its SHA-256; what is absent is left out.

    The external data of an ONNX file are files of their own and not in its digest.
    """
    found: dict[str, dict[str, Any]] = {}
    for role, path in paths.items():
        if path is None:
            continue
        found[role] = {"path": str(path)}
        try:
            if Path(path).is_file():
                with Path(path).open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                found[role].update(bytes=Path(path).stat().st_size, sha256=digest)
        except (OSError, ValueError):  # whoever reads it says so
            continue
    return found
