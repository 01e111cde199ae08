"""Recipes as TOML and as JSON data."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.errors import OptionError
from graphprune.files import read_whole

if TYPE_CHECKING:
    from graphprune.passes import Pass

_ADVICE = "give a TOML file, as in README, or the name of a recipe"


def pipeline_text(passes: Iterable[Pass]) -> str:
    """Passes as the text that names them; one of the user's may hold what no text can say, and is named alone."""
    from graphprune.pipeline.text import print_pass

    def one(each: Pass) -> str:
        try:
            return print_pass(each)
        except TypeError:
            return each.name

    return ",".join(map(one, passes))


def plain_value(value: Any) -> Any:
    """A value as JSON and TOML have it."""
    if isinstance(value, tuple):
        return list(value) if all(isinstance(each, str) for each in value) else pipeline_text(value)
    return value


def toml(data: Mapping[str, Any]) -> str:
    """A dictionary of plain values, and of tables of them, as TOML."""
    own = {name: value for name, value in data.items() if not isinstance(value, Mapping)}
    lines = [f"{name} = {_written(value)}" for name, value in own.items()]
    for name, table in data.items():
        if isinstance(table, Mapping) and table:
            lines += ["", f"[{name}]", *(f"{key} = {_written(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, str):  # JSON escapes what TOML does, but for the delete character; all else stays as it is
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def read_toml(source: str | Path) -> dict[str, Any]:
    """What a TOML text, or a file, holds.

    Raises:
        OptionError: It cannot be read, or is no TOML.
        BoundError: The file is too large.
    """
    where = "the recipe"
    if isinstance(source, Path):
        where = f"recipe '{source}'"
        content = read_whole(source, OptionError, "recipe", _ADVICE)
    try:
        return tomllib.loads(source if isinstance(source, str) else content.decode("utf-8"))
    except RecursionError as error:
        raise OptionError(f"{where} is nested too deeply; {_ADVICE}") from error
    except ValueError as error:
        raise OptionError(f"{where} is no TOML: {error}; {_ADVICE}") from error
