"""What the outputs lose when one group loses units and its consumers are refitted: measured, at a few widths.

Predicted errors of consumers say which unit of a group goes first; how much an error there matters at the end of the
model they do not say. A trial does: the columns of the units are taken out of the consumers' weights, the others are
refitted from the moments of the dense model, and the model runs on from there on data that the refit has not seen.
Where something else reads the units as well, they are taken out where they are made (``masking.py``).
Between the widths that were tried the sum of scores gives the shape of the curve (SPDY, ZipLM: error curves for exact
allocation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isqrt
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from graphprune.analysis.groups import Group
from graphprune.compensation.activation_cache import MEMORY, ActivationCache
from graphprune.compensation.methods import regression
from graphprune.hosts.host import Arrays, Host
from graphprune.importance.context import CELLS, Evidence, Float, Reading, Scores, readings
from graphprune.importance.gates import gate_readings, refitted_gates
from graphprune.importance.loss import Standard
from graphprune.importance.masking import entry_of, taken_out
from graphprune.importance.obs import RIDGE
from graphprune.importance.trial_runs import NOTHING, Runs, Sparing, Start, beside, cores, in_order
from graphprune.observer import Count, uncounted
from graphprune.statistics.collect import Statistics
from graphprune.statistics.consumers import Consumer, with_biases
from graphprune.statistics.readers import summed

Points: TypeAlias = tuple[Sequence[int], Sequence[float]]
"""How many units are removed, rising, and what is lost."""

WIDTHS = {1: (0.3,), 2: (0.2, 0.5), 3: (0.125, 0.3, 0.6), 4: (0.1, 0.25, 0.5, 0.75)}
"""Fractions of a group's units that are removed on trial, by how many trials there are."""
WORK = 2e12
"""Multiply-accumulates that trials may take in all; or one walk over the data, where that is more."""
LEAST = 1e-9
"""Losses below this fraction of the largest one are taken for that: what is lost by rounding is no order."""


