"""What a loader must not take on trust, checked on the parsed message before anything else sees the model.

Every tensor of every graph, function, attribute and sparse tensor; counts of operators after functions are inlined;
names and texts. No weight is read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from math import prod
from pathlib import Path

import onnx
import onnx_ir as ir

from graphprune.bounds import present
from graphprune.errors import BoundError, ModelError

MAXIMUM_ELEMENTS = 1 << 40
MAXIMUM_RANK = 64
"""What NumPy takes."""
DEFAULT_DOMAINS = ("", "ai.onnx")

_FIELDS: Mapping[int, str] = {
    onnx.TensorProto.FLOAT: "float_data",
    onnx.TensorProto.COMPLEX64: "float_data",
    onnx.TensorProto.DOUBLE: "double_data",
    onnx.TensorProto.COMPLEX128: "double_data",
    onnx.TensorProto.INT64: "int64_data",
    onnx.TensorProto.UINT32: "uint64_data",
    onnx.TensorProto.UINT64: "uint64_data",
    onnx.TensorProto.STRING: "string_data",
}
"""Where the elements of a type stand that are not raw bytes; those of all others in ``int32_data``."""
_PARTS: Mapping[int, int] = {onnx.TensorProto.COMPLEX64: 2, onnx.TensorProto.COMPLEX128: 2}


def validate(proto: onnx.ModelProto, where: str, folder: Path | None) -> frozenset[Path]:
    """Checks a model.

    Args:
        proto: The model as parsed, external data not loaded.
        where: What to call it in messages.
        folder: The folder that external data may lie in; ``None`` for a model in memory, which may have none.

    Returns:
        The external data files.

    Raises:
        ModelError: See the messages.
    """
    try:
        return _validated(proto, where, folder)
    except UnicodeError as error:
        raise ModelError(f"{where} holds a name or text that is not UTF-8; the file is damaged") from error
    except RecursionError as error:
        raise ModelError(f"{where} nests graphs or types too deeply; the file is damaged") from error


def _validated(proto: onnx.ModelProto, where: str, folder: Path | None) -> frozenset[Path]:
    _check_versions(proto, where)
    _check_counts(proto, where)
    for graph in graphs(proto):
        names: set[str] = set()
        for tensor in (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)):
            if tensor.name in names:
                raise ModelError(
                    f"{where} has two initializers named '{tensor.name}'; expected unique names; rename one"
                )
            names.add(tensor.name)
        _check_values(graph, where)
    for node in nodes(proto):
        _check_node(node, where)
    for graph in _with_inner(proto.graph):
        _check_references(graph.node, where)
    _check_names(proto.graph, frozenset(), where)
    for function in proto.functions:
        _check_text(function.domain, function.name, *function.input, *function.output, *function.attribute)
        _check_reads(function.node, {*function.input}, [*function.output], where)
    files = {_check_tensor(tensor, where, folder) for tensor in tensors(proto)}
    for sparse in sparse_tensors(proto):
        for part in (sparse.values, sparse.indices):
            _check_tensor(part, where, None, what="a sparse tensor may not keep its data in another file")
    return frozenset(file for file in files if file is not None)


# -- what a model holds ----------------------------------------------------------------------------------------------


def _inner(node_list: Sequence[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    for node in node_list:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _with_inner(attribute.g)
            for each in attribute.graphs:
                yield from _with_inner(each)


def _with_inner(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    yield from _inner(graph.node)


def graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """All graphs: the main one, bodies of branches and loops, those inside functions and of training."""
    yield from _with_inner(proto.graph)
    for function in proto.functions:
        yield from _inner(function.node)
        for attribute in function.attribute_proto:
            for each in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _with_inner(each)
    for training in proto.training_info:
        yield from _with_inner(training.initialization)
        yield from _with_inner(training.algorithm)


def nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """All nodes of all graphs and functions."""
    for graph in graphs(proto):
        yield from graph.node
    for function in proto.functions:
        yield from function.node


def _attributes(proto: onnx.ModelProto) -> Iterator[onnx.AttributeProto]:
    for node in nodes(proto):
        yield from node.attribute
    for function in proto.functions:
        yield from function.attribute_proto


def tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All dense tensors, whatever the type that an attribute claims to have."""
    for graph in graphs(proto):
        yield from graph.initializer
    for attribute in _attributes(proto):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors


def sparse_tensors(proto: onnx.ModelProto) -> Iterator[onnx.SparseTensorProto]:
    """All sparse tensors."""
    for graph in graphs(proto):
        yield from graph.sparse_initializer
    for attribute in _attributes(proto):
        if attribute.HasField("sparse_tensor"):
            yield attribute.sparse_tensor
        yield from attribute.sparse_tensors


# -- checks ----------------------------------------------------------------------------------------------------------


