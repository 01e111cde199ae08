"""Refits of all cut consumers, one after the other, on what the pruned model up to there computes.

The dense and the pruned model go over the calibration data side by side, from consumer to consumer. At each one the
pruned model's inputs and its distance from the dense model's outputs are summed up, the weight is refitted, and both
go on from there: two walks over the model in all, whatever its depth. Where a consumer ends a residual branch, its
target is the residual sum, so that it makes good what the stream has lost before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from graphprune.analysis.groups import Analysis
from graphprune.calibration.collect import GATHERED, Masks, picked
from graphprune.calibration.consumers import Consumer, count_of, find_consumers, inputs_of
from graphprune.compensation.ladder import RUNGS, Refit, Residuals, refit_shared
from graphprune.compensation.spool import MEMORY, Spool
from graphprune.errors import PlanError
from graphprune.ir.dims import Factor, Index, factors_of, positions
from graphprune.pipeline.host import Array, Arrays, Carried, Host, Stretch

RIDGE = 1e-2
"""Damping of the least squares: of each input, relative to its variance."""
AGREEMENT = 1e-3
"""Largest difference, relative to the largest value, of what a consumer computes in the host and by its weights: a
test of what its operator means, not of rounding."""


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
    memory: int = MEMORY,
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
        memory: Bytes of activations that are held in memory; others wait on disk.
        progress: Told how many consumers of how many are done.

    Returns:
        The pruned model with other weights, and what was done at each consumer, in the order of the graph.
    """
    stages, pruned = _stages(dense, pruned, analysis, kept, rung)
    done: list[Compensated] = []
    if not stages:
        return pruned, ()
    rng = np.random.default_rng(0)
    masks = Masks(analysis)
    inputs = list(batches)
    with Spool(inputs, memory // 2) as left, Spool(inputs, memory // 2) as right:
        for n, stage in enumerate(stages):
            first = n == 0
            later = [use for other in stages[n + 1 :] for use in other.uses]
            go_left = dense.stretch(
                None if first else left.names(), stage.targets, list(dict.fromkeys(use.target for use in later))
            )
            ahead = list(dict.fromkeys((*stage.read, *stage.targets, *(x for use in later for x in _read(use)))))
            go_right = pruned.stretch(None if first else right.names(), [stage.uses[0].value], ahead)
            counter = _Counter(stage, analysis, kept, pruned, len(inputs), rng)
            for i, batch in enumerate(inputs):
                left[i], wanted = go_left(left[i])
                right[i], _ = go_right(right[i])
                counter.add(right[i], wanted, {use.node: masks.of(batch, use.value, use.axis) for use in stage.uses})
            changes: dict[str, Array] = {}
            for fit in stage.fits:
                found = counter.solved(fit, rung, ridge)
                done.extend(Compensated(use.node, use.weight, use.bias, found.before, found.after) for use in fit)
                changes.update(_changed(pruned, fit, found))
            pruned = pruned.replaced(changes)
            progress(n + 1, len(stages))
    return pruned, tuple(done)


@dataclass(frozen=True)
class Stage:
    """What is refitted together: several weights that read one activation, or one weight that is used several times.

    Attributes:
        fits: For each weight the consumers that use it.
    """

    fits: tuple[tuple[Consumer, ...], ...]

    @property
    def uses(self) -> tuple[Consumer, ...]:
        """All consumers, in the order of the graph."""
        return tuple(use for fit in self.fits for use in fit)

    @property
    def targets(self) -> list[str]:
        """What they should restore."""
        return list(dict.fromkeys(use.target for use in self.uses))

    @property
    def read(self) -> list[str]:
        """What they read, and what their results are added to."""
        return list(dict.fromkeys(name for use in self.uses for name in _read(use)))


def _read(use: Consumer) -> tuple[str, ...]:
    return (use.value,) if use.skip is None else (use.value, use.skip)


class _Counter:
    """Sums up the normal equations of one stage.

    What the consumers compute now follows from their inputs at the positions that are counted. Whether that is so (an
    operator may have a factor or an activation built in) is tried on the first batch; where it is not, they are run.
    """

    def __init__(
        self,
        stage: Stage,
        analysis: Analysis,
        kept: Mapping[Factor, Index],
        pruned: Host,
        n_batches: int,
        rng: np.random.Generator,
    ) -> None:
        self._stage, self._pruned, self._n_batches, self._rng = stage, pruned, n_batches, rng
        layouts = analysis.layouts
        self._channels = {use.node: positions(layouts[use.target][use.channel], kept) for use in stage.uses}
        self._weights = {fit[0].weight: fit[0].matrix(pruned.read(fit[0].weight)) for fit in stage.fits}
        self._biases = {use.bias: pruned.read(use.bias).ravel() for use in stage.uses if use.bias is not None}
        self._sums: dict[str, Residuals] = {}
        self._waiting: dict[str, list[tuple[Array, Array, Array]]] = {}
        self._look: Stretch | None = None
        self._run: Stretch | None = None
        self._by_hand: dict[str, bool] = {}

    def add(self, values: Carried, wanted: Arrays, masks: Mapping[str, NDArray[np.int64] | None]) -> None:
        """Counts one batch in."""
        if self._look is None:
            self._look = self._pruned.stretch(list(values), self._stage.read)
            self._run = self._pruned.stretch(list(values), self._stage.targets)
        read = self._look(values)[1]
        got: Arrays | None = None
        for together in _sums(self._stage):
            use, channel, mask = together[0], self._channels[together[0].node], masks[together[0].node]
            n = count_of(use.source, read[use.value])
            pick = picked(n, self._weights[use.weight].shape[2], self._n_batches, mask, self._rng)
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

    def _computed(self, use: Consumer, x: Array, read: Arrays, pick: NDArray[np.int64] | None) -> Array:
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
        waiting = self._waiting.setdefault(use.node, [])
        waiting.append(rows)  # type: ignore[arg-type]
        if sum(len(x) for x, _, _ in waiting) >= GATHERED:
            self._flush(use)

    def _flush(self, use: Consumer) -> None:
        waiting = self._waiting.get(use.node, [])
        if not waiting:
            return
        x, r, t = (np.concatenate(part) if len(waiting) > 1 else part[0] for part in zip(*waiting, strict=True))
        key = _part(use)
        if key not in self._sums:
            self._sums[key] = Residuals.zeros(use.groups, x.shape[2], t.shape[2])
        self._sums[key].add(x, r, t)
        waiting.clear()

    def solved(self, fit: Sequence[Consumer], rung: str, ridge: float) -> Refit:
        """The best change of one weight."""
        for use in fit:
            self._flush(use)
        by_part = {_part(use): _rung(use, rung, len(fit)) for use in fit}
        found = refit_shared([self._sums[part] for part in by_part], list(by_part.values()), ridge)
        return replace(found, biases=tuple(bias / _times(fit) for bias in found.biases))


def _sums(stage: Stage) -> list[tuple[Consumer, ...]]:
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
) -> tuple[list[Stage], Host]:
    """The cut consumers of the pruned model in stages, and the model with their biases."""
    cut = {
        consumer.node: consumer
        for consumer in find_consumers(dense, analysis.graph)
        if any(factor in kept for factor in factors_of(analysis.layouts[consumer.value][consumer.axis]))
    }
    if rung not in RUNGS or rung == "none":
        return [], pruned
    found = [each for each in find_consumers(pruned, pruned.graph()) if each.node in cut]
    if rung in ("mean", "affine"):
        bare = {each.node: each.channel for each in found if each.bias is None and each.plain}
        if bare:
            pruned = pruned.biased(bare)
            found = [each for each in find_consumers(pruned, pruned.graph()) if each.node in cut]
    usable = [each for each in found if each.target in analysis.graph.values]
    return _ordered(usable, rung), pruned


