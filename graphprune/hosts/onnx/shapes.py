"""Shapes of all values of a weightless ONNX model, for one binding of its dynamic input sizes.

ONNX's own inference runs on the bound model; what it leaves open is inferred node by node, with the small integers
that the partial evaluator knows; results of operators that ONNX does not know are left to the inference of
onnxruntime, and what is still open (sizes that depend on data) to a trial run of the host.

An axis is dynamic if its size differs between two bindings, the second of which doubles every dynamic input size (so
that sums and products of sizes keep their relations).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from math import prod

import numpy as np
import onnx
from onnx import TensorProto, TypeProto

from graphprune.errors import ModelError
from graphprune.hosts.onnx.ops.values import JOIN_DOMAIN, Inferred, Partial
from graphprune.hosts.onnx.shape_data import sizes_in_data
from graphprune.hosts.onnx.shape_values import Shapes, constants_of, evaluate, evaluate_graph
from graphprune.hosts.onnx.sizes import input_sizes
from graphprune.hosts.onnx.store import has_data, inline_array

_INFERENCE_ERRORS = (
    onnx.defs.SchemaError,
    onnx.shape_inference.InferenceError,
    onnx.checker.ValidationError,
    KeyError,
    RuntimeError,
    ValueError,
    TypeError,
)
_SHAPE_KEEPING = ("GroupNormalization", "BatchNormalization", "MeanVarianceNormalization", "Celu", "Swish", "Mish")
"""Operators for which some versions of ONNX infer nothing, whose first result has the shape of the first operand."""
_FLOATS_OF_SHAPE = ("Normalizer", "Scaler")
"""Operators of classic models that make floats of the operand's shape, of which ONNX infers nothing."""


Probed = Mapping[str, tuple[int, tuple[int, ...]]]
"""Element types and shapes of values, as the runtime has inferred or a trial run has found them."""


def unfit(assumed: Mapping[str, tuple[int | str | None, ...]], bound: Shapes, error: ModelError) -> str:
    """What to tell a user whose model does not run at the sizes that :func:`graphprune.hosts.onnx.sizes.bind` chose.

    Args:
        assumed: The declared sizes of the inputs whose dynamic axes were given sizes.
        bound: Those sizes.
        error: What the runtime said.
    """
    taken = ", ".join(f"'{name}' as {'x'.join(map(str, bound[name]))}" for name in assumed)
    options = []
    for name, sizes in assumed.items():
        texts = [str(size) if isinstance(size, int) else f"<{size or f'axis {i}'}>" for i, size in enumerate(sizes)]
        options.append(f"--shape {name}={'x'.join(texts)}")
    reason = str(error).removeprefix("onnxruntime cannot run the model: ").partition("; give input shapes")[0]
    return (
        f"the model does not run at the sizes that are assumed for dynamic axes of its inputs ({taken}): {reason}; "
        f"give sizes that it takes: {' '.join(options)}"
    )


def doubled(proto: onnx.ModelProto, bound: Shapes) -> dict[str, tuple[int, ...]] | None:
    """The second binding, or ``None`` if nothing is dynamic."""
    declared = input_sizes(proto)
    result = {
        name: tuple(
            size if name in declared and isinstance(declared[name][axis], int) else 2 * size
            for axis, size in enumerate(shape)
        )
        for name, shape in bound.items()
    }
    return None if result == dict(bound) else result


LARGE = 256
"""From this size on another size to try is half of an axis rather than twice: a proof takes time."""


def other_sizes(proto: onnx.ModelProto, bound: Shapes) -> list[dict[str, tuple[int, ...]]]:
    """Further bindings to try a model on, if something is dynamic.

    First a first axis one longer and the others doubled, then all doubled; before these, where an axis is large, a
    first axis one longer and the large ones halved. At last all doubled but a first axis of one, where operators may
    take no other.
    """
    twice = doubled(proto, bound)
    if twice is None:
        return []
    mixed, halved = (
        {
            name: tuple(
                old if new == old else old + 1 if axis == 0 else old // 2 if small and old >= LARGE else new
                for axis, (old, new) in enumerate(zip(bound[name], sizes, strict=True))
            )
            for name, sizes in twice.items()
        }
        for small in (False, True)
    )
    alone = {name: (old[0], *new[1:]) if (old := bound[name])[:1] == (1,) else new for name, new in twice.items()}
    return [*([halved] if halved != mixed else []), mixed, twice, *([alone] if alone != twice else [])]


