"""Leave residual branches out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from graphprune.pipeline.host import Edits
from graphprune.pipeline.passes import Pass
from graphprune.pipeline.state import State


@dataclass(frozen=True)
class RemoveBlocks(Pass):
    """Makes every sum that loses a branch its other operand; ``remove-dead-nodes`` then drops the branch."""

    name: ClassVar[str] = "remove-blocks"

    def run(self, state: State) -> State:
        """The state with a shallower host; the same host where no block goes."""
        if not state.removed:
            return state
        skips = state.analyzed(self.name).branches.skips(state.removed)
        return replace(state, host=state.host.edited(Edits(bypasses=skips)))
