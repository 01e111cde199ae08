"""Recurrent layers of torch programs as cells."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from graphprune.hosts.recurrent import Cell, Part, Recurrent
from graphprune.hosts.torch.signatures import argument

_ATEN = torch.ops.aten
GATES = {
    _ATEN.lstm.input: "ifgo",
    _ATEN.gru.input: "rzn",
    _ATEN.rnn_tanh.input: "n",
    _ATEN.rnn_relu.input: "n",
}
"""Operators of recurrent layers, and the order of their gates."""


def cells(node: fx.Node, operands: Sequence[str | None]) -> Recurrent | str | None:
    """The cells of a recurrent layer; why they cannot be told apart; ``None`` for any other node.

    Args:
        node: The node.
        operands: The names of its tensors, in the order of the rule's operands.
    """
    gates = next((order for op, order in GATES.items() if op is node.target), None)
    if gates is None:
        return None
    n_states = 2 if len(gates) == 4 else 1
    names = [name for name in operands if name is not None]
    layers, both = int(argument(node, "num_layers")), bool(argument(node, "bidirectional"))
    per_cell = 4 if argument(node, "has_biases") else 2
    weights = names[1 + n_states :]
    if argument(node, "train"):
        return "it runs in training mode"
    if len(weights) != layers * (2 if both else 1) * per_cell:
        return "its state is projected"
    found = []
    for i in range(0, len(weights), per_cell):
        at = i // per_cell
        own = [Part(name) for name in weights[i : i + per_cell]]
        found.append(Cell(at // 2 if both else at, both and at % 2 == 1, *own))
    return Recurrent(
        gates,
        names[0],
        tuple(names[1 : 1 + n_states]),
        tuple(found),
        batch_first=bool(argument(node, "batch_first")),
        relu=node.target is _ATEN.rnn_relu.input,
    )
