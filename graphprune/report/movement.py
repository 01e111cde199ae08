"""How far the outputs moved on the inputs at hand: what pruning costs, which no proof of structure says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from math import isfinite, sqrt

import numpy as np

from graphprune.data.batches import Batches
from graphprune.ir.graph import Graph
from graphprune.pipeline.host import Array, Arrays, Host
from graphprune.proof.parts import parts_of
from graphprune.statistics.holdout import apart

RANDOM, EXAMPLE = "random inputs", "inputs (the example, and random ones like it)"
GIVEN = "example inputs"
UNSEEN = "samples of the calibration data that pruning has not seen"
HELD = "calibration samples (held apart where scores were taken)"
CALIBRATION = "calibration samples (pruning has seen them)"

_MOST_BATCHES = {"made up": 4, "real": 8}
_OPERATIONS = 4e10
"""MACs that running one of the two models may take: about two seconds."""
_SHOWN = 4


@dataclass(frozen=True)
class OutputMove:
    """How far one output moved.

    Attributes:
        name: Of the output.
        error: The root mean square of the change, relative to the standard deviation of the original's values; ``None``
            for outputs that are no floating-point numbers or do not vary.
        agreement: The fraction of rows in which the same position is the largest, for outputs that look like scores
            of classes (``n c``) or tokens; for outputs that are no floating-point numbers the fraction of equal
            elements; ``None`` where it means nothing.
    """

    name: str
    error: float | None
    agreement: float | None


@dataclass(frozen=True)
class Movement:
    """How far the outputs moved.

    Attributes:
        inputs: What the models were run on.
        samples: How many samples.
        made_up: Whether they were random, so that the numbers say little about real inputs.
        outputs: For each output.
    """

    inputs: str
    samples: int
    made_up: bool
    outputs: tuple[OutputMove, ...]

    def __str__(self) -> str:
        """One sentence."""
        moves = [each for each in self.outputs if each.error is not None or each.agreement is not None]
        if not moves:
            return ""
        several = len(self.outputs) > 1
        shown = [_described(each, f"'{each.name}' " if several else "") for each in moves[:_SHOWN]]
        more = f"; and {len(moves) - _SHOWN} more (--json lists all)" if len(moves) > _SHOWN else ""
        return f"outputs moved on {self.samples} {self.inputs}: {'; '.join(shown)}{more}"


def _described(move: OutputMove, name: str) -> str:
    parts = [f"{_percent(move.error)} of their spread"] if move.error is not None else []
    if move.agreement is not None:
        parts.append(f"top-1 agreement {move.agreement:.0%}" if parts else f"{move.agreement:.0%} are equal")
    return name + ", ".join(parts)


def _percent(error: float) -> str:
    return "0 %" if error == 0 else "less than 0.1 %" if error < 5e-4 else f"{100 * error:.2g} %" if error < 1 else (
        f"{100 * error:.0f} %"
    )  # fmt: skip


def movement(
    original: Host, pruned: Host, batches: Batches | None, *, held: bool, macs: float, seed: int = 0
) -> Movement | None:
    """Runs both models on a few inputs.

    Args:
        original: The model before.
        pruned: The model after.
        batches: Calibration data, if there are any; without, the example or random inputs. Samples of their source go
            first that were not drawn.
        held: Whether one batch of four was held apart from all that was fitted: then those go next.
        macs: Of the original on one example: the fewer inputs are run, the more it is.
        seed: Of random inputs.

    Returns:
        ``None`` if a model does not run on them.
    """
    graph = original.graph()
    made_up = batches is None or batches.random
    feeds, source = (
        _made_up(original, macs, seed) if batches is None or batches.random else _real(batches, graph, held, macs)
    )
    tallies: dict[str, _Tally] = {}
    samples = n_runs = 0
    for feed, outputs in _run(feeds, (original, pruned)):
        samples, n_runs = samples + _rows(feed), n_runs + 1
        before, after = outputs
        for (name, want), have in zip(before.items(), after.values(), strict=True):
            tallies.setdefault(name, _Tally(_scores(graph, name))).add(want, have)
    if not n_runs:
        return None
    moves = tuple(OutputMove(name, tally.error, tally.agreement) for name, tally in tallies.items())
    return Movement(GIVEN if source == EXAMPLE and n_runs == 1 else source, samples, made_up, moves)


def _run(feeds: Iterable[Arrays], hosts: tuple[Host, Host]) -> Iterator[tuple[Arrays, list[dict[str, Array]]]]:
    """Inputs with the outputs of both models, up to the first that cannot be read or run.

    Nothing here may cost the user a result that is proven: random inputs may be none that the model takes, a file that
    was not drawn may be broken.
    """
    with suppress(Exception):  # executors raise whatever an operator raises
        for feed in feeds:
            yield feed, [host.run(feed) for host in hosts]


def _made_up(host: Host, macs: float, seed: int) -> tuple[Iterable[Arrays], str]:
    """A few examples, and what they are."""
    first, second = host.example_inputs(seed), host.example_inputs(seed + 1)
    if all(np.array_equal(first[name], second[name]) for name in first):
        return [first], GIVEN
    most = _affordable(macs, "made up")
    seeds = range(seed, seed + most)
    return (host.example_inputs(each) for each in seeds), EXAMPLE if host.kind == "torch" and seed == 0 else RANDOM


def _real(batches: Batches, graph: Graph, held: bool, macs: float) -> tuple[Iterable[Arrays], str]:
    """Batches of the user's data, the least fitted to that there are."""
    example = max(1, next((graph.values[name].shape[0] for name in graph.inputs if graph.values[name].shape), 1))
    most = _affordable(macs * batches.batch_size / example, "real")
    if (others := batches.unseen(most)) is not None:
        return others, UNSEEN
    held = held and len(batches) > 1
    numbers = apart(len(batches))[1] if held else list(range(len(batches)))
    return (batches[number] for number in numbers[:most]), HELD if held else CALIBRATION


