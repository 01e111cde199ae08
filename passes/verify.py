"""Prove that the pruned model computes what it should."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import ClassVar

from graphprune.analysis.branch import Block
from graphprune.analysis.groups import Analysis
from graphprune.errors import GraphpruneError, OptionError
from graphprune.hosts.host import Host, Represented
from graphprune.ir.dims import Factor, Index
from graphprune.pipeline import keys
from graphprune.pipeline.edits import slice_edits
from graphprune.pipeline.passes import Pass
from graphprune.pipeline.state import Check, State
from graphprune.proof.compare import excused, require
from graphprune.proof.corner import Example, corner_of
from graphprune.proof.decoding import decoded
from graphprune.proof.masks import permutations
from graphprune.proof.oracles import prove

UNPROVEN = ("refuse", "accept")
"""What becomes of a result whose outputs, and the values inside, do not vary on the example input."""


@dataclass(frozen=True)
class Verify(Pass):
    """Runs the masked and the permutation oracle on the host's own executor.

    - masked: the pruned model equals the original with the removed units zeroed after every node and normalizers that
      count only the kept units;
    - permutation: the original with the units of *every* group permuted computes what it did before (but for groups on
      whose order an operator depends: their units may only be removed).

    Attributes:
        seed: Of the example input and the permutations.
        unproven: ``refuse``: a proof that cannot see anything fails; ``accept``: it passes, with a note.
    """

    name: ClassVar[str] = "verify"
    seed: int = 0
    unproven: str = "refuse"

    @property
    def needs(self) -> frozenset[str]:
        """A model that is cut as planned."""
        return frozenset({keys.ANALYSIS, keys.SLICED})

    @property
    def gives(self) -> frozenset[str]:
        """A proof."""
        return frozenset({keys.PROOF})

    @property
    def before(self) -> frozenset[str]:
        """A refit changes what is computed."""
        return frozenset({keys.REFIT})

    @property
    def adds(self) -> frozenset[str]:
        """Checks come behind those that there are."""
        return frozenset({keys.PROOF})

    @property
    def ends_measuring(self) -> bool:
        """Yes: models of all weights are made."""
        return True

    def check(self) -> None:
        """Refuses what ``unproven`` cannot be."""
        if self.unproven not in UNPROVEN:
            raise OptionError(f"unknown value '{self.unproven}' of 'unproven'; expected one of {', '.join(UNPROVEN)}")

    def run(self, state: State) -> State:
        """The state with the proof's numbers.

        Raises:
            ProofError: A difference is larger than rounding explains.
            OptionError: The pipeline lacks a pass.
        """
        if state.original is None:
            raise OptionError("pass 'verify' needs an analysis; put 'analyze' before it in the pipeline")
        self.check()
        analysis = state.analyzed(self.name)
        example = Example(self.seed)
        given = state.original, state.host, analysis, state.kept, state.removed
        what = ""
        if isinstance(state.original, Represented):
            twin = state.original.stand_in(state)
            given, what = (twin.original, twin.pruned, twin.analysis, twin.kept, twin.removed), f", on {twin.what}"
        checks = tuple(replace(check, note=f"{check.note}{what}") for check in verify(*given, example=example))
        if self.unproven == "accept":
            checks = excused(checks)
        if not all(check.passed for check in checks):
            state.require_sliced()
        require(checks)
        known = (state.host, example.answers) if example.answers and not self.seed and not what else None
        return replace(state, checks=(*state.checks, *checks), answers=known)


def verify(
    original: Host,
    pruned: Host,
    analysis: Analysis,
    kept: Mapping[Factor, Index],
    removed: Iterable[Block] = (),
    *,
    seed: int = 0,
    example: Example | None = None,
) -> tuple[Check, ...]:
    """Runs both oracles, and a decoder step by step, and returns what they found, good or bad."""
    example, removed = example or Example(seed), tuple(removed)

    def permuted() -> Host:
        return original.edited(slice_edits(analysis, permutations(analysis, seed)))

    given = original, pruned, permuted, analysis, kept, removed
    corner = corner_of(original.example_inputs(example.seed)) if original.exports else None
    if corner is not None:
        with suppress(GraphpruneError):  # it holds sizes of its picture
            checks = prove(*given, example=Example(example.seed, corner))
            if all(check.passed and not check.unproven for check in checks):
                return tuple(replace(check, note=f"{check.note}, on a corner of the example") for check in checks)
    checks = prove(*given, example=example)
    return (*checks, *decoded(original, pruned, analysis, kept, removed)) if _all_passed(checks) else checks


def _all_passed(checks: Iterable[Check]) -> bool:
    return all(check.passed for check in checks)
