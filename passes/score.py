"""Score the units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from graphprune.errors import ModelError
from graphprune.importance import Evidence, block_criterion, criterion
from graphprune.importance.criteria import normalized
from graphprune.pipeline import keys
from graphprune.pipeline.passes import Pass
from graphprune.pipeline.state import State
from graphprune.statistics.distributed import averaged

_LOOKED_AT = {
    "weights": frozenset[str](),
    "runs": frozenset({keys.CALIBRATION}),
    "diagonal": frozenset({keys.CALIBRATION, keys.STATISTICS}),
    "products": frozenset({keys.CALIBRATION, keys.STATISTICS, keys.PRODUCTS}),
}
"""What has to be there for what a criterion says that it needs."""


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

    may_need: ClassVar[Mapping[str, str]] = {
        keys.CALIBRATION: "criteria that run the model, and criteria of blocks that do",
        keys.STATISTICS: "criteria of activations",
        keys.PRODUCTS: "criterion=obs",
    }

    @property
    def needs(self) -> frozenset[str]:
        """What the criteria look at."""
        found = {keys.ANALYSIS, *_LOOKED_AT[criterion(self.criterion).needs]}
        return frozenset(found | ({keys.CALIBRATION} if self._runs_blocks else set()))

    @property
    def gives(self) -> frozenset[str]:
        """Scores."""
        return frozenset({keys.SCORES, *([keys.BLOCK_SCORES] if self.blocks else [])})

    @property
    def before(self) -> frozenset[str]:
        """It scores the units of the whole model."""
        return frozenset({keys.SLICED, keys.SHALLOWER})

    @property
    def _runs_blocks(self) -> bool:
        return self.blocks in ("bi", "ablation")

    def check(self) -> None:
        """Refuses unknown criteria."""
        criterion(self.criterion)
        if self.blocks:
            block_criterion(self.blocks)

    def subject(self, key: str) -> str:
        """The criterion that needs it."""
        if key == keys.ANALYSIS:
            return super().subject(key)
        if key == keys.CALIBRATION and self._runs_blocks:
            return f"block criterion '{self.blocks}'"
        return f"criterion '{self.criterion}'"

    def run(self, state: State) -> State:
        """The state with scores.

        Raises:
            ModelError: A weight is no number.
        """
        analysis = state.analyzed(self.name)
        found = criterion(self.criterion)
        evidence = Evidence(
            analysis, state.host.read, self.seed, state.statistics, state.host, state.batches, state.asked
        )
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
