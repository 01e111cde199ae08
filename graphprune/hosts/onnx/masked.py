"""The reference of the proof: the original model with removed units zeroed after every node.

Stored tensors are zeroed too; in quantised tensors the zero point stands for zero. A node that takes a statistic over a
masked axis is replaced by nodes that count only what is kept, as the operator will on the smaller tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.errors import ProofError
from graphprune.hosts.onnx.ops.values import Inferred
from graphprune.hosts.onnx.store import Store, Stored, inline_array, inline_tensor
from graphprune.hosts.onnx.surgery import Surgery
from graphprune.ir.dims import factors_of
from graphprune.ir.graph import Graph, Node
from graphprune.pipeline.host import Array

Masks = Mapping[str, Mapping[int, NDArray[np.bool_]]]

_SELECTABLE = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.INT32,
    onnx.TensorProto.INT64,
    onnx.TensorProto.UINT8,
)
"""Element types for which onnxruntime has a Where; others are cast to int32 (or float) and back."""


def masked_model(
    proto: onnx.ModelProto, store: Store, masks: Masks, graph: Graph, inferred: Inferred
) -> tuple[onnx.ModelProto, dict[str, Stored]]:
    """The masked model and its weights.

    Args:
        proto: The weightless model.
        store: Its weights.
        masks: For each value and axis, which positions are kept.
        graph: The model's graph, whose rules say over which axes a statistic is taken.
        inferred: Shapes and types.

    Raises:
        ProofError: A node normalizes over a masked axis and has no masked form.
    """
    masked, changed = mask_stored(proto, store, masks)
    surgery = Surgery(masked)
    opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    stored = {tensor.name for tensor in proto.graph.initializer}
    zeros = _ZeroPoints(inferred)
    for value in surgery.graph.inputs:
        if value.name in masks:
            consumers = [
                (node, i) for node in value.outputs for i, operand in enumerate(node.inputs) if operand is value
            ]
            selected = _selected(surgery, value, masks[value.name], inferred)
            for node, i in consumers:
                node.inputs[i] = selected
    for node in graph.nodes:
        target = surgery.nodes[node.name]
        zeros.follow(node, list(target.inputs), list(target.outputs))
        source, axes = _statistic(node, masks)
        if axes and node.op in _CHOOSING:
            _cannot_choose(surgery, target, masks[source], axes, inferred)
        elif axes and node.op not in _EXACT:
            _replace(surgery, target, node, _Masked(surgery, target, source, masks[source], axes, inferred, opset))
        for i, name in enumerate(node.results):
            if name is None or name not in masks or name in stored:
                continue
            result = target.outputs[i] if i < len(target.outputs) else None
            if result is None or result.name != name:
                continue
            raw = gs.Variable(surgery.fresh(f"{name}:raw"))
            target.outputs[i] = raw
            selected = _selected(surgery, raw, masks[name], inferred, name, zeros.of(surgery, name))
            _rename(selected, result)
    return surgery.result(), changed


def _rename(produced: gs.Variable, result: gs.Variable) -> None:
    """Lets the node that makes ``produced`` make ``result``, which others already use."""
    node = produced.inputs[0]
    node.outputs[0] = result


def mask_stored(proto: onnx.ModelProto, store: Store, masks: Masks) -> tuple[onnx.ModelProto, dict[str, Stored]]:
    """The model with zeros in stored tensors where units are removed."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    changed = dict(store)
    for tensor in result.graph.initializer:
        axes = masks.get(tensor.name)
        if not axes:
            continue
        if tensor.name in store:
            changed[tensor.name] = Stored(_zeroed_tensor(tensor.name, store[tensor.name], axes))
        else:
            tensor.CopyFrom(inline_tensor(_zeroed(inline_array(tensor), axes), tensor))
    return result, changed


def _zeroed(array: Array, axes: Mapping[int, NDArray[np.bool_]]) -> Array:
    array = np.array(array)
    for axis, mask in axes.items():
        array[(slice(None),) * axis + (~mask,)] = 0
    return array