def infer(
    proto: onnx.ModelProto,
    bound: Shapes,
    found: Probed | None = None,
    found_twice: Probed | None = None,
    by_data: frozenset[str] = frozenset(),
) -> Inferred:
    """Infers shapes, types, dynamic axes and small values.

    Args:
        proto: A weightless model.
        bound: The shapes of its inputs.
        found: Element types and shapes that are known from elsewhere for ``bound``.
        found_twice: The same for :func:`doubled`.
        by_data: Values whose shape depends on data: all their axes are dynamic.
    """
    shapes, types = walked(proto, bound, found or {})
    twice = doubled(proto, bound)
    dynamic: dict[str, frozenset[int]] = {}
    if twice is not None:
        other, _ = walked(proto, twice, found_twice or {})
        for name, shape in shapes.items():
            second = other.get(name)
            if second is None or len(second) != len(shape):
                dynamic[name] = frozenset(range(len(shape)))
            else:
                dynamic[name] = frozenset(i for i, (a, b) in enumerate(zip(shape, second, strict=True)) if a != b)
    for name in by_data:
        dynamic[name] = frozenset(range(len(shapes.get(name, ()))))
    values = evaluate_graph(proto.graph, shapes, dynamic)
    sized = sizes_in_data(proto.graph, shapes, dynamic, values)
    return Inferred(shapes, types, {name: axes for name, axes in dynamic.items() if axes}, values, sized)


def bound_model(proto: onnx.ModelProto, bound: Shapes) -> onnx.ModelProto:
    """The model with the input shapes written in, and no statement about any other value."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    del result.graph.value_info[:]
    for value in result.graph.input:
        if value.name in bound and value.type.HasField("tensor_type"):
            tensor = value.type.tensor_type
            tensor.ClearField("shape")
            tensor.shape.SetInParent()
            for size in bound[value.name]:
                tensor.shape.dim.add().dim_value = size
    for value in result.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    return result


def contradicted(said: TypeProto, known: TypeProto) -> bool:
    """Whether a declared shape is not what operators make: another rank, or another size of an axis."""
    if not (said.HasField("tensor_type") and known.HasField("tensor_type")):
        return False
    if not (said.tensor_type.HasField("shape") and known.tensor_type.HasField("shape")):
        return False
    one, other = said.tensor_type.shape.dim, known.tensor_type.shape.dim
    return len(one) != len(other) or any(
        a.HasField("dim_value") and b.HasField("dim_value") and a.dim_value != b.dim_value
        for a, b in zip(one, other, strict=True)
    )


def stale_outputs(proto: onnx.ModelProto, bound: Shapes) -> frozenset[str]:
    """The outputs whose declared shapes the operators contradict, at these shapes of the inputs."""
    shapes, types = walked(proto, bound, {})
    return frozenset(
        value.name
        for value in proto.graph.output
        if value.name in shapes and value.name in types
        if contradicted(value.type, onnx.helper.make_tensor_type_proto(types[value.name], shapes[value.name]))
    )


def walked(proto: onnx.ModelProto, bound: Shapes, probed: Probed) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Shapes and element types of all values, as far as they can be inferred."""
    model = bound_model(proto, bound)
    with suppress(onnx.shape_inference.InferenceError):  # then node by node, below
        model = onnx.shape_inference.infer_shapes(model, data_prop=carries_little(model.graph))
    values = constants_of(model.graph)
    found, stored, shapes = _stated(model, probed)
    for node in model.graph.node:
        if any(name and name not in shapes for name in node.output):
            for name in node.input:
                if name in stored:
                    found[name] = onnx.helper.make_tensor_type_proto(stored.pop(name), shapes[name])
            for name, kind in _infer_node(model, node, found, values).items():
                if _shape(found.get(name, TypeProto())) is None:
                    found[name] = kind
                if (shape := _shape(found[name])) is not None:
                    shapes[name] = shape
        result = evaluate(node, values, shapes, {})
        if result is not None and node.output:
            values[node.output[0]] = result
            shapes.setdefault(node.output[0], result.values.shape)
    types = {name: kind.tensor_type.elem_type for name, kind in found.items() if kind.HasField("tensor_type")}
    return shapes, types | stored


def _stated(
    model: onnx.ModelProto, probed: Probed
) -> tuple[dict[str, TypeProto], dict[str, int], dict[str, tuple[int, ...]]]:
    """What is known of values before the walk: types; element types of stored tensors, apart; shapes of both."""
    found = {value.name: value.type for value in (*model.graph.input, *model.graph.value_info, *model.graph.output)}
    stored: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for tensor in model.graph.initializer:
        found.pop(tensor.name, None)
        stored[tensor.name] = tensor.data_type
        shapes[tensor.name] = tuple(tensor.dims)
    for name, (data_type, sizes) in probed.items():
        found[name] = onnx.helper.make_tensor_type_proto(data_type, _certain(found.get(name), sizes))
        stored.pop(name, None)
        shapes.pop(name, None)
    for name, kind in found.items():
        if (shape := _shape(kind)) is not None:
            shapes[name] = shape
    return found, stored, shapes


