"""Measure latency before and after."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from graphprune.hosts.cuts import cuts_of, left_of
from graphprune.hosts.export import exported
from graphprune.pipeline import keys
from graphprune.pipeline.passes import Pass
from graphprune.pipeline.state import State
from graphprune.runtime import sessions as runtime


@dataclass(frozen=True)
class MeasureLatency(Pass):
    """Runs the original and the pruned model in onnxruntime, in turns, on one thread and on all cores.

    Attributes:
        seed: Of the example input.
        seconds: About how long is measured for each number of threads.
    """

    name: ClassVar[str] = "measure-latency"
    seed: int = 0
    seconds: float = 1.0

    @property
    def needs(self) -> frozenset[str]:
        """A model that is done."""
        return frozenset({keys.ANALYSIS, keys.PLAN, keys.SLICED})

    @property
    def gives(self) -> frozenset[str]:
        """Latencies."""
        return frozenset({keys.LATENCY})

    @property
    def uses(self) -> frozenset[str]:
        """The file, where it is written already."""
        return self.needs | {keys.EXPORT}

    def run(self, state: State) -> State:
        """The state with milliseconds.

        Raises:
            OutputError: A file cannot be written.
            ModelError: onnxruntime cannot run one.
        """
        state.analyzed(self.name)
        original = state.original
        assert original is not None
        state, after = exported(state)
        inputs = original.example_inputs(self.seed)
        with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
            before = Path(folder) / "before.onnx"
            (state.opened or original).save_onnx(before)
            found = runtime.measure(
                [before, after], [inputs, left_of(cuts_of(state.host), inputs)], seconds=self.seconds
            )
        latencies = {each.threads: (each.milliseconds[0], each.milliseconds[1]) for each in found}
        return replace(state, latencies=latencies, done=state.done | self.gives)