def _zeroed_tensor(name: str, stored: Stored, axes: Mapping[int, NDArray[np.bool_]]) -> ir.LazyTensor:
    dtype = stored.base.dtype
    return ir.LazyTensor(
        lambda: ir.Tensor(_zeroed(stored.numpy(), axes), dtype=dtype, name=name),
        dtype=dtype,
        shape=ir.Shape(stored.shape),
        name=name,
    )


def _joined(axes: Mapping[int, NDArray[np.bool_]], rank: int) -> NDArray[np.bool_]:
    """One mask that broadcasts to the tensor."""
    joined = np.ones((1,) * rank, dtype=np.bool_)
    for axis, mask in axes.items():
        joined = joined & mask.reshape(tuple(-1 if i == axis else 1 for i in range(rank)))
    return joined


class _ZeroPoints:
    """Which quantised values have which zero point: an operand of the node that makes them, or of one before.

    A removed unit must contribute nothing wherever the tensor is read, so it holds what stands for zero.
    """

    def __init__(self, inferred: Inferred) -> None:
        self._inferred = inferred
        self._found: dict[str, tuple[Any, int | None]] = {}

    def follow(self, node: Node, inputs: list[Any], outputs: list[Any]) -> None:
        """Notes the zero point of the first result of a node."""
        result, first = node.results[0] if node.results else None, node.operands[0] if node.operands else None
        if result is None:
            return
        if node.op == "DynamicQuantizeLinear":
            self._found[result] = (outputs[2], None)
        elif (at := _ZERO_POINT.get(node.op)) is not None:
            if at < len(inputs) and not inputs[at].is_empty():
                shape = self._inferred.shapes.get(inputs[at].name, ())
                layouts = (node.rule.operands[at], node.rule.results[0]) if node.rule is not None else (None, None)
                axis = None
                if shape not in ((), (1,)) and layouts[0] is not None and layouts[1] is not None:
                    axis = layouts[1].index(layouts[0][0])
                self._found[result] = (inputs[at], axis)
        elif first in self._found and self._found[first][1] is None and self._same_type(result, first):
            self._found[result] = self._found[first]  # moved about, not made anew

    def _same_type(self, a: str, b: str) -> bool:
        return self._inferred.types.get(a) == self._inferred.types.get(b)

    def of(self, surgery: Surgery, name: str) -> Any | None:
        """The zero point of a value, which broadcasts to it; ``None`` where zero is zero."""
        tensor, axis = self._found.get(name, (None, None))
        if tensor is None:
            return None
        rank = len(self._inferred.shapes[name])
        shape = np.array([-1 if i == axis else 1 for i in range(rank)] if axis is not None else [], dtype=np.int64)
        return surgery.insert("Reshape", f"{name}:zero-point", (tensor, surgery.constant(f"{name}:zero-shape", shape)))


def _selected(
    surgery: Surgery,
    tensor: Any,
    axes: Mapping[int, NDArray[np.bool_]],
    inferred: Inferred,
    name: str | None = None,
    zero: Any | None = None,
) -> gs.Variable:
    """``tensor`` with zeros (or the zero point) where units are removed."""
    name = name or tensor.name
    kind = inferred.types.get(name, onnx.TensorProto.FLOAT)
    mask = surgery.constant(f"{name}:mask", _joined(axes, len(inferred.shapes[name])))
    if kind == onnx.TensorProto.BOOL:
        return surgery.insert("And", f"{name}:masked", (tensor, mask))
    between = kind if kind in _SELECTABLE else _between(kind)
    if zero is None:
        zero = surgery.constant(f"{name}:zero", np.zeros((), onnx.helper.tensor_dtype_to_np_dtype(between)))
    elif between != kind:
        zero = surgery.insert("Cast", f"{name}:zero", (zero,), to=between)
    if between == kind:
        return surgery.insert("Where", f"{name}:masked", (mask, tensor, zero))
    cast = surgery.insert("Cast", f"{name}:cast", (tensor,), to=between)
    selected = surgery.insert("Where", f"{name}:select", (mask, cast, zero))
    return surgery.insert("Cast", f"{name}:masked", (selected,), to=kind)


def _between(kind: int) -> int:
    floating = ir.DataType(kind).is_floating_point()
    return onnx.TensorProto.FLOAT if floating else onnx.TensorProto.INT32


