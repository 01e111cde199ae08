"""What ``graphprune explain`` says of one axis."""

from __future__ import annotations

from typing import Any

from graphprune.analysis.dependency import DependencyGraph, vertex
from graphprune.analysis.groups import Analysis
from graphprune.ir.dims import Dim, Factor, Layout, factors_of
from graphprune.ir.printing import Namer, print_dim
from graphprune.report.titles import group_title, tensor_title


def explain_axis(analysis: Analysis, tensor: str, axis: int) -> dict[str, Any]:
    """Why one axis of a stored tensor is coupled to others, and why (parts of) it stay whole; as JSON data."""
    own = tensor in analysis.graph.values
    dim = layout_of(analysis, tensor)[axis]
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
                "through": [op for op, _ in graph.path(group, here, vertex(site.tensor, site.axis))] if own else [],
            }
            for site in group.sites
            if vertex(site.tensor, site.axis) != here
        ]
        groups.append(
            {
                "name": group.name,
                "title": group_title(analysis, group),
                "kind": group.kind,
                "units": group.size,
                "exact": group.exact,
                "normalized": str(group.normalized) if group.normalized else None,
                "sites": sites,
            }
        )
    reasons = [str(reason) for reason in analysis.site_reasons(tensor, axis)] if own else _reasons(analysis, dim)
    if dim.size == 1:
        reasons.append("it has one position")
    return {
        "axis": here,
        "title": tensor_title(analysis, tensor),
        "size": dim.size,
        "layout": print_dim(dim, _Units(analysis)),
        "groups": groups,
        "fixed": reasons,
    }


def cut_along(analysis: Analysis) -> dict[str, str]:
    """The stored tensors that only other ways to run the model read, and the way: they are cut along."""
    return {
        value.name: other.graph.label
        for other in analysis.others
        for value in other.graph.stored
        if value.name not in analysis.graph.values and value.name not in other.graph.shared
    }


def layout_of(analysis: Analysis, tensor: str) -> Layout:
    """The layout of a stored tensor of the model, whichever way to run it reads it."""
    return next(each.layouts[tensor] for each in (analysis, *analysis.others) if tensor in each.layouts)


def _reasons(analysis: Analysis, dim: Dim) -> list[str]:
    """Why (parts of) an axis stay whole that no group can make smaller."""
    factors = [factor for factor in dict.fromkeys(factors_of(dim)) if factor not in analysis.group_of]
    fixed = [str(analysis.solver.fixed[factor]) for factor in factors if factor in analysis.solver.fixed]
    free = any(factor not in analysis.solver.fixed for factor in factors)
    return [*dict.fromkeys(fixed), *(["nothing is pruned that the traced run does not read"] if free else [])]


class _Units(Namer):
    """Names factors by the kind of their group: ``(head:12 qk-dim:64)``; fixed ones are just their size."""

    def __init__(self, analysis: Analysis) -> None:
        super().__init__()
        self.analysis = analysis

    def __call__(self, factor: Factor) -> str:
        group = self.analysis.group_of.get(factor)
        return f"{group.kind if group else 'fixed'}:{factor.size}"
