"""Leave residual branches out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

from graphprune.analysis.blocks import Block
from graphprune.analysis.groups import Analysis
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
        return replace(state, host=state.host.edited(block_edits(state.analyzed(self.name), state.removed)))


def block_edits(analysis: Analysis, blocks: Iterable[Block]) -> Edits:
    """The edits that leave blocks out."""
    skips = {bypass.result: bypass.skip for bypass in analysis.branches.bypasses(blocks).values()}

    def end(name: str) -> str:
        while name in skips:
            name = skips[name]
        return name

    return Edits(bypasses={result: end(skip) for result, skip in skips.items()})