# -- statistics --------------------------------------------------------------------------------------------------

_EXACT = ("CumSum", "LpNormalization", "ai.onnx.ml::Normalizer")
"""Operators whose statistic is a sum, to which a masked unit adds nothing."""

_ZERO_POINT: Mapping[str, int] = {
    "QuantizeLinear": 2,
    "QLinearConv": 7,
    "QLinearMatMul": 7,
    "com.microsoft::QuantizeLinear": 2,
    "com.microsoft::QLinearConv": 7,
    "com.microsoft::QGemm": 8,
    "com.microsoft::QLinearAdd": 7,
    "com.microsoft::QLinearMul": 7,
    "com.microsoft::QLinearWhere": 8,
    "com.microsoft::QLinearConcat": 1,
    "com.microsoft::QLinearLeakyRelu": 4,
    "com.microsoft::QLinearSigmoid": 4,
    "com.microsoft::QLinearSoftmax": 4,
    "com.microsoft::QLinearAveragePool": 4,
    "com.microsoft::QLinearGlobalAveragePool": 4,
}
"""The operand that holds the zero point of the first result."""


def _statistic(node: Node, masks: Masks) -> tuple[str, tuple[int, ...]]:
    """The masked axes over which a node takes a statistic, and the operand (or result) that has them."""
    rule = node.rule
    if rule is None or not rule.statistics:
        return "", ()
    pairs = [(node.operands[0] if node.operands else None, rule.operands[0] if rule.operands else None)]
    pairs.append((node.results[0], rule.results[0]))
    for name, layout in pairs:
        if name is None or name not in masks or layout is None:
            continue
        axes = tuple(
            axis
            for axis, mask in masks[name].items()
            if not mask.all() and not rule.statistics.isdisjoint(factors_of(layout[axis]))
        )
        if axes:
            return name, axes
    return "", ()


_CHOOSING = {
    "Softmax": False, "LogSoftmax": False, "TopK": None, "ArgMax": False, "ArgMin": True,
    "ReduceMax": False, "ReduceMin": True, "ReduceLogSumExp": False,
}  # fmt: skip
"""Operators that choose among units, and whether they choose the smallest (``None``: an attribute says so)."""


def _cannot_choose(
    surgery: Surgery, target: gs.Node, masks: Mapping[int, NDArray[np.bool_]], axes: tuple[int, ...], inferred: Inferred
) -> None:
    """Puts numbers that are never chosen where units are removed."""
    x = target.inputs[0]
    kind = inferred.types.get(x.name, onnx.TensorProto.FLOAT)
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    smallest = _CHOOSING[target.op]
    if smallest is None:
        before = surgery.before[target.name].attribute
        smallest = any(entry.name == "largest" and entry.i == 0 for entry in before)
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    worst = surgery.constant(f"{target.name}:worst", np.asarray(limits.max if smallest else limits.min, dtype))
    mask = surgery.constant(
        f"{target.name}:mask", _joined({axis: masks[axis] for axis in axes}, len(inferred.shapes[x.name]))
    )
    target.inputs[0] = surgery.insert("Where", f"{target.name}:chosen", (mask, x, worst))


