"""What a model's change costs: the loss that gates are judged by, with labels or without.

Without labels the model itself is the standard: each output that counts is compared as its judge says (``judge.py``):
distributions over classes by their divergence, values by the squared error relative to their variance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from graphprune.compensation.activation_cache import Shelf
from graphprune.errors import OptionError
from graphprune.hosts.host import Array, Arrays, Gate, Host
from graphprune.importance.context import Evidence, Float
from graphprune.importance.judge import ALONG, Asked, Judge, judges_of, with_labels
from graphprune.importance.judge import divergence as divergence
from graphprune.importance.outcome import Spread
from graphprune.ir.dims import unit_of
from graphprune.ir.graph import Graph
from graphprune.statistics.consumers import consumers_of, find_consumers
from graphprune.statistics.distributed import averaged, summed

Run: TypeAlias = Callable[[Arrays], Arrays]
"""Runs a model: from inputs to outputs."""


@dataclass(frozen=True)
class Gates:
    """The gates of the groups of a model.

    Attributes:
        host: The model.
        by_group: For each group, by name: its gates, and the unit of each position of a gate (or -1).
        batches: Calibration data.
        labels: What is right for each sample, if it is known.
        asked: How the user wants outputs compared.
    """

    host: Host
    by_group: Mapping[str, Sequence[tuple[Gate, NDArray[np.int64]]]]
    batches: Iterable[Arrays]
    labels: Array | None = None
    asked: Sequence[Asked] = ()

    @property
    def all(self) -> list[Gate]:
        """Every gate once; those of several groups read one sum of them."""
        return list(dict.fromkeys(gate for found in self.by_group.values() for gate, _ in found))

    def factors(self, gone: Mapping[str, NDArray[np.int64]]) -> dict[Gate, Float]:
        """Gates that are zero where units are gone: by name of the group, their indices."""
        found: dict[Gate, Float] = {}
        for name, units in gone.items():
            for gate, unit in self.by_group[name]:
                factor = found.setdefault(gate, np.ones(len(unit)))
                factor[np.isin(unit, units)] = 0.0
        return found

    def labelled(self) -> Iterator[tuple[Arrays, Array | None]]:
        """Batches with their labels."""
        return labelled(self.batches, self.labels)


def labelled(batches: Iterable[Arrays], labels: Array | None) -> Iterator[tuple[Arrays, Array | None]]:
    """Batches with their labels."""
    at = 0
    for batch in batches:
        n = len(next(iter(batch.values())))
        yield batch, None if labels is None else labels[at : at + n]
        at += n


def gates_of(evidence: Evidence, criterion: str) -> Gates:
    """The gates of all groups.

    Raises:
        OptionError: There is no calibration data.
    """
    if evidence.host is None or evidence.batches is None:
        raise OptionError(
            f"criterion '{criterion}' needs calibration data; give some (calibration=..., --calibration PATH)"
        )
    analysis = evidence.analysis
    by_group: dict[str, list[tuple[Gate, NDArray[np.int64]]]] = {}
    consumers = consumers_of(analysis, find_consumers(evidence.host, analysis.graph))
    for group in analysis.groups:
        for each in consumers.get(group.name, ()):
            dim = analysis.layouts[each.value][each.axis]
            gate = Gate(each.node, each.value, each.axis)
            by_group.setdefault(group.name, []).append((gate, unit_of(dim, group.factor)))
    return Gates(evidence.host, by_group, evidence.batches, getattr(evidence.batches, "labels", None), evidence.asked)


def first_values(outputs: Arrays) -> Judge:
    """The values of the first floating-point output.

    Raises:
        OptionError: There is none.
    """
    for at, (name, array) in enumerate(outputs.items()):
        if array.dtype.kind == "f" and array.size:
            return Judge(name, at, "mse")
    raise OptionError(NO_LOSS)


NO_LOSS = (
    "the model has no floating-point output on which a loss could be measured; use a criterion without loss, such as "
    "obs, and allocation isomorphic"
)


def log_softmax(x: Array) -> Float:
    """Along the last axis, in float64."""
    shifted = x.astype(np.float64) - x.max(axis=-1, keepdims=True)
    result: Float = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


class Standard:
    """What changed models are judged by on the data: labels, or the outputs of the model as it was.

    A model with one output that counts has its loss; of several the mean, each relative to what answering always its
    mean would lose, so that boxes in pixels do not hide the scores beside them.

    Args:
        run: The model as it was.
        data: Batches with their labels, which are of the first floating-point output.
        graph: The model's, on which it is found how outputs are compared; without, the first one's values are.
        asked: How the user wants them compared.
        shelf: Where what is wanted waits.
        pooled: Whether squared errors are relative to the variance over all of the data: that of a batch of few samples
            is not known, and small by chance.

    Raises:
        OptionError: There is no floating-point output.
    """

    def __init__(
        self,
        run: Run,
        data: Iterable[tuple[Arrays, Array | None]],
        graph: Graph | None = None,
        asked: Sequence[Asked] = (),
        shelf: Shelf | None = None,
        *,
        pooled: bool = False,
    ) -> None:
        self._shelf = shelf or Shelf()
        self._judges = None if graph is None else judges_of(graph, asked)
        if self._judges == ():
            raise OptionError(NO_LOSS)
        self._data: list[tuple[Arrays, list[tuple[Callable[[], Array], float]]]] = []
        self._labelled = False
        spreads: list[Spread] = []
        for batch, labels in data:
            outputs = run(batch)
            if self._judges is None:
                self._judges = (first_values(outputs),)
            if labels is not None and not self._labelled:
                self._judges, self._labelled = (with_labels(self._judges[0], labels),), True
            own = [each.prepared(outputs) for each in self._judges]
            if len(self._judges) > 1:
                spreads = spreads or [Spread(each) for each in self._judges]
                for spread, array in zip(spreads, own, strict=True):
                    spread.add(array)
            variances = [
                float(array.var(dtype=np.float64)) or 1.0 if judge.kind == "mse" else 1.0
                for judge, array in zip(self._judges, own, strict=True)
            ]
            wanted = [self._shelf.put(each) for each in (own if labels is None else [labels])]
            self._data.append((batch, list(zip(wanted, variances, strict=True))))
            del outputs, own  # before the next ones are made: they may be of a vocabulary
        if pooled:
            self._pool()
        scales = [(1.0 if each.judge.kind == "mse" else each.loss) or 1.0 for each in spreads] or [1.0]
        self._scales = averaged(np.array(scales))

    def _pool(self) -> None:
        """Puts the variance over all of the data in place of those of batches."""
        for at, judge in enumerate(self._judges or ()):
            if judge.kind != "mse" or self._labelled:
                continue
            sums = np.zeros(3)
            for _, wanted in self._data:
                array = wanted[at][0]().astype(np.float64)
                sums += array.size, array.sum(), 0.0
            mean = sums[1] / max(1.0, sums[0])
            for _, wanted in self._data:
                sums[2] += float(np.square(wanted[at][0]() - mean, dtype=np.float64).sum())
            variance = float(sums[2] / max(1.0, sums[0])) or 1.0
            for _, wanted in self._data:
                wanted[at] = wanted[at][0], variance

    def loss(self, run: Run) -> float:
        """The mean loss of a model over the data."""
        return self.loss_of(run(batch) for batch, _ in self._data)

    def loss_of(self, found: Iterable[Arrays]) -> float:
        """The mean loss of outputs, for each batch of the data, over all processes."""
        each = iter(found)
        losses = [self._loss_on(next(each), wanted) for _, wanted in self._data]  # one batch's outputs at a time
        total, count = summed(np.array([sum(losses), len(losses)]))
        return float(total / max(count, 1))

    def losses(self, run: Run) -> list[float]:
        """The loss of a model on each sample, where samples are the first axis of what is compared; else on each batch.

        Their mean is the loss where batches are equally large. Of this process.
        """
        return [each for batch, wanted in self._data for each in self._losses_on(batch, run(batch), wanted)]

    def _losses_on(
        self, batch: Arrays, outputs: Arrays, wanted: Sequence[tuple[Callable[[], Array], float]]
    ) -> list[float]:
        n = max((len(array) for array in batch.values() if array.ndim), default=1)
        judged = list(zip(self._judges or (), wanted, self._scales, strict=True))
        pairs = [(array(), judge.prepared(outputs)) for judge, (array, _), _ in judged]
        each = all(a.ndim and b.ndim and len(a) == len(b) == n for a, b in pairs)
        if not each or any(judge.kind in ALONG and judge.axis == 0 for judge, _, _ in judged):
            return [self._loss_on(outputs, wanted)]
        rows = range(n)
        table = [
            [self._loss(judge, a[i : i + 1], b[i : i + 1], variance) / scale for i in rows]
            for (judge, (_, variance), scale), (a, b) in zip(judged, pairs, strict=True)
        ]
        return [float(each) for each in np.mean(table, axis=0)]

    def loss_on(self, number: int, outputs: Arrays) -> float:
        """The loss of outputs on one batch of the data, of this process."""
        return self._loss_on(outputs, self._data[number][1])

    def _loss_on(self, outputs: Arrays, wanted: Sequence[tuple[Callable[[], Array], float]]) -> float:
        losses = [
            self._loss(judge, array(), judge.prepared(outputs), variance) / scale
            for judge, (array, variance), scale in zip(self._judges or (), wanted, self._scales, strict=True)
        ]
        return float(np.mean(losses))

    def _loss(self, judge: Judge, wanted: Array, found: Array, variance: float) -> float:
        if judge.kind == "kl" and self._labelled:
            return -float(np.take_along_axis(log_softmax(found), wanted[..., None].astype(np.int64), -1).mean())
        value = judge.loss(wanted, found)
        return value / variance if judge.kind == "mse" else value


class Objective:
    """The mean loss of a gated model over the data, against labels or against the model as it was."""

    def __init__(self, gates: Gates) -> None:
        self._run = gates.host.gated(gates.all)
        self._standard = Standard(lambda batch: self._run(batch, {}), gates.labelled(), gates.host.graph(), gates.asked)

    def __call__(self, factors: Mapping[Gate, Float]) -> float:
        """The loss with gates at these factors."""
        return self._standard.loss(lambda batch: self._run(batch, factors))