def _affordable(macs: float, kind: str) -> int:
    return int(max(1, min(_MOST_BATCHES[kind], _OPERATIONS // max(1.0, macs))))


def _rows(feed: Arrays) -> int:
    """Samples of a batch: the first axis that most inputs share."""
    sizes = [array.shape[0] for array in feed.values() if array.ndim]
    return max(sizes, key=sizes.count) if sizes else 1


def _scores(graph: Graph, output: str) -> bool:
    """Whether an output looks like scores: ``n c``, or ``n s v`` where the model looks tokens up in ``v`` rows."""
    shape = graph.values[output].shape if output in graph.values else ()
    if len(shape) == 2:
        return shape[1] > 1
    return len(shape) == 3 and shape[2] in _vocabularies(graph)


def _vocabularies(graph: Graph) -> set[int]:
    """How many rows the tables have that whole numbers among the inputs are looked up in."""
    tokens = {name for name in graph.inputs if "int" in graph.values[name].dtype}
    for node in graph.nodes:  # casts and the like of tokens
        if len(node.operands) == 1 and node.operands[0] in tokens:
            tokens.update(name for name in node.results if name)
    return {
        graph.values[name].shape[0]
        for node in graph.nodes
        if tokens.intersection(node.operands)
        for name in node.operands
        if name and graph.values[name].stored and len(graph.values[name].shape) == 2
    }


@dataclass
class _Tally:
    """Sums over batches."""

    scores: bool
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("n", "x", "xx", "dd", "rows", "same"), 0.0))

    def add(self, want: Array, have: Array) -> None:
        sums = self.sums
        if want.shape != have.shape:
            return
        if want.dtype.kind != "f":
            sums["rows"] += want.size
            sums["same"] += float((want == have).sum())
            return
        for at in parts_of(want.shape):
            finite = np.isfinite(want[at]) & np.isfinite(have[at])
            a, b = want[at][finite].astype(np.float64), have[at][finite].astype(np.float64)
            sums["n"] += a.size
            sums["x"] += float(a.sum())
            sums["xx"] += float(a @ a)
            sums["dd"] += float((b - a) @ (b - a))
        if self.scores:
            sums["rows"] += want[..., 0].size
            sums["same"] += float((want.argmax(-1) == have.argmax(-1)).sum())

    @property
    def error(self) -> float | None:
        n = self.sums["n"]
        spread = self.sums["xx"] - self.sums["x"] ** 2 / n if n else 0.0
        if spread <= 1e-12 * self.sums["xx"] or not n:
            return 0.0 if n and not self.sums["dd"] else None
        error = sqrt(self.sums["dd"] / spread)
        return error if isfinite(error) else None

    @property
    def agreement(self) -> float | None:
        return self.sums["same"] / self.sums["rows"] if self.sums["rows"] else None
