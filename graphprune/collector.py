"""The cyclic garbage collector, kept away from the heap of the frameworks."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def frozen_heap() -> Iterator[None]:
    """Leaves all objects that exist now out of garbage collections in the block.

    Compiling allocates many small objects, which triggers full collections; with torch and transformers loaded each of
    them takes 0.3 s, longer than the analysis of most models. New objects are collected as ever.
    """
    ours = gc.get_freeze_count() == 0  # somebody else's frozen objects stay frozen
    if ours:
        gc.freeze()
    try:
        yield
    finally:
        if ours:
            gc.unfreeze()
