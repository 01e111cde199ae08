"""Edits of an ONNX model: slices of stored tensors, sizes in attributes and in operands, pinned attributes.

A size may stand in an attribute, in a constant operand (which other nodes may share: it is copied for the uses that
change alike), or in an operand that is computed at run time. There the elements that come out right by themselves are
left alone (a size that is read off a tensor that has been cut); a part that does not depend on the input is replaced by
a constant; any other is scaled: ``batch * 12`` becomes ``batch * 12 * 6 / 12``.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from graphprune.errors import PlanError
from graphprune.hosts.edits import Edits
from graphprune.hosts.onnx.ops.values import Inferred, Partial
from graphprune.hosts.onnx.shape_values import evaluate_graph
from graphprune.hosts.onnx.store import Store, Stored, inline_array, inline_tensor, sliced
from graphprune.hosts.onnx.surgery import Surgery


def apply_edits(
    proto: onnx.ModelProto, store: Store, edits: Edits, inferred: Inferred
) -> tuple[onnx.ModelProto, dict[str, Stored]]:
    """The model with the edits made.

    Args:
        proto: The weightless model.
        store: Its weights.
        edits: What to change.
        inferred: Shapes and small values before the edits.

    Raises:
        PlanError: An edit names a tensor or a node that the model does not have.
    """
    names = {tensor.name for tensor in proto.graph.initializer}
    for name in edits.slices:
        if name not in names:
            raise PlanError(f"the model stores no tensor '{name}' to be cut; make the plan for this model")
    cut, changed = sliced(proto, store, edits.slices)
    for tensor in cut.graph.initializer:
        if tensor.name in edits.renumbered:
            tensor.CopyFrom(inline_tensor(edits.renumbered[tensor.name][inline_array(tensor)], tensor))
    if edits.sizes or edits.pins or edits.bypasses or any(map(_squeezes_all, cut.graph.node)):
        cut = _Editor(cut, edits, inferred).run()
    _declare(cut, edits.shapes)
    return cut, changed


def _squeezes_all(node: onnx.NodeProto) -> bool:
    """Whether a node drops whatever axes have one element: also one that is cut to a single unit."""
    given = any(attribute.name == "axes" for attribute in node.attribute) or any(node.input[1:])
    return node.op_type == "Squeeze" and not given


def _declare(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Writes new sizes into the declarations of inputs and outputs; symbols stay."""
    for value in (*proto.graph.input, *proto.graph.output):
        shape = shapes.get(value.name)
        if shape is None or not value.type.HasField("tensor_type"):
            continue
        for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=False):
            if dim.HasField("dim_value"):
                dim.dim_value = size


