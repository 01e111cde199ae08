"""Constant folding within a budget: shape arithmetic of static sizes, and tables that are made of ranges.

Never of weights, and never what could be large before its size is known: everything that is computed has a known
static shape of at most :data:`MAXIMUM_ELEMENTS` elements. Freezing what derives from static sizes also freezes the
scale of attention that some exporters compute from a shape: it must not follow the new head size.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
import onnx

from graphprune.bounds import present
from graphprune.errors import BoundError, ModelError
from graphprune.hosts.host import Array
from graphprune.hosts.messages import subgraphs_of
from graphprune.hosts.onnx.draws import RANDOM
from graphprune.hosts.onnx.ops.values import Inferred, Partial, known
from graphprune.hosts.onnx.runtime import session_of
from graphprune.hosts.onnx.shape_values import MAXIMUM_ELEMENTS as SMALL_ELEMENTS
from graphprune.hosts.onnx.store import Store, has_data
from graphprune.hosts.onnx.surgery import Surgery
from graphprune.ir.graph import Graph
from graphprune.runtime.sessions import run_raw

MAXIMUM_ELEMENTS = 1 << 20
"""Largest table that is computed."""
REPEATED_ELEMENTS = 1024
"""Largest constant that replaces an operator which only repeats a value (a fill, an expand)."""

_REPEATING = ("ConstantOfShape", "Expand", "Tile", "EyeLike")
_NEVER = (*RANDOM, "DequantizeLinear", "Constant")


def fold(
    proto: onnx.ModelProto, store: Store, inferred: Inferred, graph: Graph
) -> tuple[onnx.ModelProto, dict[str, Partial]] | None:
    """The model with constants in place of what is known now, and without the nodes that computed it.

    Returns:
        The model, and the small values that it stores now; ``None`` if nothing was folded.
    """
    outputs = {value.name for value in proto.graph.output}
    made = {name for node in proto.graph.node for name in node.output}
    arithmetic = {
        name: value.values
        for name, value in inferred.values.items()
        if name in made and name not in outputs and value.constant
    }
    tables = _tables(proto, store, inferred, graph, set(arithmetic))
    constants = {**arithmetic, **{name: array for name, array in tables.items() if name not in outputs}}
    if not constants:
        return None
    surgery = Surgery(proto)
    tensors = surgery.tensors()
    for name, array in constants.items():
        tensor = tensors.get(name)
        if tensor is None or not tensor.inputs:
            continue
        producer = tensor.inputs[0]
        place = next(i for i, result in enumerate(producer.outputs) if result is tensor)
        dangling = type(tensor)(surgery.fresh(f"{name}:folded"))
        producer.outputs[place] = dangling
        tensor.to_constant(np.asarray(_typed(array, inferred.types.get(name)), order="C"))
    small = {name: known(array) for name, array in constants.items() if array.size <= SMALL_ELEMENTS}
    return surgery.result(cleanup=True), small


def _typed(array: Array, data_type: int | None) -> Array:
    if not data_type:
        return array
    return array.astype(onnx.helper.tensor_dtype_to_np_dtype(data_type))


def _tables(
    proto: onnx.ModelProto, store: Store, inferred: Inferred, graph: Graph, done: set[str]
) -> Mapping[str, Array]:
    """The values of subgraphs of constants, those that something else uses."""
    sources = {
        tensor.name
        for tensor in proto.graph.initializer
        if tensor.name not in store and has_data(tensor) and _is_source(tensor, graph)
    }
    foldable: list[onnx.NodeProto] = []
    left = present().memory // 6
    available = sources | done
    for node in proto.graph.node:
        if node.op_type in _NEVER or node.domain not in ("", "ai.onnx") or list(subgraphs_of(node)) or not node.output:
            continue
        if not all(name in available for name in node.input if name) or not any(node.input):
            continue
        if not all(_affordable(name, inferred) for name in node.output if name):
            continue
        size = sum(_bytes(name, inferred) for name in node.output if name)
        if size > left:
            continue
        left -= size
        foldable.append(node)
        available.update(name for name in node.output if name)
    names = {id(node) for node in foldable}
    used = {
        name
        for node in proto.graph.node
        if id(node) not in names
        for name in (*node.input, *(inner for subgraph in subgraphs_of(node) for inner in _mentioned(subgraph)))
    }
    wanted = [
        name
        for node in foldable
        for name in node.output
        if name in used
        and name not in done
        and (node.op_type not in _REPEATING or prod(inferred.shapes[name]) <= REPEATED_ELEMENTS)
    ]
    return _computed(proto, inferred, foldable, sources, done, wanted) if wanted else {}


def _mentioned(graph: onnx.GraphProto) -> set[str]:
    found = {value.name for value in graph.output}
    for node in graph.node:
        found.update(node.input)
        for subgraph in subgraphs_of(node):
            found |= _mentioned(subgraph)
    return found


def _is_source(tensor: onnx.TensorProto, graph: Graph) -> bool:
    value = graph.values.get(tensor.name)
    return value is not None and value.kind == "constant" and tensor.data_type != onnx.TensorProto.STRING


def _affordable(name: str, inferred: Inferred) -> bool:
    shape = inferred.shapes.get(name)
    return shape is not None and not inferred.dynamic.get(name) and prod(shape) <= MAXIMUM_ELEMENTS


def _bytes(name: str, inferred: Inferred) -> int:
    return prod(inferred.shapes[name]) * 8


def _computed(
    proto: onnx.ModelProto,
    inferred: Inferred,
    nodes: list[onnx.NodeProto],
    sources: set[str],
    done: set[str],
    wanted: list[str],
) -> dict[str, Array]:
    """Runs the foldable part as a model of its own; folds nothing if the runtime refuses it."""
    produced = {name for node in nodes for name in node.output}
    needed = {name for node in nodes for name in node.input if name}
    initializers = [tensor for tensor in proto.graph.initializer if tensor.name in sources & needed]
    initializers.extend(
        onnx.numpy_helper.from_array(
            np.asarray(_typed(inferred.values[name].values, inferred.types.get(name)), order="C"), name
        )
        for name in sorted((done & needed) - produced)
    )
    outputs = [onnx.helper.make_tensor_value_info(name, inferred.types[name], None) for name in wanted]
    kept = [node for node in nodes if not all(name in done for name in node.output if name)]
    initializers.extend(
        onnx.numpy_helper.from_array(
            np.asarray(_typed(inferred.values[name].values, inferred.types.get(name)), order="C"), name
        )
        for name in sorted(done & needed & produced - {name for node in kept for name in node.output})
    )
    graph = onnx.helper.make_graph(kept, "constants", [], outputs, initializers)
    model = onnx.helper.make_model(graph, opset_imports=list(proto.opset_import), ir_version=proto.ir_version)
    try:
        values = list(run_raw(session_of(model), {}).values())
    except BoundError:
        raise
    except ModelError:
        return {}
    return dict(zip(wanted, (np.asarray(value) for value in values), strict=True))
