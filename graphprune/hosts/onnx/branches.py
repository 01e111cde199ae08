"""Branches laid flat: the bodies of ``If`` nodes among the nodes of the graph, and back again for whoever runs it.

A host keeps its graph flat, so that inference, analysis, edits and masks see the nodes of both branches like all
others. Where an ``If`` was stands a :data:`JOIN`: the condition, then the results of the one branch, then those of
the other. A node remembers its branch in its metadata; a node that was added later belongs where what it reads is
made. Names are unique across all graphs of a loaded model, which is what makes this so simple.

Bodies of loops stay where they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx

from graphprune.hosts.messages import operands_of
from graphprune.hosts.onnx.ops.values import JOIN, JOIN_DOMAIN, Partial

_BRANCH = "graphprune.branch"
_SIDES = ("then_branch", "else_branch")


def flat(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the branches of its ``If`` nodes laid flat; the same object if it has none."""
    if not any(_is_if(node) for node in proto.graph.node):
        return proto
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    del result.graph.node[:]
    result.graph.node.extend(node for old in proto.graph.node for node in _opened(old, result.graph))
    result.opset_import.add(domain=JOIN_DOMAIN, version=1)
    return result


def _is_if(node: onnx.NodeProto) -> bool:
    return node.op_type == "If" and node.domain in ("", "ai.onnx")


def _opened(node: onnx.NodeProto, graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    if not _is_if(node):
        yield node
        return
    sides = {attribute.name: attribute.g for attribute in node.attribute}
    for side in _SIDES:
        graph.initializer.extend(sides[side].initializer)
        graph.quantization_annotation.extend(sides[side].quantization_annotation)
        for inner in sides[side].node:
            mine = onnx.NodeProto()
            mine.CopyFrom(inner)
            for opened in _opened(mine, graph):
                if not _branch_of(opened):
                    opened.metadata_props.add(key=_BRANCH, value=f"{side}:{node.name}")
                yield opened
    join = onnx.NodeProto(op_type=JOIN, domain=JOIN_DOMAIN, name=node.name, doc_string=node.doc_string)
    join.metadata_props.extend(node.metadata_props)
    join.input.append(node.input[0])
    for side in _SIDES:
        join.input.extend(value.name for value in sides[side].output)
    join.output.extend(node.output)
    yield join


def _branch_of(node: onnx.NodeProto) -> str:
    return next((entry.value for entry in node.metadata_props if entry.key == _BRANCH), "")


def _move(node: onnx.NodeProto, branch: str) -> None:
    for entry in [entry for entry in node.metadata_props if entry.key == _BRANCH]:
        node.metadata_props.remove(entry)
    if branch:
        node.metadata_props.add(key=_BRANCH, value=branch)


def decided(proto: onnx.ModelProto, values: Mapping[str, Partial]) -> onnx.ModelProto | None:
    """The flat model without the branches whose condition is known; ``None`` if there are none."""
    known = {
        node.name: bool(value.values.ravel()[0])
        for node in proto.graph.node
        if node.domain == JOIN_DOMAIN and (value := values.get(node.input[0])) is not None and value.constant
    }
    if not known:
        return None
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    del result.graph.node[:]
    outer = {node.name: _branch_of(node) for node in proto.graph.node if node.name in known}

    def outward(branch: str) -> str:
        while branch.partition(":")[2] in outer:
            branch = outer[branch.partition(":")[2]]
        return branch

    for node in proto.graph.node:
        if node.name not in known:
            result.graph.node.append(node)
            _move(result.graph.node[-1], outward(_branch_of(node)))
            continue
        n = len(node.output)
        taken = node.input[1 : 1 + n] if known[node.name] else node.input[1 + n :]
        for i, (source, target) in enumerate(zip(taken, node.output, strict=True)):
            if target:
                result.graph.node.append(onnx.helper.make_node("Identity", [source], [target], f"{node.name}:{i}"))
                _move(result.graph.node[-1], outward(outer[node.name]))
    return result


def nested(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model as ONNX writes it, with branches in their ``If`` nodes; the same object if it has none."""
    if not any(node.domain == JOIN_DOMAIN for node in proto.graph.node):
        return proto
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    homes = _homes(proto.graph)
    members: dict[str, list[onnx.NodeProto]] = {}
    for node in proto.graph.node:
        members.setdefault(homes[node.name], []).append(node)
    made_in = {name: homes[node.name] for node in proto.graph.node for name in node.output if name}
    del result.graph.node[:]
    result.graph.node.extend(_closed(node, members, made_in) for node in members.get("", ()))
    for entry in [entry for entry in result.opset_import if entry.domain == JOIN_DOMAIN]:
        result.opset_import.remove(entry)
    return result


def in_branches(graph: onnx.GraphProto) -> frozenset[str]:
    """The names of the nodes that lie in branches."""
    homes = _homes(graph) if any(node.domain == JOIN_DOMAIN for node in graph.node) else {}
    return frozenset(name for name, home in homes.items() if home)


def outside_branches(graph: onnx.GraphProto) -> frozenset[str]:
    """The values that are made in the main graph."""
    homes = _homes(graph) if any(node.domain == JOIN_DOMAIN for node in graph.node) else {}
    return frozenset(name for node in graph.node if not homes.get(node.name) for name in node.output if name)


def _homes(graph: onnx.GraphProto) -> dict[str, str]:
    """The branch of each node, ``""`` for the main graph."""
    declared = {node.name: _branch_of(node) for node in graph.node}
    depth = {"": 0}

    def deep(branch: str) -> int:
        if branch not in depth:
            depth[branch] = 1 + deep(declared[branch.partition(":")[2]])
        return depth[branch]

    homes: dict[str, str] = {}
    made_in: dict[str, str] = {}
    for node in graph.node:
        home = declared[node.name]
        if not home and node.domain != JOIN_DOMAIN:  # perhaps added
            home = max((made_in.get(name, "") for name in operands_of(node)), key=deep, default="")
        homes[node.name] = home
        made_in.update((name, home) for name in node.output if name)
    return homes


def _closed(
    node: onnx.NodeProto, members: Mapping[str, list[onnx.NodeProto]], made_in: Mapping[str, str]
) -> onnx.NodeProto:
    result = onnx.NodeProto()
    result.CopyFrom(node)
    for entry in [entry for entry in result.metadata_props if entry.key == _BRANCH]:
        result.metadata_props.remove(entry)
    if node.domain != JOIN_DOMAIN:
        return result
    result.op_type, result.domain = "If", ""
    del result.input[1:]
    n = len(node.output)
    for i, side in enumerate(_SIDES):
        branch = f"{side}:{node.name}"
        body = onnx.GraphProto(name=f"{node.name}_{side}")
        body.node.extend(_closed(inner, members, made_in) for inner in members.get(branch, ()))
        for k, source in enumerate(node.input[1 + i * n : 1 + (i + 1) * n]):
            name = source
            if made_in.get(source) != branch or any(value.name == source for value in body.output):
                name = f"{node.name}:{side}:{k}"  # made outside, or a result already
                body.node.append(onnx.helper.make_node("Identity", [source], [name], name))
            body.output.add(name=name)
        result.attribute.append(onnx.helper.make_attribute(side, body))
    return result
