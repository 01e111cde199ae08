"""The report of a compilation, from the state after its last pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from graphprune.analysis.groups import Analysis
from graphprune.hosts.cuts import cuts_of
from graphprune.hosts.host import Host
from graphprune.importance.judge import judges_for
from graphprune.pipeline.state import State
from graphprune.planning.cost import EVERYTHING_NEEDED, CostModel, build_cost_model
from graphprune.planning.plan import PruningPlan
from graphprune.planning.share import MEASURED
from graphprune.planning.target import parse_targets
from graphprune.report.data import BlockRow, Cost, GroupRow, InterfaceRow, LatencyRow, Report, metric_row
from graphprune.report.inputs import input_rows
from graphprune.report.movement import Movement, movement
from graphprune.report.notes import already_met
from graphprune.report.titles import group_title
from graphprune.report.widths import whole_rows, width_rows
from graphprune.statistics.readers import readers_text
from graphprune.turns import in_turn

MOST_SAID = 4
"""So many demands are told one by one."""


def report_of(state: State, *, moved: bool, seed: int = 0) -> Report:
    """The report.

    Args:
        state: After the last pass, with a plan.
        moved: Whether to measure how far the outputs have moved.
        seed: Of the inputs that this is measured on where there are no others.
    """
    analysis, plan = state.analysis, state.plan
    assert analysis is not None
    assert plan is not None
    assert state.original is not None
    model = build_cost_model(analysis, state.latency, stated=state.original.source_costs)
    costs = _costs(state, analysis, model, plan)
    targets = plan.options.get("targets")
    met = already_met(parse_targets(targets), costs) if targets and not (plan.groups or state.removed) else None
    gone = analysis.branches.unneeded(state.removed).tensors if state.removed else frozenset()
    asked = {each.group.name: ", ".join(each.by) for each in state.selection.held(analysis)}
    return Report(
        costs,
        tuple(
            GroupRow(g.name, g.kind, g.size, int(n), g.exact, group_title(analysis, g), asked.get(g.name, ""))
            for g, n in zip(model.groups, _counts(state, model), strict=True)
        ),
        state.inexact,
        state.checks,
        latency=tuple(LatencyRow(threads, *pair) for threads, pair in state.latencies.items()),
        metrics=tuple(metric_row(name, *pair) for name, pair in state.metrics.items()),
        notes=(*([met] if met else []), *_notes(state)),
        seconds=state.seconds,
        blocks=tuple(BlockRow(block.name, block.kind, block.tensors) for block in state.removed),
        attributes=state.attributes,
        classes=state.evaluation.classes if state.evaluation is not None else {},
        inputs=input_rows(analysis.graph),
        moved=_moved(state, model.costs()["macs"], seed) if moved else None,
        widths=width_rows(analysis, plan, gone),
        whole=whole_rows(analysis, state.left_whole),
        losses=() if state.batches is None else tuple(map(str, judges_for(state.original or state.host, state.asked))),
        recovery=state.recovered,
        interface=_interface(state.host),
        cache_bytes=_cache_bytes(state),
    )


def _interface(host: Host) -> tuple[InterfaceRow, ...]:
    """What has become smaller of inputs and outputs."""
    cuts = cuts_of(host)
    graph = host.graph() if cuts else None
    names = () if graph is None else tuple(dict.fromkeys((*graph.inputs, *graph.outputs)))
    return tuple(
        InterfaceRow(name, axis, cut.size, len(cut.index), tuple(map(int, cut.index)))
        for name in names
        for axis, cut in cuts.get(name, {}).items()
        if len(cut.index) < cut.size
    )


def _cache_bytes(state: State) -> tuple[int, int] | None:
    before, after = (int(getattr(host, "cache_bytes", 0)) for host in (state.original, state.host))
    return (before, after) if before else None


def _costs(state: State, analysis: Analysis, model: CostModel, plan: PruningPlan) -> tuple[Cost, ...]:
    """What the model costs by metric, and what was asked for."""
    before, after = model.costs(), _planned(state, analysis)
    if held := state.host.stored_costs():
        after.update(held)
    else:
        for metric, value in _added(state, analysis, after).items():
            after[metric] += value
    targets = plan.options.get("targets")
    requested = {t.metric: t.limit(before[t.metric]) for t in parse_targets(targets)} if targets else {}
    costs = tuple(Cost(metric, before[metric], after[metric], requested.get(metric)) for metric in before)
    if state.attempts and state.attempts[-1].measured is not None:
        measured = state.attempts[-1].measured
        costs = tuple(replace(c, measured=measured * c.before) if c.metric == "latency" else c for c in costs)
    return costs


def added_costs(state: State) -> dict[str, float]:
    """What refits cost: biases of consumers that had none, and equal constants that are not equal any more."""
    assert state.analysis is not None
    return _added(state, state.analysis, _planned(state, state.analysis))


def _moved(state: State, macs: float, seed: int) -> Movement | Callable[[], Movement | None] | None:
    """How far the outputs have moved, on inputs that nothing has been fitted to where there are some.

    Without any, what would say so when somebody asks.
    """
    options = state.plan.options if state.plan is not None else {}
    tried = options.get("allocation") == MEASURED or "candidates" in options  # then one batch of four is set apart
    held = tried and not state.compensated
    original = state.original or state.host
    kept, host = (state.held, state.unrefitted), state.host
    if state.batches is not None:
        return movement(original, host, state.batches, held=held, macs=macs, seed=seed, asked=state.asked, kept=kept)
    stamp, asked = original.stamp(), state.asked

    @in_turn
    def measured(original: Host) -> Movement | None:
        if original.stamp() != stamp:  # the user has trained on
            return None
        return movement(original, host, None, held=held, macs=macs, seed=seed, asked=asked)

    return lambda: measured(original)


def _notes(state: State) -> tuple[str, ...]:
    notes = []
    if state.analysis is not None and (held := state.selection.held(state.analysis)):
        by = list(dict.fromkeys(text for each in held for text in each.by))
        said = ", ".join(f"'{text}'" for text in by[:MOST_SAID])
        said += f", and {len(by) - MOST_SAID} more" if len(by) > MOST_SAID else ""
        groups = f"{len(held)} groups keep" if len(held) > 1 else "a group keeps"
        notes.append(f"{groups} the units that were asked for, whatever the target: {said}")
    if state.original is not None and state.original.pinned and getattr(state.original, "narrow", None) is None:
        names = ", ".join(f"'{name}'" for name in state.original.pinned)
        notes.append(
            f"sizes or branches of the model follow from the values of {names}, and were traced as in the example; "
            "a module refuses other values, an ONNX file does not notice them"
        )
    if state.batches is not None and state.batches.random:
        notes.append(
            "the calibration inputs are made up, and what is measured on them says little about yours; give real ones "
            "(--calibration)"
        )
    if state.batches is not None and state.batches.unit > 1:
        notes.append(
            "samples of the calibration data see each other in the model, so that calls of "
            f"{state.batches.unit} samples stay whole"
        )
    if state.protected:
        notes.append(f"the most sensitive groups stay whole: {', '.join(state.protected)}")
    if state.compensated:
        before = float(np.mean([row.before for row in state.compensated]))
        after = float(np.mean([row.after for row in state.compensated]))
        n_readers = len({row.node for row in state.compensated})
        notes.append(
            f"{n_readers} readers of removed units were refitted: the error of their outputs fell from "
            f"{before:.2%} to {after:.2%} of the outputs' variance on the calibration data, in the mean"
        )
    if state.left_alone:
        notes.append(f"these readers of removed units were not refitted: {readers_text(state.left_alone)}")
    if state.inexact:
        assert state.analysis is not None
        kinds = dict.fromkeys(g.kind for g in state.analysis.groups if not g.exact and g.factor in state.kept)
        notes.append(
            f"units of kind {', '.join(kinds)} were removed, which shifts the statistics of a normalisation (a mean, a "
            "norm, a maximum) for the others; the proof counts the kept units only"
        )
    if unseen := dict.fromkeys(name for check in state.checks for name in check.unproven):
        names = ", ".join(f"'{name}'" for name in unseen)
        notes.append(
            f"not proven on the example input, since their units look alike to what reads them: {names}; give an "
            "example that tells them apart"
        )
    if state.removed:
        names = ", ".join(f"'{block.name}'" for block in state.removed)
        notes.append(f"left out as a whole: {names}; the proof replaces what these branches add by zero")
    return (*notes, *dict.fromkeys(state.notes))


def _added(state: State, analysis: Analysis, planned: Mapping[str, float]) -> dict[str, float]:
    """What refits cost: biases of consumers that had none, and equal constants that are not equal any more."""
    held = state.host.stored_costs()
    if held:
        return {metric: max(0.0, held[metric] - planned[metric]) if state.compensated else 0.0 for metric in held}
    names = {row.bias for row in state.compensated if row.bias is not None} - analysis.graph.values.keys()
    values = state.host.graph().values if names else {}
    biases = [values[name] for name in sorted(names) if name in values]
    return {
        "params": float(sum(bias.n_elements for bias in biases)),
        "bytes": float(sum(bias.n_elements * bias.itemsize for bias in biases)),
    }


def _counts(state: State, model: CostModel) -> NDArray[np.float64]:
    """How many units are kept."""
    counts = model.full.copy()
    for i, group in enumerate(model.groups):
        if group.factor in state.kept:
            counts[i] = len(state.kept[group.factor])
    return counts


def _planned(state: State, analysis: Analysis) -> dict[str, float]:
    """What the plan leaves, by metric."""
    assert state.original is not None
    without = analysis.branches.unneeded(state.removed) if state.removed else EVERYTHING_NEEDED
    if state.original.source_costs:
        without |= analysis.branches.idle
    model = build_cost_model(analysis, state.latency, without=without, besides=state.original.stored_costs(inner=True))
    return model.costs(_counts(state, model))
