"""What ``graphprune explain`` says of one axis."""

from __future__ import annotations

from typing import Any

from graphprune.analysis.dependency import DependencyGraph, vertex
from graphprune.analysis.groups import Analysis
from graphprune.ir.dims import Factor, factors_of
from graphprune.ir.notation import Namer, print_dim


def explain_axis(analysis: Analysis, tensor: str, axis: int) -> dict[str, Any]:
    """Why one axis of a stored tensor is coupled to others, and why (parts of) it stay whole; as JSON data."""
    dim = analysis.layouts[tensor][axis]
    here = vertex(tensor, axis)
    groups = []
    graph: DependencyGraph | None = None
    for factor in dict.fromkeys(factors_of(dim)):
        group = analysis.group_of.get(factor)
        if group is None:
            continue
        graph = graph or DependencyGraph(analysis)
        sites = [
            {
                "axis": vertex(site.tensor, site.axis),
                "through": [op for op, _ in graph.path(group, here, vertex(site.tensor, site.axis))],
            }
            for site in group.sites
            if vertex(site.tensor, site.axis) != here
        ]
        groups.append(
            {
                "name": group.name,
                "kind": group.kind,
                "units": group.size,
                "exact": group.exact,
                "normalized": str(group.normalized) if group.normalized else None,
                "sites": sites,
            }
        )
    reasons = [str(reason) for reason in analysis.site_reasons(tensor, axis)]
    if dim.size == 1:
        reasons.append("it has one position")
    return {
        "axis": here,
        "size": dim.size,
        "layout": print_dim(dim, _Units(analysis)),
        "groups": groups,
        "fixed": reasons,
    }


class _Units(Namer):
    """Names factors by the kind of their group: ``(head:12 qk-dim:64)``; fixed ones are just their size."""

    def __init__(self, analysis: Analysis) -> None:
        super().__init__()
        self.analysis = analysis

    def __call__(self, factor: Factor) -> str:
        group = self.analysis.group_of.get(factor)
        return f"{group.kind if group else 'fixed'}:{factor.size}"
