"""Say what may be pruned."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from graphprune.pipeline import keys
from graphprune.pipeline.passes import Pass
from graphprune.pipeline.state import State
from graphprune.planning.selection import Selection


@dataclass(frozen=True)
class Select(Pass):
    """Says once, for all passes behind it, what may be pruned.

    Attributes:
        only: Selectors of the groups that may be pruned (:mod:`graphprune.planning.selectors`); empty means all.
        protect: Patterns of stored tensors, kinds and groups that stay whole.
        protect_ratio: This fraction of the groups stays whole: those that ``protect-sensitive`` finds.
        keep: Units that stay, and no others of their groups: ``layers.3.mlp=0,5`` (:mod:`graphprune.planning.demands`).
        remove: Units that go, and no others of their groups.
        resize_io: Patterns of inputs and outputs of an ONNX file whose axes may be cut.
    """

    name: ClassVar[str] = "select"
    only: tuple[str, ...] = ()
    protect: tuple[str, ...] = ()
    protect_ratio: float = 0.0
    keep: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    resize_io: tuple[str, ...] = ()

    @property
    def needs(self) -> frozenset[str]:
        """Nothing."""
        return frozenset()

    @property
    def gives(self) -> frozenset[str]:
        """The selection, and what the user wants of single groups."""
        return frozenset({keys.SELECTION, *([keys.DEMANDS] if self.keep or self.remove else [])})

    @property
    def asks(self) -> frozenset[str]:
        """Somebody has to find the groups that the outputs depend on most."""
        return frozenset({keys.PROTECTION}) if self.protect_ratio else frozenset()

    @property
    def before(self) -> frozenset[str]:
        """What is protected is known to the analysis."""
        return frozenset({keys.ANALYSIS})

    def check(self) -> None:
        """Refuses selectors that cannot be read."""
        self.selection.check()

    @property
    def selection(self) -> Selection:
        """What may be pruned."""
        return Selection(self.only, self.protect, self.protect_ratio, self.keep, self.remove, resize_io=self.resize_io)

    def run(self, state: State) -> State:
        """The state with the selection."""
        return replace(state, selection=self.selection)
