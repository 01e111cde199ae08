"""Kept positions as a plan's file holds them: short where there are many.

A list of more than :data:`PLAIN` positions stands in the file's ``positions``, once however many axes keep the same,
and is named by its place there: ``"@3"``. Each of these is a list in which ``[first, last]`` stands for all from the
one to the other, or a text ``"bits:..."``: in base64, one bit for each position of the axis, one for what is kept, the
first one in the highest bit of the first byte. Of the two, the shorter one is written. Plain lists are read everywhere,
as older plans have them.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphprune.bounds import present
from graphprune.errors import PlanError
from graphprune.planning.reading import rising, whole

SHORT = 4
"""The version of a plan's file in which lists are written in short; without any it has that of the JSON form."""
PLAIN = 256
"""So many positions are written one by one."""
_BITS = "bits:"
_BYTES = 36
"""Bytes that a position takes once it is read."""


@dataclass
class Written:
    """Lists of positions on their way into a file."""

    lists: list[Any] = field(default_factory=list)
    _places: dict[tuple[int, ...], str] = field(default_factory=dict)

    def of(self, index: Sequence[int]) -> Any:
        """What stands for a list of rising positions."""
        if len(index) <= PLAIN:
            return list(index)
        key = tuple(index)
        if key not in self._places:
            self._places[key] = f"@{len(self.lists)}"
            self.lists.append(_shorter(key))
        return self._places[key]

    def data(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """A plan's JSON form with short lists."""
        found = dict(data)
        found["groups"] = [{**group, "kept": self.of(group["kept"])} for group in data["groups"]]
        found["parameters"] = {name: self._axes(axes) for name, axes in data["parameters"].items()}
        if "uses" in data:
            found["uses"] = {
                name: [{**use, "axes": self._axes(use["axes"])} for use in uses] for name, uses in data["uses"].items()
            }
        return {**found, "format": SHORT, "positions": self.lists} if self.lists else found

    def _axes(self, axes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        return {axis: self.of(index) for axis, index in axes.items()}


def _shorter(index: tuple[int, ...]) -> Any:
    array = np.array(index, np.int64)
    breaks = np.flatnonzero(np.diff(array) != 1)
    first, last = array[np.r_[0, breaks + 1]], array[np.r_[breaks, len(array) - 1]]
    ranges = [
        [a, b] if b > a + 1 else a if a == b else [a, b] for a, b in zip(first.tolist(), last.tolist(), strict=True)
    ]
    kept = np.zeros(index[-1] + 1, np.bool_)
    kept[array] = True
    text = _BITS + base64.b64encode(np.packbits(kept).tobytes()).decode("ascii")
    return ranges if len(json.dumps(ranges)) <= len(text) else text


@dataclass
class Reader:
    """Lists of positions out of a file.

    Attributes:
        lists: Its ``positions``.
        left: How many positions may still be read: a short text may stand for any number.
    """

    lists: Sequence[Any]
    left: int = field(default_factory=lambda: present().memory // _BYTES)
    _known: dict[tuple[str, int], tuple[int, ...]] = field(default_factory=dict)

    def rising(self, value: Any, size: int, name: str) -> tuple[int, ...]:
        """The positions that something stands for.

        Raises:
            TypeError, ValueError, IndexError: It stands for none.
            PlanError: They do not rise, reach beyond the size, or are too many.
        """
        if not isinstance(value, str) or value.startswith(_BITS):
            return rising(self._spread(value, size, name), size, name)
        if value[:1] != "@" or not value[1:].isdecimal():
            raise TypeError(f"got {value!r:.40}, expected a list of whole numbers")
        key = value, size
        if key not in self._known:
            self._known[key] = rising(self._spread(self.lists[int(value[1:])], size, name), size, name)
        return self._known[key]

    def _spread(self, value: Any, size: int, name: str) -> list[int]:
        if isinstance(value, str):
            if not value.startswith(_BITS):
                raise TypeError(f"got {value!r:.40}, expected a list of whole numbers")
            try:
                bits = np.frombuffer(base64.b64decode(value[len(_BITS) :], validate=True), np.uint8)
            except binascii.Error as error:
                raise ValueError(f"got {value!r:.40}, expected base64") from error
            self._take(8 * len(bits), name)
            return [int(i) for i in np.flatnonzero(np.unpackbits(bits))]
        found: list[int] = []
        for each in value:
            if isinstance(each, list) and len(each) == 2 and all(type(end) is int for end in each):
                first, last = each
                if not 0 <= first <= last < size:
                    raise PlanError(
                        f"the kept indices of '{name}' are not a rising sequence within 0..{size - 1}; make the plan "
                        "anew"
                    )
                self._take(last - first, name)
                found.extend(range(first, last + 1))
            else:
                found.append(whole(each))
        return found

    def _take(self, n: int, name: str) -> None:
        self.left -= n
        if self.left < 0:
            raise PlanError(
                f"the plan keeps more positions of '{name}' and others than there is memory for; allow more with "
                "--bound memory="
            )


def dumped(data: Mapping[str, Any]) -> str:
    """A plan's JSON form as text, one line for each group, tensor and list of positions."""
    lines = []
    for key, value in data.items():
        held = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
        if key in ("groups", "parameters", "uses", "shapes", "blocks", "positions") and value:
            opened, closed = "{}" if isinstance(value, Mapping) else "[]"
            inner = ",\n  ".join(
                f"{json.dumps(name)}: {json.dumps(each)}" if isinstance(value, Mapping) else json.dumps(each)
                for name, each in held
            )
            lines.append(f" {json.dumps(key)}: {opened}\n  {inner}\n {closed}")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
