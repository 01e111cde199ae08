"""What is in a model, for comparisons: the bytes of stored tensors and the values of attributes, by digest."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from graphprune.arrays import digest_of
from graphprune.errors import ModelError
from graphprune.hosts.host import Array
from graphprune.hosts.onnx.load import load_model
from graphprune.hosts.onnx.store import Store

DEFAULT_DOMAINS = ("", "ai.onnx")
_SUBGRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


@dataclass(frozen=True)
class Contents:
    """A model as the loader normalises it: no functions, no Constant nodes, names that are unique across all graphs.

    Attributes:
        proto: The graph, weightless, with branches and bodies where they are.
        store: Its weights.
    """

    proto: onnx.ModelProto
    store: Store

    @staticmethod
    def load(path: Path) -> Contents:
        """Reads a file.

        Raises:
            ModelError: It is malformed, unsafe or of an unsupported version.
        """
        loaded = load_model(path)
        return Contents(loaded.proto, loaded.store)

    @property
    def headers(self) -> Mapping[str, onnx.TensorProto]:
        """The stored tensors by name."""
        return {tensor.name: tensor for tensor in self.proto.graph.initializer}

    @property
    def opset(self) -> int:
        """The version of the operators of ONNX itself."""
        return next((each.version for each in self.proto.opset_import if each.domain in DEFAULT_DOMAINS), 1)

    def tensor(self, header: onnx.TensorProto) -> ir.TensorProtocol:
        """A stored tensor with its data."""
        if header.name in self.store:
            return self.store[header.name].tensor(header.name)
        return ir.serde.deserialize_tensor(header)

    def named(self, name: str) -> ir.TensorProtocol:
        """A stored tensor with its data, by its name.

        Raises:
            ModelError: There is none.
        """
        if name not in self.headers:
            raise ModelError(f"the model stores no tensor '{name}'; expected the name of an initializer")
        return self.tensor(self.headers[name])

    def array(self, header: onnx.TensorProto) -> Array:
        """The values of a stored tensor."""
        return np.asarray(self.tensor(header).numpy())


def dtype_name(dtype: ir.DataType) -> str:
    """The name of an element type as NumPy (with ml_dtypes) and PyTorch have it."""
    return "str" if dtype is ir.DataType.STRING else dtype.numpy().name


def digest(tensor: ir.TensorProtocol) -> str:
    """The digest of a tensor; see :func:`graphprune.arrays.digest_of`."""
    shape = [int(size) for size in tensor.shape.numpy()]
    if tensor.dtype is ir.DataType.STRING:
        texts = [bytes(text) for text in np.asarray(tensor.numpy(), dtype=object).ravel()]
        return digest_of("str", shape, b"".join(struct.pack("<q", len(text)) + text for text in texts))
    return digest_of(dtype_name(tensor.dtype), shape, tensor.tobytes())


def digest_of_model(contents: Contents) -> str:
    """The digest of operators, attributes, connections and stored tensors; not of texts that describe the model."""
    found = {header.name: digest(contents.tensor(header)) for header in contents.proto.graph.initializer}
    whole = hashlib.sha256(repr(sorted((each.domain, each.version) for each in contents.proto.opset_import)).encode())
    whole.update(repr(sorted(found.items())).encode())
    for graph in graphs_of(contents.proto.graph):
        names = [[value.name for value in values] for values in (graph.input, graph.output)]
        whole.update(repr(names).encode())
        for node in graph.node:
            attributes = sorted(stated_attributes(node).items())
            whole.update(repr((node.domain, node.op_type, [*node.input], [*node.output], attributes)).encode())
        if graph is not contents.proto.graph:
            for tensor in graph.initializer:
                whole.update(f"{tensor.name}={digest(ir.serde.deserialize_tensor(tensor))};".encode())
    return whole.hexdigest()


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all branches and bodies in it."""
    yield graph
    for node in graph.node:
        for body in bodies_of(node).values():
            yield from graphs_of(body)


def bodies_of(node: onnx.NodeProto) -> dict[tuple[str, int], onnx.GraphProto]:
    """The branches or the body of a node, by attribute and position."""
    found = {}
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            found[attribute.name, 0] = attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            found.update({(attribute.name, i): body for i, body in enumerate(attribute.graphs)})
    return found


def attributes_of(node: onnx.NodeProto, opset: int) -> dict[str, bytes]:
    """The attributes of a node, without graphs and without those that say what the operator assumes anyway."""
    defaults = _defaults(node.op_type, opset) if node.domain in DEFAULT_DOMAINS else {}
    return {name: value for name, value in stated_attributes(node).items() if defaults.get(name) != value}


def stated_attributes(node: onnx.NodeProto) -> dict[str, bytes]:
    """The attributes of a node as they are written, without graphs."""
    return {each.name: _value(each) for each in node.attribute if each.type not in _SUBGRAPHS}


@cache
def _defaults(op_type: str, opset: int) -> dict[str, bytes]:
    try:
        schema = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return {}
    defaults = [each.default_value for each in schema.attributes.values()]
    return {each.name: _value(each) for each in defaults if each.type}


def _value(attribute: onnx.AttributeProto) -> bytes:
    """The value of an attribute to the last bit; tensors whichever way their data is written."""
    kind = onnx.AttributeProto
    tag = f"{attribute.type}:".encode()
    match attribute.type:
        case kind.FLOAT:
            return tag + struct.pack("<f", attribute.f)
        case kind.FLOATS:
            return tag + struct.pack(f"<{len(attribute.floats)}f", *attribute.floats)
        case kind.TENSOR:
            return tag + digest(ir.serde.deserialize_tensor(attribute.t)).encode()
        case kind.TENSORS:
            return tag + b"".join(digest(ir.serde.deserialize_tensor(each)).encode() for each in attribute.tensors)
    plain = onnx.AttributeProto()
    plain.CopyFrom(attribute)
    plain.ClearField("name")
    plain.ClearField("doc_string")
    return tag + bytes(plain.SerializeToString(deterministic=True))


def shown(node: onnx.NodeProto, name: str) -> str:
    """An attribute's value for the reader."""
    attribute = next((each for each in node.attribute if each.name == name), None)
    if attribute is None:
        return "absent"
    value = onnx.helper.get_attribute_value(attribute)
    return f"'{value.decode(errors='replace')}'" if isinstance(value, bytes) else " ".join(str(value)[:60].split())
