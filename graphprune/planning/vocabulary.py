"""The vocabulary of a language model as groups: what its inputs look up, and what its outputs score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graphprune.analysis.groups import Analysis, Group, analyze_graph
from graphprune.brief import brief
from graphprune.errors import ModelError
from graphprune.ir.dims import Dim, Factor, factors_of
from graphprune.ir.graph import Graph


@dataclass(frozen=True)
class Vocabulary:
    """Where a model has its vocabulary.

    Attributes:
        analysis: Of the graph, in which the vocabulary may be cut.
        size: How many tokens there are.
        inputs: The inputs that are tokens.
        outputs: The axes of outputs that are scores of tokens.
        groups: What is to be cut alike: one group where the embedding and the head are tied, else two.
    """

    __repr__ = brief

    analysis: Analysis
    size: int
    inputs: tuple[str, ...]
    outputs: Mapping[str, int]
    groups: tuple[Group, ...]


def token_inputs(graph: Graph, least: int) -> tuple[tuple[str, ...], int]:
    """The inputs whose elements are looked up in a table of tokens, and how many rows it has.

    Args:
        graph: The graph.
        least: How many tokens there are at least: smaller tables hold positions, or types of tokens.

    Raises:
        ModelError: There is no such table.
    """
    carried: dict[str, frozenset[str]] = {name: frozenset({name}) for name in graph.inputs}
    found: dict[int, dict[str, None]] = {}
    for node in graph.nodes:
        if node.rule is None:
            continue
        origins: frozenset[str] = frozenset()
        for i, operand in enumerate(node.operands):
            if operand not in carried:
                continue
            if i in node.rule.reads:
                found.setdefault(node.rule.reads[i].size, {}).update(dict.fromkeys(carried[operand]))
            elif i in node.rule.carries:
                origins |= carried[operand]
        if origins:
            carried.update((name, origins) for name in node.results if name is not None)
    size = min((size for size in found if size >= least), default=None)
    if size is None:
        listed = ", ".join(map(str, sorted(found))) or "none"
        raise ModelError(
            f"no input of the model is looked up in a table of {least} tokens or more, which the tokenizer has; the "
            f"tables have {listed} rows: give the model's own tokenizer"
        )
    return tuple(found[size]), size


def vocabulary_of(graph: Graph, least: int) -> Vocabulary:
    """Finds the vocabulary of a model.

    Args:
        graph: The graph.
        least: How many tokens the tokenizer has.

    Raises:
        ModelError: There is none, or something keeps it whole.
    """
    inputs, size = token_inputs(graph, least)
    scored = [(name, i) for name in graph.outputs for i, n in enumerate(graph.values[name].shape) if n == size]
    analysis = analyze_graph(graph, resizable=scored, pointing=dict.fromkeys(inputs, size))
    factors: dict[Factor, str] = {}

    def take(dim: Dim, what: str) -> None:
        (factor, *others) = factors_of(dim)
        if others or factor not in analysis.group_of:
            reasons = [analysis.solver.fixed[each].text for each in (factor, *others) if each in analysis.solver.fixed]
            raise ModelError(
                f"the vocabulary cannot be cut: {what} stays whole: {reasons[0] if reasons else 'it is no weight'}"
            )
        factors[factor] = what

    for node in analysis.graph.nodes:
        for i, dim in node.rule.reads.items() if node.rule is not None else ():
            if dim.size == size and i < len(node.operands) and node.operands[i] is not None:
                resolved = analysis.resolve(node, dim)
                if any(factor.size == size for factor in factors_of(resolved)):
                    take(resolved, f"the table of tokens that '{node.name}' looks up")
    outputs: dict[str, int] = {}
    for name, axis in scored:
        layout = analysis.layouts[name][axis]
        if not isinstance(layout, Factor) or layout not in analysis.group_of:
            take(layout, f"axis {axis} of the output '{name}'")
        factors[layout] = name  # type: ignore[index]
        outputs[name] = axis
    groups = tuple(group for group in analysis.groups if group.factor in factors)
    return Vocabulary(analysis, size, inputs, outputs, groups)
