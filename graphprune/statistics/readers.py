"""Readers of removed units: every node that sums over a cut axis, whether or not it is a consumer that can be refitted.

They are read off the rules alone: a factor that occurs in what a node reads and in none of its results, or twice in one
of its weights, as the width of a recurrent layer does. ``consumers.py`` says which of them are weighted sums; of the
others the report says why not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from graphprune.analysis.groups import Analysis
from graphprune.hosts.host import Refittable
from graphprune.ir.dims import Dim, Factor, Sum, factors_of
from graphprune.ir.graph import Graph, Node
from graphprune.statistics.consumers import Consumer, look

SHOWN = 3
"""So many readers are named for each reason."""


def summed_axes(graph: Graph, node: Node) -> Iterator[tuple[str, int, bool]]:
    """The axes that a node sums over: of an operand, its axis, and whether all of the axis is summed over.

    An axis of a stored weight counts only where the node reads through it what it has computed itself: where the
    weight has the same units twice. Parts that are
    cut off an axis are not summed.
    """
    rule = node.rule
    if rule is None or all(layout is None for layout in rule.results):
        return
    kept = {f for layout in rule.results if layout is not None for dim in layout for f in factors_of(dim)}
    for name, layout in zip(node.operands, rule.operands, strict=False):
        if name is None or layout is None:
            continue
        stored = graph.values[name].stored
        for axis, dim in enumerate(layout):
            inside = set(factors_of(dim))
            if rule.macs and len(layout) > 1:
                others = {f for at, other in enumerate(layout) if at != axis for f in factors_of(other)}
                if isinstance(dim, Factor) and inside <= others & kept:
                    yield name, axis, True
            if not stored and (gone := inside - kept) and not (isinstance(dim, Sum) and inside & kept):
                yield name, axis, gone == inside


def summed(analysis: Analysis) -> dict[str, set[Factor]]:
    """For each node that sums over something, by name and in the order of the graph: the factors of the analysis."""
    found = ((node.name, _summed(analysis, node)) for node in analysis.graph.nodes)
    return {name: factors for name, factors in found if factors}


def _summed(analysis: Analysis, node: Node) -> set[Factor]:
    found: set[Factor] = set()
    for name, axis, whole in summed_axes(analysis.graph, node):
        inside = set(_inside(analysis, name, axis))
        if not whole:  # a group of channels, of which the result has the number
            inside -= {f for each in node.results if each is not None for d in _layout(analysis, each) for f in d}
        found |= inside
    return found


def _inside(analysis: Analysis, name: str, axis: int) -> tuple[Factor, ...]:
    layout: tuple[Dim, ...] = analysis.layouts.get(name, ())
    return factors_of(layout[axis]) if axis < len(layout) else ()


def _layout(analysis: Analysis, name: str) -> Iterator[tuple[Factor, ...]]:
    return (factors_of(dim) for dim in analysis.layouts.get(name, ()))


def left_alone(
    host: Refittable, analysis: Analysis, cut: Collection[Factor], done: Collection[str]
) -> tuple[tuple[str, str], ...]:
    """The readers of cut units that were not refitted, by their weight or else their result; and why not.

    Args:
        host: The model as it was analysed.
        analysis: Its analysis.
        cut: The factors that lose units.
        done: The nodes that were refitted, and those that are gone.
    """
    found, nodes = look(host, analysis.graph), {node.name: node for node in analysis.graph.nodes}
    names = [name for name, read in summed(analysis).items() if name not in done and not read.isdisjoint(cut)]
    why = {name: why for name in names if isinstance(why := host.recurrent(name), str)}
    reasons = why | {name: "its weight is used elsewhere, too" for name in names if isinstance(found[name], Consumer)}
    return tuple((_called(analysis.graph, nodes[name]), reasons.get(name, str(found[name]))) for name in names)


def _called(graph: Graph, node: Node) -> str:
    stored = (n for n in node.operands if n is not None and graph.values[n].stored and len(graph.values[n].shape) > 1)
    return next(stored, next((name for name in node.results if name is not None), node.name))


def readers_text(alone: Iterable[tuple[str, str]]) -> str:
    """Readers and reasons as text, some names for each reason: ``'a', 'b' and 3 more (it looks positions up)``."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in alone:
        by_reason.setdefault(reason, []).append(f"'{name}'")
    return "; ".join(f"{_some(names)} ({reason})" for reason, names in by_reason.items())


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
