"""The command line: the list of its commands, and its entry point. Errors are one message and exit status 2."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Annotated

import typer

import graphprune as gp
from graphprune.collector import rare_garbage_collection
from graphprune.commands.analysis import explain, inspect
from graphprune.commands.curves import sensitivity, sweep
from graphprune.commands.demo import demo
from graphprune.commands.latency import profile
from graphprune.commands.pipelines import passes
from graphprune.commands.prune import apply, prune
from graphprune.commands.recover import recover
from graphprune.commands.shell import command, out
from graphprune.commands.usage import JsonErrors
from graphprune.commands.verify import export, verify
from graphprune.commands.vocabulary import vocabulary
from graphprune.errors import OutputError
from graphprune.report.console import end_quietly

COMMANDS: tuple[Callable[..., None], ...] = (
    prune,
    apply,
    recover,
    verify,
    export,
    inspect,
    explain,
    sweep,
    sensitivity,
    vocabulary,
    profile,
    passes,
    demo,
)
"""In the order of the help."""

app = typer.Typer(
    cls=JsonErrors,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Makes PyTorch and ONNX models smaller by removing whole channels, heads and neurons, and proves the result.",
)
for each in COMMANDS:
    app.command(each.__name__)(command(each))


def _version(wanted: bool) -> None:
    if wanted:
        out.print(gp.__version__, highlight=False)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[  # eager: the rest of the line is not read, and what reads it is not imported
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...


def main() -> None:
    """The entry point of the ``graphprune`` command."""
    try:
        with rare_garbage_collection():
            app()
    except (OSError, OutputError) as error:  # stderr or the help on stdout, which nobody reads or which is full
        cause = error if isinstance(error, OSError) else error.__cause__
        sys.exit(end_quietly(cause) if isinstance(cause, OSError) else 2)
    finally:
        gc.freeze()  # the interpreter, as it ends, need not look through what ends with it
