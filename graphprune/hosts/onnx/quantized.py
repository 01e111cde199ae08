"""Quantised weights as the numbers they stand for: what a criterion scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx

from graphprune.errors import ModelError
from graphprune.hosts.host import Array
from graphprune.hosts.messages import attributes_of

_PLACES: Mapping[str, tuple[tuple[int, int | None, int, int], ...]] = {
    "DequantizeLinear": ((0, 1, 2, 1),),
    "QLinearConv": ((3, 4, 5, 0),),
    "QLinearMatMul": ((3, 4, 5, -1),),
    "ConvInteger": ((1, None, 3, 0),),
    "MatMulInteger": ((1, None, 3, -1),),
    "QGemm": ((3, 4, 5, -1),),
    "QAttention": ((1, 4, 7, -1),),
    "DynamicQuantizeMatMul": ((1, 2, 3, -1),),
    "MatMulIntegerToFloat": ((1, 3, 5, -1),),
    "DynamicQuantizeLSTM": ((1, 8, 9, 0), (2, 10, 11, 0)),
}
"""Operator -> (weight, scale, zero point, axis of vectors) of its quantised operands."""


def dequantized(graph: onnx.GraphProto, name: str, array: Array, read: Callable[[str], Array]) -> Array:
    """The numbers that an 8-bit weight stands for; packed ones give the norm of those in each byte.

    Args:
        graph: The graph that uses it.
        name: The weight.
        array: What is stored.
        read: Reads other stored tensors; raises a :class:`ModelError` for values that are computed.
    """
    for node in graph.node:
        if node.op_type == "MatMulNBits" and len(node.input) > 1 and node.input[1] == name:
            return _unpacked(node, array, read)
        for weight, scale, zero, axis in _PLACES.get(node.op_type, ()):
            if weight >= len(node.input) or node.input[weight] != name:
                continue
            along = attributes_of(node).get("axis", axis) if node.op_type == "DequantizeLinear" else axis
            if node.op_type == "QGemm" and attributes_of(node).get("transB", 0):
                along = 0
            numbers = array.astype(np.float32)
            for i, change in ((zero, np.subtract), (scale, np.multiply)):
                if i is None or i >= len(node.input) or not node.input[i]:
                    continue
                try:
                    numbers = change(numbers, _along(read(node.input[i]).astype(np.float32), numbers, along))
                except (ModelError, ValueError):  # computed, or in blocks: the order within the tensor is what counts
                    continue
            return numbers
    return array


def _along(vector: Array, array: Array, axis: int) -> Array:
    if vector.size == 1:
        return vector.reshape(())
    if vector.ndim == 1 and vector.size == array.shape[axis]:
        shape = [1] * array.ndim
        shape[axis] = vector.size
        return vector.reshape(shape)
    if vector.ndim == array.ndim:
        repeats = [whole // part for whole, part in zip(array.shape, vector.shape, strict=True)]
        return np.kron(vector, np.ones(repeats, vector.dtype))
    raise ValueError(f"a vector of shape {vector.shape}")


def _unpacked(node: onnx.NodeProto, array: Array, read: Callable[[str], Array]) -> Array:
    attributes = attributes_of(node)
    bits = int(attributes.get("bits", 4))
    n, blocks = array.shape[:2]
    parts = [(array >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    zeros = np.full((n, blocks), 1 << (bits - 1), np.float32)
    if len(node.input) > 3 and node.input[3]:
        stored = read(node.input[3])
        if stored.size == n * blocks:
            zeros = stored.reshape(n, blocks).astype(np.float32)
        else:
            packed = stored.reshape(n, -1)
            spread = [(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
            zeros = np.stack(spread, -1).reshape(n, -1)[:, :blocks].astype(np.float32)
    scales = read(node.input[2]).reshape(n, blocks).astype(np.float32)
    squares = sum(np.square((part.astype(np.float32) - zeros[:, :, None]) * scales[:, :, None]) for part in parts)
    return np.asarray(np.sqrt(squares))
