"""What a pass is, and pipelines of passes: run with timing, dumps and checks between passes.

What passes need of each other is checked in :mod:`graphprune.pipeline.needs`, their text is that of
:mod:`graphprune.pipeline.text`.
"""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from graphprune.collector import give_back
from graphprune.errors import OptionError
from graphprune.ir.text import print_graph
from graphprune.observer import Observer, Several
from graphprune.pipeline import keys
from graphprune.pipeline.keys import ANYTHING
from graphprune.pipeline.needs import asked, check, given, lacking, late, needed
from graphprune.pipeline.state import State
from graphprune.pipeline.text import parse_pipeline, print_pass, print_pipeline
from graphprune.planning.selection import Selection
from graphprune.suggest import meant

__all__ = [
    "Compound",
    "Dumps",
    "Pass",
    "check_host",
    "have",
    "named",
    "parse_pipeline",
    "print_pipeline",
    "run_pipeline",
]

NOTHING: frozenset[str] = frozenset()
LARGE = 1 << 28
"""Bytes of weights above which memory is given back after each pass."""


@dataclass(frozen=True)
class Pass(ABC):
    """A step of the compiler: a frozen dataclass whose fields are its options.

    Subclasses set :attr:`name`, the kebab-case name used in pipelines as text, and say what they need and give by the
    keys of :mod:`graphprune.pipeline.keys`: plain sets, which may depend on the options. A pass that does not say what
    it gives may give anything, and what comes behind it is not checked.

    Attributes:
        may_need: What only some options need, and which ones, for the reader of a list of passes.
        selected: Options of texts of before that ``select`` has now.
        renamed: Options by the names that texts of before have for them.
    """

    name: ClassVar[str]
    may_need: ClassVar[Mapping[str, str]] = {}
    selected: ClassVar[tuple[str, ...]] = ()
    renamed: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def run(self, state: State) -> State:
        """The state after the pass. Gets a valid model and leaves a valid model."""

    @property
    def needs(self) -> frozenset[str]:
        """What has to be there before it runs."""
        return NOTHING

    @property
    def gives(self) -> frozenset[str]:
        """What is there once it has run."""
        return ANYTHING

    @property
    def uses(self) -> frozenset[str]:
        """What it looks at if it is there; what it needs among that."""
        return self.needs | (self.gives & ANYTHING)

    @property
    def spoils(self) -> frozenset[str]:
        """What is there no longer once it has run."""
        return NOTHING

    @property
    def before(self) -> frozenset[str]:
        """What must not be there yet: it has to run before the passes that give it."""
        return NOTHING

    @property
    def adds(self) -> frozenset[str]:
        """Of what it gives, what is added to what is there instead of taking its place."""
        return NOTHING

    @property
    def asks(self) -> frozenset[str]:
        """What a pass behind it has to give, for it would have no effect without."""
        return NOTHING

    @property
    def ends_measuring(self) -> bool:
        """Whether nothing looks at statistics once it has begun: they are dropped before it runs."""
        return False

    @property
    def lends(self) -> frozenset[str]:
        """What the passes inside of it have beside what was there before it."""
        return NOTHING

    @property
    def inside(self) -> tuple[tuple[Pass, ...], ...]:
        """The pipelines that it runs, as its options say."""
        found: list[tuple[Pass, ...]] = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple) and value:
                if all(isinstance(each, Pass) for each in value):
                    found.append(value)
                elif all(isinstance(each, tuple) and all(isinstance(p, Pass) for p in each) for each in value):
                    found.extend(value)
        return tuple(found)

    def check(self) -> None:  # noqa: B027  # most take whatever their options are
        """Refuses options that the pass cannot work with, before anything is opened.

        Raises:
            GraphpruneError: One is wrong.
        """

    def subject(self, key: str) -> str:
        """Who needs something, for the sentence that says that it is missing."""
        return f"pass '{self.name}'"

    def lacks(self, key: str) -> str:
        """The sentence that says that something is missing, and what to do."""
        return lacking(self.subject(key), key, self.name)

    def comes_late(self, key: str) -> str:
        """The sentence that says that the pass comes too late."""
        giver = keys.KEYS[key].giver.partition("{")[0] if key in keys.KEYS else key
        if giver == self.name:
            return f"pass '{self.name}' runs twice, and the second time cannot work; leave one of them out"
        return f"pass '{self.name}' comes after '{giver}' and has to come before it; change their order"

    def __str__(self) -> str:
        return print_pass(self)


@dataclass(frozen=True)
class Compound(Pass):
    """A pass that runs pipelines, each of them (:attr:`inside`) from where the pass begins; one of them is kept."""

    @property
    def needs(self) -> frozenset[str]:
        """What the pipelines need but for what the pass lends them."""
        return NOTHING.union(*map(needed, self.inside)) - self.lends

    @property
    def gives(self) -> frozenset[str]:
        """What each of the pipelines gives."""
        found = [given(inside) for inside in self.inside]
        return found[0].intersection(*found[1:]) if found else NOTHING

    @property
    def uses(self) -> frozenset[str]:
        """What the pipelines look at."""
        return self.needs.union(*(each.uses for inside in self.inside for each in inside))

    @property
    def before(self) -> frozenset[str]:
        """What must not be there before one of the pipelines."""
        return NOTHING.union(*map(late, self.inside))

    @property
    def asks(self) -> frozenset[str]:
        """What the pipelines ask for and do not give."""
        return NOTHING.union(*(keys for inside in self.inside for _, keys in asked(inside)))


