"""Scales and shifts of normalisations whose width is cut: each channel is refitted to what the dense model computes.

A normalisation over fewer channels divides by another root mean square. Weights that read its result make that good
where they can be refitted; a tied output layer cannot, and neither is there a refit where only biases change. So each
channel ``y = γ z + β`` gets the ``γ`` and ``β`` that bring it closest to the dense ``y``: a weighted sum of one input,
refitted as any other (docs/methods.md, Refits), before what reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphprune.analysis.groups import Analysis
from graphprune.compensation.methods import Residuals, refit
from graphprune.compensation.stage import Compensated, Counter, Positions
from graphprune.hosts.host import Array, Arrays, Carried, Host, PartialRun
from graphprune.ir.dims import Factor, Index, factors_of, positions
from graphprune.ir.graph import Graph, Node
from graphprune.statistics.collect import positions_to_count
from graphprune.statistics.consumers import Source, count_of
from graphprune.statistics.products import real


@dataclass(frozen=True)
class Scaling:
    """An operator that scales each channel of a value by a stored number, and may add another one.

    Attributes:
        node: Its name.
        value: The value that it reads.
        result: What it computes.
        channel: The axis of the result along which the numbers lie.
        scale: The stored scale.
        shift: What is added to the result by the operator itself, if it has such an operand.
    """

    node: str
    value: str
    result: str
    channel: int
    scale: str
    shift: str | None

    @property
    def start(self) -> str:
        """The value from which the pruned model goes on once it is refitted."""
        return self.value

    @property
    def read(self) -> list[str]:
        """What the refit looks at in the pruned model."""
        return [self.result]

    @property
    def targets(self) -> list[str]:
        """What it should restore."""
        return [self.result]

    @property
    def places(self) -> dict[str, tuple[str, int]]:
        """What is counted."""
        return {self.node: (self.result, self.channel)}

    def counter(
        self, analysis: Analysis, kept: Mapping[Factor, Index], pruned: Host, n_batches: int, rng: np.random.Generator
    ) -> Counter:
        """See :class:`graphprune.compensation.stage.Stage`."""
        return _Counter(self, analysis, kept, pruned, n_batches, rng)


def find_scalings(graph: Graph, analysis: Analysis, kept: Mapping[Factor, Index]) -> Iterator[Scaling]:
    """The scalings of a pruned graph along the axes that a normalisation has lost channels of, in order."""
    shifted = {factor for factor in kept if not analysis.group_of[factor].exact}
    for node in graph.nodes:
        found = _scaling(graph, node)
        if found is not None and found.result in analysis.layouts:
            lost = shifted.intersection(factors_of(analysis.layouts[found.result][found.channel]))
            if lost:
                yield found


def _scaling(graph: Graph, node: Node) -> Scaling | None:
    stored = [name for name in node.operands if name is not None and graph.values[name].stored]
    others = [name for name in node.operands if name is not None and not graph.values[name].stored]
    if node.rule is None or len(node.results) < 1 or node.results[0] is None or len(others) != 1 or not stored:
        return None
    multiplies = node.multiple == "product" and len(stored) == 1
    if not (multiplies or (node.rule.normalized and node.operands[0] == others[0])):
        return None
    result, scale = node.results[0], stored[0]
    shift = stored[1] if len(stored) > 1 else None
    at = node.operands.index(scale)
    channel = _channel(node, at, graph.values[scale].n_elements)
    own = (
        name is None or (graph.values[name].kind == "parameter" and graph.n_uses(name) == 1) for name in (scale, shift)
    )
    if channel is None or not all(own) or len(stored) > 2:
        return None
    return Scaling(node.name, others[0], result, channel, scale, shift)


def _channel(node: Node, operand: int, size: int) -> int | None:
    """The one axis of the result along which a stored operand of a size lies."""
    assert node.rule is not None
    layout, result = node.rule.operands[operand], node.rule.results[0]
    if layout is None or result is None:
        return None
    factors = {factor for dim in layout for factor in factors_of(dim)}
    axes = [i for i, dim in enumerate(result) if factors.intersection(factors_of(dim))]
    return axes[0] if len(axes) == 1 and result[axes[0]].size == size else None


class _Counter:
    """The regression of each channel of the dense model on the same channel of the pruned one."""

    def __init__(
        self,
        scaling: Scaling,
        analysis: Analysis,
        kept: Mapping[Factor, Index],
        pruned: Host,
        n_batches: int,
        rng: np.random.Generator,
    ) -> None:
        self._scaling, self._pruned, self._n_batches, self._rng = scaling, pruned, n_batches, rng
        self._channels = positions(analysis.layouts[scaling.result][scaling.channel], kept)
        shift = None if scaling.shift is None else pruned.read(scaling.shift).ravel()
        self._shift: Array = np.zeros(len(self._channels)) if shift is None else shift
        self._sums = Residuals.zeros(len(self._channels), 1, 1)
        self._look: PartialRun | None = None

    def add(self, values: Carried, wanted: Arrays, masks: Mapping[str, Positions]) -> None:
        """Counts one batch in."""
        scaling = self._scaling
        if self._look is None:
            self._look = self._pruned.partial_run(list(values), scaling.read)
        y = self._look(values)[1][scaling.result]
        n = count_of(Source(scaling.result, scaling.channel), y)
        pick = positions_to_count(n, 1, self._n_batches, masks[scaling.node], self._rng)
        y = _rows(y, scaling.channel, pick)
        t = _rows(wanted[scaling.result], scaling.channel, pick)[:, self._channels]
        x = y - self._shift.astype(y.dtype)
        self._sums.add(x[:, :, None], (t - y)[:, :, None], t[:, :, None])

    def solved(self, method: str, ridges: Sequence[float]) -> tuple[list[Compensated], dict[str, Array]]:
        """The best change of the scale and the shift of each channel."""
        scaling = self._scaling
        found = refit(
            self._sums.over_processes(), "ols" if scaling.shift is None and method == "affine" else method, ridges[0]
        )
        done = [Compensated(scaling.node, scaling.scale, scaling.shift, found.before, found.after)]
        scale = self._pruned.read(scaling.scale).astype(np.float64)
        changes: dict[str, Array] = {scaling.scale: scale * (1 + found.weight.reshape(scale.shape))}
        if scaling.shift is not None:
            shift = self._pruned.read(scaling.shift).astype(np.float64)
            changes[scaling.shift] = shift + found.bias.reshape(shift.shape)
        return done, changes


def _rows(x: Array, axis: int, pick: Positions) -> Array:
    table = np.moveaxis(x, axis, -1)
    table = table.reshape(-1, table.shape[-1])
    return real(table if pick is None else table[pick])
