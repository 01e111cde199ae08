"""Time and memory of each phase of a compilation, as an observer that is told of its steps."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from graphprune.observer import Observer, Step


def resident(which: str) -> float:
    """Bytes: ``VmRSS`` now, ``VmHWM`` at the most since :func:`forget`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(which):
            return 1024.0 * int(line.split()[1])
    return 0.0


def forget() -> None:
    """Starts the count of the peak anew."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


@dataclass
class Phases(Observer):
    """What each phase took, which is a step by its name; ``before`` is what comes before the first.

    Attributes:
        rows: By phase: ``seconds`` by the clock, ``cpu_seconds``, ``peak`` and ``left`` in bytes of resident memory, at
            the most and at the end.
    """

    rows: dict[str, dict[str, float]] = field(default_factory=dict)
    phase: str = "before"

    def __post_init__(self) -> None:
        self._mark()

    def _mark(self) -> None:
        self._begun = time.perf_counter(), time.process_time()
        forget()

    def step(self, step: Step | None) -> None:
        """Told that a step begins, or that the last one has ended."""
        phase = step.name if step is not None else "after"
        if phase == self.phase:
            return
        row = self.rows.setdefault(self.phase, {"seconds": 0.0, "cpu_seconds": 0.0, "peak": 0.0, "left": 0.0})
        row["seconds"] += time.perf_counter() - self._begun[0]
        row["cpu_seconds"] += time.process_time() - self._begun[1]
        row["peak"] = max(row["peak"], resident("VmHWM"))
        row["left"] = resident("VmRSS")
        print(f"{self.phase}: {row['peak'] / 1e9:.2f} GB, {row['seconds']:.1f} s", file=sys.stderr, flush=True)
        self.phase = phase
        self._mark()
