"""Rows of recurrent layers: PyTorch's own where it has the same cell, else step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from graphprune.executor.ops.call import Call, RefusedError

Tensor = torch.Tensor
Activation = Callable[[Tensor], Tensor]
States = tuple[Tensor, ...]

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_USUAL: Mapping[str, tuple[str, ...]] = {
    "LSTM": ("Sigmoid", "Tanh", "Tanh"),
    "GRU": ("Sigmoid", "Tanh"),
    "RNN": ("Tanh",),
}
_ORDER = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""ONNX's gates (``i o f c``, ``z r h``) in the order of PyTorch's (``i f g o``, ``r z n``)."""
_DEFAULTS: Mapping[str, tuple[float, float]] = {
    "Affine": (1.0, 0.0),
    "LeakyRelu": (0.01, 0.0),
    "ThresholdedRelu": (1.0, 0.0),
    "ScaledTanh": (1.0, 1.0),
    "HardSigmoid": (0.2, 0.5),
    "Elu": (1.0, 0.0),
}


def _activation(name: str, alpha: float | None, beta: float | None) -> Activation:
    a, b = _DEFAULTS.get(name, (0.0, 0.0))
    a, b = a if alpha is None else alpha, b if beta is None else beta
    table: Mapping[str, Activation] = {
        "Sigmoid": torch.sigmoid,
        "Tanh": torch.tanh,
        "Relu": torch.relu,
        "Affine": lambda x: a * x + b,
        "LeakyRelu": lambda x: functional.leaky_relu(x, a),
        "ThresholdedRelu": lambda x: torch.where(x >= a, x, torch.zeros_like(x)),
        "ScaledTanh": lambda x: a * torch.tanh(b * x),
        "HardSigmoid": lambda x: (a * x + b).clamp(0, 1),
        "Elu": lambda x: functional.elu(x, a),
        "Softsign": functional.softsign,
        "Softplus": functional.softplus,
    }
    if name not in table:
        raise RefusedError(f"the activation '{name}'")
    return table[name]


