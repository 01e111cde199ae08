"""Recurrent layers of ONNX models as cells."""

from __future__ import annotations

import onnx

from graphprune.hosts.messages import attributes_of
from graphprune.hosts.recurrent import Cell, Part, Recurrent

GATES = {"LSTM": "iofg", "GRU": "zrn", "RNN": "n"}
"""Operators of recurrent layers, and the order of their gates."""
_ACTIVATIONS = {"LSTM": (["sigmoid", "tanh", "tanh"],), "GRU": (["sigmoid", "tanh"],), "RNN": (["tanh"], ["relu"])}
"""What cells are computed with; the names are written in any case."""


def cells(node: onnx.NodeProto) -> Recurrent | str | None:
    """The cells of a recurrent layer; why they cannot be told apart; ``None`` for any other node."""
    gates = GATES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if gates is None:
        return None
    attributes = attributes_of(node)
    x, w, r, bias, lengths, *states = [name or None for name in (*node.input, *[""] * (8 - len(node.input)))][:8]
    if states[2] is not None:
        return "its gates look at its state through peepholes"
    if lengths is not None:
        return "its sequences have lengths of their own"
    if attributes.get("clip") or attributes.get("input_forget"):
        return "its gates are clipped or coupled"
    direction = attributes.get("direction", "forward")
    backward = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[direction]
    activations = [each.lower() for each in attributes.get("activations", ())]
    usual = [each * len(backward) for each in _ACTIVATIONS[node.op_type]]
    if activations and activations not in usual:
        return "its activations are not those of its kind"
    if x is None or w is None or r is None:
        return "it lacks a weight"
    found = []
    for i, back in enumerate(backward):
        biases = (None, None) if bias is None else (Part(bias, i, 0), Part(bias, i, 1))
        found.append(Cell(0, back, Part(w, i), Part(r, i), *biases))
    first = bool(attributes.get("layout", 0))
    return Recurrent(
        gates,
        x,
        tuple(states[: 2 if node.op_type == "LSTM" else 1]),
        tuple(found),
        batch_first=first,
        states_first=first,
        relu="relu" in activations,
        reset_after=bool(attributes.get("linear_before_reset", 0)),
    )
