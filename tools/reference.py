"""Writes ``docs/reference.md``: all names that users can give, with the texts that stand beside them in the code.

python -m tools.reference [--check]        writes it anew, or says whether it is as the code is; a test compares
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from pathlib import Path

import typer.main

import graphprune as gp
from graphprune.analysis.kinds import KINDS
from graphprune.cli import app
from graphprune.passes import PASSES
from graphprune.pipeline import keys
from graphprune.recipe import RECIPES
from tools.bench.runner import parser_of

PAGE = Path(__file__).parents[1] / "docs" / "reference.md"
HEAD = """# Reference

All commands and options, passes, kinds of units, and public names, with the texts of the code. This page is written by
`python -m tools.reference`, and a test compares.
"""


def cell(text: object) -> str:
    """A text on one line of a table."""
    return " ".join(str(text).replace("``", "`").replace("|", "\\|").split())


def table(title: str, columns: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    lines += [f"| {' | '.join(map(cell, row))} |" for row in rows]
    return f"\n## {title}\n\n" + "\n".join(lines) + "\n"


def first(text: str | None) -> str:
    """The first paragraph of a docstring, without roles."""
    paragraph = inspect.cleandoc(text or "").split("\n\n")[0]
    for role in (":class:", ":func:", ":data:", ":attr:", ":meth:", ":mod:"):
        paragraph = paragraph.replace(role, "")
    return paragraph


def options() -> list[tuple[str, str, str]]:
    """Each option once: its name, the commands that have it, what it does."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    found: dict[str, tuple[list[str], str]] = {}
    for name, command in commands.items():
        for parameter in command.params:
            if parameter.param_type_name == "option" and "--help" not in parameter.opts:
                shown = ", ".join(f"`{each}`" for each in parameter.opts)
                found.setdefault(shown, ([], parameter.help or ""))[0].append(name)
    every = len(commands)
    return [(o, "all" if len(names) == every else ", ".join(names), text) for o, (names, text) in found.items()]


def passes() -> list[tuple[str, str, str, str]]:
    """The passes with what they need and give by default, and their options."""
    rows = []
    for cls in PASSES:
        made = cls()
        fields = [f"{f.name}={shown(f.default)}" for f in dataclasses.fields(cls)]
        needs = ", ".join(keys.KEYS[key].phrase for key in keys.KEYS if key in made.needs)
        rows.append((f"`{cls.name}`", first(cls.__doc__), needs, " ".join(f"`{each}`" for each in fields)))
    return rows


def shown(value: object) -> str:
    if isinstance(value, tuple):
        return "\\|".join(map(shown, value)).replace("\\|", "|")
    return str(value).lower() if isinstance(value, bool) else str(value)


def public() -> list[tuple[str, str]]:
    """The names of the package, with the first sentence of each."""
    rows = []
    for name in gp.__all__:
        value = getattr(gp, name)
        own = inspect.isclass(value) or inspect.isroutine(value)
        rows.append((f"`{name}`", first(value.__doc__) if own else PLAIN[name]))
    return rows


PLAIN = {
    "RECIPES": "The named recipes: keywords by name.",
    "SAMPLES": "How many samples of calibration data are read where nothing is said.",
    "__version__": "The version.",
}


def text() -> str:
    """The page."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    parts = [
        HEAD,
        table("Commands", ("command", "what it does"), [(f"`{n}`", first(c.help)) for n, c in commands.items()]),
        table("Options", ("option", "commands", "what it does"), options()),
        table("Passes", ("pass", "what it does", "needs", "options with defaults"), passes()),
        table("Kinds of units", ("kind", "what one unit is"), [(f"`{n}`", t) for n, t in KINDS.items()]),
        table(
            "Named recipes",
            ("name", "keywords"),
            [(f"`{n}`", " ".join(f"`{k}={v}`" for k, v in r.items())) for n, r in RECIPES.items()],
        ),
        table("Public names", ("name", "what it is"), public()),
    ]
    return "".join(parts)


def main() -> int:
    """Writes the page, or compares it; 1 if it is another one."""
    parser = parser_of(__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    if options.check:
        same = PAGE.read_text(encoding="utf-8") == text()
        print(f"{PAGE.name} is {'as the code is' if same else 'another one'}")
        return int(not same)
    PAGE.write_text(text(), encoding="utf-8")
    print(f"wrote {PAGE.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
