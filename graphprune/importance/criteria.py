"""The criteria by name, and what a criterion is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from graphprune.analysis.groups import Group
from graphprune.errors import OptionError
from graphprune.importance.magnitude import l1, l2
from graphprune.importance.random import random_scores

Read: TypeAlias = Callable[[str], NDArray[Any]]
Scores: TypeAlias = Mapping[str, NDArray[np.float64]]
"""By the name of the group: one score for each unit."""


class Criterion(Protocol):
    """A function that scores the units of groups."""

    def __call__(self, groups: Iterable[Group], read: Read, seed: int) -> Scores:
        """Scores every unit.

        Args:
            groups: The groups.
            read: Gives the values of a stored tensor by name.
            seed: For criteria that draw random numbers.
        """


CRITERIA: dict[str, Criterion] = {
    "l1": l1,
    "l2": l2,
    "random": random_scores,
}
"""The built-in criteria; :func:`register` adds to them, and so does the entry point group ``graphprune.criteria``."""


def register(name: str, criterion: Criterion) -> None:
    """Adds a criterion of the user's, for ``--criterion NAME`` and ``criterion="name"``."""
    CRITERIA[name] = criterion


def criterion(name: str) -> Criterion:
    """The criterion of a name.

    Raises:
        OptionError: There is none.
    """
    _load_plugins()
    if name not in CRITERIA:
        raise OptionError(f"unknown criterion '{name}'; expected one of {', '.join(sorted(CRITERIA))}")
    return CRITERIA[name]


def normalized(scores: Scores) -> dict[str, NDArray[np.float64]]:
    """Each group's scores divided by their mean, so that groups can be ranked together (methods.md §1.3)."""
    return {name: values / max(float(values.mean()), 1e-30) for name, values in scores.items()}


@cache
def _load_plugins() -> None:
    for entry in entry_points(group="graphprune.criteria"):
        CRITERIA.setdefault(entry.name, entry.load())
