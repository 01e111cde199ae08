"""Train the pruned model to answer as the original does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from graphprune.errors import OptionError
from graphprune.hosts.host import Host
from graphprune.pipeline import keys
from graphprune.pipeline.passes import Pass
from graphprune.pipeline.state import State
from graphprune.planning.cost import build_cost_model
from graphprune.planning.plan import PruningPlan
from graphprune.statistics.holdout import samples_of


@dataclass(frozen=True)
class Recover(Pass):
    """Trains the weights that are left towards the original's outputs, on calibration inputs, without labels.

    A rate and a state are chosen by inputs that it does not train on; where the result is not better on these than it
    was, nothing changes. See :mod:`graphprune.recovery.stage`.

    Attributes:
        steps: How many steps; 0: 600.
        minutes: How long it may take; 0: as long as the steps take.
        rate: The learning rate; 0: that which inputs that are held apart like best.
        weights: ``all``, ``biases`` (and norms), or ``lora`` (low-rank additions, merged).
        rank: Of low-rank additions.
        seed: Of the samples of each step.
    """

    name: ClassVar[str] = "recover"
    steps: int = 0
    minutes: float = 0.0
    rate: float = 0.0
    weights: str = "all"
    rank: int = 16
    seed: int = 0

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
        from graphprune.recovery.stage import Options, recovered
        from graphprune.recovery.student import learner_of

        options = Options(
            steps=self.steps, minutes=self.minutes, rate=self.rate, weights=self.weights, rank=self.rank, seed=self.seed
        )
        learner = learner_of(state.host, state.module, state.former)
        batches, held = (state.batches, state.held) if state.more is None else state.more.set_apart(needed=True)
        found = recovered(
            learner,
            state.original,
            (batches, held if held is not None else state.held),
            options,
            macs=build_cost_model(analysis).cost("macs") / samples_of(analysis.graph),
            asked=state.asked,
            observer=state.observer,
            folder=state.folder,
        )
        state = replace(state, notes=(*state.notes, str(found)), recovered=found)
        if not found.taken:
            return state
        host = learner.host()
        assert state.plan is not None
        plan = _noted(state.plan, state.host, host)
        return replace(state, host=host, plan=plan)


def _noted(plan: PruningPlan, before: Host, after: Host) -> PruningPlan:
    """The plan with the names of what was trained, and what each tensor is now, to the last bit."""
    stored = [value.name for value in after.graph().stored]
    names = [name for name in stored if before.digest(name) != after.digest(name)]
    known = dict(plan.options.get("digests", {}))
    known.update((name, after.digest(name)) for name in names)
    tensors = sorted({*plan.options.get("compensated", ()), *names})
    noted = {"recovered": True, "compensated": tensors, "digests": {name: known[name] for name in tensors}}
    method = plan.options.get("compensation", "none")
    return replace(plan, options={**plan.options, **noted, "compensation": method})
