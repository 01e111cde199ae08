"""How to walk ONNX messages: nodes and their subgraphs, what they read, their attributes as plain data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import onnx

DEFAULT = ("", "ai.onnx")
"""Names of the default domain."""


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node of a graph and of its subgraphs."""
    for node in graph.node:
        yield node
        for subgraph in subgraphs_of(node):
            yield from nodes_of(subgraph)


def subgraphs_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The subgraphs of a node (branches, loop bodies)."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def operands_of(node: onnx.NodeProto) -> list[str]:
    """The operands of a node, and the values of the main graph that its subgraphs capture."""
    names = list(node.input)
    for subgraph in subgraphs_of(node):
        names.extend(name for name in captured(subgraph) if name not in names)
    return names


def captured(graph: onnx.GraphProto) -> Iterator[str]:
    """Names that a subgraph uses and does not define."""
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    own.update(name for node in graph.node for name in node.output)
    for name in dict.fromkeys(
        [name for node in graph.node for name in operands_of(node)] + [value.name for value in graph.output]
    ):
        if name and name not in own:
            yield name


def attributes_of(node: onnx.NodeProto) -> Mapping[str, Any]:
    """The attributes of a node as Python values; text is decoded, graphs are left out."""
    found: dict[str, Any] = {}
    for attribute in node.attribute:
        if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
            continue
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        elif attribute.type == onnx.AttributeProto.STRINGS:
            value = tuple(item.decode("utf-8", "replace") for item in value)
        elif attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
            value = tuple(value)
        found[attribute.name] = value
    return found
