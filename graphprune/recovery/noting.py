"""What a plan says of weights that are no longer those of the original."""

from __future__ import annotations

from dataclasses import replace

from graphprune.hosts.host import Host
from graphprune.planning.plan import PruningPlan


def with_weights_noted(plan: PruningPlan, before: Host, after: Host) -> PruningPlan:
    """The plan with the names of the tensors that differ, and what each of them is now, to the last bit.

    Args:
        plan: The plan.
        before: The pruned model with the weights that the plan knows.
        after: The same with others, and perhaps biases more.
    """
    had = {value.name for value in before.graph().stored}
    stored = [value.name for value in after.graph().stored]
    names = [name for name in stored if name not in had or before.digest(name) != after.digest(name)]
    known = dict(plan.options.get("digests", {}))
    known.update((name, after.digest(name)) for name in names)
    tensors = sorted({*plan.options.get("compensated", ()), *names})
    noted = {"compensated": tensors, "digests": {name: known[name] for name in tensors}}
    method = plan.options.get("compensation", "none")
    return replace(plan, options={**plan.options, **noted, "compensation": method})
