"""Drop what no output needs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from graphprune.pipeline.passes import Pass
from graphprune.pipeline.state import State


@dataclass(frozen=True)
class RemoveDeadNodes(Pass):
    """Removes nodes and stored tensors that no output depends on; the model's interface stays as it is."""

    name: ClassVar[str] = "remove-dead-nodes"

    @property
    def needs(self) -> frozenset[str]:
        """Nothing."""
        return frozenset()

    @property
    def gives(self) -> frozenset[str]:
        """Nothing that another pass asks for."""
        return frozenset()

    def run(self, state: State) -> State:
        """The state with a tidy host."""
        return replace(state, host=state.host.without_dead_nodes())
