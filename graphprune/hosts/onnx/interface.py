"""What users of a file see before they run it: inputs, outputs, versions of operators, metadata; and what is odd in it.

Read from the message itself, before anything is normalised.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import onnx

from graphprune.hosts.onnx.contents import DEFAULT_DOMAINS, graphs_of

OWN_METADATA = ("graphprune.version", "graphprune.targets", "graphprune.fingerprint")
"""What graphprune notes for itself; everything else in the metadata is for those who use the file."""

_OWN = "graphprune."

_MADE_UP = r"s\d+"
"""Names that ``torch.export`` gives to dynamic axes, another one in each version."""

_FIELDS = {
    onnx.AttributeProto.FLOAT: "f",
    onnx.AttributeProto.INT: "i",
    onnx.AttributeProto.STRING: "s",
    onnx.AttributeProto.TENSOR: "t",
    onnx.AttributeProto.GRAPH: "g",
    onnx.AttributeProto.SPARSE_TENSOR: "sparse_tensor",
    onnx.AttributeProto.TYPE_PROTO: "tp",
    onnx.AttributeProto.FLOATS: "floats",
    onnx.AttributeProto.INTS: "ints",
    onnx.AttributeProto.STRINGS: "strings",
    onnx.AttributeProto.TENSORS: "tensors",
    onnx.AttributeProto.GRAPHS: "graphs",
    onnx.AttributeProto.SPARSE_TENSORS: "sparse_tensors",
    onnx.AttributeProto.TYPE_PROTOS: "type_protos",
}
_DATA = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


@dataclass(frozen=True, slots=True)
class Interface:
    """How the interface of a file differs from what it should be.

    Attributes:
        differences: What is wrong whoever wrote the file.
        written: What only another exporter may write otherwise.
        notes: What may differ, for the reader.
    """

    differences: tuple[str, ...]
    written: tuple[str, ...]
    notes: tuple[str, ...]


def interface(file: onnx.ModelProto, plan: onnx.ModelProto) -> Interface:
    """Compares the interface of a file with that of the model that the plan makes.

    Args:
        file: The file, as parsed.
        plan: What graphprune writes, as parsed.
    """
    wrong: list[str] = []
    written: list[str] = []
    notes: list[str] = []
    axes: dict[tuple[str, str], None] = {}
    for what, mine, theirs in (
        ("input", list(_inputs(file)), list(_inputs(plan))),
        ("output", list(file.graph.output), list(plan.graph.output)),
    ):
        names, expected = [value.name for value in mine], [value.name for value in theirs]
        if names != expected:
            wrong.append(f"the {what}s are {_listed(names)} instead of {_listed(expected)}")
            continue
        for one, other in zip(mine, theirs, strict=True):
            found = _types(one.type, other.type, axes)
            open_only = what == "output" and found and _leaves_open(one.type, other.type)
            (written if open_only else wrong).extend(f"{what} '{one.name}' {each}" for each in found)
    renamed = [f"'{a}' (was '{b}')" for a, b in axes if a != b]
    if renamed and len({a for a, _ in axes}) == len({b for _, b in axes}) == len(axes):
        invented = all(re.fullmatch(_MADE_UP, b) for a, b in axes if a != b)
        (notes if invented else written).append(f"dynamic axes are named {', '.join(renamed)}")
    elif renamed:
        wrong.append(f"dynamic axes are tied otherwise: {', '.join(renamed)}")
    for domain, (mine_at, theirs_at) in _opsets(file, plan).items():
        if mine_at != theirs_at:
            place = f"operators of domain '{domain or 'ai.onnx'}'"
            written.append(f"{place} are of opset {mine_at or 'none'} instead of {theirs_at or 'none'}")
    _metadata(file, plan, wrong, written, notes)
    return Interface(tuple(wrong), tuple(written), tuple(notes))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"


def _inputs(model: onnx.ModelProto) -> Iterator[onnx.ValueInfoProto]:
    """The inputs; before version 4 every stored tensor had to be one, which says nothing."""
    stored = {tensor.name for tensor in model.graph.initializer} if model.ir_version < 4 else set()
    return (value for value in model.graph.input if value.name not in stored)


def _types(mine: onnx.TypeProto, theirs: onnx.TypeProto, axes: dict[tuple[str, str], None]) -> list[str]:
    """How a type differs, as ends of sentences; notes the names of dynamic axes that stand in the same place."""
    kind = mine.WhichOneof("value")
    if kind != theirs.WhichOneof("value"):
        return [f"is a {kind} instead of a {theirs.WhichOneof('value')}"]
    if kind not in ("tensor_type", "sparse_tensor_type"):
        same = mine.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)
        return [] if same else [f"has another {kind}"]
    one, other = getattr(mine, kind), getattr(theirs, kind)
    found = []
    if one.elem_type != other.elem_type:
        names = [onnx.helper.tensor_dtype_to_string(each.elem_type).rpartition(".")[2] for each in (one, other)]
        found.append(f"holds {names[0]} instead of {names[1]}")
    shapes = [[_size(dim) for dim in each.shape.dim] if each.HasField("shape") else None for each in (one, other)]
    if shapes[0] is None or shapes[1] is None or len(shapes[0]) != len(shapes[1]):
        return found if shapes[0] == shapes[1] else [*found, f"has shape {shapes[0]} instead of {shapes[1]}"]
    pairs = list(zip(shapes[0], shapes[1], strict=True))
    if any(a != b and (isinstance(a, int) or isinstance(b, int) or not a or not b) for a, b in pairs):
        found.append(f"has shape {shapes[0]} instead of {shapes[1]}")
    axes.update({(a, b): None for a, b in pairs if isinstance(a, str) and isinstance(b, str) and a and b})
    return found


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | str:
    return dim.dim_value if dim.WhichOneof("value") == "dim_value" else dim.dim_param


def _leaves_open(mine: onnx.TypeProto, theirs: onnx.TypeProto) -> bool:
    """Whether one of two declared types only says less than the other: a size is open that the other one knows."""
    if mine.WhichOneof("value") != "tensor_type" or theirs.WhichOneof("value") != "tensor_type":
        return False
    one, other = mine.tensor_type, theirs.tensor_type
    if one.elem_type != other.elem_type:
        return False
    if not one.HasField("shape") or not other.HasField("shape"):
        return True
    pairs = list(zip(one.shape.dim, other.shape.dim, strict=False))
    sizes = [(_size(a), _size(b)) for a, b in pairs]
    return len(one.shape.dim) == len(other.shape.dim) and not any(
        isinstance(a, int) and isinstance(b, int) and a != b for a, b in sizes
    )


def _opsets(file: onnx.ModelProto, plan: onnx.ModelProto) -> dict[str, tuple[int | None, int | None]]:
    """The versions of the operators that either model uses."""
    used = {
        "" if node.domain in DEFAULT_DOMAINS else node.domain
        for model in (file, plan)
        for graph in graphs_of(model.graph)
        for node in graph.node
    }
    versions = [
        {"" if each.domain in DEFAULT_DOMAINS else each.domain: each.version for each in model.opset_import}
        for model in (file, plan)
    ]
    return {domain: (versions[0].get(domain), versions[1].get(domain)) for domain in sorted(used)}


def _metadata(
    file: onnx.ModelProto, plan: onnx.ModelProto, wrong: list[str], written: list[str], notes: list[str]
) -> None:
    mine, theirs = ({each.key: each.value for each in model.metadata_props} for model in (file, plan))
    for key in sorted(theirs.keys() - set(OWN_METADATA)):
        if key not in mine and key.startswith(_OWN):
            notes.append(f"the metadata lack '{key}'")
        elif key not in mine:
            written.append(f"the metadata lack '{key}'")
        elif mine[key] != theirs[key]:
            wrong.append(f"the metadata '{key}' differ")
    if added := sorted(mine.keys() - theirs.keys() - set(OWN_METADATA)):
        notes.append(f"metadata were added: {_listed(added)}")


def oddities(model: onnx.ModelProto) -> list[str]:
    """What two readers of a file may understand in two ways, so that no comparison can vouch for it."""
    found = [f"'{name}' is imported twice" for name in _repeated(each.domain for each in model.opset_import)]
    found.extend(f"the metadata '{key}' stand twice" for key in _repeated(each.key for each in model.metadata_props))
    if model.training_info:
        found.append("it brings a training graph")
    called = {(node.domain, node.op_type) for node in _nodes(model)}
    for function in model.functions:
        if function.domain in DEFAULT_DOMAINS:
            found.append(f"function '{function.name}' takes the place of an operator of ONNX")
        elif (function.domain, function.name) not in called:
            found.append(f"function '{function.name}' is called by nothing")
    found.extend(
        f"function '{name}' is defined twice"
        for name in _repeated(f"{each.domain}:{each.name}:{each.overload}" for each in model.functions)
    )
    for node in _nodes(model):
        for name in _repeated(attribute.name for attribute in node.attribute):
            found.append(f"attribute '{name}' of node '{node.name}' stands twice")
        for attribute in node.attribute:
            extra = [
                field.name
                for field, _ in attribute.ListFields()
                if field.name in _FIELDS.values() and field.name != _FIELDS.get(attribute.type)
            ]
            if extra:
                found.append(f"attribute '{attribute.name}' of node '{node.name}' has values of two types")
            for tensor in [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]:
                if tensor.data_location == onnx.TensorProto.EXTERNAL and node.op_type != "Constant":
                    found.append(f"attribute '{attribute.name}' of node '{node.name}' keeps its data in another file")
                found.extend(_two_ways(tensor))
    stored: set[str] = set()
    for graph in graphs_of(model.graph):
        names = [tensor.name for tensor in graph.initializer]
        names.extend(sparse.values.name for sparse in graph.sparse_initializer)
        stored.update(names)
        made = [name for node in graph.node for name in node.output if name]
        found.extend(f"the name '{name}' is given twice" for name in _repeated([*names, *made]))
        for tensor in graph.initializer:
            found.extend(_two_ways(tensor))
    return found


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for graph in graphs_of(model.graph):
        yield from graph.node
    for function in model.functions:
        yield from (node for graph in graphs_of(onnx.GraphProto(node=function.node)) for node in graph.node)


def _two_ways(tensor: onnx.TensorProto) -> list[str]:
    ways = [name for name in _DATA if len(getattr(tensor, name))]
    ways.extend(["raw_data"] if tensor.HasField("raw_data") and tensor.raw_data else [])
    ways.extend(["external_data"] if tensor.external_data else [])
    external = tensor.data_location == onnx.TensorProto.EXTERNAL
    odd = len(ways) > 1 or (external != bool(tensor.external_data))
    return [f"tensor '{tensor.name}' holds data in two ways"] if odd else []


def _repeated(names: Iterable[str]) -> list[str]:
    return [name for name, n in Counter(names).items() if n > 1]
