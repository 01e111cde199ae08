"""What the proof compares, and what it found: a pair of models, and the verdict of one comparison."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from graphprune.hosts.host import Array, Host, Masks
from graphprune.ir.dims import Factor
from graphprune.pipeline.state import Check
from graphprune.proof.compare import (
    Deviation,
)
from graphprune.proof.watch import Watched


@dataclass(frozen=True, slots=True)
class Pair:
    """The original and what was made of it.

    Attributes:
        original: The model before.
        pruned: The model after.
        masks: What of the original's values is zero.
        watched: The values that are compared inside.
    """

    original: Host
    pruned: Host
    masks: Masks
    watched: tuple[Watched, ...] = ()


@dataclass
class Findings:
    """What a run of both sides shows.

    Attributes:
        check: The comparison of the outputs.
        inside: The largest deviation of a value inside relative to what is accepted, and where.
        blind: The groups whose units cannot be told apart in some value that reads them.
        seen: How many values inside were compared.
        wanted: The outputs of the original, whole.
    """

    check: Check
    inside: Deviation = field(default_factory=lambda: Deviation(0.0))
    where: str = ""
    blind: frozenset[Factor] = frozenset()
    seen: int = 0
    wanted: dict[str, Array] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether all is within what is accepted."""
        return self.check.difference <= self.check.tolerance and self.inside.excess <= 1

    def as_check(self) -> Check:
        """As one check: the values inside count like outputs."""
        difference = self.inside.excess * self.check.tolerance
        if not self.seen or difference <= self.check.difference:
            return self.check
        return replace(self.check, difference=difference, where=self.where)


def in_step(*runs: Iterator[tuple[str, Array]]) -> Iterator[tuple[str, tuple[Array | None, ...]]]:
    """The values of several runs side by side, as soon as all have them; what one alone has comes last."""
    held: list[dict[str, Array]] = [{} for _ in runs]
    open_runs = dict(enumerate(runs))
    while open_runs:
        for i, run in list(open_runs.items()):
            item = next(run, None)
            if item is None:
                del open_runs[i]
                continue
            name, value = item
            held[i][name] = value
            if all(name in each for each in held):
                yield name, tuple(each.pop(name) for each in held)
    for name in dict.fromkeys(name for each in held for name in each):
        yield name, tuple(each.get(name) for each in held)
