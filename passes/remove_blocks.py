"""Leave residual branches out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from graphprune.hosts.edits import Edits
from graphprune.pipeline import keys
from graphprune.pipeline.passes import Pass
from graphprune.pipeline.state import State


@dataclass(frozen=True)
class RemoveBlocks(Pass):
    """Makes every sum that loses a branch its other operand; ``remove-dead-nodes`` then drops the branch."""

    name: ClassVar[str] = "remove-blocks"

    @property
    def needs(self) -> frozenset[str]:
        """What is to go."""
        return frozenset({keys.ANALYSIS, keys.PLAN})

    @property
    def gives(self) -> frozenset[str]:
        """A model without the blocks."""
        return frozenset({keys.SHALLOWER})

    @property
    def before(self) -> frozenset[str]:
        """It runs once."""
        return frozenset({keys.SHALLOWER})

    def run(self, state: State) -> State:
        """The state with a shallower host; the same host where no block goes."""
        state = replace(state, done=state.done | self.gives)
        if not state.removed:
            return state
        skips = state.analyzed(self.name).branches.skips(state.removed)
        return replace(state, host=state.host.edited(Edits(bypasses=skips)))
