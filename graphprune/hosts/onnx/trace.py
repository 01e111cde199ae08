"""Runs of an ONNX model that show values on the way: the values are outputs, a bounded part of them at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx

from graphprune.hosts.host import Array, Arrays
from graphprune.hosts.onnx.double import run_double
from graphprune.hosts.onnx.runtime import session_of
from graphprune.hosts.onnx.store import Store
from graphprune.ir.graph import Value
from graphprune.runtime.sessions import run_session

LIMIT = 1 << 29
"""Bytes of values that one run shows; the model is run again for more."""


def traced(
    proto: onnx.ModelProto, store: Store, inputs: Arrays, values: Sequence[Value], *, double: bool
) -> Iterator[tuple[str, Array]]:
    """The values, and after them the outputs as ``>name``; see ``Host.shown``.

    Raises:
        ModelError: The model cannot be run (in float64).
    """
    outputs = [value.name for value in proto.graph.output]
    parts = [list(values)] if double else _parts(values)
    for i, part in enumerate(parts):
        model = onnx.ModelProto()
        model.CopyFrom(proto)
        more = [value.name for value in part if value.name not in outputs]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in more)
        found = run_double(model, store, inputs) if double else run_session(session_of(model, store), inputs)
        for value in part:
            yield value.name, found.pop(value.name) if value.name in more else found[value.name]
        if i == len(parts) - 1:
            yield from ((f">{name}", found[name]) for name in outputs)


def _parts(values: Sequence[Value]) -> list[list[Value]]:
    """The values in parts that fit."""
    parts: list[list[Value]] = [[]]
    held = 0.0
    for value in values:
        size = value.n_elements * value.itemsize
        if held + size > LIMIT and parts[-1]:
            parts.append([])
            held = 0.0
        parts[-1].append(value)
        held += size
    return parts
