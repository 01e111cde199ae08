"""What must run for some values, in any graph of named values: a model's, a framework's own, or a part of one."""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from graphprune.ir.graph import Graph

Key = TypeVar("Key", bound=Hashable)
"""What stands for a node."""


@dataclass(frozen=True)
class Flow(Generic[Key]):
    """Which node makes which value of which others.

    Attributes:
        producers: The node that makes a value, by name; inputs and stored tensors have none.
        operands: Names of what a node reads.
        results: Names of what a node makes.
    """

    producers: Mapping[str, Key]
    operands: Callable[[Key], Iterable[str]]
    results: Callable[[Key], Iterable[str]]

    def needed(self, wanted: Iterable[str], given: Container[str] = ()) -> set[Key]:
        """The nodes that must run for some values, where others are given."""
        found: set[Key] = set()
        pending = [name for name in wanted if name not in given]
        while pending:
            node = self.producers.get(pending.pop())
            if node is not None and node not in found:
                found.add(node)
                pending.extend(name for name in self.operands(node) if name not in given)
        return found


class Part(NamedTuple, Generic[Key]):
    """Part of a graph that runs on its own.

    Attributes:
        given: Names of what is there before.
        nodes: The nodes that run.
        carried: Names of what later parts need of what is there after.
    """

    given: frozenset[str]
    nodes: set[Key]
    carried: frozenset[str]


def part_of(flow: Flow[Key], given: Iterable[str], outputs: Sequence[str], later: Sequence[str]) -> Part[Key]:
    """The part of a graph between what there is and what is wanted.

    Args:
        flow: The graph.
        given: Names of what is there.
        outputs: Names of what is wanted.
        later: Names of what later parts are asked for.
    """
    there = frozenset(given)
    nodes = flow.needed(outputs, there)
    done = there.union(*(flow.results(node) for node in nodes))
    rest = flow.needed(later, done)
    carried = done.intersection(later) | {name for node in rest for name in flow.operands(node) if name in done}
    return Part(there, nodes, carried)


def flow_of(graph: Graph) -> Flow[int]:
    """The flow of a graph, whose nodes are known by their positions."""
    nodes = graph.nodes
    return Flow(
        graph.producers,
        lambda i: (name for name in nodes[i].operands if name is not None),
        lambda i: (name for name in nodes[i].results if name is not None),
    )


def live_values(graph: Graph) -> frozenset[str]:
    """The values that the outputs of a graph depend on, themselves among them."""
    flow = flow_of(graph)
    return frozenset(graph.outputs).union(*(flow.operands(i) for i in flow.needed(graph.outputs)))
