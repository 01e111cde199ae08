"""What keeps dimensions whole, and how much of the model each reason costs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from graphprune.analysis.groups import Analysis
from graphprune.analysis.solver import Reason
from graphprune.ir.dims import factors_of
from graphprune.planning.allocation import Limits


@dataclass(frozen=True, slots=True)
class Blocker:
    """A reason, and the weights whose axes it keeps whole.

    Attributes:
        reason: The reason.
        axes: ``tensor[axis]`` of every axis that it keeps (part of).
        parameters: How many parameters lie in tensors all of whose axes stay whole, for this reason among others.
        touched: How many parameters lie in tensors of which it keeps some axis whole.
        share: ``parameters`` as a fraction of all parameters.
    """

    reason: Reason
    axes: tuple[str, ...]
    parameters: int
    touched: int
    share: float

    @property
    def shown(self) -> str:
        """The first axis, and how many more there are."""
        more = len(self.axes) - 1
        return f"{self.axes[0]} and {more} more {'axes' if more > 1 else 'axis'}" if more else self.axes[0]


def list_blockers(analysis: Analysis) -> tuple[Blocker, ...]:
    """What keeps axes of parameters whole, by the number of parameters that it keeps whole, then by those it touches.

    The same reason at several nodes counts as one, shown with its first node. Kernel sizes, which nobody would prune,
    are left out.
    """
    prunable = {(site.tensor, site.axis) for group in analysis.groups for site in group.sites}
    parameters = [value for value in analysis.graph.stored if value.kind == "parameter"]
    total = max(1, sum(value.n_elements for value in parameters))
    first: dict[str, Reason] = {}
    axes: dict[str, list[str]] = defaultdict(list)
    whole_parameters: dict[str, int] = defaultdict(int)
    touched: dict[str, int] = defaultdict(int)
    for value in parameters:
        whole = all((value.name, axis) not in prunable for axis in range(len(value.shape)))
        seen = set()
        for axis, dim in enumerate(analysis.layouts[value.name]):
            for factor in factors_of(dim):
                reason = analysis.fixed.get(factor)
                if reason is None or reason.text == KERNEL_REASON:
                    continue
                text, name = reason.text, f"{value.name}[{axis}]"
                first.setdefault(text, reason)
                if name not in axes[text][-1:]:
                    axes[text].append(name)
                if text not in seen:
                    seen.add(text)
                    touched[text] += value.n_elements
                    whole_parameters[text] += value.n_elements if whole else 0
    found = [
        Blocker(reason, tuple(axes[text]), whole_parameters[text], touched[text], whole_parameters[text] / total)
        for text, reason in first.items()
    ]
    return tuple(sorted(found, key=lambda blocker: (-blocker.parameters, -blocker.touched, -len(blocker.axes))))


def blockers(analysis: Analysis, most: int = 3) -> str:
    """One line about the costliest reasons."""
    found = list_blockers(analysis)[:most]
    if not found:
        return "nothing is fixed"
    return ", ".join(f"{blocker.reason} keeps {blocker.shown} whole" for blocker in found)


def obstacles(analysis: Analysis, limits: Limits, only: Sequence[str], n_protected: int) -> str:
    """What stands in the way of a target, and what to relax."""
    said = f"max_ratio={limits.max_ratio:g} and min_units={limits.min_units}"
    selected = f", only={'|'.join(only)}" if only else ""
    selected += f", protect_ratio ({n_protected} groups)" if n_protected else ""
    return (
        f"{blockers(analysis)}; the limits {said}{selected} keep part of every group. Raise the target or relax these"
    )


KERNEL_REASON = "kernel size of a convolution"
"""Nothing that a user could want to prune."""
