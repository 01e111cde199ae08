"""How many samples are kept to judge by, and how those that are left fill the batches of a model of fixed size."""

from __future__ import annotations

import numpy as np

from graphprune.data.specs import Array

EIGHTH, JUDGED, LEAST, LEAST_BATCHES = 8, 64, 64, 16
"""One sample in eight, at most 64, is spared to judge a finished model by; of fewer than 64 none."""
DECIDING = 32
"""Where some have to be spared, at least so many samples are: fewer decide little."""


def spared(count: int, size: int, *, flexible: bool) -> int:
    """How many of so many samples can be spared: one in eight; whole batches where the model takes no others."""
    spare = min(JUDGED, count // EIGHTH) if count >= LEAST else 0
    if flexible:
        return spare
    n_batches = count // size
    return spare // size * size if n_batches >= LEAST_BATCHES else 0


def required(count: int, size: int, *, single: bool) -> int:
    """How many of so many samples are kept where some have to be.

    One batch in eight, at least one, where there are two. Of few and large batches single samples, if they may be taken
    out of them.
    """
    few = max(DECIDING, count // EIGHTH)
    n_batches = -(-count // size)
    if single and n_batches < EIGHTH and few < size and 2 * few <= count:
        return few
    return max(1, n_batches // EIGHTH) * size if n_batches > 1 else 0


def filled(at: Array, size: int) -> Array:
    """Numbers of samples, and some of them again, evenly chosen, so that they make whole batches.

    Example:
        >>> filled(np.array([3, 5, 8]), 4).tolist()
        [3, 5, 8, 3]
    """
    short = -len(at) % size
    again = np.resize(at, short // len(at) * len(at)) if short else at[:0]
    rest = short - len(again)
    return np.concatenate([at, again, at[np.arange(rest) * len(at) // max(1, rest)]])
