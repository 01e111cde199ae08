"""The cyclic garbage collector, paused."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_collector() -> Iterator[None]:
    """Keeps the cyclic garbage collector from running in the block.

    Analysis and slicing allocate many small objects without cycles. Beside a framework's heap each full collection
    that they trigger takes longer than they do (0.3 s with torch and transformers loaded).
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
