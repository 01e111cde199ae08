"""Gates of recurrent layers among the readers of a group: in scores, and refitted in trials."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.analysis.groups import Group
from graphprune.compensation.gates import Gates
from graphprune.compensation.moved import put_back, value_of
from graphprune.hosts.host import Host
from graphprune.importance.context import FLOOR, Evidence, Float, Reading, readings
from graphprune.ir.dims import unit_of
from graphprune.statistics.collect import Statistics
from graphprune.statistics.consumers import Consumer


def gate_readings(evidence: Evidence, statistics: Statistics, group: Group) -> Iterator[tuple[Gates, Reading]]:
    """How the gates of recurrent layers read the units of a group; their targets are the pre-activations."""
    host = evidence.host
    for gates in statistics.gates.get(group.name, ()) if host is not None else ():
        assert host is not None
        moments, matrix = statistics.moments[gates.source], gates.matrix(host)
        units = np.concatenate([unit_of(dim, group.factor) for dim in gates.columns(evidence.analysis)])
        stored = gates.cell.w.tensor
        value, axis, groups, window = gates.source
        reader = Consumer(gates.node, value, -1 if axis is None else axis, stored, 1, 0, value, None, groups, window)
        if moments.product is None:  # as if the columns had nothing in common
            variance = np.square(matrix) @ moments.variance[0]
        else:
            variance = np.einsum("rc,cd,rd->r", matrix, moments.covariance[0], matrix, optimize=True)
        floor = max(FLOOR * float(np.median(variance)), float(np.finfo(np.float64).tiny))
        scale = 1 / np.sqrt(len(variance) * np.maximum(variance, floor))
        yield gates, Reading(reader, moments, units[None], matrix[None], scale[None])


def all_readings(evidence: Evidence, statistics: Statistics, group: Group) -> Iterator[Reading]:
    """How consumers and gates read the units of a group."""
    yield from readings(evidence, statistics, group)
    yield from (reading for _, reading in gate_readings(evidence, statistics, group))


def refitted_gates(
    host: Host, found: Sequence[tuple[Gates, Reading]], gone: NDArray[np.int64], without: Callable[..., Any]
) -> dict[str, Float]:
    """The stored tensors of gates that read some units no more and are refitted on what is left.

    Args:
        host: The model.
        found: From :func:`gate_readings`.
        gone: Indices of units.
        without: :func:`graphprune.importance.trials.without`.
    """
    changes: dict[str, Float] = {}

    def changing(name: str) -> Float:
        if name not in changes:
            changes[name] = value_of(host, name).astype(np.float64)
        return changes[name]

    for gates, reading in found:
        cell, bias = gates.cell, gates.cell.w_bias
        weight, shift = without(reading, np.isin(reading.units, gone), refit=True, centre=bias is not None)
        n_inputs = cell.w.of(changing(cell.w.tensor)).shape[1]
        cell.w.of(changing(cell.w.tensor))[:] = weight[0][:, :n_inputs]
        cell.r.of(changing(cell.r.tensor))[:] = weight[0][:, n_inputs:]
        if bias is not None:
            bias.of(changing(bias.tensor))[:] += shift[0]
    stored = put_back(host, changes)
    return {} if stored is None else {name: np.asarray(array, np.float64) for name, array in stored.items()}
