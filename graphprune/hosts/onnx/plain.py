"""Models that are in the loader's normal form as they come: most files are, and none of their operators is made anew.

What :mod:`graphprune.hosts.onnx.load` does to others (inlining, sorting, naming, lifting of constants, untying) leaves
such a model as it is, so that only the weights are taken out of its message. Whether it is so is decided here from the
message alone; in doubt it is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path

import onnx
import onnx_ir as ir

from graphprune.hosts.onnx.copies import repeated
from graphprune.hosts.onnx.store import Stored, header, in_memory, is_small

_MADE_ANEW = frozenset({"Constant", "DequantizeLinear", "QuantizeLinear"})
"""Operators that the loader may change."""
_NAME, _TYPE, _DOC = 1, 20, 13
_FIELDS: Mapping[int, frozenset[int]] = {
    kind: frozenset({_NAME, _TYPE, _DOC, field})
    for kind, field in (
        (onnx.AttributeProto.FLOAT, 2),
        (onnx.AttributeProto.INT, 3),
        (onnx.AttributeProto.STRING, 4),
        (onnx.AttributeProto.TENSOR, 5),
        (onnx.AttributeProto.FLOATS, 7),
        (onnx.AttributeProto.INTS, 8),
        (onnx.AttributeProto.STRINGS, 9),
    )
}
"""The fields that an attribute of a type without graphs may have, by their numbers in ONNX's message."""


def taken_as_it_is(proto: onnx.ModelProto, folder: Path | None) -> tuple[onnx.ModelProto, dict[str, Stored]] | None:
    """The weightless model and its store, or ``None`` where the loader has to normalise it.

    Args:
        proto: The model as parsed and validated; it is left as it is.
        folder: Where external data lies.
    """
    graph = proto.graph
    if proto.functions or graph.quantization_annotation or getattr(proto, "configuration", ()):
        return None
    if any(entry.domain == "ai.onnx" for entry in proto.opset_import):
        return None
    given = [value.name for value in graph.input] + [tensor.name for tensor in graph.initializer]
    known = set(given)
    if len(known) < len(given) or "" in known:
        return None
    if any(tensor.metadata_props or tensor.data_type == onnx.TensorProto.STRING for tensor in graph.initializer):
        return None
    stored = {tensor.name: tensor for tensor in graph.initializer}
    if not _is_normal(graph, known, stored) or _is_tied(graph, stored):
        return None
    return _weightless(proto, folder)


def _is_normal(graph: onnx.GraphProto, known: set[str], stored: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether the nodes are sorted and named, and none of them has a graph inside or is one that is done away with."""
    made: set[str] = set()
    names: set[str] = set()
    for node in graph.node:
        op = node.op_type
        if op in _MADE_ANEW or node.domain == "ai.onnx":
            return False
        for name in node.input:
            if name and name not in known:
                return False
        if op == "Identity" and node.input[0] in stored:
            return False
        for name in node.output:
            if not name or name in known:
                return False
            known.add(name)
            made.add(name)
        if name := node.name:
            if name in names or name.startswith("node"):  # which is what nodes without a name are called
                return False
            names.add(name)
        for attribute in node.attribute:
            fields = _FIELDS.get(attribute.type)
            if fields is None or not fields.issuperset([field.number for field, _ in attribute.ListFields()]):
                return False
            if attribute.type == onnx.AttributeProto.TENSOR and _is_unusual(attribute.t):
                return False
    outputs = [value.name for value in graph.output]
    typed = all(value.type.HasField("tensor_type") for value in (*graph.input, *graph.output))
    return typed and len({*outputs}) == len(outputs) and made.issuperset(outputs)


def _is_unusual(tensor: onnx.TensorProto) -> bool:
    external = tensor.data_location == onnx.TensorProto.EXTERNAL
    return external or tensor.data_type == onnx.TensorProto.STRING or bool(tensor.metadata_props)


def _is_tied(graph: onnx.GraphProto, stored: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether a stored tensor of one number has several uses, each of which gets a copy of its own."""
    n_uses = Counter([name for node in graph.node for name in node.input if name in stored])
    return any(n > 1 and repeated(stored[name]) for name, n in n_uses.items())


def _weightless(proto: onnx.ModelProto, folder: Path | None) -> tuple[onnx.ModelProto, dict[str, Stored]]:
    store: dict[str, Stored] = {}
    result = onnx.ModelProto()
    source, graph = proto.graph, result.graph
    for old, new in ((proto, result), (source, graph)):
        for field, value in old.ListFields():
            if field.name in ("node", "input", "output", "opset_import", "metadata_props"):
                getattr(new, field.name).extend(value)
            elif isinstance(value, int | str) and value:
                setattr(new, field.name, value)
    result.ir_version = max(4, proto.ir_version)
    for entry in result.opset_import:
        entry.domain = entry.domain  # said, as the loader says it of others, even where it is the default
    for holder in (result, graph, *graph.node, *graph.input, *graph.output):
        if len(holder.metadata_props) > 1:
            holder.metadata_props.sort(key=lambda entry: entry.key)
    n = 0
    for node in graph.node:
        if not node.name:
            node.name = f"node_{n}" if n else "node"
            n += 1
        for field in ("doc_string", "overload", "domain"):
            if not getattr(node, field):
                node.ClearField(field)
    base = "" if folder is None else str(folder)
    for tensor in source.initializer:
        dtype = ir.DataType(tensor.data_type)
        n_elements = prod(tensor.dims)
        if not is_small(dtype, n_elements, -(-n_elements * dtype.bitwidth // 8)):
            stored = store[tensor.name] = Stored(ir.serde.deserialize_tensor(tensor, base))
            graph.initializer.append(header(tensor.name, stored, tensor.doc_string))
        elif tensor.data_location == onnx.TensorProto.EXTERNAL:
            graph.initializer.append(in_memory(ir.serde.deserialize_tensor(tensor, base), tensor.name))
        else:
            graph.initializer.append(tensor)
    result.DiscardUnknownFields()
    return result, store
