"""What a word of ``only`` or ``protect`` means: a kind of unit, a group by its name, or names of tensors.

``kind:head``, ``group:fc1.weight[0]`` and ``name:head*`` say which of them is meant. A word alone is a kind where the
model has units of it, then the name of a group, then a pattern for names. Where it means more than one thing in a
model, :func:`doubts` says so, and how to write each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from graphprune.analysis.groups import Analysis, Group
from graphprune.analysis.kinds import KINDS
from graphprune.errors import OptionError
from graphprune.suggest import meant, nearest

_AXIS = re.compile(r"(?P<pattern>.+?)(?:\[(?P<axis>\d+)\])?$", re.DOTALL)
_READINGS = ("kind", "group", "name")

BLOCK_KINDS = frozenset({"layer", "block"})
"""Kinds of unit that are no groups."""


@dataclass(frozen=True, slots=True)
class Selector:
    """A word as it was written.

    Attributes:
        text: The whole of it.
        reading: ``kind``, ``group`` or ``name``; empty where it does not say.
        word: What stands behind the reading.
    """

    text: str
    reading: str
    word: str

    def may_be(self, reading: str) -> bool:
        """Whether it can be read so."""
        return self.reading in ("", reading)

    @property
    def kind(self) -> str | None:
        """The kind of unit that it may mean."""
        return self.word if self.may_be("kind") and self.word in KINDS else None

    def names(self, tensor: str, axis: int | None = None) -> bool:
        """Whether it may mean a tensor (with this axis)."""
        if not self.may_be("name"):
            return False
        pattern, wanted = parts(self.word)
        return matches(tensor, pattern) and (wanted is None or axis in (None, wanted))


def read_selector(text: str) -> Selector:
    """Reads ``kind:head``, ``group:NAME``, ``name:PATTERN``, or a word alone.

    Raises:
        OptionError: There is no such kind.
    """
    reading, colon, word = text.partition(":")
    if not colon or reading not in _READINGS:
        return Selector(text, "", text)
    if reading == "kind" and word not in KINDS:
        near = meant(text, [f"kind:{kind}" for kind in nearest(word, KINDS)])
        raise OptionError(f"{near} names no kind of unit; the kinds are {', '.join(KINDS)}")
    return Selector(text, reading, word)


def kind_groups(selector: Selector, analysis: Analysis) -> list[Group]:
    """The groups of the kind that a selector may mean."""
    return [group for group in analysis.groups if group.kind == selector.kind]


def means_blocks(selector: Selector, analysis: Analysis) -> bool:
    """Whether a selector means residual branches or layers as a whole, which are no groups."""
    if selector.kind not in BLOCK_KINDS:
        return False
    named = any(selector.names(value.name) for value in analysis.graph.stored)
    return any(block.kind == selector.kind for block in analysis.blocks) or not named


def selected(selector: Selector, analysis: Analysis) -> list[Group]:
    """The groups that a selector means: the first reading that there is in the model."""
    found = kind_groups(selector, analysis)
    if not found and selector.may_be("group"):
        found = [group for group in analysis.groups if group.name == selector.word]
    if not found:
        found = [group for group in analysis.groups if any(selector.names(s.tensor, s.axis) for s in group.sites)]
    return found


def doubts(analysis: Analysis, option: str, texts: Iterable[str]) -> tuple[str, ...]:
    """A sentence for each word that means more than one thing in this model.

    Args:
        analysis: The analysed model.
        option: ``only`` (a kind goes before names) or ``protect`` (both are kept).
        texts: The words.
    """
    found = []
    for selector in map(read_selector, texts):
        if selector.reading:
            continue
        kind = selector.kind
        named = [value.name for value in analysis.graph.stored if selector.names(value.name)]
        group = next((group for group in analysis.groups if group.name == selector.word), None)
        if kind is not None and named and _has(analysis, kind):
            taken = "as the kind" if option == "only" else "as both, and both stay whole"
            found.append(
                f"'{selector.text}' of {option} is a kind of unit and names '{named[0]}', and was taken {taken}; write "
                f"'kind:{selector.text}' or 'name:{selector.text}' for one of them"
            )
        elif group is not None and option == "only":
            others = [g for g in analysis.groups if any(selector.names(s.tensor, s.axis) for s in g.sites)]
            if len(others) > 1:
                found.append(
                    f"'{selector.text}' of only is a group, and an axis that {len(others)} groups share, and was taken "
                    f"as the group; write 'group:{selector.text}' or 'name:{selector.text}' for one of them"
                )
    return tuple(found)


def _has(analysis: Analysis, kind: str) -> bool:
    units = analysis.blocks if kind in BLOCK_KINDS else analysis.groups
    return any(unit.kind == kind for unit in units)


def parts(word: str) -> tuple[str, int | None]:
    """``fc.weight[0]`` as pattern and axis."""
    found = _AXIS.match(word)
    if found is None or found["axis"] is None:
        return word, None
    return found["pattern"], int(found["axis"])


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern is that of a name, or of a scope that holds it."""
    return any(fnmatchcase(scope, pattern) for scope in scopes(name))


def scopes(name: str) -> list[str]:
    """A name, and the scopes that hold it: ``a``, ``a.b`` for ``a.b.weight``."""
    found = [name]
    for separator in (".", "/"):
        words = name.split(separator)
        found.extend(separator.join(words[:i]) for i in range(1, len(words)))
    return found