@dataclass(frozen=True, slots=True)
class _Masked:
    """What a masked form is built from."""

    surgery: Surgery
    node: gs.Node
    source: str
    masks: Mapping[int, NDArray[np.bool_]]
    axes: tuple[int, ...]
    inferred: Inferred
    opset: int

    def attribute(self, name: str, default: Any) -> Any:
        before = self.surgery.before[self.node.name]
        found = next((entry for entry in before.attribute if entry.name == name), None)
        return default if found is None else onnx.helper.get_attribute_value(found)

    @property
    def x(self) -> Any:
        return self.node.inputs[0]

    @property
    def rank(self) -> int:
        return len(self.inferred.shapes[self.source])

    @property
    def ratio(self) -> float:
        """How many elements there are for each one that is kept."""
        return prod(len(self.masks[axis]) / max(1, int(self.masks[axis].sum())) for axis in self.axes)

    def result(self, i: int) -> gs.Variable:
        """Result ``i`` of the node itself, which then stays: a sum that it normalises."""
        while len(self.node.outputs) <= i:
            self.node.outputs.append(gs.Variable.empty())
        if self.node.outputs[i].is_empty():
            self.node.outputs[i] = gs.Variable(self.surgery.fresh(f"{self.node.name}:sum"))
        return self.node.outputs[i]

    def number(self, value: Array | np.float32 | float) -> gs.Variable | gs.Constant:
        """A constant of the type of the operand; one that float64 has in full where the model is run in that."""
        kind = self.inferred.types.get(self.source, onnx.TensorProto.FLOAT)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
        if dtype.itemsize > 2:
            return self.surgery.constant(f"{self.node.name}:number", np.asarray(value, dtype))
        exact = self.surgery.constant(f"{self.node.name}:number", np.asarray(value, np.float64))
        return self.op("Cast", exact, to=kind)

    def integers(self, values: list[int]) -> gs.Constant:
        return self.surgery.constant(f"{self.node.name}:integers", np.array(values, dtype=np.int64))

    def op(self, kind: str, *inputs: Any, **attributes: Any) -> gs.Variable:
        return self.surgery.insert(kind, f"{self.node.name}:{kind}", inputs, **attributes)

    def mean(self, x: Any, axes: list[int], ratio: Any) -> gs.Variable:
        """The mean over ``axes``, corrected for elements that are not there; reduced axes stay."""
        if self.opset >= 18:
            mean = self.op("ReduceMean", x, self.integers(axes), keepdims=1)
        else:
            mean = self.op("ReduceMean", x, axes=axes, keepdims=1)
        return self.op("Mul", mean, ratio)

    def keep(self, x: Any, mask: NDArray[np.bool_]) -> gs.Variable:
        return self.op("Mul", x, self.number(mask.astype(np.float64)))


def _replace(surgery: Surgery, target: gs.Node, node: Node, masked: _Masked) -> None:
    form = _FORMS.get(node.op)
    if form is None:
        raise ProofError(
            f"'{node.op}' (node '{node.name}') takes a statistic over an axis that is cut, "
            "and no masked form of it is known; protect what reaches it, or add one to graphprune/hosts/onnx/masked.py"
        )
    produced = form(masked)
    if produced is None:
        return
    result = target.outputs[0]
    target.outputs[0] = gs.Variable(surgery.fresh(f"{node.name}:unmasked"))
    _rename(produced, result)
    surgery.nodes[node.name] = result.inputs[0]
    if not any(each.outputs or each in surgery.graph.outputs for each in target.outputs[1:]):
        target.inputs.clear()
        surgery.graph.nodes.remove(target)


def _reduce_mean(m: _Masked) -> gs.Variable:
    mean = m.op("ReduceMean", *m.node.inputs)
    copied = mean.inputs[0]
    for entry in m.surgery.before[m.node.name].attribute:
        copied.attrs[entry.name] = onnx.helper.get_attribute_value(entry)
    return m.op("Mul", mean, m.number(m.ratio))


def _normalized(
    m: _Masked,
    x: Any,
    axes: list[int],
    ratio: Any,
    mask: NDArray[np.bool_],
    *,
    centred: bool,
    epsilon: float = 1e-5,
) -> gs.Variable:
    """``(x - mean) / sqrt(variance + epsilon)``, statistics of what is kept; without the mean if not ``centred``."""
    small = m.number(np.float32(m.attribute("epsilon", epsilon)))  # as the attribute has it
    if centred:
        x = m.keep(m.op("Sub", x, m.mean(x, axes, ratio)), mask)
    variance = m.mean(m.op("Mul", x, x), axes, ratio)
    return m.op("Div", x, m.op("Sqrt", m.op("Add", variance, small)))


