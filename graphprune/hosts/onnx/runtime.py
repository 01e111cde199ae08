"""Running ONNX models in onnxruntime, one thread, and inputs to try them on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from graphprune.errors import ModelError
from graphprune.hosts.host import Array
from graphprune.hosts.onnx.branches import nested
from graphprune.hosts.onnx.draws import seeded
from graphprune.hosts.onnx.save import write_external
from graphprune.hosts.onnx.shape_values import Shapes
from graphprune.hosts.onnx.shapes import bound_model
from graphprune.hosts.onnx.store import Store, fill_inline, n_bytes, with_weights
from graphprune.hosts.writing import EXTERNAL_BYTES
from graphprune.runtime.library import onnxruntime
from graphprune.runtime.sessions import refused
from graphprune.runtime.watchdog import sized

if TYPE_CHECKING:
    import onnxruntime as ort

MAXIMUM_IR_VERSION = 13
"""What this onnxruntime reads; newer messages are run as this version, which their operators allow."""
OPTIMISED_NODES = 4096
"""Up to so many operators onnxruntime's own optimiser is worth its time, which grows faster than the graph: 2 s for
10,000 operators that run in 0.03 s. Nothing that runs here is compared to the last bit with what runs elsewhere.
"""
VOCABULARY = 8
"""Assumed number of distinct integers where nothing bounds them."""
_FOLLOWED = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Transpose", "Concat", "Expand")


def session_of(
    proto: onnx.ModelProto, store: Store | None = None, *, threads: int = 1, integer: bool = False
) -> ort.InferenceSession:
    """A session of a weightless model with its weights, on so many threads (0: all cores).

    Quantised operators run in floating point between two roundings, as they are written, unless ``integer``.

    A model on which onnxruntime's own optimiser fails (it gives some names twice) runs as it is, and so does one of
    very many operators, for which it takes far longer than a run.

    Raises:
        ModelError: onnxruntime refuses the model.
    """
    store = store or {}
    proto = seeded(nested(proto))
    optimised = len(proto.graph.node) <= OPTIMISED_NODES
    try:
        return _session(proto, store, threads, optimised=optimised, integer=integer)
    except Exception:  # noqa: BLE001  (onnxruntime's errors have no common base)
        pass
    try:
        return _session(proto, store, threads, optimised=not optimised, integer=integer)
    except Exception as error:
        raise refused(error, "the model") from error


def _session(
    proto: onnx.ModelProto, store: Store, threads: int, *, optimised: bool, integer: bool
) -> ort.InferenceSession:
    ort = onnxruntime()
    level = ort.GraphOptimizationLevel
    options = ort.SessionOptions()
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if not integer:
        options.add_session_config_entry("session.disable_quant_qdq", "1")  # those kernels round where a mask does not
    size = n_bytes(proto)
    if size < EXTERNAL_BYTES:
        full = with_weights(proto, store, fill_inline)
        full.ir_version = min(full.ir_version, MAXIMUM_IR_VERSION)
        return sized(ort.InferenceSession(full.SerializeToString(), options, providers=["CPUExecutionProvider"]), size)
    with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
        path = Path(folder) / "model.onnx"
        full = write_external(proto, store, path.with_suffix(".data"))
        full.ir_version = min(full.ir_version, MAXIMUM_IR_VERSION)
        path.write_bytes(full.SerializeToString())
        return sized(ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]), size)


def stated(
    proto: onnx.ModelProto, store: Store, bound: Shapes, names: Iterable[str]
) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Element types and shapes that onnxruntime infers for values, as far as it does; nothing is run."""
    model = bound_model(proto, bound)
    declared = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in declared)
    try:
        outputs = session_of(model, store).get_outputs()
    except ModelError:
        return {}
    return {
        output.name: (onnx.TensorProto.DataType.Value(output.type[len("tensor(") : -1].upper()), tuple(output.shape))
        for output in outputs
        if output.name in names
        and output.type.startswith("tensor(")
        and output.shape  # empty where it knows nothing, too
        and all(isinstance(n, int) for n in output.shape)
    }


def random_inputs(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Array]:
    """Random inputs that fit: normal floats, integers within the vocabulary that they look up, ones for masks."""
    rng = np.random.default_rng(seed)
    inputs: dict[str, Array] = {}
    for value in proto.graph.input:
        if not value.type.HasField("tensor_type") or value.name not in shapes:
            raise ModelError(
                f"input '{value.name}' is no tensor of a known rank, so no example can be made; "
                f"give its shape (--shape {value.name}=2x3)"
            )
        shape = shapes[value.name]
        kind = value.type.tensor_type.elem_type
        if kind == onnx.TensorProto.STRING:
            inputs[value.name] = np.full(shape, "a", dtype=object)
            continue
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
        if np.issubdtype(dtype, np.bool_):
            inputs[value.name] = np.asarray((rng.random(shape) < 0.5) | ("mask" in value.name.lower()))
        elif np.issubdtype(dtype, np.integer):
            if "mask" in value.name.lower():
                inputs[value.name] = np.ones(shape, dtype)
            else:
                inputs[value.name] = np.asarray(rng.integers(0, _vocabulary(proto, value.name), shape), dtype)
        else:
            inputs[value.name] = np.asarray(rng.standard_normal(shape), dtype)
    return inputs


def _vocabulary(proto: onnx.ModelProto, name: str) -> int:
    """How many distinct integers an input may hold: the rows of the tables that it indexes."""
    tables = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    reached, bounds = {name}, []
    for node in proto.graph.node:
        if node.op_type in ("Gather", "GatherElements") and len(node.input) > 1 and node.input[1] in reached:
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
            if node.input[0] in tables:
                bounds.append(tables[node.input[0]][axis])
        elif node.op_type in _FOLLOWED and any(operand in reached for operand in _carriers(node)):
            reached.update(node.output)
    return max(1, min(bounds, default=VOCABULARY))


def _carriers(node: onnx.NodeProto) -> Iterable[str]:
    return list(node.input) if node.op_type == "Concat" else list(node.input[:1])
