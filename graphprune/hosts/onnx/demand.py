"""How much memory the values of a model take, by their inferred shapes: refused before anything is allocated."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import onnx
import onnx_ir as ir

from graphprune.bounds import MEMORY_PER_BYTE, present
from graphprune.errors import BoundError
from graphprune.hosts.messages import operands_of
from graphprune.hosts.onnx.shape_values import Shapes


def require_affordable(proto: onnx.ModelProto, shapes: Shapes, types: Mapping[str, int], stored: int) -> None:
    """Refuses a model whose values would take more memory than it may.

    Values that depend on no input may be computed all at once, and kept; of the others, those that are needed at one
    time count.

    Args:
        proto: The weightless model, its nodes in order.
        shapes: Of its values, as far as they are known.
        types: Their element types.
        stored: Bytes of its stored tensors.

    Raises:
        BoundError: It takes too much.
    """

    def size(name: str) -> int:
        shape = shapes.get(name)
        if shape is None:
            return 0
        try:
            bits = ir.DataType(types.get(name, int(ir.DataType.FLOAT))).bitwidth
        except (ValueError, TypeError):
            bits = 64
        return prod(shape) * bits // 8

    inputs = {value.name for value in proto.graph.input}
    held = {tensor.name for tensor in proto.graph.initializer}
    given = sum(size(name) for name in inputs - held)
    most = present().memory + MEMORY_PER_BYTE * stored
    last = {name: i for i, node in enumerate(proto.graph.node) for name in operands_of(node)}
    kept = {value.name for value in proto.graph.output}
    ending: dict[int, list[str]] = {}
    for name, i in last.items():
        if name not in kept:
            ending.setdefault(i, []).append(name)
    varying = set(inputs)
    live, constant, largest = given, 0, given
    _require(given, most, proto.graph.input[0].name if proto.graph.input else "")
    for i, node in enumerate(proto.graph.node):
        depends = any(name in varying for name in operands_of(node)) or not node.input
        for name in node.output:
            if not name:
                continue
            if depends:
                varying.add(name)
                live += size(name)
            else:
                constant += size(name)
        if live + constant > largest:
            largest = live + constant
            _require(largest, most + MEMORY_PER_BYTE * given if given < most else most, node.output[0])
        live -= sum(size(name) for name in ending.get(i, ()) if name in varying)


def _require(n_bytes: int, most: int, name: str) -> None:
    if n_bytes > most:
        raise BoundError(
            f"the values of the model take {n_bytes / 1e9:.3g} GB at '{name}', expected at most {most / 1e9:.3g} GB; "
            f"give smaller shapes (--shape), or allow more with --bound memory={n_bytes}"
        )
