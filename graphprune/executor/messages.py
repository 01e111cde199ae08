"""ONNX messages as plain data: the attributes of a node, its subgraphs, and what those read from outside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import onnx

_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
DEFAULT = ("", "ai.onnx")
"""Names of the default domain."""


def named(node: onnx.NodeProto) -> str:
    """The operator as tables call it."""
    return node.op_type if node.domain in DEFAULT else f"{node.domain}::{node.op_type}"


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """The attributes of a node as Python values, but for graphs."""
    found: dict[str, Any] = {}
    for entry in node.attribute:
        if entry.type in _GRAPHS:
            continue
        value = onnx.helper.get_attribute_value(entry)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        elif entry.type == onnx.AttributeProto.STRINGS:
            value = tuple(each.decode("utf-8", "replace") for each in value)
        elif entry.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
            value = tuple(value)
        found[entry.name] = value
    return found


def subgraphs(node: onnx.NodeProto) -> Mapping[str, onnx.GraphProto]:
    """The subgraphs of a node, by attribute."""
    return {entry.name: entry.g for entry in node.attribute if entry.type == onnx.AttributeProto.GRAPH}


def operands(node: onnx.NodeProto) -> list[str]:
    """What a node reads, with what its subgraphs read from outside."""
    found = [name for name in node.input if name]
    for graph in subgraphs(node).values():
        found.extend(captured(graph))
    return list(dict.fromkeys(found))


def captured(graph: onnx.GraphProto) -> Iterator[str]:
    """Names that a subgraph reads and does not make."""
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    own.update(name for node in graph.node for name in node.output)
    read = [name for node in graph.node for name in operands(node)] + [value.name for value in graph.output]
    yield from (name for name in dict.fromkeys(read) if name and name not in own)


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node of a graph and of its subgraphs."""
    for node in graph.node:
        yield node
        for inner in subgraphs(node).values():
            yield from all_nodes(inner)
