"""What somebody may have meant: the nearest of the names that there are, for messages about one that there is not."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

_NEAR = 0.6
"""How alike two words are at least, as a fraction of their letters, to be taken for one another."""
_MOST = 2000
"""Not more names than this are compared: a model may have any number of tensors."""


def nearest(word: str, known: Iterable[str], *, at_most: int = 3) -> tuple[str, ...]:
    """The known names that are most like a word, upper and lower case alike; the best first.

    Example:
        >>> nearest("isomorfic", ["global", "isomorphic"])
        ('isomorphic',)
    """
    by_lower = {name.lower(): name for name in islice(known, _MOST)}
    found = [by_lower[name] for name in get_close_matches(word.lower(), by_lower, at_most, _NEAR)]
    return tuple(name for name in found if name != word)


def meant(word: str, known: Iterable[str], *, also: Mapping[str, str] | None = None) -> str:
    """The word in quotes, and behind it the names that may be meant: ``'obss' (did you mean 'obs'?)``.

    Args:
        word: What was given.
        known: The names that there are.
        also: Other words for some of them, which are not spelt alike.
    """
    other = (also or {}).get(word.lower())
    names = (other,) if other is not None else nearest(word, known)
    shown = " or ".join(f"'{name}'" for name in names)
    return f"'{word}' (did you mean {shown}?)" if shown else f"'{word}'"


def in_module(path: Path) -> tuple[str, ...]:
    """The functions and classes that a Python file defines, functions first; it is read and not run."""
    try:
        body = ast.parse(path.read_bytes()).body
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return ()
    public = [each for each in body if isinstance(each, ast.FunctionDef | ast.ClassDef) and each.name[0] != "_"]
    return tuple(each.name for each in sorted(public, key=lambda each: isinstance(each, ast.ClassDef)))
