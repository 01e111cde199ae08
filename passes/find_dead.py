"""Find the units that contribute nothing to the outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import ClassVar

import numpy as np

from graphprune.analysis.groups import Analysis
from graphprune.analysis.ties import find_ties
from graphprune.importance.constants import find_constants
from graphprune.importance.dead import dead_units, removable
from graphprune.ir.dims import Index
from graphprune.pipeline import keys
from graphprune.pipeline.passes import Pass
from graphprune.pipeline.state import State
from graphprune.planning.layouts import asked_of, is_bound, require_layout, sayable


@dataclass(frozen=True)
class FindDead(Pass):
    """Finds the units that are dead already, whatever the inputs are, and has ``allocate`` leave out these.

    What pruning, masks or training have left as zeros (rows, columns, masks of ``torch.nn.utils.prune``), and units
    that are constant and read by weighted sums, into whose biases ``fold-dead`` takes them. Units that are zero and
    whose removal would not be exact stay: channels of a norm's statistic, experts that a router still chooses.

    Attributes:
        layout: What may be left; with ``stock`` so many units go of each group as config and class allow, and no layer
            gets a bias.
        seed: Of the numbers that operators are tried with.
    """

    name: ClassVar[str] = "find-dead"
    layout: str = "free"
    seed: int = 0

    @property
    def needs(self) -> frozenset[str]:
        """What groups there are."""
        return frozenset({keys.ANALYSIS})

    @property
    def gives(self) -> frozenset[str]:
        """Which units go."""
        return frozenset({keys.DEMANDS})

    @property
    def uses(self) -> frozenset[str]:
        """What the user wants of groups besides."""
        return self.needs | {keys.DEMANDS, keys.SELECTION}

    @property
    def adds(self) -> frozenset[str]:
        """More of it."""
        return frozenset({keys.DEMANDS})

    @property
    def asks(self) -> frozenset[str]:
        """Constants have to be taken into biases, and it has to be proven that nothing has changed."""
        return frozenset({keys.SLICED, keys.UNCHANGED})

    @property
    def before(self) -> frozenset[str]:
        """It looks at the whole model."""
        return frozenset({keys.SLICED, keys.SHALLOWER})

    def check(self) -> None:
        """Refuses what is no layout."""
        require_layout(self.layout)

    def run(self, state: State) -> State:
        """The state with the units that go."""
        analysis, bound = state.analyzed(self.name), is_bound(self.layout)
        constants = find_constants(state.host, analysis, self.seed)
        dead = dead_units(state.host, analysis, constants, biases=not bound).units
        found = removable(analysis, dead)
        chosen = {group.name for group in state.selection.groups(analysis)}
        going = {name: index for name, index in found.items() if name in chosen}
        if bound:
            going = self._sayable(state, analysis, going)
        n_found, n_going = (sum(len(each) for each in units.values()) for units in (dead, going))
        note = f"{n_going} units in {len(going)} groups contribute nothing to the outputs and were removed"
        if n_going < n_found:
            note += (
                f"; {n_found - n_going} more had to stay, since one unit at least stays of each group, operators need "
                "multiples, the layout does not allow it, or the selection leaves them out"
            )
        zeros = {name: tuple(index.tolist()) for name, index in going.items()}
        notes = (*state.notes, note if n_found else "no unit contributes nothing to the outputs; nothing was removed")
        return replace(state, selection=replace(state.selection, zeros=zeros), notes=notes)

    def _sayable(self, state: State, analysis: Analysis, going: Mapping[str, Index]) -> dict[str, Index]:
        """So many of them that a config says what is left."""
        free = state.selection.groups(analysis)
        ties = find_ties(analysis) if state.host.keeps_code else ()
        said = sayable(asked_of(state.original), analysis, free, ties)
        found: dict[str, Index] = {}
        for tie in said.ties:
            sizes = {group: group.size // tie.size for group in tie.groups}
            alive = max(ceil((g.size - len(going.get(g.name, ()))) / each) for g, each in sizes.items())
            levels = said.levels.get(tie.groups[0].name, range(1, tie.size + 1))
            n = min((level for level in levels if level >= alive), default=tie.size)
            if n == tie.size or any(g.at_least(n * each) != n * each for g, each in sizes.items()):
                continue
            for group, each in sizes.items():
                found[group.name] = np.sort(going[group.name][::-1][: group.size - n * each])
        return found
