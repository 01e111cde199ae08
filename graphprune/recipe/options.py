"""Options as fields of frozen dataclasses: each name, type, default and text is written once, there.

The text of an option stands in the docstring of its class (``Attributes:``). Its first sentence is what the command
line shows; the whole of it is what Python users read.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from numbers import Integral, Real
from typing import Any, TypeVar, get_type_hints

from graphprune.errors import OptionError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What the command line says of an option beside its text.

    Attributes:
        keyword: What it is called in Python where that is not the name of the field.
        name: What it is called on the command line where that is not the keyword: ``remove-block``.
        metavar: What stands for its value.
        choices: The values that there are; the help lists them behind the first sentence.
        unset: What happens where it is not given, if no value says that.
        flags: Options without a value, for some values: name -> (value, help).
        about: What all of these flags are about: ``the proof``.
    """

    keyword: str = ""
    name: str = ""
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    unset: str = ""
    flags: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    about: str = ""


def option(default: T, **shown: Any) -> T:
    """A field of a dataclass of options, with its default and what :class:`Shown` holds."""
    made: Any = field(default=default, metadata={"shown": Shown(**shown)})
    return made  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        keyword: What it is called in Python.
        section: The part of the recipe that holds it; empty for the recipe itself.
        field: The field of that part.
        kind: Its type.
        default: Its default.
        text: What it is, in full.
        shown: What the command line says of it.
    """

    keyword: str
    section: str
    field: str
    kind: Any
    default: Any
    text: str
    shown: Shown

    @property
    def repeatable(self) -> bool:
        """Whether there may be several values."""
        return bool(self.kind == tuple[str, ...])

    @property
    def name(self) -> str:
        """What it is called on the command line, without dashes before it."""
        return self.shown.name or self.keyword.replace("_", "-")

    def help(self, unset: str = "") -> str:
        """One to three sentences for the command line: what it is, which values there are, what its default is.

        Args:
            unset: What happens where it is not given, if that is not what stands with the option.
        """
        first = plain(first_sentence(self.text))
        if self.shown.choices:
            first = f"{first.removesuffix('.')}: {', '.join(self.shown.choices)}."
        if not unset:
            plainly = self.default is None or isinstance(self.default, bool | tuple)
            unset = self.shown.unset or ("" if plainly else f"{self.default}")
        sentences = (first, f"Default: {unset}." if unset else "", "Repeatable." if self.repeatable else "")
        return " ".join(each for each in sentences if each)


def options_in(cls: type[Any], section: str = "") -> tuple[Option, ...]:
    """The options that are fields of a dataclass; fields that were not made by :func:`option` are none.

    Where it has a ``prefix``, its plain fields are options, too, called by that and their names: those of a dataclass
    that knows nothing of recipes.
    """
    key: Any = cls
    return _options_in(key, section)


@cache
def _options_in(cls: Any, section: str) -> tuple[Option, ...]:
    hints, texts = get_type_hints(cls), attributes(cls)
    return tuple(
        Option(shown.keyword or each.name, section, each.name, hints[each.name], default_of(each), text, shown)
        for each in fields(cls)
        if (shown := each.metadata.get("shown") or _plain(cls, each)) is not None
        for text in [texts.get(each.name, "")]
    )


def _plain(cls: Any, each: Field[Any]) -> Shown | None:
    """What is shown of a field that was not made by :func:`option`."""
    prefix = getattr(cls, "prefix", None)
    return None if prefix is None else Shown(keyword=prefix + each.name, **each.metadata)


def default_of(each: Field[Any]) -> Any:
    """The default of a field."""
    return each.default if each.default is not MISSING else None


_ENTRY = re.compile(r"^ {4}(\w+): (.*(?:\n {8}.*|\n(?= {8}))*)", re.MULTILINE)


@cache
def attributes(cls: Any) -> Mapping[str, str]:
    """The texts of the fields of a class, out of ``Attributes:`` of its docstring and those of its bases, in one line.

    Example:
        >>> class Net:
        ...     '''A net.
        ...
        ...     Attributes:
        ...         width: How wide
        ...             it is.
        ...     '''
        >>> dict(attributes(Net))
        {'width': 'How wide it is.'}
    """
    found: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        _, _, rest = inspect.cleandoc(vars(each).get("__doc__") or "").partition("Attributes:\n")
        found.update((name, " ".join(text.split())) for name, text in _ENTRY.findall(rest))
    return found


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence."""
    head, stop, _ = text.partition(". ")
    return head + stop.strip()


def plain(text: str) -> str:
    """Without the marks of reStructuredText."""
    return re.sub(r":\w+:`~?([^`]+)`", r"\1", text).replace("``", "")


_LARGE = 1 << 62
"""Numbers from here on are none that an option can mean, and too large for arrays."""


def checked(name: str, value: Any, kind: Any) -> Any:
    """A value as the type of its option: a text is a tuple of one where several may be given, numbers may be texts.

    Raises:
        OptionError: It is of another type.
    """
    number = isinstance(value, Real) and not isinstance(value, bool)
    if kind in (int, float) and number and -_LARGE < value < _LARGE and (kind is float or isinstance(value, Integral)):
        return kind(value)
    elif kind == tuple[str, ...] and (isinstance(value, str) or not isinstance(value, Mapping)):
        values = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else None
        if values is not None and all(isinstance(each, str) for each in values):
            return values
    elif kind in (str, str | None):
        if isinstance(value, str) or (value is None and kind is not str):
            return value
        if number:
            return str(value)
    elif kind not in (int, float, tuple[str, ...]):
        return value  # its section checks it
    expected = {int: "a whole number", float: "a number", tuple[str, ...]: "a text, or several"}.get(kind, "a text")
    raise OptionError(f"{name} is {value!r:.60}; expected {expected}")
