"""Functions that take the options of a recipe as keywords: their signature and their documentation follow from it."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from textwrap import wrap
from typing import Any, TypeVar, cast

from graphprune.errors import OptionError
from graphprune.recipe.options import Option
from graphprune.recipe.recipe import recipe_options
from graphprune.suggest import meant

F = TypeVar("F", bound=Callable[..., Any])

_LINE = re.compile(r"^( *)\*\*(\w+): .*(?:\n\1 {4}.*)*\n?", re.MULTILINE)


def takes_recipe(*, only: tuple[str, ...] = (), without: tuple[str, ...] = ()) -> Callable[[F], F]:
    """Shows the keywords of a recipe, their defaults and texts in place of the ``**keywords`` of a function.

    The function is called with those that were given, so that it can tell them from defaults; others are refused.

    Args:
        only: The keywords that it takes; empty: all.
        without: Keywords that it has no use for, or that it says itself.
    """

    def decorate(function: F) -> F:
        own = inspect.signature(function)
        named = [each for each in own.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        taken = {*without, *(each.name for each in named)}
        options = [each for each in recipe_options() if each.keyword in (only or (each.keyword,))]
        options = [each for each in options if each.keyword not in taken]
        shown = [
            inspect.Parameter(
                each.keyword, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=_annotation(each)
            )
            for each in options
        ]
        known = [*(each.name for each in named), *(each.keyword for each in options)]

        @functools.wraps(function)
        def run(*args: Any, **given: Any) -> Any:
            if unknown := next((name for name in given if name not in known), None):
                raise OptionError(f"there is no option {meant(unknown, known)}; expected one of {', '.join(known)}")
            return function(*args, **given)

        made: Any = run
        made.__signature__ = own.replace(parameters=[*named, *shown])
        if function.__doc__:
            made.__doc__ = documented(function.__doc__, options)
        return cast("F", made)

    return decorate


def documented(text: str, options: list[Option]) -> str:
    """A docstring with the texts of options in place of its line about ``**keywords``."""
    found = _LINE.search(text)
    if found is None:
        return text
    indent = found[1]
    lines = [
        line
        for each in options
        for line in wrap(
            f"{each.keyword}: {each.text}",
            120,
            initial_indent=indent,
            subsequent_indent=indent + "    ",
            break_on_hyphens=False,
        )
    ]
    return text[: found.start()] + "\n".join(lines) + "\n" + text[found.end() :]


def _annotation(each: Option) -> Any:
    return str | tuple[str, ...] if each.repeatable else each.kind
