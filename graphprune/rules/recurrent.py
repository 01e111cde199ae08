"""Rules of recurrent layers."""

from __future__ import annotations

from collections.abc import Sequence

from graphprune.ir.dims import Dim, Factor, Layout, concat, factors_of, product
from graphprune.ir.rule import Rule, Shape
from graphprune.rules.call import Refusal
from graphprune.rules.contraction import axis


def recurrent(
    operands: Sequence[Shape | None],
    *,
    gates: int,
    n_states: int,
    n_layers: int,
    biases: bool,
    bidirectional: bool,
    batch_first: bool,
) -> Rule:
    """An LSTM (4 gates, 2 states), GRU (3, 1) or plain RNN (1, 1) over all layers and directions.

    ``t b i, l b h, l b h, (gate h) i, (gate h) h, (gate h), (gate h) -> t b h, l b h, l b h``: the rows of the weights
    are blocks, one for each gate. The states of all layers and directions are one tensor with one hidden size, so that
    they share ``h``: to cut each layer on its own, the call would have to be taken apart, and the user's module with
    it. Layers that are calls of their own are groups of their own. Two directions give the output ``h+h``. A removed
    unit is one whose weights, bias and initial state are zero: then its state stays zero, and the others do not see it.

    An LSTM with a projection has a weight ``p h`` more for each cell, and ``p`` takes the place of ``h`` in the output
    and in the first state. PyTorch tells it by two states of different sizes, so that more units than ``p`` stay.

    Args:
        operands: The input, the states, and the parameters as torch orders them (layer by layer, direction by
            direction: input weight, hidden weight, input bias, hidden bias, projection).
        gates: Blocks of rows.
        n_states: How many state tensors there are.
        n_layers: How many layers are stacked.
        biases: Whether there are biases.
        bidirectional: Whether each layer runs in both directions.
        batch_first: Whether the input is ``b t i`` rather than ``t b i``.

    Raises:
        Refusal: The operands are not as expected.
    """
    x, state = operands[0], operands[1]
    directions = 2 if bidirectional else 1
    cell = operands[n_states]
    projected = state is not None and cell is not None and state[-1] != cell[-1]
    per_cell = (4 if biases else 2) + projected
    parameters = operands[1 + n_states :]
    if x is None or state is None or cell is None or len(x) != 3 or len(parameters) != n_layers * directions * per_cell:
        raise Refusal("a recurrent layer with packed sequences or an unbatched input")
    t, b = (axis("t", x[0]), axis("b", x[1])) if not batch_first else (axis("t", x[1]), axis("b", x[0]))
    i, h, gate, layer = axis("i", x[2]), axis("h", cell[2]), axis("gate", gates), axis("l", state[0])
    seen = axis("p", state[2]) if projected else h
    rows = product(gate, h)
    out = concat(*[seen] * directions)
    projection: tuple[Layout, ...] = ((seen, h),) if projected else ()
    vectors: tuple[Layout, ...] = ((rows,), (rows,)) if biases else ()
    cells: list[Layout] = []
    macs: list[Layout] = []
    for depth in range(n_layers):
        source: Dim = i if depth == 0 else out
        for _ in range(directions):
            cells.extend(((rows, source), (rows, seen), *vectors, *projection))
            macs.extend(((t, b, rows, source), (t, b, rows, seen), *((t, b, *each) for each in projection)))
    lead = (b, t) if batch_first else (t, b)
    fixed: dict[Factor, str] = dict.fromkeys(factors_of(t), "a recurrent layer runs along this axis")
    fixed.update(dict.fromkeys(factors_of(gate), "gates of a recurrent layer"))
    fixed.update(dict.fromkeys(factors_of(layer), "layers and directions of a recurrent layer"))
    states = ((layer, b, seen), (layer, b, h))[:n_states]
    labels = {factor: "recurrent" for dim in (seen, h) for factor in factors_of(dim)}
    labels.update(dict.fromkeys(factors_of(i), "neuron"))
    least = ((h, state[2] + 1),) if projected else ()
    return Rule(
        ((*lead, i), *states, *cells), ((*lead, out), *states), fixed, macs=tuple(macs), labels=labels, least=least
    )
