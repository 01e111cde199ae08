"""Meet a latency as measured: passes that are repeated with a corrected prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from graphprune.errors import OptionError
from graphprune.pipeline import keys
from graphprune.pipeline.passes import Compound, Pass, run_pipeline
from graphprune.pipeline.state import State
from graphprune.planning.latency import LatencyModel
from graphprune.profiling.profile import Measuring, cut, latency_model, make_profile
from graphprune.profiling.refine import ROUNDS, alignment, latency_target, refine, sentences, split, timed

_EXAMPLE = "as in 'meet-latency{passes=\"allocate{latency=0.6},slice-groups,remove-dead-nodes\"}'"


@dataclass(frozen=True)
class MeetLatency(Compound):
    """Allocates by a profile of this machine, cuts, measures, corrects the prediction, and repeats that.

    Each round begins where the first began. The one that comes closest to the target from below is taken; see
    :func:`graphprune.profiling.refine.refine`. By a profile of another machine nothing is measured, and one round is
    run.

    Attributes:
        passes: What is repeated: an ``allocate`` with a latency target, and all that cuts the model.
        rounds: At most so many allocations.
        seconds: About how long the original and the pruned model are measured, in turns, in each round.
    """

    name: ClassVar[str] = "meet-latency"
    passes: tuple[Pass, ...] = ()
    rounds: int = ROUNDS
    seconds: float = 3.0

    @property
    def needs(self) -> frozenset[str]:
        """What the passes need but for the profile, which is of the analysed groups."""
        return super().needs | {keys.ANALYSIS}

    @property
    def lends(self) -> frozenset[str]:
        """A profile: the one given, or one that is made now."""
        return frozenset({keys.PROFILE})

    def check(self) -> None:
        """Refuses passes that no latency follows from."""
        if self.rounds < 1:
            raise OptionError(f"rounds is {self.rounds}; expected 1 or more")
        if latency_target(self.passes) is None:
            raise OptionError(f"'{self.name}' repeats no 'allocate' with a latency target; give it one, {_EXAMPLE}")
        if not {keys.SLICED, "*"} & self.gives:
            raise OptionError(f"'{self.name}' measures what its passes cut, and none does; give it 'slice-groups', too")

    def run(self, state: State) -> State:
        """The state after the best round.

        Raises:
            TargetError: The target cannot be met by the profile.
        """
        target = latency_target(self.passes)
        assert target is not None
        state.analyzed(self.name)
        assert state.original is not None
        model = self._model(state)
        where, opened = model.profile.machine, state.opened or state.original
        timing = timed(where.threads, where.provider, self.seconds)
        found, attempts = refine(
            state, self.passes, model, target, opened, lambda passes, start: run_pipeline(passes, start), timing,
            rounds=self.rounds,
        )  # fmt: skip
        notes = (*found.notes, *sentences(attempts, model))
        return replace(found, attempts=attempts, notes=notes)

    def _model(self, state: State) -> LatencyModel:
        """What the model takes, by the profile given or by one that is made now."""
        if state.latency is not None:
            return state.latency
        opened = state.opened or state.original
        assert opened is not None
        state.observer.begin("profile")
        pieces, profile = cut(opened, state.analyzed(self.name)), state.profile
        if profile is None:
            align, advance = alignment(self.passes), state.observer.counter("profile")
            profile = make_profile(opened, pieces, Measuring(align=align, quick=True), advance=advance)
        return latency_model(profile, pieces)


def meeting_latency(passes: Sequence[Pass]) -> tuple[Pass, ...]:
    """A flat pipeline with what follows from its latency target: allocation and cuts inside of ``meet-latency``.

    The proof and what follows it stay behind. A pipeline without such a target, or with the pass, is left as it is.
    """
    if latency_target([each for each in passes if not each.inside]) is None:
        return tuple(passes)
    first, repeated, rest = split(passes)
    return (*first, MeetLatency(tuple(repeated)), *rest)
