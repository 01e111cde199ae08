"""The reference of the proof: the original model with removed units zeroed after every node.

Stored tensors are zeroed too; in quantised tensors the zero point stands for zero. A node that takes a statistic over a
masked axis is replaced by nodes that count only what is kept, as the operator will on the smaller tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.errors import ProofError
from graphprune.hosts.host import Array
from graphprune.hosts.onnx.masked_forms import CHOOSING, Masked, form_of, joined
from graphprune.hosts.onnx.ops.own import facts_of
from graphprune.hosts.onnx.ops.values import Inferred
from graphprune.hosts.onnx.store import Store, Stored, inline_array, inline_tensor
from graphprune.hosts.onnx.surgery import Surgery
from graphprune.ir.dims import factors_of
from graphprune.ir.graph import Graph, Node
from graphprune.rules.call import EXACT

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
        form = facts_of(node.op).masked if axes else EXACT
        if form in CHOOSING:
            _cannot_choose(surgery, target, CHOOSING[form], masks[source], axes, inferred)
        elif form != EXACT:
            _replace(surgery, target, node, Masked(surgery, target, source, masks[source], axes, inferred, opset))
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
        elif (at := facts_of(node.op).zero_point) is not None:
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
    mask = surgery.constant(f"{name}:mask", joined(axes, len(inferred.shapes[name])))
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


def _cannot_choose(
    surgery: Surgery,
    target: gs.Node,
    smallest: bool | None,
    masks: Mapping[int, NDArray[np.bool_]],
    axes: tuple[int, ...],
    inferred: Inferred,
) -> None:
    """Puts numbers that are never chosen where units are removed."""
    x = target.inputs[0]
    kind = inferred.types.get(x.name, onnx.TensorProto.FLOAT)
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    if smallest is None:
        before = surgery.before[target.name].attribute
        smallest = any(entry.name == "largest" and entry.i == 0 for entry in before)
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    worst = surgery.constant(f"{target.name}:worst", np.asarray(limits.max if smallest else limits.min, dtype))
    mask = surgery.constant(
        f"{target.name}:mask", joined({axis: masks[axis] for axis in axes}, len(inferred.shapes[x.name]))
    )
    target.inputs[0] = surgery.insert("Where", f"{target.name}:chosen", (mask, x, worst))


def _replace(surgery: Surgery, target: gs.Node, node: Node, masked: Masked) -> None:
    form = form_of(node.op)
    if form is None:
        raise ProofError(
            f"'{node.op}' (node '{node.name}') takes a statistic over an axis that is cut, "
            "and no masked form of it is known; protect what reaches it, or add one to "
            "graphprune/hosts/onnx/masked_forms.py"
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
