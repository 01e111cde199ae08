"""Wrong options, refused before the work.

Values and the order of passes before a model is opened; what options say about groups once these are known, and before
any calibration data are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from graphprune.compensation.methods import require_rung
from graphprune.errors import OptionError
from graphprune.importance import block_criterion, criterion
from graphprune.passes import (
    PASSES,
    Allocate,
    Analyze,
    Calibrate,
    Compensate,
    ExchangeUnits,
    FoldConstants,
    MeasureLosses,
    ProtectSensitive,
    Score,
)
from graphprune.passes.protect_sensitive import require_ratio
from graphprune.pipeline.passes import Pass
from graphprune.pipeline.state import State
from graphprune.planning.allocation import Limits
from graphprune.planning.cost import build_cost_model
from graphprune.planning.reach import within_reach
from graphprune.planning.select import chosen_groups, named_blocks
from graphprune.planning.selectors import read_selector
from graphprune.planning.share import MEASURED, SEARCHES, require_allocation
from graphprune.planning.target import parse_targets, require_meant


def require_options(passes: Sequence[Pass], *, calibrated: bool) -> None:
    """Refuses values that no pass takes, and built-in passes in an order in which they cannot run.

    Args:
        passes: The pipeline. Behind a pass of the user's, which may hand on anything, the order is not checked.
        calibrated: Whether there will be calibration data.

    Raises:
        OptionError: A value is wrong, or something is missing that a pass needs.
        TargetError: A target cannot be read, or there is none.
    """
    for each in passes:
        _require_values(each)
    for i, each in enumerate(passes):
        if type(each) not in PASSES:
            return
        _require_order(each, passes[:i], calibrated=calibrated)
    if not any(isinstance(each, Allocate) for each in passes):
        raise OptionError("the pipeline made no plan; it needs 'analyze', 'score' and 'allocate'")


def require_choices(
    *,
    criterion: str | None = None,
    allocation: str | None = None,
    compensation: str | None = None,
    only: str | Sequence[str] = (),
    protect: str | Sequence[str] = (),
    protect_ratio: float = 0.0,
    **others: object,
) -> None:
    """Refuses options of :func:`graphprune.prune` that no pass takes, where many prunes are to follow.

    Raises:
        OptionError: A value is wrong.
    """
    only, protect = ((each,) if isinstance(each, str) else tuple(each) for each in (only, protect))
    limits = {name: others[name] for name in ("align", "min_units", "max_ratio") if name in others}
    Limits(**limits)  # type: ignore[arg-type]
    if criterion is not None:
        _require_values(Score(criterion))
    if allocation is not None:
        require_allocation(allocation)
    if compensation is not None:
        require_rung(compensation)
    require_ratio(protect_ratio)
    _read((*only, *protect))


def require_selected(state: State, passes: Sequence[Pass]) -> None:
    """Refuses what the passes to come say about groups, blocks and costs of a model that has others.

    Raises:
        OptionError: A selector names nothing.
        TargetError: A target is a percentage that was written as a number.
    """
    if state.analysis is None:
        return
    for each in passes:
        if isinstance(each, Allocate | MeasureLosses | ProtectSensitive):
            chosen_groups(state.analysis, each.only, each.protect)
        if isinstance(each, Allocate):
            named_blocks(state.analysis, each.remove)
            targets = parse_targets(each.targets) if each.targets else ()
            if any(not target.relative and target.value <= 100 for target in targets):
                require_meant(targets, build_cost_model(state.analysis).costs())


def with_reach(state: State, passes: Sequence[Pass]) -> State:
    """The state with the groups that the passes to come may cut; not where a pass of the user's may want others."""
    analysis = state.analysis
    allocating = [each for each in passes if isinstance(each, Allocate)]
    others = any(type(each) not in PASSES or isinstance(each, ProtectSensitive) for each in passes)
    if analysis is None or state.original is None or others or not allocating:
        return state
    model = build_cost_model(analysis, stated=state.original.source_costs)
    names: frozenset[str] = frozenset()
    for each in allocating:
        limits = Limits(each.align, each.min_units, each.max_ratio)
        chosen = chosen_groups(analysis, each.only, each.protect)
        targets = parse_targets(each.targets) if each.targets else ()
        names |= within_reach(chosen, model, targets, limits, asked=bool(each.only))
    return replace(state, reach=names)


def n_leading(passes: Sequence[Pass]) -> int:
    """How many passes go first that look at no data, up to the analysis; none where no analysis follows on them."""
    for i, each in enumerate(passes):
        if isinstance(each, Analyze):
            return i + 1
        if not isinstance(each, FoldConstants):
            break
    return 0


