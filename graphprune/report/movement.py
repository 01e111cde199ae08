"""How far the outputs moved on the inputs at hand: what pruning costs, which no proof of structure says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import isfinite, sqrt
from typing import TypeAlias

import numpy as np

from graphprune.data.batches import Batches
from graphprune.hosts.host import Array, Arrays, Runnable
from graphprune.importance.final import vocabularies
from graphprune.importance.judge import Asked, judges_for
from graphprune.importance.outcome import Outcome, Tally, add
from graphprune.ir.graph import Graph
from graphprune.proof.parts import parts_of
from graphprune.statistics.holdout import CALIBRATION as CALIBRATION
from graphprune.statistics.holdout import SPARED, affordable, judged_by, samples_of
from graphprune.statistics.holdout import UNSEEN as UNSEEN

Kept: TypeAlias = tuple[Batches | None, Sequence[Outcome]]
"""Samples that nothing was fitted to, and what had been lost on them at some time."""

RANDOM, EXAMPLE = "random inputs", "inputs (the example, and random ones like it)"
GIVEN = "example inputs"
HELD = SPARED

_MOST_MADE_UP = 4
"""Batches of made-up inputs, at most."""
_SHOWN = 4
RUINED = (
    "the model is ruined: output {output} {how}; leave more of it (a larger --target), try another --allocation, give "
    "more and more varied inputs (--calibration, --samples), or train the result"
)
"""What to do about a result that is worth nothing."""


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
class OutputLoss:
    """What one output, or a part of it, has lost on the inputs, end to end.

    Attributes:
        output: Its name.
        judged: How it is compared, and why so.
        before: The loss before the refit; ``None`` where there was none.
        after: The loss of the result: nats, a fraction of the variance, or ``1 - cos``.
        mean_answer: What answering always the mean of the original's outputs would lose.
        ruined: What is wrong with it, in words; empty where it is of use.
    """

    output: str
    judged: str
    before: float | None
    after: float
    mean_answer: float
    ruined: str = ""

    def __str__(self) -> str:
        """One phrase."""
        before = "" if self.before is None else f"{self.before:.3g} before the refit, "
        after = f"{self.after:.3g}{' after it' if before else ''}"
        mean = f"answering always the mean would lose {self.mean_answer:.3g}"
        return f"{self.judged}: {before}{after} ({mean})"


@dataclass(frozen=True)
class Movement:
    """How far the outputs moved.

    Attributes:
        inputs: What the models were run on.
        samples: How many samples.
        made_up: Whether they were random, so that the numbers say little about real inputs.
        outputs: For each output.
        losses: What each output that counts has lost; none on made-up inputs, which say little of it.
    """

    inputs: str
    samples: int
    made_up: bool
    outputs: tuple[OutputMove, ...]
    losses: tuple[OutputLoss, ...] = ()

    @property
    def ruined(self) -> str:
        """A sentence that says so where an output is worth nothing; empty where none is."""
        found = next((each for each in self.losses if each.ruined), None)
        return "" if found is None else RUINED.format(output=f"'{found.output}'", how=found.ruined)

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
    original: Runnable,
    pruned: Runnable,
    batches: Batches | None,
    *,
    held: bool,
    macs: float,
    seed: int = 0,
    asked: Sequence[Asked] = (),
    kept: Kept = (None, ()),
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
        asked: How the user wants outputs compared.
        kept: Samples that nothing was fitted to, and what was lost on them before the refit.

    Returns:
        ``None`` if a model does not run on them.
    """
    graph = original.graph()
    made_up = batches is None or batches.random
    unseen, unrefitted = kept
    if batches is None or batches.random:
        feeds, source = _made_up(original, macs, seed)
    else:
        feeds, source = judged_by(batches, unseen, macs / samples_of(graph), spared=held)
    judged = [] if made_up else [Tally(judge) for judge in judges_for(original, asked)]
    tallies: dict[str, _Tally] = {}
    samples = n_runs = 0
    for feed, outputs in _run(feeds, (original, pruned)):
        samples, n_runs = samples + _rows(feed), n_runs + 1
        for name, want, have in _pairs(outputs):
            tallies.setdefault(name, _Tally(_scores(graph, name))).add(want, have)
            del want, have
        add(judged, *outputs)
        outputs.clear()  # before the next run makes others: they may be of a vocabulary
    if not n_runs:
        return None
    moves = tuple(OutputMove(name, tally.error, tally.agreement) for name, tally in tallies.items())
    losses = _losses([tally.outcome() for tally in judged], unrefitted)
    return Movement(GIVEN if source == EXAMPLE and n_runs == 1 else source, samples, made_up, moves, losses)


def _losses(after: Sequence[Outcome], before: Sequence[Outcome]) -> tuple[OutputLoss, ...]:
    known = {each.judged: each.loss for each in before}
    return tuple(
        OutputLoss(each.output, each.judged, known.get(each.judged), each.loss, each.mean_answer, each.ruin)
        for each in after
        if each.rows
    )


def _run(feeds: Iterable[Arrays], hosts: tuple[Runnable, Runnable]) -> Iterator[tuple[Arrays, list[dict[str, Array]]]]:
    """Inputs with the outputs of both models, up to the first that cannot be read or run.

    Nothing here may cost the user a result that is proven: random inputs may be none that the model takes, a file that
    was not drawn may be broken.
    """
    with suppress(Exception):  # executors raise whatever an operator raises
        for feed in feeds:
            yield feed, [host.run(feed) for host in hosts]


def _pairs(outputs: Sequence[Arrays]) -> Iterator[tuple[str, Array, Array]]:
    """Each output of two models."""
    before, after = outputs
    for (name, want), have in zip(before.items(), after.values(), strict=True):
        yield name, want, have


def _made_up(host: Runnable, macs: float, seed: int) -> tuple[Iterable[Arrays], str]:
    """A few examples, and what they are."""
    first, second = host.example_inputs(seed), host.example_inputs(seed + 1)
    if all(np.array_equal(first[name], second[name]) for name in first):
        return [first], GIVEN
    most = affordable(macs, _MOST_MADE_UP)
    seeds = range(seed, seed + most)
    return (host.example_inputs(each) for each in seeds), EXAMPLE if host.given_example and seed == 0 else RANDOM


def _rows(feed: Arrays) -> int:
    """Samples of a batch: the first axis that most inputs share."""
    sizes = [array.shape[0] for array in feed.values() if array.ndim]
    return max(sizes, key=sizes.count) if sizes else 1


def _scores(graph: Graph, output: str) -> bool:
    """Whether an output looks like scores: ``n c``, or ``n s v`` where the model looks tokens up in ``v`` rows."""
    shape = graph.values[output].shape if output in graph.values else ()
    if len(shape) == 2:
        return shape[1] > 1
    return len(shape) == 3 and shape[2] in vocabularies(graph)


_COPIES = 8
"""What a part of two outputs becomes: masks, and copies in double precision."""


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
        for at in parts_of(want.shape, copies=_COPIES):
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
