"""Going through an ONNX model step by step, and the edits that a refit of weights needs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from graphprune.errors import ModelError
from graphprune.hosts.host import Array, Arrays, Carried, PartialRun, bias_shape
from graphprune.hosts.messages import attributes_of, operands_of
from graphprune.hosts.onnx.ops.values import Inferred
from graphprune.hosts.onnx.runtime import session_of
from graphprune.hosts.onnx.store import Store, Stored, inline_array, inline_tensor
from graphprune.hosts.onnx.surgery import Surgery
from graphprune.hosts.trying import Asked, Rest, Trial
from graphprune.hosts.windows import Window, transposed
from graphprune.ir.liveness import Flow, part_of
from graphprune.runtime.sessions import as_array, run_raw


def partial_run(
    proto: onnx.ModelProto,
    store: Store,
    inferred: Inferred,
    have: Collection[str],
    outputs: Sequence[str],
    later: Sequence[str],
) -> PartialRun:
    """A runner of the nodes between what there is and what is wanted; see ``Runnable.partial_run``."""
    flow = _flow(proto)
    known = {*have, *flow.producers, *(tensor.name for tensor in proto.graph.initializer)}
    unknown = [name for name in (*outputs, *later) if name not in known]
    if unknown:
        raise ModelError(f"the model has no value '{unknown[0]}'; ask for names of values of its graph")
    given, now, carried = part_of(flow, have, outputs, later)
    wanted = [name for name in dict.fromkeys((*outputs, *sorted(carried))) if name not in given]
    session = None
    if now:
        session = session_of(_part(proto, inferred, sorted(now), given, wanted), store, threads=0)

    def run(values: Carried) -> tuple[dict[str, Any], dict[str, Array]]:
        results: dict[str, Any] = {} if session is None else run_raw(session, values)
        found = {**{name: values[name] for name in carried & given}, **results}
        arrays = {name: as_array(values[name] if name in given else results[name]) for name in outputs}
        return {name: found[name] for name in carried}, arrays

    return run


def _flow(proto: onnx.ModelProto) -> Flow[int]:
    nodes = proto.graph.node
    return Flow(
        {name: i for i, node in enumerate(nodes) for name in node.output if name},
        lambda i: filter(None, operands_of(nodes[i])),
        lambda i: filter(None, nodes[i].output),
    )


def trials(proto: onnx.ModelProto, store: Store, inferred: Inferred, asked: Asked) -> Trial | None:
    """A runner of the rest of a model, in one session that some stored tensors are inputs of; see ``Trying.trials``."""
    headers = {tensor.name: tensor for tensor in proto.graph.initializer}
    types: dict[str, np.dtype[Any]] = {}
    for name in asked.changing:
        kind = onnx.helper.tensor_dtype_to_np_dtype(headers[name].data_type)
        if kind not in _HANDED:
            return None
        types[name] = kind
    given, now, _ = part_of(_flow(proto), asked.have, asked.outputs, ())
    wanted = [name for name in dict.fromkeys(asked.outputs) if name not in given]
    if not now:
        return None
    part = _part(proto, inferred, sorted(now), given, wanted, asked.changing)
    try:
        session = session_of(part, store, threads=asked.threads)
    except ModelError:  # an operator that takes only what is stored
        return None

    def changed(tensors: Arrays) -> Rest:
        inputs = {
            name: np.ascontiguousarray(np.asarray(array).reshape(tuple(headers[name].dims)), types[name])
            for name, array in tensors.items()
        }

        def run(values: Carried) -> dict[str, Array]:
            results = run_raw(session, {**values, **inputs})
            return {name: as_array(values[name] if name in given else results[name]) for name in asked.outputs}

        return run

    return changed


_HANDED = frozenset(np.dtype(each) for each in (np.float16, np.float32, np.float64))
"""Types of stored tensors that can be handed in; NumPy has no others of floating point."""


def _part(
    proto: onnx.ModelProto,
    inferred: Inferred,
    nodes: Sequence[int],
    given: Collection[str],
    wanted: Sequence[str],
    handed: Collection[str] = (),
) -> onnx.ModelProto:
    """The weightless model of some nodes; stored tensors that are ``handed`` in are inputs of it."""
    part = onnx.ModelProto()
    for field, value in proto.ListFields():
        if field.name == "graph":
            continue
        if field.is_repeated:
            getattr(part, field.name).extend(value)
        else:
            setattr(part, field.name, value)
    part.graph.name = proto.graph.name or "part"
    part.graph.node.extend(proto.graph.node[i] for i in nodes)
    used = {name for node in part.graph.node for name in operands_of(node)}
    for tensor in proto.graph.initializer:
        if tensor.name in used and tensor.name in handed:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            part.graph.input.append(value)
        elif tensor.name in used:
            part.graph.initializer.append(tensor)
    whole = {value.name: value for value in proto.graph.input}
    for name in sorted(used & set(given)):
        declared = whole.get(name)
        kind = declared.type.tensor_type.elem_type if declared is not None else inferred.types.get(name, 0)
        if not kind:
            raise ModelError(f"value '{name}' is no tensor of a known type, so the model cannot be stopped there")
        rank = len(inferred.shapes[name]) if name in inferred.shapes else None
        shape = None if rank is None else [None] * rank
        part.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, shape))
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    return part


_SCALED = ("Gemm", "FusedGemm", "FusedMatMul", "TransposeMatMul", "TransposedMatMul")


def scales(node: onnx.NodeProto) -> tuple[float, float]:
    """What a node multiplies its product of two operands by, and what its bias."""
    attributes = attributes_of(node) if node.op_type in _SCALED else {}
    return float(attributes.get("alpha", 1.0)), float(attributes.get("beta", 1.0))


def window(node: onnx.NodeProto, weight: tuple[int, ...], x: tuple[int, ...], result: tuple[int, ...]) -> Window | None:
    """What a convolution sees, also a transposed one; ``None`` for any other node."""
    if node.op_type not in ("Conv", "FusedConv", "ConvTranspose"):
        return None
    attributes = attributes_of(node)
    kernel = weight[2:]
    n = len(kernel)
    strides = tuple(attributes.get("strides") or (1,) * n)
    dilations = tuple(attributes.get("dilations") or (1,) * n)
    mode = attributes.get("auto_pad", "NOTSET")
    flat = () if mode == "VALID" else attributes.get("pads") or ()
    flat = flat or (0,) * (2 * n)
    pads = [(int(flat[i]), int(flat[n + i])) for i in range(n)]
    same, upper = mode in ("SAME_UPPER", "SAME_LOWER"), mode == "SAME_UPPER"
    if node.op_type == "ConvTranspose":
        more = tuple(attributes.get("output_padding") or (0,) * n)
        if same or attributes.get("output_shape"):
            full = [
                s * (i - 1) + d * (k - 1) + 1 for i, k, s, d in zip(x[-n:], kernel, strides, dilations, strict=True)
            ]
            pads = [_halves(f + m - size, upper) for f, m, size in zip(full, more, result[-n:], strict=True)]
        return transposed(kernel, strides, dilations, pads, more)
    if same:
        wanted = zip(x[-n:], kernel, strides, dilations, strict=True)
        pads = [_halves(max(0, (-(-i // s) - 1) * s + d * (k - 1) + 1 - i), upper) for i, k, s, d in wanted]
    return Window(kernel, strides, dilations, tuple(pads))


def _halves(total: int, upper: bool) -> tuple[int, int]:
    """A sum of pads as the pads before and after; an odd one is larger after where ``upper``."""
    less = total // 2
    return (less, total - less) if upper else (total - less, less)


def replaced(proto: onnx.ModelProto, store: Store, tensors: Arrays) -> tuple[onnx.ModelProto, dict[str, Stored]]:
    """The model with other values in some stored tensors."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    changed = dict(store)
    for tensor in result.graph.initializer:
        if tensor.name not in tensors:
            continue
        if tensor.name in changed:
            dtype = changed[tensor.name].base.dtype
            array = np.asarray(tensors[tensor.name]).reshape(changed[tensor.name].shape).astype(dtype.numpy())
            changed[tensor.name] = Stored(ir.Tensor(array, dtype=dtype, name=tensor.name))
        else:
            old = inline_array(tensor)
            tensor.CopyFrom(inline_tensor(np.asarray(tensors[tensor.name], old.dtype).reshape(old.shape), tensor))
    return result, changed


