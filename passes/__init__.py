"""The passes: each a frozen dataclass with options, in a file of its own. Import them as ``graphprune.passes``.

:data:`PASSES` names them for pipelines as text, :func:`default_pipeline` is the order that ``prune`` runs.
"""

from __future__ import annotations

if __name__ != "graphprune.passes":
    raise ImportError(f"this package is 'graphprune.passes', it was imported as '{__name__}'; import it by that name")

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from graphprune.errors import OptionError
from graphprune.passes.allocate import Allocate
from graphprune.passes.analyze import Analyze
from graphprune.passes.calibrate import Calibrate
from graphprune.passes.check_export import CheckExport
from graphprune.passes.choose_allocation import ChooseAllocation
from graphprune.passes.compensate import Compensate
from graphprune.passes.evaluate import Evaluate
from graphprune.passes.exchange_units import ExchangeUnits
from graphprune.passes.find_dead import FindDead
from graphprune.passes.fit_shape import FitShape
from graphprune.passes.fold_constants import FoldConstants
from graphprune.passes.fold_dead import FoldDead
from graphprune.passes.measure_latency import MeasureLatency
from graphprune.passes.measure_losses import MeasureLosses
from graphprune.passes.meet_latency import MeetLatency, meeting_latency
from graphprune.passes.protect_sensitive import ProtectSensitive
from graphprune.passes.rebuild_module import RebuildModule
from graphprune.passes.recover import Recover
from graphprune.passes.remove_blocks import RemoveBlocks
from graphprune.passes.remove_dead_nodes import RemoveDeadNodes
from graphprune.passes.score import Score
from graphprune.passes.select import Select
from graphprune.passes.slice_groups import SliceGroups
from graphprune.passes.verify import Verify
from graphprune.pipeline.options import options_of
from graphprune.pipeline.passes import Pass
from graphprune.planning.target import parse_targets
from graphprune.registry import Registry

P = TypeVar("P", bound=Pass)

__all__ = [
    "CANDIDATES",
    "PASSES",
    "Allocate",
    "Analyze",
    "Calibrate",
    "CheckExport",
    "ChooseAllocation",
    "Compensate",
    "Evaluate",
    "ExchangeUnits",
    "FindDead",
    "FitShape",
    "FoldConstants",
    "FoldDead",
    "MeasureLatency",
    "MeasureLosses",
    "MeetLatency",
    "Pass",
    "ProtectSensitive",
    "RebuildModule",
    "Recover",
    "RemoveBlocks",
    "RemoveDeadNodes",
    "Score",
    "Select",
    "SliceGroups",
    "Verify",
    "all_passes",
    "choosing",
    "default_pipeline",
    "meeting_latency",
    "register",
]

PASSES: tuple[type[Pass], ...] = (
    Select,
    FoldConstants,
    Analyze,
    Calibrate,
    Score,
    ProtectSensitive,
    MeasureLosses,
    FitShape,
    FindDead,
    Allocate,
    ChooseAllocation,
    ExchangeUnits,
    SliceGroups,
    RemoveBlocks,
    RemoveDeadNodes,
    Verify,
    FoldDead,
    Compensate,
    MeetLatency,
    CheckExport,
    MeasureLatency,
    RebuildModule,
    Recover,
    Evaluate,
)
"""The built-in passes."""


_ORDER: tuple[type[Pass], ...] = (
    Select,  # before analyze, which fixes what is protected by name
    FoldConstants,  # first: tables that a forward pass computes become constants that can be sliced
    Analyze,  # before anything is cut: plans speak of the original's units
    Calibrate,  # on the whole model: criteria look at what it computes
    Score,
    ProtectSensitive,  # after score: it removes the least important units on trial
    FitShape,  # after score: layers go by it; before losses are measured: what it decides is not tried
    MeasureLosses,  # after protect: what stays whole is not tried
    FindDead,  # before allocate, which leaves out what is dead
    Allocate,  # after score: it ranks by the scores
    SliceGroups,  # before whole branches go: its edits speak of all nodes of the original
    RemoveBlocks,
    RemoveDeadNodes,  # last of the edits: branches, and shape arithmetic that slicing replaced, are dead only now
    Verify,  # last of what keeps values: it proves what all others have done
    FoldDead,  # after verify: the masked original has these units at zero
    Compensate,  # on a model whose structure is proven; from here on weights differ
)
"""The order of the passes of ``prune``, and why it is that one."""


def default_pipeline(*passes: Pass | None) -> tuple[Pass, ...]:
    """The pipeline of ``prune``: some passes and the edits that always are made, in order; ``None`` is left out."""
    given = [each for each in passes if each is not None]
    edits = (FoldConstants(), SliceGroups(), RemoveBlocks(), RemoveDeadNodes())
    return tuple(sorted((*given, *edits), key=lambda each: _ORDER.index(type(each))))


CANDIDATES = (("", "measured"), ("", "isomorphic"), ("", "dp"), ("wifv", "global"), ("wanda", "global"))
"""What the default chooses among, as pairs of a criterion (empty: that of the pipeline) and an allocation.

Losses of one group at a time, which say nothing of how they add up; shares that are the same for all groups of a kind;
predicted errors; and plain sizes of contributions, where those predict badly.
"""


def choosing(passes: Sequence[Pass], method: str, *, criteria: bool = True) -> tuple[Pass, ...]:
    """A pipeline that tries several allocations where it has one.

    A latency is met by repeating an allocation, which stays one.

    Args:
        passes: The pipeline.
        method: How models are refitted on trial.
        criteria: Whether units may be scored in other ways than the pipeline's.
    """
    score = next((each for each in passes if isinstance(each, Score)), None)

    def candidate(allocate: Allocate, criterion: str, allocation: str) -> tuple[Pass, ...]:
        if not criterion:
            return (dataclasses.replace(allocate, allocation=allocation),)
        seed = score.seed if score is not None else 0
        return Score(criterion, seed), dataclasses.replace(allocate, allocation=allocation, criterion=criterion)

    def chosen(each: Pass) -> Pass:
        if not isinstance(each, Allocate) or not each.targets:
            return each
        if any(target.metric == "latency" for target in parse_targets(each.targets)):
            return each
        pairs = [pair for pair in CANDIDATES if criteria or not pair[0]]
        return ChooseAllocation(tuple(candidate(each, *pair) for pair in pairs), method)

    return tuple(map(chosen, passes))


def _plugin(name: str, found: Any) -> type[Pass]:
    """What an entry point names: a class of a pass, of this name."""
    if not (isinstance(found, type) and issubclass(found, Pass)):
        raise TypeError(f"a '{type(found).__name__}' is no class of passes")
    if getattr(found, "name", None) != name:
        raise TypeError(f"its name is '{getattr(found, 'name', '')}'")
    return found


_REGISTRY: Registry[type[Pass]] = Registry(
    "pass", {each.name: each for each in PASSES}, group="graphprune.passes", plugin=_plugin, ordered=True
)


def all_passes() -> Mapping[str, type[Pass]]:
    """All passes by name: the built-in ones, those of the entry point group ``graphprune.passes``, registered ones."""
    return _REGISTRY


def register(cls: type[P], *, replace: bool = False) -> type[P]:
    """Adds a pass of the user's to those that pipelines as text may name; also as a decorator.

    Raises:
        OptionError: There is another pass of its name, or a type of an option is none that a text can say.
    """
    try:
        options_of(cls)
    except TypeError as error:
        raise OptionError(f"{error}; take bool, int, float, str, a tuple of one of them, or passes") from error
    _REGISTRY.register(cls.name, cls, replace=replace)
    return cls
