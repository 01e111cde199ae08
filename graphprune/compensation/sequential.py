"""Refits of all cut consumers, one after the other, on what the pruned model up to there computes.

The dense and the pruned model go over the calibration data side by side, from consumer to consumer. At each one the
pruned model's inputs and its distance from the dense model's outputs are summed up, the weight is refitted, and both
go on from there: two walks over the model in all, whatever its depth. Where a consumer ends a residual branch, its
target is the residual sum, so that it makes good what the stream has lost before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from graphprune.analysis.groups import Analysis
from graphprune.calibration.collect import LEAST_ROWS, ROWS_PER_COLUMN
from graphprune.calibration.consumers import Consumer, count_of, find_consumers, inputs_of
from graphprune.compensation.ladder import Refit, Residuals, refit
from graphprune.errors import PlanError
from graphprune.ir.dims import Factor, Index, factors_of, positions
from graphprune.pipeline.host import Array, Arrays, Host

RIDGE = 1e-2
"""Damping of the least squares: of each input, relative to its variance."""


@dataclass(frozen=True)
class Compensated:
    """What was refitted at one consumer.

    Attributes:
        node: The consumer.
        weight: Its weight.
        bias: Its bias; ``None`` where it has none and got none.
        before: Squared error of its output before, relative to the output's variance.
        after: The same after the refit.
    """

    node: str
    weight: str
    bias: str | None
    before: float
    after: float


def compensate(
    dense: Host,
    pruned: Host,
    analysis: Analysis,
    kept: Mapping[Factor, Index],
    batches: Iterable[Arrays],
    *,
    rung: str = "affine",
    ridge: float = RIDGE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Host, tuple[Compensated, ...]]:
    """Refits every consumer that has lost columns.

    Args:
        dense: The model as it was analysed.
        pruned: The sliced model; its nodes have the names that they have in ``dense``.
        analysis: The analysis of ``dense``.
        kept: The units that stay.
        batches: Calibration data.
        rung: One of :data:`graphprune.compensation.ladder.RUNGS`.
        ridge: Damping of the least squares.
        progress: Told how many consumers of how many are done.

    Returns:
        The pruned model with other weights, and what was done at each consumer, in the order of the graph.
    """
    stages, pruned = _stages(dense, pruned, analysis, kept, rung)
    done: list[Compensated] = []
    if not stages:
        return pruned, ()
    left: list[Any] = list(batches)
    right: list[Any] = list(left)
    have_left = have_right = None
    rng = np.random.default_rng(0)
    for n, stage in enumerate(stages):
        targets = list(dict.fromkeys(each.target for each in stage))
        later = [each for other in stages[n + 1 :] for each in other]
        go_left = dense.stretch(have_left, targets, [each.target for each in later])
        value = stage[0].value
        go_right = pruned.stretch(
            have_right,
            [value],
            [value, *targets, *(name for each in later for name in (each.value, each.target))],
        )
        finish: Any = None
        sums: dict[str, Residuals] = {}
        for i in range(len(left)):
            left[i], wanted = go_left(left[i])
            right[i], read = go_right(right[i])
            if finish is None:
                finish = pruned.stretch(list(right[i]), targets)
            got = finish(right[i])[1]
            _count(stage, read[value], wanted, got, analysis, kept, sums, len(left), rng)
        have_left, have_right = list(left[0]), list(right[0])
        changes: dict[str, Array] = {}
        for consumer in stage:
            found = refit(sums[consumer.node], _rung(consumer, rung), ridge)
            done.append(Compensated(consumer.node, consumer.weight, consumer.bias, found.before, found.after))
            changes.update(_changed(pruned, consumer, found))
        pruned = pruned.replaced(changes)
        progress(n + 1, len(stages))
    return pruned, tuple(done)


def adopted(
    source: Host,
    dense: Host,
    pruned: Host,
    analysis: Analysis,
    kept: Mapping[Factor, Index],
    rung: str,
    names: Iterable[str],
) -> Host:
    """The sliced model with the refitted tensors of another copy of it, such as a file that was written.

    Raises:
        PlanError: The copy has no such tensor, or one of another shape.
    """
    _, pruned = _stages(dense, pruned, analysis, kept, rung)
    mine, theirs = pruned.graph().values, source.graph().values
    values: dict[str, Array] = {}
    for name in names:
        if name not in theirs or name not in mine or theirs[name].shape != mine[name].shape:
            raise PlanError(
                f"the plan says that tensor '{name}' was refitted, and the file has no such tensor of that shape; "
                "files exported from PyTorch name and turn tensors otherwise, so verify them where they were made"
            )
        values[name] = source.read(name)
    return pruned.replaced(values)


def _stages(
    dense: Host, pruned: Host, analysis: Analysis, kept: Mapping[Factor, Index], rung: str
) -> tuple[list[list[Consumer]], Host]:
    """The cut consumers of the pruned model, those of one activation together, and the model with their biases."""
    cut = {
        consumer.node: consumer
        for consumer in find_consumers(dense, analysis.graph)
        if any(factor in kept for factor in factors_of(analysis.layouts[consumer.value][consumer.axis]))
    }
    if rung == "none":
        return [], pruned
    found = [each for each in find_consumers(pruned, pruned.graph()) if each.node in cut]
    if rung in ("mean", "affine"):
        bare = {each.node: each.channel for each in found if each.bias is None and each.plain}
        if bare:
            pruned = pruned.biased(bare)
            found = [each for each in find_consumers(pruned, pruned.graph()) if each.node in cut]
    usable = [each for each in found if _rung(each, rung) != "none" and each.target in analysis.graph.values]
    return [list(stage) for _, stage in groupby(usable, key=lambda each: each.value)], pruned


def _rung(consumer: Consumer, rung: str) -> str:
    """The rung that a consumer can take: weights of several nodes stay, and so do those of transposed convolutions."""
    if rung == "affine" and consumer.bias is None:
        rung = "ols"
    if consumer.plain and not consumer.scattered:
        return rung
    return "mean" if rung in ("mean", "affine") and consumer.bias is not None else "none"


def _count(
    stage: Sequence[Consumer],
    activation: Array,
    wanted: Mapping[str, Array],
    got: Mapping[str, Array],
    analysis: Analysis,
    kept: Mapping[Factor, Index],
    sums: dict[str, Residuals],
    n_batches: int,
    rng: np.random.Generator,
) -> None:
    """Adds one batch to the sums of the consumers of one activation."""
    for consumer in stage:
        channel = positions(analysis.layouts[consumer.target][consumer.channel], kept)
        target = np.take(wanted[consumer.target], channel, consumer.channel)
        source = consumer.source
        if consumer.scattered:
            n, columns = target.size // target.shape[consumer.channel], 1
        else:
            n = count_of(source, activation)
            kernel = 1 if consumer.window is None else int(np.prod(consumer.window.kernel))
            columns = activation.shape[consumer.axis] // consumer.groups * kernel
        quota = -(-max(LEAST_ROWS, ROWS_PER_COLUMN * columns) // n_batches)
        pick = None if n <= quota else np.sort(rng.choice(n, quota, replace=False)).astype(np.int64)
        t = consumer.rows_of(target, pick)
        y = consumer.rows_of(got[consumer.target], pick)
        grouped = (len(t), consumer.groups, -1)
        x = np.zeros((len(t), consumer.groups, 1)) if consumer.scattered else inputs_of(source, activation, pick)
        t, r = t.reshape(grouped), (t - y).reshape(grouped)
        if consumer.node not in sums:
            sums[consumer.node] = Residuals.zeros(consumer.groups, x.shape[2], t.shape[2])
        sums[consumer.node].add(x, r, t)


def _changed(host: Host, consumer: Consumer, found: Refit) -> dict[str, Array]:
    """The new values of a consumer's tensors."""
    changes: dict[str, Array] = {}
    if found.weight.any():
        weight = host.read(consumer.weight)
        changes[consumer.weight] = consumer.weight_of(consumer.matrix(weight) + found.weight, weight.shape)
    if consumer.bias is not None and found.bias.any():
        bias = host.read(consumer.bias)
        changes[consumer.bias] = bias.astype(np.float64) + found.bias.reshape(bias.shape)
    return changes
