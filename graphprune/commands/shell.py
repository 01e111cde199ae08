"""What all commands share: one message for an error and an exit status, progress, and what reaches stdout."""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

import graphprune as gp
from graphprune.bounds import parse_bound
from graphprune.commands.offered import offered, shown
from graphprune.errors import GraphpruneError, OptionError, ProofError
from graphprune.files import visible
from graphprune.observer import Observer
from graphprune.report.console import SafeConsole, end_quietly, libraries_quiet, one_line, stdout_of_ours
from graphprune.report.envelope import enveloped, failure
from graphprune.report.progress import progress_bar

out = SafeConsole(soft_wrap=False)
err = SafeConsole(stderr=True)

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Bounds = Annotated[
    list[str] | None,
    typer.Option(
        "--bound",
        metavar="NAME=N",
        help="What a model may ask for: nodes, tensors, memory (bytes beyond its own), seconds (of one run), file "
        "(bytes of a plan, say). Repeatable.",
    ),
]


class ToldError(ProofError):
    """An error that the JSON output has told already."""


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A command as the command line runs it: its options, ``--debug``, ``--bound``, and how it ends."""
    run = offered(function)

    @functools.wraps(function)
    def guarded(**given: Any) -> None:
        debug, bounds = given.pop("debug"), given.pop("bound")
        as_json = bool(given.get("as_json"))
        try:
            with (
                libraries_quiet(unless=debug) as warned,
                stdout_of_ours(out),
                gp.bounded(**dict(map(parse_bound, bounds or ()))),
            ):
                run(**given)
            for text in warned:
                err.print(f"[yellow]warning:[/] {escape(one_line(text))}", soft_wrap=True, highlight=False)
        except BrokenPipeError as error:
            raise typer.Exit(end_quietly(error)) from None
        except (GraphpruneError, KeyboardInterrupt) as error:
            if debug:
                raise
            text = one_line(str(error)) or "interrupted"
            err.print(f"[bold red]error:[/] {escape(text)}", soft_wrap=True, highlight=False)
            if as_json and not isinstance(error, ToldError):
                print_json(failure(error))
            raise typer.Exit(2) from None
        except typer.Exit:
            raise
        except Exception as error:
            if debug:
                raise
            text = f"internal error: {type(error).__name__}: {error}; run again with --debug and report it"
            err.print(f"[bold red]{escape(one_line(text))}[/]", soft_wrap=True, highlight=False)
            if as_json:
                print_json(failure(error))
            raise typer.Exit(1) from None

    keyword = inspect.Parameter.KEYWORD_ONLY
    more = (
        inspect.Parameter("debug", keyword, default=False, annotation=Debug),
        inspect.Parameter("bound", keyword, default=None, annotation=Bounds),
    )
    return shown(guarded, (*inspect.signature(run).parameters.values(), *more))


def progress(quiet: bool = False, after: Sequence[str] = ()) -> AbstractContextManager[Observer]:
    """The present step and the time that is left, on stderr so that stdout can be piped.

    Args:
        quiet: Show nothing.
        after: Names of the steps that the command takes behind those of the Python interface.
    """
    return progress_bar(err, quiet=quiet, after=after)


def dump(text: str) -> None:
    """Writes the text of a graph on stderr."""
    sys.stderr.write("\n".join(map(visible, text.split("\n"))))


def print_json(data: Mapping[str, Any], files: Mapping[str, Any] | None = None) -> None:
    """Prints data as JSON, behind versions and files."""
    out.write(json.dumps(enveloped(data, files), indent=1) + "\n")


def present(*paths: Path | None) -> tuple[Path, ...]:
    """Those paths that were given."""
    return tuple(path for path in paths if path is not None)


def require_distinct(
    read: tuple[str | Path | None, ...], *written: Path | None, model: Path | None = None, force: bool = False
) -> None:
    """Refuses to write two things into one file, or over one that is read; with ``force`` the model may be replaced.

    Args:
        read: What is read: the model first.
        *written: What is written.
        model: The model that is written.
        force: Whether it may take the place of the one that is read.

    Raises:
        OptionError: It would be.
    """
    original, *others = (Path(each).resolve() for each in read if each is not None)
    taken = set(others)
    for path in present(model, *written):
        resolved = path.resolve()
        itself = resolved == original
        if itself and path is model and path.suffix == ".onnx" and resolved not in taken:
            if not force:
                raise OptionError(f"'{path}' is the model that is read; give another path with -o, or --force")
        elif itself or resolved in taken:
            raise OptionError(
                f"'{path}' would be written twice or over a file that is read; give each output a path of its own"
            )
        taken.add(resolved)
