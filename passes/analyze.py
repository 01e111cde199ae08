"""Find the groups."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from graphprune.analysis.groups import analyze_graph
from graphprune.pipeline.passes import Pass
from graphprune.pipeline.state import State
from graphprune.planning.select import protected_axes


@dataclass(frozen=True)
class Analyze(Pass):
    """Runs the dependency analysis on the host as it is; later passes compare with this host.

    Attributes:
        protect: Patterns of stored tensors that stay whole, see :func:`graphprune.planning.select.protected_axes`.
    """

    name: ClassVar[str] = "analyze"
    protect: tuple[str, ...] = ()

    def run(self, state: State) -> State:
        """The state with an analysis."""
        graph = state.host.graph()
        analysis = analyze_graph(graph, protected_axes(graph, self.protect))
        return replace(state, original=state.host, analysis=analysis)
