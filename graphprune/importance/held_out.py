"""What the outputs of finished models lose on inputs that are held apart: one number for each, from end to end.

This is the one place where whole candidates are judged. What outputs are judged by is the business of ``loss.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from graphprune.compensation.activation_cache import Shelf
from graphprune.hosts.host import Arrays, Host
from graphprune.importance.context import Float
from graphprune.importance.judge import Asked
from graphprune.importance.loss import Standard
from graphprune.statistics.distributed import alone, averaged

MEMORY = 1 << 30
"""Bytes of outputs of the original that are kept, most of them on disk; at least those of one batch are."""


def judge(
    dense: Host, batches: Iterable[Arrays], memory: int = MEMORY, *, asked: Sequence[Asked] = ()
) -> Callable[[Host], Float]:
    """What models lose against one of them.

    Args:
        dense: The model that the others are to be like.
        batches: What they are run on; the first ones, as many as the memory holds outputs of.
        memory: Bytes of outputs.
        asked: How the user wants outputs compared.

    Returns:
        A function from a model to the loss of its outputs on each sample, see
        :class:`graphprune.importance.loss.Standard`; on each batch where outputs do not say which sample they are of,
        and where there are several processes, of all of them.
    """
    graph, found = dense.graph(), list(batches)
    n_batches = int(averaged(np.array(len(found))))  # all processes run as many
    found = [found[min(i, len(found) - 1)] for i in range(max(1, n_batches))]
    shelf = Shelf()
    standards = [Standard(dense.run, [(batch, None)], graph, asked, shelf) for batch in _fitting(dense, found, memory)]
    if not alone():  # all of them have to choose alike
        return lambda host: np.array([standard.loss(host.run) for standard in standards])
    return lambda host: np.array([each for standard in standards for each in standard.losses(host.run)])


def preferred(losses: Mapping[str, Float]) -> str:
    """The name of what loses least; the first one, unless another is better by more than chance explains.

    Args:
        losses: By name, in the order of preference: the loss on each of some samples, the same for all.
    """
    first, *others = losses
    best = first
    for name in others:
        ahead = losses[best] - losses[name]
        if not np.isfinite(losses[name]).all():
            continue
        if not np.isfinite(losses[best]).all() or ahead.mean() > _chance(ahead):
            best = name
    return best


def far_behind(losses: Mapping[str, Float], far: float) -> set[str]:
    """The names of what loses ``far`` times as much as the best, by more than chance explains."""
    finite = {name: each for name, each in losses.items() if np.isfinite(each).all()}
    if not finite:
        return set()
    best = min(finite.values(), key=lambda each: float(each.mean()))
    more = {name: each for name, each in finite.items() if each.mean() > far * best.mean()}
    behind = {name for name, each in more.items() if (ahead := each - far * best).mean() > _chance(ahead)}
    return behind | (losses.keys() - finite.keys())


def _chance(ahead: Float) -> float:
    """By how much a mean of differences strays: its standard error."""
    return float(ahead.std(ddof=1) / np.sqrt(len(ahead))) if len(ahead) > 1 else 0.0


def _fitting(dense: Host, batches: Sequence[Arrays], memory: int) -> Sequence[Arrays]:
    """As many batches as the memory holds outputs of, by what the shapes of the graph say; at least one."""
    graph = dense.graph()
    size = sum(graph.values[name].n_elements * graph.values[name].itemsize for name in graph.outputs)
    example = max(1, next((graph.values[name].shape[0] for name in graph.inputs if graph.values[name].shape), 1))
    rows = max((len(array) for batch in batches[:1] for array in batch.values() if array.ndim), default=1)
    return batches[: max(1, int(memory / max(1.0, size * rows / example)))]
