"""Rules of normalisations."""

from __future__ import annotations

from collections.abc import Sequence

from graphprune.ir.notation import parse_rule
from graphprune.ir.rule import Rule, Shape


def batch_norm(x: Shape, parameters: Sequence[Shape | None], n_results: int = 1) -> Rule:
    """Batch normalisation with stored statistics: ``n c s, c, c, c, c -> n c s``; further results are ignored."""
    spatial = " ".join(f"s{i}" for i in range(len(x) - 2))
    vectors = ", ".join("_" if shape is None else "c" for shape in parameters)
    rest = ", _" * (n_results - 1)
    return parse_rule(f"n c {spatial}, {vectors} -> n c {spatial}{rest}", (x, *parameters))


def layer_norm(
    x: Shape, n_axes: int, parameters: Sequence[Shape | None], *, slot: str | None = None, n_results: int = 1
) -> Rule:
    """Layer or RMS normalisation over the last ``n_axes`` axes; they are normalized."""
    outer = " ".join(f"n{i}" for i in range(len(x) - n_axes))
    inner = " ".join(f"c{i}" for i in range(n_axes))
    vectors = "".join(f", {'_' if shape is None else _aligned(shape, n_axes)}" for shape in parameters)
    text = f"{outer} {inner}{vectors} -> {outer} {inner}{', _' * (n_results - 1)}; normalized {inner}"
    if slot is not None:
        text += "".join(f"; size {slot}[{i}]=c{i}" for i in range(n_axes))
    return parse_rule(text, (x, *parameters))


def _aligned(shape: Shape, n_axes: int) -> str:
    names = [f"c{i}" for i in range(n_axes)][n_axes - len(shape) :]
    return " ".join("1" if size == 1 else name for size, name in zip(shape, names, strict=True)) or "[]"


def group_norm(
    x: Shape, groups: int, parameters: Sequence[Shape | None], *, slot: str | None = None, per_group: bool = False
) -> Rule:
    """Group normalisation: whole groups are removed exactly, channels within a group shift its statistics.

    Args:
        x: ``n (g c) s...``.
        groups: The number of groups.
        parameters: Scale and bias, ``(g c)`` each (or ``g`` where ``per_group``, as in ONNX before opset 21).
        slot: The attribute that holds the number of groups.
        per_group: Whether scale and bias have one element for each group.
    """
    spatial = " ".join(f"s{i}" for i in range(len(x) - 2))
    vector = "g" if per_group else "(g c)"
    vectors = "".join(f", {'_' if shape is None else vector}" for shape in parameters)
    text = f"n (g c) {spatial}{vectors} -> n (g c) {spatial}; normalized c {spatial}"
    text += "; label g=norm-group c=channel" if x[1] != groups else "; label g=channel"
    if slot is not None:
        text += f"; size {slot}=g"
    return parse_rule(text, (x, *parameters), g=groups)


def instance_norm(x: Shape, parameters: Sequence[Shape | None]) -> Rule:
    """Instance normalisation: statistics over the spatial axes of each channel alone."""
    spatial = " ".join(f"s{i}" for i in range(len(x) - 2))
    vectors = "".join(f", {'_' if shape is None else 'c'}" for shape in parameters)
    return parse_rule(
        f"n c {spatial}{vectors} -> n c {spatial}; normalized {spatial}; label c=channel", (x, *parameters)
    )
