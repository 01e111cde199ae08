"""Score the units."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from graphprune.errors import ModelError
from graphprune.importance import Evidence, block_criterion, criterion
from graphprune.importance.criteria import normalized
from graphprune.pipeline.passes import Pass
from graphprune.pipeline.state import State
from graphprune.statistics.distributed import averaged


@dataclass(frozen=True)
class Score(Pass):
    """Scores every unit of every group, normalised to a mean of one in each group unless scores are errors.

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
        analysis = state.analyzed(self.name)
        found = criterion(self.criterion)
        evidence = Evidence(analysis, state.host.read, self.seed, state.statistics, state.host, state.batches)
        scores = {name: averaged(each) for name, each in found.score(evidence).items()}
        for group in analysis.groups:
            if not np.isfinite(scores[group.name]).all():
                raise ModelError(
                    f"criterion '{self.criterion}' gives scores that are no numbers for group '{group.name}'; "
                    f"check '{group.tensors[0]}' and the other weights of the group for NaN and infinity"
                )
        if self.blocks:
            found_blocks = block_criterion(self.blocks)(evidence)
            state = replace(state, block_scores={name: float(averaged(each)) for name, each in found_blocks.items()})
        return replace(state, scores=scores if found.absolute else normalized(scores))
