"""What passes hand to each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from graphprune.brief import brief
from graphprune.errors import OptionError
from graphprune.observer import SILENT, Observer
from graphprune.planning.selection import Selection
from graphprune.statistics.measurements import Measurements

if TYPE_CHECKING:  # what holds a check needs none of these
    from graphprune.analysis.branch import Block
    from graphprune.analysis.groups import Analysis
    from graphprune.compensation.stage import Compensated
    from graphprune.data.batches import Batches
    from graphprune.hosts.host import Host
    from graphprune.importance.judge import Asked
    from graphprune.importance.outcome import Outcome
    from graphprune.ir.dims import Factor, Index
    from graphprune.planning.latency import Attempt, LatencyModel, Profile
    from graphprune.planning.plan import PruningPlan
    from graphprune.statistics.collect import Statistics


@dataclass(frozen=True)
class Check:
    """One comparison of the proof.

    Attributes:
        name: ``masked``, ``permutation``, ``onnxruntime``, or ``cached`` for decoders; of a file against a plan also
            ``interface``, ``graph``, ``tensors`` and ``numbers``.
        difference: The largest difference of any element, relative to the slices of its value that it lies in, or to
            the rounding that was measured there; ``tolerance`` where it is as large as is accepted.
        tolerance: What is accepted.
        note: What was compared, for the reader.
        informative: Whether the outputs vary at all on the example input, or else what was compared inside: a
            saturated or constant output would agree with anything.
        partial: Whether part of what the check is for could not be compared; the note says which. What has passed so
            is not proven.
        where: Which output (or value inside) has the largest difference, and at which indices.
        unproven: Names of the groups whose units cannot be told apart in some of what reads them.
        excused: Whether a check that saw nothing passes: the user has asked for that.
    """

    __repr__ = brief

    name: str
    difference: float
    tolerance: float
    note: str = ""
    informative: bool = True
    partial: bool = False
    where: str = ""
    unproven: tuple[str, ...] = ()
    excused: bool = False

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance (NaN is not), and something was seen."""
        return self.difference <= self.tolerance and (self.informative or self.excused)


