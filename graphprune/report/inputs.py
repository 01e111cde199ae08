"""The sizes of inputs that a report counts at, and where they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from graphprune.ir.graph import Graph

EXAMPLE = "example inputs"
"""Where the sizes of a module's inputs come from."""
_MOST = 4


@dataclass(frozen=True)
class InputRow:
    """An input at the sizes that costs, latency and the proof are for.

    Attributes:
        name: Of the input.
        dtype: NumPy's name of its type.
        sizes: Of its axes.
        sources: For each axis where its size comes from: declared by the file, given by the user (a shape or an
            example), stated by a key of the file's metadata, or assumed.
        dynamic: The axes whose size is not fixed.
    """

    name: str
    dtype: str
    sizes: tuple[int, ...]
    sources: tuple[str, ...]
    dynamic: tuple[int, ...] = ()


def input_rows(graph: Graph) -> tuple[InputRow, ...]:
    """The inputs of a graph."""
    values = [graph.values[name] for name in graph.inputs]
    return tuple(
        InputRow(
            value.name,
            value.dtype,
            value.shape,
            value.sources if len(value.sources) == len(value.shape) else (EXAMPLE,) * len(value.shape),
            tuple(sorted(value.dynamic)),
        )
        for value in values
    )


def describe_inputs(rows: Sequence[InputRow]) -> str:
    """One line: ``images 1x3x320x320 (1 by metadata 'batch', 3 declared by the file, 320x320 by ...)``."""
    shown = [_described(row) for row in rows[:_MOST]]
    if len(rows) > _MOST:
        shown.append(f"and {len(rows) - _MOST} more (--json lists all)")
    return "; ".join(shown)


def _described(row: InputRow) -> str:
    if not row.sizes:
        return f"{row.name} scalar"
    text = "x".join(map(str, row.sizes))
    parts = [(source, list(axes)) for source, axes in groupby(range(len(row.sizes)), key=lambda i: row.sources[i])]
    if len(parts) == 1:
        return f"{row.name} {text} ({parts[0][0]})"
    sizes = [f"{'x'.join(str(row.sizes[i]) for i in axes)} {source}" for source, axes in parts]
    return f"{row.name} {text} ({', '.join(sizes)})"