@dataclass(frozen=True, slots=True)
class _Layer:
    """A recurrent layer with the time first.

    Attributes:
        call: The node.
        x: ``t b i``.
        states: ``l b h``: what it begins with; of an LSTM the cells too.
        hidden: Its size.
        activations: Their names, for each direction.
    """

    call: Call
    x: Tensor
    states: States
    hidden: int
    activations: Sequence[tuple[str, ...]]

    @property
    def kind(self) -> str:
        return self.call.op

    def weights(self, direction: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """For inputs and states, and the biases of both."""
        c = self.call
        w, r = c.need(1)[direction], c.need(2)[direction]
        if c.at(3) is None:
            zero = w.new_zeros(len(w))
            return w, r, zero, zero
        wb, rb = c.need(3)[direction].chunk(2)
        return w, r, wb, rb

    @property
    def own(self) -> bool:
        """Whether PyTorch has the same cell."""
        c, usual = self.call, [*self.activations]
        if c.get("clip") is not None or c.get("input_forget", 0) or c.at(7) is not None:
            return False
        if self.kind == "GRU" and not c.get("linear_before_reset", 0):
            return False
        if c.get("direction", "forward") == "reverse" or c.get("activation_alpha") or c.get("activation_beta"):
            return False
        return all(each == _USUAL[self.kind] for each in usual) or (
            self.kind == "RNN" and all(each == ("Relu",) for each in usual)
        )


def recurrent(c: Call) -> tuple[Tensor, ...]:
    """``LSTM``, ``GRU``, ``RNN`` in any direction, with initial states; all sequences as long as the operand."""
    batch_first = bool(c.get("layout", 0))
    x = c.x.transpose(0, 1) if batch_first else c.x
    lengths = c.at(4)
    if lengths is not None and bool((lengths != len(x)).any()):
        raise RefusedError("sequences of different lengths in one batch")
    directions, hidden = len(c.need(1)), c.need(2).shape[-1]
    names = tuple(c.get("activations") or _USUAL[c.op] * directions)
    each = len(_USUAL[c.op])
    states = []
    for i in (5, 6) if c.op == "LSTM" else (5,):
        state = c.at(i)
        if state is None:
            state = x.new_zeros((directions, x.shape[1], hidden))
        elif batch_first:
            state = state.transpose(0, 1)
        states.append(state)
    layer = _Layer(c, x, tuple(states), hidden, [names[d * each : (d + 1) * each] for d in range(directions)])
    y, last = _fused(layer) if layer.own else _stepped(layer)
    if batch_first:
        return y.transpose(0, 1), *(state.transpose(0, 1) for state in last)
    return y.transpose(1, 2), *last


def _fused(layer: _Layer) -> tuple[Tensor, States]:
    """By PyTorch's own layer: the results ``t b l h``, and the last states."""
    flat: list[Tensor] = []
    for direction in range(len(layer.activations)):
        flat.extend(
            torch.cat([each.chunk(_GATES[layer.kind])[i] for i in _ORDER[layer.kind]])
            for each in layer.weights(direction)
        )
    both = len(layer.activations) == 2
    given = (flat, True, 1, 0.0, False, both, False)
    if layer.kind == "LSTM":
        y, *last = torch.lstm(layer.x, list(layer.states), *given)
    elif layer.kind == "GRU":
        y, *last = torch.gru(layer.x, layer.states[0], *given)
    else:
        function = torch.rnn_relu if layer.activations[0] == ("Relu",) else torch.rnn_tanh
        y, *last = function(layer.x, layer.states[0], *given)
    return y.reshape(*y.shape[:2], len(layer.activations), layer.hidden), tuple(last)


def _stepped(layer: _Layer) -> tuple[Tensor, States]:
    """Step by step: the results ``t b l h``, and the last states."""
    results, ends = [], []
    for direction in range(len(layer.activations)):
        backwards = direction == 1 or layer.call.get("direction", "forward") == "reverse"
        cell = _cell(layer, direction)
        state = tuple(each[direction] for each in layer.states)
        found = []
        for x in layer.x.flip(0) if backwards else layer.x:
            state = cell(x, state)
            found.append(state[0])
        results.append(torch.stack(found[::-1] if backwards else found))
        ends.append(state)
    return torch.stack(results, 2), tuple(torch.stack(each) for each in zip(*ends, strict=True))


def _cell(layer: _Layer, direction: int) -> Callable[[Tensor, States], States]:
    """One step of a direction."""
    c, n = layer.call, len(_USUAL[layer.kind])
    parameters = [
        [
            (c.get(name) or ())[direction * n + i : direction * n + i + 1]
            for name in ("activation_alpha", "activation_beta")
        ]
        for i in range(n)
    ]
    functions = [
        _activation(name, *(given[0] if given else None for given in both))
        for name, both in zip(layer.activations[direction], parameters, strict=True)
    ]
    clip = c.get("clip")

    def clipped(x: Tensor) -> Tensor:
        return x if clip is None else x.clamp(-clip, clip)

    w, r, wb, rb = layer.weights(direction)
    if layer.kind == "RNN":
        return lambda x, state: (functions[0](clipped(x @ w.mT + state[0] @ r.mT + wb + rb)),)
    if layer.kind == "GRU":
        return _gru(layer, (w, r, wb, rb), functions, clipped)
    return _lstm(layer, direction, functions, clipped)


def _gru(
    layer: _Layer, weights: tuple[Tensor, Tensor, Tensor, Tensor], functions: Sequence[Activation], clipped: Activation
) -> Callable[[Tensor, States], States]:
    w, r, wb, rb = weights
    before, h = bool(layer.call.get("linear_before_reset", 0)), layer.hidden
    f, g = functions

    def step(x: Tensor, state: States) -> States:
        (old,) = state
        inner = x @ w.mT + wb
        gates = inner[:, : 2 * h] + old @ r[: 2 * h].mT + rb[: 2 * h]
        z, reset = (f(clipped(each)) for each in gates.chunk(2, -1))
        if before:
            new = g(clipped(inner[:, 2 * h :] + reset * (old @ r[2 * h :].mT + rb[2 * h :])))
        else:
            new = g(clipped(inner[:, 2 * h :] + (reset * old) @ r[2 * h :].mT + rb[2 * h :]))
        return ((1 - z) * new + z * old,)

    return step


def _lstm(
    layer: _Layer, direction: int, functions: Sequence[Activation], clipped: Activation
) -> Callable[[Tensor, States], States]:
    c = layer.call
    w, r, wb, rb = layer.weights(direction)
    f, g, h = functions
    peep = c.need(7)[direction].chunk(3) if c.at(7) is not None else (w.new_zeros(()),) * 3
    coupled = bool(c.get("input_forget", 0))

    def step(x: Tensor, state: States) -> States:
        old, cells = state
        i, o, forget, new = (x @ w.mT + old @ r.mT + wb + rb).chunk(4, -1)
        i = f(clipped(i + peep[0] * cells))
        forget = 1 - i if coupled else f(clipped(forget + peep[2] * cells))
        cells = forget * cells + i * g(clipped(new))
        return f(clipped(o + peep[1] * cells)) * h(cells), cells

    return step


RECURRENT: Mapping[str, Callable[[Call], Any]] = dict.fromkeys(("LSTM", "GRU", "RNN"), recurrent)
