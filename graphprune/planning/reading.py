"""Reading plans and profiles that strangers may have written: values of the types that are written, or none."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import inf
from typing import Any

from graphprune.errors import PlanError

MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)
"""What taking malformed data apart raises."""


def whole(value: Any) -> int:
    """A whole number: no text, no truth value, no fraction.

    Raises:
        TypeError: It is something else.
    """
    if type(value) is not int:
        raise TypeError(f"got {value!r:.40}, expected a whole number")
    return value


def number(value: Any) -> float:
    """A finite number of 0 or more: no text, no truth value.

    Raises:
        TypeError, ValueError, OverflowError: It is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"got {value!r:.40}, expected a number")
    if not 0 <= float(value) < inf:
        raise ValueError(f"got {value!r:.40}, expected a finite number of 0 or more")
    return float(value)


def texts(value: Any) -> tuple[str, ...]:
    """A list of texts.

    Raises:
        TypeError: It is something else.
    """
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise TypeError(f"got {value!r:.40}, expected a list of texts")
    return tuple(value)


def mapping(value: Any) -> dict[str, Any]:
    """An object with names.

    Raises:
        TypeError: It is something else.
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"got {value!r:.40}, expected an object")
    return dict(value)


def rising(values: Any, size: int, name: str) -> tuple[int, ...]:
    """Indices that are kept.

    Raises:
        TypeError: They are no list of whole numbers.
        PlanError: They do not rise, or reach beyond the size.
    """
    index = tuple(map(whole, values))
    if not index or any(b <= a for a, b in pairwise(index)) or index[0] < 0 or index[-1] >= size:
        raise PlanError(
            f"the kept indices of '{name}' are not a rising sequence within 0..{size - 1}; make the plan anew"
        )
    return index
