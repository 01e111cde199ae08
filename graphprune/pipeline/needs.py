"""What passes need of each other, and the static check that a pipeline gives it: before a model is opened.

Each pass says by keys (:mod:`graphprune.pipeline.keys`) what it needs, what is there after it (``gives``), what is true
no longer (``spoils``: what was measured on units that were numbered anew) and what must not be there yet (``before``).
The check walks over the passes in order and holds the set of keys that are there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from graphprune.errors import OptionError
from graphprune.pipeline.keys import ANYTHING, KEYS, PLAN, SLICED, Key


class Needing(Protocol):
    """What the check looks at of a :class:`graphprune.pipeline.passes.Pass`, where each of them is said."""

    @property
    def name(self) -> str:
        """The name in messages."""

    @property
    def needs(self) -> frozenset[str]:
        """What has to be there."""

    @property
    def gives(self) -> frozenset[str]:
        """What is there behind it."""

    @property
    def uses(self) -> frozenset[str]:
        """What it looks at if it is there."""

    @property
    def spoils(self) -> frozenset[str]:
        """What is there no longer."""

    @property
    def before(self) -> frozenset[str]:
        """What must not be there yet."""

    @property
    def adds(self) -> frozenset[str]:
        """What is added to what is there."""

    @property
    def asks(self) -> frozenset[str]:
        """What has to be there behind it, in the end."""

    @property
    def lends(self) -> frozenset[str]:
        """What passes inside of it have besides."""

    @property
    def inside(self) -> Sequence[Sequence[Needing]]:
        """The pipelines inside of it."""

    def check(self) -> None:
        """Refuses wrong options."""

    def lacks(self, key: str) -> str:
        """What to say where a key is not there."""

    def comes_late(self, key: str) -> str:
        """What to say where a key is there already."""


def check(passes: Sequence[Needing], have: Iterable[str] = (), *, complete: bool = False) -> frozenset[str]:
    """Refuses a pipeline that cannot work, before anything runs.

    Args:
        passes: The pipeline; passes inside of others are checked where they run.
        have: What is there before: ``calibration``, ``profile``, ``evaluation``; of a partial pipeline what has run.
        complete: Whether the passes are all that runs, so that a plan has to be made and carried out.

    Returns:
        The keys that are there behind the last pass.

    Raises:
        OptionError: Something is missing, comes too late, or is made twice and used once.
    """
    for each in _all(passes):
        each.check()
    there = set(have)
    unused: dict[str, Needing] = {}
    for each in passes:
        _check_inside(each, there)
        if not there & ANYTHING:
            _require(each, there)
        for key in sorted(each.before & there, key=_rank):
            raise OptionError(each.comes_late(key))
        if each.uses & ANYTHING:
            unused.clear()
        for key in each.uses:
            unused.pop(key, None)
        for key in each.gives:
            if key in unused and key not in each.adds:
                raise OptionError(
                    f"'{unused[key].name}' and '{each.name}' both make {_phrase(key)}, and nothing between them uses "
                    f"what the first makes; leave one of them out"
                )
        there = there - each.spoils | each.gives
        unused = {key: by for key, by in unused.items() if key not in each.spoils}
        unused.update((key, each) for key in each.gives - ANYTHING)
    if complete and not there & ANYTHING:
        _require_result(passes, there)
    return frozenset(there)


def _all(passes: Iterable[Needing]) -> Iterator[Needing]:
    for each in passes:
        yield each
        for inside in each.inside:
            yield from _all(inside)


def _require(each: Needing, there: set[str]) -> None:
    for key in sorted(each.needs - there, key=_rank):
        raise OptionError(each.lacks(key))


def _check_inside(each: Needing, there: set[str]) -> None:
    """Checks the pipelines inside of a pass, each from what is there before it."""
    for inside in each.inside:
        try:
            check(inside, there | each.lends)
        except OptionError as error:
            raise OptionError(f"{error} (inside of '{each.name}')") from None


def _require_result(passes: Sequence[Needing], there: set[str]) -> None:
    if PLAN not in there:
        raise OptionError("the pipeline made no plan; it needs 'analyze', 'score' and 'allocate'")
    for each, unanswered in asked(passes):
        for key in sorted(unanswered, key=_rank):
            if key == SLICED:
                raise OptionError(
                    "the pipeline plans a cut and does not make it; put 'slice-groups' after 'allocate' in it"
                )
            raise OptionError(
                f"pass '{each.name}' asks for {_phrase(key)}, and no pass behind it gives that; put "
                f"'{KEYS[key].giver if key in KEYS else key}' after it in the pipeline"
            )


def asked(passes: Sequence[Needing]) -> Iterator[tuple[Needing, frozenset[str]]]:
    """Passes in a row, each with what it asks for that none behind it gives."""
    for i, each in enumerate(passes):
        behind = given(passes[i + 1 :])
        yield each, frozenset() if behind & ANYTHING else each.asks - behind


def needed(passes: Sequence[Needing]) -> frozenset[str]:
    """What passes in a row need that none of them gives to those behind it."""
    there: frozenset[str] = frozenset()
    found: frozenset[str] = frozenset()
    for each in passes:
        if not there & ANYTHING:
            found |= each.needs - there
        there = there - each.spoils | each.gives
    return found


def late(passes: Sequence[Needing]) -> frozenset[str]:
    """What must not be there before passes in a row."""
    there: frozenset[str] = frozenset()
    found: frozenset[str] = frozenset()
    for each in passes:
        found |= each.before - there
        there |= each.gives
    return found


def given(passes: Iterable[Needing]) -> frozenset[str]:
    """What passes in a row give."""
    return frozenset().union(*(each.gives for each in passes))


def lacking(subject: str, key: str, by: str) -> str:
    """The sentence about what a pass lacks.

    Args:
        subject: Who needs it: the pass, or an option of its.
        key: What.
        by: The name of the pass.
    """
    known = KEYS.get(key, Key(f"'{key}'"))
    if known.giver:
        place = "it" if f"'{by}'" in subject else f"'{by}'"
        return f"{subject} needs {known.phrase}; put '{known.giver}' before {place} in the pipeline"
    return f"{subject} needs {known.phrase}; {known.advice or 'no pass before it gives that'}"


def _phrase(key: str) -> str:
    return KEYS[key].phrase if key in KEYS else f"'{key}'"


def _rank(key: str) -> tuple[int, str]:
    """What comes first in a pipeline is asked for first."""
    names = list(KEYS)
    return (names.index(key) if key in names else len(names)), key
