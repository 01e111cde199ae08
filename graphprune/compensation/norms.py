"""Batch normalisations of a pruned model: running statistics that follow what their inputs have become.

The inputs' mean and variance are measured in the dense and in the pruned model on the same data, one normalisation
after the other; what has changed between the two is what the stored statistics are changed by, so that a difference
between the calibration data and the training data stays where it was (adaptive batch normalisation;
docs/methods.md, Refits).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from graphprune.analysis.groups import Analysis
from graphprune.hosts.host import Array, Arrays, Host
from graphprune.ir.dims import Factor, Index, positions
from graphprune.ir.graph import Node
from graphprune.observer import Count, uncounted
from graphprune.statistics.collect import reduce_over_processes
from graphprune.statistics.moments import Moments

CHANNEL = 1
"""The axis that batch normalisation keeps apart."""
_OPERANDS = 5  # x, scale, bias, mean, variance


def reestimate(
    dense: Host,
    pruned: Host,
    analysis: Analysis,
    kept: Mapping[Factor, Index],
    batches: Iterable[Arrays],
    *,
    progress: Count = uncounted,
) -> tuple[Host, tuple[str, ...]]:
    """Brings the running statistics of all batch normalisations up to date, in the order of the graph.

    Those that something else reads, or that are computed, stay as they are.

    Returns:
        The pruned model with other statistics, and the names of the tensors that changed.
    """
    graph = pruned.graph()
    norms = [
        node
        for node in graph.nodes
        if _is_batch_norm(node)
        and node.operands[0] in analysis.layouts
        and not node.optional
        and all(graph.n_uses(str(name)) == 1 and graph.values[str(name)].stored for name in node.operands[3:_OPERANDS])
    ]
    left: list[Any] = list(batches)
    right: list[Any] = list(left)
    have_left = have_right = None
    changed: list[str] = []
    for n, node in enumerate(norms):
        value, mean_name, variance_name = str(node.operands[0]), str(node.operands[3]), str(node.operands[4])
        later = [str(other.operands[0]) for other in norms[n:]]
        go_left = dense.partial_run(have_left, [value], later)
        go_right = pruned.partial_run(have_right, [value], later)
        channels = positions(analysis.layouts[value][CHANNEL], kept)
        before, after = (Moments.zeros(1, len(channels), full=False) for _ in range(2))
        for i in range(len(left)):
            left[i], was = go_left(left[i])
            right[i], now = go_right(right[i])
            before.add(_rows(np.take(was[value], channels, CHANNEL)))
            after.add(_rows(now[value]))
        reduce_over_processes((before, after), 0)
        have_left, have_right = list(left[0]), list(right[0])
        ratio = after.variance[0] / np.maximum(before.variance[0], np.finfo(np.float64).tiny)
        ratio[before.variance[0] <= 1e-12 * before.variance[0].max(initial=0.0)] = 1.0  # a channel that never varies
        pruned = pruned.replaced(
            {
                mean_name: pruned.read(mean_name) + (after.mean - before.mean)[0],
                variance_name: pruned.read(variance_name) * ratio,
            }
        )
        changed += [mean_name, variance_name]
        progress(n + 1, len(norms))
    return pruned, tuple(changed)


def _is_batch_norm(node: Node) -> bool:
    return node.role == "batch-norm" and len(node.operands) >= _OPERANDS and all(node.operands[3:_OPERANDS])


def _rows(x: Array) -> Array:
    return np.moveaxis(x, CHANNEL, -1).reshape(-1, 1, x.shape[CHANNEL]).astype(np.float64)
