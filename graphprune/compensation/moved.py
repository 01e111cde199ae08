"""Weights that a model puts together from stored tensors before it uses them, as exporters reorder gates.

What is only moved (cut apart, joined, turned, reshaped) can be changed where it is stored. Whether it is only moved is
not believed but seen: the model is run on the numbers of the elements in place of the elements.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from graphprune.hosts.host import Array, Host
from graphprune.ir.graph import Graph, Node
from graphprune.ir.liveness import flow_of

MOST = 1 << 24
"""The most elements that single precision can number."""


def value_of(host: Host, name: str) -> Array:
    """The values of a stored tensor, or of what follows from stored tensors alone."""
    value = host.graph().values[name]
    return host.read(name) if value.stored else host.partial_run((), [name])({})[1][name]


def made_of(graph: Graph, name: str) -> tuple[frozenset[str], frozenset[str]]:
    """The nodes that a value follows from, and the stored tensors or inputs that they begin with."""
    flow = flow_of(graph)
    nodes = flow.needed([name])
    met = {name}.union(*(flow.operands(i) for i in nodes))
    return frozenset(graph.nodes[i].name for i in nodes), frozenset(met - graph.producers.keys())


def is_own(graph: Graph, node: Node, names: Collection[str]) -> bool:
    """Whether weights of a node follow from stored tensors alone, and nothing but this node needs these."""
    for name in names:
        nodes, begin = made_of(graph, name)
        if not all(graph.values[each].stored for each in begin):
            return False
        weights = {each for each in begin if graph.values[each].kind == "parameter"}
        inside = nodes | {node.name}
        if any(other.name not in inside for weight in weights for other in graph.readers(weight)):
            return False
    return {other.name for name in names for other in graph.readers(name)} == {node.name}


def put_back(host: Host, changes: Mapping[str, Array]) -> dict[str, Array] | None:
    """The stored tensors that make values what they should be; ``None`` where they are more than moved."""
    graph = host.graph()
    found: dict[str, Array] = {name: array for name, array in changes.items() if graph.values[name].stored}
    for name, wanted in changes.items():
        if name in found:
            continue
        parents = sorted(each for each in made_of(graph, name)[1] if graph.values[each].kind == "parameter")
        sizes = [graph.values[each].n_elements for each in parents]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        if starts[-1] >= MOST:
            return None
        numbers = {
            each: np.arange(start, start + size, dtype=np.float64).reshape(graph.values[each].shape)
            for each, start, size in zip(parents, starts, sizes, strict=False)
        }
        at = value_of(host.replaced(numbers), name)
        index: NDArray[np.int64] = at.astype(np.int64)
        flat = np.concatenate([host.read(each).reshape(-1).astype(np.float64) for each in parents])
        plain = np.array_equal(index, at) and len(np.unique(index)) == index.size
        if not plain or not np.array_equal(flat[index], value_of(host, name).astype(np.float64)):
            return None
        flat[index] = wanted
        for each, start, size in zip(parents, starts, sizes, strict=False):
            found[each] = flat[start : start + size].reshape(graph.values[each].shape)
    return found
