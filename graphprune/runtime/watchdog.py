"""Stops runs of onnxruntime that take more time or memory than :mod:`graphprune.bounds` allows.

One thread looks at all runs that are under way, a few times a second; it ends when there are none.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from graphprune.bounds import MEMORY_PER_BYTE, present
from graphprune.errors import BoundError
from graphprune.runtime.library import onnxruntime

if TYPE_CHECKING:
    import onnxruntime as ort

PERIOD = 0.05
"""Seconds between two looks; a run that is over by then was never looked at."""
BYTES_PER_SECOND = 1_000_000
"""Stored tensors and inputs of so many bytes earn a run one more second."""


@dataclass
class Run:
    """A run that is under way.

    Attributes:
        options: To be handed to onnxruntime.
        seconds: Processor seconds that it may take.
        memory: Bytes that it may take.
        looked: The processor clock at the last look; asking for it costs more than a small run does.
        used: Processor seconds up to then; those of runs that go on beside each other are shared among them.
        reason: Why it was stopped; empty while it was not.
    """

    options: ort.RunOptions
    seconds: float
    memory: int
    resident: int = field(default_factory=lambda: resident_bytes())
    looked: float | None = None
    used: float = 0.0
    reason: str = ""


_sizes: WeakKeyDictionary[ort.InferenceSession, int] = WeakKeyDictionary()
_runs: list[Run] = []
_lock = threading.Lock()
_awake = threading.Event()
_threads: list[threading.Thread] = []


def resident_bytes() -> int:
    """Memory of this process that is resident now; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def sized(session: ort.InferenceSession, n_bytes: int) -> ort.InferenceSession:
    """The session, of whose stored tensors the size is known from now on."""
    _sizes[session] = n_bytes
    return session


@contextmanager
def watched(session: ort.InferenceSession, n_bytes: int) -> Iterator[ort.RunOptions]:
    """Options for one run, which stop it when it takes too much.

    Args:
        session: What is run.
        n_bytes: Bytes of its inputs.

    Raises:
        BoundError: The run was stopped.
    """
    now, n_bytes = present(), n_bytes + _sizes.get(session, 0)
    run = Run(
        onnxruntime().RunOptions(), now.seconds + n_bytes / BYTES_PER_SECOND, now.memory + MEMORY_PER_BYTE * n_bytes
    )
    run.options.log_severity_level = 4
    with _lock:
        _runs.append(run)
        if not _threads or not _threads[0].is_alive():
            _threads[:] = [threading.Thread(target=_watch, name="graphprune-watchdog", daemon=True)]
            _threads[0].start()
        _awake.set()
    try:
        yield run.options
    except Exception as error:
        if run.reason:
            raise BoundError(run.reason) from error
        raise
    finally:
        with _lock:
            _runs.remove(run)
            if not _runs:
                _awake.clear()


def _watch() -> None:
    while True:
        _awake.wait()
        time.sleep(PERIOD)
        with _lock:
            runs = [run for run in _runs if not run.reason]
        if not runs:
            continue
        clock, resident = time.process_time(), resident_bytes()
        for run in runs:
            _look(run, clock, resident - run.resident if resident else 0, len(runs))


def _look(run: Run, clock: float, memory: int, n_runs: int) -> None:
    """Stops a run that has taken too much of what all that go on now have taken."""
    run.used += 0.0 if run.looked is None else (clock - run.looked) / n_runs
    run.looked, seconds, memory = clock, run.used, memory // n_runs
    if seconds > run.seconds:
        run.reason = (
            f"the model runs for more than {run.seconds:.0f} processor seconds on one input; it loops, or is larger "
            "than its file says; allow more with --bound seconds=N"
        )
    elif memory > run.memory:
        run.reason = (
            f"the model takes more than {run.memory / 1e9:.1f} GB beyond its own size on one input; allow more with "
            "--bound memory=N"
        )
    if run.reason:
        run.options.terminate = True
