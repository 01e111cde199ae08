"""Gates of the ONNX host: factors on what consumers read, as further inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphprune.hosts.host import Array, Arrays, Gate, Gated
from graphprune.hosts.onnx.ops.values import Inferred
from graphprune.hosts.onnx.runtime import session_of
from graphprune.hosts.onnx.store import Store
from graphprune.hosts.onnx.surgery import Surgery
from graphprune.runtime.sessions import run_session


def gated(proto: onnx.ModelProto, store: Store, inferred: Inferred, gates: Sequence[Gate]) -> Gated:
    """A runner of the model with gates; those that are not given are one."""
    model, names = _with_gates(proto, inferred, gates)
    session = session_of(model, store, threads=0)

    def run(inputs: Arrays, factors: Mapping[Gate, Array]) -> dict[str, Array]:
        given = {}
        for gate, (name, shape, dtype) in names.items():
            given[name] = np.ones(shape, dtype) if gate not in factors else factors[gate].reshape(shape)
            given[name] = given[name].astype(dtype)
        return run_session(session, {**inputs, **given})

    return run


def _with_gates(
    proto: onnx.ModelProto, inferred: Inferred, gates: Sequence[Gate]
) -> tuple[onnx.ModelProto, dict[Gate, tuple[str, tuple[int, ...], Any]]]:
    """The model with a factor on what some nodes read; for each gate its new input, with shape and type."""
    surgery = Surgery(proto)
    found: dict[Gate, tuple[str, tuple[int, ...], Any]] = {}
    declared = []
    for gate in gates:
        node = surgery.nodes[gate.node]
        shape = inferred.shapes[gate.value]
        factor = (shape[gate.axis], *[1] * (len(shape) - 1 - gate.axis))
        kind = inferred.types[gate.value]
        name = surgery.fresh(f"{gate.node}:gate")
        variable = gs.Variable(name)
        surgery.graph.inputs.append(variable)
        declared.append(onnx.helper.make_tensor_value_info(name, kind, factor))
        found[gate] = (name, factor, onnx.helper.tensor_dtype_to_np_dtype(kind))
        for i, operand in enumerate(node.inputs):
            if operand.name == gate.value:
                node.inputs[i] = surgery.insert("Mul", f"{name}:product", (operand, variable))
                break
    result = surgery.result()
    for value in result.graph.input:
        for each in declared:
            if value.name == each.name:
                value.CopyFrom(each)
    return result, found