class _Editor:
    """Writes sizes and pins into the graph."""

    def __init__(self, proto: onnx.ModelProto, edits: Edits, inferred: Inferred) -> None:
        self.surgery = Surgery(proto)
        self.edits = edits
        self.shapes = {**inferred.shapes, **edits.shapes}
        self.old_shapes = inferred.shapes
        self.versions = {
            "" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in proto.opset_import
        }
        self.constants = {tensor.name: tensor for tensor in proto.graph.initializer}
        self.patched: dict[tuple[str, bytes], gs.Constant] = {}
        # what the operands evaluate to now that tensors are cut
        self.values = evaluate_graph(proto.graph, self.shapes, inferred.dynamic)

    def run(self) -> onnx.ModelProto:
        wanted: dict[tuple[str, str], dict[int | None, tuple[int, int]]] = {}
        for edit in self.edits.sizes:
            wanted.setdefault((edit.node, edit.attribute), {})[edit.index] = (edit.old, edit.new)
        for (name, attribute), sizes in wanted.items():
            node = self._node(name)
            operand = self._operand_of(node, attribute)
            if operand is None:
                self._set_attribute(node, attribute, {index: new for index, (_, new) in sizes.items()})
            else:
                self._set_operand(node, operand, attribute, sizes)
        for pin in self.edits.pins:
            self._node(pin.node).attrs[pin.attribute] = float(pin.value)
        for node in filter(_squeezes_all, self.surgery.before.values()):
            self._name_axes(node)
        self._bypass()
        return self.surgery.result()

    def _bypass(self) -> None:
        """Makes the producers of bypassed values identities; then lets their users skip these where they can."""
        tensors = self.surgery.tensors() if self.edits.bypasses else {}
        outputs = {id(output) for output in self.surgery.graph.outputs}
        for old, new in self.edits.bypasses.items():
            result, source = tensors.get(old), tensors.get(new)
            if result is None or source is None or len(result.inputs) != 1:
                raise PlanError(f"the model has no value '{old}' to bypass; make the plan for this model")
            node = result.inputs[0]
            node.op, node.inputs = "Identity", [source]
            if id(result) in outputs:
                continue
            for user in list(result.outputs):
                for i, operand in enumerate(user.inputs):
                    if operand is result:
                        user.inputs[i] = source

    def _name_axes(self, node: onnx.NodeProto) -> None:
        """Writes the axes that a ``Squeeze`` without axes drops now, if another one is cut to one element.

        Else it stays: at other sizes of dynamic axes it drops others, and the model should do as before.
        """
        squeeze, shape = self.surgery.nodes.get(node.name), self.old_shapes.get(node.input[0])
        after = self.edits.shapes.get(node.input[0])
        if squeeze is None or shape is None or after is None:
            return
        if not any(new == 1 != old for old, new in zip(shape, after, strict=True)):
            return
        axes = [axis for axis, size in enumerate(shape) if size == 1]
        if self.versions[""] < 13:
            squeeze.attrs["axes"] = axes
        else:
            squeeze.inputs = [squeeze.inputs[0], self.surgery.constant(f"{node.name}:axes", np.array(axes, np.int64))]

    def _node(self, name: str) -> gs.Node:
        node = self.surgery.nodes.get(name)
        if node is None:
            raise PlanError(f"the model has no node '{name}' to be edited; make the plan for this model")
        return node

    def _schema(self, node: gs.Node) -> onnx.defs.OpSchema | None:
        domain = "" if node.domain in (None, "", "ai.onnx") else node.domain
        try:
            return onnx.defs.get_schema(node.op, self.versions.get(domain, 1), domain)
        except onnx.defs.SchemaError:
            return None

    def _operand_of(self, node: gs.Node, attribute: str) -> int | None:
        """The operand that holds a size, or ``None`` where an attribute does."""
        if any(present.name == attribute for present in self.surgery.before[node.name].attribute):
            return None
        schema = self._schema(node)
        if schema is None or attribute in schema.attributes:
            return None
        return next((i for i, formal in enumerate(schema.inputs) if formal.name == attribute), None)

    def _set_attribute(self, node: gs.Node, attribute: str, sizes: Mapping[int | None, int]) -> None:
        present = {entry.name: entry for entry in self.surgery.before[node.name].attribute}
        if None in sizes:
            node.attrs[attribute] = sizes[None]
            return
        values = list(present[attribute].ints) if attribute in present else self._parts(node)
        for index, new in sizes.items():
            values[index or 0] = new
        node.attrs[attribute] = [int(value) for value in values]

    def _parts(self, node: gs.Node) -> list[int]:
        """The sizes of the parts of a split that does not name them, after the edits."""
        axis = next((entry.i for entry in self.surgery.before[node.name].attribute if entry.name == "axis"), 0)
        whole = self.shapes[node.inputs[0].name][axis]
        parts = [self.shapes[result.name][axis] if result.name in self.shapes else None for result in node.outputs]
        rest = whole - sum(part for part in parts if part is not None)
        return [rest if part is None else part for part in parts]

    def _set_operand(self, node: gs.Node, i: int, attribute: str, sizes: Mapping[int | None, tuple[int, int]]) -> None:
        base = f"{node.name}:{attribute}"
        if i >= len(node.inputs) or node.inputs[i].is_empty():
            values = self._parts(node)
            for index, (_, new) in sizes.items():
                values[index or 0] = new
            while len(node.inputs) <= i:
                node.inputs.append(gs.Variable.empty())
            node.inputs[i] = self.surgery.constant(base, np.array(values, dtype=np.int64))
            self.surgery.dropped.add((node.name, "num_outputs"))
            return
        operand = node.inputs[i]
        if operand.name in self.constants:
            node.inputs[i] = self._patched(operand.name, base, {index: new for index, (_, new) in sizes.items()})
        else:
            node.inputs[i] = self._computed(operand, base, sizes)

    def _patched(self, name: str, base: str, sizes: Mapping[int | None, int]) -> gs.Constant:
        """A copy of a constant, with some elements replaced."""
        tensor = self.constants[name]
        array = np.array(inline_array(tensor))
        for index, new in sizes.items():
            array.reshape(-1)[index or 0] = new
        if (name, array.tobytes()) not in self.patched:  # uses that ask for the same share it
            copy = inline_tensor(array, tensor)
            copy.name = self.surgery.fresh(base)
            self.patched[name, array.tobytes()] = gs.Constant(copy.name, LazyValues(copy))
        return self.patched[name, array.tobytes()]

    def _computed(self, operand: Any, base: str, sizes: Mapping[int | None, tuple[int, int]]) -> Any:
        value = self.values.get(operand.name)
        pending: dict[int, Fraction] = {}
        targets: dict[int, int] = {}
        for index, (old, new) in sizes.items():
            at = index or 0
            present = old if value is None else int(value.values.reshape(-1)[at])
            if present == new:
                continue  # read off a tensor that has been cut
            pending[at] = Fraction(new, present) if present else Fraction(1)
            targets[at] = new
        if not pending:
            return operand
        if value is not None and (patched := self._patched_parts(operand, base, targets)) is not None:
            return patched
        if value is not None:
            length = value.values.size
        else:
            length = max(prod(self.old_shapes.get(operand.name, ())), max(pending) + 1)
        dtype = np.int64 if value is None else value.values.dtype
        times, over = (
            np.array([getattr(pending.get(at, Fraction(1)), part) for at in range(length)], dtype=dtype)
            for part in ("numerator", "denominator")
        )
        if value is not None:
            times, over = times.reshape(value.values.shape), over.reshape(value.values.shape)
        scaled = self.surgery.insert("Mul", f"{base}:times", (operand, self.surgery.constant(f"{base}:new", times)))
        return self.surgery.insert("Div", f"{base}:over", (scaled, self.surgery.constant(f"{base}:old", over)))

    def _patched_parts(self, operand: Any, base: str, targets: Mapping[int, int]) -> Any | None:
        """Where the operand is a Concat whose parts in question do not depend on the input: a Concat with new parts."""
        if len(operand.inputs) != 1 or operand.inputs[0].op != "Concat":
            return None
        producer = operand.inputs[0]
        parts: list[Any] = []
        offset = 0
        left = dict(targets)
        for part in producer.inputs:
            value: Partial | None = self.values.get(part.name)
            if value is None:
                return None
            array = np.array(value.values)
            mine = [at for at in left if offset <= at < offset + array.size]
            if mine and not value.constant:
                return None
            for at in mine:
                array.reshape(-1)[at - offset] = left.pop(at)
            parts.append(self.surgery.constant(f"{base}:part", array) if mine else part)
            offset += array.size
        return self.surgery.insert("Concat", f"{base}:concat", parts, axis=0)
