"""Units that a user wants to stay or to go, as they are written: ``layers.3.self_attn=0,5``, ``neuron=count:48``.

A demand has a name (:mod:`graphprune.planning.demanded` says of which groups) and indices of units, or a number of
them. The written form is the same in recipes, in plans, in pipelines and on the command line; mappings and files are
turned into it when they are given, so that nothing depends on a file later.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from numbers import Integral
from pathlib import Path
from typing import Any

from graphprune.analysis.kinds import KINDS
from graphprune.errors import OptionError
from graphprune.files import read_json

COUNT = "count:"
"""What stands before a number of units that importance chooses."""
_FILE = re.compile(r"@(?P<path>.+?)(?::(?P<first>\d+))?$", re.DOTALL)
_RANGE = re.compile(r"(\d+)(?:-(\d+))?$")
_READINGS = ("group", "name", *KINDS)
_MOST = 1 << 24
"""No group has so many units."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a user wants of some groups.

    Attributes:
        option: ``keep`` or ``remove``.
        text: As it was written.
        reading: What stands before the name: ``kind`` (all groups of a kind), ``group``, ``name``, a kind of unit
            (``head:layers.3``), or nothing.
        word: The name.
        count: How many units; ``None`` where they are listed.
        units: Their indices, without repetition.
        source: What it follows from, where a user has not written it.
    """

    option: str
    text: str
    reading: str
    word: str
    count: int | None
    units: tuple[int, ...] = ()
    source: str = ""

    @property
    def title(self) -> str:
        """What it is called in messages."""
        return self.source or f"{self.option} {self.text}"


def written(option: str, given: Any) -> tuple[str, ...]:
    """Demands as texts, from texts, a mapping of names to indices or numbers, or the path of a file (``@FILE``).

    Args:
        option: ``keep`` or ``remove``.
        given: Texts as of the command line; or ``{"layers.3.mlp": [0, 5], "head": 6}``, where a list holds indices of
            units and a whole number says how many; or a path. ``@FILE:48`` takes the first 48 of each list of a file:
            a ranking.

    Raises:
        OptionError: It cannot be read.
    """
    if isinstance(given, Mapping):
        return tuple(_text(option, name, units) for name, units in given.items())
    if isinstance(given, Path):
        return written(option, f"@{given}")
    if isinstance(given, str):
        given = (given,)
    if not isinstance(given, Iterable):
        raise OptionError(f"{option} is {given!r:.60}; expected texts like 'layers.3.mlp=0,5', or a mapping of names")
    found: list[str] = []
    for each in given:
        if isinstance(each, Path):
            found.extend(written(option, each))
        elif not isinstance(each, str):
            raise OptionError(f"{option} holds {each!r:.60}; expected a text like 'layers.3.mlp=0,5'")
        elif each.startswith("@"):
            found.extend(_of_file(option, each))
        else:
            read = read_demand(option, each)
            prefix = f"{read.reading}:{read.word}" if read.reading else read.word
            found.append(_text(option, prefix, list(read.units) if read.count is None else read.count))
    return tuple(found)


def _of_file(option: str, text: str) -> Iterator[str]:
    """The demands of a JSON file: an object of names and lists (or numbers)."""
    match = _FILE.match(text)
    if match is None:
        raise OptionError(f"{option} '@' names no file; expected one like '@experts.json'")
    data = read_json(Path(match["path"]), OptionError, option, "give an object of names and lists of indices")
    for name, units in data.items():
        if match["first"] is not None:
            if not isinstance(units, list) or len(units) < int(match["first"]):
                got = f"{len(units)} entries" if isinstance(units, list) else f"{units!r:.40}"
                raise OptionError(
                    f"{option} '{text}' takes the first {match['first']} of each list, and '{name}' has {got}; take "
                    "fewer, or give longer lists"
                )
            units = units[: int(match["first"])]
        yield _text(option, name, units)


def _text(option: str, name: Any, units: Any) -> str:
    """A demand in its written form: indices rise, runs of them are ranges."""
    if not isinstance(name, str) or not name:
        raise OptionError(f"{option} names {name!r:.60}; expected the name of a module, a group or a kind")
    if name.startswith("@"):  # no file
        name = f"name:{name}"
    if isinstance(units, str):
        return written(option, f"{name}={units}")[0]
    if isinstance(units, Integral) and not isinstance(units, bool):
        if not 0 < int(units) < _MOST:
            raise OptionError(f"{option} of '{name}' is {units} units; expected a number of 1 or more, or a list")
        return f"{name}={COUNT}{int(units)}"
    listed = list(units) if isinstance(units, Iterable) and not isinstance(units, Mapping) else None
    if listed is None or not all(isinstance(u, Integral) and not isinstance(u, bool) for u in listed):
        raise OptionError(
            f"{option} of '{name}' is {units!r:.60}; expected a list of indices like [0, 5], or a number of units"
        )
    rising = sorted({int(u) for u in listed})
    if not rising or rising[0] < 0 or rising[-1] >= _MOST:
        what = "no unit" if not rising else f"unit {rising[0] if rising[0] < 0 else rising[-1]}"
        raise OptionError(f"{option} of '{name}' lists {what}; expected indices of units, from 0")
    if len(rising) < len(listed):
        twice = next(u for i, u in enumerate(listed) if u in listed[:i])
        raise OptionError(f"{option} of '{name}' lists unit {twice} twice; list each once")
    runs = [[u for _, u in run] for _, run in groupby(enumerate(rising), lambda pair: pair[1] - pair[0])]
    return f"{name}={','.join(str(run[0]) if len(run) == 1 else f'{run[0]}-{run[-1]}' for run in runs)}"


def read_demand(option: str, text: str) -> Demand:
    """Reads ``NAME=0,5``, ``NAME=0-7,12``, ``KIND:NAME=count:6``, ``kind:head=count:6``.

    Raises:
        OptionError: It cannot be read.
    """
    name, equals, value = text.rpartition("=")
    if not equals or not name or not value:
        raise OptionError(
            f"cannot read {option} '{text}'; expected a name and units, like 'layers.3.self_attn=0,5', "
            f"'head={COUNT}6' or '@file.json'"
        )
    reading, colon, word = name.partition(":")
    if not colon or reading not in ("kind", *_READINGS) or not word:
        reading, word = "", name
    if value.startswith(COUNT):
        number = value.removeprefix(COUNT)
        if not number.isdecimal() or not 0 < int(number) < _MOST:
            raise OptionError(f"cannot read the number of {option} '{text}'; expected one like 'head={COUNT}6'")
        return Demand(option, text, reading, word, int(number))
    units: list[int] = []
    for part in value.split(","):
        match = _RANGE.match(part.strip())
        if match is None or int(match[2] or match[1]) >= _MOST or int(match[2] or match[1]) < int(match[1]):
            raise OptionError(
                f"cannot read '{part.strip()}' of {option} '{text}'; expected indices like '0,5' or '0-7,12', or "
                f"'{COUNT}6' for so many units"
            )
        units.extend(range(int(match[1]), int(match[2] or match[1]) + 1))
    return Demand(option, text, reading, word, None, tuple(dict.fromkeys(units)))
