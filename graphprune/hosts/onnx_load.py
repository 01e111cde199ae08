"""Loading of ONNX models: what is untrusted is checked before anything is allocated, then the model is normalised.

After :func:`load_model` a model is sorted and holds no functions, every Constant node and every initializer of a
subgraph is an initializer of the main graph where ONNX allows it, no initializer is an input or sparse, and all nodes
and values have unique names, so that edits can address them. Weights stay where they are: mapped from external data,
or in the file's own protobuf message.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx_ir.external_data import set_base_dir
from onnx_ir.passes import common as passes

from graphprune.errors import ModelError
from graphprune.hosts.onnx_copies import untie_constants
from graphprune.hosts.onnx_held import what_is_held

MINIMUM_OPSET = 9
"""The oldest opset whose operators the rules still describe; older models are converted to :data:`CONVERTED_OPSET`."""
CONVERTED_OPSET = 11
MAXIMUM_ELEMENTS = 1 << 40
MAXIMUM_DENSE_ELEMENTS = 1 << 28
"""Largest sparse initializer that is made dense."""

_DEFAULT_DOMAINS = ("", "ai.onnx")


def load_model(source: str | Path | onnx.ModelProto) -> tuple[ir.Model, frozenset[Path]]:
    """Loads and normalises a model.

    Args:
        source: A ``.onnx`` file or a model in memory (which is left as it is).

    Returns:
        The model, and the external data files that its weights are mapped from.

    Raises:
        ModelError: The model is malformed, unsafe or of an unsupported version.
    """
    if isinstance(source, onnx.ModelProto):
        proto = onnx.ModelProto()
        proto.CopyFrom(source)
        where, folder = "the model in memory", None
    else:
        path = Path(source)
        proto = _read(path)
        where, folder = f"'{path}'", path.resolve().parent
    files = validate(proto, where, folder)
    held = what_is_held(proto)
    for graph in _graphs(proto.graph):
        _make_dense(graph, where)
    proto = _converted(proto, where)
    annotations = list(proto.graph.quantization_annotation)
    stored = {tensor.name for tensor in proto.graph.initializer}
    # before version 4 every initializer had to be an input, which says nothing
    defaults = [value for value in proto.graph.input if value.name in stored] if proto.ir_version >= 4 else []
    try:
        model = ir.serde.deserialize_model(proto)
    except (ValueError, TypeError, KeyError, RuntimeError, ir.serde.SerdeError) as error:
        raise ModelError(
            f"the graph of {where} cannot be read: {_first_line(error)}; check it with onnx.checker.check_model"
        ) from error
    if folder is not None:
        set_base_dir(model.graph, str(folder))
    _normalise(model, where)
    model.meta["quantization_annotation"] = annotations
    model.meta["defaults"] = defaults
    model.meta["held"] = held
    return model, files


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _read(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise ModelError(f"no file '{path}'; give the path of an ONNX model")
    data = path.read_bytes()
    advice = "download or export it again"
    if not data:
        raise ModelError(f"'{path}' is not an ONNX model: the file is empty; {advice}")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(
            f"'{path}' is not an ONNX model, or it is cut off after {len(data)} bytes; {advice}"
        ) from error
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise ModelError(f"'{path}' is not an ONNX model: its message holds no graph; {advice}")
    return proto


# -- validation --------------------------------------------------------------------------------------------------


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)
            elif attribute.type == onnx.AttributeProto.GRAPHS:
                for each in attribute.graphs:
                    yield from _graphs(each)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    for each in _graphs(graph):
        yield from each.initializer
        for node in each.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:
                    yield attribute.t
                elif attribute.type == onnx.AttributeProto.TENSORS:
                    yield from attribute.tensors


def validate(proto: onnx.ModelProto, where: str, folder: Path | None) -> frozenset[Path]:
    """Checks what a loader must not take on trust; reads no weight.

    Args:
        proto: The model as parsed, external data not loaded.
        where: What to call it in messages.
        folder: The folder that external data may lie in; ``None`` for a model in memory, which may have none.

    Returns:
        The external data files.

    Raises:
        ModelError: See the messages.
    """
    opsets = {"" if entry.domain in _DEFAULT_DOMAINS else entry.domain: entry.version for entry in proto.opset_import}
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
    for graph in _graphs(proto.graph):
        names: set[str] = set()
        for tensor in (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)):
            if tensor.name in names:
                raise ModelError(
                    f"{where} has two initializers named '{tensor.name}'; expected unique names; rename one"
                )
            names.add(tensor.name)
    files = {_check_tensor(tensor, where, folder) for tensor in _tensors(proto.graph)}
    return frozenset(file for file in files if file is not None)


def _check_tensor(tensor: onnx.TensorProto, where: str, folder: Path | None) -> Path | None:
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
            f"{place} has the shape {dims}, expected sizes of at least 0 and at most {MAXIMUM_ELEMENTS} elements; "
            "the file is damaged"
        )
    if dtype == ir.DataType.STRING:
        return None
    n_bytes = -(-prod(dims) * dtype.bitwidth // 8)
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        if tensor.HasField("raw_data") and len(tensor.raw_data) != n_bytes:
            raise ModelError(
                f"{place} holds {len(tensor.raw_data)} bytes, expected {n_bytes} for its shape {dims}; "
                "the file is damaged"
            )
        return None
    return _check_external(tensor, place, folder, n_bytes)


def _check_external(tensor: onnx.TensorProto, place: str, folder: Path | None, n_bytes: int) -> Path:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise ModelError(
            f"{place} keeps its data in '{location}', which has no folder; give the path of the model's file"
        )
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


def _make_dense(graph: onnx.GraphProto, where: str) -> None:
    """Replaces sparse initializers by dense ones, which can be cut."""
    for sparse in graph.sparse_initializer:
        place = f"sparse initializer '{sparse.values.name}' of {where}"
        for part in (sparse.values, sparse.indices):
            if part.data_location == onnx.TensorProto.EXTERNAL:
                raise ModelError(f"{place} keeps its data in another file; store it in the model")
            _check_tensor(part, place, None)
        shape = tuple(sparse.dims)
        if any(size < 0 for size in shape) or prod(shape) > MAXIMUM_DENSE_ELEMENTS:
            raise ModelError(
                f"{place} has the shape {list(shape)}, expected at most {MAXIMUM_DENSE_ELEMENTS} elements; "
                "make it dense"
            )
        values, indices = (onnx.numpy_helper.to_array(part) for part in (sparse.values, sparse.indices))
        inside = indices.ndim in (1, 2) and len(indices) == len(values) and bool((indices >= 0).all())
        if inside and indices.ndim == 2:
            inside = indices.shape[1] == len(shape) and bool((indices < np.array(shape)).all())
        elif inside:
            inside = bool((indices < prod(shape)).all())
        if not inside:
            raise ModelError(f"{place} has indices outside its shape {list(shape)}; the file is damaged")
        dense = np.zeros(shape, values.dtype)
        dense[tuple(indices.T) if indices.ndim == 2 else np.unravel_index(indices, shape)] = values
        graph.initializer.append(onnx.numpy_helper.from_array(dense, sparse.values.name))
    del graph.sparse_initializer[:]


def _converted(proto: onnx.ModelProto, where: str) -> onnx.ModelProto:
    opset = next(entry.version for entry in proto.opset_import if entry.domain in _DEFAULT_DOMAINS)
    if opset >= MINIMUM_OPSET:
        return proto
    try:
        return onnx.version_converter.convert_version(proto, CONVERTED_OPSET)
    except Exception as error:  # the converter raises bare RuntimeErrors and its own ConvertErrors
        raise ModelError(
            f"{where} has opset {opset} and cannot be converted to {CONVERTED_OPSET}: {_first_line(error)}; "
            "export it with a newer opset"
        ) from error


# -- normalisation -----------------------------------------------------------------------------------------------


def _normalise(model: ir.Model, where: str) -> None:
    steps = ir.passes.Sequential(
        passes.InlinePass(),
        passes.TopologicalSortPass(),
        passes.RemoveInitializersFromInputsPass(),
        passes.NameFixPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(),
    )
    try:
        steps(model)
    except Exception as error:
        raise ModelError(
            f"the graph of {where} cannot be normalised: {_first_line(error)}; check it with onnx.checker.check_model"
        ) from error
    model.ir_version = max(4, model.ir_version or 4)  # before version 4 initializers must be inputs
    _name_nodes(model)
    _bypass_identities(model)
    untie_constants(model)


def _name_nodes(model: ir.Model) -> None:
    """Gives nodes without a name the name of their result; the names of all graphs together are unique."""
    taken = {node.name for node in ir.traversal.RecursiveGraphIterator(model.graph) if node.name}
    seen: set[str] = set()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        name = node.name or ""
        if not name or name in seen:
            base = name or f"{node.op_type}:{next((output.name for output in node.outputs if output.name), '')}"
            name, n = base, 0
            while name in taken:
                n += 1
                name = f"{base}_{n}"
            node.name = name
        taken.add(name)
        seen.add(name)


def _bypass_identities(model: ir.Model) -> None:
    """Lets uses of ``Identity(initializer)`` use the initializer: exporters write shared weights like this."""
    for node in list(model.graph):
        if node.op_type != "Identity" or node.domain not in _DEFAULT_DOMAINS:
            continue
        source, result = node.inputs[0], node.outputs[0]
        if source is None or not source.is_initializer() or result.is_graph_output():
            continue
        result.replace_all_uses_with(source)
        model.graph.remove(node, safe=True)
