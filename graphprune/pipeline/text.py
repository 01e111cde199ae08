"""Pipelines as text: ``analyze,score{criterion=l1 seed=3},calibrate{file="my stats.npz"}``.

    pipeline = pass ("," pass)*          pass   = name ["{" option ([";" | space] option)* "}"]
    option   = name "=" value ("|" value)*
    value    = bare | '"' ... '"' | "'" ... "'"     (in quotes a backslash takes the next letter as it is)

A bare value ends at a space, ``;``, ``|`` or ``}``. A pass inside of a pass is a pipeline in quotes:
``meet-latency{passes="allocate{latency=0.6},slice-groups"}``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol, TypeVar

from graphprune.errors import OptionError
from graphprune.pipeline.options import Option, options_of
from graphprune.suggest import meant, nearest


class Printed(Protocol):
    """What a pass is to its text: a dataclass with a name. Its fields are its options."""

    @property
    def name(self) -> str:
        """The name in pipelines."""


P = TypeVar("P", bound=Printed)

_BARE = re.compile(r"[^\s;|{}\"'\\,]+")
"""Values that read back without quotes."""
_NAME = re.compile(r"[a-z][a-z0-9-]*")
_OPTION = re.compile(r"[A-Za-z_][\w-]*")
_SHOWN = 60
"""Letters of a pipeline that are shown from where it cannot be read."""


# -- printing ------------------------------------------------------------------------------------------------------


def print_pipeline(passes: Iterable[Printed]) -> str:
    """The text that reads back as these passes."""
    return ",".join(map(print_pass, passes))


def print_pass(each: Printed) -> str:
    """A pass as text, with the options that are not as they are by default.

    Raises:
        TypeError: An option is of a type that no text can say.
    """
    said = []
    for option in options_of(type(each)).values():
        value = getattr(each, option.name)
        if option.required or value != option.default or type(value) is not type(option.default):
            said.append(f"{option.name}={_values(value, option)}")
    return f"{each.name}{{{' '.join(said)}}}" if said else each.name


def _values(value: Any, option: Option) -> str:
    if value is None:
        return "none"
    if option.many:
        return "|".join(_value(each, option) for each in value)
    return _value(value, option)


def _value(value: Any, option: Option) -> str:
    if option.kind == "passes":
        text = print_pipeline(value)
    elif option.kind == "bool":
        text = str(bool(value)).lower()
    else:
        text = str(value)
    lone = option.optional and text == "none"  # a text that would be read as no value
    return text if _BARE.fullmatch(text) and not lone else _quoted(text)


def _quoted(text: str) -> str:
    quote = "'" if '"' in text and "'" not in text else '"'
    return quote + text.replace("\\", "\\\\").replace(quote, f"\\{quote}") + quote


# -- reading -------------------------------------------------------------------------------------------------------


def parse_pipeline(text: str, known: Mapping[str, type[P]]) -> tuple[P, ...]:
    """Reads ``"analyze,score{criterion=l2},allocate{macs=0.5 align=16},slice-groups"``.

    Args:
        text: Names of passes, with options in braces, separated by spaces or semicolons. Several values of one option
            are separated by ``|``; a value with a space, a brace, a bar or a quote stands in quotes.
        known: Passes by name.

    Raises:
        OptionError: A pass or an option is unknown, a value has the wrong type, or the text cannot be read; the message
            says where.
    """
    selection: dict[str, tuple[str, ...]] = {}
    return _selecting(_parse(text, known, selection), selection, known)


def _parse(text: str, known: Mapping[str, type[P]], selection: dict[str, tuple[str, ...]]) -> tuple[P, ...]:
    """Reads a pipeline, and notes what its passes say of the selection."""
    passes: list[P] = []
    reader = _Reader(text)
    reader.skip()
    while not reader.ended:
        name = reader.match(_NAME) or reader.refuse("the name of a pass")
        if name not in known:
            raise OptionError(
                f"unknown pass {meant(name, known)} in pipeline '{text}'; expected one of {', '.join(known)}"
            )
        items = reader.options(name)
        passes.append(_instance(known[name], items, known, selection))
        reader.skip()
        if not reader.ended:
            reader.take(",") or reader.refuse(f"',' and another pass, or the end, after pass '{name}'")
            reader.skip()
    return tuple(passes)


@dataclass(frozen=True)
class _Item:
    """An option as it stands in a text.

    Attributes:
        option: Its name; empty where there is no ``=``.
        values: Its values, without quotes.
        quoted: Whether each was quoted.
        written: The whole, as it was written.
    """

    option: str
    values: tuple[str, ...] = ()
    quoted: tuple[bool, ...] = ()
    written: str = ""

    @property
    def text(self) -> str:
        """All values as one text."""
        return "|".join(self.values)


@dataclass
class _Reader:
    text: str
    at: int = field(default=0)

    @property
    def ended(self) -> bool:
        return self.at >= len(self.text)

    def refuse(self, expected: str, at: int | None = None) -> NoReturn:
        at = self.at if at is None else at
        rest = self.text[at : at + _SHOWN] + ("..." if len(self.text) > at + _SHOWN else "")
        where = f"'{rest}' at letter {at + 1}" if rest else "the end"
        raise OptionError(f"cannot read {where} of pipeline '{self.text}'; expected {expected}")

    def match(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self.text, self.at)
        self.at = found.end() if found else self.at
        return found[0] if found else ""

    def take(self, letter: str) -> bool:
        here = self.text.startswith(letter, self.at)
        self.at += here
        return here

    def skip(self, separators: str = "") -> None:
        while not self.ended and (self.text[self.at].isspace() or self.text[self.at] in separators):
            self.at += 1

    def options(self, name: str) -> list[_Item]:
        self.skip()
        start, items = self.at, []
        if not self.take("{"):
            return []
        self.skip(";")
        while not self.take("}"):
            if self.ended:
                self.refuse(f"'}}' after the options of pass '{name}'", start)
            items.append(self.item())
            self.skip(";")
        return items

    def item(self) -> _Item:
        start = self.at
        option = self.match(_OPTION)
        if not option or not self.take("="):
            self.at = start
            written, _ = self.bare()
            if not written:
                self.refuse("an option, as in 'seed=3'", start)
            return _Item("", written=written)
        values, quoted = [], []
        while True:
            value, was = self.value()
            values.append(value)
            quoted.append(was)
            if not self.take("|"):
                break
        return _Item(option, tuple(values), tuple(quoted), self.text[start : self.at])

    def value(self) -> tuple[str, bool]:
        if self.ended or self.text[self.at] not in "\"'":
            return self.bare()
        start, quote, letters = self.at, self.text[self.at], []
        self.at += 1
        while not self.take(quote):
            self.take("\\")
            if self.ended:
                self.refuse(f"a closing {quote}", start)
            letters.append(self.text[self.at])
            self.at += 1
        if not self.ended and not (self.text[self.at].isspace() or self.text[self.at] in ";|}"):
            self.refuse("a space, '|' or '}' after a value in quotes")
        return "".join(letters), True

    def bare(self) -> tuple[str, bool]:
        start = self.at
        while not self.ended and not (self.text[self.at].isspace() or self.text[self.at] in ";|}"):
            self.at += 1
        return self.text[start : self.at], False


def _instance(
    cls: type[P], items: Sequence[_Item], known: Mapping[str, type[P]], selection: dict[str, tuple[str, ...]]
) -> P:
    options = options_of(cls)
    values: dict[str, Any] = {}
    for item in items:
        option = item.option.replace("-", "_")
        option = getattr(cls, "renamed", {}).get(option, option)
        if option in getattr(cls, "selected", ()):
            _say(selection, option, item, cls)
        elif option in options:
            if option in values:
                raise OptionError(f"option '{option}' of pass '{cls.name}' is given twice; leave one of them out")
            values[option] = _read(item, options[option], cls, known, selection)
        elif "targets" in options and option:  # allocate{macs=0.5}
            values["targets"] = (*values.get("targets", ()), f"{item.option}={item.text}")
        else:
            near = _meant_option(item.written, options)
            names = ", ".join((*options, *sorted(getattr(cls, "selected", ()))))
            raise OptionError(f"unknown option {near} of pass '{cls.name}'; expected one of {names or 'none'}")
    if missing := [option.name for option in options.values() if option.required and option.name not in values]:
        raise OptionError(f"pass '{cls.name}' needs option '{missing[0]}'; write '{cls.name}{{{missing[0]}=...}}'")
    return cls(**values)


def _meant_option(written: str, known: Iterable[str]) -> str:
    """An option as it was written, and behind it the one that may be meant."""
    option, equals, value = written.partition("=")
    near = nearest(option.replace("-", "_"), known, at_most=1)
    return f"'{written}'" + (f" (did you mean '{near[0]}{equals}{value}'?)" if near else "")


def _read(
    item: _Item,
    option: Option,
    cls: type[P],
    known: Mapping[str, type[P]],
    selection: dict[str, tuple[str, ...]],
) -> Any:
    """The value of an option as its type."""
    if option.optional and item.values == ("none",) and not item.quoted[0]:
        return None
    try:
        if option.many:
            empty = item.values == ("",) and not item.quoted[0]
            return () if empty else tuple(_one(value, option.kind, known, selection) for value in item.values)
        return _one(item.text, option.kind, known, selection)
    except (KeyError, ValueError):
        expected = "tuple" if option.many else option.kind
        raise OptionError(
            f"cannot read the value of '{cls.name}{{{item.written}}}'; expected a value of type {expected}"
        ) from None


def _one(value: str, kind: str, known: Mapping[str, type[P]], selection: dict[str, tuple[str, ...]]) -> Any:
    match kind:
        case "bool":
            return {"true": True, "false": False}[value.lower()]
        case "int":
            return int(value)
        case "float":
            return float(value)
        case "passes":
            return _parse(value, known, selection)
        case _:
            return value


# -- texts of before there was a pass of selection -----------------------------------------------------------------


def _say(selection: dict[str, tuple[str, ...]], option: str, item: _Item, cls: type[P]) -> None:
    """Notes what a pass said of the selection when each of them said it: ``allocate{only=head}``."""
    said = selection.get(option)
    if option == "only" and said is not None and said != item.values:
        raise OptionError(
            f"'{cls.name}{{{item.written}}}' selects other groups than a pass before it; say it once: "
            f"'select{{{item.written}}}'"
        )
    selection[option] = tuple(dict.fromkeys((*(said or ()), *item.values)))


def _selecting(
    passes: tuple[P, ...], selection: Mapping[str, tuple[str, ...]], known: Mapping[str, type[P]]
) -> tuple[P, ...]:
    """The passes behind one that selects what some of them said."""
    if not selection:
        return passes
    if any(each.name == "select" for each in passes):
        option, values = next(iter(selection.items()))
        raise OptionError(f"the pipeline says '{option}={'|'.join(values)}' beside 'select'; say it there")
    make: Any = known["select"]
    return (make(**selection), *passes)
