"""Rows of the ONNX table for recurrent layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from graphprune.ir.notation import parse_rule
from graphprune.ir.rule import Rule
from graphprune.rules.call import Call, Refusal

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_ZERO_KEEPING: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "LSTM": (("Sigmoid", "Tanh", "Tanh"),),
    "GRU": (("Sigmoid", "Tanh"),),
    "RNN": (("Tanh",), ("Relu",)),
}


def recurrent(c: Call) -> Rule:
    """``LSTM``, ``GRU``, ``RNN``: both directions share their hidden units.

    A removed unit is one whose weights, biases and initial state are zero: its state stays zero, so the others do not
    see it. That takes activations that keep zero where the operator has them.
    """
    activations = tuple(c.get("activations", ()))
    usual = _ZERO_KEEPING[c.op]
    n = len(usual[0])
    if any(activations[i : i + n] not in usual for i in range(0, len(activations), n)):
        raise Refusal(f"a removed unit may not stay zero under the activations {', '.join(activations)} of '{c.op}'")
    batch_first = bool(c.get("layout", 0))
    sequence, state = ("b t i", "b l h") if batch_first else ("t b i", "l b h")
    result = "b t l h" if batch_first else "t l b h"
    present = [*c.operands, *([None] * (8 - len(c.operands)))]
    operands = (sequence, "l (gate h) i", "l (gate h) h", "l (bias h)", "b", state, state, "l (peep h)")
    left = ", ".join("_" if shape is None else text for text, shape in zip(operands, present, strict=True))
    results = zip((result, state, state), c.results, strict=False)
    right = ", ".join("_" if shape is None else text for text, shape in results)
    fixed = ["t", "l", "gate"]
    fixed.extend(name for name, i in (("bias", 3), ("peep", 7)) if present[i] is not None)
    text = (
        f"{left} -> {right}; fixed {' '.join(fixed)}; macs t b l gate h i; macs t b l gate h h"
        "; size hidden_size=h; label i=neuron h=recurrent"
    )
    why = {"t": "a recurrent layer runs along this axis", "l": "directions of a recurrent layer"}
    why.update(dict.fromkeys(("gate", "bias", "peep"), "gates of a recurrent layer"))
    rule = parse_rule(text, present, c.results, why=why, gate=_GATES[c.op])
    return replace(rule, operands=rule.operands[: len(c.operands)])