CARRIED_ELEMENTS = 1 << 20
"""So many elements of small values, all together, inference may carry along; it keeps a message for each."""


def carries_little(graph: onnx.GraphProto) -> bool:
    """Whether the values that ONNX's inference follows (shapes, ranges, their concatenations) stay small.

    Bounded from above, for a few nodes can double them as often: what is joined is added, all else is as large as its
    largest operand, a range as long as its constants say.
    """
    values = {tensor.name: prod(tensor.dims) for tensor in graph.initializer if has_data(tensor)}
    total = 0
    for node in graph.node:
        sizes = [values.get(name, 0) for name in node.input]
        found = sum(sizes) if node.op_type == "Concat" else max(sizes, default=0)
        match node.op_type:
            case "Shape" | "Constant":
                found = 64
            case "Range":
                found = _length(graph, node)
        total += found
        if total > CARRIED_ELEMENTS:
            return False
        values.update((name, found) for name in node.output if name)
    return True


def _length(graph: onnx.GraphProto, node: onnx.NodeProto) -> int:
    stored = {tensor.name: tensor for tensor in graph.initializer if tensor.name in node.input and has_data(tensor)}
    if len(stored) != len({*node.input}):
        return 0
    start, limit, delta = (float(inline_array(stored[name]).ravel()[0]) for name in node.input)
    return int(min(max(0.0, (limit - start) / delta), CARRIED_ELEMENTS + 1)) if delta else 0


def _certain(kind: TypeProto | None, sizes: tuple[int, ...]) -> list[int]:
    """A probed shape, but for the sizes that inference is sure of: the runtime does not reduce what has no elements."""
    dims = kind.tensor_type.shape.dim if kind is not None else ()
    if 0 not in sizes or len(dims) != len(sizes):
        return list(sizes)
    return [dim.dim_value if dim.HasField("dim_value") else size for dim, size in zip(dims, sizes, strict=True)]


def _shape(kind: TypeProto) -> tuple[int, ...] | None:
    if not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    sizes = tuple([dim.dim_value for dim in dims])
    if min(sizes, default=1) > 0:
        return sizes
    return None if any(not dim.HasField("dim_value") or dim.dim_value < 0 for dim in dims) else sizes


def _infer_node(
    model: onnx.ModelProto, node: onnx.NodeProto, found: Mapping[str, TypeProto], values: Mapping[str, Partial]
) -> dict[str, TypeProto]:
    """Inference of one node, with all the values that are known."""
    if node.domain == JOIN_DOMAIN:
        return _joined(node, found)
    versions = {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import}
    domain = "" if node.domain == "ai.onnx" else node.domain
    try:
        schema = onnx.defs.get_schema(node.op_type, versions.get(domain, 1), domain)
        kinds = {name: found[name] for name in node.input if name}
        data: dict[str, TensorProto] = {
            name: onnx.numpy_helper.from_array(np.asarray(values[name].values), name)
            for name in node.input
            if name in values and values[name].values.dtype.kind in "iufb"
        }
        inferred = onnx.shape_inference.infer_node_outputs(
            schema, node, kinds, data, opset_imports=list(model.opset_import), ir_version=model.ir_version
        )
    except _INFERENCE_ERRORS:
        inferred = {}
    unknown = node.output[0] not in inferred or _shape(inferred[node.output[0]]) is None
    if unknown and node.op_type in _SHAPE_KEEPING and node.input[0] in found:
        return {node.output[0]: found[node.input[0]]}
    if unknown and node.domain == "ai.onnx.ml" and node.op_type in _FLOATS_OF_SHAPE:
        shape = _shape(found.get(node.input[0], TypeProto()))
        if shape is not None:
            return {node.output[0]: onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, shape)}
    return inferred


def _joined(node: onnx.NodeProto, found: Mapping[str, TypeProto]) -> dict[str, TypeProto]:
    """What two branches give, where it looks the same."""
    n = len(node.output)
    pairs = zip(node.output, node.input[1 : 1 + n], node.input[1 + n :], strict=True)
    return {
        result: found[a] for result, a, b in pairs if a in found and b in found and _shape(found[a]) == _shape(found[b])
    }
