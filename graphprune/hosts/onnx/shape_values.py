"""The partial evaluator of shape arithmetic: ``Shape -> Gather -> Concat -> Reshape`` and the like.

It computes small tensors element by element. Every element has a value, which for sizes that are only known at run
time is that of the example, and a flag that says whether it holds for every input. Sizes of static axes are known;
what is computed from them is too. What the evaluator does not understand has no value here, which is always safe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from graphprune.hosts.host import Array
from graphprune.hosts.onnx.ops.values import Partial, known
from graphprune.hosts.onnx.store import has_data, inline_array

MAXIMUM_ELEMENTS = 4096

Shapes = Mapping[str, tuple[int, ...]]
Dynamic = Mapping[str, frozenset[int]]


class _Node:
    """A node with its small operands, as the handlers below see it."""

    def __init__(
        self, proto: onnx.NodeProto, operands: Sequence[Partial | None], shapes: Shapes, dynamic: Dynamic
    ) -> None:
        self.proto, self.operands, self.shapes, self.dynamic = proto, operands, shapes, dynamic
        self.attributes = {attribute.name: attribute for attribute in proto.attribute}

    def get(self, name: str, default: Any = None) -> Any:
        attribute = self.attributes.get(name)
        return default if attribute is None else onnx.helper.get_attribute_value(attribute)

    def operand(self, i: int) -> Partial:
        partial = self.operands[i] if i < len(self.operands) else None
        if partial is None:
            raise _UnknownError
        return partial

    def sure(self, i: int) -> Array:
        """Operand ``i``, which must be known as a whole (axes, indices, bounds)."""
        partial = self.operand(i)
        if not partial.constant:
            raise _UnknownError
        return partial.values

    def numbers(self, name: str, i: int) -> tuple[int, ...] | None:
        """Integers (axes, bounds) that are an attribute in old opsets and operand ``i`` in new ones."""
        if (given := self.get(name)) is not None:
            return tuple(int(number) for number in given)
        if i < len(self.proto.input) and self.proto.input[i]:
            return tuple(int(number) for number in self.sure(i).ravel())
        return None


class _UnknownError(Exception):
    """The value cannot be computed here."""


def evaluate(node: onnx.NodeProto, values: Mapping[str, Partial], shapes: Shapes, dynamic: Dynamic) -> Partial | None:
    """The value of a node's first result, or ``None`` where it is not small, not known or not understood."""
    handler = HANDLERS.get(node.op_type)
    if handler is None or node.domain not in ("", "ai.onnx"):
        return None
    operands = [values.get(name) for name in node.input]
    if operands.count(None) == len(operands) and node.op_type not in _OF_SHAPES:
        return None  # nearly all nodes of a model
    try:
        with np.errstate(all="ignore"):
            result = handler(_Node(node, operands, shapes, dynamic))
    except (_UnknownError, ValueError, IndexError, ZeroDivisionError, OverflowError, TypeError):
        return None
    return result if result.values.size <= MAXIMUM_ELEMENTS else None


def evaluate_graph(graph: onnx.GraphProto, shapes: Shapes, dynamic: Dynamic) -> dict[str, Partial]:
    """The values of all small tensors of a graph that follow from constants and sizes, none from weights."""
    values = constants_of(graph, weights=False)
    for node in graph.node:
        result = evaluate(node, values, shapes, dynamic)
        if result is not None and node.output:
            values[node.output[0]] = result
    return values


def constants_of(graph: onnx.GraphProto, *, weights: bool = True) -> dict[str, Partial]:
    """The small initializers of a graph; without ``weights``, floating-point ones of one element only."""
    return {
        tensor.name: known(inline_array(tensor))
        for tensor in graph.initializer
        if tensor.data_type != onnx.TensorProto.STRING
        and (n := prod(tensor.dims)) <= MAXIMUM_ELEMENTS
        and (weights or n == 1 or not ir.DataType(tensor.data_type).is_floating_point())
        and has_data(tensor)
    }


# -- handlers ----------------------------------------------------------------------------------------------------


