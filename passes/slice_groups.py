"""Take the kept units and leave the others out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from graphprune.analysis.groups import Analysis
from graphprune.errors import OptionError
from graphprune.ir.graph import Graph
from graphprune.pipeline import keys
from graphprune.pipeline.edits import slice_edits
from graphprune.pipeline.passes import Pass
from graphprune.pipeline.state import State

__all__ = ["SliceGroups", "slice_edits"]

_TWICE = "has been cut since the analysis; keep one 'slice-groups' after each 'analyze' in the pipeline"


@dataclass(frozen=True)
class SliceGroups(Pass):
    """Slices stored tensors and rewrites every attribute that carries a size."""

    name: ClassVar[str] = "slice-groups"

    @property
    def needs(self) -> frozenset[str]:
        """What is to be kept."""
        return frozenset({keys.ANALYSIS, keys.PLAN})

    @property
    def gives(self) -> frozenset[str]:
        """A model that is cut."""
        return frozenset({keys.SLICED})

    @property
    def before(self) -> frozenset[str]:
        """Its edits speak of all nodes and all units of the original."""
        return frozenset({keys.SLICED, keys.SHALLOWER})

    def comes_late(self, key: str) -> str:
        """A second cut by indices that count the units of the original."""
        return f"the model {_TWICE}" if key == keys.SLICED else super().comes_late(key)

    def run(self, state: State) -> State:
        """The state with a smaller host.

        Raises:
            OptionError: The host is smaller already.
        """
        analysis = state.analyzed(self.name)
        if state.host is not state.original:
            _require_whole(state.host.graph(), analysis)
        host = state.host.edited(slice_edits(analysis, state.kept))
        return replace(state, host=host, done=state.done | self.gives)


def _require_whole(graph: Graph, analysis: Analysis) -> None:
    """Refuses a second cut by indices that count the units of the original."""
    for value in graph.stored:
        before = analysis.graph.values.get(value.name)
        if before is not None and before.shape != value.shape:
            raise OptionError(f"'{value.name}' {_TWICE}")
