"""Writing output files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from graphprune.errors import OutputError

_ADVICE = "give a path in a folder that exists and is writable"


@contextmanager
def _temporary_in(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path``, removed at the end if it is still there."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise OutputError(f"cannot write '{path}': {error.strerror}; {_ADVICE}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder that takes the place of ``path`` if the block succeeds.

    Raises:
        OutputError: The folder does not exist or cannot be written.
    """
    with _temporary_in(path) as temporary:
        try:
            yield temporary
            temporary.chmod(0o644)
            temporary.replace(path)
        except OSError as error:
            raise OutputError(f"cannot write '{path}': {error.strerror or error}; {_ADVICE}") from error


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def made_folder(path: Path, option: str = "-o") -> Path:
    """The folder, made if need be.

    Raises:
        OutputError: It cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot make folder '{path}': {error.strerror}; give a writable path with {option}"
        ) from error
    return path


@contextmanager
def output_folder(path: Path) -> Iterator[None]:
    """A folder to write to, made if need be; where the block fails, what was made goes again unless it holds something.

    Raises:
        OutputError: It cannot be made.
    """
    made = [each for each in (path, *path.parents) if not each.exists()]
    made_folder(path)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for each in made:
                each.rmdir()
        raise


def require_writable(path: Path) -> None:
    """Finds out that a file cannot be written before any work is done.

    Raises:
        OutputError: Its folder does not exist or cannot be written, or the path is a folder.
    """
    if path.is_dir():
        raise OutputError(f"cannot write '{path}': it is a folder; give the path of a file")
    with _temporary_in(path) as temporary:
        temporary.touch()
