"""Fold what does not depend on inputs or weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from graphprune.pipeline.passes import Pass
from graphprune.pipeline.state import State


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Computes shape arithmetic of static sizes and tables made of ranges, so that they are constants.

    A constant has values that can be sliced like a parameter's; a range that is computed at run time has not. Sizes
    that an exporter derived from a shape to scale attention keep their present value.
    """

    name: ClassVar[str] = "fold-constants"

    @property
    def needs(self) -> frozenset[str]:
        """Nothing."""
        return frozenset()

    @property
    def gives(self) -> frozenset[str]:
        """Nothing that another pass asks for."""
        return frozenset()

    def run(self, state: State) -> State:
        """The state with the host folded."""
        return replace(state, host=state.host.folded(), opened=state.opened or state.host)