@dataclass(frozen=True)
class State:
    """The state of a compilation between two passes. Passes return a new one; nothing is edited in place.

    Attributes:
        host: The model as it is now.
        original: The model as it was analysed, what the proof compares with.
        analysis: The analysis of ``original``.
        statistics: Moments of activations on calibration data.
        scores: Scores by group name.
        losses: By group name: what the outputs lose when ``0, 1, ..., size`` units are kept, as measured on trial.
        block_scores: Scores of the blocks that may go as a whole, by name.
        kept: The units that stay, for groups that lose some.
        removed: The blocks that go as a whole.
        plan: The plan.
        compensated: What was refitted.
        left_alone: What reads removed units and was not refitted, and why not, where a refit was asked for.
        checks: The proof so far.
        seconds: Time taken by each pass that ran, in order.
        batches: Calibration inputs, if there are any.
        measured: What was measured before, on this model and others, and is found again by what it is of.
        protected: Names of groups that were found to be sensitive and stay whole.
        observer: Told the passes that run, and by long ones how many parts of how many are done.
        latency: What the model takes by a profile, where a target is about latency.
        notes: Sentences for the user.
        left_whole: By the name of a group that was not to lose units, why.
        reach: Names of the groups that the pipeline may cut, whose readers are to be measured; ``None``: all.
        done: What was done to the host since the analysis, by the keys of :mod:`graphprune.pipeline.keys`: ``sliced``,
            ``shallower``, ``refit``.
        selection: What may be pruned, as the user says it.
        profile: The table of latencies that was given, if one was.
        attempts: The allocations of which latency was measured; the last one is the one that was taken.
        evaluation: The user's metric, measured on the original.
        metrics: By name, the user's metric of the original and of the pruned model.
        latencies: Milliseconds in onnxruntime before and after, by number of threads.
        module: The user's module, made small.
        attributes: The numbers of the module that differ from those of the user's.
        former: From names in the module to those in the host, where layers that are gone have left no gap.
        opened: The model as it was opened, not folded: what latency is measured against.
        export: The file of the model, which is removed with the state that holds it.
        asked: How the user wants outputs compared (``--loss``); the graph says for those that are not named.
        held: Inputs that nothing is fitted to and nothing is chosen by; what has become of the outputs is told by them.
        unrefitted: What the outputs had lost on these before the refit.
        more: What recovery trains on, if not ``batches``.
        folder: Where recovery notes where it stands, and goes on from after a stop.
        recovered: What has come of recovery.
        proves: Whether the module is held against the graph on random inputs beside the example.
        answers: A host, and what the proof has seen it compute on the example.
    """

    __repr__ = brief

    host: Host
    original: Host | None = None
    analysis: Analysis | None = None
    statistics: Statistics | None = None
    scores: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    losses: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    block_scores: Mapping[str, float] = field(default_factory=dict)
    kept: Mapping[Factor, Index] = field(default_factory=dict)
    removed: tuple[Block, ...] = ()
    plan: PruningPlan | None = None
    compensated: tuple[Compensated, ...] = ()
    left_alone: tuple[tuple[str, str], ...] = ()
    checks: tuple[Check, ...] = ()
    seconds: tuple[tuple[str, float], ...] = ()
    batches: Batches | None = None
    measured: Measurements = field(default_factory=Measurements, repr=False)
    protected: tuple[str, ...] = ()
    observer: Observer = field(default=SILENT, repr=False)
    latency: LatencyModel | None = None
    notes: tuple[str, ...] = ()
    left_whole: Mapping[str, str] = field(default_factory=dict)
    reach: frozenset[str] | None = None
    done: frozenset[str] = frozenset()
    selection: Selection = field(default=Selection())
    profile: Profile | None = None
    attempts: tuple[Attempt, ...] = ()
    evaluation: Any = field(default=None, repr=False)
    metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    latencies: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    module: Any = field(default=None, repr=False)
    asked: tuple[Asked, ...] = ()
    held: Batches | None = None
    unrefitted: tuple[Outcome, ...] = ()
    more: Batches | None = None
    folder: Path | None = None
    recovered: Any = None
    proves: bool = True
    answers: tuple[Host, Mapping[str, NDArray[Any]]] | None = field(default=None, repr=False)
    attributes: tuple[Any, ...] = ()
    former: Callable[[str], str] = field(default=str, repr=False)
    opened: Host | None = field(default=None, repr=False)
    export: Any = field(default=None, repr=False)

    def without_statistics(self) -> State:
        """The state once nothing will look at what was measured: products of activations may be as large as weights.

        A session keeps it for its next compilation.
        """
        if not self.measured.passing:
            return self
        self.measured.clear()
        return replace(self, statistics=None)

    @property
    def inexact(self) -> bool:
        """Whether groups lose units whose removal shifts a normalizer."""
        return (
            any(group.factor in self.kept and not group.exact for group in self.analysis.groups)
            if self.analysis
            else False
        )

    def unplanned(self) -> State:
        """The state before anything was measured or planned, where it has been analysed; the host stays as it is."""
        if self.analysis is None:
            return self
        return replace(
            self, statistics=None, reach=None, scores={}, losses={}, block_scores={}, kept={}, removed=(), plan=None,
            compensated=(), left_alone=(), protected=(), left_whole={}, done=frozenset(),
        )  # fmt: skip

    def analyzed(self, by: str) -> Analysis:
        """The analysis.

        Raises:
            OptionError: No ``analyze`` has run before the pass ``by``.
        """
        if self.analysis is None:
            raise OptionError(f"pass '{by}' needs an analysis; put 'analyze' before it in the pipeline")
        return self.analysis

    def require_sliced(self) -> None:
        """Refuses a host that is not what the plan makes of the original: a report of the plan would be untrue of it.

        Raises:
            OptionError: ``slice-groups`` has not run since the plan was made.
        """
        values = self.host.graph().values
        for name, axes in self.plan.parameters.items() if self.plan is not None else ():
            value = values.get(name)
            if value is not None and any(value.shape[axis] != len(kept) for axis, kept in axes.items()):
                raise OptionError(
                    f"the pipeline plans to cut '{name}' and does not; put 'slice-groups' after 'allocate' in it"
                )
