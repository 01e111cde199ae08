"""The terminal: names out of models reach it as text only, and what others print does not mix with what is ours."""

from __future__ import annotations

import errno
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from graphprune.errors import GraphpruneWarning, OutputError
from graphprune.files import visible


class SafeConsole(Console):
    """A console that shows control characters of texts instead of sending them; its own styles still work."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of what is printed."""
        for segment in super().render(renderable, options):
            yield segment if segment.control is not None else Segment(visible(segment.text), segment.style)

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints.

        Raises:
            OutputError: What is printed cannot be written, the disk being full, say.
            BrokenPipeError: Its reader has gone away.
        """
        with _written():
            super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        """Lets the error pass, which by default would end the process with status 1."""
        raise

    def write(self, text: str) -> None:
        """Writes plain text (JSON, say).

        Raises:
            OutputError, BrokenPipeError: As for :meth:`print`.
        """
        with _written():
            self.file.write(text)
            self.file.flush()


@contextmanager
def _written() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(
            f"what is printed cannot be written: {error.strerror or error}; free some space, or send it elsewhere"
        ) from error


def one_line(text: str) -> str:
    """A message in one line, which is what a message of ours is; names and errors of others may have more."""
    return " ".join(part.strip() for part in text.splitlines() if part.strip())


# -- stdout --------------------------------------------------------------------------------------------------------


@contextmanager
def stdout_of_ours(console: Console) -> Iterator[None]:
    """Keeps stdout for what ``console`` prints: what code of the user's or a library prints goes to stderr."""
    with _stream_of_ours() as stream:
        console.file = stream
        try:
            yield
        finally:
            console.file = None  # type: ignore[assignment]  # whatever stdout is then


@contextmanager
def _stream_of_ours() -> Iterator[TextIO]:
    stdout = sys.stdout
    try:
        whole = stdout.fileno() == 1
    except (OSError, ValueError, AttributeError):  # a stream in memory, or none
        whole = False
    kept = -1
    if whole:
        stdout.flush()
        with suppress(OSError):  # there may be no stderr
            kept = os.dup(1)
            os.dup2(2, 1)
    if kept < 0:
        with redirect_stdout(sys.stderr):
            yield stdout
        return
    try:
        with redirect_stdout(sys.stderr):
            ours = os.fdopen(kept, "w", encoding=stdout.encoding, errors="backslashreplace", closefd=False)
            try:
                yield ours
            finally:
                with suppress(OSError):  # it has been told by then
                    ours.close()
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def end_quietly(error: OSError) -> int:
    """The exit status where stdout or stderr takes no more: 0 where its reader has had enough (``| head``), else 2."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # nothing more is to be flushed at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return 0 if error.errno == errno.EPIPE else 2


# -- what libraries say --------------------------------------------------------------------------------------------


@contextmanager
def libraries_quiet(*, unless: bool = False) -> Iterator[list[str]]:
    """Keeps warnings and logs of libraries off stderr: what goes wrong is raised. Gives the warnings of ours."""
    ours: list[str] = []
    if unless:
        yield ours
        return
    root, handler = logging.getLogger(), logging.NullHandler()  # without one, logging writes to stderr itself
    root.addHandler(handler)
    try:
        with warnings.catch_warnings():  # filters stay as they are: where warnings are errors, they are

            def note(message: Warning | str, *_: Any, **__: Any) -> None:
                if isinstance(message, GraphpruneWarning):
                    ours.append(str(message))

            warnings.showwarning = note
            yield ours
    finally:
        root.removeHandler(handler)
