"""Which batches of calibration data something is fitted to, and which it is judged by.

Three things are kept apart: what scores and refits read; one batch of four of these, by which widths and ridges are
chosen; and samples that neither reads, by which the finished model is judged.
"""

from __future__ import annotations

from collections.abc import Iterable

from graphprune.data.apart import JUDGED
from graphprune.data.batches import Batches
from graphprune.hosts.host import Arrays
from graphprune.ir.graph import Graph

HELD = 4
"""One of so many batches is held apart."""

UNSEEN = "samples of the calibration data that pruning has not seen"
SPARED = "calibration samples (held apart where scores were taken)"
CALIBRATION = "calibration samples (pruning has seen them)"
MOST_BATCHES = 8
"""A finished model is judged by at most so many batches, or :data:`JUDGED` samples where that is more."""
OPERATIONS = 4e10
"""MACs that running one of the two models may take then: about two seconds."""


def split_batches(n_batches: int) -> tuple[list[int], list[int]]:
    """Numbers of the batches to fit to, and of those to judge by: every fourth, at least one.

    A single batch is both: what is fitted to it looks better on it than it is.
    """
    if n_batches < 2:
        return list(range(n_batches)), list(range(n_batches))
    step = min(HELD, n_batches)
    held = list(range(step - 1, n_batches, step))
    return [i for i in range(n_batches) if i not in held], held


def judged_by(
    batches: Batches, unseen: Batches | None, macs: float, *, spared: bool = False
) -> tuple[Iterable[Arrays], str]:
    """The batches by which a finished model is judged, the least fitted to that there are, and what they are.

    Args:
        batches: Calibration data.
        unseen: Samples that nothing was fitted to, if some were kept (:meth:`Batches.set_apart`).
        macs: Of the original on one sample: the fewer batches are run, the more it is.
        spared: Whether one batch of four was held apart from all that was fitted.
    """
    most = affordable(macs * batches.batch_size, max(MOST_BATCHES, JUDGED // batches.batch_size))
    others = batches.unseen(most) if unseen is None else unseen
    if others is not None:
        return (others if unseen is None else (unseen[i] for i in range(min(most, len(unseen))))), UNSEEN
    spared = spared and len(batches) > 1
    numbers = split_batches(len(batches))[1] if spared else list(range(len(batches)))
    return (batches[number] for number in numbers[:most]), SPARED if spared else CALIBRATION


def affordable(macs: float, most: int) -> int:
    """How many batches of so many MACs are run, at least one."""
    return int(max(1, min(most, OPERATIONS // max(1.0, macs))))


def samples_of(graph: Graph) -> int:
    """How many samples the example of a model has: the first axis of its first input that has one."""
    return max(1, next((graph.values[name].shape[0] for name in graph.inputs if graph.values[name].shape), 1))
