"""All cut consumers refitted at once, from moments of the dense model: a look ahead at what a real refit will make.

Each consumer is refitted to what it computed of the dense model's inputs, as in a trial (``trials.py``), whatever the
others lose. That takes no run of the model, and orders plans nearly as the real refit does, which goes through the
model twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.hosts.host import Host
from graphprune.importance.context import Evidence, Float, Reading, readings
from graphprune.importance.trials import without
from graphprune.ir.dims import Factor, Index, positions
from graphprune.statistics.consumers import with_biases


@dataclass(frozen=True)
class AtOnce:
    """What refits from moments change, by node.

    Attributes:
        weights: The new value of each weight, by name, with all of its columns.
        biases: What is added to the results of a consumer, for each of its rows that stay.
    """

    weights: Mapping[str, NDArray[Any]]
    biases: Mapping[str, Float]


def refitted_at_once(evidence: Evidence, kept: Mapping[Factor, Index]) -> AtOnce:
    """The refit of every consumer that loses columns, and whose weight nothing else reads.

    Args:
        evidence: With products of activations, and the model as it was analysed.
        kept: The units that stay, for groups that lose some.
    """
    statistics = evidence.measured("refits at once")
    read: dict[str, tuple[Reading, NDArray[np.bool_]]] = {}
    for group in evidence.groups:
        if group.factor not in kept:
            continue
        gone = np.setdiff1d(np.arange(group.size), kept[group.factor])
        for reading in readings(evidence, statistics, group):
            lost = np.isin(reading.units, gone)
            node = reading.consumer.node
            if not reading.consumer.plain:  # others read the weight as well: it is cut, which takes no copy here
                continue
            read[node] = reading, lost | read[node][1] if node in read else lost
    weights: dict[str, NDArray[Any]] = {}
    biases: dict[str, Float] = {}
    for node, (reading, lost) in read.items():
        use = reading.consumer
        weight, bias = without(reading, lost, refit=True, centre=use.bias is None or use.bias_uses == 1)
        biases[node] = bias.ravel()
        if use.channel is not None:
            biases[node] = biases[node][positions(evidence.analysis.layouts[use.result][use.channel], kept)]
        before = evidence.read(use.weight)
        weights[use.weight] = use.weight_of(weight, before.shape).astype(before.dtype, copy=False)
    return AtOnce(weights, biases)


def adopted_at_once(dense: Host, found: AtOnce, cut: Callable[[Host], Host]) -> Host:
    """The smaller model with what :func:`refitted_at_once` has found.

    Args:
        dense: The model as it was analysed.
        found: The changes.
        cut: Makes the smaller model.
    """
    host, consumers = with_biases(cut(dense.replaced(found.weights)), found.biases)
    changes: dict[str, Float] = {}
    for use in consumers:
        if use.bias is None or use.bias_uses != 1 or use.bias in changes:
            continue
        before, change = host.read(use.bias), found.biases[use.node]
        if before.size == change.size:
            changes[use.bias] = before.astype(np.float64) + change.reshape(before.shape)
    return host.replaced(changes)