def biased(proto: onnx.ModelProto, inferred: Inferred, biases: Mapping[str, int | None]) -> onnx.ModelProto:
    """The model in which the results of some nodes get a bias of zeros along an axis."""
    surgery = Surgery(proto)
    stored = {tensor.name for tensor in proto.graph.initializer}
    for name, axis in biases.items():
        node = surgery.nodes[name]
        result = node.outputs[0]
        shape = inferred.shapes[result.name]
        dtype = ir.DataType(inferred.types[result.name]).numpy()
        weight = next((each for each in node.inputs[1::-1] if each.name in stored), node.inputs[1])
        base = f"{weight.name.removesuffix('.weight')}.bias"
        behind = bias_shape(shape, axis)
        takes = node.op in ("Conv", "ConvTranspose") or (node.op == "Gemm" and scales(surgery.before[name])[1] == 1)
        if takes and (len(node.inputs) < 3 or node.inputs[2].is_empty()):
            constant = surgery.constant(base, np.zeros(behind if node.op == "Gemm" else behind[0], dtype))
            node.inputs = [*node.inputs[:2], constant]
            continue
        constant = surgery.constant(base, np.zeros(behind, dtype))
        bare = surgery.variable(f"{result.name}:unbiased")
        node.outputs[0] = bare
        surgery.add("Add", f"{name}:bias", (bare, constant), result)
    return surgery.result()
