"""Errors in the grammar of a command line (an option that is missing or no number), as JSON where JSON is asked for."""

from __future__ import annotations

import json
import sys
from typing import Any

from typer.core import TyperGroup

from graphprune.report.envelope import enveloped


class JsonErrors(TyperGroup):
    """Commands that tell what they cannot read as JSON on stdout too, where ``--json`` is among the arguments."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Runs the command line."""
        given = args[0] if args and args[0] is not None else extra.get("args")
        self._json = "--json" in (sys.argv[1:] if given is None else given)
        return super().main(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command that the arguments name."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            message = getattr(error, "format_message", None)  # of typer's own copy of click or of click, by its version
            if self._json and message is not None:
                data = {"error": {"type": "UsageError", "message": message()}}
                sys.stdout.write(json.dumps(enveloped(data), indent=1) + "\n")
            raise

    _json = False
