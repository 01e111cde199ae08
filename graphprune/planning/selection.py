"""What may be pruned, as the user says it: once for all passes."""

from __future__ import annotations

from dataclasses import dataclass

from graphprune.analysis.groups import Analysis, Group
from graphprune.errors import OptionError
from graphprune.planning.select import chosen_groups
from graphprune.planning.selectors import doubts, read_selector


@dataclass(frozen=True)
class Selection:
    """What may be pruned.

    Attributes:
        only: Selectors of what may be pruned (:mod:`graphprune.planning.selectors`); empty means all.
        protect: Patterns of tensors, kinds and groups that stay whole.
        protect_ratio: This fraction of the groups stays whole: those that the outputs depend on most.
        resize_io: Patterns of inputs and outputs whose axes may be cut.
    """

    only: tuple[str, ...] = ()
    protect: tuple[str, ...] = ()
    protect_ratio: float = 0.0
    resize_io: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuses what cannot be read.

        Raises:
            OptionError: A selector or the ratio is wrong.
        """
        for selector in (*self.only, *self.protect):
            read_selector(selector)
        require_ratio(self.protect_ratio)

    def groups(self, analysis: Analysis) -> tuple[Group, ...]:
        """The groups that may be pruned.

        Raises:
            OptionError: A selector names no group.
        """
        return chosen_groups(analysis, self.only, self.protect)

    def doubts(self, analysis: Analysis) -> tuple[str, ...]:
        """A sentence for each word that means more than one thing in this model."""
        return (*doubts(analysis, "only", self.only), *doubts(analysis, "protect", self.protect))


def require_ratio(ratio: float) -> None:
    """Refuses what is no fraction of the groups.

    Raises:
        OptionError: It is not.
    """
    if not 0 <= ratio < 1:
        raise OptionError(f"protect_ratio is {ratio:g}; expected a fraction of the groups, at least 0, below 1")
