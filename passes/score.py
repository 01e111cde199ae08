"""Score the units."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from graphprune.importance import criterion
from graphprune.importance.criteria import normalized
from graphprune.pipeline.passes import Pass
from graphprune.pipeline.state import State


@dataclass(frozen=True)
class Score(Pass):
    """Scores every unit of every group, normalised to a mean of one in each group.

    Attributes:
        criterion: The name of the criterion.
        seed: For criteria that draw random numbers.
    """

    name: ClassVar[str] = "score"
    criterion: str = "l2"
    seed: int = 0

    def run(self, state: State) -> State:
        """The state with scores."""
        groups = state.analyzed(self.name).groups
        return replace(state, scores=normalized(criterion(self.criterion)(groups, state.host.read, self.seed)))
