"""Train the pruned model to answer as the original does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from graphprune.errors import OptionError
from graphprune.pipeline import keys
from graphprune.pipeline.passes import Pass
from graphprune.pipeline.state import State
from graphprune.planning.cost import build_cost_model
from graphprune.recovery.noting import with_weights_noted
from graphprune.recovery.options import Recovering
from graphprune.statistics.holdout import samples_of


@dataclass(frozen=True)
class Recover(Recovering, Pass):
    """Trains the weights that are left towards the original's outputs, on calibration inputs, without labels.

    A rate and a state are chosen by inputs that it does not train on; where the result is not better on these than it
    was, nothing changes. See :mod:`graphprune.recovery.stage`.

    Attributes:
        seed: Of the samples of each step.
    """

    name: ClassVar[str] = "recover"
    seed: int = 0

    def check(self) -> None:
        """Refuses numbers that mean nothing."""
        self.require_meaningful()

    @property
    def needs(self) -> frozenset[str]:
        """A model that is done, as a module, and data."""
        return frozenset({keys.ANALYSIS, keys.PLAN, keys.SLICED, keys.CALIBRATION})

    @property
    def gives(self) -> frozenset[str]:
        """Trained weights."""
        return frozenset({keys.RECOVERY})

    @property
    def uses(self) -> frozenset[str]:
        """It goes on from the refit, and trains the user's own module where there is one."""
        return self.needs | {keys.REFIT, keys.MODULE}

    @property
    def before(self) -> frozenset[str]:
        """What is measured on the result has to be of its weights."""
        return frozenset({keys.EXPORT, keys.LATENCY, keys.METRICS})

    def subject(self, key: str) -> str:
        """What the user asked for."""
        return "recovery" if key == keys.CALIBRATION else f"'{self.name}'"

    def run(self, state: State) -> State:
        """The state with trained weights, where these are better; the plan says which tensors they are.

        Raises:
            OptionError: There are no calibration data, or nothing can be trained.
        """
        analysis = state.analyzed(self.name)
        state = replace(state, done=state.done | self.gives)
        if state.batches is None:
            raise OptionError("recovery needs inputs; give some (calibration=..., --calibration PATH)")
        if state.original is None or state.plan is None:
            raise OptionError("pass 'recover' needs a plan; put 'allocate' and 'slice-groups' before it")
        from graphprune.recovery.stage import Task, recovered
        from graphprune.recovery.student import learner_of

        learner = learner_of(state.host, state.module, state.former)
        batches, held = (state.batches, state.held) if state.more is None else state.more.set_apart(needed=True)
        macs = build_cost_model(analysis).cost("macs") / samples_of(analysis.graph)
        task = Task(
            learner=learner, teacher=state.original, batches=batches, held=held if held is not None else state.held,
            macs=macs, asked=state.asked,
        )  # fmt: skip
        found = recovered(task, self, seed=self.seed, observer=state.observer, folder=state.folder)
        state = replace(state, notes=(*state.notes, str(found)), recovered=found)
        if not found.taken:
            return state
        host = learner.host()
        assert state.plan is not None
        plan = with_weights_noted(state.plan, state.host, host)
        plan = replace(plan, options={**plan.options, "recovered": True})
        return replace(state, host=host, plan=plan)
