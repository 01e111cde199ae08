"""What is known of an ONNX graph at some sizes of its inputs: inference, and what it leaves open.

Shapes and types are inferred; the runtime says those of operators that ONNX itself does not know, and a trial run the
rest, if the model runs on example inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from graphprune.brief import brief
from graphprune.errors import BoundError, ModelError
from graphprune.hosts.host import Arrays
from graphprune.hosts.messages import operands_of
from graphprune.hosts.onnx.branches import outside_branches
from graphprune.hosts.onnx.demand import require_affordable
from graphprune.hosts.onnx.ops.values import Inferred, no_tensors
from graphprune.hosts.onnx.runtime import session_of, stated
from graphprune.hosts.onnx.shapes import Probed, doubled, infer
from graphprune.hosts.onnx.store import Store, n_bytes
from graphprune.ir.graph import Graph
from graphprune.runtime.sessions import run_raw

Bound = Mapping[str, tuple[int, ...]]
"""The shapes of inputs by name."""


@dataclass(frozen=True)
class Known:
    """What is known of a graph at some sizes of its inputs, and the graph that the analysis reads, if it was built."""

    __repr__ = brief

    proto: onnx.ModelProto
    bound: Bound
    inferred: Inferred
    graph: Graph | None = None


def look(
    proto: onnx.ModelProto,
    store: Store,
    bound: Bound,
    inputs: Callable[[Bound, int], Arrays],
    failed: Callable[[ModelError], None],
) -> Inferred:
    """Shapes, types, dynamic axes and small values of a graph.

    Args:
        proto: The weightless model.
        store: Where its data is.
        bound: The shapes of its inputs.
        inputs: Makes example inputs of some shapes.
        failed: Is told why the model does not run at ``bound``, and may raise.

    Raises:
        ModelError: Inference fails, or ``failed`` raises.
        BoundError: It takes too much memory.
    """
    twice = doubled(proto, bound)
    first = infer(proto, bound)
    asked = tensors_of(proto.graph) & outside_branches(proto.graph)  # a runtime cannot be asked for values of branches
    if unknown := asked - first.shapes.keys():
        require_affordable(proto, first.shapes, first.types, n_bytes(proto))
    found: Probed = {}
    found_twice: Probed = {}
    if fused := sorted(unknown & _foreign(proto.graph)):
        found = stated(proto, store, bound, fused)
        found_twice = stated(proto, store, twice, fused) if twice else {}
        first = infer(proto, bound, found, found_twice)
    left = sorted(asked - first.shapes.keys())
    probed = _probed(proto, store, left, bound, inputs, failed) if left else {}
    if not probed:
        return first
    probed_twice = _probed(proto, store, left, twice, inputs, lambda error: None) if twice else {}
    return infer(proto, bound, {**found, **probed}, {**found_twice, **probed_twice}, by_data=frozenset(probed))


def tensors_of(graph: onnx.GraphProto) -> frozenset[str]:
    """The tensors that nodes of a graph make and something uses."""
    made = {name for node in graph.node for name in node.output if name}
    used = {name for node in graph.node for name in operands_of(node)} | {value.name for value in graph.output}
    return frozenset(made & used) - no_tensors(graph)


def _foreign(graph: onnx.GraphProto) -> frozenset[str]:
    """Results of operators that ONNX itself does not know."""
    return frozenset(
        name
        for node in graph.node
        if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type)
        for name in node.output
    )


def _probed(
    proto: onnx.ModelProto,
    store: Store,
    names: list[str],
    bound: Bound,
    inputs: Callable[[Bound, int], Arrays],
    failed: Callable[[ModelError], None],
) -> Probed:
    """What values are in a run; empty if the model does not run."""
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    declared = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in declared)
    try:
        session = session_of(model, store)
    except ModelError:
        return {}
    try:
        results = run_raw(session, inputs(bound, 0))
    except BoundError:
        raise
    except ModelError as error:
        failed(error)
        return {}
    return {
        name: (onnx.helper.np_dtype_to_tensor_dtype(result.dtype), tuple(result.shape))
        for name in names
        if isinstance(result := results[name], np.ndarray) and result.dtype != object
    }
