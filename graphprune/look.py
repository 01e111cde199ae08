"""Looking at a model: what can be pruned, and what stays whole and why. Nothing of what prunes is imported."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from graphprune.analysis.groups import Analysis, analyze_graph
from graphprune.collector import frozen_garbage_collection
from graphprune.hosts.host import Model
from graphprune.hosts.onnx.blame import blaming_models
from graphprune.opening import Shapes, Sizes, open_host
from graphprune.planning.select import protected_axes, resizable_axes
from graphprune.turns import in_turn


@blaming_models
@in_turn
@frozen_garbage_collection()
def analyze(
    model: Any,
    example_inputs: Any = None,
    *,
    protect: str | Sequence[str] = (),
    resize_io: str | Sequence[str] = (),
    shapes: Shapes | None = None,
    sizes: Sizes | None = None,
    dynamic_shapes: Any = None,
    trust: bool = False,
) -> Analysis:
    """Finds what can be pruned: ``analysis.groups``, and ``analysis.fixed`` with the reason of all that stays whole.

    Args and Raises as for :func:`graphprune.prune`.
    """
    host = open_host(model, example_inputs, shapes=shapes, sizes=sizes, trust=trust, dynamic_shapes=dynamic_shapes)
    return looked(host, protect, resize_io)


def looked(host: Model, protect: str | Iterable[str], resize_io: str | Iterable[str] = ()) -> Analysis:
    """The analysis of an opened model, in which what some patterns name stays whole, or may shrink at the interface."""
    graph = host.folded().graph()
    resizable = resizable_axes(graph, selectors(resize_io), file=not host.exports)
    return analyze_graph(graph, protected_axes(graph, selectors(protect)), resizable)


def selectors(given: str | Iterable[str]) -> tuple[str, ...]:
    """Patterns and kinds as the passes take them; a text is one of them, not a sequence of letters."""
    return (given,) if isinstance(given, str) else tuple(given)
