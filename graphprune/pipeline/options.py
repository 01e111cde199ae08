"""The options of passes as data: names, types and defaults from the dataclass, one line each from its docstring."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from dataclasses import dataclass
from typing import Any

_PLAIN = (bool, int, float, str)


@dataclass(frozen=True)
class Option:
    """One option of a pass.

    Attributes:
        name: As in Python; in texts ``-`` may stand for ``_``.
        kind: The type of its value, or of one of its values: ``bool``, ``int``, ``float``, ``str``, or ``passes``
            (a pipeline).
        many: Whether it takes any number of values, with ``|`` between them in a text.
        optional: Whether ``none`` is a value.
        default: What it is where nothing is said; ``dataclasses.MISSING`` where something has to be.
        doc: What it is for, in one sentence.
    """

    name: str
    kind: str
    many: bool
    optional: bool
    default: Any
    doc: str = ""

    @property
    def required(self) -> bool:
        """Whether something has to be said."""
        return self.default is dataclasses.MISSING

    @property
    def type(self) -> str:
        """The type for a reader: ``int``, ``float, ...``, ``passes``."""
        return self.kind + (", ..." if self.many else "") + (" or none" if self.optional else "")


def options_of(cls: type[Any]) -> dict[str, Option]:
    """The options of a dataclass by name, in the order of its fields.

    Raises:
        TypeError: A field is of a type that no text can be read as; its name is said.
    """
    try:
        hints = typing.get_type_hints(cls)
    except NameError:  # a name that its module imports for type checkers only
        hints = {}
    docs = _docs(cls)
    found = {}
    for field in dataclasses.fields(cls):
        default = field.default
        if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        hint = hints.get(field.name, type(default))
        kind, many, optional = _kind(hint, default)
        if not kind:
            raise TypeError(f"option '{field.name}' of pass '{cls.name}' is of type '{hint}', which no text can say")
        found[field.name] = Option(field.name, kind, many, optional, default, docs.get(field.name, ""))
    return found


def _kind(hint: Any, default: object) -> tuple[str, bool, bool]:
    """Kind, many and optional of a type; an empty kind where it is none of ours."""
    optional = False
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        given = [each for each in typing.get_args(hint) if each is not type(None)]
        if len(given) != 1:
            return "", False, False
        (hint,), optional = given, True
    if hint is tuple:  # a default, without a type beside it
        values = default if isinstance(default, tuple) else ()
        inner = type(values[0]) if values else str
        return (inner.__name__ if inner in _PLAIN else ""), True, optional
    if typing.get_origin(hint) is tuple:
        inside = typing.get_args(hint)
        if len(inside) != 2 or inside[1] is not Ellipsis:
            return "", False, False
        if _is_pass(inside[0]):
            return "passes", False, optional
        if typing.get_origin(inside[0]) is tuple and _is_pass(typing.get_args(inside[0])[0]):
            return "passes", True, optional
        return (inside[0].__name__ if inside[0] in _PLAIN else ""), True, optional
    return (hint.__name__ if hint in _PLAIN else ""), False, optional


def _is_pass(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def summary(cls: type[Any]) -> str:
    """The first sentence of a class's docstring."""
    return inspect.cleandoc(cls.__doc__ or "").partition("\n")[0]


def _docs(cls: type[Any]) -> dict[str, str]:
    """The lines of ``Attributes:`` in the docstrings of a class and of the dataclasses that it is made of, by name."""
    found: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        if dataclasses.is_dataclass(each):
            found.update(_entries(inspect.cleandoc(each.__doc__ or "")))
    return found


def _entries(text: str) -> dict[str, str]:
    _, _, text = text.partition("Attributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if match := re.match(r"    (\w+): (.*)", line):
            name, found[match[1]] = match[1], match[2]
        elif name and line.startswith("        "):
            found[name] += " " + line.strip()
        elif line.strip() and not line.startswith(" "):
            break  # the next section
    return found