def _ordered(found: Sequence[Consumer], rung: str) -> list[Stage]:
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
        if each is not uses[0] or _rung(each, rung, len(uses)) == "none":
            continue
        open_for_more = len(uses) == 1 and last is not None and last.value == each.value
        if open_for_more and each.target not in {use.target for fit in stages[-1] for use in fit}:
            stages[-1].append(uses)
        else:
            stages.append([uses])
        last = each if len(uses) == 1 else None
    return [Stage(tuple(fits)) for fits in stages]


def _together(uses: Sequence[Consumer]) -> bool:
    """Whether these are all uses of a weight, all of them alike, with biases that nothing else uses."""
    first = uses[0]
    in_target = Counter((use.target, use.bias) for use in uses)
    per_target = {use.target: {other.bias for other in uses if other.target == use.target} for use in uses}
    shared = {use.bias: sum(other.bias == use.bias for other in uses) for use in uses if use.bias is not None}
    return (
        first.uses == len(uses)
        and len({(u.column_axis, u.row_axis, u.groups, u.window and (u.window.kernel, u.window.spread)) for u in uses})
        == 1
        and all(use.bias_uses == shared[use.bias] for use in uses if use.bias is not None)
        and len(set(in_target.values())) == 1
        and all(len(biases) == 1 for biases in per_target.values())
    )


def _rung(consumer: Consumer, rung: str, together: int) -> str:
    """The rung that a consumer can take: a weight that other nodes read as well stays, unless all are refitted."""
    whole = together == consumer.uses
    if rung == "affine" and consumer.bias is None:
        rung = "ols"
    if whole:
        return "none" if rung == "mean" and consumer.bias is None else rung
    return "mean" if rung in ("mean", "affine") and consumer.bias is not None and consumer.bias_uses == 1 else "none"


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
