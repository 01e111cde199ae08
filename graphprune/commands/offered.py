"""From dataclasses of options to the parameters of a command, and back from what was given to the dataclasses.

A command is a function of few parameters. Those whose type is a dataclass of options (fields made by
:func:`graphprune.recipe.options.option`) are shown on the command line as one option for each field, with the name,
default and text that stand there; a :class:`~graphprune.recipe.Recipe` also as ``--recipe``, which the others go
before.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer

from graphprune.errors import OptionError
from graphprune.recipe import RECIPES, Recipe, recipe_options
from graphprune.recipe.options import Option, options_in

RECIPE = "recipe"
_PANEL = 5
"""So many options of a dataclass are shown under a title of their own."""


@dataclass(frozen=True)
class Offers:
    """Which options of a dataclass a command has; ``Annotated[Recipe, Offers(only=("seed",))]``.

    Attributes:
        only: Their keywords; empty: all.
        without: Keywords that it has not.
        unset: Other sentences about what happens where an option is not given, by keyword.
        read: Whether what is not given may come out of a recipe that has more; always where all are offered.
    """

    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    unset: Mapping[str, str] = field(default_factory=dict)
    read: bool = False

    def of(self, options: Iterable[Option]) -> list[Option]:
        """Those of some options that the command has."""
        return [
            each
            for each in options
            if each.keyword not in self.without and each.keyword in (self.only or (each.keyword,))
        ]


def offered(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each field of its dataclasses."""
    own = inspect.signature(command, eval_str=True)
    bundles: dict[str, tuple[type[Any], Offers]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in own.parameters.values():
        bundle = _bundle(parameter.annotation)
        if bundle is None:
            parameters.append(parameter)
        else:
            bundles[parameter.name] = bundle
            parameters.extend(_parameters(*bundle))

    @functools.wraps(command)
    def run(**given: Any) -> None:
        made = {name: _made(cls, offers, given) for name, (cls, offers) in bundles.items()}
        command(**made, **given)

    return shown(run, parameters)


def shown(function: Callable[..., None], parameters: Iterable[inspect.Parameter]) -> Callable[..., None]:
    """A function that says to have these parameters, which have to be told by name."""
    named = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    told: Any = function
    told.__signature__ = inspect.Signature(named)
    told.__annotations__ = {each.name: each.annotation for each in named}
    vars(told).pop("__wrapped__", None)
    return function


def _bundle(annotation: Any) -> tuple[type[Any], Offers] | None:
    """The dataclass of options that a parameter is of, and which of them are offered."""
    found = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    offers = next((each for each in found[1:] if isinstance(each, Offers)), Offers())
    kind = found[0]
    return (kind, offers) if isinstance(kind, type) and is_dataclass(kind) and options_in(kind) else None


def _options(cls: type[Any], offers: Offers) -> list[Option]:
    return offers.of(recipe_options() if cls is Recipe else options_in(cls))


def _parameters(cls: type[Any], offers: Offers) -> list[inspect.Parameter]:
    options = _options(cls, offers)
    panel = _title(cls) if len(options) >= _PANEL else None
    found = [_parameter(each, offers.unset.get(each.keyword, ""), panel) for each in options if not each.shown.flags]
    for each in options:
        found += [_flag(name, text, panel) for name, (_, text) in each.shown.flags.items()]
    if cls is Recipe and (offers.read or not offers.only):
        names = ", ".join(RECIPES)
        text = f"All that a compilation does, from a TOML file or by name: {names}. Options go before it."
        what = typer.Option("--recipe", metavar="NAME|FILE", help=text, rich_help_panel=panel)
        found.insert(0, _keyword(RECIPE, Annotated[str | None, what], None))
    return found


def _title(cls: type[Any]) -> str:
    """What stands above the options of a dataclass: the first clause of its docstring."""
    return re.split("[:,.]", inspect.cleandoc(cls.__doc__ or ""), maxsplit=1)[0]


def _parameter(each: Option, unset: str, panel: str | None) -> inspect.Parameter:
    """One that is ``None`` where it is not given, so that a default does not go before a recipe."""
    option = typer.Option(f"--{each.name}", metavar=each.shown.metavar, help=each.help(unset), rich_help_panel=panel)
    if each.kind is bool:
        return _keyword(each.keyword, Annotated[bool, option], default=False)
    kind = str if each.kind not in (int, float, int | None, float | None, Path | None, tuple[str, ...]) else each.kind
    return _keyword(each.keyword, Annotated[list[str] | None if each.repeatable else kind | None, option], None)


def _flag(name: str, text: str, panel: str | None) -> inspect.Parameter:
    option = typer.Option(f"--{name}", help=text, rich_help_panel=panel)
    return _keyword(name.replace("-", "_"), Annotated[bool, option], default=False)


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _made(cls: type[Any], offers: Offers, given: dict[str, Any]) -> Any:
    """The dataclass of what was given, which is taken out of it.

    Raises:
        OptionError: Two options exclude each other, or a value is wrong.
    """
    values: dict[str, Any] = {}
    for each in _options(cls, offers):
        if each.shown.flags:
            values[each.keyword] = _chosen(each, given)
        else:
            value = given.pop(each.keyword)
            values[each.keyword] = tuple(value) if isinstance(value, list) else value
    said = {name: value for name, value in values.items() if value is not None and value != ()}
    return Recipe.read(given.pop(RECIPE, None), **said) if cls is Recipe else cls(**said)


def _chosen(each: Option, given: dict[str, Any]) -> Any:
    """The value that the flags of an option stand for; ``None`` where none was given."""
    said = [name for name in each.shown.flags if given.pop(name.replace("-", "_"))]
    if len(said) > 1:
        raise OptionError(f"--{said[1]} is about {each.shown.about} that --{said[0]} skips; leave one of them out")
    return each.shown.flags[said[0]][0] if said else None
