"""Find the groups that the outputs depend on most, and keep them whole (docs/methods.md, Sensitivity)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from graphprune.data.batches import open_batches
from graphprune.errors import OptionError
from graphprune.importance.judge import judges_for
from graphprune.pipeline import keys
from graphprune.pipeline.passes import Pass
from graphprune.pipeline.state import State
from graphprune.pipeline.trials import RATIOS, SAMPLES, Measure, check_ratios, judged_loss, output_error, trials
from graphprune.planning.select import most_sensitive
from graphprune.planning.selection import require_ratio
from graphprune.planning.whole import tiers
from graphprune.statistics.distributed import averaged

__all__ = [
    "RATIOS",
    "SAMPLES",
    "Measure",
    "ProtectSensitive",
    "check_ratios",
    "judged_loss",
    "output_error",
    "require_ratio",
    "trials",
]

RATIO = 0.1
"""The fraction of the groups that is protected where nobody says one."""


@dataclass(frozen=True)
class ProtectSensitive(Pass):
    """Keeps the groups whole whose removal changes the outputs most.

    Removes part of each group alone, least important units first, and measures the relative error of the outputs (or
    the loss that the user has asked for) on the calibration inputs; a group counts with its mean over ``ratios``. Only
    groups compete that would be pruned first.

    Attributes:
        ratio: This fraction of the groups is kept whole, rounded up; 0: that of ``select{protect_ratio=...}``, or a
            tenth.
        ratios: Fractions of the units that are removed on trial.
        samples: At most so many calibration samples are used.
        seed: Of made-up inputs.
    """

    name: ClassVar[str] = "protect-sensitive"
    selected: ClassVar[tuple[str, ...]] = ("only", "protect")
    ratio: float = 0.0
    ratios: tuple[float, ...] = RATIOS
    samples: int = SAMPLES
    seed: int = 0

    @property
    def needs(self) -> frozenset[str]:
        """Scores."""
        return frozenset({keys.ANALYSIS, keys.SCORES})

    @property
    def gives(self) -> frozenset[str]:
        """Names of groups that stay whole."""
        return frozenset({keys.PROTECTION})

    @property
    def uses(self) -> frozenset[str]:
        """The data, where there are some."""
        return self.needs | {keys.CALIBRATION, keys.SELECTION}

    @property
    def before(self) -> frozenset[str]:
        """It tries the whole model."""
        return frozenset({keys.SLICED, keys.SHALLOWER})

    def check(self) -> None:
        """Refuses what are no fractions."""
        require_ratio(self.ratio)
        check_ratios(self.ratios)

    def run(self, state: State) -> State:
        """The state with the names of groups that stay whole.

        Raises:
            OptionError: An option is wrong, or there are no scores.
        """
        require_ratio(self.ratio)
        analysis, original = state.analyzed(self.name), state.original
        assert original is not None
        if not state.scores:
            raise OptionError(f"pass '{self.name}' needs scores; put 'score' before it in the pipeline")
        ratio = self.ratio or state.selection.protect_ratio or RATIO
        chosen = state.selection.groups(analysis)
        preferred = tiers(chosen, asked=bool(state.selection.only))[0] if chosen else frozenset[str]()
        groups = tuple(group for group in chosen if group.name in preferred)
        batches = state.batches or open_batches("random", original, samples=self.samples, seed=self.seed)
        measure = output_error(original, batches, self.samples)
        if state.asked:
            measure = judged_loss(original, batches, judges_for(original, state.asked), self.samples)
        found: dict[str, list[float]] = {group.name: [] for group in groups}
        for trial in trials(original, analysis, groups, state.scores, self.ratios):
            found[trial.group.name].append(measure(trial.host))
        means = {name: float(averaged(float(np.mean(values)))) for name, values in found.items() if values}
        return replace(state, batches=batches, protected=most_sensitive(means, ratio))
