"""LLM-Pruner (Ma et al. 2023, arXiv 2305.11627): units go once by ``taylor-elem``, then low-rank additions recover.

The score of a unit is ``Σ |w · g|`` over all its elements, on the calibration inputs (criterion ``taylor-elem``); the
recipe ``llm-pruner`` has it with ``uniform`` shares.

Proof: that of the criterion, and of additions (tests/training).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphprune.errors import OptionError
from graphprune.training.adapters import LowRank
from graphprune.training.method import Loop

CRITERION = "taylor-elem"


@dataclass(kw_only=True, repr=False)
class LlmPruner(LowRank):
    """Units go once, by first-order importance of their elements."""

    name: ClassVar[str] = "llm-pruner"

    def begin(self, loop: Loop) -> None:
        """Refuses another criterion, and removes what has to go."""
        if loop.chooser.recipe.score.criterion != CRITERION:
            raise OptionError(
                f"method '{self.name}' scores by '{CRITERION}', the recipe by "
                f"'{loop.chooser.recipe.score.criterion}'; give recipe='llm-pruner', or method 'lora' for another"
            )
        super().begin(loop)
