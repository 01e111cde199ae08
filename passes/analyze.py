"""Find the groups."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from graphprune.analysis.groups import analyze_graph
from graphprune.pipeline import keys
from graphprune.pipeline.passes import Pass
from graphprune.pipeline.state import State
from graphprune.planning.select import protected_axes, resizable_axes


@dataclass(frozen=True)
class Analyze(Pass):
    """Runs the dependency analysis on the host as it is; later passes compare with this host.

    Stored tensors that ``select{protect=...}`` names stay whole, see
    :func:`graphprune.planning.select.protected_axes`. A second analysis, of a model that is cut already, begins anew:
    what was measured and planned before speaks of other units.
    """

    name: ClassVar[str] = "analyze"
    selected: ClassVar[tuple[str, ...]] = ("protect", "resize_io")

    @property
    def needs(self) -> frozenset[str]:
        """Nothing."""
        return frozenset()

    @property
    def gives(self) -> frozenset[str]:
        """The analysis."""
        return frozenset({keys.ANALYSIS})

    @property
    def uses(self) -> frozenset[str]:
        """What is protected, and what was made of the model before: it is analysed as it is."""
        return frozenset({keys.SELECTION, keys.SLICED, keys.SHALLOWER, keys.PLAN, keys.REFIT})

    @property
    def spoils(self) -> frozenset[str]:
        """All that speaks of the units of an analysis before."""
        return frozenset(
            {
                keys.SCORES,
                keys.BLOCK_SCORES,
                keys.STATISTICS,
                keys.PRODUCTS,
                keys.PROTECTION,
                keys.LOSSES,
                keys.PLAN,
                keys.SLICED,
                keys.SHALLOWER,
                keys.REFIT,
                keys.EXPORT,
                keys.LATENCY,
                keys.MODULE,
                keys.METRICS,
            }
        )

    def run(self, state: State) -> State:
        """The state with an analysis."""
        graph, selection = state.host.graph(), state.selection
        resizable = resizable_axes(graph, selection.resize_io, file=not state.host.exports)
        analysis = analyze_graph(graph, protected_axes(graph, selection.protect), resizable)
        return replace(state.unplanned(), original=state.host, analysis=analysis)
