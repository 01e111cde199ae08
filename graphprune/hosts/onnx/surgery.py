"""Graph surgery: onnx-graphsurgeon edits the topology, everything it would lose is put back afterwards.

graphsurgeon sees a weightless graph without attributes (except subgraphs), so that it cannot reinterpret tensors,
drop attributes of kinds it does not know, or load a weight. What it sets on a node wins; all other attributes,
documentation, metadata, types of inputs and outputs and quantisation annotations come back from the graph before,
by name (docs/onnx.md, What graphsurgeon would lose).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER

from graphprune.hosts.host import Array
from graphprune.hosts.messages import nodes_of, subgraphs_of
from graphprune.hosts.onnx.ops.values import no_tensors

G_LOGGER.severity = G_LOGGER.ERROR


class Surgery:
    """One operation on a model: take ``graph``, change it, ask for the :meth:`result`.

    Attributes:
        graph: What graphsurgeon edits. Its nodes have no attributes except subgraphs; setting one overrides it.
        nodes: The nodes of the main graph by name.
        before: The messages of all nodes before, by name, for reading attributes.
        dropped: Attributes to remove, as (node, attribute).
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._proto = proto
        bare = onnx.ModelProto()
        bare.CopyFrom(proto)
        for node in nodes_of(bare.graph):
            kept = [attribute for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]
            del node.attribute[:]
            node.attribute.extend(kept)
        foreign = no_tensors(proto.graph)
        for value in bare.graph.output:
            if value.name in foreign:
                value.ClearField("type")  # graphsurgeon knows no maps
        self.before = {node.name: node for node in nodes_of(proto.graph)}
        self.graph: gs.Graph = gs.import_onnx(bare)
        self.nodes: dict[str, gs.Node] = {node.name: node for node in self.graph.nodes}
        self.dropped: set[tuple[str, str]] = set()
        self._names = {name for node in nodes_of(proto.graph) for name in (node.name, *node.input, *node.output)}
        self._names.update(tensor.name for tensor in proto.graph.initializer)
        self._names.update(value.name for value in proto.graph.input)

    def fresh(self, base: str) -> str:
        """A name that nothing else has."""
        name, n = base, 0
        while name in self._names:
            n += 1
            name = f"{base}_{n}"
        self._names.add(name)
        return name

    def constant(self, base: str, values: Array) -> gs.Constant:
        """A new constant with a name derived from ``base``."""
        name = self.fresh(base)
        return gs.Constant(name, LazyValues(onnx.numpy_helper.from_array(np.asarray(values, order="C"), name)))

    def insert(self, op: str, base: str, inputs: Iterable[Any], **attributes: Any) -> gs.Variable:
        """Appends a node with one result, which is returned; :meth:`result` sorts it into its place."""
        result = self.variable(f"{base}:out")
        self.add(op, base, inputs, result, **attributes)
        return result

    def variable(self, base: str) -> gs.Variable:
        """A new value with a name derived from ``base``."""
        return gs.Variable(self.fresh(base))

    def add(self, op: str, base: str, inputs: Iterable[Any], result: gs.Variable, **attributes: Any) -> None:
        """Appends a node whose result is there already."""
        self.graph.nodes.append(gs.Node(op, self.fresh(base), attributes, list(inputs), [result]))

    def tensors(self) -> dict[str, Any]:
        """All tensors of the main graph by name, with those that only subgraphs use."""
        found: dict[str, Any] = dict(self.graph.tensors())
        for subgraph in self.graph.subgraphs(recursive=True):
            for name, tensor in subgraph.tensors().items():
                found.setdefault(name, tensor)
        for tensor in (*self.graph.inputs, *self.graph.outputs):
            found.setdefault(tensor.name, tensor)
        return found

    def result(self, *, cleanup: bool = False) -> onnx.ModelProto:
        """The edited model, sorted; with ``cleanup`` without nodes and tensors that no output needs."""
        if cleanup:
            self.graph.cleanup()
        self.graph.toposort()
        exported = gs.export_onnx(self.graph, do_type_check=False)
        result = onnx.ModelProto()
        for field, value in self._proto.ListFields():
            if field.name == "graph":
                continue
            if field.is_repeated:
                getattr(result, field.name).extend(value)
            else:
                setattr(result, field.name, value)
        result.graph.CopyFrom(exported.graph)
        self._restore(result.graph)
        return result

    def _restore(self, graph: onnx.GraphProto) -> None:
        old = self._proto.graph
        for field in ("input", "output"):
            known = {value.name: value for value in getattr(old, field)}
            for value in getattr(graph, field):
                if value.name in known:
                    value.CopyFrom(known[value.name])
        graph.doc_string = old.doc_string
        graph.metadata_props.extend(old.metadata_props)
        for node in nodes_of(graph):
            before = self.before.get(node.name)
            if before is None or before.op_type != node.op_type:
                continue
            node.doc_string = before.doc_string
            node.overload = before.overload
            node.metadata_props.extend(before.metadata_props)
            present = {attribute.name for attribute in node.attribute}
            node.attribute.extend(
                attribute
                for attribute in before.attribute
                if attribute.name not in present and (node.name, attribute.name) not in self.dropped
            )
        self._lift(graph)
        del graph.value_info[:]
        names = {tensor.name for tensor in graph.initializer} | {name for node in graph.node for name in node.output}
        graph.quantization_annotation.extend(
            annotation for annotation in old.quantization_annotation if annotation.tensor_name in names
        )

    def _lift(self, graph: onnx.GraphProto) -> None:
        """Moves initializers back that graphsurgeon has moved into the subgraphs that use them."""
        own = {
            tensor.name
            for node in self._proto.graph.node
            for subgraph in _all_subgraphs(node)
            for tensor in subgraph.initializer
        }
        taken = {tensor.name for tensor in graph.initializer}
        for node in graph.node:
            for subgraph in _all_subgraphs(node):
                lifted = [tensor for tensor in subgraph.initializer if tensor.name not in own]
                for tensor in lifted:
                    if tensor.name not in taken:
                        taken.add(tensor.name)
                        graph.initializer.append(tensor)
                kept = [tensor for tensor in subgraph.initializer if tensor.name in own]
                del subgraph.initializer[:]
                subgraph.initializer.extend(kept)


def _all_subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for subgraph in subgraphs_of(node):
        yield subgraph
        for inner in subgraph.node:
            yield from _all_subgraphs(inner)
