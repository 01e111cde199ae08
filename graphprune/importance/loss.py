"""What a model's change costs: the loss that gates are judged by, with labels or without.

Without labels the model itself is the standard: the divergence of its distribution over classes where its first output
holds logits, the squared error relative to the output's variance where it does not. An output that a softmax or a
sigmoid made probabilities of is judged by the logits before it (``final.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import OptionError
from graphprune.importance.context import Evidence, Float
from graphprune.importance.final import Final, binary_divergence, final_of
from graphprune.ir.dims import unit_of
from graphprune.ir.graph import Graph
from graphprune.pipeline.host import Array, Arrays, Gate, Host
from graphprune.statistics.consumers import consumers_of, find_consumers
from graphprune.statistics.distributed import summed

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
    """

    host: Host
    by_group: Mapping[str, Sequence[tuple[Gate, NDArray[np.int64]]]]
    batches: Iterable[Arrays]
    labels: Array | None = None

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
    return Gates(evidence.host, by_group, evidence.batches, getattr(evidence.batches, "labels", None))


def is_categorical(name: str, output: Array, labels: Array | None) -> bool:
    """Whether an output holds logits: there are class labels for it, it says so, or it is one row for each sample."""
    if labels is not None:
        return labels.dtype.kind in "iu"
    return "logits" in name.lower() or (output.ndim == 2 and output.shape[1] > 1)


def first_output(outputs: Arrays) -> tuple[str, Array]:
    """The first floating-point output; half precision, which holds no sums, as float32.

    Raises:
        OptionError: There is none.
    """
    for name, array in outputs.items():
        if array.dtype.kind == "f" and array.size:
            return name, array.astype(np.float32) if array.dtype.itemsize < 4 else array
    raise OptionError(
        "the model has no floating-point output on which a loss could be measured; use a criterion without loss, such "
        "as obs, and allocation isomorphic"
    )


def log_softmax(x: Array) -> Float:
    """Along the last axis, in float64."""
    shifted = x.astype(np.float64) - x.max(axis=-1, keepdims=True)
    result: Float = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


CHUNK = 1 << 17
"""Logits that are compared at a time: vocabularies of language models would fill the memory many times over."""


def divergence(wanted: Array, found: Array) -> float:
    """The mean Kullback-Leibler divergence of softmax distributions along the last axis, from logits, in float64."""
    p, q = (each.reshape(-1, each.shape[-1]) for each in (wanted, found))
    step = max(1, CHUNK // max(1, p.shape[-1]))
    total = 0.0
    for start in range(0, len(p), step):
        a, b = (each[start : start + step].astype(np.float64) for each in (p, q))
        a -= a.max(axis=-1, keepdims=True)
        b -= b.max(axis=-1, keepdims=True)
        difference = a - b
        np.exp(a, out=a)
        np.exp(b, out=b)
        norm = a.sum(axis=-1)
        total += float((np.einsum("nc,nc->n", a, difference) / norm + np.log(b.sum(axis=-1) / norm)).sum())
    return total / max(1, len(p))


class Standard:
    """What changed models are judged by on the data: labels, or the outputs of the model as it was.

    Args:
        run: The model as it was.
        data: Batches with their labels.
        graph: The model's, on which probabilities at its end are found.
    """

    def __init__(self, run: Run, data: Iterable[tuple[Arrays, Array | None]], graph: Graph | None = None) -> None:
        self.final = None if graph is None else final_of(graph)
        self._data: list[tuple[Arrays, Any, bool, float]] = []
        self._judged: Final | None = None  # what outputs are brought before, the same for all batches
        for batch, labels in data:
            name, output = first_output(run(batch))
            categorical = is_categorical(name, output, labels)
            self._judged = self.final if labels is None or not getattr(self.final, "binary", False) else None
            if self._judged is not None:
                output, categorical = self._judged.before(output), not self._judged.binary
            wanted = labels if labels is not None else output
            self._data.append(
                (batch, wanted, categorical, 1.0 if categorical else float(output.var(dtype=np.float64)) or 1.0)
            )

    def loss(self, run: Run) -> float:
        """The mean loss of a model over the data."""
        return self.loss_of(run(batch) for batch, *_ in self._data)

    def loss_of(self, found: Iterable[Arrays]) -> float:
        """The mean loss of outputs, for each batch of the data, over all processes."""
        losses = []
        for outputs, (_, wanted, categorical, variance) in zip(found, self._data, strict=True):
            _, output = first_output(outputs)
            if self._judged is not None:
                output = self._judged.before(output)
            if self._judged is not None and self._judged.binary:
                losses.append(binary_divergence(wanted, output))
                continue
            if not categorical:
                losses.append(float(np.square(output - wanted.reshape(output.shape)).mean(dtype=np.float64)) / variance)
                continue
            if wanted.ndim == output.ndim:  # the distribution that the model had
                losses.append(divergence(wanted, output))
            else:
                log_q = log_softmax(output)
                losses.append(-float(np.take_along_axis(log_q, wanted[..., None].astype(np.int64), -1).mean()))
        total, count = summed(np.array([sum(losses), len(losses)]))
        return float(total / max(count, 1))


class Objective:
    """The mean loss of a gated model over the data, against labels or against the model as it was."""

    def __init__(self, gates: Gates) -> None:
        self._run = gates.host.gated(gates.all)
        self._standard = Standard(lambda batch: self._run(batch, {}), gates.labelled(), gates.host.graph())

    def __call__(self, factors: Mapping[Gate, Float]) -> float:
        """The loss with gates at these factors."""
        return self._standard.loss(lambda batch: self._run(batch, factors))
