"""Make good what was lost: refit the consumers of removed units in closed form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from graphprune.compensation.methods import NORMS, require_method
from graphprune.compensation.norms import reestimate
from graphprune.compensation.sequential import RIDGES, compensate
from graphprune.errors import OptionError
from graphprune.hosts.host import Host
from graphprune.importance.judge import judges_for
from graphprune.importance.outcome import Outcome, tried
from graphprune.pipeline import keys
from graphprune.pipeline.passes import Pass
from graphprune.pipeline.state import State
from graphprune.planning.cost import build_cost_model
from graphprune.planning.plan import PruningPlan
from graphprune.statistics.holdout import judged_by, samples_of
from graphprune.statistics.readers import left_alone


@dataclass(frozen=True)
class Compensate(Pass):
    """Refits every consumer that has lost columns, one after the other, on what the pruned model computes.

    Runs on the sliced model, whose structure should be proven first: a refit changes weights and adds biases, so that
    the model is no longer equal to the masked original.

    Attributes:
        method: ``affine`` (weights and biases), ``as-is`` (likewise, and layers without a bias stay so), ``ols``
            (weights), ``mean`` (biases), ``bn`` (running statistics of batch normalisations only) or ``none``.
        ridges: Damping of the least squares, of each input, relative to its variance; of several, each consumer takes
            the one that does best on batches held apart.
    """

    name: ClassVar[str] = "compensate"
    renamed: ClassVar[Mapping[str, str]] = {"rung": "method"}
    method: str = "affine"
    ridges: tuple[float, ...] = RIDGES

    @property
    def needs(self) -> frozenset[str]:
        """A model that is cut, and data; without a refit nothing."""
        if self.method == "none":
            return frozenset({keys.ANALYSIS})
        return frozenset({keys.ANALYSIS, keys.PLAN, keys.SLICED, keys.CALIBRATION})

    @property
    def gives(self) -> frozenset[str]:
        """Refitted weights."""
        return frozenset() if self.method == "none" else frozenset({keys.REFIT})

    @property
    def before(self) -> frozenset[str]:
        """The plan notes one refit, and what is measured on the result has to be of its weights."""
        measured = {keys.REFIT, keys.EXPORT, keys.LATENCY, keys.MODULE, keys.METRICS}
        return frozenset() if self.method == "none" else frozenset(measured)

    @property
    def ends_measuring(self) -> bool:
        """Yes: it takes its own, of the smaller model."""
        return self.method != "none"

    def check(self) -> None:
        """Refuses an unknown method."""
        require_method(self.method)

    def subject(self, key: str) -> str:
        """What the user asked for."""
        return "compensation" if key == keys.CALIBRATION else f"'{self.name}'"

    def run(self, state: State) -> State:
        """The state with refitted weights; the plan says which tensors they are.

        Raises:
            OptionError: There is no calibration data or no such method.
        """
        analysis = state.analyzed(self.name)
        require_method(self.method)
        state = replace(state, done=state.done | self.gives)
        if self.method == "none" or not state.kept:
            return state
        if state.batches is None:
            raise OptionError("compensation needs calibration data; give some (calibration=..., --calibration PATH)")
        if state.original is None or state.plan is None:
            raise OptionError("pass 'compensate' needs a plan; put 'allocate' and 'slice-groups' before it")
        lost = _lost(state)
        if self.method == NORMS:
            host, changed = reestimate(
                state.original,
                state.host,
                analysis,
                state.kept,
                state.batches,
                progress=state.observer.counter(self.name),
            )
            return replace(state, host=host, plan=self._noted(state.plan, host, changed), unrefitted=lost)
        host, rows = compensate(
            state.original,
            state.host,
            analysis,
            state.kept,
            state.batches,
            method=self.method,
            ridges=self.ridges,
            progress=state.observer.counter(self.name),
        )
        gone = {node.name for node in analysis.graph.nodes} - {node.name for node in state.host.graph().nodes}
        alone = left_alone(state.original, analysis, state.kept.keys(), gone.union(row.node for row in rows))
        tensors = {name for row in rows for name in (row.weight, row.bias, *row.others) if name is not None}
        noted = self._noted(state.plan, host, tensors)
        return replace(state, host=host, plan=noted, compensated=rows, left_alone=alone, unrefitted=lost)

    def _noted(self, plan: PruningPlan, host: Host, tensors: Iterable[str]) -> PruningPlan:
        """The plan with the names of what was refitted, and what each tensor is now, to the last bit."""
        names = sorted(tensors)
        digests = {name: host.digest(name) for name in names}
        noted = {"compensation": self.method, "compensated": names, "digests": digests}
        return replace(plan, options={**plan.options, **noted})


def _lost(state: State) -> tuple[Outcome, ...]:
    """What the outputs have lost so far, on the samples that the result will be judged by; nothing on made-up ones."""
    if state.original is None or state.batches is None or state.batches.random or state.analysis is None:
        return ()
    macs = build_cost_model(state.analysis).cost("macs") / samples_of(state.analysis.graph)
    inputs, _ = judged_by(state.batches, state.held, macs)
    return tried(state.original, state.host, inputs, judges_for(state.original, state.asked))