def _both(change: Callable[[Array], Array], partial: Partial) -> Partial:
    """Moves elements, and what is known about them."""
    return Partial(change(partial.values), change(partial.known))


def _pointwise(function: Callable[..., Array]) -> Callable[[_Node], Partial]:
    def handler(node: _Node) -> Partial:
        operands = [node.operand(i) for i in range(len(node.proto.input))]
        values = np.asarray(function(*(operand.values for operand in operands)))
        sure = np.ones(values.shape, dtype=np.bool_)
        for operand in operands:
            sure = sure & operand.known
        return Partial(values, sure)

    return handler


def _variadic(function: Callable[[Array, Array], Array]) -> Callable[[_Node], Partial]:
    def handler(node: _Node) -> Partial:
        result = node.operand(0)
        for i in range(1, len(node.proto.input)):
            other = node.operand(i)
            result = Partial(function(result.values, other.values), result.known & other.known)
        return result

    return handler


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind not in "iu":
        return np.asarray(a / b)
    if not np.all(b):
        raise _UnknownError
    quotient = np.abs(a) // np.abs(b)  # ONNX truncates towards zero
    return np.asarray((quotient * np.sign(a) * np.sign(b)).astype(a.dtype))


def _modulo(node: _Node) -> Partial:
    a, b = node.operand(0), node.operand(1)
    if not np.all(b.values):
        raise _UnknownError
    function = np.fmod if node.get("fmod", 0) else np.mod
    return Partial(function(a.values, b.values), a.known & b.known)


def _shape(node: _Node) -> Partial:
    name = node.proto.input[0]
    if name not in node.shapes:
        raise _UnknownError
    shape, dynamic = node.shapes[name], node.dynamic.get(name, frozenset())
    part = slice(node.get("start", 0), node.get("end"))
    sure = np.array([axis not in dynamic for axis in range(len(shape))], dtype=np.bool_)
    return Partial(np.array(shape, dtype=np.int64)[part], sure[part])


def _size(node: _Node) -> Partial:
    name = node.proto.input[0]
    if name not in node.shapes:
        raise _UnknownError
    return Partial(np.array(prod(node.shapes[name]), dtype=np.int64), np.array(not node.dynamic.get(name)))


def _gather(node: _Node) -> Partial:
    indices = node.sure(1)
    return _both(lambda array: np.take(array, indices, axis=node.get("axis", 0)), node.operand(0))


def _slice(node: _Node) -> Partial:
    data = node.operand(0)
    starts = node.numbers("starts", 1) or ()
    ends = node.numbers("ends", 2) or ()
    axes = node.numbers("axes", 3) or tuple(range(len(starts)))
    steps = node.numbers("steps", 4) or (1,) * len(starts)
    index = [slice(None)] * data.values.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        backwards = step < 0 and end < -data.values.shape[axis]
        index[axis] = slice(start, None if backwards else end, step)
    return _both(lambda array: array[tuple(index)], data)


def _concat(node: _Node) -> Partial:
    parts = [node.operand(i) for i in range(len(node.proto.input))]
    axis = node.get("axis", 0)
    return Partial(
        np.concatenate([part.values for part in parts], axis), np.concatenate([part.known for part in parts], axis)
    )


def _squeeze(node: _Node) -> Partial:
    axes = node.numbers("axes", 1)
    return _both(lambda array: np.squeeze(array, axes), node.operand(0))


def _unsqueeze(node: _Node) -> Partial:
    axes = node.numbers("axes", 1)
    if axes is None:
        raise _UnknownError
    return _both(lambda array: np.expand_dims(array, axes), node.operand(0))


def _reshape(node: _Node) -> Partial:
    target, data = [int(size) for size in node.sure(1).ravel()], node.operand(0)
    if not node.get("allowzero", 0):
        target = [data.values.shape[i] if size == 0 else size for i, size in enumerate(target)]
    return _both(lambda array: array.reshape(target), data)


def _cast(node: _Node) -> Partial:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(node.get("to"))
    data = node.operand(0)
    return Partial(data.values.astype(dtype), data.known)


