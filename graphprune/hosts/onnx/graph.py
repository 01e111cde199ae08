"""From a weightless ONNX model to the graph that the analysis reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from graphprune import ops
from graphprune.errors import RuleError
from graphprune.hosts.messages import attributes_of, operands_of
from graphprune.hosts.onnx.branches import in_branches
from graphprune.hosts.onnx.ops.table import BARRIERS, ROWS
from graphprune.hosts.onnx.ops.values import JOIN_DOMAIN, Inferred, counts, uncuttable
from graphprune.ir.dims import factors_of
from graphprune.ir.graph import Graph, Kind, Node, Use, Value
from graphprune.ir.rule import Rule, Shape
from graphprune.rules.call import Call, Refusal, Row, RuleBook, facts, options
from graphprune.rules.contraction import axes

_RULE = re.compile(r"^rule '.*'(?= gives )", re.DOTALL)
_QUANTIZED = (ir.DataType.INT8, ir.DataType.UINT8)


def build_graph(proto: onnx.ModelProto, inferred: Inferred, uses: Mapping[str, Use] | None = None) -> Graph:
    """Derives the graph of a normalised model (see ``graphprune.hosts.onnx.load``).

    Args:
        proto: The weightless model.
        inferred: Shapes and small values.
        uses: Which tensors are copies of one that the file stores once (see ``graphprune.hosts.onnx.copies``).
    """
    opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    reader = _Reader(proto, inferred, opset, uses or {})
    nodes = tuple(map(reader.node, proto.graph.node, reader.operands))
    return Graph(
        reader.values(nodes),
        nodes,
        tuple(value.name for value in proto.graph.input),
        tuple(value.name for value in proto.graph.output),
    )


class _Reader:
    def __init__(self, proto: onnx.ModelProto, inferred: Inferred, opset: int, uses: Mapping[str, Use]) -> None:
        self.proto, self.inferred, self.opset, self.uses = proto, inferred, opset, uses
        self.rules = RuleBook()
        self.optional = in_branches(proto.graph)
        self.initializers = {tensor.name: tensor for tensor in proto.graph.initializer}
        self.operands = [operands_of(node) for node in proto.graph.node]
        self.used = {name for operands in self.operands for name in operands}
        self.used.update(value.name for value in proto.graph.output)
        self.weights = set(self.initializers)  # and what is only computed from them, such as a transposed weight
        for node, operands in zip(proto.graph.node, self.operands, strict=True):
            rank = len(inferred.shapes.get(node.input[0], ())) if node.input else 0
            looked_up = node.op_type in ("Gather", "GatherND") and rank > 2  # a matrix for each index
            of_weights = [name in self.weights for name in operands if name]
            if of_weights and (all(of_weights) or (looked_up and of_weights[0])):
                self.weights.update(node.output)

    def values(self, nodes: tuple[Node, ...]) -> dict[str, Value]:
        """All values: stored tensors that are used, inputs, results of nodes."""
        shaped = {
            name
            for node in nodes
            for i, name in enumerate(node.operands)
            if name is not None
            and (node.rule is None or (i < len(node.rule.operands) and node.rule.operands[i] is not None))
        }
        shaped.update(value.name for value in self.proto.graph.output)
        found: dict[str, Value] = {}
        for name, tensor in self.initializers.items():
            if name in self.used:
                # a tensor that is only read as sizes or scales has axes that nothing couples: not a weight
                found[name] = self.stored(tensor, shaped=name in shaped)
        for value in self.proto.graph.input:
            found[value.name] = self.computed(value.name, "input")
        for node in self.proto.graph.node:
            for name in node.output:
                if name:
                    found[name] = self.computed(name, "computed")
        return found

    def stored(self, tensor: onnx.TensorProto, *, shaped: bool) -> Value:
        dtype = ir.DataType(tensor.data_type)
        quantized = dtype in _QUANTIZED and len(tensor.dims) > 1  # a vector of them holds zero points
        weight = (quantized or (dtype.is_floating_point() and len(tensor.dims) > 0)) and shaped
        kind: Kind = "parameter" if weight else "constant"
        known = self.inferred.values.get(tensor.name) if dtype in (ir.DataType.INT64, ir.DataType.INT32) else None
        elements = known.values.astype(np.int64) if known is not None and known.constant and known.values.size else None
        return Value(
            tensor.name,
            tuple(tensor.dims),
            _dtype(dtype),
            kind,
            dtype.bitwidth / 8,
            elements=elements,
            use=self.uses.get(tensor.name),
            counted=counts(dtype, len(tensor.dims)),
        )

    def computed(self, name: str, kind: Kind) -> Value:
        dtype, itemsize = _element(self.inferred.types.get(name, 0) or onnx.TensorProto.FLOAT)
        shape = self.inferred.shapes.get(name, ())
        return Value(name, shape, dtype, kind, itemsize, self.inferred.dynamic.get(name, frozenset()))

    def node(self, proto: onnx.NodeProto, names: list[str]) -> Node:
        operands = tuple([name or None for name in names])
        results = tuple([name or None for name in proto.output])
        domain = "" if proto.domain in ("", "ai.onnx") else proto.domain
        op = f"{domain}::{proto.op_type}" if domain else proto.op_type
        location = next((entry.value for entry in proto.metadata_props if entry.key.endswith("name_scopes")), "")
        attributes = attributes_of(proto)
        own = ops.lookup(op)
        row = own or ROWS.get(op)
        if own is None and op in BARRIERS:
            rule, reason = None, BARRIERS[op]
        else:
            rule, reason = self.rule(proto, op, row, operands, results, attributes)
        known = facts(row)
        multiple = known.multiple_of([name in self.weights for name in operands])
        said = known.sums, multiple, options(attributes), known.role
        optional = proto.name in self.optional
        return Node(proto.name, op, operands, results, rule, location, reason, *said, optional=optional)

    def rule(
        self,
        proto: onnx.NodeProto,
        op: str,
        row: Row | None,
        operands: tuple[str | None, ...],
        results: tuple[str | None, ...],
        attributes: Mapping[str, Any],
    ) -> tuple[Rule | None, str]:
        """The rule of a node by its row, or the reason why it has none."""
        if row is None:
            return None, f"no coupling rule for '{op}'"
        shown = "If" if proto.domain == JOIN_DOMAIN else op
        for name in (*operands, *results):
            tensor = self.initializers.get(name or "")
            why = uncuttable(tensor.data_type) if tensor is not None else None
            if why is not None:
                return None, f"operand '{name}' of '{op}' {why}, and is not cut"
            if name is not None and name in self.used and name not in self.inferred.shapes:
                return None, f"the shape of '{name}' at '{shown}' is not known"
        sized = self.inferred.sized.get(operands[0] or "") if op in ("Shape", "Size") else None
        if sized:
            return self.measured(operands[0] or "", sized, results), ""
        return self.build(row, self.call(op, operands, results, attributes))

    def measured(self, operand: str, sized: frozenset[int], results: tuple[str | None, ...]) -> Rule:
        """The rule of a node that reads sizes which the model computes with: those axes stay whole."""
        shapes = self.inferred.shapes
        dims = axes("x", shapes[operand])
        made = tuple(None if name is None else axes("y", shapes.get(name, ())) for name in results)
        fixed = {f: "the model computes with the size of this axis" for i in sized for f in factors_of(dims[i])}
        fixed.update((f, "sizes of a tensor") for layout in made if layout for dim in layout for f in factors_of(dim))
        return Rule((dims,), made, fixed)

    def call(
        self,
        op: str,
        operands: tuple[str | None, ...],
        results: tuple[str | None, ...],
        attributes: Mapping[str, Any],
    ) -> Call:
        shapes, values = self.inferred.shapes, self.inferred.values
        integers = {
            i: value.elements()
            for i, name in enumerate(operands)
            if (value := values.get(name or "")) is not None and value.values.dtype.kind in "iub"
        }

        def shape(name: str | None) -> Shape | None:
            return None if name is None else shapes.get(name)

        return Call(
            op,
            tuple(map(shape, operands)),
            tuple(map(shape, results)),
            {"opset": self.opset, **attributes},
            tuple([name in self.weights for name in operands]),
            integers,
        )

    def build(self, row: Row, call: Call) -> tuple[Rule | None, str]:
        """Asks a row of the table."""
        try:
            return self.rules.rule(row, call), ""
        except Refusal as refusal:
            return None, str(refusal)
        except RuleError as error:
            said = _RULE.sub("it", str(error), count=1)  # the rule itself may fill a page
            return None, f"the rule of '{call.op}' does not fit: {said:.200}"
        except (KeyError, IndexError, ValueError, TypeError, AssertionError, ZeroDivisionError):
            return None, f"'{call.op}' is used in a way that its rule does not describe"


@cache
def _element(data_type: int) -> tuple[str, float]:
    """What elements of a type are called, and how many bytes one takes; texts count none."""
    dtype = ir.DataType(data_type)
    return _dtype(dtype), dtype.bitwidth / 8 if dtype != ir.DataType.STRING else 0.0


@cache
def _dtype(dtype: ir.DataType) -> str:
    try:
        return str(dtype.numpy())
    except TypeError:
        return dtype.name.lower()
