"""How many threads an operator of PyTorch takes, while several runs go on beside each other.

PyTorch keeps one number for the process and a copy in each thread that has computed something. The number is put back
when the last run is over, so that threads of the user that come later find what they would have found.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


@dataclass
class _Limit:
    """How many runs are under way that have said how many threads they take, and what held before the first."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    runs: int = 0
    before: int = 1


_LIMIT = _Limit()


@contextmanager
def on_threads(n: int) -> Iterator[None]:
    """Runs with so many threads within an operator; 0: as many as it takes anyway."""
    if not n:
        yield
        return
    with _LIMIT.lock:
        if not _LIMIT.runs:
            _LIMIT.before = torch.get_num_threads()
        _LIMIT.runs += 1
        torch.set_num_threads(n)
    try:
        yield
    finally:
        with _LIMIT.lock:
            _LIMIT.runs -= 1
            torch.set_num_threads(_LIMIT.before if not _LIMIT.runs else n)
