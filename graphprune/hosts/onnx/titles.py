"""What readers know a file's tensors by, whose own names say nothing: exporters call weights ``val_121``.

For display only: plans and selectors take the names of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace

import onnx

from graphprune.errors import PlanError
from graphprune.hosts.messages import operands_of
from graphprune.ir.graph import Graph
from graphprune.planning.transfer import METADATA, read_origins

_SCOPES, _NAMESPACE = "pkg.torch.onnx.name_scopes", "namespace"
_GENERATED = re.compile(r"(?:.*[_:@])?\d+", re.DOTALL)
"""Names that end in a counter (``val_121``, ``onnx::MatMul_7``, ``12``) are no one's choice."""
_LONGEST = 4096
"""Characters of a text in which names are looked for."""
_LONGEST_TITLE = 200


def titled(graph: Graph, sources: Mapping[str, tuple[str, ...]], proto: onnx.ModelProto) -> Graph:
    """A graph that also says where the sizes of its inputs come from, and what its stored tensors are known by.

    Args:
        graph: The graph.
        sources: By input, for each axis.
        proto: The weightless model that the graph is of.
    """
    values = dict(graph.values)
    values.update(
        (name, replace(values[name], sources=tuple(each))) for name, each in sources.items() if name in values
    )
    for name, title in titles(proto).items():
        value = values.get(name)
        if value is not None and value.stored:
            values[name] = replace(value, title=title[:_LONGEST_TITLE])
    return replace(graph, values=values)


def titles(proto: onnx.ModelProto) -> dict[str, str]:
    """Telling names of stored tensors whose own names say nothing.

    The module's tensor that a file was exported from, where the metadata say so, or else the scope or the name of the
    node that reads the tensor, with its operator: ``encoder.0.mlp (MatMul)``.
    """
    stored = {tensor.name for tensor in proto.graph.initializer}
    found = {name: title for name, title in _origins(proto).items() if name in stored and title != name}
    vague = {name for name in stored - found.keys() if not _tells(name)}
    for node in proto.graph.node if vague else ():
        wanted = vague.intersection(name for name in operands_of(node) if name)
        if wanted and (place := _place(node)):
            found.update((name, f"{place} ({node.op_type})") for name in wanted)
            vague -= wanted
    return found


def _origins(proto: onnx.ModelProto) -> dict[str, str]:
    text = next((entry.value for entry in proto.metadata_props if entry.key == METADATA), "")
    if text:
        with suppress(PlanError):  # what is malformed says nothing; plans that need it are told so
            return {name: origin.name for name, origin in read_origins(text)[1].items()}
    return {}


def _tells(name: str) -> bool:
    """Whether someone chose a name: it holds a scope, or does not end in a counter."""
    return "." in name or ("/" in name) or not _GENERATED.fullmatch(name)


def _place(node: onnx.NodeProto) -> str:
    """The innermost scope of a node, or its name if someone chose it; empty if neither says anything."""
    metadata = {entry.key: entry.value[:_LONGEST] for entry in node.metadata_props}
    if scopes := re.findall(r"'([^']*)'", metadata.get(_SCOPES, "")):
        return _last(scopes[:-1])  # the last one is the call itself
    if metadata.get(_NAMESPACE):
        return _last(part.partition(":")[0] for part in list(_namespaces(metadata[_NAMESPACE]))[:-1])
    if "/" in node.name:  # a path of scopes, ended by the operator
        return _joined([part for part in node.name.split("/") if part][:-1])
    return node.name if "." in node.name or (node.name and not _counted(node)) else ""


def _joined(scopes: list[str]) -> str:
    """One name for scopes in each other: of ``layer1``, ``layer1.0``, ``conv1`` the first is said by the second."""
    following = [*scopes[1:], ""]
    kept = [scope for scope, after in zip(scopes, following, strict=False) if not after.startswith(f"{scope}.")]
    return ".".join(kept)


def _namespaces(text: str) -> Iterator[str]:
    yield from (part.strip() for part in text.split("/"))


def _last(names: Iterable[str]) -> str:
    return next((name for name in reversed([each.strip() for each in names]) if name), "")


def _counted(node: onnx.NodeProto) -> bool:
    """Whether an exporter numbered the node: ``Conv_12``, ``node_conv2d_3``."""
    return _GENERATED.fullmatch(node.name) is not None or node.name.startswith("node_")