def _over_last(
    m: _Masked, *, centred: bool, x: Any = None, parameters: tuple[int, ...] = (1, 2), epsilon: float = 1e-5
) -> gs.Variable:
    """The last axes, scaled and shifted by ``parameters``; of ``x``, or of the first operand."""
    first = m.attribute("axis", -1) % m.rank
    mask = _joined({axis: m.masks[axis] for axis in m.axes}, m.rank)
    y = _normalized(
        m,
        m.x if x is None else x,
        list(range(first, m.rank)),
        m.number(m.ratio),
        mask,
        centred=centred,
        epsilon=epsilon,
    )
    for op, operand in zip(
        ("Mul", "Add"), (m.node.inputs[i] for i in parameters if i < len(m.node.inputs)), strict=False
    ):
        if not operand.is_empty():
            y = m.op(op, y, operand)
    return y


def _instance_norm(m: _Masked) -> gs.Variable:
    """Also what exporters make of a group normalisation: an instance normalisation of blocks ``n g (c h w)``."""
    mask = _joined({axis: m.masks[axis] for axis in m.axes}, m.rank)
    y = _normalized(m, m.x, list(range(2, m.rank)), m.number(m.ratio), mask, centred=True)
    channels = [1, -1, *([1] * (m.rank - 2))]
    for op, operand in zip(("Mul", "Add"), m.node.inputs[1:3], strict=False):
        y = m.op(op, y, m.op("Reshape", operand, m.integers(channels)))
    return y


def _group_norm(m: _Masked) -> gs.Variable | None:
    groups = m.attribute("num_groups", 1)
    kept = m.masks[1].reshape(groups, -1)
    if bool((kept.all(1) | ~kept.any(1)).all()):
        return None  # whole groups: the operator itself is right
    if set(m.axes) != {1}:
        raise ProofError(f"'GroupNormalization' (node '{m.node.name}') is cut along a spatial axis; protect its input")
    blocks = m.op("Reshape", m.x, m.integers([0, groups, kept.shape[1], -1]))
    ratio = m.number((kept.shape[1] / np.maximum(1, kept.sum(1))).reshape(1, groups, 1, 1))
    y = _normalized(m, blocks, [2, 3], ratio, kept.reshape(1, groups, -1, 1), centred=True)
    channels = [1, -1, *([1] * (m.rank - 2))]
    if m.opset < 21:  # scale and bias per group
        for op, operand in zip(("Mul", "Add"), m.node.inputs[1:3], strict=False):
            y = m.op(op, y, m.op("Reshape", operand, m.integers([1, groups, 1, 1])))
    y = m.op("Reshape", y, m.op("Shape", m.x))
    if m.opset >= 21:
        for op, operand in zip(("Mul", "Add"), m.node.inputs[1:3], strict=False):
            y = m.op(op, y, m.op("Reshape", operand, m.integers(channels)))
    return y


def _mean_variance(m: _Masked) -> gs.Variable:
    """``MeanVarianceNormalization``: its 1e-9 is added to the deviation, not to the variance."""
    axes = [axis % m.rank for axis in m.attribute("axes", (0, 2, 3))]
    mask = _joined({axis: m.masks[axis] for axis in m.axes}, m.rank)
    ratio = m.number(m.ratio)
    x = m.keep(m.op("Sub", m.x, m.mean(m.x, axes, ratio)), mask)
    deviation = m.op("Sqrt", m.mean(m.op("Mul", x, x), axes, ratio))
    return m.op("Div", x, m.op("Add", deviation, m.number(1e-9)))


_FORMS: Mapping[str, Callable[[_Masked], gs.Variable | None]] = {
    "ReduceMean": _reduce_mean,
    "LayerNormalization": lambda m: _over_last(m, centred=True),
    "RMSNormalization": lambda m: _over_last(m, centred=False),
    "SimplifiedLayerNormalization": lambda m: _over_last(m, centred=False),
    "com.microsoft::SkipLayerNormalization": lambda m: _over_last(
        m, centred=True, x=m.result(3), parameters=(2, 3), epsilon=1e-12
    ),
    "com.microsoft::SkipSimplifiedLayerNormalization": lambda m: _over_last(
        m, centred=False, x=m.result(3), parameters=(2,)
    ),
    "com.microsoft::EmbedLayerNormalization": lambda m: _over_last(
        m, centred=True, x=m.result(2), parameters=(5, 6), epsilon=1e-12
    ),
    "MeanVarianceNormalization": _mean_variance,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
}
"""Operator -> the nodes that compute it with kept units only (``None``: it needs no change)."""
