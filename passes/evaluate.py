"""Measure the user's metric on the pruned model."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from graphprune.data.classes import classes_sentence
from graphprune.evaluation import Evaluation, Runner, open_evaluation
from graphprune.pipeline import keys
from graphprune.pipeline.passes import Pass
from graphprune.pipeline.state import State


@dataclass(frozen=True)
class Evaluate(Pass):
    """Measures a metric of the pruned model, and of the original where that was not done before.

    Attributes:
        function: The name of a function, ``package.module:function``, or a path of labelled data; empty: the metric
            that was given beside the pipeline.
        metric: For labelled data: ``accuracy``, ``mse`` or ``perplexity``; empty: the one that fits.
    """

    name: ClassVar[str] = "evaluate"
    function: str = ""
    metric: str = ""

    @property
    def needs(self) -> frozenset[str]:
        """A model that is done, and a metric."""
        return frozenset({keys.ANALYSIS, keys.PLAN, keys.SLICED, *([] if self.function else [keys.EVALUATION])})

    @property
    def gives(self) -> frozenset[str]:
        """The metric before and after."""
        return frozenset({keys.METRICS})

    @property
    def uses(self) -> frozenset[str]:
        """The user's module, which a function may want to run."""
        return self.needs | {keys.MODULE}

    def run(self, state: State) -> State:
        """The state with the metric's values.

        Raises:
            OptionError: There is no metric, or it cannot be measured.
        """
        state.analyzed(self.name)
        assert state.original is not None
        evaluation = state.evaluation
        if self.function:
            evaluation = open_evaluation(self.function, state.opened or state.original, metric=self.metric or None)
        assert isinstance(evaluation, Evaluation)
        after = evaluation(Runner(state.host, state.module))
        metrics = {name: (value, after.get(name, math.nan)) for name, value in evaluation.before.items()}
        notes = (classes_sentence(evaluation.classes, evaluation.where),) if evaluation.classes else ()
        return replace(
            state, metrics=metrics, evaluation=evaluation, notes=(*state.notes, *notes), done=state.done | self.gives
        )
