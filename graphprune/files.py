"""Writing output files whole or not at all, and reading small ones that strangers wrote."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from graphprune.bounds import present
from graphprune.errors import BoundError, GraphpruneError, OutputError

_ADVICE = "give a path in a folder that exists and is writable"


def require_plain(path: Path) -> None:
    """Refuses to put a file in the place of what is none: a folder, a pipe, a device.

    Raises:
        OutputError: Something else is there.
    """
    for mode in _modes(path):
        if stat.S_ISDIR(mode):
            raise OutputError(f"cannot write '{path}': it is a folder; give the path of a file")
        if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
            raise OutputError(f"cannot write '{path}': it is a pipe, a device or a socket; give the path of a file")


def _modes(path: Path) -> Iterator[int]:
    """The kinds of what is there: of a link and of what it leads to."""
    for look in (path.lstat, path.stat):
        with suppress(OSError):
            yield look().st_mode


def _prefix(path: Path) -> str:
    """How names of temporary files for a path begin: with the process, so that leftovers of dead ones are known."""
    host = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
    return f".{path.name}.graphprune-{host}-"


def _sweep(path: Path) -> None:
    """Removes what processes of this machine left beside ``path`` that were killed while they wrote it."""
    prefix = _prefix(path)
    for each in path.parent.glob(f"{glob.escape(prefix)}*"):
        process = each.name.removeprefix(prefix).split("-")[0]
        if not process.isdigit() or _lives(int(process)):
            continue
        with suppress(OSError):
            shutil.rmtree(each) if each.is_dir() else each.unlink()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` to write into before what is written takes its place; removed at the end.

    Raises:
        OutputError: ``path`` is no plain file, or its folder cannot be written.
    """
    require_plain(path)
    _sweep(path)
    try:
        folder = tempfile.mkdtemp(prefix=f"{_prefix(path)}{os.getpid()}-", dir=path.parent)
    except OSError as error:
        raise OutputError(f"cannot write '{path}': {error.strerror}; {_ADVICE}") from error
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _temporary_in(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path``, removed at the end if it is still there."""
    require_plain(path)
    _sweep(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f"{_prefix(path)}{os.getpid()}-", dir=path.parent)
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
    made = [each for each in (path, *path.parents) if not is_there(each)]
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
    with _temporary_in(path) as temporary:
        temporary.touch()


def require_writable_folder(folder: Path) -> None:
    """Refuses a folder that holds something else than an earlier checkpoint of ours, before any work is done.

    Raises:
        OutputError: It does, or its own folder is not there.
    """
    if not is_there(folder.parent):
        raise OutputError(f"cannot write '{folder}': no folder '{folder.parent}'; make it first")
    if not is_there(folder):
        return
    if not folder.is_dir():
        raise OutputError(f"cannot write '{folder}': it is a file; give a folder")
    names = {each.name for each in folder.iterdir()}
    if names and not names.issuperset(("config.json", "plan.json")):
        raise OutputError(
            f"cannot write '{folder}': it holds files that are no earlier checkpoint of graphprune's; give an empty or "
            "a new folder"
        )


# -- reading -----------------------------------------------------------------------------------------------------------


def require_plain_source(path: Path, kind: type[GraphpruneError], what: str, advice: str) -> int:
    """Bytes of a plain file; what is none may never end, or wait forever.

    Args:
        path: The file.
        kind: The error to raise.
        what: What it should be: ``plan``.
        advice: What to do: ``give the file that --plan-out wrote``.

    Raises:
        GraphpruneError: Of ``kind``: it is not there, or is no plain file.
    """
    try:
        info = path.stat()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise kind(f"cannot read {what} '{path}': {reason or error}; {advice}") from error
    if not stat.S_ISREG(info.st_mode):
        raise kind(f"cannot read {what} '{path}': it is no plain file; {advice}")
    return info.st_size


def is_there(path: Path) -> bool:
    """Whether a path leads to something; one that is no path (too long, say) does not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def read_whole(path: Path, kind: type[GraphpruneError], what: str, advice: str) -> bytes:
    """The bytes of a plain file of a size that can be meant; arguments as for :func:`require_plain_source`.

    Raises:
        GraphpruneError: Of ``kind``: it cannot be read, or is no plain file.
        BoundError: It is larger than :attr:`graphprune.bounds.Bounds.file`.
    """
    size = require_plain_source(path, kind, what, advice)
    if size > present().file:
        raise BoundError(
            f"{what} '{path}' has {size} bytes, expected at most {present().file}; allow more with --bound file={size}"
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise kind(f"cannot read {what} '{path}': {error.strerror or error}; {advice}") from error


def read_json(path: Path, kind: type[GraphpruneError], what: str, advice: str) -> dict[str, Any]:
    """The object that a JSON file holds; see :func:`read_whole`.

    Raises:
        GraphpruneError: Of ``kind``: it cannot be read, or holds no JSON object of finite numbers.
        BoundError: It is too large.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"it holds the number {constant}")

    try:
        data = json.loads(read_whole(path, kind, what, advice).decode("utf-8"), parse_constant=refuse)
    except RecursionError as error:
        raise kind(f"{what} '{path}' is nested too deeply; {advice}") from error
    except ValueError as error:
        raise kind(f"{what} '{path}' is no JSON: {error}; {advice}") from error
    if not isinstance(data, dict):
        raise kind(f"{what} '{path}' holds a {type(data).__name__}, expected an object; {advice}")
    return data


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    r"""The text with control characters, and those that turn the direction of writing, as escapes (``\x1b``)."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