def _require_values(each: Pass) -> None:
    match each:
        case Analyze():
            _read(each.protect)
        case Score():
            criterion(each.criterion)
            if each.blocks:
                block_criterion(each.blocks)
        case Allocate():
            require_allocation(each.allocation)
            Limits(each.align, each.min_units, each.max_ratio)
            _read((*each.only, *each.protect))
            if each.targets or not (each.blocks or each.layers or each.remove):
                parse_targets(each.targets)
        case Compensate():
            require_rung(each.rung)
        case MeasureLosses():
            _read((*each.only, *each.protect))
        case ProtectSensitive():
            require_ratio(each.ratio)
            _read((*each.only, *each.protect))


def _read(selectors: Sequence[str]) -> None:
    for selector in selectors:
        read_selector(selector)


def _require_order(each: Pass, before: Sequence[Pass], *, calibrated: bool) -> None:
    """Refuses a pass that lacks what others make."""

    def put(kind: type[Pass]) -> bool:
        return any(isinstance(other, kind) for other in before)

    needs = f"pass '{each.name}' needs"
    if isinstance(each, _ANALYSED) and not put(Analyze):
        raise OptionError(f"{needs} an analysis; put 'analyze' before it in the pipeline")
    if isinstance(each, Calibrate | MeasureLosses) and not calibrated:
        raise OptionError(f"'{each.name}' needs calibration data; give some (calibration=..., --calibration PATH)")
    if isinstance(each, MeasureLosses) and not put(Score):
        raise OptionError(f"'{each.name}' needs scores; put 'score' before it in the pipeline")
    if (isinstance(each, ProtectSensitive) or (isinstance(each, Allocate) and each.targets)) and not put(Score):
        raise OptionError(f"{needs} scores; put 'score' before it in the pipeline")
    if isinstance(each, Allocate) and each.allocation in (MEASURED, *SEARCHES):
        _require_losses(each.allocation, measured=put(MeasureLosses), calibrated=calibrated)
    if isinstance(each, Compensate | ExchangeUnits) and not put(Allocate) and getattr(each, "rung", "") != "none":
        raise OptionError(f"'{each.name}' needs a plan; put 'allocate' before it in the pipeline")
    if isinstance(each, Compensate) and each.rung != "none" and not calibrated:
        raise OptionError("compensation needs calibration data; give some (calibration=..., --calibration PATH)")
    if isinstance(each, Score):
        _require_evidence(each, before, calibrated=calibrated)
    if isinstance(each, ExchangeUnits | MeasureLosses):
        _require_statistics(f"'{each.name}'", "products", before, calibrated=calibrated, by=each.name)


_ANALYSED = (Calibrate, Score, ProtectSensitive, MeasureLosses, Allocate, ExchangeUnits, Compensate)


def _require_losses(allocation: str, *, measured: bool, calibrated: bool) -> None:
    if allocation == MEASURED and not measured:
        raise OptionError(
            "allocation 'measured' shares the budget by losses on calibration data; give some (calibration=..., "
            "--calibration DATA), and put 'measure-losses' before 'allocate' in a pipeline"
        )
    if allocation in SEARCHES and not calibrated:
        raise OptionError(
            f"allocation '{allocation}' runs the model and needs calibration data; give some (calibration=..., "
            "--calibration DATA)"
        )


def _require_evidence(each: Score, before: Sequence[Pass], *, calibrated: bool) -> None:
    if each.blocks in ("bi", "ablation") and not calibrated:
        raise OptionError(
            f"block criterion '{each.blocks}' needs calibration data; give some (calibration=..., --calibration PATH)"
        )
    needs = criterion(each.criterion).needs
    if needs != "weights":
        _require_statistics(f"criterion '{each.criterion}'", needs, before, calibrated=calibrated, by=each.name)


def _require_statistics(what: str, needs: str, before: Sequence[Pass], *, calibrated: bool, by: str) -> None:
    if not calibrated:
        raise OptionError(f"{what} needs calibration data; give some (calibration=..., --calibration PATH)")
    taken = [each for each in before if isinstance(each, Calibrate)]
    if needs in ("diagonal", "products") and not taken:
        raise OptionError(f"{what} needs statistics; put 'calibrate' before '{by}' in the pipeline")
    if needs == "products" and not taken[0].products:
        raise OptionError(f"{what} needs products of activations; put 'calibrate{{products=true}}' before '{by}'")