def _check_versions(proto: onnx.ModelProto, where: str) -> None:
    opsets = {"" if entry.domain in DEFAULT_DOMAINS else entry.domain: entry.version for entry in proto.opset_import}
    newest = onnx.defs.onnx_opset_version()
    opset = opsets.get("")
    if opset is None:
        raise ModelError(
            f"{where} names no opset of the default domain; expected one from 1 to {newest}; export it again"
        )
    if not 1 <= opset <= newest:
        raise ModelError(
            f"{where} has opset {opset}, expected 1 to {newest}; convert it with onnx.version_converter or update onnx"
        )
    if not 3 <= proto.ir_version <= onnx.IR_VERSION:
        raise ModelError(
            f"{where} has IR version {proto.ir_version}, expected 3 to {int(onnx.IR_VERSION)}; "
            "export it again or update onnx"
        )


def _check_counts(proto: onnx.ModelProto, where: str) -> None:
    """Counts operators and stored tensors as they will be when functions are inlined, without inlining them."""
    bounds = present()
    functions = {(function.domain, function.name, function.overload): function for function in proto.functions}
    known: dict[tuple[str, str, str], int] = {}

    def inlined(key: tuple[str, str, str], open_calls: tuple[tuple[str, str, str], ...]) -> int:
        if key in open_calls:
            raise ModelError(f"function '{key[1]}' of {where} calls itself; expected functions that end; mend the file")
        if key not in known:
            known[key] = sum(_calls(functions[key].node, (*open_calls, key)))
        return known[key]

    def _calls(node_list: Sequence[onnx.NodeProto], open_calls: tuple[tuple[str, str, str], ...]) -> Iterator[int]:
        for node in node_list:
            key = (node.domain, node.op_type, node.overload)
            yield inlined(key, open_calls) if key in functions else 1
            for attribute in node.attribute:
                for graph in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                    yield from _calls(graph.node, open_calls)

    stored = sum(len(graph.initializer) + len(graph.sparse_initializer) for graph in graphs(proto))
    for what, name, n, most in (
        ("operators, functions inlined", "nodes", sum(_calls(proto.graph.node, ())), bounds.nodes),
        ("stored tensors", "tensors", stored, bounds.tensors),
    ):
        if n > most:
            raise BoundError(f"{where} has {n} {what}, expected at most {most}; allow more with --bound {name}={n}")


def _check_values(graph: onnx.GraphProto, where: str) -> None:
    """Checks the inputs and outputs of a graph: named, and of a size that can be meant."""
    for value in (*graph.input, *graph.output):
        if not value.name:
            raise ModelError(f"an input or output of {where} has no name; the file is damaged")
        if not value.type.HasField("tensor_type"):
            continue
        dims = value.type.tensor_type.shape.dim
        sizes = [dim.dim_value for dim in dims if dim.HasField("dim_value")]
        if len(dims) > MAXIMUM_RANK or prod(size for size in sizes if size > 0) > MAXIMUM_ELEMENTS:
            raise ModelError(
                f"'{value.name}' of {where} has {len(dims)} axes of sizes {sizes[:8]}, expected at most {MAXIMUM_RANK} "
                f"axes and {MAXIMUM_ELEMENTS} elements; the file is damaged"
            )


def _check_text(*texts: str) -> None:
    if not all(isinstance(text, str) for text in texts):  # what is not UTF-8 comes out of some parsers as bytes,
        raise UnicodeError("bytes")
    "".join(texts).encode()  # and out of others as something that cannot be encoded


def _check_node(node: onnx.NodeProto, where: str) -> None:
    _check_text(
        node.op_type, node.domain, node.name, *node.input, *node.output, *(each.name for each in node.attribute)
    )
    if not node.op_type:
        raise ModelError(f"a node of {where} ('{node.name}') has no operator; the file is damaged")
    _check_branches(node, where)


def _check_references(node_list: Sequence[onnx.NodeProto], where: str) -> None:
    """Checks that no attribute outside of functions stands for one of a function's."""
    for node in node_list:
        for attribute in node.attribute:
            if attribute.ref_attr_name:
                raise ModelError(
                    f"attribute '{attribute.name}' of node '{node.name}' ({node.op_type}) of {where} refers to "
                    f"'{attribute.ref_attr_name}' of a function, and stands in none; the file is damaged"
                )


def _check_names(graph: onnx.GraphProto, outer: AbstractSet[str], where: str) -> None:
    """Checks that all that is read is given by something: by an input, a stored tensor, a node, or an outer graph."""
    given = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    given.update(sparse.values.name for sparse in graph.sparse_initializer)
    _check_text(*given, *(value.name for value in graph.output))
    _check_reads(graph.node, given | outer, [value.name for value in graph.output], where)


def _check_reads(node_list: Sequence[onnx.NodeProto], given: set[str], outputs: list[str], where: str) -> None:
    known = given | {name for node in node_list for name in node.output if name}
    for node in node_list:
        if lost := next((name for name in node.input if name and name not in known), None):
            raise ModelError(
                f"node '{node.name}' ({node.op_type}) of {where} reads '{lost}', which nothing gives; "
                "the file is damaged"
            )
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                _check_names(inner, known, where)
    if lost := next((name for name in outputs if name not in known), None):
        raise ModelError(f"'{lost}' is an output of {where}, and nothing gives it; the file is damaged")


