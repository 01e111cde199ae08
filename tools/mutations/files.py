"""Edits of the ONNX file that was written: what a tool, a merge or an ill-wisher may do to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Dice = np.random.Generator
Edit = Callable[[onnx.ModelProto, Dice], str | None]
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


def _pick(options: list, dice: Dice):
    return options[int(dice.integers(len(options)))] if options else None


def _tensors(model: onnx.ModelProto, least: int = 1) -> list[onnx.TensorProto]:
    return [t for t in model.graph.initializer if t.data_type in FLOATS and np.prod(t.dims) >= least and t.dims]


def _write(tensor: onnx.TensorProto, array: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))


def _varied(array: np.ndarray) -> bool:
    return array.ndim > 0 and len(array) > 1 and not np.array_equal(array[0], array[-1])


def unit_swapped(model: onnx.ModelProto, dice: Dice) -> str | None:
    found = [t for t in _tensors(model, 2) if _varied(numpy_helper.to_array(t))]
    if (tensor := _pick(found, dice)) is None:
        return None
    array = numpy_helper.to_array(tensor).copy()
    array[[0, -1]] = array[[-1, 0]]
    _write(tensor, array)
    return f"first and last of '{tensor.name}' swapped"


def unit_zeroed(model: onnx.ModelProto, dice: Dice) -> str | None:
    found = [t for t in _tensors(model) if numpy_helper.to_array(t)[-1:].any()]
    if (tensor := _pick(found, dice)) is None:
        return None
    array = numpy_helper.to_array(tensor).copy()
    array[-1] = 0
    _write(tensor, array)
    return f"last of '{tensor.name}' zeroed"


def tensor_zeroed(model: onnx.ModelProto, dice: Dice) -> str | None:
    found = [t for t in _tensors(model) if numpy_helper.to_array(t).any()]
    if (tensor := _pick(found, dice)) is None:
        return None
    _write(tensor, numpy_helper.to_array(tensor) * 0)
    return f"'{tensor.name}' zeroed"


def bit_flipped(model: onnx.ModelProto, dice: Dice) -> str | None:
    """The lowest bit of one element: below any tolerance, but not what the plan says."""
    if (tensor := _pick(_tensors(model), dice)) is None:
        return None
    array = numpy_helper.to_array(tensor).copy()
    bits = array.view({2: np.uint16, 4: np.uint32, 8: np.uint64}[array.itemsize]).reshape(-1)
    bits[int(dice.integers(bits.size))] ^= bits.dtype.type(1)
    _write(tensor, array)
    return f"lowest bit of an element of '{tensor.name}'"


def scaled(model: onnx.ModelProto, dice: Dice) -> str | None:
    found = [t for t in _tensors(model) if numpy_helper.to_array(t).any()]
    if (tensor := _pick(found, dice)) is None:
        return None
    array = numpy_helper.to_array(tensor)
    _write(tensor, array * array.dtype.type(1.01))
    return f"'{tensor.name}' 1 % larger"


def tensors_swapped(model: onnx.ModelProto, dice: Dice) -> str | None:
    tensors = _tensors(model, 2)
    pairs = [
        (a, b)
        for i, a in enumerate(tensors)
        for b in tensors[i + 1 :]
        if a.dims == b.dims and not np.array_equal(numpy_helper.to_array(a), numpy_helper.to_array(b))
    ]
    if (pair := _pick(pairs, dice)) is None:
        return None
    a, b = (numpy_helper.to_array(each).copy() for each in pair)
    _write(pair[0], b)
    _write(pair[1], a)
    return f"'{pair[0].name}' and '{pair[1].name}' swapped"


def whole_numbers(model: onnx.ModelProto, dice: Dice) -> str | None:
    """A scale or another lone number is a little off."""
    found = [t for t in model.graph.initializer if t.data_type in FLOATS and not t.dims]
    if (tensor := _pick(found, dice)) is None:
        return None
    array = numpy_helper.to_array(tensor)
    _write(tensor, np.asarray(array * array.dtype.type(1.001) + array.dtype.type(1e-6)))
    return f"'{tensor.name}' a little larger"


def output_renamed(model: onnx.ModelProto, dice: Dice) -> str | None:
    output = _pick(list(model.graph.output), dice)
    old = output.name
    model.graph.node.append(helper.make_node("Identity", [old], [f"{old}_new"], "renamed"))
    output.name = f"{old}_new"
    return f"output '{old}' renamed"


def outputs_swapped(model: onnx.ModelProto, dice: Dice) -> str | None:
    """Each output gives what the other should."""
    if len(model.graph.output) < 2:
        return None
    a, b = (value.name for value in model.graph.output[:2])
    swap = {a: b, b: a}
    for node in model.graph.node:
        node.input[:] = [swap.get(name, name) for name in node.input]
        node.output[:] = [swap.get(name, name) for name in node.output]
    shapes = [onnx.TypeProto.FromString(value.type.SerializeToString()) for value in model.graph.output[:2]]
    model.graph.output[0].type.CopyFrom(shapes[1])
    model.graph.output[1].type.CopyFrom(shapes[0])
    return f"outputs '{a}' and '{b}' swapped"


def outputs_reordered(model: onnx.ModelProto, dice: Dice) -> str | None:
    if len(model.graph.output) < 2:
        return None
    outputs = list(model.graph.output)[::-1]
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    return "outputs in another order"


def output_dropped(model: onnx.ModelProto, dice: Dice) -> str | None:
    if len(model.graph.output) < 2:
        return None
    return f"output '{model.graph.output.pop().name}' dropped"


def output_added(model: onnx.ModelProto, dice: Dice) -> str | None:
    named = {value.name for value in model.graph.output}
    node = _pick([n for n in model.graph.node if n.output[0] not in named], dice)
    if node is None:
        return None
    model.graph.output.append(onnx.ValueInfoProto(name=node.output[0]))
    inferred = {v.name: v for v in onnx.shape_inference.infer_shapes(model).graph.value_info}
    if node.output[0] not in inferred:
        return None
    model.graph.output[-1].CopyFrom(inferred[node.output[0]])
    return f"'{node.output[0]}' is an output"


def input_renamed(model: onnx.ModelProto, dice: Dice) -> str | None:
    given = model.graph.input[0]
    old, given.name = given.name, f"{given.name}_new"
    for node in model.graph.node:
        node.input[:] = [given.name if name == old else name for name in node.input]
    return f"input '{old}' renamed"


def batch_baked(model: onnx.ModelProto, dice: Dice) -> str | None:
    """A dynamic axis of the interface gets a number."""
    dims = [d for v in (*model.graph.input, *model.graph.output) for d in v.type.tensor_type.shape.dim if d.dim_param]
    if not dims:
        return None
    for dim in dims:
        dim.dim_value = 1
    return "dynamic axes are 1"


def axis_dynamic(model: onnx.ModelProto, dice: Dice) -> str | None:
    dims = [d for value in model.graph.input for d in value.type.tensor_type.shape.dim if d.HasField("dim_value")]
    if not dims:
        return None
    dims[0].dim_param = "anything"
    return "the first fixed axis of an input is dynamic"


def reshape_baked(model: onnx.ModelProto, dice: Dice) -> str | None:
    """A copied or inferred size of a reshape becomes the number that it has on the example."""
    stored = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Reshape" and node.input[1] in stored:
            array = numpy_helper.to_array(stored[node.input[1]]).copy()
            dims = model.graph.input[0].type.tensor_type.shape.dim
            if array.size and array[0] in (0, -1) and dims and dims[0].dim_param:
                array[0] = 1
                _write(stored[node.input[1]], array)
                return f"the batch of '{node.name}' is 1"
    return None


def rectifier_clipped(model: onnx.ModelProto, dice: Dice) -> str | None:
    """What no ordinary input shows: a rectifier that ends at a bound."""
    node = _pick([n for n in model.graph.node if n.op_type == "Relu"], dice)
    if node is None:
        return None
    kind = _tensors(model)[0].data_type
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    node.op_type = "Clip"
    for name, value in (("clip.low", 0), ("clip.high", 3000)):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        node.input.append(name)
    return f"'{node.name}' ends at 3000"


def operator_changed(model: onnx.ModelProto, dice: Dice) -> str | None:
    other = {"Relu": "Softplus", "Sigmoid": "HardSigmoid", "Tanh": "Softsign", "Gelu": "Mish", "Add": "Sub",
             "MaxPool": "AveragePool", "GlobalAveragePool": "GlobalMaxPool", "Mul": "Add"}  # fmt: skip
    node = _pick([n for n in model.graph.node if n.op_type in other], dice)
    if node is None:
        return None
    old, node.op_type = node.op_type, other[node.op_type]
    return f"'{node.name}' is '{node.op_type}' instead of '{old}'"


def attribute_changed(model: onnx.ModelProto, dice: Dice) -> str | None:
    found = [
        (node, a)
        for node in model.graph.node
        for a in node.attribute
        if a.type in (onnx.AttributeProto.FLOAT, onnx.AttributeProto.INT, onnx.AttributeProto.INTS)
    ]
    if (pair := _pick(found, dice)) is None:
        return None
    node, a = pair
    if a.type == onnx.AttributeProto.FLOAT:
        a.f = a.f * 1.5 + 1e-3
    elif a.type == onnx.AttributeProto.INT:
        a.i = a.i + 1
    elif a.ints:
        a.ints[0] = a.ints[0] + 1
    return f"attribute '{a.name}' of '{node.name}' changed"


def branch_added(model: onnx.ModelProto, dice: Dice) -> str | None:
    """A branch that adds nothing on ordinary inputs, and a lot on one that is large."""
    value, given = model.graph.output[0], model.graph.input[0]
    kind = value.type.tensor_type.elem_type
    if given.type.tensor_type.elem_type != kind or kind not in FLOATS:
        return None
    old, one = value.name, np.ones((), helper.tensor_dtype_to_np_dtype(kind))
    for node in model.graph.node:
        node.input[:] = ["door.old" if name == old else name for name in node.input]
        node.output[:] = ["door.old" if name == old else name for name in node.output]
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(one * 1000), "door.far"))
    model.graph.node.extend(
        [
            helper.make_node("Sub", [given.name, "door.far"], ["door.less"], "door.1"),
            helper.make_node("Relu", ["door.less"], ["door.over"], "door.2"),
            helper.make_node("ReduceMax", ["door.over"], ["door.sum"], "door.3", keepdims=0),
            helper.make_node("Add", ["door.old", "door.sum"], [old], "door.4"),
        ]
    )
    return f"a branch from '{given.name}' to '{old}'"


def operands_swapped(model: onnx.ModelProto, dice: Dice) -> str | None:
    node = _pick([n for n in model.graph.node if n.op_type in ("Concat", "Sub", "Div") and len(n.input) > 1], dice)
    if node is None or node.input[0] == node.input[1]:
        return None
    node.input[0], node.input[1] = node.input[1], node.input[0]
    return f"operands of '{node.name}' swapped"


def node_bypassed(model: onnx.ModelProto, dice: Dice) -> str | None:
    node = _pick([n for n in model.graph.node if n.op_type in ("Relu", "Sigmoid", "Tanh", "Gelu", "Softmax")], dice)
    if node is None:
        return None
    node.op_type = "Identity"
    del node.attribute[:]
    return f"'{node.name}' does nothing"


def not_a_number(model: onnx.ModelProto, dice: Dice) -> str | None:
    tensor = _tensors(model)[-1]
    _write(tensor, numpy_helper.to_array(tensor) * np.nan)
    return f"'{tensor.name}' is NaN"


def node_added(model: onnx.ModelProto, dice: Dice) -> str | None:
    """A node that no output needs, and a stored tensor with it: weight that nobody ordered."""
    model.graph.initializer.append(numpy_helper.from_array(np.ones(100, np.float32), "extra.w"))
    model.graph.node.append(helper.make_node("Relu", ["extra.w"], ["extra.y"], "extra"))
    return "a node and a tensor that nothing needs"


FILES: Mapping[str, Edit] = {
    "file-unit": unit_swapped,
    "file-unit-zeroed": unit_zeroed,
    "file-zeroed": tensor_zeroed,
    "file-bit": bit_flipped,
    "file-scaled": scaled,
    "file-tensors": tensors_swapped,
    "file-number": whole_numbers,
    "file-output-renamed": output_renamed,
    "file-outputs-swapped": outputs_swapped,
    "file-outputs-reordered": outputs_reordered,
    "file-output-dropped": output_dropped,
    "file-output-added": output_added,
    "file-input-renamed": input_renamed,
    "file-batch": batch_baked,
    "file-axis": axis_dynamic,
    "file-reshape": reshape_baked,
    "file-clip": rectifier_clipped,
    "file-operator": operator_changed,
    "file-attribute": attribute_changed,
    "file-branch": branch_added,
    "file-operands": operands_swapped,
    "file-bypass": node_bypassed,
    "file-nan": not_a_number,
    "file-extra": node_added,
}
"""Edits of the file."""
