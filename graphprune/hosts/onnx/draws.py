"""Operators of ONNX that draw random numbers: the same ones in every run that is compared.

A seed of its own in every such node, made from the name of its result, survives edits and masks; a runtime counts on
from it, so that each run needs a session of its own. Saved files never see these seeds.
"""

from __future__ import annotations

from collections.abc import Iterator
from zlib import crc32

import onnx

from graphprune.hosts.messages import subgraphs_of

RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial")


def drawing(graph: onnx.GraphProto) -> Iterator[str]:
    """The operators of a graph and its subgraphs that draw random numbers."""
    for node in graph.node:
        if _random(node):
            yield node.op_type
        for inner in subgraphs_of(node):
            yield from drawing(inner)


def draws(graph: onnx.GraphProto) -> bool:
    """Whether a node of a graph, or of its subgraphs, draws random numbers."""
    return next(drawing(graph), None) is not None


def seeded(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a seed in every node that draws and has none; the same object if nothing does."""
    if not draws(proto.graph):
        return proto
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    _seed(result.graph)
    return result


def _random(node: onnx.NodeProto) -> bool:
    return node.op_type in RANDOM and node.domain in ("", "ai.onnx")


def _seed(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        if _random(node) and all(attribute.name != "seed" for attribute in node.attribute):
            number = crc32(node.output[0].encode()) % 10_000  # exact in single precision
            node.attribute.append(onnx.helper.make_attribute("seed", float(number)))
        for inner in subgraphs_of(node):
            _seed(inner)
