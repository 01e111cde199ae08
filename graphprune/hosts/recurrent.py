"""Recurrent layers as a host describes them: which weights their cells have, and the states that they go through.

A cell computes pre-activations ``z_t = W x_t + R h_(t-1) + b`` for all its gates, block by block, and from them its
next state. The refit of its weights needs what it sees at each step; this is computed here from the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a stored tensor.

    Attributes:
        tensor: Its name.
        row: Which of the tensor's rows it is (directions that lie in one tensor); ``None``: all of it.
        half: Which half of that (biases of inputs and states that lie in one vector); ``None``: both.
    """

    tensor: str
    row: int | None = None
    half: int | None = None

    def of(self, array: Array) -> Array:
        """A view of the part."""
        found: Array = array if self.row is None else array[self.row]
        size = len(found) // 2
        return found if self.half is None else found[self.half * size : (self.half + 1) * size]


@dataclass(frozen=True, slots=True)
class Cell:
    """The weights of one layer in one direction: ``w: (gate h) i``, ``r: (gate h) h``, biases of both, if any."""

    layer: int
    backward: bool
    w: Part
    r: Part
    w_bias: Part | None = None
    r_bias: Part | None = None


@dataclass(frozen=True, slots=True)
class Recurrent:
    """A recurrent layer.

    Attributes:
        gates: Its gates in the order of their blocks: ``i f g o`` of an LSTM, ``z r n`` of a GRU, or ``n``.
        value: Its input, ``t b i``, or ``b t i`` where ``batch_first``.
        states: The names of its initial states, ``l b h`` or, where ``states_first``, ``b l h``; ``None``: zeros.
        cells: Its cells, layer by layer, direction by direction.
        batch_first: Whether the input is ``b t i``.
        states_first: Whether the states are ``b l h``.
        relu: Whether a plain layer rectifies.
        reset_after: Whether a GRU applies the reset gate to the product with the state, rather than to the state.
    """

    gates: str
    value: str
    states: tuple[str | None, ...]
    cells: tuple[Cell, ...]
    batch_first: bool = False
    states_first: bool = False
    relu: bool = False
    reset_after: bool = True

    def steps(self, x: Array) -> Array:
        """The input as ``t b i``."""
        return np.moveaxis(x, 0, 1) if self.batch_first else x


@dataclass(frozen=True, slots=True)
class Seen:
    """What a cell sees at each step, ``t b .``, in the order of the steps of the input.

    Attributes:
        x: The input.
        before: The state before the step.
        reset: The state before the step times the reset gate, of a GRU that resets before the product.
        after: The state after it.
    """

    x: Float
    before: Float
    reset: Float
    after: Float


def _sigmoid(x: Float) -> Float:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


def run_cell(
    layer: Recurrent, cell: Cell, read: Callable[[Part], Float], x: Float, states: tuple[Float | None, ...]
) -> Seen:
    """Runs a cell over ``x: t b i`` from its initial states ``b h`` (``None``: zeros)."""
    w, r = read(cell.w), read(cell.r)
    size = r.shape[1]
    zero = np.zeros((x.shape[1], size))
    w_bias, r_bias = (zero[0, :0] if part is None else read(part) for part in (cell.w_bias, cell.r_bias))
    order = range(len(x))[::-1] if cell.backward else range(len(x))
    given = x @ w.T + (w_bias if len(w_bias) else 0.0)
    h, c = (zero if state is None else state for state in (*states, None, None)[:2])
    blocks = {gate: slice(i * size, (i + 1) * size) for i, gate in enumerate(layer.gates)}
    before, reset, after = (np.zeros((len(x), *zero.shape)) for _ in range(3))
    for t in order:
        before[t] = h
        own = h @ r.T + (r_bias if len(r_bias) else 0.0)
        z = given[t] + own
        if len(layer.gates) == 4:
            i, f, o = (_sigmoid(z[:, blocks[gate]]) for gate in "ifo")
            c = f * c + i * np.tanh(z[:, blocks["g"]])
            h = o * np.tanh(c)
        elif len(layer.gates) == 3:
            update, gate = (_sigmoid(z[:, blocks[name]]) for name in "zr")
            n = blocks["n"]
            reset[t] = gate * h
            if layer.reset_after:
                inner = given[t][:, n] + gate * own[:, n]
            else:
                inner = given[t][:, n] + reset[t] @ r[n].T + (r_bias[n] if len(r_bias) else 0.0)
            h = (1 - update) * np.tanh(inner) + update * h
        else:
            h = np.maximum(z, 0) if layer.relu else np.tanh(z)
        after[t] = h
    return Seen(x, before, reset, after)
