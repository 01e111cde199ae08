"""Which batches of calibration data something is fitted to, and which it is judged by."""

from __future__ import annotations

HELD = 4
"""One of so many batches is held apart."""


def apart(n_batches: int) -> tuple[list[int], list[int]]:
    """Numbers of the batches to fit to, and of those to judge by: every fourth, at least one.

    A single batch is both: what is fitted to it looks better on it than it is.
    """
    if n_batches < 2:
        return list(range(n_batches)), list(range(n_batches))
    step = min(HELD, n_batches)
    held = list(range(step - 1, n_batches, step))
    return [i for i in range(n_batches) if i not in held], held
