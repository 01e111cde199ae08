"""The cyclic garbage collector, kept away from the heap of the frameworks; memory that is free and still held."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress

OBJECTS = 100_000
"""So many new ones are there before the collector looks at them; some 50 MB."""


@contextmanager
def rare_garbage_collection() -> Iterator[None]:
    """Lets many more objects come to be before the collector looks at them, in the whole of a process of our own."""
    before = gc.get_threshold()
    if 0 < before[0] < OBJECTS:
        gc.set_threshold(OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextmanager
def frozen_garbage_collection() -> Iterator[None]:
    """Leaves all objects that exist now out of garbage collections in the block.

    Compiling allocates many small objects, which triggers full collections; with torch and transformers loaded each of
    them takes 0.3 s, longer than the analysis of most models. New objects are collected less often: nearly all of them
    live as long as the model that is compiled, and looking through those again and again takes a tenth of the time.
    """
    if _inside or gc.get_freeze_count():  # somebody else's frozen objects stay frozen
        yield
        return
    gc.freeze()
    _inside.append(True)
    try:
        with rare_garbage_collection():
            yield
    finally:
        _inside.clear()
        gc.unfreeze()


_inside: list[bool] = []
"""Whether objects are frozen by us; to count what is frozen takes as long as analysing a small model."""


def give_back() -> None:
    """Collects what nothing refers to any longer, and hands free memory back to the system where its allocator can.

    Exporters and tracers leave cycles that hold copies of weights, which :func:`frozen_garbage_collection` leaves alone
    for long; and between arrays that stay, what was freed stays with the process.
    """
    gc.collect()
    with suppress(AttributeError, OSError, TypeError):  # the GNU C library alone has it
        ctypes.CDLL(None).malloc_trim(0)
