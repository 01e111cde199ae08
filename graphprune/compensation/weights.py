"""Refits of weights: what the consumers of removed units read, and what they should compute, summed over positions."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from graphprune.analysis.groups import Analysis
from graphprune.compensation.methods import Refit, Residuals, chosen_ridge, refit_shared
from graphprune.compensation.stage import Compensated, Counter, Positions
from graphprune.hosts.host import Array, Arrays, Carried, Host, PartialRun
from graphprune.ir.dims import ONE, Dim, Factor, Index, Layout, positions
from graphprune.statistics.collect import GATHERED, positions_to_count
from graphprune.statistics.consumers import Consumer, count_of, inputs_of
from graphprune.statistics.holdout import split_batches

AGREEMENT = 1e-3
"""Largest difference, relative to the largest value, of what a consumer computes in the host and by its weights: a
test of what its operator means, not of rounding."""


@dataclass(frozen=True)
class WeightStage:
    """Several weights that read one activation, or one weight that is used several times.

    Attributes:
        fits: For each weight the consumers that use it.
    """

    fits: tuple[tuple[Consumer, ...], ...]

    @property
    def uses(self) -> tuple[Consumer, ...]:
        """All consumers, in the order of the graph."""
        return tuple(use for fit in self.fits for use in fit)

    @property
    def start(self) -> str:
        """The first value that they read."""
        return self.uses[0].value

    @property
    def targets(self) -> list[str]:
        """What they should restore."""
        return list(dict.fromkeys(use.target for use in self.uses))

    @property
    def read(self) -> list[str]:
        """What they read, and what their results are added to."""
        return list(dict.fromkeys(name for use in self.uses for name in _read(use)))

    @property
    def places(self) -> dict[str, tuple[str, int]]:
        """What they read, and along which axis they sum it."""
        return {use.node: (use.value, use.axis) for use in self.uses}

    def counter(
        self, analysis: Analysis, kept: Mapping[Factor, Index], pruned: Host, n_batches: int, rng: np.random.Generator
    ) -> Counter:
        """See :class:`graphprune.compensation.stage.Stage`."""
        return _Counter(self, analysis, kept, pruned, n_batches, rng)


def _channel(use: Consumer, layouts: Mapping[str, Layout]) -> Dim:
    return ONE if use.channel is None else layouts[use.target][use.channel]


def _read(use: Consumer) -> tuple[str, ...]:
    return (use.value,) if use.skip is None else (use.value, use.skip)


class _Counter:
    """The sums of one stage.

    What the consumers compute now follows from their inputs at the positions that are counted. Whether that is so (an
    operator may have a factor or an activation built in) is tried on the first batch; where it is not, they are run.
    """

    def __init__(
        self,
        stage: WeightStage,
        analysis: Analysis,
        kept: Mapping[Factor, Index],
        pruned: Host,
        n_batches: int,
        rng: np.random.Generator,
    ) -> None:
        self._stage, self._pruned, self._n_batches, self._rng = stage, pruned, n_batches, rng
        layouts = analysis.layouts
        self._channels = {use.node: positions(_channel(use, layouts), kept) for use in stage.uses}
        self._weights = {fit[0].weight: fit[0].matrix(pruned.read(fit[0].weight)) for fit in stage.fits}
        self._biases = {use.bias: pruned.read(use.bias).ravel() for use in stage.uses if use.bias is not None}
        self._held = split_batches(n_batches)[1] if n_batches > 1 else []
        self._batch = 0
        self._sums: dict[tuple[str, bool], Residuals] = {}
        self._waiting: dict[tuple[str, bool], list[tuple[Array, Array, Array]]] = {}
        self._look: PartialRun | None = None
        self._run: PartialRun | None = None
        self._by_hand: dict[str, bool] = {}

    def add(self, values: Carried, wanted: Arrays, masks: Mapping[str, Positions]) -> None:
        """Counts one batch in."""
        if self._look is None:
            self._look = self._pruned.partial_run(list(values), self._stage.read)
            self._run = self._pruned.partial_run(list(values), self._stage.targets)
        read = self._look(values)[1]
        got: Arrays | None = None
        for together in _sums(self._stage):
            use, channel, mask = together[0], self._channels[together[0].node], masks[together[0].node]
            n = count_of(use.source, read[use.value])
            pick = positions_to_count(n, self._weights[use.weight].shape[2], self._n_batches, mask, self._rng)
            parts = [inputs_of(each.source, read[each.value], pick) for each in together]
            t = use.rows_of(wanted[use.target], pick)[:, channel]
            y = self._computed(use, parts[0], read, pick)
            if not self._by_hand.get(use.node, False):
                assert self._run is not None
                got = got if got is not None else self._run(values)[1]
                real = use.rows_of(got[use.target], pick)
                if use.node not in self._by_hand:
                    size = float(np.abs(real).max(initial=0.0))
                    self._by_hand[use.node] = bool(np.abs(real - y).max(initial=0.0) <= AGREEMENT * size)
                y = real
            grouped = (len(t), use.groups, -1)
            self._gather(use, sum(parts[1:], parts[0]), (t - y).reshape(grouped), t.reshape(grouped))
        self._batch += 1

    def _computed(self, use: Consumer, x: Array, read: Arrays, pick: Positions) -> Array:
        """What a consumer computes at some positions, ``[n, (g r)]``, and what that is added to."""
        weight = self._weights[use.weight].astype(x.dtype)
        y = (x.transpose(1, 0, 2) @ weight.transpose(0, 2, 1)).transpose(1, 0, 2).reshape(len(x), -1)
        if use.bias is not None:
            y = y + self._biases[use.bias]
        if use.skip is not None:
            y = y + use.rows_of(read[use.skip], pick)
        found: Array = y.astype(x.dtype, copy=False)
        return found

    def _gather(self, use: Consumer, *rows: Array) -> None:
        """Counts rows in as soon as there are enough of them for fast products."""
        held = self._batch in self._held
        waiting = self._waiting.setdefault((use.node, held), [])
        waiting.append(rows)  # type: ignore[arg-type]
        if sum(len(x) for x, _, _ in waiting) >= GATHERED:
            self._flush(use, held)

    def _flush(self, use: Consumer, held: bool) -> None:
        waiting = self._waiting.get((use.node, held), [])
        if not waiting:
            return
        x, r, t = (np.concatenate(part) if len(waiting) > 1 else part[0] for part in zip(*waiting, strict=True))
        key = _part(use), held
        if key not in self._sums:
            self._sums[key] = Residuals.zeros(use.groups, x.shape[2], t.shape[2])
        self._sums[key].add(x, r, t)
        waiting.clear()

    def solved(self, method: str, ridges: Sequence[float]) -> tuple[list[Compensated], dict[str, Array]]:
        """The best change of each weight and its biases."""
        done: list[Compensated] = []
        changes: dict[str, Array] = {}
        for fit in self._stage.fits:
            found = self._solved(fit, method, ridges)
            done.extend(Compensated(use.node, use.weight, use.bias, found.before, found.after) for use in fit)
            changes.update(_changed(self._pruned, fit, found))
        return done, changes

    def _solved(self, fit: Sequence[Consumer], method: str, ridges: Sequence[float]) -> Refit:
        for use in fit:
            for held in (False, True):
                self._flush(use, held)
        by_part = {_part(use): _method(use, method, len(fit)) for use in fit}
        methods = list(by_part.values())
        sums, others = ([self._summed(fit[0], (part, held)) for part in by_part] for held in (False, True))
        ridge, weight = ridges[0], self._weights[fit[0].weight]
        if all(each.count for each in (*sums, *others)):
            ridge = chosen_ridge(sums, others, methods, ridges, weight)
        found = refit_shared([one + other for one, other in zip(sums, others, strict=True)], methods, ridge, weight)
        return replace(found, biases=tuple(bias / _times(fit) for bias in found.biases))

    def _summed(self, use: Consumer, key: tuple[str, bool]) -> Residuals:
        """The sums of one part over all processes."""
        own = self._sums.get(key)
        if own is None:
            groups, rows, columns = self._weights[use.weight].shape
            own = Residuals.zeros(groups, columns, rows)
        return own.over_processes()


def _sums(stage: WeightStage) -> list[tuple[Consumer, ...]]:
    """The uses of one weight whose results are added to one target: a weighted sum of the sum of their inputs."""
    return [
        tuple(use for use in fit if use.target == target)
        for fit in stage.fits
        for target in dict.fromkeys(use.target for use in fit)
    ]


def _times(fit: Sequence[Consumer]) -> int:
    """How often a bias counts in each target."""
    return max(sum(use.target == fit[0].target and use.bias == fit[0].bias for use in fit), 1)


def _part(use: Consumer) -> str:
    """Uses of one weight that share a bias are one part of its normal equations."""
    return f"{use.weight}\n{use.bias or ''}"


def weight_stages(found: Sequence[Consumer], method: str) -> list[WeightStage]:
    """The consumers in stages, in the order of the graph."""
    by_weight: dict[str, list[Consumer]] = {}
    for each in found:
        by_weight.setdefault(each.weight, []).append(each)
    stages: list[list[tuple[Consumer, ...]]] = []
    last: Consumer | None = None  # of the stage that is open for more weights that read the same
    for each in found:
        uses = tuple(by_weight[each.weight])
        if each.plain or not _together(uses):
            uses = (each,)
        if each is not uses[0] or _method(each, method, len(uses)) == "none":
            continue
        open_for_more = len(uses) == 1 and last is not None and last.value == each.value
        if open_for_more and each.target not in {use.target for fit in stages[-1] for use in fit}:
            stages[-1].append(uses)
        else:
            stages.append([uses])
        last = each if len(uses) == 1 else None
    return [WeightStage(tuple(fits)) for fits in stages]


def _together(uses: Sequence[Consumer]) -> bool:
    """Whether these are all uses of a weight, all of them alike, with biases that nothing else uses."""
    first = uses[0]
    in_target = Counts((use.target, use.bias) for use in uses)
    per_target = {use.target: {other.bias for other in uses if other.target == use.target} for use in uses}
    shared = {use.bias: sum(other.bias == use.bias for other in uses) for use in uses if use.bias is not None}
    return (
        first.uses == len(uses)
        and len(
            {
                (u.column_axis, u.row_axis, u.groups, u.scale, u.window and (u.window.kernel, u.window.spread))
                for u in uses
            }
        )
        == 1
        and all(use.bias_uses == shared[use.bias] for use in uses if use.bias is not None)
        and len(set(in_target.values())) == 1
        and all(len(biases) == 1 for biases in per_target.values())
    )


def _method(consumer: Consumer, method: str, together: int) -> str:
    """The method that a consumer can take: a weight that other nodes read as well stays, unless all are refitted."""
    whole = together == consumer.uses
    if method == "affine" and consumer.bias is None:
        method = "ols"
    if whole:
        return "none" if method == "mean" and consumer.bias is None else method
    return "mean" if method in ("mean", "affine") and consumer.bias is not None and consumer.bias_uses == 1 else "none"


def _changed(host: Host, fit: Sequence[Consumer], found: Refit) -> dict[str, Array]:
    """The new values of the tensors of one weight's consumers."""
    changes: dict[str, Array] = {}
    use = fit[0]
    if found.weight.any():
        weight = host.read(use.weight)
        changes[use.weight] = use.weight_of(use.matrix(weight) + found.weight, weight.shape)
    for name, change in zip(dict.fromkeys(each.bias for each in fit), found.biases, strict=True):
        if name is not None and change.any():
            bias = host.read(name)
            changes[name] = bias.astype(np.float64) + change.reshape(bias.shape)
    return changes
