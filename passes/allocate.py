"""Share the budget and choose the units."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from graphprune.analysis.branch import Block, Unneeded
from graphprune.analysis.groups import Analysis
from graphprune.analysis.ties import Tie, find_ties
from graphprune.errors import OptionError, TargetError
from graphprune.importance import Evidence
from graphprune.importance.fitness import fitness_of
from graphprune.importance.judge import judges_for
from graphprune.ir.dims import Index
from graphprune.pipeline import keys
from graphprune.pipeline.edits import realised_costs
from graphprune.pipeline.passes import Pass
from graphprune.pipeline.state import State
from graphprune.planning.allocation import Counts, Limits
from graphprune.planning.blockers import blockers, obstacles
from graphprune.planning.cost import EVERYTHING_NEEDED, CostModel, build_cost_model
from graphprune.planning.demanded import gone_last, gone_with, kept_first, kept_of, most_of, require_there
from graphprune.planning.fill import undershoot
from graphprune.planning.keep import keep_counts
from graphprune.planning.layouts import (
    FREE,
    Sayable,
    asked_of,
    blocks_said,
    is_bound,
    require_layout,
    require_said,
    sayable,
)
from graphprune.planning.plan import make_plan
from graphprune.planning.problem import Fitness, Problem, needs_losses, needs_runs
from graphprune.planning.select import block_candidates, block_kinds, how_many, named_blocks
from graphprune.planning.share import METHODS, require_allocation
from graphprune.planning.target import Target, parse_targets
from graphprune.planning.ties import join, share_tied, tied_still
from graphprune.planning.whole import EXPERTS, left_whole, tiers

UNSCORED = "blocks have no scores; put 'score{blocks=l2}' before 'allocate' in the pipeline"


@dataclass(frozen=True)
class Allocate(Pass):
    """Decides how many units each group keeps, keeps the most important ones, and writes the plan.

    Where there is a plan already, it goes on from that: what is gone stays gone, and more goes until the targets are
    met, which are fractions of the original as ever.

    Whole channels, neurons, heads and key-value groups are used first. Parts of heads (query-key and value dims, query
    heads of a group), which leave ragged heads that few runtimes and no module class expect, then groups that shift a
    normalizer (residual width), and at last whole experts are added when ``select`` names them or when the targets
    cannot be met without them; parts of heads also where the units of the others are so coarse that a quarter less
    would remain than the targets allow.

    Attributes:
        targets: What may remain, as text (``macs=0.5``).
        allocation: One of :data:`graphprune.planning.share.METHODS`; ``measured`` after ``measure-losses``.
        align: Widths stay multiples of this where the width allows.
        min_units: At least so many units stay in every group.
        max_ratio: At most this fraction of a group's units is removed.
        criterion: Noted in the plan.
        blocks: How many residual branches are left out, those with the lowest scores: ``2``, ``0.25`` or ``25%``.
        layers: How many layers (attention and MLP together, say) are left out, likewise.
        remove: Names (or patterns of the last weights) of blocks that are left out.
        seed: Of allocations that search.
        layout: What may be left: anything (``free``, ``per-layer``), or what a config of the module's class can say
            (``stock``).
    """

    name: ClassVar[str] = "allocate"
    selected: ClassVar[tuple[str, ...]] = ("only", "protect")
    may_need: ClassVar[Mapping[str, str]] = {
        keys.SCORES: "targets",
        keys.BLOCK_SCORES: "blocks=..., layers=...",
        keys.PROFILE: "latency=...",
        keys.LOSSES: "allocation=measured",
        keys.CALIBRATION: "allocation=spdy and allocation=evolution",
        keys.DEMANDS: "no targets and no blocks",
    }
    targets: tuple[str, ...] = ()
    allocation: str = "isomorphic"
    align: int = 8
    min_units: int = 1
    max_ratio: float = 0.9
    criterion: str = ""
    blocks: str = ""
    layers: str = ""
    remove: tuple[str, ...] = ()
    seed: int = 0
    layout: str = "free"

    @property
    def needs(self) -> frozenset[str]:
        """What the targets, the blocks that go and the allocation ask for."""
        asked = {
            keys.ANALYSIS: True,
            keys.SCORES: bool(self.targets),
            keys.BLOCK_SCORES: bool(self.blocks or self.layers),
            keys.PROFILE: any(target.metric == "latency" for target in self._targets),
            keys.LOSSES: bool(self.targets) and METHODS.find(self.allocation).needs == "losses",
            keys.CALIBRATION: bool(self.targets) and METHODS.find(self.allocation).needs == "runs",
            keys.DEMANDS: not (self.targets or self._whole),
        }
        return frozenset(key for key, here in asked.items() if here)

    @property
    def gives(self) -> frozenset[str]:
        """The plan."""
        return frozenset({keys.PLAN})

    @property
    def adds(self) -> frozenset[str]:
        """A plan goes on from an earlier one."""
        return self.gives

    @property
    def uses(self) -> frozenset[str]:
        """What is there of all that a choice may depend on."""
        found = {keys.SCORES, keys.BLOCK_SCORES, keys.PROTECTION, keys.SELECTION, keys.DEMANDS}
        return self.needs | found

    @property
    def asks(self) -> frozenset[str]:
        """What is planned has to be done."""
        return frozenset({keys.SLICED, keys.SHALLOWER} if self._whole else {keys.SLICED})

    @property
    def before(self) -> frozenset[str]:
        """It plans for the whole model."""
        return frozenset({keys.SLICED, keys.SHALLOWER})

    @property
    def _whole(self) -> bool:
        """Whether blocks go whatever the targets say."""
        return bool(self.blocks or self.layers or self.remove)

    @property
    def _targets(self) -> tuple[Target, ...]:
        return parse_targets(self.targets) if self.targets else ()

    def check(self) -> None:
        """Refuses an unknown allocation, limits that are none, and targets that cannot be read."""
        require_allocation(self.allocation)
        Limits(self.align, self.min_units, self.max_ratio)
        require_layout(self.layout)
        _ = self._targets

    def subject(self, key: str) -> str:
        """The option that needs it."""
        return "a latency target" if key == keys.PROFILE else super().subject(key)

    def lacks(self, key: str) -> str:
        """The sentence that says that something is missing, and what to do."""
        if key == keys.DEMANDS:
            parse_targets(())  # says that there is none
        if key == keys.BLOCK_SCORES:
            return UNSCORED
        if key == keys.LOSSES:
            return needs_losses(self.allocation)
        if key == keys.CALIBRATION:
            return needs_runs(self.allocation)
        return super().lacks(key)

    def run(self, state: State) -> State:
        """The state with kept units, blocks that go, and a plan."""
        analysis = state.analyzed(self.name)
        held, removed = state.selection.held(analysis), self._removed(state, analysis)
        decided = removed or state.selection.decided
        targets = parse_targets(self.targets) if self.targets or not decided else ()
        if state.latency is None and any(target.metric == "latency" for target in targets):
            raise OptionError(self.lacks(keys.PROFILE))
        assert state.original is not None
        model = self._costs(state, analysis)
        given = {each.group.name: kept_of(each, state.scores) for each in held}
        before = {g.name: state.kept[g.factor] for g in analysis.groups if g.factor in state.kept}  # an earlier plan's
        most = most_of(model, {**before, **given})
        ranked = replace(state, scores=gone_last(state.scores, before))
        counts, selection = np.minimum(model.full, most), state.selection
        state = replace(state, notes=(*state.notes, *selection.doubts(analysis)))
        if targets:
            counts, removed, note = self._met(ranked, analysis, targets, model, removed, {**before, **given})
            state = replace(state, notes=(*state.notes, *([note] if note else [])))
        kept = keep_counts(analysis.groups, ranked.scores, model.by_name(counts), {**before, **given})
        if targets:
            cut = {group.name for group in analysis.groups if group.factor in kept} | given.keys()
            chosen, named = selection.groups(analysis), bool(selection.only)
            whole = left_whole(analysis.groups, cut, chosen, sensitive=state.protected, asked=named)
            state = replace(state, left_whole={**whole, **self._unsaid(state, analysis, whole)})
        if is_bound(self.layout):
            sizes = {factor: len(index) for factor, index in kept.items()}
            require_said(asked_of(state.original), analysis, sizes, removed)
        asked = [*(state.plan.options.get("targets", ()) if state.plan is not None else ()), *map(str, targets)]
        options = {
            **({"targets": asked} if asked else {}),
            "allocation": self.allocation,
            "align": self.align,
            **({"criterion": self.criterion} if self.criterion else {}),
            **({"layout": self.layout} if self.layout != FREE else {}),
            **({"only": list(selection.only)} if selection.only else {}),
            **({"resize_io": list(selection.resize_io)} if selection.resize_io else {}),
            **({"protected": list(state.protected)} if state.protected else {}),
            **({"config": dict(selection.config)} if selection.config else {}),
            **{each: list(said) for each in ("keep", "remove") if (said := getattr(selection, each))},
            **({"losses": list(map(str, judges_for(state.host, state.asked)))} if state.batches is not None else {}),
        }
        plan = replace(make_plan(analysis, kept, options, removed), made_on=state.host.kind)
        return replace(state, kept=kept, removed=removed, plan=plan)

    def _removed(self, state: State, analysis: Analysis) -> tuple[Block, ...]:
        """The blocks that go whatever the targets say."""
        named = named_blocks(analysis, (*self.remove, *state.selection.leave_out))
        removed = {block.name: block for block in (*state.removed, *named)}
        for kind, number in (("layer", self.layers), ("block", self.blocks)):
            if number:
                inside = {part for block in removed.values() for part in block.parts}
                ranked = self._ranked(state, analysis, kind)
                count = how_many(number, len(ranked), kind)
                chosen = [block for block in ranked if block.name not in removed.keys() | inside]
                if is_bound(self.layout):
                    chosen = blocks_said(asked_of(state.original), analysis, tuple(removed.values()), chosen, count)
                removed.update((block.name, block) for block in chosen[:count])
        inside = {part for block in removed.values() for part in block.parts}
        gone = tuple(block for block in removed.values() if block.name not in inside)
        require_there(state.selection.held(analysis), analysis, gone)
        if is_bound(self.layout) and gone:
            require_said(asked_of(state.original), analysis, {}, gone)
        return gone

    def _unsaid(self, state: State, analysis: Analysis, names: Collection[str]) -> dict[str, str]:
        """Of some groups that are whole: those that no config can say otherwise, and why."""
        if not is_bound(self.layout):
            return {}
        refused = self._sayable(state, analysis).refused
        return {name: f"layout '{self.layout}': {refused[name]}" for name in names if name in refused}

    def _sayable(self, state: State, analysis: Analysis) -> Sayable:
        """What can be cut so that a config says it, of all that may be cut."""
        chosen = [group for group in state.selection.groups(analysis) if group.name not in state.protected]
        # what code makes anew, of the size that it was written for, follows the config like all else
        ties = find_ties(analysis) if state.host.keeps_code else ()
        return sayable(asked_of(state.original), analysis, chosen, ties)

    def _ranked(self, state: State, analysis: Analysis, kind: str) -> list[Block]:
        """The blocks of a kind that may go, the least important ones first."""
        candidates, scores = block_candidates(analysis, kind, state.selection.protect), state.block_scores
        if candidates and not scores:
            raise OptionError(UNSCORED)
        held = state.selection.held(analysis)
        free = [block for block in candidates if not gone_with(held, analysis, [block])]
        return sorted(free, key=lambda block: scores[block.name])

    def _met(
        self,
        state: State,
        analysis: Analysis,
        targets: Sequence[Target],
        original: CostModel,
        removed: tuple[Block, ...],
        given: Mapping[str, Index],
    ) -> tuple[NDArray[np.float64], tuple[Block, ...], str | None]:
        """Counts that meet the targets, the blocks that go (where ``only`` names them, as few as need be), a note."""
        limits = Limits(self.align, self.min_units, self.max_ratio)
        only = state.selection.only
        chosen = tuple(group for group in state.selection.groups(analysis) if group.name not in state.protected)
        ties = find_ties(analysis, state.host.made_by_code) if state.host.keeps_code else ()
        held = {each.group.name for each in state.selection.held(analysis)}
        ties = tuple(tie for tie in ties if held.isdisjoint(group.name for group in tie.groups))
        said = Sayable()
        if is_bound(self.layout):
            said = self._sayable(state, analysis)
            chosen = tuple(group for group in chosen if group.name not in said.refused)
            limits, ties = replace(limits, levels=said.levels), said.ties
        kinds = block_kinds(only)
        gone = {block.name for block in removed}
        pool = [b for kind in kinds for b in self._ranked(state, analysis, kind) if b.name not in gone]
        if pool and is_bound(self.layout):
            pool = blocks_said(asked_of(state.original), analysis, removed, pool, len(pool))
        if not chosen and not pool and not removed and not given:
            raise TargetError(
                "no group of this model can be pruned; "
                + ("protect_ratio keeps all of them whole" if state.protected else said.reason or blockers(analysis))
            )
        if missing := [group.name for group in chosen if group.name not in state.scores]:
            raise OptionError(f"group '{missing[0]}' has no scores; put 'score' before 'allocate' in the pipeline")
        most = int(len(pool) * self.max_ratio + 1e-9)
        tries = [
            (n, tier, tied)
            for n in range(most + 1)
            for tier in tiers(chosen, asked=bool(only)) or [frozenset()]
            for tied in ([ties, ()] if ties and not is_bound(self.layout) else [ties])
        ]
        exact = frozenset(g.name for g in chosen if g.exact and g.kind not in EXPERTS) if not only else frozenset()
        fitness = None
        if METHODS.find(self.allocation).needs == "runs":
            fitness = self._fitness(state, analysis, original, given)
        for n, tier, tied in tries:
            going = (*removed, *pool[:n])
            unneeded = analysis.branches.unneeded(going) if going else EVERYTHING_NEEDED
            lost = {g.name for g in chosen if unneeded.tensors.issuperset(g.tensors)}
            allowed, finer = tier - lost, (exact - tier - lost if tier <= exact else frozenset())

            still = tied_still(tied, unneeded.tensors)

            def shared(
                model: CostModel,
                allowed: frozenset[str] = allowed,
                finer: frozenset[str] = finer,
                still: tuple[Tie, ...] = still,
            ) -> Counts:
                problem = Problem(
                    model, state.scores, targets, limits, allowed, finer, original, fitness, self.seed, state.losses
                )
                return share_tied(problem, still, self.allocation)

            try:
                model, counts = self._written(state, analysis, shared, targets, original, going, given)
            except TargetError as error:
                if (n, tier, tied) == tries[-1]:
                    raise TargetError(
                        f"{error}. What stands in the way: {obstacles(analysis, limits, only, len(state.protected))}"
                    ) from None
                continue
            joint = join(model, still)
            used = allowed | {g.name for g, n in zip(model.groups, counts, strict=True) if n < g.size}
            note = undershoot(
                joint.model,
                joint.joined(counts),
                targets,
                limits=limits,
                allowed=joint.allowed(used),
                original=original,
                groups=[group for group in analysis.groups if group.name not in used],
            )
            return counts, going, note
        raise AssertionError("the last try returns or raises")

    def _written(
        self,
        state: State,
        analysis: Analysis,
        shared: Callable[[CostModel], Counts],
        targets: Sequence[Target],
        original: CostModel,
        going: tuple[Block, ...],
        given: Mapping[str, Index],
    ) -> tuple[CostModel, Counts]:
        """Counts that meet the targets in what is written, and the costs by which they do.

        Of groups of which the user says what stays the costs count that, whatever the counts say. A file may need a
        shape of its own for a use whose size changes, where one stood for several: a few bytes that are only known once
        the cuts are made.
        """
        unneeded = analysis.branches.unneeded(going) if going else EVERYTHING_NEEDED
        model = self._costs(state, analysis, unneeded)
        most = most_of(model, given)
        model = model.capped(most) if given else model
        counts = shared(model)
        limits = [target.limit(original.cost("bytes")) for target in targets if target.metric == "bytes"]
        for _ in range(ROUNDS if limits and state.host is state.original and original.stated else 0):
            kept = keep_counts(analysis.groups, state.scores, model.by_name(np.minimum(counts, most)), given)
            found = realised_costs(state.host, analysis, kept, going).get("bytes", 0.0)
            if found <= min(limits):
                break
            model = self._costs(state, analysis, unneeded, more=found - model.cost("bytes", counts))
            model = model.capped(most) if given else model
            counts = shared(model)
        return model, np.minimum(counts, most)

    def _costs(
        self, state: State, analysis: Analysis, unneeded: Unneeded = EVERYTHING_NEEDED, more: float = 0.0
    ) -> CostModel:
        """What is left to pay for once some blocks are gone; whole, what the file holds."""
        assert state.original is not None
        besides = dict(state.original.stored_costs(inner=True))
        besides["bytes"] = besides.get("bytes", 0.0) + more
        stated = state.original.source_costs
        without = unneeded | analysis.branches.idle if stated else unneeded  # a file may hold what nothing needs
        return build_cost_model(analysis, state.latency, without=without, stated=stated, besides=besides)

    def _fitness(self, state: State, analysis: Analysis, model: CostModel, given: Mapping[str, Index]) -> Fitness:
        """What the loss of units does to the outputs."""
        evidence = Evidence(
            analysis, state.host.read, self.seed, host=state.host, batches=state.batches, asked=state.asked
        )
        most = most_of(model, given)
        fitness = fitness_of(evidence, self.allocation, model, kept_first(state.scores, given))
        return lambda counts: fitness(np.minimum(counts, most))


ROUNDS = 3
"""How often an allocation is repeated that turns out a few bytes too large in what is written."""
