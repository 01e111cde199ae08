"""Loading of ONNX models: what is untrusted is checked before anything is allocated, then the model is normalised.

After :func:`load_model` a model is sorted and holds no functions, every Constant node and every initializer of a
subgraph is an initializer of the main graph where ONNX allows it, no initializer is an input or sparse, and all nodes
and values have unique names, so that edits can address them. Weights stay where they are: mapped from external data,
or in the file's own protobuf message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx_ir.external_data import set_base_dir
from onnx_ir.passes import common as passes

from graphprune.bounds import present
from graphprune.brief import brief
from graphprune.errors import BoundError, ModelError, first_line
from graphprune.files import is_there
from graphprune.hosts.onnx.copies import Uses, untie_constants
from graphprune.hosts.onnx.held import what_is_held
from graphprune.hosts.onnx.plain import taken_as_it_is
from graphprune.hosts.onnx.store import Stored, weightless
from graphprune.hosts.onnx.validate import DEFAULT_DOMAINS as _DEFAULT_DOMAINS
from graphprune.hosts.onnx.validate import MAXIMUM_RANK, graphs, validate

MINIMUM_OPSET = 9
"""The oldest opset whose operators the rules still describe; older models are converted to :data:`CONVERTED_OPSET`."""
CONVERTED_OPSET = 11


@dataclass(frozen=True)
class Loaded:
    """A model in normal form, and what its file says beside.

    Attributes:
        proto: The graph, weightless.
        store: Where its weights are.
        files: The external data files that they are mapped from.
        defaults: Inputs that have a default.
        uses: Of what use each copy of a tensor is that the file stores once.
        held: What the file holds, by metric.
        foreign: By output, the declared type of what is no tensor.
    """

    __repr__ = brief

    proto: onnx.ModelProto
    store: dict[str, Stored]
    files: frozenset[Path]
    defaults: tuple[onnx.ValueInfoProto, ...]
    uses: Uses
    held: Mapping[str, float]
    foreign: Mapping[str, onnx.TypeProto]


def load_model(source: str | Path | onnx.ModelProto) -> Loaded:
    """Loads and normalises a model.

    Args:
        source: A ``.onnx`` file or a model in memory (which is left as it is).

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
    made = 0
    for graph in graphs(proto):
        made = _make_dense(graph, where, made)
    proto = _converted(proto, where)
    annotations = list(proto.graph.quantization_annotation)
    foreign = _without_foreign_types(proto, where)
    stored = {tensor.name for tensor in proto.graph.initializer}
    # before version 4 every initializer had to be an input, which says nothing
    defaults = [value for value in proto.graph.input if value.name in stored] if proto.ir_version >= 4 else []
    uses: Uses = {}
    plain = taken_as_it_is(proto, folder)
    if plain is None:
        model = _read_graph(proto, where, folder)
        _normalise(model, where)
        uses = untie_constants(model)
        plain = weightless(model, annotations)
    return Loaded(*plain, files, tuple(defaults), uses, held, foreign)


def _read_graph(proto: onnx.ModelProto, where: str, folder: Path | None) -> ir.Model:
    try:
        model = ir.serde.deserialize_model(proto)
    except (ValueError, TypeError, KeyError, RuntimeError, ir.serde.SerdeError) as error:
        raise ModelError(
            f"the graph of {where} cannot be read: {first_line(error)}; check it with onnx.checker.check_model"
        ) from error
    if folder is not None:
        set_base_dir(model.graph, str(folder))
    return model


def _without_foreign_types(proto: onnx.ModelProto, where: str) -> dict[str, onnx.TypeProto]:
    """Takes the declared types of outputs that are maps, or hold maps, which :mod:`onnx_ir` cannot read.

    Classifiers of scikit-learn end like this (ZipMap): a map from class to probability for each row.

    Returns:
        The types by output.

    Raises:
        ModelError: An input is or holds a map.
    """
    for value in proto.graph.input:
        if _holds_map(value.type):
            raise ModelError(
                f"input '{value.name}' of {where} is a map, expected a tensor; take what makes a tensor of it "
                "(DictVectorizer, CastMap) out of the model"
            )
    for graph in graphs(proto):
        told = [value for value in graph.value_info if not _holds_map(value.type)]
        del graph.value_info[:]
        graph.value_info.extend(told)
    found = {value.name: onnx.TypeProto() for value in proto.graph.output if _holds_map(value.type)}
    for value in proto.graph.output:
        if value.name in found:
            found[value.name].CopyFrom(value.type)
            value.ClearField("type")
    return found


def _holds_map(kind: onnx.TypeProto) -> bool:
    if kind.HasField("sequence_type"):
        return _holds_map(kind.sequence_type.elem_type)
    return kind.HasField("map_type") or (kind.HasField("optional_type") and _holds_map(kind.optional_type.elem_type))


def _read(path: Path) -> onnx.ModelProto:
    if not is_there(path) or not path.is_file():
        raise ModelError(f"no file '{path}'; give the path of an ONNX model")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read '{path}': {error.strerror}; give the path of an ONNX model") from error
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


# -- sparse and old ------------------------------------------------------------------------------------------------


def _make_dense(graph: onnx.GraphProto, where: str, made: int) -> int:
    """Replaces sparse initializers by dense ones, which can be cut.

    Args:
        graph: The graph.
        where: What to call the model in messages.
        made: Bytes that those of other graphs take.

    Returns:
        The same with those of this graph.
    """
    left = present().memory - made
    for sparse in graph.sparse_initializer:
        place = f"sparse initializer '{sparse.values.name}' of {where}"
        shape = tuple(sparse.dims)
        if any(size < 0 for size in shape) or len(shape) > MAXIMUM_RANK:
            raise ModelError(f"{place} has the shape {list(shape)[:8]}, which no tensor has; the file is damaged")
        left -= prod(shape) * -(-ir.DataType(sparse.values.data_type).bitwidth // 8)
        if left < 0:
            raise BoundError(
                f"{place} has the shape {list(shape)}; dense, the sparse initializers take more than "
                f"{present().memory / 1e9:.1f} GB; allow more with --bound memory=N"
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
    return present().memory - left


def _converted(proto: onnx.ModelProto, where: str) -> onnx.ModelProto:
    opset = next(entry.version for entry in proto.opset_import if entry.domain in _DEFAULT_DOMAINS)
    if opset >= MINIMUM_OPSET:
        return proto
    try:
        return onnx.version_converter.convert_version(proto, CONVERTED_OPSET)
    except Exception as error:  # the converter raises bare RuntimeErrors and its own ConvertErrors
        raise ModelError(
            f"{where} has opset {opset} and cannot be converted to {CONVERTED_OPSET}: {first_line(error)}; "
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
            f"the graph of {where} cannot be normalised: {first_line(error)}; check it with onnx.checker.check_model"
        ) from error
    model.ir_version = max(4, model.ir_version or 4)  # before version 4 initializers must be inputs
    _name_nodes(model)
    _bypass_identities(model)


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
