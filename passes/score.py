"""Score the units."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from graphprune.errors import ModelError
from graphprune.importance import criterion
from graphprune.importance.blocks import block_criterion
from graphprune.importance.criteria import normalized
from graphprune.pipeline.passes import Pass
from graphprune.pipeline.state import State


@dataclass(frozen=True)
class Score(Pass):
    """Scores every unit of every group, normalised to a mean of one in each group.

    Attributes:
        criterion: The name of the criterion.
        seed: For criteria that draw random numbers.
        blocks: The criterion of residual branches and layers; empty where none may go.
    """

    name: ClassVar[str] = "score"
    criterion: str = "l2"
    seed: int = 0
    blocks: str = ""

    def run(self, state: State) -> State:
        """The state with scores.

        Raises:
            ModelError: A weight is no number.
        """
        groups = state.analyzed(self.name).groups
        scores = criterion(self.criterion)(groups, state.host.read, self.seed)
        for group in groups:
            if not np.isfinite(scores[group.name]).all():
                raise ModelError(
                    f"criterion '{self.criterion}' gives scores that are no numbers for group '{group.name}'; "
                    f"check '{group.tensors[0]}' and the other weights of the group for NaN and infinity"
                )
        if self.blocks:
            blocks = state.analyzed(self.name).blocks
            state = replace(state, block_scores=block_criterion(self.blocks)(blocks, state.host.read, self.seed))
        return replace(state, scores=normalized(scores))