def _range(node: _Node) -> Partial:
    start, limit, step = (node.operand(i) for i in range(3))
    if (limit.values.item() - start.values.item()) / step.values.item() > MAXIMUM_ELEMENTS:
        raise _UnknownError
    values = np.arange(start.values.item(), limit.values.item(), step.values.item(), dtype=start.values.dtype)
    return Partial(values, np.full(values.shape, start.constant and limit.constant and step.constant))


def _constant_of_shape(node: _Node) -> Partial:
    shape = node.operand(0)
    if prod(int(size) for size in shape.values.ravel()) > MAXIMUM_ELEMENTS:
        raise _UnknownError
    value = node.get("value")
    fill = np.zeros(1, dtype=np.float32) if value is None else inline_array(value)
    values = np.full(tuple(int(size) for size in shape.values), fill.ravel()[0], dtype=fill.dtype)
    return Partial(values, np.full(values.shape, shape.constant))


def _expand(node: _Node) -> Partial:
    target, data = tuple(int(size) for size in node.operand(1).values.ravel()), node.operand(0)
    shape = np.broadcast_shapes(target, data.values.shape)
    if prod(shape) > MAXIMUM_ELEMENTS:
        raise _UnknownError
    result = _both(lambda array: np.broadcast_to(array, shape), data)
    return result if node.operand(1).constant else Partial(result.values, np.zeros(shape, dtype=np.bool_))


def _where(node: _Node) -> Partial:
    condition, a, b = (node.operand(i) for i in range(3))
    chosen = np.where(condition.values, a.known, b.known)
    return Partial(np.where(condition.values, a.values, b.values), condition.known & chosen)


def _transpose(node: _Node) -> Partial:
    order = node.get("perm")
    return _both(lambda array: np.transpose(array, order), node.operand(0))


def _reduction(function: Any) -> Callable[[_Node], Partial]:
    def handler(node: _Node) -> Partial:
        axes, keep, data = node.numbers("axes", 1), bool(node.get("keepdims", 1)), node.operand(0)
        if axes is None and node.get("noop_with_empty_axes", 0):
            return data
        return Partial(
            np.asarray(function.reduce(data.values, axis=axes, keepdims=keep), dtype=data.values.dtype),
            np.asarray(np.all(data.known, axis=axes, keepdims=keep)),
        )

    return handler


def _same(node: _Node) -> Partial:
    return node.operand(0)


HANDLERS: Mapping[str, Callable[[_Node], Partial]] = {
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Expand": _expand,
    "Cast": _cast,
    "Identity": _same,
    "Range": _range,
    "ConstantOfShape": _constant_of_shape,
    "Where": _where,
    "Add": _pointwise(np.add),
    "Sub": _pointwise(np.subtract),
    "Mul": _pointwise(np.multiply),
    "Div": _pointwise(_divide),
    "Mod": _modulo,
    "Pow": _pointwise(lambda a, b: np.power(a, b).astype(a.dtype)),
    "Neg": _pointwise(np.negative),
    "Abs": _pointwise(np.abs),
    "Sqrt": _pointwise(lambda a: np.sqrt(a).astype(a.dtype)),
    "Reciprocal": _pointwise(lambda a: np.reciprocal(a).astype(a.dtype)),
    "Floor": _pointwise(np.floor),
    "Ceil": _pointwise(np.ceil),
    "Round": _pointwise(np.round),
    "Not": _pointwise(np.logical_not),
    "And": _pointwise(np.logical_and),
    "Or": _pointwise(np.logical_or),
    "Equal": _pointwise(np.equal),
    "Less": _pointwise(np.less),
    "LessOrEqual": _pointwise(np.less_equal),
    "Greater": _pointwise(np.greater),
    "GreaterOrEqual": _pointwise(np.greater_equal),
    "Min": _variadic(np.minimum),
    "Max": _variadic(np.maximum),
    "ReduceProd": _reduction(np.multiply),
    "ReduceSum": _reduction(np.add),
    "ReduceMin": _reduction(np.minimum),
    "ReduceMax": _reduction(np.maximum),
}
"""How each operator of shape arithmetic computes; a table like those of the rules."""
_OF_SHAPES = ("Shape", "Size")
"""Those that need no value of an operand."""
