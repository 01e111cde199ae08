"""Saving: weights are evaluated while they are written, and a file appears whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import onnx
import onnx_ir as ir

from graphprune.errors import OutputError, first_line
from graphprune.files import require_plain
from graphprune.hosts.onnx.branches import nested
from graphprune.hosts.onnx.shape_values import Shapes
from graphprune.hosts.onnx.shapes import carries_little, contradicted, stale_outputs
from graphprune.hosts.onnx.store import INLINE_BYTES, Store, fill_inline, has_data, n_bytes, with_weights
from graphprune.hosts.writing import EXTERNAL_BYTES, data_of, invalid, place

ALIGNMENT = 4096
"""Tensors begin at multiples of this in the data file, so that runtimes can map them."""


def write_external(proto: onnx.ModelProto, store: Store, data: Path) -> onnx.ModelProto:
    """Writes the weights to a data file, one after the other, and returns the model that refers to it."""
    with data.open("wb") as file:

        def fill(tensor: onnx.TensorProto, source: ir.TensorProtocol) -> None:
            if source.nbytes <= INLINE_BYTES:
                fill_inline(tensor, source)
                return
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
            offset = file.tell()
            file.write(source.tobytes())
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", data.name), ("offset", offset), ("length", file.tell() - offset)):
                tensor.external_data.add(key=key, value=str(value))

        return with_weights(proto, store, fill)


def with_defaults(proto: onnx.ModelProto, defaults: Iterable[onnx.ValueInfoProto]) -> onnx.ModelProto:
    """The model in which stored tensors of unchanged shape are inputs with a default, as they were."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    kept = [
        value
        for value in defaults
        if shapes.get(value.name) == tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    ]
    if not kept:
        return proto
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    result.graph.input.extend(kept)
    return result


def described(
    proto: onnx.ModelProto,
    metadata: Mapping[str, str] | None,
    stale: Callable[[], frozenset[str]] = frozenset,
) -> onnx.ModelProto:
    """The model with the shapes of all values inferred anew and with further metadata.

    Args:
        proto: The model.
        metadata: Entries for ``metadata_props``.
        stale: Gives the outputs of which the file said what its own operators contradict: exporters write what they
            saw on one example, and inference that knows more after folds and cuts would refuse the file for it.
            What a model that was not cut contradicts is taken for no fault of the cut.
    """
    result = onnx.ModelProto()
    result.CopyFrom(nested(proto))
    del result.graph.value_info[:]
    unsaid = onnx.ModelProto()
    unsaid.CopyFrom(result)
    for value in unsaid.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(unsaid, data_prop=carries_little(unsaid.graph))
    except onnx.shape_inference.InferenceError:
        inferred = result  # the values stay undeclared, which every runtime accepts
    for value, known in zip(result.graph.output, inferred.graph.output, strict=True):
        shaped = value.type.tensor_type.HasField("shape")  # which the checker demands
        if not shaped or (contradicted(value.type, known.type) and value.name in stale()):
            value.type.CopyFrom(known.type)
    declared = {value.name for value in (*result.graph.input, *result.graph.output)}
    stored = {tensor.name for tensor in result.graph.initializer}
    result.graph.value_info.extend(
        value for value in inferred.graph.value_info if value.name not in declared and value.name not in stored
    )
    for key, value in (metadata or {}).items():
        entry = next((entry for entry in result.metadata_props if entry.key == key), None)
        if entry is None:
            entry = result.metadata_props.add(key=key)
        entry.value = value
    return result


def save(
    proto: onnx.ModelProto,
    store: Store,
    path: Path,
    metadata: Mapping[str, str] | None,
    *,
    sources: frozenset[Path],
    original: onnx.ModelProto,
    bound: Shapes,
    beside: bool = False,
) -> None:
    """Writes a model.

    Args:
        proto: The weightless model.
        store: Its weights.
        path: The file; data that does not fit goes to ``NAME.onnx.data`` beside it.
        metadata: Entries for ``metadata_props``.
        sources: Data files that weights are still mapped from, which must not be overwritten.
        original: The weightless model as it was loaded: what its author got past the checker may pass again.
        bound: The shapes of the inputs that it was looked at with.
        beside: Whether data goes beside it in any case.

    Raises:
        OutputError: The file cannot be written, or what would be written is not valid.
    """
    data = data_of(path)
    for target in (path, data):
        if target.resolve() in sources:
            raise OutputError(f"'{target}' holds the weights of the model that is being read; give another path")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write '{path}': no folder '{path.parent}'; give a path in a folder that exists")
    require_plain(data)
    model = described(proto, metadata, partial(stale_outputs, original, bound))
    external = beside or n_bytes(model) >= EXTERNAL_BYTES

    def write(at: Path) -> None:
        if external:
            full = write_external(model, store, data_of(at))
        else:
            full = with_weights(model, store, fill_inline)
        at.write_bytes(full.SerializeToString())

    try:
        place(path, write, lambda at: _check(at, original))
    except OSError as error:
        raise OutputError(
            f"cannot write '{path}': {error.strerror or error}; give a path in a folder that exists and is writable"
        ) from error


def _check(path: Path, original: onnx.ModelProto) -> None:
    """Runs ONNX's checker with strict inference; what the original did not pass either is let through."""
    error = invalid(path)
    if error is not None and _valid(original):
        raise OutputError(
            f"the model that would be written to '{path.name}' is not valid ONNX: {first_line(error)}; "
            "nothing was written. Please report this with the model"
        ) from error


def _valid(weightless: onnx.ModelProto) -> bool:
    """Whether a weightless model passes the checker, its headers taken as inputs."""
    model = onnx.ModelProto()
    model.CopyFrom(nested(weightless))
    kept = [tensor for tensor in model.graph.initializer if has_data(tensor)]
    for tensor in model.graph.initializer:
        if not has_data(tensor):
            model.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return invalid(model) is None
