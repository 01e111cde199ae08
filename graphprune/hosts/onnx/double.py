"""Running an ONNX model in float64, to tell rounding from errors.

onnxruntime has few operators in double precision, so onnx's own reference evaluator runs them. It is slow, and asked
only where a single-precision comparison leaves doubt.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from graphprune.errors import ModelError
from graphprune.hosts.host import Array, Arrays
from graphprune.hosts.onnx.branches import nested
from graphprune.hosts.onnx.draws import seeded
from graphprune.hosts.onnx.runtime import session_of
from graphprune.hosts.onnx.store import Store, fill_inline, inline_array, with_weights
from graphprune.runtime.sessions import run_session

_HALF = frozenset({onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16})


@dataclass(frozen=True, slots=True)
class _Wide:
    """The type that takes the place of narrower ones."""

    kind: int
    dtype: type
    narrow: frozenset[int]


_DOUBLE = _Wide(onnx.TensorProto.DOUBLE, np.float64, _HALF | {onnx.TensorProto.FLOAT})
_SINGLE = _Wide(onnx.TensorProto.FLOAT, np.float32, _HALF)


def run_double(proto: onnx.ModelProto, store: Store, inputs: Arrays) -> dict[str, Array]:
    """Runs a weightless model in float64; outputs by name, in order.

    Raises:
        ModelError: The reference evaluator cannot run it (an operator that it does not have, for example).
    """
    from graphprune.hosts.onnx.evaluator import evaluate  # imports each operator that ONNX has

    wide = with_weights(seeded(nested(proto)), store, fill_inline)
    del wide.graph.value_info[:]
    _widen(wide.graph, _DOUBLE)
    wanted = {value.name for value in wide.graph.input}
    feeds = {
        name: array.astype(np.float64) if array.dtype.kind == "f" else array
        for name, array in inputs.items()
        if name in wanted
    }
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            results = evaluate(wide, feeds)
    except Exception as error:  # the evaluator raises whatever an operator's implementation raises
        raise ModelError(
            f"onnx's reference evaluator cannot run the model: {error}; prove it on the runtime"
        ) from error
    return {value.name: np.asarray(result) for value, result in zip(wide.graph.output, results, strict=True)}


def run_single(proto: onnx.ModelProto, store: Store, inputs: Arrays) -> dict[str, Array]:
    """Runs a weightless model of half precision in single precision, in onnxruntime; outputs by name, in order.

    Raises:
        ModelError: onnxruntime cannot run it.
    """
    wide = with_weights(proto, store, fill_inline)
    del wide.graph.value_info[:]
    _widen(wide.graph, _SINGLE)
    feeds = {name: array.astype(np.float32) if array.dtype == np.float16 else array for name, array in inputs.items()}
    return run_session(session_of(wide), feeds)


def _widen(graph: onnx.GraphProto, wide: _Wide) -> None:
    """Makes every narrow float of a graph, and of its subgraphs, a wide one."""
    for tensor in graph.initializer:
        _widen_tensor(tensor, wide)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in wide.narrow:
            value.type.tensor_type.elem_type = wide.kind
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i in wide.narrow:
                attribute.i = wide.kind
            if attribute.HasField("t"):
                _widen_tensor(attribute.t, wide)
            if attribute.HasField("g"):
                _widen(attribute.g, wide)
            for inner in attribute.graphs:
                _widen(inner, wide)
        if (
            wide is _DOUBLE
            and node.op_type == "Constant"
            and node.attribute
            and node.attribute[0].name in ("value_float", "value_floats")
        ):
            held = node.attribute[0]
            value = np.asarray(onnx.helper.get_attribute_value(held), dtype=np.float64)
            node.attribute[0].CopyFrom(onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(value)))


def _widen_tensor(tensor: onnx.TensorProto, wide: _Wide) -> None:
    if tensor.data_type in wide.narrow:
        array: Array = inline_array(tensor).astype(wide.dtype)
        tensor.CopyFrom(ir.serde.serialize_tensor(ir.Tensor(array, name=tensor.name)))