def plan_trials(n_groups: int, n_batches: int, macs: float, n_held: int) -> tuple[int, int]:
    """How many widths of each group are tried, and on how many batches.

    Args:
        n_groups: How many groups there are.
        n_batches: How many batches of calibration data.
        macs: What the model takes for one batch.
        n_held: How many batches there are to try on.
    """
    runs = int(max(n_batches, WORK / max(macs, 1.0)) * 2 / max(n_groups, 1))  # a trial runs half the model on average
    n_widths = max(1, min(isqrt(runs), max(WIDTHS)))
    return n_widths, max(1, min(runs // n_widths, n_held))


def loss_curves(
    evidence: Evidence,
    scores: Scores,
    groups: Sequence[Group],
    batches: Sequence[Arrays],
    n_widths: int,
    *,
    sparing: Sparing = NOTHING,
    memory: int = MEMORY,
    progress: Count = uncounted,
) -> dict[str, Float]:
    """Curves of the loss of every group of the model.

    Args:
        evidence: With statistics and the model.
        scores: Scores of all groups: units go in their order, and their sum gives the shape between trials.
        groups: The groups that are tried; curves of others are brought to the same scale.
        batches: What the outputs are compared on.
        n_widths: How many widths are tried, a key of :data:`WIDTHS`.
        sparing: What is left out where more would tell little.
        memory: Bytes of activations that are held in memory; others wait on disk.
        progress: Told how many groups of how many are done.

    Returns:
        For each group, by name, the loss when ``0, 1, ..., size`` units are kept: of an output that holds logits the
        divergence from the dense model's, else the squared error relative to the variance.
    """
    assert evidence.host is not None
    statistics = evidence.measured("trials")
    host, consumers = read_with_biases(evidence.host, statistics)
    read_by = summed(evidence.analysis)
    entries = {g.name: entry_of(evidence.analysis, g, statistics.consumers.get(g.name, ()), read_by) for g in groups}
    found = [(group, entry) for group in groups if (entry := entries[group.name]) is not None]
    tried = sorted(found, key=lambda each: each[1].at)
    outputs = list(host.graph().outputs)
    standard = Standard(
        host.run, ((batch, None) for batch in batches), host.graph(), evidence.asked, pooled=sparing.pooled
    )
    n_beside = beside(host.graph(), memory, _rows(batches))
    runs = Runs(host, outputs, standard, 0 if n_beside == 1 < cores() else max(1, cores() // n_beside), sparing.precise)
    trial = Tried(evidence, statistics, runs, consumers, scores, WIDTHS[n_widths], sparing.smooth)

    def tasks(spool: ActivationCache) -> Iterator[Callable[[], Points]]:
        for n, (group, entry) in enumerate(tried):
            later = [name for _, other in tried[n:] for name in other.values]
            go = host.partial_run(
                None if n == 0 else spool.names(), list(entry.values), list(dict.fromkeys([*later, *outputs]))
            )
            for i in range(len(batches)):
                spool[i], _ = go(spool[i])
            values = spool.__getitem__ if n_beside == 1 else [spool[i] for i in range(len(batches))].__getitem__
            yield partial(trial.points, group, Start(spool.names(), len(batches), values), masked=entry.masked)

    points: dict[str, Points] = {}
    with ActivationCache(batches, memory) as spool:
        results = in_order(tasks(spool), n_beside)
        for n, ((group, _), found_points) in enumerate(zip(tried, results, strict=True), start=1):
            if found_points[0]:
                points[group.name] = found_points
            progress(n, len(tried))
    return _curves(scores, points)


@dataclass(frozen=True)
class Tried:
    """What the trials of all groups have in common.

    Attributes:
        evidence: With statistics and the model.
        statistics: The statistics.
        runs: Runs the model with biases.
        consumers: Its consumers by node, from :func:`read_with_biases`.
        scores: Of all groups.
        widths: Fractions of a group's units that are removed.
        smooth: As for :class:`graphprune.importance.trial_runs.Sparing`.
    """

    evidence: Evidence
    statistics: Statistics
    runs: Runs
    consumers: Mapping[str, Consumer]
    scores: Scores
    widths: Sequence[float]
    smooth: float

    def points(self, group: Group, start: Start, *, masked: bool) -> Points:
        """How many units of a group are removed, rising, and the loss each time.

        Args:
            group: The group.
            start: Where its trials begin.
            masked: Whether units are taken out where they are made as well.
        """
        counts = sorted({min(group.size - 1, max(1, round(part * group.size))) for part in self.widths} - {0})
        read = list(readings(self.evidence, self.statistics, group))
        gates = list(gate_readings(self.evidence, self.statistics, group))
        uses = [self.consumers[each.consumer.node] for each in read]
        ranked, host = np.argsort(self.scores[group.name], kind="stable"), self.runs.host
        prepared: dict[bool, Callable[[Arrays], float]] = {}

        def lost(count: int) -> float:
            loss = float("nan")
            for out in (True, False) if masked else (False,):
                changes = refitted(host, read, self.consumers, ranked[:count])
                changes |= refitted_gates(host, gates, ranked[:count], without)
                is_read = bool(changes)
                if out:
                    changes = taken_out(host, self.evidence.analysis, group, ranked[:count], changes, uses)
                if out not in prepared:
                    prepared[out] = self.runs.of(start, changes)
                loss = prepared[out](changes)
                del changes  # of a vocabulary, perhaps, and the model has its own
                if np.isfinite(loss) or not is_read:  # a weight that is divided by its norm takes no zeros
                    break
            return loss

        first = _telling(counts) if self.smooth else counts
        losses = {count: lost(count) for count in first}
        if not follows(self.scores[group.name], first, [losses[count] for count in first], self.smooth):
            losses |= {count: lost(count) for count in counts if count not in losses}
        return sorted(losses), [losses[count] for count in sorted(losses)]


def _telling(counts: Sequence[int]) -> Sequence[int]:
    """Two widths that tell whether more are needed, far apart; all where there are no more than two."""
    return counts if len(counts) < 3 else (counts[-3], counts[-1])


def follows(scores: Float, counts: Sequence[int], losses: Sequence[float], smooth: float) -> bool:
    """Whether a loss grows as the sum of scores does, so that this says what is lost at the widths beside.

    Args:
        scores: Of a group.
        counts: Two numbers of units that are removed.
        losses: What is lost by that.
        smooth: How far the growth of the logarithms may differ.
    """
    if len(counts) != 2 or not all(np.isfinite(loss) and loss > 0 for loss in losses):
        return False
    grown = np.log(losses[1] / losses[0]) - float(np.diff(np.log(_predicted(scores)[list(counts)]))[0])
    return bool(abs(grown) <= smooth)


def _rows(batches: Sequence[Arrays]) -> int:
    """Samples of the first batch."""
    return max((len(array) for batch in batches[:1] for array in batch.values() if array.ndim), default=1)


def read_with_biases(host: Host, statistics: Statistics) -> tuple[Host, dict[str, Consumer]]:
    """The model with a bias at every consumer that can have one of its own, and its consumers by node."""
    host, found = with_biases(host, {each.node for group in statistics.consumers.values() for each in group})
    return host, {each.node: each for each in found}


def refitted(
    host: Host, read: Sequence[Reading], consumers: Mapping[str, Consumer], gone: NDArray[np.int64]
) -> dict[str, Float]:
    """The stored tensors of a group's consumers without the columns of some units, the others refitted.

    Args:
        host: The model with biases, and ``consumers``, from :func:`read_with_biases`.
        read: How the group is read, from :func:`graphprune.importance.context.readings`.
        consumers: By node.
        gone: Indices of units.
    """
    changes: dict[str, Float] = {}
    for reading in read:
        use = consumers[reading.consumer.node]
        lost = np.isin(reading.units, gone)
        own_bias = use.bias is not None and use.bias_uses == 1
        weight, bias = without(reading, lost, refit=use.plain, centre=own_bias)
        changes[use.weight] = use.weight_of(weight, host.graph().values[use.weight].shape)
        if own_bias and use.bias is not None:
            before = host.read(use.bias)
            changes[use.bias] = before.astype(np.float64) + bias.reshape(before.shape)
    return changes


def without(reading: Reading, lost: NDArray[np.bool_], *, refit: bool, centre: bool) -> tuple[Float, Float]:
    """A consumer's weight without some columns, the others refitted to what it computed, and the change of its bias.

    Args:
        reading: With the moments of its inputs.
        lost: Which columns ``[g, c]`` go.
        refit: Whether the others change.
        centre: Whether there is a bias, which makes good the mean.

    Returns:
        ``[g, rows, c]``, in double precision unless it is large and stored in less, and ``[g, rows]``.
    """
    moments, table = reading.moments, reading.table
    weight = np.empty(table.shape, table.dtype if table.size > CELLS and table.dtype.kind == "f" else np.float64)
    bias = np.zeros(table.shape[:2])
    refit = refit and moments.product is not None
    products = (moments.covariance if centre else moments.second) if refit else None
    for g in range(len(table)):
        gone, kept = np.flatnonzero(lost[g]), np.flatnonzero(~lost[g])
        mean, effect = moments.mean[g], np.zeros((len(gone), len(kept)))
        if products is not None and len(kept) and len(gone):
            among, across = products[g][np.ix_(kept, kept)], products[g][np.ix_(gone, kept)]
            effect = regression(among[None], across[None], RIDGE)[0]  # of what goes on what stays
        shift = mean[gone] - effect @ mean[kept] if centre else np.zeros(len(gone))
        start = 0
        for rows, _ in reading.pieces(g):
            place = slice(start, start := start + len(rows))
            taken = rows[:, gone]
            rows[:, gone] = 0.0
            rows[:, kept] += taken @ effect
            weight[g, place], bias[g, place] = rows, taken @ shift
    return weight, bias


def _curves(scores: Scores, points: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> dict[str, Float]:
    """Curves through what was measured: between two points a power of the sum of scores, beyond them in proportion."""
    highest = max((loss for _, losses in points.values() for loss in losses if np.isfinite(loss)), default=1.0) or 1.0
    known: dict[str, tuple[Float, Float]] = {}
    for name, (counts, losses) in points.items():
        clipped = np.clip(np.nan_to_num(losses, nan=highest, posinf=highest), LEAST * highest, None)
        known[name] = np.log(_predicted(scores[name])[list(counts)]), np.log(np.maximum.accumulate(clipped))
    typical = float(np.median(np.concatenate([y - x for x, y in known.values()]))) if known else 0.0
    curves = {}
    for name, each in scores.items():
        x, y = known.get(name, (np.zeros(1), np.full(1, typical)))
        at = np.log(_predicted(each)[1:])
        found = np.interp(at, x, y) + np.minimum(at - x[0], 0) + np.maximum(at - x[-1], 0)
        curves[name] = np.concatenate([[0.0], np.exp(found)])[::-1]
    return curves


def _predicted(scores: Float) -> Float:
    """The sum of the ``0, 1, ..., size`` lowest scores, which grows."""
    ordered = np.sort(scores)
    total = float(ordered.sum())
    least = np.full(len(ordered), max(LEAST * total, float(np.finfo(np.float64).tiny)) if total > 0 else 1.0)
    return np.concatenate([[0.0], np.cumsum(np.maximum(ordered, least))])