def flattened(passes: Iterable[Pass]) -> Iterator[Pass]:
    """All passes, those inside of others behind them."""
    for each in passes:
        yield each
        for inside in each.inside:
            yield from flattened(inside)


def named(passes: Iterable[Pass]) -> tuple[str, ...]:
    """The names of passes, those inside of others behind them; each once."""
    return tuple(dict.fromkeys(each.name for each in flattened(passes)))


def have(state: State) -> frozenset[str]:
    """What is there in a state, by the keys of :mod:`graphprune.pipeline.keys`."""
    there = {
        keys.SELECTION: state.selection != Selection(),
        keys.DEMANDS: state.selection.decided,
        keys.ANALYSIS: state.analysis is not None,
        keys.SCORES: bool(state.scores),
        keys.PLAN: state.plan is not None,
        keys.CALIBRATION: state.batches is not None,
        keys.STATISTICS: state.statistics is not None,
        keys.PRODUCTS: _has_products(state),
        keys.BLOCK_SCORES: bool(state.block_scores),
        keys.PROTECTION: bool(state.protected),
        keys.LOSSES: bool(state.losses),
        keys.PROFILE: state.latency is not None,
        keys.PROOF: bool(state.checks),
        keys.EVALUATION: state.evaluation is not None,
    }
    return state.done.union(key for key, here in there.items() if here)


def _has_products(state: State) -> bool:
    statistics, analysis = state.statistics, state.analysis
    return (
        statistics is not None
        and analysis is not None
        and statistics.fits(analysis, full=True, groups=statistics.groups)
    )


def run_pipeline(
    passes: Sequence[Pass],
    state: State,
    *,
    dump_after: Iterable[str] = (),
    dump: Callable[[str], None] = lambda text: None,
    verify_each: bool = False,
    observer: Observer | None = None,
) -> State:
    """Runs passes in order, once it is clear that each has what it needs.

    Args:
        passes: The passes.
        state: Where to start.
        dump_after: Names of passes after which the graph is given to ``dump`` as text.
        dump: Takes a text.
        verify_each: Derive and check the graph after every pass, and run the model on its example input.
        observer: Told each pass before it runs, and when it has run; that of the state where nothing is said. The
            passes inside of others tell it, too.

    Raises:
        OptionError: ``dump_after`` names no pass of the pipeline, or a pass lacks something.
    """
    wanted = frozenset(dump_after)
    if unknown := wanted.difference(names := named(passes)):
        raise OptionError(f"cannot dump after {meant(min(unknown), names)}; the passes are {', '.join(names)}")
    check(passes, have(state))
    told: list[Observer] = [observer or state.observer]
    told += [Dumps(wanted, dump)] if wanted else []
    told += [Checks()] if verify_each else []
    before = state.observer
    watching = told[0] if len(told) == 1 else Several(tuple(told))
    state = replace(state, observer=watching)
    for each in passes:
        watching.begin(each.name)
        if each.ends_measuring:
            state = state.without_statistics()  # here, where no older state holds them any longer
        start, spent = time.perf_counter(), _spent(state)
        state = each.run(state)
        if large(state):
            give_back()
        taken = time.perf_counter() - start
        own = max(0.0, taken - (_spent(state) - spent))  # what passes inside of it took is theirs
        state = replace(state, seconds=(*state.seconds, (each.name, own)))
        watching.finished(each.name, taken, state)
    return replace(state, observer=before)


def large(state: State) -> bool:
    """Whether weights take so much memory that what is free should not be held beside them."""
    stored = () if state.analysis is None else state.analysis.graph.stored
    return sum(value.n_elements * value.itemsize for value in stored) > LARGE


def _spent(state: State) -> float:
    return sum(seconds for _, seconds in state.seconds)


@dataclass(frozen=True)
class Dumps(Observer):
    """Writes the graph after some passes.

    Attributes:
        after: The names of the passes.
        write: Takes a text.
    """

    after: frozenset[str]
    write: Callable[[str], None]

    def finished(self, name: str, seconds: float, state: State) -> None:
        """Writes it."""
        if name in self.after:
            self.write(f"# after {name}\n{print_graph(state.host.graph())}")


class Checks(Observer):
    """Checks the model after every pass."""

    def finished(self, name: str, seconds: float, state: State) -> None:
        """Checks it."""
        check_host(state, name)


def check_host(state: State, after: str) -> None:
    """Derives the graph anew, solves it, and runs the model: all three fail on a broken host.

    Raises:
        ProofError: The host is broken.
    """
    from graphprune.analysis.groups import analyze_graph
    from graphprune.errors import GraphpruneError, ProofError

    try:
        analyze_graph(state.host.graph())
        state.host.run(state.host.example_inputs())
    except GraphpruneError as error:
        raise ProofError(f"the model is broken after pass '{after}': {error}; please report this") from error
