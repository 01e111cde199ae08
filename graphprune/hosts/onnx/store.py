"""A weightless model and its store: the graph as a small protobuf message, the weights where they were.

Large tensors are headers (name, type, shape) in the graph and :class:`Stored` records beside it, which know where the
data is and which positions of each axis are taken. Nothing is read before it is run or saved. Small tensors keep
their data in the graph, where shape inference needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx
import onnx_ir as ir

from graphprune.arrays import cut
from graphprune.hosts.host import Array
from graphprune.ir.dims import Index

INLINE_BYTES = 1024
"""Tensors up to this size keep their data in the graph, whatever they are."""
INLINE_ELEMENTS = 4096
"""Integer and boolean tensors up to this many elements do too: they may be shapes, axes or indices."""

_SMALL_TYPES = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored tensor: where its data is, and which positions of its axes (in their first numbering) are taken."""

    base: ir.TensorProtocol
    slices: Mapping[int, Index] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape after slicing."""
        whole = (int(size) for size in self.base.shape.numpy())
        return tuple(len(self.slices[i]) if i in self.slices else size for i, size in enumerate(whole))

    def take(self, axes: Mapping[int, Index]) -> Stored:
        """A further slice: indices count in the present numbering."""
        merged = dict(self.slices)
        for axis, index in axes.items():
            merged[axis] = self.slices[axis][index] if axis in self.slices else index
        return Stored(self.base, merged)

    def numpy(self) -> Array:
        """The values; a mapped file is read only where they lie."""
        array = np.asarray(self.base.numpy())
        return cut(array, self.slices) if self.slices else array

    def tensor(self, name: str) -> ir.TensorProtocol:
        """The tensor, evaluated when its bytes are asked for."""
        if not self.slices:
            return self.base
        dtype = self.base.dtype
        return ir.LazyTensor(
            lambda: ir.Tensor(np.asarray(self.numpy(), order="C"), dtype=dtype, name=name),
            dtype=dtype,
            shape=ir.Shape(self.shape),
            name=name,
        )


Store = Mapping[str, Stored]


def weightless(
    model: ir.Model, annotations: Sequence[onnx.TensorAnnotation]
) -> tuple[onnx.ModelProto, dict[str, Stored]]:
    """Separates the graph of a normalised model from its weights. The model is used up.

    Args:
        model: The model.
        annotations: The quantisation annotations of its file.
    """
    store: dict[str, Stored] = {}
    inline: dict[str, onnx.TensorProto] = {}
    docs: dict[str, str] = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            continue
        if is_small(tensor.dtype, tensor.size, tensor.nbytes):
            inline[name] = in_memory(tensor, name)
        else:
            store[name] = Stored(tensor)
        docs[name] = tensor.doc_string or ""
        value.const_value = None
    initializers = list(model.graph.initializers.values())
    for value in initializers:
        model.graph.initializers.pop(value.name or "")
    proto = ir.serde.serialize_model(model)
    for value in initializers:
        name = value.name or ""
        if name in inline:
            proto.graph.initializer.append(inline[name])
        elif name in store:
            proto.graph.initializer.append(header(name, store[name], docs[name]))
    del proto.graph.value_info[:]
    proto.graph.quantization_annotation.extend(annotations)
    return proto, store


def is_small(dtype: ir.DataType, n_elements: int, n_bytes: int) -> bool:
    """Whether a tensor keeps its data in the graph."""
    small = dtype in _SMALL_TYPES and n_elements <= INLINE_ELEMENTS
    return small or n_bytes <= INLINE_BYTES or dtype == ir.DataType.STRING


def in_memory(tensor: ir.TensorProtocol, name: str) -> onnx.TensorProto:
    """A tensor as a message that holds its data."""
    if isinstance(tensor, ir.ExternalTensor):
        values = np.array(tensor.numpy())
        tensor = ir.Tensor(values, dtype=tensor.dtype, name=tensor.name, doc_string=tensor.doc_string)
    proto = ir.serde.serialize_tensor(tensor)
    proto.name = name
    return proto


def header(name: str, stored: Stored, doc_string: str = "") -> onnx.TensorProto:
    """The initializer that stands in the graph for a stored tensor: no data."""
    proto = onnx.TensorProto(name=name, data_type=int(stored.base.dtype), dims=stored.shape)
    if doc_string:
        proto.doc_string = doc_string
    return proto


def has_data(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor of a weightless graph has kept its data."""
    return tensor.HasField("raw_data") or any(
        len(getattr(tensor, name)) for name in ("int64_data", "int32_data", "float_data", "double_data", "uint64_data")
    )


def inline_array(tensor: onnx.TensorProto) -> Array:
    """The values of a tensor that is kept in the graph."""
    return np.asarray(ir.serde.deserialize_tensor(tensor).numpy())


def inline_tensor(array: Array, like: onnx.TensorProto) -> onnx.TensorProto:
    """A tensor with other values and shape, and the name, type and documentation of ``like``."""
    dtype = ir.DataType(like.data_type)
    tensor = ir.serde.serialize_tensor(ir.Tensor(np.asarray(array, order="C"), dtype=dtype, name=like.name))
    if like.doc_string:
        tensor.doc_string = like.doc_string
    tensor.metadata_props.extend(like.metadata_props)
    return tensor


def sliced(
    proto: onnx.ModelProto, store: Store, slices: Mapping[str, Mapping[int, Index]]
) -> tuple[onnx.ModelProto, dict[str, Stored]]:
    """The model with positions of stored tensors taken."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    changed = dict(store)
    for tensor in result.graph.initializer:
        axes = slices.get(tensor.name)
        if not axes:
            continue
        if tensor.name in changed:
            changed[tensor.name] = changed[tensor.name].take(axes)
            tensor.ClearField("dims")
            tensor.dims.extend(changed[tensor.name].shape)
        else:
            array = inline_array(tensor)
            for axis, index in axes.items():
                array = np.take(array, index, axis)
            tensor.CopyFrom(inline_tensor(array, tensor))
    return result, changed


def n_bytes(proto: onnx.ModelProto) -> int:
    """The size of all tensors of a weightless model, in bytes, as they would be saved."""
    return sum(
        -(-prod(tensor.dims) * ir.DataType(tensor.data_type).bitwidth // 8) for tensor in proto.graph.initializer
    )


def with_weights(
    proto: onnx.ModelProto, store: Store, fill: Callable[[onnx.TensorProto, ir.TensorProtocol], None]
) -> onnx.ModelProto:
    """A copy of a weightless model in which ``fill`` has written the data of each header."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    for tensor in result.graph.initializer:
        if tensor.name in store:
            fill(tensor, store[tensor.name].tensor(tensor.name))
    return result


def fill_inline(tensor: onnx.TensorProto, data: ir.TensorProtocol) -> None:
    """Writes the data into the message itself."""
    tensor.raw_data = data.tobytes()
