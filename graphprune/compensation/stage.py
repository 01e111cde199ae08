"""What is refitted in one step of the walk, and what a step has to offer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from graphprune.analysis.groups import Analysis
from graphprune.brief import brief
from graphprune.hosts.host import Arrays, Carried, Host
from graphprune.ir.dims import Factor, Index

Positions = NDArray[np.int64] | None
"""Which positions of a value count; ``None``: all."""


@dataclass(frozen=True)
class Compensated:
    """What was refitted at one consumer.

    Attributes:
        node: The consumer.
        weight: Its weight.
        bias: Its bias; ``None`` where it has none and got none.
        before: Squared error of its output before, relative to the output's variance.
        after: The same after the refit.
        others: Tensors that changed with them.
    """

    __repr__ = brief

    node: str
    weight: str
    bias: str | None
    before: float
    after: float
    others: tuple[str, ...] = ()


class Counter(Protocol):
    """Sums up the normal equations of one stage."""

    def add(self, values: Carried, wanted: Arrays, masks: Mapping[str, Positions]) -> None:
        """Counts one batch in.

        Args:
            values: What the pruned model has come to.
            wanted: The targets in the dense model.
            masks: For each node which positions count.
        """

    def solved(self, method: str, ridges: Sequence[float]) -> tuple[list[Compensated], dict[str, NDArray[np.float64]]]:
        """What was done, and the new values of stored tensors."""


class Stage(Protocol):
    """What is refitted together, in one step."""

    @property
    def start(self) -> str:
        """The value to which the pruned model goes before: nothing that is refitted is behind it."""

    @property
    def read(self) -> list[str]:
        """What is looked at in the pruned model."""

    @property
    def targets(self) -> list[str]:
        """What should be restored."""

    @property
    def places(self) -> dict[str, tuple[str, int]]:
        """For each node the value whose positions are counted, and its axis that is not one of the positions."""

    def counter(
        self, analysis: Analysis, kept: Mapping[Factor, Index], pruned: Host, n_batches: int, rng: np.random.Generator
    ) -> Counter:
        """Sums for this stage, of nothing yet.

        Args:
            analysis: Of the dense model.
            kept: The units that stay.
            pruned: The sliced model, refitted up to here.
            n_batches: How many batches will come.
            rng: Chooses positions where they are many.
        """
