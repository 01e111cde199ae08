"""Let removed units and kept ones change places while the loss after the refit falls."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from graphprune.errors import OptionError
from graphprune.importance import Evidence
from graphprune.importance.context import readings
from graphprune.importance.exchange import Swept, exchange
from graphprune.importance.obs import systems
from graphprune.pipeline import keys
from graphprune.pipeline.passes import Pass
from graphprune.pipeline.state import State
from graphprune.planning.plan import make_plan


@dataclass(frozen=True)
class ExchangeUnits(Pass):
    """Improves the choice of units in each group at the number that was allocated to it (OSSCAR's local search).

    The numbers of units stay, and so do costs, and units that the user has named (``select{keep=...}``). Runs between
    ``allocate`` and ``slice-groups``; needs the statistics that ``obs`` needs, and does nothing for groups that no
    weight reads.

    Attributes:
        rounds: How many exchanges are made in a group at most.
    """

    name: ClassVar[str] = "exchange-units"
    rounds: int = 20

    @property
    def needs(self) -> frozenset[str]:
        """A choice, and what it is judged by."""
        return frozenset({keys.ANALYSIS, keys.PLAN, keys.CALIBRATION, keys.STATISTICS, keys.PRODUCTS})

    @property
    def gives(self) -> frozenset[str]:
        """Another plan."""
        return frozenset({keys.PLAN})

    @property
    def before(self) -> frozenset[str]:
        """It changes what is cut."""
        return frozenset({keys.SLICED, keys.SHALLOWER})

    def subject(self, key: str) -> str:
        """The pass."""
        return f"'{self.name}'"

    def run(self, state: State) -> State:
        """The state with other units kept, as many as before.

        Raises:
            OptionError: There is no plan, or there are no statistics.
        """
        analysis = state.analyzed(self.name)
        if state.plan is None:
            raise OptionError("'exchange-units' needs a plan; put 'allocate' before it in the pipeline")
        evidence = Evidence(analysis, state.host.read, statistics=state.statistics)
        statistics = evidence.measured("exchange-units")
        kept = dict(state.kept)
        named = {each.group.name for each in state.selection.held(analysis) if each.kept is not None}
        for group in analysis.groups:
            if group.factor in kept and group.name not in named:
                found = [
                    Swept(covariance[g], weight, columns)
                    for covariance, read in systems(list(readings(evidence, statistics, group)), group.size)
                    for g, weight, columns in read
                ]
                if found:
                    kept[group.factor] = exchange(found, kept[group.factor], group.size, self.rounds)
        plan = replace(make_plan(analysis, kept, state.plan.options, state.removed), made_on=state.plan.made_on)
        return replace(state, kept=kept, plan=plan)
