"""The dependency graph of a model, in networkx: axes of tensors, and the operators that couple them.

A vertex is an axis of a value, ``"conv1.weight[0]"``; an edge joins two axes that share a factor at some node, and
names the node and its operator. A group is a connected part of it. Built on demand, for explanations and for export.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from graphprune.analysis.groups import Analysis, Group
from graphprune.brief import written
from graphprune.files import visible, write_text
from graphprune.ir.dims import Factor, factors_of

if TYPE_CHECKING:
    import networkx as nx  # slow to import, and of use for explanations and exports only


class DependencyGraph:
    """Which axes are coupled, and by which operators.

    Attributes:
        graph: The networkx graph. Vertices carry ``tensor``, ``axis``, ``size``, ``stored`` and ``group`` (names of
            the prunable groups on the axis); edges carry ``node`` and ``op``.
    """

    def __init__(self, analysis: Analysis) -> None:
        import networkx as nx

        self.analysis = analysis
        self.graph = nx.Graph()
        for value in analysis.graph.values.values():
            for axis, dim in enumerate(analysis.layouts.get(value.name, ())):
                if dim.size == 1:
                    continue
                names = [
                    analysis.group_of[factor].name
                    for factor in dict.fromkeys(factors_of(dim))
                    if factor in analysis.group_of
                ]
                self.graph.add_node(
                    vertex(value.name, axis),
                    tensor=value.name,
                    axis=axis,
                    size=dim.size,
                    stored=value.stored,
                    group=" ".join(names),
                )
        for node in analysis.graph.nodes:
            values = dict.fromkeys(name for name in (*node.operands, *node.results) if name is not None)
            self._couple(list(values), node.name, node.op)

    def __repr__(self) -> str:
        return written(self, vertices=len(self.graph), edges=self.graph.number_of_edges(), analysis=self.analysis)

    def _couple(self, names: list[str], node: str, op: str) -> None:
        """Joins the axes at one node that share a factor: a star around the first axis of each factor."""
        first: dict[Factor, str] = {}
        for name in names:
            for axis, dim in enumerate(self.analysis.layouts[name]):
                for factor in dict.fromkeys(factors_of(dim)):
                    here = vertex(name, axis)
                    centre = first.setdefault(factor, here)
                    if centre != here and not self.graph.has_edge(centre, here):
                        self.graph.add_edge(centre, here, node=node, op=op)

    def of_group(self, group: Group) -> nx.Graph:
        """The part of the graph that one group spans."""
        vertices = [
            vertex(name, axis)
            for name, layout in self.analysis.layouts.items()
            for axis, dim in enumerate(layout)
            if any(factor is group.factor for factor in factors_of(dim))
        ]
        return self.graph.subgraph(vertices)

    def path(self, group: Group, start: str, end: str) -> list[tuple[str, str]]:
        """How one axis is coupled to another within a group: ``(operator, axis)`` steps after the start.

        Two steps across the star of one node count as one. Empty if they are coupled only through another part of the
        same axis.
        """
        import networkx as nx

        graph = self.of_group(group)
        if not nx.has_path(graph, start, end):
            return []
        found: list[tuple[str, str]] = []
        last = None
        for a, b in pairwise(nx.shortest_path(graph, start, end)):
            edge = graph.edges[a, b]
            if edge["node"] == last:
                found.pop()
            found.append((edge["op"], b))
            last = edge["node"]
        return found

    def save_graphml(self, path: str | Path) -> None:
        """Writes the graph as GraphML.

        Raises:
            OutputError: The file cannot be written.
        """
        import networkx as nx

        graph = nx.relabel_nodes(self.graph, {name: visible(name) for name in self.graph if visible(name) != name})
        for data in (*(data for _, data in graph.nodes(data=True)), *(data for *_, data in graph.edges(data=True))):
            data.update({key: visible(value) for key, value in data.items() if isinstance(value, str)})
        write_text(Path(path), "\n".join(nx.generate_graphml(graph)) + "\n")

    def to_dot(self, groups: Iterable[Group] | None = None) -> str:
        """The graph (or the parts that some groups span) in Graphviz' DOT; stored tensors are boxes."""
        import networkx as nx

        graph = self.graph if groups is None else nx.compose_all([self.of_group(group) for group in groups])
        lines = ["graph dependencies {", '  node [fontname="Helvetica"];']
        for name, data in graph.nodes(data=True):
            shape = "box" if data["stored"] else "ellipse"
            lines.append(f'  "{_quoted(name)}" [shape={shape}, tooltip="{_quoted(data["group"])}"];')
        for a, b, data in graph.edges(data=True):
            lines.append(f'  "{_quoted(a)}" -- "{_quoted(b)}" [label="{_quoted(data["op"])}"];')
        return "\n".join([*lines, "}"]) + "\n"


def vertex(tensor: str, axis: int) -> str:
    """The name of an axis: ``conv1.weight[0]``."""
    return f"{tensor}[{axis}]"


def _quoted(text: str) -> str:
    return visible(text).replace("\\", "\\\\").replace('"', '\\"')
