"""Wrong options, refused before the work.

Values and the order of passes before a model is opened; what options say about groups once these are known, and before
any calibration data are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from graphprune.errors import OptionError
from graphprune.passes import PASSES, Allocate, Analyze, FoldConstants, ProtectSensitive, Select
from graphprune.pipeline import keys
from graphprune.pipeline.needs import check
from graphprune.pipeline.passes import Pass, flattened, named
from graphprune.pipeline.state import State
from graphprune.planning.allocation import Limits
from graphprune.planning.cost import build_cost_model
from graphprune.planning.layouts import is_bound
from graphprune.planning.reach import within_reach
from graphprune.planning.select import named_blocks
from graphprune.planning.target import parse_targets, require_meant
from graphprune.suggest import meant


def require_options(passes: Sequence[Pass], *, calibrated: bool, evaluated: bool = False) -> None:
    """Refuses values that no pass takes, and built-in passes in an order in which they cannot run.

    Args:
        passes: The pipeline. Behind a pass of the user's, which may hand on anything, the order is not checked.
        calibrated: Whether there will be calibration data.
        evaluated: Whether there will be a metric of the user's.

    Raises:
        OptionError: A value is wrong, or something is missing that a pass needs.
        TargetError: A target cannot be read, or there is none.
    """
    # one with a latency target is run as a part of 'meet-latency', which makes a profile
    given = {keys.PROFILE: True, keys.CALIBRATION: calibrated, keys.EVALUATION: evaluated}
    check(passes, {key for key, there in given.items() if there}, complete=True)


def require_named(names: Iterable[str], *pipelines: Sequence[Pass]) -> None:
    """Refuses to dump the graph after a pass that is in none of the pipelines that may come to run.

    Raises:
        OptionError: There is no such pass.
    """
    present = named(pipelines[0])
    if unknown := {*names}.difference(*map(named, pipelines)):
        raise OptionError(f"cannot dump after {meant(min(unknown), present)}; the passes are {', '.join(present)}")


def require_selected(state: State, passes: Sequence[Pass]) -> None:
    """Refuses what the passes to come say about groups, blocks and costs of a model that has others.

    Raises:
        OptionError: A selector names nothing.
        TargetError: A target is a percentage that was written as a number.
    """
    if state.analysis is None:
        return
    state.selection.groups(state.analysis)
    state.selection.held(state.analysis)
    for each in flattened(passes):
        if isinstance(each, Allocate):
            named_blocks(state.analysis, each.remove)
            targets = parse_targets(each.targets) if each.targets else ()
            if any(not target.relative and target.value <= 100 for target in targets):
                require_meant(targets, build_cost_model(state.analysis).costs())


def with_reach(state: State, passes: Sequence[Pass]) -> State:
    """The state with the groups that the passes to come may cut; not where a pass of the user's may want others."""
    analysis = state.analysis
    everything = [*flattened(passes)]
    allocating = [each for each in everything if isinstance(each, Allocate)]
    others = any(type(each) not in PASSES or isinstance(each, ProtectSensitive) for each in everything)
    bound = any(is_bound(each.layout) for each in allocating)  # what no config says is not there to meet a target with
    if analysis is None or state.original is None or others or bound or not allocating:
        return state
    model = build_cost_model(analysis, stated=state.original.source_costs)
    chosen, asked = state.selection.groups(analysis), bool(state.selection.only)
    names = frozenset(each.group.name for each in state.selection.held(analysis))
    for each in allocating:
        limits = Limits(each.align, each.min_units, each.max_ratio)
        targets = parse_targets(each.targets) if each.targets else ()
        if names and not targets:  # nothing but what the user names
            continue
        names |= within_reach(chosen, model, targets, limits, asked=asked)
    return replace(state, reach=names)


def n_leading(passes: Sequence[Pass]) -> int:
    """How many passes go first that look at no data, up to the analysis; none where no analysis follows on them."""
    for i, each in enumerate(passes):
        if isinstance(each, Analyze):
            return i + 1
        if not isinstance(each, Select | FoldConstants):
            break
    return 0
