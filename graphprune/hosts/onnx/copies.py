"""Constants that a file stores once for several uses: each use gets a copy on loading, equal copies are one again.

Exporters store equal-valued initializers of different layers (zero biases, unit norm weights) once, which would tie
layers that have nothing to do with each other. So each use of such a tensor gets a copy of its own, which may be cut as
the use asks for. The first use (by the name of its node) keeps the tensor; a copy is called ``TENSOR@RESULT:i``: what
the node with the result ``RESULT`` reads as its operand ``i``, through a ``DequantizeLinear`` if need be. What is
written and what is counted has copies that are still equal (the same number, so many times) once again, under the
tensor's own name where that is among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
import onnx_ir as ir

from graphprune.hosts.messages import nodes_of
from graphprune.hosts.onnx.store import Store, Stored, inline_array
from graphprune.ir.graph import Use

UNTIE_BYTES = 1 << 16
"""Initializers up to this size are compared with a constant, to tell deduplicated zeros and ones from tied weights."""

_QUANTISED = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT32)

Uses = Mapping[str, Use]
"""For each stored tensor that had several uses in the file, and each copy of one, the use that it is for."""


def untie_constants(model: ir.Model) -> Uses:
    """Gives each use of a deduplicated constant vector a copy of its own; returns which is whose.

    Weights that are tied on purpose hold more than one value.
    """
    readers: dict[str, str] = {}
    for node in list(model.graph):
        if node.op_type in ("DequantizeLinear", "QuantizeLinear") and _repeats(node.inputs[0]):
            readers.update(_copy_for_each_use(model.graph, node))
    uses: dict[str, Use] = {}
    former = set(model.graph.initializers)
    for value in list(model.graph.initializers.values()):
        found = sorted(value.uses(), key=lambda use: (use.node.name or "", use.idx))
        if len(found) < 2 or value.is_graph_output() or not _repeats(value):
            continue
        origin = value.name or ""
        uses[origin] = Use(origin, _reader(found[0].node, found[0].idx, readers))
        for n, use in enumerate(found[1:], 1):
            reader, old = _reader(use.node, use.idx, readers), f"{origin}__{n}"
            while old in former:
                old += "_"
            while (name := f"{origin}@{reader}") in model.graph.initializers:
                reader += "_"
            former.add(old)
            uses[name] = Use(origin, reader, old)
            copy = ir.Value(name=name, shape=value.shape, type=value.type, const_value=value.const_value)
            model.graph.register_initializer(copy)
            use.node.replace_input_with(use.idx, copy)
    return uses


def _reader(node: ir.Node, operand: int, readers: Mapping[str, str]) -> str:
    """What reads a tensor: ``RESULT:i``, by names that the file has."""
    result = next((output.name for output in node.outputs if output.name), "")
    return readers.get(result, f"{result}:{operand}")


def _repeats(value: ir.Value | None) -> bool:
    """Whether a value is a stored tensor of one number, many times: small, of floats or quantised."""
    tensor = None if value is None else value.const_value
    return value is not None and tensor is not None and value.is_initializer() and _is_one_number(tensor)


def repeated(tensor: onnx.TensorProto) -> bool:
    """Whether a message without external data holds one number many times; in doubt, with it, so."""
    if not tensor.dims or prod(tensor.dims) > UNTIE_BYTES:
        return False
    return tensor.data_location == onnx.TensorProto.EXTERNAL or _is_one_number(ir.serde.deserialize_tensor(tensor))


def _is_one_number(tensor: ir.TensorProtocol) -> bool:
    if len(tensor.shape) == 0 or tensor.nbytes > UNTIE_BYTES:
        return False
    if not (tensor.dtype.is_floating_point() or tensor.dtype in _QUANTISED):
        return False
    array = tensor.numpy().astype(np.float64).ravel()
    return array.size > 0 and bool((array == array[0]).all())


def _copy_for_each_use(graph: ir.Graph, node: ir.Node) -> dict[str, str]:
    """Gives each use of a quantised constant a node of its own; returns what reads the results of the new ones."""
    result = node.outputs[0]
    if result.is_graph_output() or any(value is not None and not value.is_initializer() for value in node.inputs):
        return {}
    readers: dict[str, str] = {}
    uses = sorted(result.uses(), key=lambda use: (use.node.name or "", use.idx))
    if len(uses) > 1:
        readers[result.name or ""] = _reader(uses[0].node, uses[0].idx, readers)
    for n, use in enumerate(uses[1:], 1):
        copy = ir.Node(
            node.domain,
            node.op_type,
            node.inputs,
            list(node.attributes.values()),
            name=f"{node.name}__{n}",
            outputs=[ir.Value(name=f"{result.name}__{n}", shape=result.shape, type=result.type)],
        )
        graph.insert_after(node, copy)
        readers[copy.outputs[0].name or ""] = _reader(use.node, use.idx, readers)
        use.node.replace_input_with(use.idx, copy.outputs[0])
    return readers


@dataclass(frozen=True, slots=True)
class _Content:
    """What must be equal for two copies to be one tensor again."""

    origin: str
    data_type: int
    shape: tuple[int, ...]
    number: bytes


def merged_names(proto: onnx.ModelProto, store: Store, uses: Uses) -> dict[str, str]:
    """For each copy that equals another one by now, the name of the tensor that is stored for both."""
    if not uses:
        return {}
    present = {tensor.name: tensor for tensor in proto.graph.initializer}
    members: dict[str, list[str]] = {}
    for name, use in uses.items():
        if name in present:
            members.setdefault(use.tensor, []).append(name)
    renamed: dict[str, str] = {}
    for origin, names in members.items():
        alike: dict[_Content, list[str]] = {}
        for name in names:
            content = _content(origin, present[name], store)
            if content is not None:
                alike.setdefault(content, []).append(name)
        for equal in alike.values():
            kept = origin if origin in equal else equal[0]
            renamed.update((name, kept) for name in equal if name != kept)
    return renamed


def _content(origin: str, tensor: onnx.TensorProto, store: Store) -> _Content | None:
    """What a copy holds; ``None`` where that is no longer one number many times, since it was refitted."""
    array = store[tensor.name].numpy() if tensor.name in store else inline_array(tensor)
    flat = array.reshape(-1)
    if not flat.size or flat.nbytes > UNTIE_BYTES or not (flat == flat[0]).all():
        return None
    return _Content(origin, tensor.data_type, tuple(tensor.dims), flat[:1].tobytes())


def merged(proto: onnx.ModelProto, store: Store, renamed: Mapping[str, str]) -> tuple[onnx.ModelProto, Store]:
    """The model in which equal copies are one tensor."""
    if not renamed:
        return proto, store
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    changed: dict[str, Stored] = dict(store)
    kept: list[onnx.TensorProto] = []
    taken: set[str] = set()
    for tensor in proto.graph.initializer:
        name = renamed.get(tensor.name, tensor.name)
        if name in taken:
            if name != tensor.name:  # the one that gives the name may come after another that has taken its place
                changed.pop(tensor.name, None)
            continue
        taken.add(name)
        copy = onnx.TensorProto()
        copy.CopyFrom(tensor)
        copy.name = name
        kept.append(copy)
        if tensor.name in changed:
            changed[name] = changed.pop(tensor.name) if name != tensor.name else changed[name]
    del result.graph.initializer[:]
    result.graph.initializer.extend(kept)
    for node in nodes_of(result.graph):
        for i, name in enumerate(node.input):
            if name in renamed:
                node.input[i] = renamed[name]
    return result, changed
