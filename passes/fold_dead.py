"""Take constants of removed units into biases, and prove that nothing has changed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from graphprune.errors import ModelError, OptionError, ProofError
from graphprune.hosts.host import Arrays, Host
from graphprune.importance.constants import find_constants
from graphprune.importance.dead import left_over
from graphprune.pipeline import keys
from graphprune.pipeline.passes import Pass
from graphprune.pipeline.state import Check, State
from graphprune.statistics.consumers import with_biases

TOLERANCE = 1e-6
"""Of outputs in double precision, relative to the largest number of each."""
CALLS = 3
"""How many inputs both models are run on."""


@dataclass(frozen=True)
class FoldDead(Pass):
    """Adds what constant units gave to the biases of their readers, and compares the model with the original.

    Behind ``verify``, since the masked original has these units at zero. Outputs have to be those of the original, in
    double precision where the model runs in it.

    Attributes:
        proof: Whether they are compared.
        seed: Of the inputs, and of the numbers that operators are tried with.
    """

    name: ClassVar[str] = "fold-dead"
    proof: bool = True
    seed: int = 0

    @property
    def needs(self) -> frozenset[str]:
        """A model that is cut as planned."""
        return frozenset({keys.ANALYSIS, keys.PLAN, keys.SLICED})

    @property
    def gives(self) -> frozenset[str]:
        """A model that computes what the original does."""
        return frozenset({keys.UNCHANGED})

    @property
    def before(self) -> frozenset[str]:
        """A refit changes what is computed, and what is measured has to be of the biases."""
        return frozenset({keys.REFIT, keys.EXPORT, keys.LATENCY, keys.MODULE, keys.METRICS})

    def run(self, state: State) -> State:
        """The state with other biases, and the check.

        Raises:
            ProofError: A unit that is gone is not dead, or outputs have changed.
        """
        analysis, original, plan = state.analyzed(self.name), state.original, state.plan
        if original is None or plan is None:
            raise OptionError(f"pass '{self.name}' needs a plan; put 'allocate' and 'slice-groups' before it")
        bound = plan.options.get("layout") == "stock"
        constants = find_constants(original, analysis, self.seed)
        added, alive = left_over(original, analysis, constants, state.kept, biases=not bound)
        if alive:
            raise ProofError(
                f"units of group '{alive}' that the plan removes are not dead in this model; make the plan anew with "
                "target 'zeros'"
            )
        host, options = state.host, dict(plan.options)
        options["zeros"] = True
        if added:
            present = {node.name for node in host.graph().nodes}
            host, readers = with_biases(host, [name for name in added if name in present])
            changes = {}
            for reader in readers:
                assert reader.bias is not None
                bias = host.read(reader.bias)
                changes[reader.bias] = (bias.astype(np.float64).ravel() + added[reader.node]).reshape(bias.shape)
            host = host.replaced(changes)
            names = sorted(changes)
            digests = {name: host.digest(name) for name in names}
            options.update({"compensation": "zeros", "compensated": names, "digests": digests})
        state = replace(state, host=host, plan=replace(plan, options=options), done=state.done | self.gives)
        if added:
            note = f"constants of removed units were added to the biases of {len(added)} layers"
            state = replace(state, notes=(*state.notes, note))
        if not self.proof:
            return state
        check = unchanged(original, host, self.seed)
        if not check.passed:
            raise ProofError(
                f"without the units that were found dead outputs differ by {check.difference:.2g} of the largest "
                f"number, {check.tolerance:g} is accepted ({check.where}); please report this"
            )
        return replace(state, checks=(*state.checks, check))


def unchanged(original: Host, pruned: Host, seed: int = 0) -> Check:
    """Compares the outputs of two models on several inputs."""
    worst, where, precision = 0.0, "", "in double precision"
    for n in range(CALLS):
        inputs = original.example_inputs(seed + n)
        try:
            wanted, got = original.run(inputs, double=True), pruned.run(inputs, double=True)
        except ModelError:  # some operators have none
            wanted, got, precision = original.run(inputs), pruned.run(inputs), "in its own precision"
        for name, difference in _differences(wanted, got):
            if not difference <= worst:
                worst, where = difference, f"'{name}'"
    # single precision rounds each sum by as much as is accepted of all
    tolerance = TOLERANCE if precision == "in double precision" else 10 * TOLERANCE
    return Check("unchanged", worst, tolerance, f"pruned = original, {precision}, {CALLS} inputs", where=where)


def _differences(wanted: Arrays, got: Arrays) -> list[tuple[str, float]]:
    found = []
    for name, one in wanted.items():
        other = got[name]
        if one.dtype.kind != "f":
            found.append((name, 0.0 if np.array_equal(one, other) else float("inf")))
            continue
        finite = np.isfinite(one)
        same = np.array_equal(finite, np.isfinite(other)) and np.array_equal(
            one[~finite], other[~finite], equal_nan=True
        )
        size = float(np.abs(one[finite]).max(initial=0.0)) or 1.0
        gap = float(np.abs(one[finite] - other[finite]).max(initial=0.0)) / size
        found.append((name, gap if same else float("inf")))
    return found
