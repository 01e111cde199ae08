"""What may be pruned, as the user says it: once for all passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from graphprune.analysis.groups import Analysis, Group
from graphprune.errors import OptionError
from graphprune.planning.demanded import Held, demanded
from graphprune.planning.demands import Demand, read_demand
from graphprune.planning.select import chosen_groups
from graphprune.planning.selectors import doubts, read_selector


@dataclass(frozen=True)
class Selection:
    """What may be pruned.

    Attributes:
        only: Selectors of what may be pruned (:mod:`graphprune.planning.selectors`); empty means all.
        protect: Patterns of tensors, kinds and groups that stay whole.
        protect_ratio: This fraction of the groups stays whole: those that the outputs depend on most.
        keep: Units that stay, and no others of their groups (:mod:`graphprune.planning.demands`).
        remove: Units that go, and no others of their groups.
        leave_out: Names of blocks that go, besides those that ``allocate`` chooses.
        config: What a config has to say of the result, by its names.
        fitted: By name of a group: how many units stay for that.
        zeros: By name of a group: its dead units, which go; ``None`` where nobody has looked for them.
        resize_io: Patterns of inputs and outputs whose axes may be cut.
    """

    only: tuple[str, ...] = ()
    protect: tuple[str, ...] = ()
    protect_ratio: float = 0.0
    keep: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()
    config: Mapping[str, int] = field(default_factory=dict)
    fitted: Mapping[str, int] = field(default_factory=dict)
    zeros: Mapping[str, tuple[int, ...]] | None = None
    resize_io: tuple[str, ...] = ()

    @property
    def decided(self) -> bool:
        """Whether something stays or goes whatever the targets say."""
        return bool(self.keep or self.remove or self.leave_out or self.config or self.zeros is not None)

    @property
    def demands(self) -> tuple[Demand, ...]:
        """What the user wants of single groups, whatever the targets are."""
        keep = (read_demand("keep", text) for text in self.keep)
        shape = f"shape target {','.join(f'{name}={value}' for name, value in self.config.items())}"
        fitted = (Demand("keep", "", "group", name, n, source=shape) for name, n in self.fitted.items())
        zeros = (Demand("remove", "", "group", n, None, u, "target zeros") for n, u in (self.zeros or {}).items())
        return (*keep, *(read_demand("remove", text) for text in self.remove), *fitted, *zeros)

    def check(self) -> None:
        """Refuses what cannot be read.

        Raises:
            OptionError: A selector or the ratio is wrong.
        """
        for selector in (*self.only, *self.protect):
            read_selector(selector)
        require_ratio(self.protect_ratio)
        _ = self.demands

    def groups(self, analysis: Analysis) -> tuple[Group, ...]:
        """The groups that may be pruned to meet a target: not those of which the user says what stays.

        Raises:
            OptionError: A selector names no group.
        """
        held = {each.group.name for each in self.held(analysis)}
        return tuple(group for group in chosen_groups(analysis, self.only, self.protect) if group.name not in held)

    def held(self, analysis: Analysis) -> tuple[Held, ...]:
        """The groups of which the user says what stays.

        Raises:
            OptionError: A demand means nothing in this model, contradicts another one, or cannot be met.
        """
        if not (self.keep or self.remove or self.fitted or self.zeros):
            return ()
        free = {group.name for group in chosen_groups(analysis, (), self.protect)}
        return demanded(analysis, self.demands, [g.name for g in analysis.groups if g.name not in free])

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
