"""What an ONNX file holds: how many parameters, and how many bytes of tensors, each stored tensor once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod

import onnx
import onnx_ir as ir

from graphprune.hosts.messages import nodes_of, subgraphs_of
from graphprune.hosts.onnx.ops.values import counts


def what_is_held(proto: onnx.ModelProto, *, inner: bool = False) -> Mapping[str, float]:
    """The ``params`` and ``bytes`` of all stored tensors: initializers, ``Constant`` nodes, in subgraphs too.

    Parameters are the elements of floating-point tensors of any rank (running statistics, scales and scalars among
    them) and of quantised weights; bytes are those of all tensors, shapes and indices included. What is sparse counts
    as the dense tensor that is written in its place.

    Args:
        proto: The model; its tensors may be headers without data.
        inner: Count only what lies in subgraphs.
    """
    params = size = 0.0
    for data_type, shape in _tensors(proto, inner=inner):
        dtype = ir.DataType(data_type)
        n_elements = prod(shape)
        if dtype == ir.DataType.STRING:
            continue
        size += n_elements * dtype.bitwidth / 8
        params += n_elements if counts(dtype, len(shape)) else 0
    return {"params": params, "bytes": size}


def _tensors(proto: onnx.ModelProto, *, inner: bool) -> Iterator[tuple[int, tuple[int, ...]]]:
    graph = proto.graph
    for each in _subgraphs(graph) if inner else (graph, *_subgraphs(graph)):
        for tensor in each.initializer:
            yield tensor.data_type, tuple(tensor.dims)
        for sparse in each.sparse_initializer:
            yield sparse.values.data_type, tuple(sparse.dims)
        yield from _constants(each.node)
    for function in proto.functions:
        yield from _constants(function.node)


def _subgraphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    for node in nodes_of(graph):
        yield from subgraphs_of(node)


def _constants(nodes: Iterable[onnx.NodeProto]) -> Iterator[tuple[int, tuple[int, ...]]]:
    for node in nodes:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            yield from _constant(node)


def _constant(node: onnx.NodeProto) -> Iterator[tuple[int, tuple[int, ...]]]:
    for attribute in node.attribute:
        match attribute.name:
            case "value":
                yield attribute.t.data_type, tuple(attribute.t.dims)
            case "sparse_value":
                yield attribute.sparse_tensor.values.data_type, tuple(attribute.sparse_tensor.dims)
            case "value_float":
                yield onnx.TensorProto.FLOAT, ()
            case "value_floats":
                yield onnx.TensorProto.FLOAT, (len(attribute.floats),)
            case "value_int":
                yield onnx.TensorProto.INT64, ()
            case "value_ints":
                yield onnx.TensorProto.INT64, (len(attribute.ints),)
