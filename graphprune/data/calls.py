"""Whether the rows of a batch are samples of their own, or one call whose rows see each other.

The first axis of most inputs counts samples, which may come in batches of any size. In some models something goes
along it: frames of a recording that a recurrent layer runs over, tokens without an axis of samples, nodes of a graph.
Cut up and drawn at random, such rows are inputs that the model never sees. The model says which it is: rows give the
same alone as among others, or they do not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphprune.data.specs import Array, InputSpec, Model
from graphprune.ir.graph import Graph

ROWS = 3
"""So many rows are run together, and the one in the middle once more alone."""
MADE_UP = 2
"""The size that a file's open axes are given where nobody says another."""
APART = 1e-3
"""Largest difference of independent rows, relative to the largest value: batches of another size round otherwise."""
APART_COARSE = 5e-2
"""The same in half precision, or where a scale is taken of whatever is in the batch."""
_SCALED = ("dynamicquantize", "choose_qparams")
"""What stands in the names of operators that take one."""


def rows_interact(host: Model, specs: Sequence[InputSpec]) -> bool:
    """Whether a model's outputs for some rows change with those before or behind them, on its example inputs.

    Args:
        host: The model.
        specs: Its inputs, of which those with samples take any number of them.
    """
    batched = [spec.name for spec in specs if spec.batched]
    if getattr(host, "drawing", ()):  # random numbers are others in each run
        return False
    try:
        examples = [host.example_inputs(0)]
        while len(examples) < ROWS and sum(len(each[batched[0]]) for each in examples) < ROWS:
            examples.append(host.example_inputs(len(examples)))
        whole = {name: np.concatenate([each[name] for each in examples])[:ROWS] for name in batched}
        n = min(map(len, whole.values()))
        if n < ROWS:
            return False
        middle = {name: array[1:-1] for name, array in whole.items()}
        together, alone = (host.run({**examples[0], **rows}) for rows in (whole, middle))
    except Exception:  # noqa: BLE001 - executors raise whatever an operator raises; then it is as the axis says
        return False
    accepted = APART_COARSE if _coarse(host.graph()) else APART
    return any(_differ(a, b, accepted) for a, b in zip(together.values(), alone.values(), strict=True))


def _coarse(graph: Graph) -> bool:
    """Whether a model rounds to few digits, or to multiples of what is in the batch."""
    half = any("float16" in value.dtype for value in graph.values.values())
    return half or any(each in node.op.lower() for node in graph.nodes for each in _SCALED)


def _differ(together: Array, alone: Array, accepted: float) -> bool:
    """Whether the rows in the middle of an output are others than those of a run without the rows around them."""
    each = len(together) // ROWS if together.ndim else 0
    if together.dtype.kind != "f" or not each or alone.shape != (each * (ROWS - 2), *together.shape[1:]):
        return False  # no numbers, or no axis of samples
    a, b = together[each:-each].astype(np.float64), alone.astype(np.float64)
    size = float(np.abs(together[np.isfinite(together)]).max(initial=0.0))
    return bool(np.abs(a - b)[np.isfinite(a) & np.isfinite(b)].max(initial=0.0) > accepted * size)


def call_of(specs: Sequence[InputSpec], default: int) -> int:
    """How many samples make a call where nobody says so: as many as the example has, unless it has hardly any."""
    size = next(spec.shape[0] for spec in specs if spec.batched)
    return size if size > MADE_UP else default


def whole_calls(chosen: Array, unit: int) -> Array:
    """The numbers of the rows of some calls of ``unit`` rows each."""
    found: Array = (np.asarray(chosen, np.int64)[:, None] * unit + np.arange(unit)).ravel()
    return found


def too_few(where: str, count: int, size: int, *, together: bool) -> str:
    """What to say of data that do not fill one batch of a size that is given, or one call."""
    takes = f"a call has {size} rows, which see each other" if together else f"the model takes batches of {size}"
    advice = "say how many make a call (--batch-size)" if together else "make the model's first axis dynamic"
    return f"{where} gives {count} samples, {takes}; give at least {size}, or {advice}"
