"""Share the budget in several ways, and take the one whose finished model loses least."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from graphprune.analysis.branch import Block
from graphprune.compensation.methods import AS_IS, NORMS, require_method
from graphprune.compensation.norms import reestimate
from graphprune.compensation.sequential import compensate
from graphprune.data.batches import Batches
from graphprune.errors import OptionError, TargetError
from graphprune.hosts.host import Host
from graphprune.hosts.recurrent import Recurrent
from graphprune.importance import Evidence
from graphprune.importance.at_once import adopted_at_once, refitted_at_once
from graphprune.importance.context import Float
from graphprune.importance.held_out import far_behind, judge, preferred
from graphprune.ir.dims import Factor, Index
from graphprune.pipeline import keys
from graphprune.pipeline.edits import smaller
from graphprune.pipeline.passes import Compound, Pass
from graphprune.pipeline.state import State
from graphprune.statistics.holdout import split_batches

FAR = 3.0
"""A candidate that loses so many times as much as the best when all is refitted at once is not refitted in earnest."""
ALIKE = 0.01
"""Plans are taken for one where they differ in less than this fraction of the units that they remove."""
OVERFIT = 1.5
"""More inputs would help where the loss on others is so many times that on the inputs that were read."""
LITTLE = 1e-4
"""What is lost below this is rounding, or no matter."""

_EXAMPLE = 'as in \'choose-allocation{candidates="allocate{macs=0.5 allocation=dp}"|"allocate{macs=0.5}"}\''


@dataclass(frozen=True)
class ChooseAllocation(Compound):
    """Tries several allocations and goes on from the plan of the best.

    For each of them a model is cut and refitted on trial, to the batches that ``calibrate{apart=true}`` takes
    statistics of, and run on the others, which neither scores nor this refit have seen. (``measure-losses`` has run
    single groups on them.) Only the plan goes on from here: what follows is refitted to all batches. Plans that are
    nearly the same are tried once, and nothing is tried where only one is left.

    Attributes:
        candidates: Pipelines that end in a plan, in the order of preference: each begins where this pass does.
        method: How models are refitted on trial, as in ``compensate``.
    """

    name: ClassVar[str] = "choose-allocation"
    renamed: ClassVar[Mapping[str, str]] = {"rung": "method"}
    candidates: tuple[tuple[Pass, ...], ...] = ()
    method: str = "affine"

    @property
    def needs(self) -> frozenset[str]:
        """Data to try on, and what the candidates need."""
        return super().needs | {keys.ANALYSIS, keys.CALIBRATION}

    @property
    def uses(self) -> frozenset[str]:
        """What the candidates look at; with products of activations it looks ahead."""
        return super().uses | {keys.PRODUCTS}

    def check(self) -> None:
        """Refuses a pass without candidates, and an unknown method."""
        require_method(self.method)
        if not self.candidates or any(keys.PLAN not in candidate[-1].gives for candidate in self.candidates):
            raise OptionError(f"'{self.name}' chooses among plans, and has none; give it candidates, {_EXAMPLE}")

    def subject(self, key: str) -> str:
        """The pass."""
        return f"'{self.name}'"

    def lacks(self, key: str) -> str:
        """The sentence of the candidate that lacks it."""
        short = next((each for one in self.candidates for each in one if key in each.needs), None)
        return super().lacks(key) if short is None else short.lacks(key)

    def run(self, state: State) -> State:
        """The state with kept units, blocks that go, and a plan, which says what each candidate lost.

        Raises:
            OptionError: There is no candidate, or no calibration data.
            TargetError: No candidate meets the targets.
        """
        self.check()
        found = self._planned(state)
        if len(found) == 1:
            return next(iter(found.values()))
        if state.batches is None:
            raise OptionError(f"'{self.name}' needs calibration data; give some (calibration=..., --calibration DATA)")
        fit, held = split_batches(len(state.batches))
        loss = judge(state.host, [state.batches[i] for i in held], asked=state.asked)
        ahead = self._ahead(state, found, loss)
        on_read = (
            judge(state.host, [state.batches[i] for i in fit[: len(held)]], asked=state.asked)
            if len(ahead) > 1
            else loss
        )

        def judged(host: Host) -> tuple[Float, float]:
            """What a model loses on other inputs and on those that it has read; nobody holds it beside the next one."""
            return loss(host), float(np.mean(on_read(host)))

        samples = state.batches.part(fit).samples
        losses: dict[str, Float] = {}
        read: dict[str, float] = {}
        count = state.observer.counter(self.name)
        for n, (name, planned) in enumerate(found.items(), start=1):
            if len(ahead) > 1 and name in ahead:
                losses[name], read[name] = judged(self._refitted(planned, state.batches.part(fit)))
            count(n, len(found))
        best = preferred(losses) if losses else ahead[0]
        state, plan = found[best], found[best].plan
        assert plan is not None
        means = {name: float(np.mean(each)) for name, each in losses.items()}
        noted = {name: float(f"{value:.4g}") if np.isfinite(value) else None for name, value in means.items()}
        plan = replace(plan, options={**plan.options, "candidates": {name: noted.get(name) for name in found}})
        notes = [sentence(means, best, len(found))]
        if best in read and fit != held and self.method != "none":
            notes += few_inputs(read[best], means[best], samples)
        return replace(state, plan=plan, notes=(*state.notes, *notes))

    def _planned(self, state: State) -> dict[str, State]:
        """By allocation: the state with its plan; of those that are nearly the same, the first."""
        found: dict[str, State] = {}
        failure: TargetError | None = None
        for candidate in self.candidates:
            planned = state
            try:
                for each in candidate:
                    planned = each.run(planned)
            except TargetError as error:
                failure = failure or error
                continue
            if not any(_alike(planned, other) for other in found.values()):
                found[_name(planned, found)] = planned
        if not found:
            assert failure is not None
            raise failure
        return found

    def _ahead(self, state: State, found: Mapping[str, State], loss: Callable[[Host], Float]) -> list[str]:
        """The candidates that are worth a refit: those that are not far behind when all is refitted at once.

        That look leaves the gates of recurrent layers as they are, and so says nothing where there are some.
        """
        statistics, analysis = state.statistics, state.analyzed(self.name)
        if self.method not in ("ols", "affine", AS_IS) or statistics is None:
            return list(found)
        if not statistics.fits(analysis, full=True, groups=state.reach):
            return list(found)
        if any(isinstance(state.host.recurrent(node.name), Recurrent) for node in analysis.graph.nodes):
            return list(found)
        evidence = Evidence(analysis, state.host.read, statistics=statistics)
        looks: dict[str, Float] = {}
        for name, planned in found.items():
            kept, removed = planned.kept, planned.removed

            def cut(host: Host, kept: Mapping[Factor, Index] = kept, removed: tuple[Block, ...] = removed) -> Host:
                return smaller(host, analysis, kept, removed)

            looks[name] = loss(adopted_at_once(state.host, refitted_at_once(evidence, kept), cut))
        behind = far_behind(looks, FAR)
        return [name for name in found if name not in behind]

    def _refitted(self, planned: State, batches: Batches) -> Host:
        """The model after the cuts, refitted to some batches."""
        analysis, dense = planned.analyzed(self.name), planned.host
        host = smaller(dense, analysis, planned.kept, planned.removed)
        if self.method == NORMS:
            return reestimate(dense, host, analysis, planned.kept, batches)[0]
        return compensate(dense, host, analysis, planned.kept, batches, method=self.method)[0]


def sentence(losses: Mapping[str, float], best: str, n_tried: int) -> str:
    """What was chosen, for the report.

    Args:
        losses: Of the candidates that were refitted.
        best: The one that was taken.
        n_tried: How many candidates there were.
    """
    if not losses:
        return (
            f"of {n_tried} ways to share the budget '{best}' was taken; before a full refit the others were far behind"
        )
    others = [f"'{name}' loses {value:.3g}" for name, value in losses.items() if name != best]
    behind = ["the others were far behind"] if len(losses) < n_tried else []
    if min(losses.values(), key=lambda each: np.inf if np.isnan(each) else each) < losses[best]:
        behind.append("what is less is no more than chance explains")
    return (
        f"of {n_tried} ways to share the budget '{best}' was taken: its refitted model loses {losses[best]:.3g} on "
        f"inputs that scores and this refit have not seen ({', '.join([*others, *behind])})"
    )


def few_inputs(read: float, held: float, samples: int) -> list[str]:
    """What to say where a refit does much better on the inputs that it has read than on others.

    Args:
        read: The loss on inputs that were read.
        held: The loss on others.
        samples: How many inputs were read.
    """
    if not held > OVERFIT * read or held < LITTLE:
        return []
    return [
        f"refitted to {samples} inputs, the model loses {read:.3g} on them and {held:.3g} on others: more inputs would "
        "help (--samples, --calibration)"
    ]


def _name(planned: State, known: Mapping[str, State]) -> str:
    """The allocation of a plan, with its criterion where that is another one, and a number where others have both."""
    assert planned.plan is not None
    options, own = planned.plan.options, next(iter(known.values()), planned).plan
    name = str(options.get("allocation", "plan"))
    if own is not None and options.get("criterion") != own.options.get("criterion"):
        name = f"{options.get('criterion')}, {name}"
    return next(each for each in (name, *(f"{name} {n}" for n in range(2, 2 + len(known)))) if each not in known)


def _alike(one: State, other: State) -> bool:
    """Whether two plans remove nearly the same units."""
    if {block.name for block in one.removed} != {block.name for block in other.removed}:
        return False
    sizes = {group.factor: group.size for group in one.analyzed("allocate").groups}

    def gone(kept: Mapping[Factor, Index], factor: Factor) -> set[int]:
        return set(range(sizes[factor])).difference(kept[factor].tolist()) if factor in kept else set()

    cut = one.kept.keys() | other.kept.keys()
    pairs = [(gone(one.kept, factor), gone(other.kept, factor)) for factor in cut]
    different = sum(len(a ^ b) for a, b in pairs)
    return different <= ALIKE * max(1, sum(len(a | b) for a, b in pairs))