_BODIES = {"If": ("then_branch", "else_branch"), "Loop": ("body",), "Scan": ("body",)}


def _check_branches(node: onnx.NodeProto, where: str) -> None:
    wanted = _BODIES.get(node.op_type, ()) if node.domain in DEFAULT_DOMAINS else ()
    held = {attribute.name for attribute in node.attribute if attribute.HasField("g") or attribute.ref_attr_name}
    for name in wanted:
        if name not in held:
            raise ModelError(f"node '{node.name}' ({node.op_type}) of {where} has no '{name}'; the file is damaged")
    if node.op_type == "If" and wanted and (len(node.input) != 1 or not node.input[0]):
        raise ModelError(f"node '{node.name}' (If) of {where} has no condition; the file is damaged")


def _check_tensor(
    tensor: onnx.TensorProto,
    where: str,
    folder: Path | None,
    what: str = "give the path of the model's file",
) -> Path | None:
    """Checks the header of a tensor; returns its external data file, if any."""
    place = f"tensor '{tensor.name}' of {where}"
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        dtype = ir.DataType.UNDEFINED
    if dtype == ir.DataType.UNDEFINED:
        raise ModelError(
            f"{place} has the unknown element type {tensor.data_type}; update onnx or export the model again"
        )
    dims = list(tensor.dims)
    if any(dim < 0 for dim in dims) or prod(dims) > MAXIMUM_ELEMENTS:
        raise ModelError(
            f"{place} has the shape {dims[:8]}, expected sizes of at least 0 and at most {MAXIMUM_ELEMENTS} elements; "
            "the file is damaged"
        )
    if len(dims) > MAXIMUM_RANK:
        raise ModelError(f"{place} has {len(dims)} axes, expected at most {MAXIMUM_RANK}; the file is damaged")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        if dtype == ir.DataType.STRING:
            raise ModelError(f"{place} keeps texts in another file, which ONNX does not allow; the file is damaged")
        return _check_external(tensor, place, folder, -(-prod(dims) * dtype.bitwidth // 8), what)
    if dtype == ir.DataType.STRING:
        n_bytes = 0
    else:
        n_bytes = -(-prod(dims) * dtype.bitwidth // 8)
        if tensor.HasField("raw_data"):
            if len(tensor.raw_data) != n_bytes:
                raise ModelError(
                    f"{place} holds {len(tensor.raw_data)} bytes, expected {n_bytes} for its shape {dims}; "
                    "the file is damaged"
                )
            return None
    field = _FIELDS.get(tensor.data_type, "int32_data")
    expected = prod(dims) * _PARTS.get(tensor.data_type, 1)
    if field == "int32_data" and dtype.bitwidth < 8:
        expected = n_bytes
    held = len(getattr(tensor, field))
    if held != expected:
        raise ModelError(
            f"{place} holds {held} elements in '{field}', expected {expected} for its shape {dims}; the file is damaged"
        )
    return None


def _check_external(tensor: onnx.TensorProto, place: str, folder: Path | None, n_bytes: int, what: str) -> Path:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise ModelError(f"{place} keeps its data in '{location}', which has no folder; {what}")
    advice = "external data must be a plain file in the model's folder"
    relative = Path(location)
    if not location or relative.is_absolute() or ".." in relative.parts or "\\" in location or "\0" in location:
        raise ModelError(f"{place} keeps its data in '{location}', outside the model's folder; {advice}")
    path = folder / relative
    step = folder
    for part in relative.parts:
        step = step / part
        if step.is_symlink():
            raise ModelError(f"{place} keeps its data in '{location}', which is a symbolic link; {advice}")
    try:
        info = os.lstat(path)
    except OSError as error:
        raise ModelError(
            f"{place} keeps its data in '{location}', which is missing; put it beside the model"
        ) from error
    if not stat.S_ISREG(info.st_mode) or info.st_nlink != 1:
        raise ModelError(
            f"{place} keeps its data in '{location}', which is a device, a folder or a hard link; {advice}"
        )
    try:
        offset = int(entries.get("offset") or 0)
        length = int(entries["length"]) if entries.get("length") else n_bytes
    except ValueError as error:
        raise ModelError(f"{place} has an offset or length that is no number; the file is damaged") from error
    if length != n_bytes:
        raise ModelError(
            f"{place} has {length} bytes of external data, expected {n_bytes} for its shape {list(tensor.dims)}; "
            "the file is damaged"
        )
    if offset < 0 or offset + length > info.st_size:
        raise ModelError(
            f"{place} lies at bytes {offset} to {offset + length} of '{location}', which has {info.st_size}; "
            "the file is cut off or damaged"
        )
    return path
