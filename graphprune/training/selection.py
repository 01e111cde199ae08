"""Which units stay at a time of the schedule: the project's criteria and allocations, on the weights as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from graphprune.analysis.groups import Analysis, Group
from graphprune.compiling import Running
from graphprune.data.batches import set_apart
from graphprune.defaults import ALLOCATION, CRITERION
from graphprune.early import n_leading, require_options, require_selected
from graphprune.errors import OptionError
from graphprune.passes import Allocate, Compensate, ProtectSensitive, RemoveBlocks, RemoveDeadNodes, SliceGroups
from graphprune.pipeline.passes import run_pipeline
from graphprune.pipeline.state import State
from graphprune.planning.allocation import Limits, levels_of
from graphprune.planning.cost import CostModel, build_cost_model
from graphprune.planning.plan import PruningPlan, make_plan
from graphprune.planning.target import Target, parse_targets
from graphprune.recipe import Recipe
from graphprune.session import Session
from graphprune.training.units import Units

Scores = Mapping[str, NDArray[np.float64]]


class Chooser:
    """Chooses units of a module so that a part of its cost remains.

    Args:
        session: The module, opened.
        recipe: What may be pruned, the criterion and the allocation, and what remains in the end.

    Raises:
        OptionError: The recipe asks for what is not done while training.
    """

    def __init__(self, session: Session, recipe: Recipe) -> None:
        self.session, self.recipe = session, _trainable(recipe)
        self.targets = parse_targets(self.recipe.targets)
        if latency := next((t for t in self.targets if t.metric == "latency"), None):
            raise OptionError(
                f"target '{latency}' is measured on a model that is cut, which there is none of while training; give "
                "macs, params or bytes"
            )
        passes = self.recipe.pipeline(calibrated=session.calibrated, measurable=False)
        require_options(passes, calibrated=session.calibrated)
        n, last = n_leading(passes), next(i for i, each in enumerate(passes) if isinstance(each, Allocate))
        allocate = passes[last]
        assert isinstance(allocate, Allocate)
        self._allocate, self._scoring = allocate, passes[n:last]
        observer = Running().observer
        state = run_pipeline(passes[:n], session.start(observer), observer=observer)
        require_selected(state, passes)
        assert state.analysis is not None
        assert isinstance(session.model, nn.Module)
        self.units = Units(state.analysis, session.model)
        fitted, held = set_apart(session.batches(self.recipe.seed))
        self._state = replace(
            state, batches=fitted, held=held, protected=tuple(group.name for group in self.units.others)
        )
        self._costs = _costs(self._state)

    @property
    def analysis(self) -> Analysis:
        """The groups of the module."""
        assert self._state.analysis is not None
        return self._state.analysis

    @property
    def costs(self) -> CostModel:
        """What the module costs with so many units of each group of :attr:`analysis`."""
        return self._costs

    @property
    def fraction(self) -> float:
        """What remains in the end of the first target's metric, as a fraction."""
        target = self.targets[0]
        return target.limit(self._costs.cost(target.metric)) / max(self._costs.cost(target.metric), 1e-30)

    def scores(self) -> Tensor:
        """The recipe's criterion on the module as it is, ``[n]``."""
        return self.units.of_groups(self._measured().scores)

    def protect_sensitive(self, ratio: float) -> tuple[str, ...]:
        """Groups that stay whole from now on: those whose units cost most on trial, part of each group alone.

        Args:
            ratio: This fraction of the groups.

        Returns:
            Their names.
        """
        state = run_pipeline([ProtectSensitive(ratio)], self._measured())
        self._state = replace(self._state, protected=(*self._state.protected, *state.protected))
        return state.protected

    def choose(self, scores: Tensor | None, remaining: float, within: Tensor | None = None) -> Tensor:
        """The units that stay, ``[n]`` of booleans.

        Args:
            scores: How important they are, compared between groups as they are; ``None``: the recipe's criterion.
            remaining: The fraction of the first target's metric that may remain; other targets go along with it.
            within: Units that have gone for good are not among these.

        Raises:
            TargetError: It cannot be met.
        """
        state = self._measured() if scores is None else replace(self._state, scores=self._complete(scores))
        if within is not None:
            state = replace(state, scores=self._last(state.scores, within))
        targets = self._targets(remaining)
        kept = self.units.mask(replace(self._allocate, targets=tuple(map(str, targets))).run(state).kept)
        if within is None or bool((within | ~kept).all()):
            return kept
        return self._grown(kept & within, within, state.scores, targets)

    def plan(self, kept: Tensor, options: Mapping[str, Any]) -> PruningPlan:
        """The plan of what stays.

        Args:
            kept: ``[n]``.
            options: How it came about, for the reader.
        """
        limits = self._allocate
        noted = {
            "targets": list(map(str, self.targets)),
            "allocation": limits.allocation,
            "align": limits.align,
            **options,
        }
        plan = make_plan(self.analysis, self.units.kept(kept), noted)
        return replace(plan, made_on=self._state.host.kind, recipe=self.recipe.to_dict())

    def refitted(self, kept: Tensor, method: str) -> dict[str, Tensor]:
        """Weights with which what stays makes good what goes: a refit of all that reads units that go.

        Args:
            kept: ``[n]``; the module still has the others.
            method: One of :data:`graphprune.compensation.METHODS`.

        Returns:
            The parameters and buffers that change, by name, in the sizes of the module; where units go they are zero.

        """
        plan = self.plan(kept, {})
        self.session.begin()
        state = replace(self._state, kept=self.units.kept(kept), plan=plan)
        cut = run_pipeline((SliceGroups(), RemoveBlocks(), RemoveDeadNodes(), Compensate(method)), state).host
        found: dict[str, Tensor] = {}
        there = {value.name for value in cut.graph().stored}
        for name, whole in self.units.stored.items():
            if name not in there:
                continue
            axes, new = plan.parameters.get(name, {}), torch.from_numpy(np.array(cut.read(name)))
            index = np.ix_(*(axes.get(axis, range(size)) for axis, size in enumerate(whole.shape)))
            found[name] = torch.zeros_like(whole)
            found[name][index] = new.to(whole)
        return found

    def remains(self, kept: Tensor, metric: str) -> float:
        """The fraction of a cost that remains."""
        return self._costs.cost(metric, self._counts(kept)) / self._costs.cost(metric)

    def _measured(self) -> State:
        """The state with scores of the weights as they are now."""
        self.session.begin()
        return run_pipeline(self._scoring, self._state)

    def _targets(self, remaining: float) -> tuple[Target, ...]:
        """The targets on the way: all of them have come as far as the first one has."""
        gone = min(1.0, (1 - remaining) / max(1 - self.fraction, 1e-12))
        if gone == 1:
            return self.targets
        found = []
        for target in self.targets:
            whole = self._costs.cost(target.metric)
            found.append(Target(target.metric, 1 - gone * (1 - min(1.0, target.limit(whole) / whole))))
        return tuple(found)

    def _complete(self, scores: Tensor) -> Scores:
        """Scores of all groups of the analysis; those that stay whole have any."""
        return {**{g.name: np.ones(g.size) for g in self.units.others}, **self.units.by_group(scores)}

    def _last(self, scores: Scores, within: Tensor) -> Scores:
        """Scores by which units that have gone are below all others of their group."""
        found = dict(scores)
        for name, there in self.units.by_group(within).items():
            values = np.array(scores[name], np.float64)
            low = min(float(values.min()), 0.0)
            values[there == 0] = low - 1e-6 * max(float(np.abs(values).max()), 1e-12)
            found[name] = values
        return found

    def _grown(self, kept: Tensor, within: Tensor, scores: Scores, targets: Sequence[Target]) -> Tensor:
        """More units of those that are there, as long as the targets hold: the allocation wanted some that are gone."""
        allowed = {group.name for group in self._state.selection.groups(self.analysis)}
        groups = [group for group in self.units.groups if group.name in allowed - {*self._state.protected}]
        at = {group.name: i for i, group in enumerate(self.analysis.groups)}
        start = {group.name: int(offset) for group, offset in zip(self.units.groups, self.units.offsets, strict=False)}
        limits = Limits(self._allocate.align, self._allocate.min_units, self._allocate.max_ratio)
        kept, counts, closed = kept.clone(), self._counts(kept), set[str]()
        while True:
            best: tuple[float, Group, Any] | None = None
            for group in groups:
                part = slice(start[group.name], start[group.name] + group.size)
                spare = np.flatnonzero((within[part] & ~kept[part]).cpu().numpy())
                count = int(counts[at[group.name]])
                step = min((n - count for n in levels_of(group, limits) if n > count), default=0)
                if group.name in closed or not 0 < step <= len(spare):
                    continue
                order = spare[np.argsort(-scores[group.name][spare], kind="stable")][:step]
                gain = float(scores[group.name][order].mean())
                if best is None or gain > best[0]:
                    best = gain, group, order
            if best is None:
                return kept
            _, group, order = best
            more = counts.copy()
            more[at[group.name]] += len(order)
            if not _met(self._costs, targets, more):
                closed.add(group.name)
                continue
            counts = more
            kept[start[group.name] + order] = True

    def _counts(self, kept: Tensor) -> NDArray[np.float64]:
        found = self.units.kept(kept)
        return np.array([len(found.get(g.factor, range(g.size))) for g in self.analysis.groups], np.float64)


def _trainable(recipe: Recipe) -> Recipe:
    """The recipe with the defaults of training.

    Raises:
        OptionError: It asks for what is not done while training.
        TargetError: It has no target.
    """
    if not recipe.targets:
        parse_targets(())
    given = recipe.keywords()
    for name in ("pipeline", "blocks", "layers", "remove_blocks"):
        if given.get(name):
            raise OptionError(f"'{name}' is not for training, where units of groups go step by step; leave it out")
    if recipe.recovery.on:
        raise OptionError("the model is in training anyway; leave 'recover' out, or call gp.recover on the result")
    changed = {} if recipe.allocate.allocation else {"allocation": ALLOCATION}
    if not recipe.score.criterion:
        changed["criterion"] = CRITERION
    return recipe.changed(**changed) if changed else recipe


def _costs(state: State) -> CostModel:
    host, analysis = state.host, state.analysis
    assert analysis is not None
    return build_cost_model(analysis, stated=host.source_costs, besides=host.stored_costs(inner=True))


def _met(costs: CostModel, targets: Sequence[Target], counts: NDArray[np.float64]) -> bool:
    return all(
        costs.cost(target.metric, counts) <= target.limit(costs.cost(target.metric)) * (1 + 1e-9) for target in targets
    )
