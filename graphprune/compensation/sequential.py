"""Refits of all cut consumers, one after the other, on what the pruned model up to there computes.

The dense and the pruned model go over the calibration data side by side, from consumer to consumer. At each one the
pruned model's inputs and its distance from the dense model's outputs are summed up, the weight is refitted, and both
go on from there: two walks over the model in all, whatever its depth. Where a consumer ends a residual branch, its
target is the residual sum, so that it makes good what the stream has lost before it. Normalisations over an axis that
is cut are refitted in their place among the consumers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from graphprune.analysis.groups import Analysis
from graphprune.compensation.activation_cache import MEMORY, ActivationCache
from graphprune.compensation.methods import ADDING, AS_IS, METHODS
from graphprune.compensation.recurrent import recurrent_stages
from graphprune.compensation.scalings import find_scalings
from graphprune.compensation.stage import Compensated, Stage
from graphprune.compensation.weights import weight_stages
from graphprune.defaults import ZEROS
from graphprune.errors import PlanError
from graphprune.hosts.host import Arrays, Host
from graphprune.ir.dims import Factor, Index, factors_of
from graphprune.observer import Count, uncounted
from graphprune.statistics.collect import Masks
from graphprune.statistics.consumers import find_consumers, with_biases

RIDGES = (1e-2, 1e-1, 1.0)
"""Damping of the least squares, of each input, relative to its variance: what is tried on batches held apart."""


def compensate(
    dense: Host,
    pruned: Host,
    analysis: Analysis,
    kept: Mapping[Factor, Index],
    batches: Iterable[Arrays],
    *,
    method: str = "affine",
    ridges: Sequence[float] = RIDGES,
    progress: Count = uncounted,
) -> tuple[Host, tuple[Compensated, ...]]:
    """Refits every consumer that has lost columns.

    Args:
        dense: The model as it was analysed.
        pruned: The sliced model; its nodes have the names that they have in ``dense``.
        analysis: The analysis of ``dense``.
        kept: The units that stay.
        batches: Calibration data.
        method: One of :data:`graphprune.compensation.methods.METHODS`.
        ridges: Damping of the least squares. Of several, each consumer takes the one that does best on batches held
            apart; without several batches, the first.
        progress: Told how many consumers of how many are done.

    Returns:
        The pruned model with other weights, and what was done at each consumer, in the order of the graph.
    """
    stages, pruned = _stages(dense, pruned, analysis, kept, method)
    method = _equation(method)
    done: list[Compensated] = []
    if not stages:
        return pruned, ()
    rng = np.random.default_rng(0)
    masks = Masks(analysis)
    inputs = list(batches)
    with ActivationCache(inputs, MEMORY // 2) as left, ActivationCache(inputs, MEMORY // 2) as right:
        for n, stage in enumerate(stages):
            first, later = n == 0, stages[n + 1 :]
            go_left = dense.partial_run(
                None if first else left.names(), stage.targets, _names(other.targets for other in later)
            )
            # a target may be an input of the model, e.g. the first state of a recurrent layer: nothing makes it later
            given = [name for other in later for name in other.targets if name in dense.graph().inputs]
            ahead = _names((stage.read, stage.targets, *(other.read for other in later), given))
            go_right = pruned.partial_run(None if first else right.names(), [stage.start], ahead)
            counter = stage.counter(analysis, kept, pruned, len(inputs), rng)
            for i, batch in enumerate(inputs):
                left[i], wanted = go_left(left[i])
                right[i], _ = go_right(right[i])
                counter.add(right[i], wanted, {node: masks.of(batch, *at) for node, at in stage.places.items()})
            rows, changes = counter.solved(method, ridges)
            done.extend(rows)
            pruned = pruned.replaced(changes)
            progress(n + 1, len(stages))
    return pruned, tuple(done)


def adopted(
    values: Arrays, dense: Host, pruned: Host, analysis: Analysis, kept: Mapping[Factor, Index], method: str
) -> Host:
    """The sliced model with refitted tensors, such as a file holds that was written.

    Raises:
        PlanError: The copy has no such tensor, or one of another shape.
    """
    if method == ZEROS:  # only layers that take a constant get a bias
        _, readers = with_biases(pruned, _cut(dense, analysis, kept))
        pruned, _ = with_biases(pruned, [each.node for each in readers if each.bias in values])
    else:
        _, pruned = _stages(dense, pruned, analysis, kept, method)
    mine = pruned.graph().values
    for name, value in values.items():
        if name not in mine or value.shape != mine[name].shape:
            raise PlanError(
                f"the plan says that tensor '{name}' was refitted, and the file has no such tensor of that shape; "
                "files exported from PyTorch name and turn tensors otherwise, so verify them where they were made"
            )
    return pruned.replaced(values)


def _stages(
    dense: Host, pruned: Host, analysis: Analysis, kept: Mapping[Factor, Index], method: str
) -> tuple[list[Stage], Host]:
    """The cut consumers of the pruned model in stages, and the model with their biases."""
    cut = _cut(dense, analysis, kept)
    if method not in (*METHODS, AS_IS) or method == "none":
        return [], pruned
    if method in ADDING:
        pruned, found = with_biases(pruned, cut)
    else:
        found = [each for each in find_consumers(pruned, pruned.graph()) if each.node in cut]
    method = _equation(method)
    # the sum with a bias that is new, and still zero, has no name in the dense model: there the result is the target
    known = analysis.graph.values
    found = [each if each.target in known else replace(each, target=each.result, skip=None) for each in found]
    usable = [each for each in found if each.target in known]
    optional = {node.name for node in pruned.graph().nodes if node.optional}
    stages: list[Stage] = [*weight_stages(usable, method)]
    stages.extend(
        each
        for each in find_scalings(pruned.graph(), analysis, kept)
        if each.node not in optional and (method != "mean" or each.shift is not None)
    )
    if method in ("ols", "affine"):
        stages.extend(recurrent_stages(dense, pruned, analysis, kept))
    order = {node.name: i for i, node in enumerate(pruned.graph().nodes)}
    return sorted(stages, key=lambda stage: min(order[node] for node in stage.places)), pruned


def _cut(dense: Host, analysis: Analysis, kept: Mapping[Factor, Index]) -> set[str]:
    """The nodes that read units of which some are gone."""
    return {
        consumer.node
        for consumer in find_consumers(dense, analysis.graph)
        if any(factor in kept for factor in factors_of(analysis.layouts[consumer.value][consumer.axis]))
    }


def _equation(method: str) -> str:
    """The regression that a method solves: ``as-is`` differs in the biases that there are, not in what is solved."""
    return "affine" if method == AS_IS else method


def _names(parts: Iterable[Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(name for part in parts for name in part))
